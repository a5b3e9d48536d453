/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A vCPU that writes: a thread that dirties pages that hold data, in an order by a hash, so many bytes of pages a second. */
#ifndef BENCH_WRITER_H
#define BENCH_WRITER_H

#include <stdint.h>

typedef struct BenchWriter BenchWriter;

/* It stands still at first. */
BenchWriter *bench_writer_start(uint8_t *memory, uint64_t size, unsigned every, uint64_t bytes_per_second);
void bench_writer_finish(BenchWriter *writer);

/* Returns once it writes no more; a write that is under way ends before. */
void bench_writer_stop(BenchWriter *writer);
void bench_writer_go(BenchWriter *writer);

/* So far. */
uint64_t bench_writer_pages(BenchWriter *writer);
int64_t bench_writer_cpu_ns(BenchWriter *writer);

#endif
