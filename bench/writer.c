/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages come due by the clock, and each is written when it does: one at a time, so that who wants the thread to stand still waits for no
 * more than a page. What could not be written in time, since a write had to wait, is left out: a guest's programs do not hurry
 * afterwards.
 */
#include "bench/writer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "bench/common.h"

#define SLACK_NS (2 * 1000 * 1000) /* that a page may be late */
#define NAP_NS (200 * 1000)

struct BenchWriter {
    pthread_t thread;
    uint8_t *memory;
    uint64_t size;
    unsigned every;
    double page_ns;
    _Atomic uint64_t n_pages;
    _Atomic bool stopped; /* changed under the lock */
    bool standing, over;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* by the monotonic clock */
};

/* Until it may write; false: it is over. */
static bool stand(BenchWriter *writer)
{
    pthread_mutex_lock(&writer->lock);
    while (writer->stopped && !writer->over) {
        writer->standing = true;
        pthread_cond_broadcast(&writer->changed);
        pthread_cond_wait(&writer->changed, &writer->lock);
    }
    writer->standing = false;
    bool over = writer->over;
    pthread_mutex_unlock(&writer->lock);
    return !over;
}

/* As long, or until it is to stop. */
static void nap(BenchWriter *writer)
{
    int64_t until_ns = bench_now_ns() + NAP_NS;
    struct timespec until = {.tv_sec = until_ns / BENCH_NS_PER_S, .tv_nsec = until_ns % BENCH_NS_PER_S};

    pthread_mutex_lock(&writer->lock);
    if (!writer->stopped && !writer->over)
        pthread_cond_timedwait(&writer->changed, &writer->lock, &until);
    pthread_mutex_unlock(&writer->lock);
}

static void *write_pages(void *opaque)
{
    BenchWriter *writer = opaque;
    double due_ns = 0;

    for (uint64_t n = 0; !atomic_load(&writer->stopped) || stand(writer);) {
        int64_t now_ns = bench_now_ns();
        if (due_ns > (double)now_ns) {
            nap(writer);
            continue;
        }
        uint64_t offset = bench_data_page(writer->size, writer->every, BENCH_TOUCH_SEED, n++);
        ++*(volatile uint64_t *)(writer->memory + offset);
        atomic_store(&writer->n_pages, n);
        due_ns = MAX(due_ns + writer->page_ns, (double)(now_ns - SLACK_NS));
    }
    return NULL;
}

BenchWriter *bench_writer_start(uint8_t *memory, uint64_t size, unsigned every, uint64_t bytes_per_second)
{
    BenchWriter *writer = g_new0(BenchWriter, 1);
    pthread_condattr_t attributes;

    writer->memory = memory;
    writer->size = size;
    writer->every = every;
    writer->page_ns = (double)BENCH_NS_PER_S * BENCH_PAGE / (double)bytes_per_second;
    atomic_store(&writer->stopped, true);
    pthread_mutex_init(&writer->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&writer->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (pthread_create(&writer->thread, NULL, write_pages, writer) != 0)
        bench_die("thread");
    return writer;
}

void bench_writer_finish(BenchWriter *writer)
{
    pthread_mutex_lock(&writer->lock);
    writer->over = true;
    atomic_store(&writer->stopped, true);
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->lock);
    pthread_join(writer->thread, NULL);
    pthread_cond_destroy(&writer->changed);
    pthread_mutex_destroy(&writer->lock);
    g_free(writer);
}

void bench_writer_stop(BenchWriter *writer)
{
    pthread_mutex_lock(&writer->lock);
    atomic_store(&writer->stopped, true);
    pthread_cond_broadcast(&writer->changed);
    while (!writer->standing)
        pthread_cond_wait(&writer->changed, &writer->lock);
    pthread_mutex_unlock(&writer->lock);
}

void bench_writer_go(BenchWriter *writer)
{
    pthread_mutex_lock(&writer->lock);
    atomic_store(&writer->stopped, false);
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->lock);
}

uint64_t bench_writer_pages(BenchWriter *writer)
{
    return atomic_load(&writer->n_pages);
}

int64_t bench_writer_cpu_ns(BenchWriter *writer)
{
    struct timespec used;
    clockid_t clock;

    if (pthread_getcpuclockid(writer->thread, &clock) != 0 || clock_gettime(clock, &used) < 0)
        bench_die("thread clock");
    return used.tv_sec * BENCH_NS_PER_S + used.tv_nsec;
}
