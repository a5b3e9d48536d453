/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sinks that keep nothing: one compares, one counts. */
#ifndef RAM_VERIFY_SINK_H
#define RAM_VERIFY_SINK_H

#include "ram/digest-table.h"
#include "ram/page-sink.h"

typedef struct {
    unsigned block_index;
    uint64_t page;     /* in the block */
    uint64_t expected; /* digest in the table */
    uint64_t found;    /* digest of what was pushed */
} VmfPageMismatch;

typedef struct {
    uint64_t pages_checked;
    uint64_t pages_different;
    unsigned n_listed; /* of them, in the list below: the first ones */
    VmfPageMismatch listed[16];
} VmfVerifyResult;

/*
 * A sink that compares the digest of each page pushed with that in @tables[block_index] (@n_tables of them; not owned).
 * Batches need digests. A page that differs is not an error: *@result, which the caller keeps until the sink is freed,
 * says so.
 */
VmfPageSink vmf_verify_sink_new(VmfDigestTable *const *tables, unsigned n_tables, VmfVerifyResult *result);

typedef struct {
    uint64_t batches;
    uint64_t data_pages;
    uint64_t zero_pages;
} VmfPageCounts;

/* A sink that adds up what is pushed in *@counts, which the caller keeps until the sink is freed. */
VmfPageSink vmf_null_sink_new(VmfPageCounts *counts);

#endif
