/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bitmaps and digest blocks of one image, read at first use: some chunks at once, each compared with its entry in the
 * chunk table before anything of it is used. What was read stays in memory, 4.2 KiB a chunk. Any thread.
 */
#ifndef RAM_IMAGE_INDEX_H
#define RAM_IMAGE_INDEX_H

#include "ram/image-reader.h"

typedef struct VmfImageIndex VmfImageIndex;

/* @file has layout and tables, and outlives the index. NULL: no memory. */
VmfImageIndex *vmf_image_index_new(VmfImageFile *file, GError **error);
void vmf_image_index_free(VmfImageIndex *index);

#define VMF_IMAGE_INDEX_UNIT                                                                                           \
    (VMF_IMAGE_BLOCK / (VMF_CHUNK_WORDS * 8)) /* chunks whose bits are in one block of a bitmap */

/*
 * Whether the bitmaps have no bit for those chunks in [@first, @first + VMF_IMAGE_INDEX_UNIT) that the table says are
 * empty, which nobody else looks at. @first: a multiple of the unit.
 */
bool vmf_image_index_verify(VmfImageFile *file, unsigned block, uint64_t first, GError **error);

#endif
