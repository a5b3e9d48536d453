/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much anonymous memory this process has beside its guest's RAM, and how that grows while the engine works.
 *
 * The kernel is asked for every mapping, several hundred times a second, which slows page faults: a run that is watched is not timed.
 */
#ifndef BENCH_ENGINE_MEMORY_H
#define BENCH_ENGINE_MEMORY_H

#include <stdint.h>

typedef struct BenchMemory BenchMemory;

typedef struct {
    uint64_t engine_peak_bytes;  /* the most above the start, guest RAM left out */
    uint64_t guest_start_bytes;  /* guest RAM in place */
    uint64_t guest_end_bytes;
} BenchMemoryResult;

/* Watches from now on. */
BenchMemory *bench_memory_start(const void *guest_ram, uint64_t guest_size);
/* Ends it. */
BenchMemoryResult bench_memory_stop(BenchMemory *memory);

#endif
