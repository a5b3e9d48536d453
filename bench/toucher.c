/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bench/toucher.h"

#include <pthread.h>

#include "bench/common.h"

struct BenchToucher {
    pthread_t thread;
    const uint8_t *memory;
    uint64_t size;
    unsigned every, n;
    BenchTouches touches;
    uint64_t sum; /* so that nothing is left out */
};

static void *touch(void *opaque)
{
    BenchToucher *toucher = opaque;

    for (unsigned n = 0; n < toucher->n; n++) {
        uint64_t offset = bench_data_page(toucher->size, toucher->every, BENCH_TOUCH_SEED, n);
        toucher->sum += *(const volatile uint64_t *)(toucher->memory + offset);
        if (n == 0)
            toucher->touches.first_ns = bench_now_ns();
        if (n + 1 == toucher->n - toucher->n / 10)
            toucher->touches.most_ns = bench_now_ns();
    }
    toucher->touches.all_ns = bench_now_ns();
    return NULL;
}

BenchToucher *bench_toucher_start(const uint8_t *memory, uint64_t size, unsigned every, unsigned n)
{
    BenchToucher *toucher = g_new0(BenchToucher, 1);

    *toucher = (BenchToucher){.memory = memory, .size = size, .every = every, .n = n};
    if (pthread_create(&toucher->thread, NULL, touch, toucher) != 0)
        bench_die("thread");
    return toucher;
}

BenchTouches bench_toucher_finish(BenchToucher *toucher)
{
    pthread_join(toucher->thread, NULL);
    BenchTouches touches = toucher->touches;
    g_free(toucher);
    return touches;
}
