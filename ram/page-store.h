/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pages that can be read at random: guest RAM at rest or live, an image file. */
#ifndef RAM_PAGE_STORE_H
#define RAM_PAGE_STORE_H

#include "ram/bitmap.h"
#include "ram/page-source.h"

/* Calls may come from several threads at once, with different batches. */
typedef struct VmfPageStoreOps {
    size_t size; /* sizeof(VmfPageStoreOps) */

    /*
     * Adds to @present the pages of block @block_index that may hold something other than zeros. Cheap: reads no page.
     * The rest reads as zero.
     */
    bool (*presence)(void *store, unsigned block_index, VmfDirtyBitmap *present, GError **error);

    /*
     * Reads the pages @wanted of a chunk of block @block_index: a new batch with those pages sorted into data and zero
     * and their digests, which the caller (or the sink it is pushed into) releases; NULL with @error. @buffer
     * (VMF_CHUNK_SIZE bytes, page aligned) is where the caller would have the data; it becomes the payload, unless the
     * store has the pages in memory anyway and points there. NULL: the store provides memory for as long as the batch
     * lives.
     */
    VmfPageBatch *(*read)(void *store, unsigned block_index, uint64_t chunk, const VmfPageSet *wanted, void *buffer,
                          GError **error);

    /* Once, the last call. */
    void (*free)(void *store);
} VmfPageStoreOps;

typedef struct VmfPageStore {
    const VmfPageStoreOps *ops;
    void *opaque;
} VmfPageStore;

static inline void vmf_page_store_free(VmfPageStore *store)
{
    if (store->ops && store->ops->free)
        store->ops->free(store->opaque);
    *store = (VmfPageStore){NULL, NULL};
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfPageStore, vmf_page_store_free)

#endif
