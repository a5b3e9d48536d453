/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/lane.h"

#include <vmferry/error.h>

#include "ram/block.h"

static bool closed(GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "page channel: closed");
    return false;
}

/* A lane must not wait for the landing of records that it has not let go. */
static bool launch(VmfLane *lane, VmfChunkId id, uint32_t bytes, GError **error)
{
    if (vmf_flight_try_launch(lane->save->flight, lane->index, id, bytes))
        return true;
    if (!vmf_record_flush(lane->writer, error))
        return false;
    return vmf_flight_launch(lane->save->flight, lane->index, id, bytes) || closed(error);
}

static int gather(struct iovec *iov, uint8_t *base, const VmfPageSet *pages)
{
    unsigned first, n_pages, from = 0;
    int n = 0;

    for (; vmf_page_set_next_run(pages, from, &first, &n_pages); from = first + n_pages)
        iov[n++] = (struct iovec){base + (size_t)first * VMF_PAGE_SIZE, (size_t)n_pages * VMF_PAGE_SIZE};
    return n;
}

/* The digests are entered before the bytes leave: whoever sees the record's acknowledgement finds them there. */
static bool send_record(VmfLane *lane, VmfChunkId id, const VmfPageSet *data, const VmfPageSet *zero, const uint64_t *digests,
                        GError **error)
{
    VmfRamSaveBlock *own = &lane->save->blocks[id.block];
    struct iovec iov[VMF_PAGES_DATA_MAX];
    unsigned n_data = vmf_page_set_count(data), n_zero = vmf_page_set_count(zero);
    size_t payload = (size_t)n_data * VMF_PAGE_SIZE;
    VmfWirePages meta = {.block = id.block, .chunk = id.chunk, .epoch = lane->epoch, .n_data = n_data};

    if (!launch(lane, id, (uint32_t)(payload + sizeof(meta) + VMF_RECORD_HEADER_SIZE), error))
        return false;
    meta.sequence = vmf_flight_sequence(lane->save->flight, lane->index) - 1;
    meta.flags = lane->first_pass ? VMF_PAGES_FIRST_PASS : 0;
    memcpy(meta.data, data->words, sizeof(meta.data));
    memcpy(meta.zero, zero->words, sizeof(meta.zero));
    vmf_digest_table_update(own->digests, id.chunk, data, digests);
    vmf_digest_table_update(own->digests, id.chunk, zero, NULL);

    uint8_t *base = vmf_ram_block_page(own->block, id.chunk * VMF_CHUNK_PAGES);
    int n_iov = gather(iov, base, data);
    atomic_fetch_add(&lane->save->pages_data, n_data);
    atomic_fetch_add(&lane->save->pages_zero, n_zero);
    atomic_fetch_add(&lane->save->payload_bytes, payload);
    if (lane->first_pass) {
        atomic_fetch_add(&own->data, n_data);
        atomic_fetch_add(&own->zero, n_zero);
    } else {
        atomic_fetch_add(&lane->save->pages_resent, n_data + n_zero);
    }
    return vmf_record_write_pages(lane->writer, &meta, iov, n_iov, payload, error);
}

