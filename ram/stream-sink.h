/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A stream being written, as a page sink: one lane's PAGES records. */
#ifndef RAM_STREAM_SINK_H
#define RAM_STREAM_SINK_H

#include "ram/page-sink.h"
#include "ram/ram-save.h"
#include "stream/record.h"

typedef struct {
    VmfRamSave *save; /* borrowed, as the writer */
    VmfRecordWriter *writer;
    unsigned lane;
    uint32_t epoch;
    bool first_pass;
} VmfStreamSink;

/*
 * Pushing a batch of at most VMF_PAGES_DATA_MAX data pages, with digests, sends it as one record: digests are entered in the save's
 * tables and the record is counted as under way before its bytes leave. Batches are released before push returns. Flushing sends what the
 * writer still holds. @sink is the caller's and outlives the result.
 */
VmfPageSink vmf_stream_sink(VmfStreamSink *sink);

#endif
