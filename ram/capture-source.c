/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading a capture out: capture.c says how the parts go together. */
#include "ram/capture-private.h"

#include <string.h>
#include <sys/mman.h>

#include "ram/block.h"
#include "ram/sparse-array.h"

/* A chunk that is on its way. */
typedef struct {
    VmfPageBatch batch; /* first: what is released is this */
    VmfCapture *capture;
    uint8_t *place; /* in which it was assembled; NULL: the payload is guest memory */
    uint64_t digests[VMF_CHUNK_PAGES];
} Reading;

typedef struct {
    VmfCapture *capture;
    const VmfPageScan *scan;
} Source;

/* ---- which chunk, with the lock held ------------------------------------------------------------------------------
 */

static bool is_open(const VmfCapture *capture, VmfCaptureChunk id)
{
    return capture->blocks[id.block].states[id.chunk] == VMF_CAPTURE_OPEN;
}

/* One that holds room in the buffer. */
static bool take_with_copies(VmfCapture *capture, VmfCaptureChunk *id)
{
    while (capture->with_copies->len > 0) {
        *id = g_array_index(capture->with_copies, VmfCaptureChunk, capture->with_copies->len - 1);
        g_array_set_size(capture->with_copies, capture->with_copies->len - 1);
        if (is_open(capture, *id))
            return true;
    }
    return false;
}

static bool take_next(VmfCapture *capture, VmfCaptureChunk *id)
{
    for (; capture->next.block < capture->n_blocks; capture->next = (VmfCaptureChunk){capture->next.block + 1, 0}) {
        const VmfCaptureBlock *block = &capture->blocks[capture->next.block];

        while (capture->next.chunk < block->n_chunks &&
               vmf_dirty_bitmap_next_chunk(block->pages, capture->next.chunk, &capture->next.chunk)) {
            *id = capture->next;
            capture->next.chunk++;
            if (is_open(capture, *id))
                return true;
        }
    }
    return false;
}

/* In order; but what holds room first, once half of it is taken. */
static bool claim(VmfCapture *capture, VmfCaptureChunk *id)
{
    pthread_mutex_lock(&capture->lock);
    bool any =
        (capture->n_buffered > capture->buffer_pages / 2 && take_with_copies(capture, id)) || take_next(capture, id);
    if (any)
        capture->blocks[id->block].states[id->chunk] = VMF_CAPTURE_CLAIMED;
    pthread_mutex_unlock(&capture->lock);
    return any;
}

/* ---- a chunk ------------------------------------------------------------------------------------------------------
 */

/* It has been read: whoever waits for it can write. */
static void let_go(VmfCapture *capture, VmfCaptureBlock *block, uint64_t chunk)
{
    pthread_mutex_lock(&capture->lock);
    block->states[chunk] = VMF_CAPTURE_READ;
    pthread_cond_broadcast(&capture->room);
    pthread_mutex_unlock(&capture->lock);
    vmf_uffd_write_protect(capture->fd, vmf_capture_chunk_start(block, chunk), vmf_capture_chunk_length(block, chunk),
                           false);
}

static void give_room_back(VmfCapture *capture, VmfCaptureBlock *block, uint64_t chunk, unsigned n_pages)
{
    (void)madvise(block->buffer + chunk * VMF_CHUNK_SIZE, VMF_CHUNK_SIZE, MADV_DONTNEED);
    pthread_mutex_lock(&capture->lock);
    capture->n_buffered -= n_pages;
    pthread_cond_broadcast(&capture->room);
    pthread_mutex_unlock(&capture->lock);
}

/* ---- a chunk with copies: assembled elsewhere ---------------------------------------------------------------------
 */

