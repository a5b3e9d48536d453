/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * Pages are placed by UFFDIO_COPY from a buffer: the kernel allocates a page, fills it and maps it in one step, or says
 * that there is one. So a page comes to be whole or not at all, readers of one page may race and the second loses, and
 * what the guest has written since is never overwritten. No claims, no waiting for each other: a fault that is served
 * while the background has the same page on its way does not wait for it.
 *
 * For files in memory (memfd, hugetlb) the kernel has another way: a second mapping, filled by whoever likes, and
 * UFFDIO_CONTINUE, which maps what is in the file. Measured here it is several times slower, since the second mapping
 * takes a fault for each page (4 KiB pages from the page cache in pieces of 256 KiB: 0.77 GB/s by copying, 0.07 by
 * mapping); and it needs a claim for each page, as a late writer would overwrite the guest's own writes.
 *
 * A bit a page says what was placed. It is set after the page is there; so a page without the bit may be there, and
 * placing it again does nothing.
 *
 * Holes. Registering costs the same for a page and for a terabyte, but a touch of what is registered costs a round trip
 * through the server, hole or not. So stretches of at least GAP_CHUNKS chunks without data are left out: there memory
 * is as it always was. Shorter ones are registered with what is around them, which bounds the number of mappings (the
 * kernel makes one of each piece) to a thousand for 64 GiB.
 *
 * Inaccessible means mprotect(PROT_NONE): it holds for every kind of memory and for the kernel's accesses, on every
 * kernel, and it comes ahead of waking: a thread that waited tries its access again and meets the new protection,
 * never the zeros that the kernel would provide once nobody watches.
 */
#include "ram/lazy-ram.h"

#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/sparse-array.h"

#define GAP_CHUNKS 32u

typedef struct {
    VmfRamBlock *block;
    uint64_t n_words;
    _Atomic uint64_t *placed;
    uint64_t *watched; /* NULL: none */
} Lazy;

typedef struct {
    unsigned block;
    uint64_t first_chunk, end_chunk;
} Range;

struct VmfLazyRam {
    int fd;
    VmfUffdScope scope;
    unsigned n_blocks;
    Lazy *blocks;
    GArray *ranges; /* registered */
    uint8_t *zeros; /* a chunk, never written: all of it is the kernel's one page of zeros */
    bool ended;
    uint64_t n_watched;
    _Atomic uint64_t n_watched_absent;
};

/* ---- what is registered ------------------------------------------------------------------------------------------ */

static uint8_t *range_start(const VmfLazyRam *ram, const Range *range)
{
    return vmf_ram_block_page(ram->blocks[range->block].block, range->first_chunk * VMF_CHUNK_PAGES);
}

static size_t range_length(const VmfLazyRam *ram, const Range *range)
{
    uint64_t end = MIN(range->end_chunk * VMF_CHUNK_SIZE, vmf_ram_block_size(ram->blocks[range->block].block));

    return end - range->first_chunk * VMF_CHUNK_SIZE;
}

static bool add_range(VmfLazyRam *ram, const Range *range, GError **error)
{
    if (range->end_chunk == 0)
        return true;
    if (vmf_uffd_register(ram->fd, range_start(ram, range), range_length(ram, range), UFFDIO_REGISTER_MODE_MISSING)) {
        g_array_append_val(ram->ranges, *range);
        return true;
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "RAM block '%s': watch for missing pages: %s",
                vmf_ram_block_name(ram->blocks[range->block].block), g_strerror(errno));
    return false;
}

static bool register_block(VmfLazyRam *ram, unsigned block, const VmfPageReaderOps *ops, void *source, GError **error)
{
    uint64_t n_chunks = vmf_ram_block_n_chunks(ram->blocks[block].block);
    Range range = {block, 0, 0};

    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        if (!ops->may_have_data(source, block, chunk))
            continue;
        if (range.end_chunk == 0 || chunk - range.end_chunk >= GAP_CHUNKS) {
            if (!add_range(ram, &range, error))
                return false;
            range.first_chunk = chunk;
        }
        range.end_chunk = chunk + 1;
    }
    return add_range(ram, &range, error);
}

static bool add_block(VmfLazyRam *ram, unsigned index, VmfRamBlock *block, GError **error)
{
    Lazy *own = &ram->blocks[index];

    own->block = block;
    own->n_words = vmf_ram_block_n_chunks(block) * VMF_CHUNK_WORDS;
    own->placed = vmf_sparse_array_new(own->n_words, sizeof(uint64_t), "placed pages", error);
    if (!own->placed)
        return false;
    /* What lies behind the end is nothing that anybody has to bring. */
    for (uint64_t word = vmf_ram_block_n_pages(block) / 64; word < own->n_words; word++)
        own->placed[word] = ~vmf_page_word_mask(word, 0, vmf_ram_block_n_pages(block));
    return true;
}

