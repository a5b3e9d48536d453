/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A bounded ring of ranges under one lock, which is held for a few instructions only, and one
 * thread that populates the oldest range a chunk at a time, so that an end is noticed soon. The kernel is not asked
 * about chunks that are in place already: mincore() tells that in a few microseconds, MADV_POPULATE_WRITE takes ten
 * times as long to find out.
 *
 * The thread runs at nice 10: beside a vCPU or a receiving thread it takes what is left over.
 */
#include "ram/populate.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ram/block.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define QUEUE_LENGTH 4096 /* ranges */
#define POPULATE_NICE 10

typedef struct {
    VmfRamBlock *block;
    uint64_t first_page;
    uint64_t n_pages;
} Range;

struct VmfPopulate {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Range queue[QUEUE_LENGTH]; /* a ring: head is the oldest */
    unsigned head;
    unsigned n_queued;
    bool stop;              /* ended, by vmf_populate_free() or by an error */
    _Atomic bool stop_seen; /* the same, for a look without the lock */
    _Atomic uint64_t n_pages;
};

static bool is_resident(uint8_t *at, size_t n_pages)
{
    unsigned char resident[VMF_CHUNK_PAGES];

    if (mincore(at, n_pages * VMF_PAGE_SIZE, resident) < 0)
        return false;
    for (size_t i = 0; i < n_pages; i++) {
        if (!(resident[i] & 1))
            return false;
    }
    return true;
}

static bool populate_piece(VmfPopulate *populate, uint8_t *at, size_t n_pages)
{
    if (is_resident(at, n_pages))
        return true;
    if (madvise(at, n_pages * VMF_PAGE_SIZE, MADV_POPULATE_WRITE) < 0)
        return false;
    atomic_fetch_add_explicit(&populate->n_pages, n_pages, memory_order_relaxed);
    return true;
}

/* In pieces that end where chunks do. */
static bool populate_range(VmfPopulate *populate, const Range *range)
{
    uint64_t page = range->first_page, end = page + range->n_pages;

    while (page < end && !atomic_load_explicit(&populate->stop_seen, memory_order_relaxed)) {
        uint64_t n_pages = MIN(end - page, VMF_CHUNK_PAGES - page % VMF_CHUNK_PAGES);
        if (!populate_piece(populate, vmf_ram_block_page(range->block, page), n_pages))
            return false;
        page += n_pages;
    }
    return true;
}

/* Waits for a range; false when it is time to end. */
static bool next_range(VmfPopulate *populate, Range *range)
{
    pthread_mutex_lock(&populate->lock);
    while (!populate->stop && populate->n_queued == 0)
        pthread_cond_wait(&populate->changed, &populate->lock);
    bool go_on = !populate->stop;
    if (go_on) {
        *range = populate->queue[populate->head];
        populate->head = (populate->head + 1) % QUEUE_LENGTH;
        populate->n_queued--;
    }
    pthread_mutex_unlock(&populate->lock);
    return go_on;
}

static void set_stop(VmfPopulate *populate)
{
    pthread_mutex_lock(&populate->lock);
    populate->stop = true;
    atomic_store_explicit(&populate->stop_seen, true, memory_order_relaxed);
    pthread_cond_signal(&populate->changed);
    pthread_mutex_unlock(&populate->lock);
}

static void *populate_thread(void *opaque)
{
    VmfPopulate *populate = opaque;
    Range range;

    /* The kernel's nice value is per thread. */
    (void)setpriority(PRIO_PROCESS, syscall(SYS_gettid), POPULATE_NICE);
    while (next_range(populate, &range)) {
        if (!populate_range(populate, &range))
            set_stop(populate);
    }
    return NULL;
}

VmfPopulate *vmf_populate_new(void)
{
    VmfPopulate *populate = g_try_new0(VmfPopulate, 1);

    if (!populate)
        return NULL;
    pthread_mutex_init(&populate->lock, NULL);
    pthread_cond_init(&populate->changed, NULL);
    if (pthread_create(&populate->thread, NULL, populate_thread, populate) == 0)
        return populate;
    pthread_cond_destroy(&populate->changed);
    pthread_mutex_destroy(&populate->lock);
    g_free(populate);
    return NULL;
}

bool vmf_populate_push(VmfPopulate *populate, VmfRamBlock *block, uint64_t first_page, uint64_t n_pages)
{
    if (!populate || n_pages == 0 || first_page >= vmf_ram_block_n_pages(block))
        return false;
    n_pages = MIN(n_pages, vmf_ram_block_n_pages(block) - first_page);

    pthread_mutex_lock(&populate->lock);
    bool queued = !populate->stop && populate->n_queued < QUEUE_LENGTH;
    if (queued) {
        populate->queue[(populate->head + populate->n_queued) % QUEUE_LENGTH] = (Range){block, first_page, n_pages};
        populate->n_queued++;
        pthread_cond_signal(&populate->changed);
    }
    pthread_mutex_unlock(&populate->lock);
    return queued;
}

uint64_t vmf_populate_n_pages(const VmfPopulate *populate)
{
    return populate ? atomic_load_explicit(&populate->n_pages, memory_order_relaxed) : 0;
}

void vmf_populate_free(VmfPopulate *populate)
{
    if (!populate)
        return;
    set_stop(populate);
    pthread_join(populate->thread, NULL);
    pthread_cond_destroy(&populate->changed);
    pthread_mutex_destroy(&populate->lock);
    g_free(populate);
}
