/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where in a guest's memory an image has pages, as a picture. */
#ifndef VMFERRY_TOOLS_INSPECT_MAP_H
#define VMFERRY_TOOLS_INSPECT_MAP_H

#include <stdio.h>
#include <vmferry/image.h>

/* For each RAM block rows of characters, darker where more is. */
bool vmf_inspect_map_text(VmfImage *image, FILE *file, GError **error);
/* The same as an SVG: of a layer in one colour, of its parents in another. */
bool vmf_inspect_map_svg(VmfImage *image, const char *path, GError **error);

#endif