VmfLazyRam *vmf_lazy_ram_new(VmfRamBlock *const *blocks, unsigned n_blocks, const VmfPageReaderOps *ops, void *source,
                             GError **error)
{
    g_autoptr(VmfLazyRam) ram = g_new0(VmfLazyRam, 1);

    ram->ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    ram->blocks = g_new0(Lazy, n_blocks);
    ram->n_blocks = n_blocks;
    ram->zeros = vmf_sparse_array_new(VMF_CHUNK_PAGES, VMF_PAGE_SIZE, "zeros", error);
    ram->fd = ram->zeros ? vmf_uffd_open(0, &ram->scope, error) : -1;
    if (ram->fd < 0)
        return NULL;
    for (unsigned b = 0; b < n_blocks; b++) {
        if (!add_block(ram, b, blocks[b], error) || !register_block(ram, b, ops, source, error)) {
            vmf_lazy_ram_end(ram); /* the caller has not begun to use it */
            return NULL;
        }
    }
    return g_steal_pointer(&ram);
}

/* ---- the end ------------------------------------------------------------------------------------------------------
 */

void vmf_lazy_ram_end(VmfLazyRam *ram)
{
    for (unsigned i = 0; i < ram->ranges->len; i++) {
        const Range *range = &g_array_index(ram->ranges, Range, i);
        vmf_uffd_unregister(ram->fd, range_start(ram, range), range_length(ram, range));
    }
    ram->ended = true;
}

static void forbid_all(VmfLazyRam *ram)
{
    for (unsigned i = 0; i < ram->ranges->len; i++) {
        const Range *range = &g_array_index(ram->ranges, Range, i);
        vmf_ram_block_forbid(ram->blocks[range->block].block, range->first_chunk * VMF_CHUNK_SIZE,
                             range_length(ram, range));
    }
}

void vmf_lazy_ram_free(VmfLazyRam *ram)
{
    if (!ram)
        return;
    if (!ram->ended) {
        forbid_all(ram);
        vmf_lazy_ram_end(ram);
    }
    if (ram->fd >= 0)
        close(ram->fd);
    for (unsigned b = 0; b < ram->n_blocks; b++) {
        vmf_sparse_array_free((void *)ram->blocks[b].placed, ram->blocks[b].n_words, sizeof(uint64_t));
        vmf_sparse_array_free(ram->blocks[b].watched, ram->blocks[b].n_words, sizeof(uint64_t));
    }
    vmf_sparse_array_free(ram->zeros, VMF_CHUNK_PAGES, VMF_PAGE_SIZE);
    g_array_unref(ram->ranges);
    g_free(ram->blocks);
    g_free(ram);
}

void vmf_lazy_ram_forbid(VmfLazyRam *ram, unsigned block, uint64_t page)
{
    VmfRamBlock *own = ram->blocks[block].block;
    uint64_t unit = vmf_ram_block_host_page_size(own), offset = page * VMF_PAGE_SIZE / unit * unit;

    vmf_ram_block_forbid(own, offset, unit);
    vmf_uffd_wake(ram->fd, (uint8_t *)vmf_ram_block_host(own) + offset, unit);
}

/* ---- looking ------------------------------------------------------------------------------------------------------
 */

int vmf_lazy_ram_fd(const VmfLazyRam *ram)
{
    return ram->fd;
}

VmfUffdScope vmf_lazy_ram_scope(const VmfLazyRam *ram)
{
    return ram->scope;
}

unsigned vmf_lazy_ram_n_blocks(const VmfLazyRam *ram)
{
    return ram->n_blocks;
}

VmfRamBlock *vmf_lazy_ram_block(const VmfLazyRam *ram, unsigned block)
{
    return ram->blocks[block].block;
}

bool vmf_lazy_ram_find(const VmfLazyRam *ram, uint64_t address, unsigned *block, uint64_t *page)
{
    for (*block = 0; *block < ram->n_blocks; ++*block) {
        uint64_t base = (uintptr_t)vmf_ram_block_host(ram->blocks[*block].block);

        *page = (address - base) / VMF_PAGE_SIZE;
        if (address - base < vmf_ram_block_size(ram->blocks[*block].block))
            return true;
    }
    return false;
}

bool vmf_lazy_ram_is_huge(const VmfLazyRam *ram, unsigned block)
{
    return vmf_ram_block_host_page_size(ram->blocks[block].block) > VMF_PAGE_SIZE;
}

bool vmf_lazy_ram_zeros_cost(const VmfLazyRam *ram, unsigned block)
{
    return vmf_ram_block_backend(ram->blocks[block].block) != VMF_RAM_ANON;
}

VmfPageSet vmf_lazy_ram_absent(const VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages)
{
    const _Atomic uint64_t *placed = &ram->blocks[block].placed[chunk * VMF_CHUNK_WORDS];
    VmfPageSet absent;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        absent.words[w] = pages->words[w] & ~atomic_load_explicit(&placed[w], memory_order_acquire);
    return absent;
}

