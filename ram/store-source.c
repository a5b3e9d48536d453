/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A chunk is taken out of its bitmap whole and pushed in pieces, so that zero test, digest and
 * sink meet each piece in the cache.
 */
#include "ram/store-source.h"

typedef struct {
    VmfPageStore store;
    VmfDirtyBitmap **bitmaps;
    unsigned n_blocks;
    unsigned batch_pages;

    unsigned block_index; /* of the chunk in work, or of the next to look for */
    uint64_t next_chunk;
    uint64_t chunk;
    VmfPageSet left; /* of @chunk: taken, not pushed yet */
} StoreSource;

/* Takes the next chunk with a dirty page out of its bitmap; false when there is none. */
static bool take_chunk(StoreSource *source)
{
    for (; source->block_index < source->n_blocks; source->block_index++, source->next_chunk = 0) {
        VmfDirtyBitmap *bitmap = source->bitmaps[source->block_index];
        while (vmf_dirty_bitmap_next_chunk(bitmap, source->next_chunk, &source->chunk)) {
            source->next_chunk = source->chunk + 1;
            if (vmf_dirty_bitmap_take_chunk(bitmap, source->chunk, &source->left) > 0)
                return true;
        }
    }
    return false;
}

/* Cuts the next piece off what is left of the chunk. */
static VmfPageSet next_piece(StoreSource *source)
{
    unsigned end = vmf_page_set_cut(&source->left, 0, source->batch_pages);
    VmfPageSet piece = vmf_page_set_slice(&source->left, 0, end);

    source->left = vmf_page_set_and_not(&source->left, &piece);
    return piece;
}

static bool store_source_step(void *opaque, const VmfPageSink *sink, bool *done, GError **error)
{
    StoreSource *source = opaque;

    *done = vmf_page_set_is_empty(&source->left) && !take_chunk(source);
    if (*done)
        return true;
    VmfPageSet piece = next_piece(source);
    void *buffer = vmf_page_sink_reserve(sink, source->block_index, source->chunk);
    VmfPageBatch *batch =
        source->store.ops->read(source->store.opaque, source->block_index, source->chunk, &piece, buffer, error);
    return batch && vmf_page_sink_push(sink, batch, error);
}

static void store_source_free(void *opaque)
{
    StoreSource *source = opaque;

    g_free(source->bitmaps);
    g_free(source);
}

static const VmfPageSourceOps store_source_ops = {
    .size = sizeof(VmfPageSourceOps),
    .step = store_source_step,
    .free = store_source_free,
};

VmfPageSource vmf_store_source_new(const VmfPageStore *store, VmfDirtyBitmap *const *bitmaps, unsigned n_blocks,
                                   unsigned batch_pages)
{
    StoreSource *source = g_new0(StoreSource, 1);

    *source = (StoreSource){.store = *store,
                            .bitmaps = g_memdup2(bitmaps, n_blocks * sizeof(*bitmaps)),
                            .n_blocks = n_blocks,
                            .batch_pages = batch_pages};
    return (VmfPageSource){&store_source_ops, source};
}
