/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the benchmark's programs share: memory and its content, clocks, and how scripts/bench gives them the start. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define BENCH_PAGE 4096u
#define BENCH_NS_PER_S 1000000000ll

/* The kind of memory, alike on all sides of a ratio. */
typedef struct {
    gboolean huge;  /* transparent huge pages advised; otherwise advised against */
    gboolean memfd; /* a shared mapping of a memfd instead of private anonymous memory */
} BenchKind;

/* Each ends the process with a message when it cannot do its work: there is no result without it. */
void *bench_map(uint64_t size, BenchKind kind);
uint64_t bench_parse_size(const char *text); /* "2G", "512M" */
void bench_die(const char *what);

/* Random words, so that no page is zero and none is like another. Pages are touched in order. */
void bench_fill_random(void *memory, uint64_t size, uint64_t seed);
/* Writes to every page and leaves it zero. */
void bench_fill_zero(void *memory, uint64_t size);
/* Fills @bytes in pieces of @piece bytes, spread over all of @memory by a hash. */
void bench_fill_scattered(void *memory, uint64_t size, uint64_t bytes, uint64_t piece, uint64_t seed);
/* Where the n-th of these pieces is, in bytes. */
uint64_t bench_scattered_piece(uint64_t size, uint64_t piece, uint64_t seed, uint64_t n);

/*
 * Where guests that are saved and restored hold data: in every chunk of 2 MiB but each fourth; @every > 0: in each @every-th alone.
 */
#define BENCH_CHUNK (2u << 20)
#define BENCH_TOUCH_SEED 3 /* of the pages that are touched, alike on all sides */
bool bench_holds_data(uint64_t chunk, unsigned every);
uint64_t bench_data_bytes(uint64_t size, unsigned every);
/* The n-th of pages with data taken at random, in bytes. */
uint64_t bench_data_page(uint64_t size, unsigned every, uint64_t seed, uint64_t n);

int64_t bench_now_ns(void);
int64_t bench_cpu_ns(void); /* of this process, user and kernel */

/* Says on stdout that everything is prepared, then waits for a line on stdin. */
void bench_wait_for_start(void);

#endif
