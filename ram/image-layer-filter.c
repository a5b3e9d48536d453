/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/image-layer-filter.h"

#include <stdlib.h>
#include <vmferry/error.h>

#include "ram/image-writer-private.h"
#include "ram/sparse-array.h"

#define WAITING_MAX 4 /* batches that wait for their pages of the parent */

struct VmfImageLayer {
    VmfImageWriter *writer;
    VmfImageParentPages parent;
    uint64_t *same[VMF_IMAGE_BLOCKS_MAX]; /* by block and page, a bit: was found equal. Of a chunk: whoever has it */
    _Atomic uint64_t n_left_out;
};

typedef struct {
    VmfPageBatch *batch;
    VmfPageSet same;      /* pages that are the parent's */
    VmfPageSet same_zero; /* zeros there too */
    bool reading;
    uint8_t *memory; /* VMF_CHUNK_SIZE octets: the parent's pages */
} Waiting;

typedef struct {
    VmfImageLayer *layer;
    VmfPageSink behind;
    void *reader;
    Waiting waiting[WAITING_MAX]; /* a queue */
    unsigned first, count;
} Filter;

/* ---- the parent --------------------------------------------------------------------------------------------- */

static bool chain_chunk(void *chain, unsigned block, uint64_t chunk, VmfImageChunk *out, GError **error)
{
    return vmf_image_chain_chunk(chain, block, chunk, out, NULL, error);
}

static void *chain_reader_new(void *chain, unsigned depth, GError **error)
{
    return vmf_image_reader_new(chain, depth, error);
}

static bool chain_start(void *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                        VmfImageReadDone done, void *opaque, GError **error)
{
    return vmf_image_reader_start(reader, block, chunk, wanted, memory, done, opaque, error);
}

static void chain_wait(void *reader, unsigned n_under_way)
{
    vmf_image_reader_wait(reader, n_under_way);
}

static void chain_reader_free(void *reader)
{
    vmf_image_reader_free(reader);
}

static const VmfImageParentOps chain_ops = {
    .size = sizeof(VmfImageParentOps),
    .chunk = chain_chunk,
    .reader_new = chain_reader_new,
    .start = chain_start,
    .wait = chain_wait,
    .reader_free = chain_reader_free,
};

VmfImageParentPages vmf_image_parent_pages(VmfImageChain *chain)
{
    return (VmfImageParentPages){&chain_ops, chain};
}

/* ---- comparing ---------------------------------------------------------------------------------------------- */

static void compare_read(void *opaque, const VmfImageRead *read, GError *error)
{
    Waiting *waiting = opaque;
    VmfPageSet good = vmf_page_set_and_not(&read->data, &read->damaged);

    g_clear_error(&error);
    waiting->reading = false;
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = good.words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            size_t at = (size_t)page * VMF_PAGE_SIZE;
            if (memcmp(waiting->memory + at, waiting->batch->payload + at, VMF_PAGE_SIZE) == 0)
                vmf_page_set_add(&waiting->same, page);
        }
}

/* Pages of the batch whose digest is that of the parent's page: worth reading. */
static VmfPageSet likely_same(const VmfPageBatch *batch, const VmfImageChunk *parent)
{
    VmfPageSet likely = vmf_page_set_and(&batch->data, &parent->data);

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = likely.words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            if (parent->digests[page] != batch->digests[page])
                likely.words[w] &= ~(left & -left);
        }
    return likely;
}

/* A page that has a bit keeps one: of such pages the parent need not be asked. */
static bool all_present(const VmfImageLayer *layer, const VmfPageBatch *batch)
{
    VmfPageSet present = vmf_image_tables_present(layer->writer->tables, batch->block_index, batch->chunk);
    VmfPageSet pages = vmf_page_set_or(&batch->data, &batch->zero);
    VmfPageSet absent = vmf_page_set_and_not(&pages, &present);

    return vmf_page_set_is_empty(&absent);
}

