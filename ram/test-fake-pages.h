/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests: pages that are somewhere else, each with a content of its own, and ways to make reading them fail. */
#ifndef RAM_TEST_FAKE_PAGES_H
#define RAM_TEST_FAKE_PAGES_H

#include <stdatomic.h>
#include "ram/page-reader.h"

#define FAKE_BAD_MAX 8
#define FAKE_LOG_MAX 4096

typedef struct {
    /* Which chunks and pages hold data; NULL: fake_usual(). */
    bool (*has_data)(unsigned block, uint64_t page);
    _Atomic uint64_t bad[FAKE_BAD_MAX]; /* place + 1 of pages that cannot be had; 0: none */
    _Atomic unsigned n_failures;        /* so many reads of more than one page fail, whatever they read */
    _Atomic uint64_t bad_tables;        /* chunk + 1 whose data_pages() fail (any block) */
    _Atomic bool shut;                  /* reads do not end */
    _Atomic unsigned n_reads;
    _Atomic unsigned n_tables_first;    /* data_pages() ahead of all reads */
    _Atomic unsigned max_under_way;     /* of one reader */
    _Atomic uint64_t log[FAKE_LOG_MAX]; /* place + 1 of the first page of each read, in order */
} FakePages;

/* One number for a page of a block. */
static inline uint64_t fake_place(unsigned block, uint64_t page)
{
    return (uint64_t)block << 48 | page;
}

/* A mix of data, zeros, and every third chunk of nothing else. */
bool fake_usual(unsigned block, uint64_t page);
/* Whether the page at @memory is what it should be. Reads all of it. */
bool fake_is_right(const FakePages *fake, unsigned block, uint64_t page, const void *memory);

extern const VmfPageReaderOps fake_reader_ops; /* its source is a FakePages */

#endif
