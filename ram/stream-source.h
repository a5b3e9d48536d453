/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A stream being read, as a source of pages: one PAGES record becomes one batch. */
#ifndef RAM_STREAM_SOURCE_H
#define RAM_STREAM_SOURCE_H

#include "ram/fresh.h"
#include "ram/page-scan.h"
#include "ram/page-sink.h"
#include "stream/record.h"

/* Whether the fields of a PAGES record of @length octets agree with each other. */
bool vmf_stream_source_check(const VmfWirePages *meta, uint32_t length, GError **error);

/* How a reader of records puts pages into memory that nobody has touched. */
typedef struct {
    VmfFresh *fresh; /* borrowed; NULL: as into any memory */
    const VmfPageScan *scan;
    uint8_t *buffer; /* made at need */
} VmfFreshReader;

void vmf_fresh_reader_clear(VmfFreshReader *fresh);

/*
 * Reads the payload of the PAGES record that @reader read last, straight to where @sink wants it, and pushes the batch. @block: what the
 * record's block number stands for. VMF_ERROR_RAM_RANGE for a chunk or pages that are not in it.
 * What @fresh (may be NULL) knows to be absent is read into a buffer in pieces that fit the cache, hashed there and placed from there.
 */
bool vmf_stream_source_take(VmfRecordReader *reader, const VmfWirePages *meta, uint32_t length, VmfRamBlock *block,
                            const VmfPageSink *sink, VmfFreshReader *fresh, GError **error);

/* Whether @words holds no page at or beyond the end of chunk @chunk of @block, and the chunk exists. */
bool vmf_stream_source_in_range(const VmfRamBlock *block, uint64_t chunk, const uint64_t *words);

#endif
