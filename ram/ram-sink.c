/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Data that a source read into reserve()'s memory is in place already; any other is copied, a run
 * of adjacent pages at a time. Digests are those of the bytes that lie in place, hashed while they are still in the
 * cache; only a source whose bytes are at rest is believed. A page that becomes zero is cleared, not given back to the
 * host: it is likely to be written again, and the next first touch would cost more than the memory is worth.
 */
#include "ram/ram-sink.h"

#include <vmferry/error.h>

typedef struct {
    VmfRamBlock **blocks;
    VmfDigestTable **tables;
    unsigned n_blocks;
    const VmfPageScan *scan;
    uint64_t digests[VMF_CHUNK_PAGES];
} RamSink;

static void *ram_sink_reserve(void *opaque, unsigned block_index, uint64_t chunk)
{
    RamSink *sink = opaque;

    if (block_index >= sink->n_blocks || chunk >= vmf_ram_block_n_chunks(sink->blocks[block_index]))
        return NULL;
    return vmf_ram_block_page(sink->blocks[block_index], chunk * VMF_CHUNK_PAGES);
}

static void copy_data(const VmfPageBatch *batch, uint8_t *chunk)
{
    unsigned first, n_pages;

    for (unsigned from = 0; vmf_page_set_next_run(&batch->data, from, &first, &n_pages); from = first + n_pages)
        memcpy(chunk + first * VMF_PAGE_SIZE, batch->payload + first * VMF_PAGE_SIZE, n_pages * VMF_PAGE_SIZE);
}

static void clear_zeros(RamSink *sink, const VmfPageBatch *batch, const VmfDigestTable *table, uint8_t *chunk)
{
    if (vmf_page_set_is_empty(&batch->zero))
        return;
    vmf_digest_table_read(table, batch->chunk, &batch->zero, sink->digests);
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        for (uint64_t left = batch->zero.words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + __builtin_ctzll(left);
            if (sink->digests[page] != 0)
                memset(chunk + page * VMF_PAGE_SIZE, 0, VMF_PAGE_SIZE);
        }
    }
}

static void enter_digests(RamSink *sink, const VmfPageBatch *batch, VmfDigestTable *table, const uint8_t *chunk)
{
    const uint64_t *digests = batch->digests;

    if (!digests || batch->live) {
        vmf_page_scan_digests(sink->scan, chunk, VMF_PAGE_SIZE, batch->n_pages, batch->data.words, sink->digests);
        digests = sink->digests;
    }
    vmf_digest_table_update(table, batch->chunk, &batch->data, digests);
    vmf_digest_table_update(table, batch->chunk, &batch->zero, NULL);
}

static bool ram_sink_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    RamSink *sink = opaque;
    uint8_t *chunk = ram_sink_reserve(sink, batch->block_index, batch->chunk);

    if (chunk) {
        VmfDigestTable *table = sink->tables[batch->block_index];
        if (batch->payload && batch->payload != chunk)
            copy_data(batch, chunk);
        clear_zeros(sink, batch, table, chunk);
        enter_digests(sink, batch, table, chunk);
    } else {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE,
                    "placing pages: block %u, chunk %" G_GUINT64_FORMAT ": no such chunk", batch->block_index,
                    batch->chunk);
    }
    vmf_page_batch_release(batch);
    return chunk != NULL;
}

static void ram_sink_free(void *opaque)
{
    RamSink *sink = opaque;

    g_free(sink->blocks);
    g_free(sink->tables);
    g_free(sink);
}

static const VmfPageSinkOps ram_sink_ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = ram_sink_reserve,
    .push = ram_sink_push,
    .free = ram_sink_free,
};

VmfPageSink vmf_ram_sink_new(VmfRamBlock *const *blocks, VmfDigestTable *const *tables, unsigned n_blocks,
                             const VmfPageScan *scan)
{
    RamSink *sink = g_new0(RamSink, 1);

    sink->blocks = g_memdup2(blocks, n_blocks * sizeof(*blocks));
    sink->tables = g_memdup2(tables, n_blocks * sizeof(*tables));
    sink->n_blocks = n_blocks;
    sink->scan = scan;
    return (VmfPageSink){&ram_sink_ops, sink};
}