/* Begins to find out which pages of the batch are the parent's. */
static bool begin(Filter *filter, Waiting *waiting, GError **error)
{
    const VmfImageParentPages *parent = &filter->layer->parent;
    const VmfPageBatch *batch = waiting->batch;
    VmfImageChunk chunk;

    if (all_present(filter->layer, batch))
        return true;
    if (!parent->ops->chunk(parent->opaque, batch->block_index, batch->chunk, &chunk, error))
        return false;
    waiting->same_zero = vmf_page_set_and_not(&batch->zero, &chunk.data);
    VmfPageSet likely = likely_same(batch, &chunk);
    if (vmf_page_set_is_empty(&likely))
        return true;
    waiting->reading = true;
    if (parent->ops->start(filter->reader, batch->block_index, batch->chunk, &likely, waiting->memory, compare_read,
                           waiting, error))
        return true;
    waiting->reading = false;
    return false;
}

/* ---- passing on --------------------------------------------------------------------------------------------- */

static void note_same(VmfImageLayer *layer, const VmfPageBatch *batch, const VmfPageSet *same)
{
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        if (same->words[w])
            layer->same[batch->block_index][batch->chunk * VMF_CHUNK_WORDS + w] |= same->words[w];
}

/* The oldest batch, which has been compared, leaves for the writer without what need not go there. */
static bool pass_on(Filter *filter, GError **error)
{
    VmfImageLayer *layer = filter->layer;
    Waiting *waiting = &filter->waiting[filter->first];
    VmfPageBatch *batch = g_steal_pointer(&waiting->batch);
    VmfPageSet written = vmf_image_tables_present(layer->writer->tables, batch->block_index, batch->chunk);
    VmfPageSet same = vmf_page_set_and_not(&waiting->same, &written);
    VmfPageSet same_zero = vmf_page_set_and_not(&waiting->same_zero, &written);

    filter->first = (filter->first + 1) % WAITING_MAX;
    filter->count--;
    note_same(layer, batch, &same);
    atomic_fetch_add_explicit(&layer->n_left_out, vmf_page_set_count(&same), memory_order_relaxed);
    batch->data = vmf_page_set_and_not(&batch->data, &same);
    batch->zero = vmf_page_set_and_not(&batch->zero, &same_zero);
    if (!vmf_page_set_is_empty(&batch->data) || !vmf_page_set_is_empty(&batch->zero))
        return vmf_page_sink_push(&filter->behind, batch, error);
    vmf_page_batch_release(batch);
    return true;
}

/* Reads end in any order; batches go on in theirs. */
static bool pass_oldest_on(Filter *filter, GError **error)
{
    const Waiting *oldest = &filter->waiting[filter->first];

    for (unsigned n = WAITING_MAX; oldest->reading; n--)
        filter->layer->parent.ops->wait(filter->reader, n - 1);
    return pass_on(filter, error);
}

static bool check_batch(const VmfImageLayer *layer, const VmfPageBatch *batch, GError **error)
{
    const VmfImageLayout *layout = &layer->writer->layout;

    if (batch->block_index < layout->n_blocks &&
        batch->chunk < vmf_image_block_n_chunks(&layout->blocks[batch->block_index]) &&
        (vmf_page_set_is_empty(&batch->data) || (batch->payload && batch->digests)))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL,
                "comparing pages: block %u, chunk %" G_GUINT64_FORMAT ": no such chunk, or no payload or digests",
                batch->block_index, batch->chunk);
    return false;
}

static bool filter_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Filter *filter = opaque;

    if (!check_batch(filter->layer, batch, error) || (filter->count == WAITING_MAX && !pass_oldest_on(filter, error))) {
        vmf_page_batch_release(batch);
        return false;
    }
    Waiting *waiting = &filter->waiting[(filter->first + filter->count) % WAITING_MAX];
    filter->count++;
    *waiting = (Waiting){.batch = batch, .memory = waiting->memory};
    return begin(filter, waiting, error);
}

