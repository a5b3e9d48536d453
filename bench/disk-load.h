/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The load of latency.h on a VmfDisk, as a guest's device model would put it there. */
#ifndef BENCH_DISK_LOAD_H
#define BENCH_DISK_LOAD_H

#include <vmferry/vmferry.h>

#include "bench/latency.h"

typedef struct BenchDiskLoad BenchDiskLoad;

/* Begins, with a thread that submits. */
BenchDiskLoad *bench_disk_load_start(VmfDisk *disk, unsigned per_second, unsigned depth);
/* No write is under way when it returns, and none comes until it goes on. */
void bench_disk_load_pause(BenchDiskLoad *load);
void bench_disk_load_go_on(BenchDiskLoad *load);
/* Ends it; its latencies are the load's, and it is not freed. */
const BenchLatency *bench_disk_load_finish(BenchDiskLoad *load);

#endif
