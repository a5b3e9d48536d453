/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What flows between page sources and sinks: pages of one chunk of one RAM block. */
#ifndef RAM_PAGE_BATCH_H
#define RAM_PAGE_BATCH_H

#include "ram/block.h"

typedef struct VmfPageBatch VmfPageBatch;

struct VmfPageBatch {
    VmfRamBlock *block;   /* not owned; outlives the batch */
    unsigned block_index; /* in the guest's list */
    uint64_t chunk;       /* of the block */
    uint64_t first_page;  /* of the chunk, in the block */
    unsigned n_pages;     /* the chunk's, 1 to VMF_CHUNK_PAGES: bits at or above it are 0 in both sets */

    VmfPageSet data; /* pages whose content is in the payload; disjoint from zero */
    VmfPageSet zero; /* pages of zeros */

    const uint64_t *digests; /* by page of the chunk, for the pages of both sets; NULL: not known */
    const uint8_t *payload;  /* page n of the chunk lies at payload + n * VMF_PAGE_SIZE; guest memory or a copy */
    bool live;               /* the guest may write the payload meanwhile: digests are a guess about what is read next */

    /* Called once, by vmf_page_batch_release(); frees the batch and what it points at. NULL: the source keeps it. */
    void (*release)(VmfPageBatch *batch);
};

/*
 * Ends a batch: nothing of it is read any more. Whoever was given it does this exactly once, on any thread; what is in
 * the batch is then gone.
 */
static inline void vmf_page_batch_release(VmfPageBatch *batch)
{
    if (batch->release)
        batch->release(batch);
}

/* Fills in block, index and the chunk's place; the rest is zero. */
static inline void vmf_page_batch_init(VmfPageBatch *batch, VmfRamBlock *block, unsigned block_index, uint64_t chunk)
{
    *batch = (VmfPageBatch){.block = block, .block_index = block_index, .chunk = chunk};
    batch->n_pages = vmf_ram_block_chunk_pages(block, chunk, &batch->first_page);
}

#endif
