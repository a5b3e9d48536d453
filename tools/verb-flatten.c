/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/image-make.h"

static const char description[] =
    "Makes one image of a layer and all that it stands on: the same guest, without a parent.";

int vmf_verb_flatten(int argc, char **argv)
{
    g_auto(VmfImageMake) make = {0};
    g_autoptr(GError) error = NULL;
    int exit_code;

    if (!vmf_image_make_parse(&make, argc, argv, "IN OUT", description, NULL, 2, &exit_code))
        return exit_code;
    g_autofree char *from = vmf_image_uri(make.common.operands[0], &error);
    g_autofree char *to = from ? vmf_image_uri(make.common.operands[1], &error) : NULL;
    g_autoptr(VmfImage) image = !to ? NULL : vmf_image_open_operand(&make.arguments, from, false, &error);
    bool done = image && vmf_image_flatten(image, to, &make.options, &error);
    return vmf_image_make_report(&make, done, from, to, true, error);
}
