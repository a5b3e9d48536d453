/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Setting and taking are sequentially consistent: a bit that is set before a write is submitted is seen by whoever
 * reads what it wrote, and a taker that misses the second bit has read after the write had landed.
 */
#include "block/dirty.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <vmferry/error.h>

struct VmfDiskDirty {
    uint64_t n_granules;
    uint64_t n_words;
    _Atomic uint64_t *words;
};

VmfDiskDirty *vmf_disk_dirty_new(uint64_t size_bytes, GError **error)
{
    uint64_t n_granules = size_bytes / VMF_DISK_GRANULE_BYTES + (size_bytes % VMF_DISK_GRANULE_BYTES != 0);
    uint64_t n_words = n_granules / 64 + 1;
    /* Mapped: what of a large disk is never written costs nothing. */
    void *words = mmap(NULL, n_words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (words == MAP_FAILED) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "dirty bitmap: %" G_GUINT64_FORMAT " bytes: out of memory",
                    n_words * 8);
        return NULL;
    }
    VmfDiskDirty *dirty = g_new0(VmfDiskDirty, 1);
    *dirty = (VmfDiskDirty){n_granules, n_words, words};
    return dirty;
}

void vmf_disk_dirty_free(VmfDiskDirty *dirty)
{
    if (!dirty)
        return;
    munmap((void *)dirty->words, dirty->n_words * 8);
    g_free(dirty);
}

uint64_t vmf_disk_dirty_granules(const VmfDiskDirty *dirty)
{
    return dirty->n_granules;
}

/* Bits [first, end) of the word that @first is in, as far as they are in it. */
static uint64_t mask_of(uint64_t first, uint64_t end)
{
    uint64_t last = MIN(end - 1, first | 63);

    return ~0ull << (first & 63) & ~0ull >> (63 - (last & 63));
}

void vmf_disk_dirty_mark(VmfDiskDirty *dirty, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return;
    uint64_t end = (offset + length - 1) / VMF_DISK_GRANULE_BYTES + 1;

    for (uint64_t granule = offset / VMF_DISK_GRANULE_BYTES; granule < end; granule = (granule | 63) + 1)
        atomic_fetch_or(&dirty->words[granule / 64], mask_of(granule, end));
}

void vmf_disk_dirty_clear(VmfDiskDirty *dirty, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return;
    uint64_t end = (offset + length - 1) / VMF_DISK_GRANULE_BYTES + 1;

    for (uint64_t granule = offset / VMF_DISK_GRANULE_BYTES; granule < end; granule = (granule | 63) + 1)
        atomic_fetch_and(&dirty->words[granule / 64], ~mask_of(granule, end));
}

bool vmf_disk_dirty_is_set(VmfDiskDirty *dirty, uint64_t granule)
{
    return atomic_load(&dirty->words[granule / 64]) >> (granule & 63) & 1;
}

uint64_t vmf_disk_dirty_count(VmfDiskDirty *dirty)
{
    uint64_t n = 0;

    for (uint64_t word = 0; word < dirty->n_words; word++)
        n += (uint64_t)__builtin_popcountll(atomic_load(&dirty->words[word]));
    return n;
}

/* The first set granule at or after @from; n_granules: none. */
static uint64_t find(const VmfDiskDirty *dirty, uint64_t from)
{
    while (from < dirty->n_granules) {
        uint64_t left = atomic_load(&dirty->words[from / 64]) >> (from & 63);

        if (left)
            return from + (uint64_t)__builtin_ctzll(left);
        from = (from | 63) + 1;
    }
    return dirty->n_granules;
}

uint64_t vmf_disk_dirty_take(VmfDiskDirty *dirty, uint64_t from, uint64_t max, uint64_t *first)
{
    uint64_t granule = find(dirty, from), n = 0;

    *first = granule;
    while (n < max && granule + n < dirty->n_granules) {
        uint64_t at = granule + n, bit = 1ull << (at & 63);

        if (!(atomic_fetch_and(&dirty->words[at / 64], ~bit) & bit))
            break;
        n++;
    }
    return n;
}
