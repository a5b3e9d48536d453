/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the reader of pages needs of a chain beside the public calls. */
#ifndef RAM_IMAGE_CHAIN_H
#define RAM_IMAGE_CHAIN_H

#include "ram/image-reader.h"

struct VmfImageChain {
    unsigned n_layers;
    VmfImageFile *layers[VMF_IMAGE_CHAIN_MAX]; /* the youngest first */
    bool borrowed;                             /* they are somebody else's */
};

/* "URI: RAM block NAME": in front of errors about a chunk. New. */
char *vmf_image_chain_place(const VmfImageChain *chain, unsigned layer, unsigned block);

#endif
