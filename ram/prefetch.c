/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * One thread with a few reads under way, once it has had the source look up where data is. A read that ends is placed
 * at once, from within the reader, and its buffer is free again. The thread never waits for the fault server, nor it for
 * the thread: pages that both read are placed by whoever is first (lazy-ram.c). What it owes to the faults is the
 * storage: it asks before each read how many may be under way, and lets what is above that end first. And the processor:
 * it runs at nice 10, as it would take half of it from a vCPU otherwise.
 *
 * A recorded order is followed by batches: the entries of a batch are sorted by place, so that neighbours are read
 * together and a chunk's pages by one read. Batches grow from BATCH_FIRST to BATCH_MAX entries: what was touched first
 * is needed at once, and of what was touched later the order is less certain.
 *
 * A read that fails is done again page by page, to find the page, or that it was a passing trouble.
 */
#include "ram/prefetch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/sparse-array.h"
#include "stream/clock.h"

#define PREFETCH_NICE 10
#define BATCH_FIRST 64u
#define BATCH_MAX 4096u

typedef struct {
    VmfPrefetch *prefetch;
    uint8_t *buffer; /* a chunk; only what is read into costs memory */
    uint8_t *base;   /* where page 0 of the chunk would be */
    unsigned block;
    uint64_t chunk;
    VmfPageSet wanted;
    bool busy;
    bool failed;
} Slot;

struct VmfPrefetch {
    VmfPrefetchConfig config;
    void *reader;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    _Atomic bool cancelled;
    uint8_t *buffers;
    Slot slots[VMF_PREFETCH_DEPTH];
    unsigned n_busy;
    /* The page that ended it. */
    unsigned bad_block;
    uint64_t bad_page;
    GError *error;
};

/* ---- one read -----------------------------------------------------------------------------------------------------
 */

/* The first one counts; takes @error. */
static void end_at(VmfPrefetch *p, unsigned block, uint64_t page, GError *error)
{
    if (p->error) {
        g_error_free(error);
        return;
    }
    p->bad_block = block;
    p->bad_page = page;
    p->error = error;
}

static void count(VmfPrefetch *p, const Slot *slot, int n_placed, GError *error)
{
    if (n_placed >= 0)
        p->config.placed(p->config.opaque, (unsigned)n_placed);
    else
        end_at(p, slot->block, slot->chunk * VMF_CHUNK_PAGES, error);
}

static void place(VmfPrefetch *p, Slot *slot, const VmfPageSet *pages)
{
    GError *error = NULL;
    int n = vmf_lazy_ram_place(p->config.ram, slot->block, slot->chunk, pages, slot->base, &error);

    count(p, slot, n, error);
}

/* Huge pages are placed whole: what was not read is zeros. */
static void place_huge(VmfPrefetch *p, Slot *slot, const VmfPageSet *data)
{
    VmfPageSet all, rest;
    unsigned first, n_pages;

    memset(&all, 0xff, sizeof(all));
    rest = vmf_page_set_and_not(&all, data);
    for (unsigned from = 0; vmf_page_set_next_run(&rest, from, &first, &n_pages); from = first + n_pages)
        memset(slot->base + (size_t)first * VMF_PAGE_SIZE, 0, (size_t)n_pages * VMF_PAGE_SIZE);
    place(p, slot, &all);
}

static void place_read(VmfPrefetch *p, Slot *slot, const VmfPageSet *data, const VmfPageSet *zero)
{
    GError *error = NULL;

    if (vmf_lazy_ram_is_huge(p->config.ram, slot->block)) {
        place_huge(p, slot, data);
        return;
    }
    place(p, slot, data);
    int n = vmf_lazy_ram_place_zeros(p->config.ram, slot->block, slot->chunk, zero, &error);
    count(p, slot, n, error);
}

static void read_done(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *data, const VmfPageSet *zero,
                      GError *error)
{
    Slot *slot = opaque;
    VmfPrefetch *p = slot->prefetch;

    slot->busy = false;
    p->n_busy--;
    slot->failed = error != NULL;
    if (!error && !p->error)
        place_read(p, slot, data, zero);
    g_clear_error(&error);
}

static void read_again(VmfPrefetch *p, Slot *slot)
{
    const VmfPageSet none = {{0}};
    GError *error = NULL;
    unsigned bad = 0;

    slot->failed = false;
    if (vmf_page_reader_read_singly(p->config.reader, p->reader, slot->block, slot->chunk, &slot->wanted, slot->base,
                                    &bad, &error))
        place_read(p, slot, &slot->wanted, &none);
    else
        end_at(p, slot->block, slot->chunk * VMF_CHUNK_PAGES + bad, error);
}

static Slot *failed_slot(VmfPrefetch *p)
{
    for (unsigned i = 0; i < VMF_PREFETCH_DEPTH; i++) {
        if (p->slots[i].failed)
            return &p->slots[i];
    }
    return NULL;
}

