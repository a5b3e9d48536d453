/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/lane.h"

#include "ram/block.h"

/* A batch lives until its sink lets go of it, so each has digests of its own; they are used again. */
struct VmfLaneBatch {
    VmfPageBatch batch; /* first: what is released is this */
    VmfLane *lane;
    VmfLaneBatch *next;
    uint64_t digests[VMF_CHUNK_PAGES];
};

static void release(VmfPageBatch *batch)
{
    VmfLaneBatch *own = (VmfLaneBatch *)batch;
    VmfLane *lane = own->lane;

    pthread_mutex_lock(&lane->lock);
    own->next = lane->batches;
    lane->batches = own;
    pthread_mutex_unlock(&lane->lock);
}

static VmfPageBatch *take_batch(VmfLane *lane, VmfChunkId id)
{
    pthread_mutex_lock(&lane->lock);
    VmfLaneBatch *own = lane->batches;
    if (own)
        lane->batches = own->next;
    pthread_mutex_unlock(&lane->lock);
    if (!own)
        own = g_new(VmfLaneBatch, 1);
    own->lane = lane;
    vmf_page_batch_init(&own->batch, lane->save->blocks[id.block].block, id.block, id.chunk);
    own->batch.payload = vmf_ram_block_page(own->batch.block, own->batch.first_page);
    own->batch.digests = own->digests;
    own->batch.live = true;
    own->batch.release = release;
    return &own->batch;
}

void vmf_lane_init(VmfLane *lane, VmfRamSave *save, unsigned index, const VmfLaneConfig *config)
{
    *lane = (VmfLane){.save = save, .index = index, .config = *config};
    pthread_mutex_init(&lane->lock, NULL);
}

void vmf_lane_clear(VmfLane *lane)
{
    VmfLaneBatch *next;

    vmf_page_sink_free(&lane->config.sink);
    for (VmfLaneBatch *own = lane->batches; own; own = next) {
        next = own->next;
        g_free(own);
    }
    lane->batches = NULL;
    pthread_mutex_destroy(&lane->lock);
}

/* The pages of @piece that are still not zero, with their digests. The others join @zero; NULL if that is all. */
static VmfPageBatch *scan_piece(VmfLane *lane, VmfChunkId id, const VmfPageSet *piece, VmfPageSet *zero)
{
    VmfPageBatch *batch = take_batch(lane, id);
    VmfPageSet turned_zero = {0};

    vmf_page_scan(lane->save->scan, batch->payload, VMF_PAGE_SIZE, batch->n_pages, piece->words, batch->data.words,
                  turned_zero.words, ((VmfLaneBatch *)batch)->digests);
    *zero = vmf_page_set_or(zero, &turned_zero);
    if (!vmf_page_set_is_empty(&batch->data))
        return batch;
    vmf_page_batch_release(batch);
    return NULL;
}

/* Pages that are zero travel with the next batch of the chunk that has data, or in one of their own at its end. */
static bool send_chunk(VmfLane *lane, const VmfLaneChunk *chunk, GError **error)
{
    VmfPageSet zero = chunk->zero, piece;
    VmfPageBatch *batch;
    unsigned to;

    for (unsigned from = 0; from < VMF_CHUNK_PAGES; from = to) {
        to = vmf_page_set_cut(&chunk->data, from, lane->config.batch_pages);
        piece = vmf_page_set_slice(&chunk->data, from, to - from);
        batch = vmf_page_set_is_empty(&piece) ? NULL : scan_piece(lane, chunk->id, &piece, &zero);
        if (!batch)
            continue;
        batch->zero = zero;
        vmf_page_set_clear(&zero);
        if (!vmf_page_sink_push(&lane->config.sink, batch, error))
            return false;
    }
    if (vmf_page_set_is_empty(&zero))
        return true;
    batch = take_batch(lane, chunk->id);
    batch->zero = zero;
    return vmf_page_sink_push(&lane->config.sink, batch, error);
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
    if (!lane->config.announce || !vmf_ram_save_is_first_pass(lane->save) || vmf_page_set_is_empty(&chunk->data))
        return true;
    return lane->config.announce(lane->config.announce_opaque, chunk->id, &chunk->data, error);
}

/*
 * The log is cleared before the first look, so a page that was zero at the look and is written later is dirty again: it need not be
 * looked at twice.
 */
static void take_pages(VmfLane *lane, VmfLaneChunk *chunk)
{
    VmfRamSave *save = lane->save;
    VmfRamSaveBlock *own = &save->blocks[chunk->id.block];
    uint64_t first;
    unsigned n_pages = vmf_ram_block_chunk_pages(own->block, chunk->id.chunk, &first);
    VmfPageSet taken;

    vmf_dirty_bitmap_take_chunk(own->dirty, chunk->id.chunk, &taken);
    if (save->log_started)
        save->config.log->clear(save->config.log_opaque, chunk->id.block, first, n_pages, taken.words);
    vmf_page_set_clear(&chunk->data);
    vmf_page_set_clear(&chunk->zero);
    vmf_page_scan(save->scan, vmf_ram_block_page(own->block, first), VMF_PAGE_SIZE, n_pages, taken.words,
                  chunk->data.words, chunk->zero.words, NULL);
    if (vmf_ram_save_is_first_pass(save)) {
        atomic_fetch_add(&own->hole, n_pages - vmf_page_set_count(&taken));
        atomic_fetch_add(&own->passed, n_pages);
    }
}

bool vmf_lane_take(VmfLane *lane, VmfChunkId id, GError **error)
{
    if (!vmf_presence_ensure(lane->save->config.presence, id.block, id.chunk, error) ||
        (lane->ahead_count == VMF_LANE_AHEAD && !send_oldest(lane, error)))
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
    return vmf_page_sink_flush(&lane->config.sink, error);
}
