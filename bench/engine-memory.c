/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bench/engine-memory.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "bench/common.h"

#define INTERVAL_US 3000

struct BenchMemory {
    uintptr_t guest_from, guest_to;
    uint64_t start, peak; /* bytes beside the guest's */
    BenchMemoryResult result;
    pthread_t thread;
    atomic_bool stop;
};

/* Sums up /proc/self/smaps; guest RAM is known by its address, whatever mappings the kernel made of it. */
static void look(const BenchMemory *memory, uint64_t *engine_bytes, uint64_t *guest_bytes)
{
    FILE *maps = fopen("/proc/self/smaps", "r");
    uintptr_t from, to;
    uint64_t kib;
    bool is_guest = false;
    char line[512];

    if (!maps)
        bench_die("/proc/self/smaps");
    *engine_bytes = *guest_bytes = 0;
    while (fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
            is_guest = from < memory->guest_to && to > memory->guest_from;
        else if (is_guest && sscanf(line, "Rss: %" SCNu64, &kib) == 1)
            *guest_bytes += kib * 1024;
        else if (!is_guest && sscanf(line, "Anonymous: %" SCNu64, &kib) == 1)
            *engine_bytes += kib * 1024;
    }
    fclose(maps);
}

static void *watch(void *opaque)
{
    BenchMemory *memory = opaque;
    uint64_t engine, guest;

    while (!atomic_load(&memory->stop)) {
        look(memory, &engine, &guest);
        memory->peak = MAX(memory->peak, engine);
        usleep(INTERVAL_US);
    }
    return NULL;
}

BenchMemory *bench_memory_start(const void *guest_ram, uint64_t guest_size)
{
    BenchMemory *memory = g_new0(BenchMemory, 1);

    memory->guest_from = (uintptr_t)guest_ram;
    memory->guest_to = memory->guest_from + guest_size;
    look(memory, &memory->start, &memory->result.guest_start_bytes); /* once for its own buffers */
    look(memory, &memory->start, &memory->result.guest_start_bytes);
    if (pthread_create(&memory->thread, NULL, watch, memory) != 0)
        bench_die("thread");
    return memory;
}

BenchMemoryResult bench_memory_stop(BenchMemory *memory)
{
    uint64_t engine;

    atomic_store(&memory->stop, true);
    pthread_join(memory->thread, NULL);
    look(memory, &engine, &memory->result.guest_end_bytes);
    memory->result.engine_peak_bytes = MAX(memory->peak, memory->start) - memory->start;
    BenchMemoryResult result = memory->result;
    g_free(memory);
    return result;
}