void vmf_lazy_ram_wake(VmfLazyRam *ram, unsigned block, uint64_t page)
{
    VmfRamBlock *own = ram->blocks[block].block;
    uint64_t unit = vmf_ram_block_host_page_size(own);

    vmf_uffd_wake(ram->fd, (uint8_t *)vmf_ram_block_host(own) + page * VMF_PAGE_SIZE / unit * unit, unit);
}

/* ---- placing ------------------------------------------------------------------------------------------------------
 */

static void note(VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages)
{
    const Lazy *own = &ram->blocks[block];
    uint64_t arrived = 0;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        uint64_t word = chunk * VMF_CHUNK_WORDS + w;
        if (!pages->words[w])
            continue;
        uint64_t before = atomic_fetch_or_explicit(&own->placed[word], pages->words[w], memory_order_release);
        if (own->watched)
            arrived += (unsigned)__builtin_popcountll(pages->words[w] & ~before & own->watched[word]);
    }
    if (arrived)
        atomic_fetch_sub_explicit(&ram->n_watched_absent, arrived, memory_order_relaxed);
}

/* One try to place @length bytes at @at, of zeros where @content is NULL. */
static ssize_t place_some(VmfLazyRam *ram, uint8_t *at, const uint8_t *content, size_t length, bool huge)
{
    if (!content && !huge)
        return vmf_uffd_zero(ram->fd, at, length);
    return vmf_uffd_copy(ram->fd, at, content ? content : ram->zeros, length);
}

/* Returns how many pages were placed; what is there is passed over. */
static int place_run(VmfLazyRam *ram, unsigned block, uint64_t first_page, unsigned n_pages, const uint8_t *content,
                     GError **error)
{
    VmfRamBlock *own = ram->blocks[block].block;
    uint8_t *at = vmf_ram_block_page(own, first_page);
    size_t unit = vmf_ram_block_host_page_size(own), length = (size_t)n_pages * VMF_PAGE_SIZE, placed = 0;

    for (size_t done = 0; done < length;) {
        const uint8_t *from = content ? content + done : NULL;
        ssize_t n = place_some(ram, at + done, from, length - done, unit > VMF_PAGE_SIZE);
        /* The end was faster, and all is there; or a page among these was forbidden, and is a mapping of its own. */
        if (n < 0 && errno == ENOENT && length - done > unit)
            n = place_some(ram, at + done, from, unit, unit > VMF_PAGE_SIZE);
        if (n < 0 && errno != ENOENT) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "RAM block '%s': page %" G_GUINT64_FORMAT ": place: %s",
                        vmf_ram_block_name(own), first_page + done / VMF_PAGE_SIZE, g_strerror(errno));
            return -1;
        }
        placed += (size_t)MAX(n, 0);
        done += (size_t)MAX(n, (ssize_t)unit);
    }
    return (int)(placed / VMF_PAGE_SIZE);
}

static int place(VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages, const uint8_t *memory,
                 GError **error)
{
    unsigned first, n_pages;
    int placed = 0;

    for (unsigned from = 0; vmf_page_set_next_run(pages, from, &first, &n_pages); from = first + n_pages) {
        const uint8_t *content = memory ? memory + (size_t)first * VMF_PAGE_SIZE : NULL;
        int n = place_run(ram, block, chunk * VMF_CHUNK_PAGES + first, n_pages, content, error);
        if (n < 0)
            return -1;
        placed += n;
    }
    note(ram, block, chunk, pages);
    return placed;
}

int vmf_lazy_ram_place(VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages, const void *memory,
                       GError **error)
{
    return place(ram, block, chunk, pages, memory, error);
}

int vmf_lazy_ram_place_zeros(VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages, GError **error)
{
    return place(ram, block, chunk, pages, NULL, error);
}

/* ---- counting -----------------------------------------------------------------------------------------------------
 */

bool vmf_lazy_ram_watch(VmfLazyRam *ram, unsigned block, uint64_t page)
{
    Lazy *own = &ram->blocks[block];
    uint64_t bit = UINT64_C(1) << (page % 64);

    if (!own->watched)
        own->watched = vmf_sparse_array_new(own->n_words, sizeof(uint64_t), "pages of the order", NULL);
    if (!own->watched)
        return false;
    if (!(own->watched[page / 64] & bit)) {
        own->watched[page / 64] |= bit;
        ram->n_watched++;
        atomic_fetch_add_explicit(&ram->n_watched_absent, 1, memory_order_relaxed);
    }
    return true;
}

uint64_t vmf_lazy_ram_n_watched(const VmfLazyRam *ram)
{
    return ram->n_watched;
}

uint64_t vmf_lazy_ram_n_watched_absent(const VmfLazyRam *ram)
{
    return atomic_load_explicit(&ram->n_watched_absent, memory_order_relaxed);
}
