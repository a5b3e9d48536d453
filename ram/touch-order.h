/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The order in which a guest first touched its pages after it was restored: recorded beside the image
 * (docs/fixed-ram-format.rst), for the next restore to read ahead in. A hint: it is never needed.
 */
#ifndef RAM_TOUCH_ORDER_H
#define RAM_TOUCH_ORDER_H

#include "ram/image-format.h"

typedef struct VmfTouchOrder VmfTouchOrder;

/* Empty. */
VmfTouchOrder *vmf_touch_order_new(void);
void vmf_touch_order_free(VmfTouchOrder *order);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfTouchOrder, vmf_touch_order_free)

/* @block below 2^16, @page below 2^48. Where there is no memory for it, nothing happens. */
void vmf_touch_order_add(VmfTouchOrder *order, unsigned block, uint64_t page);
uint64_t vmf_touch_order_length(const VmfTouchOrder *order);
/* Entry @index (it exists). From a file: any block, any page. */
void vmf_touch_order_get(const VmfTouchOrder *order, uint64_t index, unsigned *block, uint64_t *page);

/* Replaces the file @path. VMF_ERROR_IO. */
bool vmf_touch_order_write(const VmfTouchOrder *order, const char *path, const uint8_t image_id[VMF_IMAGE_ID_SIZE],
                           const VmfImageDigest *root, GError **error);
/*
 * NULL with @error where the file cannot be used: it is missing (VMF_ERROR_IO), damaged (VMF_ERROR_CRC and the like) or
 * of another image (VMF_ERROR_IMAGE_PARENT). Whoever restores goes on without it.
 */
VmfTouchOrder *vmf_touch_order_read(const char *path, const uint8_t image_id[VMF_IMAGE_ID_SIZE],
                                    const VmfImageDigest *root, GError **error);

#endif
