/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/stream-source.h"

#include <vmferry/error.h>

#include <inttypes.h>
#include <stdlib.h>

/* Placed in one step: 256 KiB stay in the second level of the cache on the way from the socket through the hash into place. */
#define FRESH_PAGES 64u

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

static bool take_plain(VmfRecordReader *reader, const VmfWirePages *meta, VmfPageBatch *batch, const VmfPageSink *sink, GError **error)
{
    uint8_t *at = reserve(batch, sink, error);

    if (!at)
        return false;
    if (scatter(reader, at, &batch->data, meta->n_data, error))
        return vmf_page_sink_push(sink, batch, error);
    vmf_page_batch_release(batch);
    return false;
}

/* ---- into fresh memory ------------------------------------------------------------------------------------------------------------ */

/* Adjacent pages of which all are absent or none is. */
typedef struct {
    unsigned first, n_pages;
    bool absent;
    uint8_t *at; /* where they are read to: in the buffer, or in place */
} Run;

void vmf_fresh_reader_clear(VmfFreshReader *fresh)
{
    free(fresh->buffer);
    fresh->buffer = NULL;
}

static bool have_buffer(VmfFreshReader *fresh, GError **error)
{
    void *buffer = NULL;

    if (!fresh->buffer && posix_memalign(&buffer, VMF_PAGE_SIZE, (size_t)FRESH_PAGES * VMF_PAGE_SIZE) != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "record PAGES: no memory for a piece");
        return false;
    }
    if (!fresh->buffer)
        fresh->buffer = buffer;
    return true;
}

static unsigned split(const VmfPageBatch *batch, const VmfPageSet *piece, const VmfPageSet *absent, uint8_t *buffer, Run *runs)
{
    unsigned first, n_pages, n_runs = 0;

    for (unsigned from = 0; vmf_page_set_next_run(piece, from, &first, &n_pages); from = first + n_pages) {
        bool is_absent = vmf_page_set_test(absent, first);
        for (unsigned i = 1; i < n_pages; i++)
            if (vmf_page_set_test(absent, first + i) != is_absent)
                n_pages = i;
        runs[n_runs++] = (Run){first, n_pages, is_absent,
                               is_absent ? buffer : vmf_ram_block_page(batch->block, batch->first_page + first)};
        if (is_absent)
            buffer += (size_t)n_pages * VMF_PAGE_SIZE;
    }
    return n_runs;
}

static bool read_runs(VmfRecordReader *reader, const Run *runs, unsigned n_runs, GError **error)
{
    struct iovec iov[FRESH_PAGES];
    size_t length = 0;

    for (unsigned i = 0; i < n_runs; i++) {
        iov[i] = (struct iovec){runs[i].at, (size_t)runs[i].n_pages * VMF_PAGE_SIZE};
        length += iov[i].iov_len;
    }
    return vmf_record_read_payload(reader, iov, (int)n_runs, length, error);
}

static bool place_runs(const VmfFreshReader *fresh, const VmfPageBatch *batch, const Run *runs, unsigned n_runs, uint64_t *digests,
                       GError **error)
{
    VmfPageSet data, zero;

    for (unsigned i = 0; i < n_runs; i++)
        vmf_page_scan(fresh->scan, runs[i].at, VMF_PAGE_SIZE, runs[i].n_pages, NULL, data.words, zero.words, digests + runs[i].first);
    for (unsigned i = 0; i < n_runs; i++)
        if (runs[i].absent && !vmf_fresh_place(fresh->fresh, batch->block_index, batch->first_page + runs[i].first, runs[i].n_pages,
                                               runs[i].at, error))
            return false;
    return true;
}

/* The sink finds the pages where it would have had them read to, with the digests of what was placed. */
static bool take_fresh(VmfRecordReader *reader, VmfPageBatch *batch, const VmfPageSet *absent, const VmfPageSink *sink,
                       VmfFreshReader *fresh, GError **error)
{
    uint64_t digests[VMF_CHUNK_PAGES];
    Run runs[FRESH_PAGES];

    if (!have_buffer(fresh, error))
        return false;
    for (unsigned from = 0, to; from < batch->n_pages; from = to) {
        to = MIN(vmf_page_set_cut(&batch->data, from, FRESH_PAGES), batch->n_pages);
        VmfPageSet piece = vmf_page_set_slice(&batch->data, from, to - from);
        unsigned n_runs = split(batch, &piece, absent, fresh->buffer, runs);
        if (n_runs > 0 && (!read_runs(reader, runs, n_runs, error) || !place_runs(fresh, batch, runs, n_runs, digests, error)))
            return false;
    }
    batch->payload = vmf_page_sink_reserve(sink, batch->block_index, batch->chunk);
    batch->digests = digests;
    return vmf_page_sink_push(sink, batch, error);
}

bool vmf_stream_source_take(VmfRecordReader *reader, const VmfWirePages *meta, uint32_t length, VmfRamBlock *block,
                            const VmfPageSink *sink, VmfFreshReader *fresh, GError **error)
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
    VmfPageSet absent = vmf_fresh_absent(fresh ? fresh->fresh : NULL, meta->block, meta->chunk, &batch.data);
    return vmf_page_set_is_empty(&absent) ? take_plain(reader, meta, &batch, sink, error)
                                          : take_fresh(reader, &batch, &absent, sink, fresh, error);
}
