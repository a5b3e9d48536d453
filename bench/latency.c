/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bench/latency.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/common.h"

#define PLACE_SEED 11

void bench_schedule_init(BenchSchedule *schedule, unsigned per_second)
{
    *schedule = (BenchSchedule){.begun_ns = bench_now_ns(), .interval_ns = BENCH_NS_PER_S / per_second};
}

int64_t bench_schedule_due_ns(const BenchSchedule *schedule)
{
    return schedule->begun_ns + (int64_t)schedule->n * schedule->interval_ns;
}

void bench_schedule_take(BenchSchedule *schedule, int64_t now_ns)
{
    schedule->begun_ns += now_ns - bench_schedule_due_ns(schedule);
    schedule->n++;
}

uint64_t bench_write_place(uint64_t size, uint64_t n)
{
    return bench_scattered_piece(size, BENCH_WRITE_BYTES, PLACE_SEED, n);
}

void bench_latency_init(BenchLatency *latency)
{
    *latency = (BenchLatency){.begun_ns = g_new(int64_t, BENCH_LATENCY_MAX), .took = g_new(uint32_t, BENCH_LATENCY_MAX)};
}

void bench_latency_add(BenchLatency *latency, int64_t begun_ns, int64_t ended_ns)
{
    if (latency->n == BENCH_LATENCY_MAX) {
        latency->n_lost++;
        return;
    }
    latency->begun_ns[latency->n] = begun_ns;
    latency->took[latency->n++] = (uint32_t)MIN((ended_ns - begun_ns) / 100, UINT32_MAX);
}

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return (left > right) - (left < right);
}

void bench_latency_print(const char *name, const BenchLatency *latency, int64_t from_ns, int64_t to_ns)
{
    g_autofree uint32_t *chosen = g_new(uint32_t, latency->n + 1);
    uint32_t n = 0;

    for (uint32_t i = 0; i < latency->n; i++)
        if (latency->begun_ns[i] >= from_ns && latency->begun_ns[i] < to_ns)
            chosen[n++] = latency->took[i];
    qsort(chosen, n, sizeof(*chosen), compare);
    printf("\"%s\":{\"n\":%u,\"lost\":%" PRIu64, name, n, latency->n_lost);
    if (n > 0)
        printf(",\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f", chosen[n / 2] / 10.0, chosen[(uint64_t)n * 99 / 100] / 10.0,
               chosen[n - 1] / 10.0);
    printf("}");
}