/* Pages that are zero travel with the next record of the chunk that has data, or in one of their own at its end. */
static bool send_chunk(VmfLane *lane, const VmfLaneChunk *chunk, GError **error)
{
    VmfRamBlock *block = lane->save->blocks[chunk->id.block].block;
    uint64_t first, digests[VMF_CHUNK_PAGES];
    unsigned n_pages = vmf_ram_block_chunk_pages(block, chunk->id.chunk, &first);
    const uint8_t *base = vmf_ram_block_page(block, first);
    VmfPageSet zero_so_far = chunk->zero, piece, data, zero;
    unsigned from = 0, to;

    for (; from < n_pages; from = to) {
        to = MIN(vmf_page_set_cut(&chunk->data, from, VMF_PAGES_DATA_MAX), n_pages);
        piece = vmf_page_set_slice(&chunk->data, from, to - from);
        if (vmf_page_set_is_empty(&piece))
            continue;
        vmf_page_set_clear(&data);
        vmf_page_set_clear(&zero);
        vmf_page_scan(lane->save->scan, base, VMF_PAGE_SIZE, n_pages, piece.words, data.words, zero.words, digests);
        zero_so_far = vmf_page_set_or(&zero_so_far, &zero);
        if (vmf_page_set_is_empty(&data))
            continue;
        if (!send_record(lane, chunk->id, &data, &zero_so_far, digests, error))
            return false;
        vmf_page_set_clear(&zero_so_far);
    }
    if (vmf_page_set_is_empty(&zero_so_far))
        return true;
    vmf_page_set_clear(&data);
    return send_record(lane, chunk->id, &data, &zero_so_far, NULL, error);
}

static bool send_oldest(VmfLane *lane, GError **error)
{
    VmfLaneChunk *chunk = &lane->ahead[lane->ahead_first];

    lane->ahead_first = (lane->ahead_first + 1) % VMF_LANE_AHEAD;
    lane->ahead_count--;
    return send_chunk(lane, chunk, error);
}

static bool announce(VmfLane *lane, const VmfLaneChunk *chunk, GError **error)
{
    VmfHint hint = {.block = chunk->id.block, .chunk = chunk->id.chunk};

    if (!lane->save->config.hints || !lane->first_pass || vmf_page_set_is_empty(&chunk->data))
        return true;
    memcpy(hint.data, chunk->data.words, sizeof(hint.data));
    return vmf_hint_queue(lane->writer, &hint, error);
}

/*
 * The log is cleared before the first look, so a page that was zero at the look and is written later is dirty again: it need not be
 * looked at twice.
 */
static void take_pages(VmfLane *lane, VmfLaneChunk *chunk)
{
    const VmfRamSaveConfig *config = &lane->save->config;
    VmfRamSaveBlock *own = &lane->save->blocks[chunk->id.block];
    uint64_t first;
    unsigned n_pages = vmf_ram_block_chunk_pages(own->block, chunk->id.chunk, &first);
    VmfPageSet taken;

    vmf_dirty_bitmap_take_chunk(own->dirty, chunk->id.chunk, &taken);
    if (lane->save->log_started)
        config->log->clear(config->log_opaque, chunk->id.block, first, n_pages, taken.words);
    vmf_page_set_clear(&chunk->data);
    vmf_page_set_clear(&chunk->zero);
    vmf_page_scan(lane->save->scan, vmf_ram_block_page(own->block, first), VMF_PAGE_SIZE, n_pages, taken.words, chunk->data.words,
                  chunk->zero.words, NULL);
    if (lane->first_pass) {
        atomic_fetch_add(&own->hole, n_pages - vmf_page_set_count(&taken));
        atomic_fetch_add(&own->passed, n_pages);
    }
}

bool vmf_lane_take(VmfLane *lane, VmfChunkId id, GError **error)
{
    if (lane->ahead_count == VMF_LANE_AHEAD && !send_oldest(lane, error))
        return false;
    VmfLaneChunk *chunk = &lane->ahead[(lane->ahead_first + lane->ahead_count) % VMF_LANE_AHEAD];
    lane->ahead_count++;
    chunk->id = id;
    take_pages(lane, chunk);
    return announce(lane, chunk, error);
}

bool vmf_lane_flush(VmfLane *lane, GError **error)
{
    while (lane->ahead_count > 0)
        if (!send_oldest(lane, error))
            return false;
    return vmf_record_flush(lane->writer, error);
}

bool vmf_lane_end_mark(VmfLane *lane, GError **error)
{
    return vmf_u64_send(lane->writer, VMF_RECORD_END_MARK, vmf_flight_sequence(lane->save->flight, lane->index), error);
}
