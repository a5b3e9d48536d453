/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bench/common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define HUGE_PAGE (2u << 20)

void bench_die(const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", g_get_prgname() ? g_get_prgname() : "bench", what, strerror(errno));
    exit(1);
}

static void *map_memfd(uint64_t size)
{
    int fd = memfd_create("bench", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        bench_die("memfd");
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    close(fd);
    return memory;
}

void *bench_map(uint64_t size, BenchKind kind)
{
    if (kind.memfd) {
        void *memory = map_memfd(size);
        if (memory == MAP_FAILED)
            bench_die("mapping memory");
        return memory;
    }
    uint8_t *memory = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        bench_die("mapping memory");
    memory += -(uintptr_t)memory % HUGE_PAGE;
    madvise(memory, size, kind.huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return memory;
}

uint64_t bench_parse_size(const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    uint64_t size = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;

    if (unit)
        size <<= 10 * (unit - units + 1);
    if (size == 0 || (*end && (!unit || end[1]))) {
        errno = EINVAL;
        bench_die(text);
    }
    return size;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void bench_fill_random(void *memory, uint64_t size, uint64_t seed)
{
    uint64_t *word = memory, state = mix(seed + 1);

    for (uint64_t i = 0; i < size / sizeof(*word); i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        word[i] = state | 1;
    }
}

void bench_fill_zero(void *memory, uint64_t size)
{
    volatile uint8_t *byte = memory;

    for (uint64_t at = 0; at < size; at += BENCH_PAGE)
        byte[at] = 0;
}

uint64_t bench_scattered_piece(uint64_t size, uint64_t piece, uint64_t seed, uint64_t n)
{
    return mix(seed + n * UINT64_C(0x9e3779b97f4a7c15)) % (size / piece) * piece;
}

void bench_fill_scattered(void *memory, uint64_t size, uint64_t bytes, uint64_t piece, uint64_t seed)
{
    for (uint64_t n = 0; n < bytes / piece; n++)
        bench_fill_random((uint8_t *)memory + bench_scattered_piece(size, piece, seed, n), piece, seed + n);
}

bool bench_holds_data(uint64_t chunk, unsigned every)
{
    return every > 0 ? chunk % every == 0 : chunk % 4 != 3;
}

/* The chunk that holds the n-th piece of data, and how many there are up to @n_chunks. */
static uint64_t nth_chunk(uint64_t n, unsigned every)
{
    return every > 0 ? n * every : n / 3 * 4 + n % 3;
}

static uint64_t n_data_chunks(uint64_t n_chunks, unsigned every)
{
    return every > 0 ? (n_chunks + every - 1) / every : n_chunks / 4 * 3 + n_chunks % 4;
}

uint64_t bench_data_bytes(uint64_t size, unsigned every)
{
    return n_data_chunks(size / BENCH_CHUNK, every) * BENCH_CHUNK;
}

uint64_t bench_data_page(uint64_t size, unsigned every, uint64_t seed, uint64_t n)
{
    uint64_t offset = bench_scattered_piece(bench_data_bytes(size, every), BENCH_PAGE, seed, n);

    return nth_chunk(offset / BENCH_CHUNK, every) * BENCH_CHUNK + offset % BENCH_CHUNK;
}

int64_t bench_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * BENCH_NS_PER_S + now.tv_nsec;
}

int64_t bench_cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec * BENCH_NS_PER_S + now.tv_nsec;
}

void bench_wait_for_start(void)
{
    int c;

    printf("{\"type\":\"ready\"}\n");
    fflush(stdout);
    while ((c = getchar()) != '\n')
        if (c == EOF)
            exit(1);
}
