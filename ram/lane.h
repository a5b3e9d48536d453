/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One way out of the source's RAM: takes chunks, finds their zero pages, digests the rest and pushes it into a sink, a
 * piece at a time, so that a page is in the core's cache from the zero test to the system call.
 */
#ifndef RAM_LANE_H
#define RAM_LANE_H

#include "ram/page-sink.h"
#include "ram/ram-save.h"

#define VMF_LANE_AHEAD 4 /* chunks claimed and announced before their pages go */

/* Where a lane leads. */
typedef struct {
    VmfPageSink sink;
    unsigned batch_pages; /* data pages in a batch at most, 1 to VMF_CHUNK_PAGES */
    /* First pass: says which pages of a chunk will come, ahead of them. @data is not empty. NULL: nobody wants to know.
     */
    bool (*announce)(void *announce_opaque, VmfChunkId id, const VmfPageSet *data, GError **error);
    void *announce_opaque;
    /*
     * For who serves several lanes with one thread; NULL: this lane is to have a thread of its own. @is_ready: whether a batch would go
     * without waiting, as far as can be seen. @let_go: sends what was pushed and is held back, before the thread waits for another lane.
     */
    bool (*is_ready)(void *opaque);
    bool (*let_go)(void *opaque, GError **error);
    void *opaque;
} VmfLaneConfig;

typedef struct {
    VmfChunkId id;
    VmfPageSet data; /* to be sent, as far as the first look went */
    VmfPageSet zero;
} VmfLaneChunk;

typedef struct VmfLaneBatch VmfLaneBatch;

typedef struct {
    VmfRamSave *save; /* borrowed */
    unsigned index;
    VmfLaneConfig config;
    VmfLaneChunk ahead[VMF_LANE_AHEAD]; /* a queue */
    unsigned ahead_first, ahead_count;
    pthread_mutex_t lock;  /* of what follows: a sink may release a batch from another thread */
    VmfLaneBatch *batches; /* not in use */
} VmfLane;

/* Takes the sink, which is freed with the lane. */
void vmf_lane_init(VmfLane *lane, VmfRamSave *save, unsigned index, const VmfLaneConfig *config);
void vmf_lane_clear(VmfLane *lane);

/*
 * Takes the dirty pages of a chunk that was claimed for this lane: clears them in the log, announces them, and queues
 * the chunk. Sends the oldest chunk of the queue when that is full.
 */
bool vmf_lane_take(VmfLane *lane, VmfChunkId id, GError **error);
/* Sends all that is queued, and flushes the sink. */
bool vmf_lane_flush(VmfLane *lane, GError **error);

#endif
