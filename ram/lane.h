/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One page channel at the source: takes chunks, finds their zero pages, digests and sends the rest, half a megabyte at a time, so
 * that a page is in the core's cache from the zero test to the system call.
 */
#ifndef RAM_LANE_H
#define RAM_LANE_H

#include "ram/stream-sink.h"
#include "stream/message.h"

#define VMF_LANE_AHEAD 4 /* chunks claimed and announced before their pages go */

typedef struct {
    VmfChunkId id;
    VmfPageSet data; /* to be sent, as far as the first look went */
    VmfPageSet zero;
} VmfLaneChunk;

typedef struct {
    VmfStreamSink stream;
    VmfLaneChunk ahead[VMF_LANE_AHEAD]; /* a queue */
    unsigned ahead_first, ahead_count;
} VmfLane;

/*
 * Takes the dirty pages of a chunk that was claimed for this lane: clears them in the log, announces them to the target, and queues
 * the chunk. Sends the oldest chunk of the queue when that is full.
 */
bool vmf_lane_take(VmfLane *lane, VmfChunkId id, GError **error);
/* Sends all that is queued, and what the writer still holds. */
bool vmf_lane_flush(VmfLane *lane, GError **error);
/* After the last page. */
bool vmf_lane_end_mark(VmfLane *lane, GError **error);

#endif
