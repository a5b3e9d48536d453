/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the verbs that write images have in common. */
#ifndef VMFERRY_TOOLS_IMAGE_MAKE_H
#define VMFERRY_TOOLS_IMAGE_MAKE_H

#include "tools/image-common.h"

typedef struct {
    VmfCommon common;
    VmfImageArguments arguments;
    char *threads;
    gboolean force;
    VmfImageMakeOptions options; /* after vmf_image_make_parse() */
    VmfImageTicker ticker;
    gint64 start_us;
} VmfImageMake;

/* As vmf_common_parse(), with the options that all of them take and @own. */
bool vmf_image_make_parse(VmfImageMake *make, int argc, char **argv, const char *synopsis, const char *description,
                          const GOptionEntry *own, unsigned n_operands, int *exit_code);
void vmf_image_make_clear(VmfImageMake *make);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfImageMake, vmf_image_make_clear)

/*
 * The end: @error, or what was made of operand @from at operand @to. @is_image: what was made is one, which is opened
 * to see what it is. Returns the exit code.
 */
int vmf_image_make_report(VmfImageMake *make, bool done, const char *from, const char *to, bool is_image,
                          const GError *error);

#endif