/* Lets reads end until at most @n are under way; false: it is over. */
static bool wait_for(VmfPrefetch *p, unsigned n)
{
    Slot *failed;

    if (p->n_busy > n)
        p->config.reader->wait(p->reader, n);
    while (!p->error && (failed = failed_slot(p)))
        read_again(p, failed);
    return !p->error && !atomic_load_explicit(&p->cancelled, memory_order_relaxed);
}

static Slot *free_slot(VmfPrefetch *p)
{
    for (unsigned i = 0;; i++) {
        if (!p->slots[i].busy)
            return &p->slots[i];
    }
}

/* @wanted: not empty. */
static bool begin_read(VmfPrefetch *p, unsigned block, uint64_t chunk, const VmfPageSet *wanted)
{
    unsigned first, n_pages;

    if (!wait_for(p, p->config.depth(p->config.opaque) - 1))
        return false;
    Slot *slot = free_slot(p);
    vmf_page_set_next_run(wanted, 0, &first, &n_pages);
    slot->base = vmf_lazy_ram_is_huge(p->config.ram, block) ? slot->buffer : vmf_page_reader_base(slot->buffer, first);
    slot->block = block;
    slot->chunk = chunk;
    slot->wanted = *wanted;
    slot->busy = true;
    p->n_busy++;
    if (!p->config.reader->start(p->reader, block, chunk, wanted, slot->base, read_done, slot, NULL)) {
        slot->busy = false;
        slot->failed = true;
        p->n_busy--;
    }
    return true;
}

/* ---- a chunk ------------------------------------------------------------------------------------------------------
 */

/* What of @pages (NULL: all) holds data and is not there. */
static bool find_wanted(VmfPrefetch *p, unsigned block, uint64_t chunk, const VmfPageSet *pages, VmfPageSet *wanted)
{
    GError *error = NULL;
    VmfPageSet data;

    if (!p->config.reader->data_pages(p->config.source, block, chunk, &data, &error)) {
        end_at(p, block, chunk * VMF_CHUNK_PAGES, error);
        return false;
    }
    VmfPageSet absent = vmf_lazy_ram_absent(p->config.ram, block, chunk, &data);
    *wanted = pages && !vmf_lazy_ram_is_huge(p->config.ram, block) ? vmf_page_set_and(&absent, pages) : absent;
    if (vmf_lazy_ram_is_huge(p->config.ram, block) && !vmf_page_set_is_empty(&absent))
        *wanted = data;
    return true;
}

static bool read_chunk(VmfPrefetch *p, unsigned block, uint64_t chunk, const VmfPageSet *pages)
{
    unsigned piece = vmf_lazy_ram_is_huge(p->config.ram, block) ? VMF_CHUNK_PAGES : VMF_PREFETCH_PIECE_PAGES;
    VmfPageSet wanted;

    if (!p->config.reader->may_have_data(p->config.source, block, chunk))
        return true;
    if (!find_wanted(p, block, chunk, pages, &wanted))
        return false;
    for (unsigned from = 0, end; from < VMF_CHUNK_PAGES; from = end) {
        end = vmf_page_set_cut(&wanted, from, piece);
        VmfPageSet part = vmf_page_set_slice(&wanted, from, end - from);
        if (!vmf_page_set_is_empty(&part) && !begin_read(p, block, chunk, &part))
            return false;
    }
    return true;
}

/* ---- the way ------------------------------------------------------------------------------------------------------
 */

