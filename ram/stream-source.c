/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/stream-source.h"

#include <vmferry/error.h>

#include <inttypes.h>

bool vmf_stream_source_check(const VmfWirePages *meta, uint32_t length, GError **error)
{
    unsigned n_data = 0;
    uint64_t both = 0, any = 0;

    for (unsigned w = 0; w < VMF_WIRE_CHUNK_WORDS; w++) {
        n_data += (unsigned)__builtin_popcountll(meta->data[w]);
        both |= meta->data[w] & meta->zero[w];
        any |= meta->data[w] | meta->zero[w];
    }
    if (both || !any) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE, "record PAGES: %s", both ? "a page is both data and zero" : "no page");
        return false;
    }
    if (n_data == meta->n_data && n_data <= VMF_PAGES_DATA_MAX && !(meta->flags & ~VMF_PAGES_FIRST_PASS) &&
        length == sizeof(*meta) + n_data * VMF_PAGE_SIZE)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record PAGES: %u pages in %u octets do not fit its sets", meta->n_data,
                length);
    return false;
}

bool vmf_stream_source_in_range(const VmfRamBlock *block, uint64_t chunk, const uint64_t *words)
{
    uint64_t first, beyond = 0;

    if (chunk >= vmf_ram_block_n_chunks(block))
        return false;
    unsigned n_pages = vmf_ram_block_chunk_pages(block, chunk, &first);
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        beyond |= words[w] & ~vmf_page_word_mask(w, 0, n_pages);
    return beyond == 0;
}

static bool scatter(VmfRecordReader *reader, uint8_t *base, const VmfPageSet *data, unsigned n_data, GError **error)
{
    struct iovec iov[VMF_PAGES_DATA_MAX];
    unsigned first, n_pages, from = 0;
    int n = 0;

    if (n_data == 0)
        return true;
    for (; vmf_page_set_next_run(data, from, &first, &n_pages); from = first + n_pages)
        iov[n++] = (struct iovec){base + (size_t)first * VMF_PAGE_SIZE, (size_t)n_pages * VMF_PAGE_SIZE};
    return vmf_record_read_payload(reader, iov, n, (size_t)n_data * VMF_PAGE_SIZE, error);
}

static void release_buffer(VmfPageBatch *batch)
{
    g_free((void *)batch->payload);
}

/* The payload goes to the sink's own memory, or to a buffer that lives as long as the batch. */
static uint8_t *reserve(VmfPageBatch *batch, const VmfPageSink *sink, GError **error)
{
    uint8_t *at = vmf_page_sink_reserve(sink, batch->block_index, batch->chunk);

    if (!at) {
        at = g_try_malloc(VMF_CHUNK_SIZE);
        batch->release = release_buffer;
    }
    if (!at)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "record PAGES: no memory for a chunk");
    batch->payload = at;
    return at;
}

bool vmf_stream_source_take(VmfRecordReader *reader, const VmfWirePages *meta, uint32_t length, VmfRamBlock *block,
                            const VmfPageSink *sink, GError **error)
{
    VmfPageBatch batch;
    VmfPageSet any;

    if (!vmf_stream_source_check(meta, length, error))
        return false;
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        any.words[w] = meta->data[w] | meta->zero[w];
    if (!vmf_stream_source_in_range(block, meta->chunk, any.words)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE, "record PAGES: RAM block %s, chunk %" PRIu64 ": not all in the block",
                    vmf_ram_block_name(block), meta->chunk);
        return false;
    }
    vmf_page_batch_init(&batch, block, meta->block, meta->chunk);
    memcpy(batch.data.words, meta->data, sizeof(batch.data.words));
    memcpy(batch.zero.words, meta->zero, sizeof(batch.zero.words));
    uint8_t *at = reserve(&batch, sink, error);
    if (!at)
        return false;
    if (scatter(reader, at, &batch.data, meta->n_data, error))
        return vmf_page_sink_push(sink, &batch, error);
    vmf_page_batch_release(&batch);
    return false;
}
