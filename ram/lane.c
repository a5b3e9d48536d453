/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/lane.h"

#include "ram/block.h"

static bool push(VmfLane *lane, VmfPageBatch *batch, GError **error)
{
    VmfPageSink sink = vmf_stream_sink(&lane->stream);

    return vmf_page_sink_push(&sink, batch, error);
}

/* Pages that are zero travel with the next record of the chunk that has data, or in one of their own at its end. */
static bool send_chunk(VmfLane *lane, const VmfLaneChunk *chunk, GError **error)
{
    VmfRamSave *save = lane->stream.save;
    uint64_t digests[VMF_CHUNK_PAGES];
    VmfPageSet zero = chunk->zero, piece, turned_zero;
    VmfPageBatch batch;
    unsigned from = 0, to;

    vmf_page_batch_init(&batch, save->blocks[chunk->id.block].block, chunk->id.block, chunk->id.chunk);
    batch.payload = vmf_ram_block_page(batch.block, batch.first_page);
    batch.digests = digests;
    batch.live = true;
    for (; from < batch.n_pages; from = to) {
        to = MIN(vmf_page_set_cut(&chunk->data, from, VMF_PAGES_DATA_MAX), batch.n_pages);
        piece = vmf_page_set_slice(&chunk->data, from, to - from);
        if (vmf_page_set_is_empty(&piece))
            continue;
        vmf_page_set_clear(&batch.data);
        vmf_page_set_clear(&turned_zero);
        vmf_page_scan(save->scan, batch.payload, VMF_PAGE_SIZE, batch.n_pages, piece.words, batch.data.words, turned_zero.words,
                      digests);
        zero = vmf_page_set_or(&zero, &turned_zero);
        if (vmf_page_set_is_empty(&batch.data))
            continue;
        batch.zero = zero;
        if (!push(lane, &batch, error))
            return false;
        vmf_page_set_clear(&zero);
    }
    if (vmf_page_set_is_empty(&zero))
        return true;
    vmf_page_set_clear(&batch.data);
    batch.zero = zero;
    return push(lane, &batch, error);
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

    if (!lane->stream.save->config.hints || !lane->stream.first_pass || vmf_page_set_is_empty(&chunk->data))
        return true;
    memcpy(hint.data, chunk->data.words, sizeof(hint.data));
    return vmf_hint_queue(lane->stream.writer, &hint, error);
}

/*
 * The log is cleared before the first look, so a page that was zero at the look and is written later is dirty again: it need not be
 * looked at twice.
 */
static void take_pages(VmfLane *lane, VmfLaneChunk *chunk)
{
    const VmfRamSaveConfig *config = &lane->stream.save->config;
    VmfRamSaveBlock *own = &lane->stream.save->blocks[chunk->id.block];
    uint64_t first;
    unsigned n_pages = vmf_ram_block_chunk_pages(own->block, chunk->id.chunk, &first);
    VmfPageSet taken;

    vmf_dirty_bitmap_take_chunk(own->dirty, chunk->id.chunk, &taken);
    if (lane->stream.save->log_started)
        config->log->clear(config->log_opaque, chunk->id.block, first, n_pages, taken.words);
    vmf_page_set_clear(&chunk->data);
    vmf_page_set_clear(&chunk->zero);
    vmf_page_scan(lane->stream.save->scan, vmf_ram_block_page(own->block, first), VMF_PAGE_SIZE, n_pages, taken.words, chunk->data.words,
                  chunk->zero.words, NULL);
    if (lane->stream.first_pass) {
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
    return vmf_record_flush(lane->stream.writer, error);
}

bool vmf_lane_end_mark(VmfLane *lane, GError **error)
{
    return vmf_u64_send(lane->stream.writer, VMF_RECORD_END_MARK, vmf_flight_sequence(lane->stream.save->flight, lane->stream.lane), error);
}
