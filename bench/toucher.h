/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a vCPU does to memory, and no more: a thread that reads pages that hold data, in an order by a hash, each a thing apart. */
#ifndef BENCH_TOUCHER_H
#define BENCH_TOUCHER_H

#include <stdint.h>

typedef struct BenchToucher BenchToucher;

typedef struct {
    int64_t first_ns; /* when the first page was there, by bench_now_ns() */
    int64_t most_ns;  /* nine tenths of them */
    int64_t all_ns;
} BenchTouches;

/* Touches @n pages of @memory, which holds data where bench_holds_data(@every) says. */
BenchToucher *bench_toucher_start(const uint8_t *memory, uint64_t size, unsigned every, unsigned n);
/* Waits until it has come through. */
BenchTouches bench_toucher_finish(BenchToucher *toucher);

#endif
