/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/log-audit.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "ram/block.h"
#include "ram/pagemap-scan.h"
#include "stream/clock.h"

#define WINDOW_PAGES 64 /* hashed at a time: between two looks at the clock, and a word of the sets */
#define WINDOWS (VMF_CHUNK_PAGES / WINDOW_PAGES)
#define TRIES 256        /* at finding a chunk that has content, between two looks at the clock */
#define WRITTEN_MAX 4096u /* chunks */
#define SAVED_MAX_NS (100 * VMF_NS_PER_MS)
#define LAST_LOOK_NS (VMF_NS_PER_MS / 10) /* less is not worth a round */

void vmf_log_audit_init(VmfLogAudit *audit, uint64_t seed)
{
    *audit = (VmfLogAudit){
        .random = seed | 1,
        .written = g_array_new(false, false, sizeof(VmfAuditedChunk)),
        .seen = g_ptr_array_new_with_free_func(g_free),
        .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
        .different = g_array_new(false, false, sizeof(VmfAuditedPage)),
    };
}

void vmf_log_audit_clear(VmfLogAudit *audit)
{
    g_clear_pointer(&audit->written, g_array_unref);
    g_clear_pointer(&audit->seen, g_ptr_array_unref);
    if (audit->pagemap >= 0)
        close(audit->pagemap);
    audit->pagemap = -1;
    g_clear_pointer(&audit->different, g_array_unref);
}

/* xorshift64*: what is looked at need only be spread, and differ from run to run. */
static uint64_t next_random(VmfLogAudit *audit)
{
    audit->random ^= audit->random >> 12;
    audit->random ^= audit->random << 25;
    audit->random ^= audit->random >> 27;
    return audit->random * UINT64_C(0x2545F4914F6CDD1D);
}

static uint64_t random_below(VmfLogAudit *audit, uint64_t n)
{
    return (uint64_t)((unsigned __int128)next_random(audit) * n >> 64);
}

/* ---- where to look --------------------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned block;
    uint64_t chunk;
    unsigned window;
} Place;

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static uint64_t count_chunks(const VmfAuditBlock *blocks, unsigned n_blocks)
{
    uint64_t n_chunks = 0;

    for (unsigned b = 0; b < n_blocks; b++)
        n_chunks += vmf_ram_block_n_chunks(blocks[b].block);
    return n_chunks;
}

/* The number of the next chunk, and its window. */
static uint64_t walk_on(VmfLogAudit *audit, VmfAuditWalk *walk, uint64_t n_chunks, unsigned *window)
{
    while (walk->stride == 0 || common_divisor(walk->stride, n_chunks) != 1) {
        walk->stride = 1 + random_below(audit, n_chunks);
        walk->position = random_below(audit, n_chunks * WINDOWS);
    }
    uint64_t at = walk->position++;
    *window = (unsigned)(at / n_chunks % WINDOWS);
    return (uint64_t)((unsigned __int128)(at % n_chunks) * walk->stride % n_chunks);
}

static Place choose_anywhere(VmfLogAudit *audit, const VmfAuditBlock *blocks, uint64_t n_chunks)
{
    Place place = {0};

    place.chunk = walk_on(audit, &audit->everywhere, n_chunks, &place.window);
    for (; place.chunk >= vmf_ram_block_n_chunks(blocks[place.block].block); place.block++)
        place.chunk -= vmf_ram_block_n_chunks(blocks[place.block].block);
    return place;
}

static Place choose_written(VmfLogAudit *audit)
{
    unsigned window;
    uint64_t nth = walk_on(audit, &audit->where_written, audit->written->len, &window);
    const VmfAuditedChunk *at = &g_array_index(audit->written, VmfAuditedChunk, nth);

    return (Place){at->block, at->chunk, window};
}

/* A place that was sent with content. False: none was found among some hundred. */
static bool choose_place(VmfLogAudit *audit, const VmfAuditBlock *blocks, uint64_t n_chunks, bool written, Place *place)
{
    for (unsigned i = 0; i < TRIES; i++) {
        *place = written ? choose_written(audit) : choose_anywhere(audit, blocks, n_chunks);
        if (vmf_digest_table_chunk_sum(blocks[place->block].digests, place->chunk) != 0)
            return true;
    }
    return false;
}

/* Of more than WRITTEN_MAX each has the same chance to be kept. */
static void note_chunk(VmfLogAudit *audit, VmfAuditedChunk at)
{
    uint64_t instead = audit->n_written++;

    if (audit->written->len < WRITTEN_MAX) {
        g_array_append_val(audit->written, at);
        return;
    }
    instead = random_below(audit, instead + 1);
    if (instead < WRITTEN_MAX)
        g_array_index(audit->written, VmfAuditedChunk, instead) = at;
}

void vmf_log_audit_note_written(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks)
{
    for (unsigned b = 0; b < n_blocks; b++) {
        if (audit->seen->len <= b)
            g_ptr_array_add(audit->seen, g_try_malloc0(vmf_ram_block_n_chunks(blocks[b].block) / 8 + 1));
        uint8_t *seen = g_ptr_array_index(audit->seen, b);
        for (uint64_t chunk = 0; seen && vmf_dirty_bitmap_next_chunk(pending[b], chunk, &chunk); chunk++) {
            if (seen[chunk / 8] >> chunk % 8 & 1)
                continue;
            seen[chunk / 8] |= (uint8_t)(1u << chunk % 8);
            note_chunk(audit, (VmfAuditedChunk){b, chunk});
        }
    }
}

/* ---- looking --------------------------------------------------------------------------------------------------------------- */

