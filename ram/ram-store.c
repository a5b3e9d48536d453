/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/ram-store.h"

#include "ram/occupancy.h"

typedef struct {
    VmfRamBlock **blocks;
    unsigned n_blocks;
    const VmfPageScan *scan;
    bool live;
} RamStore;

static bool ram_store_presence(void *opaque, unsigned block_index, VmfDirtyBitmap *present, GError **error)
{
    RamStore *store = opaque;
    return vmf_occupancy_scan(store->blocks[block_index], present, error);
}

/* A batch over guest memory: only its digests are memory of its own. */
typedef struct {
    VmfPageBatch batch; /* first: the batch's address is the whole's */
    uint64_t digests[VMF_CHUNK_PAGES];
} RamBatch;

static void ram_batch_release(VmfPageBatch *batch)
{
    g_free(batch);
}

static VmfPageBatch *ram_store_read(void *opaque, unsigned block_index, uint64_t chunk, const VmfPageSet *wanted,
                                    void *buffer, GError **error)
{
    RamStore *store = opaque;
    RamBatch *ram = g_new(RamBatch, 1);
    VmfPageBatch *batch = &ram->batch;

    vmf_page_batch_init(batch, store->blocks[block_index], block_index, chunk);
    batch->payload = vmf_ram_block_page(batch->block, batch->first_page);
    batch->live = store->live;
    batch->digests = ram->digests;
    batch->release = ram_batch_release;
    vmf_page_scan(store->scan, batch->payload, VMF_PAGE_SIZE, batch->n_pages, wanted->words, batch->data.words,
                  batch->zero.words, ram->digests);
    return batch;
}

static void ram_store_free(void *opaque)
{
    RamStore *store = opaque;

    g_free(store->blocks);
    g_free(store);
}

static const VmfPageStoreOps ram_store_ops = {
    .size = sizeof(VmfPageStoreOps),
    .presence = ram_store_presence,
    .read = ram_store_read,
    .free = ram_store_free,
};

VmfPageStore vmf_ram_store_new(VmfRamBlock *const *blocks, unsigned n_blocks, const VmfPageScan *scan, bool live)
{
    RamStore *store = g_new0(RamStore, 1);

    *store = (RamStore){
        .blocks = g_memdup2(blocks, n_blocks * sizeof(*blocks)), .n_blocks = n_blocks, .scan = scan, .live = live};
    return (VmfPageStore){&ram_store_ops, store};
}
