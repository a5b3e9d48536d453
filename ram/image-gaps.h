/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef RAM_IMAGE_GAPS_H
#define RAM_IMAGE_GAPS_H

#include "ram/image-reader.h"

/* Whether all octets between the areas of an image are zero: VMF_ERROR_IMAGE_LAYOUT. Holes are not read. */
bool vmf_image_gaps_check(VmfImageFile *file, GError **error);

#endif