/* Which of the 64 pages at @memory have memory of their own. One that is swapped out has not: it is not worth being read back. */
static uint64_t pages_with_memory(int pagemap, const void *memory, unsigned n_pages)
{
    struct pm_region regions[WINDOW_PAGES / 2];
    uint64_t base = (uintptr_t)memory, found = 0;
    struct pm_arg arg = {
        .size = sizeof(arg),
        .start = base,
        .end = base + n_pages * (uint64_t)VMF_PAGE_SIZE,
        .vec = (uintptr_t)regions,
        .vec_len = G_N_ELEMENTS(regions),
        .category_inverted = PM_CATEGORY_ZERO_PAGE,
        .category_mask = PM_CATEGORY_ZERO_PAGE | PM_CATEGORY_PRESENT,
        .return_mask = PM_CATEGORY_PRESENT,
    };
    int n_regions = pagemap >= 0 ? ioctl(pagemap, PM_IOC_SCAN, &arg) : 0;

    for (int i = 0; i < n_regions; i++)
        for (uint64_t at = regions[i].start; at < regions[i].end; at += VMF_PAGE_SIZE)
            found |= UINT64_C(1) << (at - base) / VMF_PAGE_SIZE;
    return found;
}

/* Pages of the window that are in no log: those that were sent with content, and zeros that have memory. */
static uint64_t pages_to_hash(const VmfLogAudit *audit, const VmfAuditBlock *own, uint64_t dirty, uint64_t first, unsigned n_pages)
{
    uint64_t sent = 0, clean = ~dirty & (n_pages < WINDOW_PAGES ? (UINT64_C(1) << n_pages) - 1 : UINT64_MAX);

    for (unsigned i = 0; i < n_pages; i++)
        sent |= (uint64_t)(vmf_digest_table_get(own->digests, first + i) != 0) << i;
    if (clean & ~sent)
        sent |= pages_with_memory(audit->pagemap, vmf_ram_block_page(own->block, first), n_pages);
    return clean & sent;
}

static void look_at_window(VmfLogAudit *audit, const VmfAuditBlock *own, VmfDirtyBitmap *pending, Place place,
                           const VmfPageScan *scan)
{
    uint64_t first, digests[WINDOW_PAGES];
    unsigned n_pages = vmf_ram_block_chunk_pages(own->block, place.chunk, &first);
    unsigned begin = place.window * WINDOW_PAGES;
    VmfPageSet dirty;

    if (begin >= n_pages)
        return;
    first += begin;
    n_pages = MIN(n_pages - begin, WINDOW_PAGES);
    vmf_dirty_bitmap_peek_chunk(pending, place.chunk, &dirty);
    uint64_t wanted = pages_to_hash(audit, own, dirty.words[place.window], first, n_pages);
    audit->pages_looked_at += (unsigned)__builtin_popcountll(wanted);
    vmf_page_scan_digests(scan, vmf_ram_block_page(own->block, first), VMF_PAGE_SIZE, n_pages, &wanted, digests);
    for (uint64_t left = wanted; left; left &= left - 1) {
        VmfAuditedPage at = {place.block, first + (unsigned)__builtin_ctzll(left)};
        if (digests[at.page - first] != vmf_digest_table_get(own->digests, at.page))
            g_array_append_val(audit->different, at);
    }
}

static uint64_t cpu_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * VMF_NS_PER_S + (uint64_t)now.tv_nsec;
}

/* By the clock on the wall: who does not get the processor looks at less, and the guest does not wait longer for it. */
static void look_for(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                     const VmfPageScan *scan, int64_t budget_ns)
{
    uint64_t n_chunks = count_chunks(blocks, n_blocks), since_found = 0, cpu_began_ns = cpu_now_ns();
    int64_t now_ns = vmf_now_ns(), end_ns = now_ns + audit->credit_ns + budget_ns;
    Place place;

    g_array_set_size(audit->different, 0);
    for (; now_ns < end_ns && since_found < n_chunks; now_ns = vmf_now_ns()) {
        bool written = audit->turns++ % 2 && audit->written->len > 0;
        bool found = choose_place(audit, blocks, n_chunks, written, &place);
        if (found)
            look_at_window(audit, &blocks[place.block], pending[place.block], place, scan);
        since_found = found ? 0 : since_found + TRIES;
    }
    audit->credit_ns = MIN(end_ns - now_ns, 0); /* what there was nothing for is not saved up */
    audit->cpu_ns += cpu_now_ns() - cpu_began_ns;
}

void vmf_log_audit_look(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                        const VmfPageScan *scan, uint64_t budget_ns)
{
    uint64_t room_ns = audit->looked_last ? 0 : SAVED_MAX_NS - audit->saved_ns;
    uint64_t saved_ns = MIN(budget_ns / 2, room_ns);

    audit->saved_ns += saved_ns;
    look_for(audit, blocks, pending, n_blocks, scan, (int64_t)(budget_ns - saved_ns));
}

bool vmf_log_audit_wants_last_look(const VmfLogAudit *audit)
{
    return !audit->looked_last && audit->saved_ns >= LAST_LOOK_NS;
}

void vmf_log_audit_last_look(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                             const VmfPageScan *scan)
{
    audit->looked_last = true;
    look_for(audit, blocks, pending, n_blocks, scan, (int64_t)audit->saved_ns);
    audit->saved_ns = 0;
}

bool vmf_log_audit_unexplained(const VmfLogAudit *audit, VmfDirtyBitmap *const *pending, VmfAuditedPage *page)
{
    for (guint i = 0; i < audit->different->len; i++) {
        *page = g_array_index(audit->different, VmfAuditedPage, i);
        if (!vmf_dirty_bitmap_test(pending[page->block], page->page))
            return true;
    }
    return false;
}
