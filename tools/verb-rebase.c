/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <vmferry/error.h>

#include "tools/image-make.h"

static const char description[] =
    "Makes a layer over another parent: the same guest, of which only what differs from that parent is written. The "
    "parent is any image of a guest with the same RAM.";

/* The new parent is the last that was given; the others say where old ones are. */
static char *take_parent(VmfImageMake *make, GError **error)
{
    unsigned n = make->arguments.parents ? g_strv_length(make->arguments.parents) : 0;

    if (n > 0)
        return vmf_image_uri(make->arguments.parents[n - 1], error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "rebase: --parent: is missing: over which image?");
    return NULL;
}

int vmf_verb_rebase(int argc, char **argv)
{
    g_auto(VmfImageMake) make = {0};
    g_autoptr(GError) error = NULL;
    int exit_code;

    if (!vmf_image_make_parse(&make, argc, argv, "IN OUT", description, NULL, 2, &exit_code))
        return exit_code;
    g_autofree char *from = vmf_image_uri(make.common.operands[0], &error);
    g_autofree char *to = from ? vmf_image_uri(make.common.operands[1], &error) : NULL;
    g_autofree char *below = to ? take_parent(&make, &error) : NULL;
    g_autoptr(VmfImage) image = below ? vmf_image_open_operand(&make.arguments, from, false, &error) : NULL;
    g_autoptr(VmfImage) parent = image ? vmf_image_open_operand(&make.arguments, below, false, &error) : NULL;
    bool done = parent && vmf_image_rebase(image, parent, to, &make.options, &error);
    return vmf_image_make_report(&make, done, from, to, true, error);
}
