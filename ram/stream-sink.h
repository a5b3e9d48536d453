/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A stream being written, as a page sink: one lane's PAGES records. */
#ifndef RAM_STREAM_SINK_H
#define RAM_STREAM_SINK_H

#include "ram/lane.h"
#include "stream/message.h"

typedef struct {
    VmfRamSave *save; /* borrowed, as the writer */
    VmfRecordWriter *writer;
    unsigned lane;
    uint32_t epoch;
    bool had_room;          /* the sink's own, as what follows: the channel, when it was last asked */
    uint64_t unasked_bytes; /* pushed since */
} VmfStreamSink;

/*
 * Pushing a batch of at most VMF_PAGES_DATA_MAX data pages, with digests, sends it as one record: digests are entered in the save's
 * tables and the record is counted as under way before its bytes leave. Batches are released before push returns. Flushing sends what the
 * writer still holds. @sink is the caller's and outlives the result.
 */
VmfPageSink vmf_stream_sink(VmfStreamSink *sink);

/* A lane that leads there. @hints: chunks are announced to the target. */
VmfLaneConfig vmf_stream_sink_lane(VmfStreamSink *sink, bool hints);

/* After the last page. */
bool vmf_stream_sink_end_mark(VmfStreamSink *sink, GError **error);

#endif
