/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A bounded ring of ranges under one lock, which is held for a few instructions only, and one
 * thread that takes the oldest range a piece at a time, so that an end is noticed soon. The kernel is not asked about
 * pieces that are in place already: mincore() tells that in a microsecond, MADV_POPULATE_WRITE takes ten times as long
 * to find out.
 *
 * The thread runs at nice 10: beside a vCPU or a receiving thread it takes what is left over. A receiver that has caught
 * up with it takes what it is about to fill out of the queue and populates that itself: a fault for each page inside a
 * read costs more, and two threads in one piece work against each other.
 */
#include "ram/populate.h"

#include <pthread.h>
#include <sched.h>
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
#define PIECE_PAGES 128u /* as many as a record carries */

typedef struct {
    VmfRamBlock *block;
    uint64_t first_page;
    uint64_t n_pages;
} Range;

struct VmfPopulate {
    VmfFresh *fresh; /* borrowed; NULL: nothing is watched */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Range queue[QUEUE_LENGTH]; /* a ring: head is the oldest */
    unsigned head;
    unsigned n_queued;
    bool stop; /* ended, by vmf_populate_free() or by an error */
    _Atomic uint64_t n_pages;
};

static bool is_resident(uint8_t *at, size_t n_pages)
{
    unsigned char resident[PIECE_PAGES];

    if (mincore(at, n_pages * VMF_PAGE_SIZE, resident) < 0)
        return false;
    for (size_t i = 0; i < n_pages; i++) {
        if (!(resident[i] & 1))
            return false;
    }
    return true;
}

static bool populate_piece(VmfPopulate *populate, const Range *piece)
{
    uint8_t *at = vmf_ram_block_page(piece->block, piece->first_page);
    int index = vmf_fresh_index(populate->fresh, piece->block);

    if (index >= 0) {
        int n = vmf_fresh_provide(populate->fresh, (unsigned)index, piece->first_page, (unsigned)piece->n_pages);
        atomic_fetch_add_explicit(&populate->n_pages, (unsigned)MAX(n, 0), memory_order_relaxed);
        return n >= 0;
    }
    if (is_resident(at, piece->n_pages))
        return true;
    if (madvise(at, piece->n_pages * VMF_PAGE_SIZE, MADV_POPULATE_WRITE) < 0)
        return false;
    atomic_fetch_add_explicit(&populate->n_pages, piece->n_pages, memory_order_relaxed);
    return true;
}

static void drop_oldest(VmfPopulate *populate)
{
    populate->head = (populate->head + 1) % QUEUE_LENGTH;
    populate->n_queued--;
}

/* A piece of the oldest range; ranges that receivers have emptied are dropped on the way. */
static bool take_oldest(VmfPopulate *populate, Range *piece)
{
    while (populate->n_queued > 0) {
        Range *oldest = &populate->queue[populate->head];
        *piece = *oldest;
        piece->n_pages = MIN(oldest->n_pages, PIECE_PAGES - oldest->first_page % PIECE_PAGES);
        oldest->first_page += piece->n_pages;
        oldest->n_pages -= piece->n_pages;
        if (oldest->n_pages == 0)
            drop_oldest(populate);
        if (piece->n_pages > 0)
            return true;
    }
    return false;
}

/* Waits for a piece; false when it is time to end. */
static bool next_piece(VmfPopulate *populate, Range *piece)
{
    bool taken = false;

    pthread_mutex_lock(&populate->lock);
    while (!populate->stop && !(taken = take_oldest(populate, piece)))
        pthread_cond_wait(&populate->changed, &populate->lock);
    pthread_mutex_unlock(&populate->lock);
    return taken;
}

static void set_stop(VmfPopulate *populate)
{
    pthread_mutex_lock(&populate->lock);
    populate->stop = true;
    pthread_cond_signal(&populate->changed);
    pthread_mutex_unlock(&populate->lock);
}

static void *populate_thread(void *opaque)
{
    VmfPopulate *populate = opaque;
    Range piece;

    /* Placing content costs less than populating and reading into it, so this is for a processor that would be idle. */
    if (!populate->fresh || sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}) < 0)
        (void)setpriority(PRIO_PROCESS, syscall(SYS_gettid), POPULATE_NICE); /* the kernel's nice value is per thread */
    while (next_piece(populate, &piece)) {
        if (!populate_piece(populate, &piece))
            set_stop(populate);
    }
    return NULL;
}

VmfPopulate *vmf_populate_new(VmfFresh *fresh)
{
    VmfPopulate *populate = g_try_new0(VmfPopulate, 1);

    if (!populate)
        return NULL;
    populate->fresh = fresh;
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

/*
 * Takes pages out of the oldest queued range that has any of @wanted and says which. Both sides go upwards, so it is the start of a
 * range that goes; should it be its middle, what lies above is left to the faults.
 */
static bool take_wanted(VmfPopulate *populate, const Range *wanted, Range *taken)
{
    uint64_t wanted_end = wanted->first_page + wanted->n_pages;

    for (unsigned i = 0; i < populate->n_queued; i++) {
        Range *queued = &populate->queue[(populate->head + i) % QUEUE_LENGTH];
        uint64_t end = queued->first_page + queued->n_pages;
        uint64_t from = MAX(queued->first_page, wanted->first_page), to = MIN(end, wanted_end);
        if (queued->block != wanted->block || from >= to)
            continue;
        *taken = (Range){wanted->block, from, to - from};
        if (from > queued->first_page)
            queued->n_pages = from - queued->first_page;
        else
            *queued = (Range){wanted->block, to, end - to};
        return true;
    }
    return false;
}

uint64_t vmf_populate_now(VmfPopulate *populate, VmfRamBlock *block, uint64_t first_page, uint64_t n_pages)
{
    Range wanted = {block, first_page, n_pages}, taken;

    if (!populate)
        return 0;
    pthread_mutex_lock(&populate->lock);
    bool mine = !populate->stop && take_wanted(populate, &wanted, &taken);
    pthread_mutex_unlock(&populate->lock);
    return mine && populate_piece(populate, &taken) ? taken.n_pages : 0;
}

void vmf_populate_forget(VmfPopulate *populate, VmfRamBlock *block, uint64_t first_page, uint64_t n_pages)
{
    Range wanted = {block, first_page, n_pages}, taken;

    if (!populate)
        return;
    pthread_mutex_lock(&populate->lock);
    take_wanted(populate, &wanted, &taken);
    pthread_mutex_unlock(&populate->lock);
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