static uint8_t *take_place(VmfCapture *capture, GError **error)
{
    uint8_t *place = NULL;

    pthread_mutex_lock(&capture->lock);
    capture->statistics.n_assembled++;
    if (capture->places->len > 0)
        place = g_ptr_array_steal_index_fast(capture->places, capture->places->len - 1);
    else
        capture->statistics.n_places++;
    pthread_mutex_unlock(&capture->lock);
    return place ? place : vmf_sparse_array_new(VMF_CHUNK_SIZE, 1, "a chunk", error);
}

static void give_place(VmfCapture *capture, uint8_t *place)
{
    pthread_mutex_lock(&capture->lock);
    bool keep = capture->places->len < VMF_CAPTURE_PLACES_KEPT;
    if (keep)
        g_ptr_array_add(capture->places, place);
    pthread_mutex_unlock(&capture->lock);
    if (!keep)
        vmf_sparse_array_free(place, VMF_CHUNK_SIZE, 1);
}

/* What is there already, and the rest from guest memory, which can be written from here on. */
static void assemble(VmfCapture *capture, VmfCaptureChunk id, const VmfPageSet *pages, uint8_t *place)
{
    VmfCaptureBlock *block = &capture->blocks[id.block];
    const VmfPageSet *copied = &block->copied[id.chunk];
    VmfPageSet rest = vmf_page_set_and_not(pages, copied);

    vmf_capture_copy(place, vmf_capture_chunk_start(block, id.chunk), &rest);
    let_go(capture, block, id.chunk);
    vmf_capture_copy(place, vmf_capture_copies(block, id.chunk), copied);
    give_room_back(capture, block, id.chunk, vmf_page_set_count(copied));
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */

static void release(VmfPageBatch *batch)
{
    Reading *reading = (Reading *)batch;

    if (reading->place)
        give_place(reading->capture, reading->place);
    else
        let_go(reading->capture, &reading->capture->blocks[batch->block_index], batch->chunk);
    g_free(reading);
}

/* NULL with @error: the chunk stays claimed, and who writes to it waits until the capture is freed. */
static Reading *begin_reading(VmfCapture *capture, VmfCaptureChunk id, const VmfPageSet *pages, GError **error)
{
    VmfCaptureBlock *block = &capture->blocks[id.block];
    bool has_copies = !vmf_page_set_is_empty(&block->copied[id.chunk]);
    uint8_t *place = has_copies ? take_place(capture, error) : NULL;

    if (has_copies && !place)
        return NULL;
    if (place)
        assemble(capture, id, pages, place);
    Reading *reading = g_new(Reading, 1);
    vmf_page_batch_init(&reading->batch, block->block, id.block, id.chunk);
    reading->capture = capture;
    reading->place = place;
    reading->batch.payload = place ? place : vmf_capture_chunk_start(block, id.chunk);
    reading->batch.digests = reading->digests;
    reading->batch.release = release;
    return reading;
}

static bool source_step(void *opaque, const VmfPageSink *sink, bool *done, GError **error)
{
    Source *source = opaque;
    VmfCaptureChunk id;
    VmfPageSet pages;

    *done = !claim(source->capture, &id);
    if (*done)
        return true;
    vmf_dirty_bitmap_peek_chunk(source->capture->blocks[id.block].pages, id.chunk, &pages);
    Reading *reading = begin_reading(source->capture, id, &pages, error);
    if (!reading)
        return false;
    vmf_page_scan(source->scan, reading->batch.payload, VMF_PAGE_SIZE, reading->batch.n_pages, pages.words,
                  reading->batch.data.words, reading->batch.zero.words, reading->digests);
    return vmf_page_sink_push(sink, &reading->batch, error);
}

static void source_free(void *opaque)
{
    g_free(opaque);
}

void vmf_capture_source(VmfCapture *capture, const VmfPageScan *scan, VmfPageSource *out)
{
    static const VmfPageSourceOps ops = {.size = sizeof(VmfPageSourceOps), .step = source_step, .free = source_free};
    Source *source = g_new(Source, 1);

    *source = (Source){capture, scan};
    *out = (VmfPageSource){&ops, source};
}
