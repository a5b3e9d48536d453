/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest's load on its disk, as all sides of a ratio have it: writes of 4 KiB at random places that come due by the clock, at a fixed
 * rate, never more than so many under way; and how long they took.
 *
 * A write's time is from its submission to its end, as fio has it. One that was late, because the thread that submits was woken late or as
 * many as may be were under way, is not caught up with: how many were reached a second tells of that.
 */
#ifndef BENCH_LATENCY_H
#define BENCH_LATENCY_H

#include <stdbool.h>
#include <stdint.h>

#define BENCH_WRITE_BYTES 4096u
#define BENCH_LATENCY_MAX 2000000u /* writes that are remembered */

/* When writes come due. One thread. */
typedef struct {
    int64_t begun_ns, interval_ns;
    uint64_t n; /* that were taken */
} BenchSchedule;

void bench_schedule_init(BenchSchedule *schedule, unsigned per_second);
/* When the next one is due. */
int64_t bench_schedule_due_ns(const BenchSchedule *schedule);
/* Takes it, which is due. */
void bench_schedule_take(BenchSchedule *schedule, int64_t now_ns);
/* The n-th place on a disk of @size. */
uint64_t bench_write_place(uint64_t size, uint64_t n);

/* What they took. Added to by one thread, looked at when it has ended. */
typedef struct {
    uint32_t n;
    uint64_t n_lost; /* for which there was no room */
    int64_t *begun_ns;
    uint32_t *took; /* in tenths of a microsecond */
} BenchLatency;

void bench_latency_init(BenchLatency *latency);
void bench_latency_add(BenchLatency *latency, int64_t begun_ns, int64_t ended_ns);
/* Prints "NAME":{"n":…,"p50_us":…,"p99_us":…,"max_us":…} of those that began in [from_ns, to_ns). */
void bench_latency_print(const char *name, const BenchLatency *latency, int64_t from_ns, int64_t to_ns);

#endif