static bool filter_flush(void *opaque, GError **error)
{
    Filter *filter = opaque;

    while (filter->count > 0)
        if (!pass_oldest_on(filter, error))
            return false;
    return vmf_page_sink_flush(&filter->behind, error);
}

static void filter_free(void *opaque)
{
    Filter *filter = opaque;

    if (filter->reader)
        filter->layer->parent.ops->reader_free(filter->reader);
    for (unsigned i = 0; i < WAITING_MAX; i++) {
        if (filter->waiting[i].batch)
            vmf_page_batch_release(filter->waiting[i].batch);
        free(filter->waiting[i].memory);
    }
    vmf_page_sink_free(&filter->behind);
    g_free(filter);
}

static const VmfPageSinkOps filter_ops = {
    .size = sizeof(VmfPageSinkOps),
    .push = filter_push,
    .flush = filter_flush,
    .free = filter_free,
};

/* ---- making and closing ------------------------------------------------------------------------------------- */

static bool make_memory(Filter *filter, GError **error)
{
    for (unsigned i = 0; i < WAITING_MAX; i++) {
        filter->waiting[i].memory = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
        if (filter->waiting[i].memory)
            continue;
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_MEMORY, "comparing pages: no memory for a chunk");
        return false;
    }
    return true;
}

bool vmf_image_layer_filter(VmfImageLayer *layer, VmfPageSink *sink, GError **error)
{
    Filter *filter = g_new0(Filter, 1);

    filter->layer = layer;
    if (make_memory(filter, error))
        filter->reader = layer->parent.ops->reader_new(layer->parent.opaque, WAITING_MAX, error);
    if (!filter->reader) {
        filter_free(filter);
        return false;
    }
    filter->behind = *sink;
    *sink = (VmfPageSink){&filter_ops, filter};
    return true;
}

VmfImageLayer *vmf_image_layer_new(VmfImageWriter *writer, const VmfImageParentPages *parent, GError **error)
{
    g_autoptr(VmfImageLayer) layer = g_new0(VmfImageLayer, 1);

    layer->writer = writer;
    layer->parent = *parent;
    for (unsigned b = 0; b < writer->layout.n_blocks; b++) {
        layer->same[b] = vmf_sparse_array_new(writer->tables->blocks[b].n_words, sizeof(uint64_t), "layer", error);
        if (!layer->same[b])
            return NULL;
    }
    return g_steal_pointer(&layer);
}

void vmf_image_layer_free(VmfImageLayer *layer)
{
    if (!layer)
        return;
    for (unsigned b = 0; b < layer->writer->layout.n_blocks; b++)
        vmf_sparse_array_free(layer->same[b], layer->writer->tables->blocks[b].n_words, sizeof(uint64_t));
    g_free(layer);
}

static bool close_chunk(VmfImageLayer *layer, unsigned b, uint64_t c, GError **error)
{
    VmfPageSet present = vmf_image_tables_present(layer->writer->tables, b, c), same;
    VmfImageChunk chunk;

    if (!layer->parent.ops->chunk(layer->parent.opaque, b, c, &chunk, error))
        return false;
    memcpy(same.words, &layer->same[b][c * VMF_CHUNK_WORDS], sizeof(same.words));
    VmfPageSet holes = vmf_page_set_and_not(&chunk.data, &present);
    holes = vmf_page_set_and_not(&holes, &same);
    vmf_image_tables_put_zero(layer->writer->tables, b, c, &holes);
    return true;
}

bool vmf_image_layer_close(VmfImageLayer *layer, GError **error)
{
    for (unsigned b = 0; b < layer->writer->layout.n_blocks; b++)
        for (uint64_t c = 0; c < layer->writer->tables->blocks[b].n_chunks; c++)
            if (!close_chunk(layer, b, c, error))
                return false;
    return true;
}

uint64_t vmf_image_layer_pages_left_out(const VmfImageLayer *layer)
{
    return atomic_load_explicit(&layer->n_left_out, memory_order_relaxed);
}
