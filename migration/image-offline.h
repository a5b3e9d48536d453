/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VmfImage from the inside. */
#ifndef MIGRATION_IMAGE_OFFLINE_H
#define MIGRATION_IMAGE_OFFLINE_H

#include <stdatomic.h>
#include <vmferry/image.h>

#include "ram/image-reader.h"
#include "stream/clock.h"

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

/* Nobody may be there to cancel: a server may be slow to sync, but not silent for so long. */
#define VMF_IMAGE_SILENCE_NS (30 * VMF_NS_PER_S)

VmfStorageOptions vmf_image_storage_options(const VmfImageOptions *options, VmfStorageMode mode);

#endif