static int compare_places(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

#define PLACE_PAGE_BITS 48

/* Entries [*next, …) of the order that exist here, at most @max, as sorted places. */
static unsigned take_batch(VmfPrefetch *p, uint64_t *next, uint64_t *places, unsigned max)
{
    unsigned n = 0, block;
    uint64_t page;

    for (; *next < vmf_touch_order_length(p->config.order) && n < max; ++*next) {
        vmf_touch_order_get(p->config.order, *next, &block, &page);
        if (block < vmf_lazy_ram_n_blocks(p->config.ram) &&
            page < vmf_ram_block_n_pages(vmf_lazy_ram_block(p->config.ram, block)))
            places[n++] = (uint64_t)block << PLACE_PAGE_BITS | page;
    }
    qsort(places, n, sizeof(*places), compare_places);
    return n;
}

static bool read_places(VmfPrefetch *p, const uint64_t *places, unsigned n)
{
    for (unsigned i = 0; i < n;) {
        uint64_t chunk = places[i] / VMF_CHUNK_PAGES; /* with the block above it */
        VmfPageSet pages = {{0}};

        for (; i < n && places[i] / VMF_CHUNK_PAGES == chunk; i++)
            vmf_page_set_add(&pages, places[i] % VMF_CHUNK_PAGES);
        uint64_t first = chunk * VMF_CHUNK_PAGES;
        unsigned block = (unsigned)(first >> PLACE_PAGE_BITS);
        if (!read_chunk(p, block, (first & ((UINT64_C(1) << PLACE_PAGE_BITS) - 1)) / VMF_CHUNK_PAGES, &pages))
            return false;
    }
    return true;
}

static bool follow_order(VmfPrefetch *p)
{
    g_autofree uint64_t *places = p->config.order ? g_new(uint64_t, BATCH_MAX) : NULL;
    unsigned max = BATCH_FIRST, n;
    uint64_t next = 0;

    if (!places)
        return true;
    while ((n = take_batch(p, &next, places, max)) > 0) {
        if (!read_places(p, places, n))
            return false;
        max = MIN(max * 2, BATCH_MAX);
    }
    return true;
}

/*
 * What the source has to read up once to say which pages hold data (bitmaps and digests of an image) is a small part of
 * all: read first, and in order, no fault has to wait for it a moment later. Trouble shows when the pages are read.
 */
static bool look_up_all(VmfPrefetch *p)
{
    VmfPageSet data;

    for (unsigned block = 0; block < vmf_lazy_ram_n_blocks(p->config.ram); block++) {
        uint64_t n_chunks = vmf_ram_block_n_chunks(vmf_lazy_ram_block(p->config.ram, block));

        for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
            if (atomic_load_explicit(&p->cancelled, memory_order_relaxed))
                return false;
            if (p->config.reader->may_have_data(p->config.source, block, chunk))
                p->config.reader->data_pages(p->config.source, block, chunk, &data, NULL);
        }
    }
    return true;
}

static bool ascend(VmfPrefetch *p)
{
    for (unsigned block = 0; block < vmf_lazy_ram_n_blocks(p->config.ram); block++) {
        uint64_t n_chunks = vmf_ram_block_n_chunks(vmf_lazy_ram_block(p->config.ram, block));

        for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
            if (!read_chunk(p, block, chunk, NULL))
                return false;
        }
    }
    return true;
}

/* False: cancelled meanwhile. */
static bool hold(VmfPrefetch *p)
{
    uint64_t due_ns = (uint64_t)vmf_now_ns() + p->config.hold_ns;
    struct timespec due = {.tv_sec = (time_t)(due_ns / VMF_NS_PER_S), .tv_nsec = (long)(due_ns % VMF_NS_PER_S)};
    int result = p->config.hold_ns ? 0 : -1;

    pthread_mutex_lock(&p->lock);
    while (result == 0 && !p->cancelled)
        result = pthread_cond_timedwait(&p->changed, &p->lock, &due);
    pthread_mutex_unlock(&p->lock);
    return !p->cancelled;
}

static void *prefetch_main(void *opaque)
{
    VmfPrefetch *p = opaque;

    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid),
                      PREFETCH_NICE); /* nice values are the kernel's threads' */
    bool whole = look_up_all(p) && hold(p) && follow_order(p) && ascend(p) && wait_for(p, 0);
    p->config.reader->wait(p->reader, 0);
    if (whole || p->error)
        p->config.ended(p->config.opaque, p->bad_block, p->bad_page, g_steal_pointer(&p->error));
    return NULL;
}

/* ---- beginning and end --------------------------------------------------------------------------------------------
 */

static void init_sync(VmfPrefetch *p)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&p->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

VmfPrefetch *vmf_prefetch_new(const VmfPrefetchConfig *config, GError **error)
{
    g_autoptr(VmfPrefetch) p = g_new0(VmfPrefetch, 1);

    p->config = *config;
    init_sync(p);
    p->buffers = vmf_sparse_array_new(VMF_PREFETCH_DEPTH, VMF_CHUNK_SIZE, "prefetch", error);
    if (!p->buffers)
        return NULL;
    for (unsigned i = 0; i < VMF_PREFETCH_DEPTH; i++)
        p->slots[i] = (Slot){.prefetch = p, .buffer = p->buffers + (size_t)i * VMF_CHUNK_SIZE};
    p->reader = config->reader->open(config->source, VMF_PREFETCH_DEPTH, error);
    if (!p->reader)
        return NULL;
    p->started = pthread_create(&p->thread, NULL, prefetch_main, p) == 0;
    if (!p->started) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "prefetch: no thread");
        return NULL;
    }
    return g_steal_pointer(&p);
}

void vmf_prefetch_free(VmfPrefetch *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->cancelled = true;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
    if (p->started)
        pthread_join(p->thread, NULL);
    if (p->reader)
        p->config.reader->close(p->reader);
    vmf_sparse_array_free(p->buffers, VMF_PREFETCH_DEPTH, VMF_CHUNK_SIZE);
    g_clear_error(&p->error);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    g_free(p);
}
