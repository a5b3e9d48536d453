/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the image writer share: image-writer.c, image-writer-lane.c, image-writer-finish.c. */
#ifndef RAM_IMAGE_WRITER_PRIVATE_H
#define RAM_IMAGE_WRITER_PRIVATE_H

#include <stdatomic.h>

#include "ram/image-tables.h"
#include "ram/image-writer.h"

#define VMF_IMAGE_WRITER_DEPTH 4 /* chunks' worth of pages under way on a lane */

struct VmfImageWriter {
    VmfStorage *storage;
    VmfImageLayout layout;
    uint8_t id[VMF_IMAGE_ID_SIZE];
    bool layer;
    const VmfPageScan *scan;
    unsigned depth;
    VmfImageTables *tables; /* of a chunk: whoever has the chunk */
    _Atomic bool stable;
    _Atomic uint64_t bytes_written;
    _Atomic unsigned n_lanes;
};

static inline uint64_t vmf_image_round_up(uint64_t length)
{
    return (length + VMF_IMAGE_BLOCK - 1) / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK;
}

#endif
