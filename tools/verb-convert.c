/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
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
    FILE *file = g_str_has_prefix(uri, "file:") ? fopen(uri + strlen("file:"), "rb") : NULL;
    size_t got = file ? fread(opening, 1, sizeof(opening), file) : 0;

    if (file)
        fclose(file);
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
static char *output_uri(const char *operand, bool of_stream)
{
    bool is_uri = g_str_has_prefix(operand, "exec:") || g_str_has_prefix(operand, "fd:");

    return !of_stream && is_uri ? g_strdup(operand) : vmf_image_uri(operand);
}

int vmf_verb_convert(int argc, char **argv)
{
    g_auto(VmfImageMake) make = {0};
    g_autoptr(GError) error = NULL;
    int exit_code;

    if (!vmf_image_make_parse(&make, argc, argv, "IN OUT", description, NULL, 2, &exit_code))
        return exit_code;
    g_autofree char *from = vmf_image_uri(make.common.operands[0]);
    bool of_stream = is_stream(from);
    g_autofree char *to = output_uri(make.common.operands[1], of_stream);
    bool to_image = of_stream || g_str_has_prefix(to, "nbd"); /* an export is no place for a stream */
    bool done = of_stream ? vmf_image_from_stream(from, to, &make.options, &error)
                          : convert_image(&make, from, to, to_image, &error);
    return vmf_image_make_report(&make, done, from, to, to_image, error);
}
