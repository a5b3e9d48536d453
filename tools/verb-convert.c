/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tools/image-make.h"

static const char description[] =
    "Makes an image of a stream that was written to a file ('vmferry migrate NAME file:PATH'), or such a stream of an "
    "image and all that it stands on. What IN is, it says itself.";

/* A stream begins with eight octets of ones, and no image does. */
static bool is_stream(const char *uri)
{
    static const unsigned char marker[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    unsigned char opening[8] = {0};
    const char *path = g_str_has_prefix(uri, "file:") ? uri + strlen("file:") : NULL;
    struct stat status;
    int fd = -1;

    /* What a pipe gives is gone once it was looked at, and to open one waits for who writes it. */
    if (path && stat(path, &status) == 0 && (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)))
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = fd >= 0 ? pread(fd, opening, sizeof(opening), 0) : 0;
    if (fd >= 0)
        close(fd);
    return got == sizeof(opening) && memcmp(opening, marker, sizeof(marker)) == 0;
}

static bool convert_image(VmfImageMake *make, const char *from, const char *to, bool to_image, GError **error)
{
    g_autoptr(VmfImage) image = vmf_image_open_operand(&make->arguments, from, false, error);

    if (!image)
        return false;
    return to_image ? vmf_image_flatten(image, to, &make->options, error)
                    : vmf_image_to_stream(image, to, &make->options, error);
}

/* OUT of an image may be any URI that a stream can be written to. */
static char *output_uri(const char *operand, bool of_stream, GError **error)
{
    bool is_uri = g_str_has_prefix(operand, "exec:") || g_str_has_prefix(operand, "fd:");

    return !of_stream && is_uri ? g_strdup(operand) : vmf_image_uri(operand, error);
}

int vmf_verb_convert(int argc, char **argv)
{
    g_auto(VmfImageMake) make = {0};
    g_autoptr(GError) error = NULL;
    int exit_code;

    if (!vmf_image_make_parse(&make, argc, argv, "IN OUT", description, NULL, 2, &exit_code))
        return exit_code;
    g_autofree char *from = vmf_image_uri(make.common.operands[0], &error);
    bool of_stream = from && is_stream(from);
    g_autofree char *to = from ? output_uri(make.common.operands[1], of_stream, &error) : NULL;
    if (!to)
        return vmf_image_make_report(&make, false, NULL, NULL, false, error);
    bool to_image = of_stream || g_str_has_prefix(to, "nbd"); /* an export is no place for a stream */
    bool done = of_stream ? vmf_image_from_stream(from, to, &make.options, &error)
                          : convert_image(&make, from, to, to_image, &error);
    return vmf_image_make_report(&make, done, from, to, to_image, error);
}
