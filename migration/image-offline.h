/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VmfImage from the inside. */
#ifndef MIGRATION_IMAGE_OFFLINE_H
#define MIGRATION_IMAGE_OFFLINE_H

#include <stdatomic.h>
#include <vmferry/image.h>

#include "ram/image-reader.h"

struct VmfImage {
    VmfImageFile *file;   /* NULL, or the one that is opened alone */
    VmfImageChain *chain; /* with it, of the file */
    _Atomic bool cancelled;
};

static inline VmfImageFile *vmf_image_layer_of(const VmfImage *image, unsigned layer)
{
    return vmf_image_chain_layer(image->chain, layer);
}

/* VMF_ERROR_CANCELLED, if it was. */
bool vmf_image_check_cancelled(const VmfImage *image, GError **error);

VmfStorageOptions vmf_image_storage_options(const VmfImageOptions *options, VmfStorageMode mode);

#endif
