/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two halves of a capture share: protecting and faults (capture.c), reading it out (capture-source.c). */
#ifndef RAM_CAPTURE_PRIVATE_H
#define RAM_CAPTURE_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include "ram/capture.h"
#include "ram/latency.h"
#include "ram/touches.h"
#include "ram/uffd.h"

/* As many as some readers have under way; more, at a peak, are given back to the host. */
#define VMF_CAPTURE_PLACES_KEPT 16u

/* Of a chunk, after the instant. */
typedef enum {
    VMF_CAPTURE_OPEN = 0, /* to be read; writes copy their page first */
    VMF_CAPTURE_CLAIMED,  /* being read; writes wait */
    VMF_CAPTURE_READ,     /* the guest can write it */
} VmfCaptureState;

typedef struct {
    VmfRamBlock *block;
    uint64_t n_chunks;
    VmfDirtyBitmap *pages;   /* that are in the capture */
    VmfDirtyBitmap *unarmed; /* of these, those that can be written, before the instant */
    uint8_t *states;         /* VmfCaptureState by chunk */
    VmfPageSet *copied;      /* by chunk: pages that are in the buffer */
    uint8_t *buffer;         /* as large as the block; page n's copy at its place. Only copies cost memory */
} VmfCaptureBlock;

typedef struct {
    unsigned block;
    uint64_t chunk;
} VmfCaptureChunk;

struct VmfCapture {
    VmfCaptureConfig config;
    unsigned n_blocks;
    VmfCaptureBlock *blocks;
    int fd;
    int end_fd; /* readable when the thread is to end */
    pthread_t thread;
    bool started;
    VmfTouches touches; /* the thread's */
    _Atomic bool slow;  /* writes ahead of the instant wait longer than they have to */

    pthread_mutex_t lock; /* of what follows, of states, of copied, and of protecting single pages */
    pthread_cond_t room;  /* the buffer has room, a chunk was read, or it is over */
    bool frozen;
    bool ended;
    uint64_t n_buffered; /* pages */
    uint64_t buffer_pages;
    GArray *with_copies;  /* VmfCaptureChunk: those that were open when their first copy was made */
    VmfCaptureChunk next; /* of the reading in order */
    GPtrArray *places;    /* chunks of memory in which nobody assembles one now, at most VMF_CAPTURE_PLACES_KEPT */

    VmfLatency latency;
    VmfCaptureStatistics statistics; /* what is counted under the lock */
};

static inline uint8_t *vmf_capture_chunk_start(const VmfCaptureBlock *block, uint64_t chunk)
{
    return vmf_ram_block_page(block->block, chunk * VMF_CHUNK_PAGES);
}

static inline size_t vmf_capture_chunk_length(const VmfCaptureBlock *block, uint64_t chunk)
{
    uint64_t first;

    return (size_t)vmf_ram_block_chunk_pages(block->block, chunk, &first) * VMF_PAGE_SIZE;
}

/* Copies @pages of a chunk from one place to another. Nobody writes them meanwhile. */
static inline void vmf_capture_copy(uint8_t *to, const uint8_t *from, const VmfPageSet *pages)
{
    unsigned first, n_pages;

    for (unsigned at = 0; vmf_page_set_next_run(pages, at, &first, &n_pages); at = first + n_pages)
        memcpy(to + (size_t)first * VMF_PAGE_SIZE, from + (size_t)first * VMF_PAGE_SIZE,
               (size_t)n_pages * VMF_PAGE_SIZE);
}

/* Where the copies of a chunk's pages are. */
static inline uint8_t *vmf_capture_copies(const VmfCaptureBlock *block, uint64_t chunk)
{
    return block->buffer + chunk * VMF_CHUNK_SIZE;
}

#endif
