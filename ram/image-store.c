/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A chain as a page store. Batches have to name a RAM block: the store has one for each of the image's, of which only
 * the description is ever used. Each call takes a reader of its own out of a pool, so that calls of several threads
 * read side by side.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <vmferry/error.h>

#include "ram/image-chain.h"

typedef struct {
    VmfImageChain *chain;
    VmfRamBlock *blocks[VMF_RAM_BLOCKS_MAX];
    pthread_mutex_t lock;
    GPtrArray *readers; /* of the pool that are idle; under the lock */
} ImageStore;

static bool image_store_presence(void *opaque, unsigned block_index, VmfDirtyBitmap *present, GError **error)
{
    ImageStore *store = opaque;
    uint64_t n_chunks = vmf_ram_block_n_chunks(store->blocks[block_index]);
    VmfImageChunk chunk;

    for (uint64_t c = 0; c < n_chunks; c++) {
        if (!vmf_image_chain_chunk(store->chain, block_index, c, &chunk, NULL, error))
            return false;
        if (!vmf_page_set_is_empty(&chunk.data))
            vmf_dirty_bitmap_or_words(present, c * VMF_CHUNK_WORDS, chunk.data.words, VMF_CHUNK_WORDS);
    }
    return true;
}

static VmfImageReader *take_reader(ImageStore *store, GError **error)
{
    pthread_mutex_lock(&store->lock);
    VmfImageReader *reader =
        store->readers->len > 0 ? g_ptr_array_steal_index(store->readers, store->readers->len - 1) : NULL;
    pthread_mutex_unlock(&store->lock);
    return reader ? reader : vmf_image_reader_new(store->chain, 1, error);
}

static void give_reader(ImageStore *store, VmfImageReader *reader)
{
    pthread_mutex_lock(&store->lock);
    g_ptr_array_add(store->readers, reader);
    pthread_mutex_unlock(&store->lock);
}

typedef struct {
    VmfPageBatch batch; /* first: the batch's address is the whole's */
    uint64_t digests[VMF_CHUNK_PAGES];
    void *own; /* the payload, where it is not the caller's */
    GError *error;
} ImageBatch;

static void image_batch_release(VmfPageBatch *batch)
{
    free(((ImageBatch *)batch)->own);
    g_free(batch);
}

static void take_read(void *opaque, const VmfImageRead *read, GError *error)
{
    ImageBatch *image = opaque;

    image->batch.data = read->data;
    image->batch.zero = read->zero;
    memcpy(image->digests, read->digests, sizeof(image->digests));
    image->error = error;
}

static bool read_into(ImageStore *store, ImageBatch *image, const VmfPageSet *wanted, void *payload, GError **error)
{
    VmfPageBatch *batch = &image->batch;
    VmfImageReader *reader = take_reader(store, error);

    if (!reader)
        return false;
    bool good =
        vmf_image_reader_start(reader, batch->block_index, batch->chunk, wanted, payload, take_read, image, error);
    vmf_image_reader_wait(reader, 0);
    give_reader(store, reader);
    if (image->error)
        g_propagate_error(error, g_steal_pointer(&image->error));
    else if (good)
        return true;
    return false;
}

static VmfPageBatch *image_store_read(void *opaque, unsigned block_index, uint64_t chunk, const VmfPageSet *wanted,
                                      void *buffer, GError **error)
{
    ImageStore *store = opaque;
    ImageBatch *image = g_new0(ImageBatch, 1);
    VmfPageBatch *batch = &image->batch;

    vmf_page_batch_init(batch, store->blocks[block_index], block_index, chunk);
    batch->digests = image->digests;
    batch->release = image_batch_release;
    image->own = buffer ? NULL : aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    batch->payload = buffer ? buffer : image->own;
    if (!batch->payload)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory for a chunk");
    else if (read_into(store, image, wanted, (void *)batch->payload, error))
        return batch;
    image_batch_release(batch);
    return NULL;
}

static void image_store_free(void *opaque)
{
    ImageStore *store = opaque;

    g_ptr_array_free(store->readers, true);
    for (unsigned b = 0; b < VMF_RAM_BLOCKS_MAX; b++)
        vmf_ram_block_free(store->blocks[b]);
    pthread_mutex_destroy(&store->lock);
    g_free(store);
}

static const VmfPageStoreOps image_store_ops = {
    .size = sizeof(VmfPageStoreOps),
    .presence = image_store_presence,
    .read = image_store_read,
    .free = image_store_free,
};

static void free_reader(void *reader)
{
    vmf_image_reader_free(reader);
}

bool vmf_image_store_new(VmfImageChain *chain, VmfPageStore *store, GError **error)
{
    const GArray *blocks = chain->layers[0]->static_data->blocks;
    ImageStore *image = g_new0(ImageStore, 1);

    image->chain = chain;
    image->readers = g_ptr_array_new_with_free_func(free_reader);
    pthread_mutex_init(&image->lock, NULL);
    *store = (VmfPageStore){&image_store_ops, image};
    for (guint b = 0; b < blocks->len; b++) {
        const VmfStaticBlock *block = &g_array_index(blocks, VmfStaticBlock, b);
        VmfRamFlags flags = block->flags & VMF_BLOCK_FLAG_ROM ? VMF_RAM_ROM : 0;
        image->blocks[b] =
            vmf_ram_block_new(block->name, block->size, VMF_RAM_ANON, flags, block->guest_address, error);
        if (!image->blocks[b]) {
            vmf_page_store_free(store);
            return false;
        }
    }
    return true;
}

VmfRamBlock *vmf_image_store_block(const VmfPageStore *store, unsigned block)
{
    return ((ImageStore *)store->opaque)->blocks[block];
}
