/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Two levels: a word for 64 pages, and a summary bit for each chunk of 8 words. Neither costs memory where a huge
 * block was always clean, and single dirty pages cost little more than their words.
 *
 * The one invariant: a bit that is set, whose setter has returned and that nobody is taking, has its summary bit set.
 * The opposite (a summary bit over a clean chunk) is allowed. It holds because a setter changes the word first and the
 * summary second, while a taker of the chunk clears the summary first and takes the words second: a setter whose
 * summary bit is wiped by that clear had changed its word before the taker reads it. All of these are sequentially
 * consistent, for the setter also *reads* the summary (and leaves out the write when the bit is there), which weaker
 * orders would allow to run ahead of its change to the word.
 *
 * Taking part of a chunk does not touch the summary: clearing it and setting it again when something is left would hide
 * that rest from a scan in between.
 */
#include "ram/bitmap.h"

#include <stdatomic.h>

#include "ram/sparse-array.h"
#include "ram/sparse-words.h"

struct VmfDirtyBitmap {
    uint64_t n_pages;
    uint64_t n_words;
    uint64_t n_chunks;
    uint64_t n_summary_words;
    VmfSparseWords *words;
    _Atomic uint64_t *summary;
    _Atomic int64_t count; /* below zero for a moment when a taker overtakes the setter's addition */
};

VmfDirtyBitmap *vmf_dirty_bitmap_new(uint64_t n_pages, GError **error)
{
    g_autoptr(VmfDirtyBitmap) bitmap = g_new0(VmfDirtyBitmap, 1);

    bitmap->n_pages = n_pages;
    bitmap->n_chunks = n_pages / VMF_CHUNK_PAGES + (n_pages % VMF_CHUNK_PAGES != 0);
    bitmap->n_words = bitmap->n_chunks * VMF_CHUNK_WORDS; /* whole chunks, so that none needs a case of its own */
    bitmap->n_summary_words = bitmap->n_chunks / 64 + (bitmap->n_chunks % 64 != 0);
    bitmap->words = vmf_sparse_words_new(bitmap->n_words, "dirty bitmap", error);
    if (!bitmap->words)
        return NULL;
    bitmap->summary = vmf_sparse_array_new(bitmap->n_summary_words, sizeof(uint64_t), "dirty bitmap", error);
    if (!bitmap->summary)
        return NULL;
    return g_steal_pointer(&bitmap);
}

void vmf_dirty_bitmap_free(VmfDirtyBitmap *bitmap)
{
    if (!bitmap)
        return;
    vmf_sparse_words_free(bitmap->words);
    vmf_sparse_array_free((void *)bitmap->summary, bitmap->n_summary_words, sizeof(uint64_t));
    g_free(bitmap);
}

uint64_t vmf_dirty_bitmap_n_pages(const VmfDirtyBitmap *bitmap)
{
    return bitmap->n_pages;
}

/* Sets @bits of @word and the summary over it; returns how many were new. */
static unsigned or_word(VmfDirtyBitmap *bitmap, uint64_t word, uint64_t bits)
{
    uint64_t chunk = word / VMF_CHUNK_WORDS;
    uint64_t summary_bit = UINT64_C(1) << (chunk % 64);
    _Atomic uint64_t *summary = &bitmap->summary[chunk / 64];
    uint64_t old = vmf_sparse_words_or(bitmap->words, word, bits);

    if (!(atomic_load(summary) & summary_bit))
        atomic_fetch_or(summary, summary_bit);
    return __builtin_popcountll(bits & ~old);
}

void vmf_dirty_bitmap_or_words(VmfDirtyBitmap *bitmap, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    int64_t added = 0;

    for (size_t i = 0; i < n_words && first_word + i < bitmap->n_words; i++) {
        if (words[i] == 0)
            continue;
        uint64_t bits = words[i] & vmf_page_word_mask(first_word + i, 0, bitmap->n_pages);
        if (bits)
            added += or_word(bitmap, first_word + i, bits);
    }
    if (added)
        atomic_fetch_add_explicit(&bitmap->count, added, memory_order_relaxed);
}

void vmf_dirty_bitmap_set_range(VmfDirtyBitmap *bitmap, uint64_t first_page, uint64_t n_pages)
{
    if (first_page >= bitmap->n_pages || n_pages == 0)
        return;
    uint64_t end = first_page + MIN(n_pages, bitmap->n_pages - first_page);
    int64_t added = 0;
    for (uint64_t word = first_page / 64; word * 64 < end; word++)
        added += or_word(bitmap, word, vmf_page_word_mask(word, first_page, end));
    atomic_fetch_add_explicit(&bitmap->count, added, memory_order_relaxed);
}

unsigned vmf_dirty_bitmap_take(VmfDirtyBitmap *bitmap, uint64_t first_word, size_t n_words, uint64_t *out)
{
    unsigned taken = 0;

    for (size_t i = 0; i < n_words; i++) {
        uint64_t word = first_word + i;
        out[i] = 0;
        if (word >= bitmap->n_words)
            continue;
        if (word % VMF_CHUNK_WORDS == 0 && n_words - i >= VMF_CHUNK_WORDS) {
            uint64_t chunk = word / VMF_CHUNK_WORDS;
            _Atomic uint64_t *summary = &bitmap->summary[chunk / 64];
            if (atomic_load(summary) >> (chunk % 64) & 1)
                atomic_fetch_and(summary, ~(UINT64_C(1) << (chunk % 64)));
        }
        out[i] = vmf_sparse_words_take(bitmap->words, word);
        taken += __builtin_popcountll(out[i]);
    }
    if (taken)
        atomic_fetch_sub_explicit(&bitmap->count, taken, memory_order_relaxed);
    return taken;
}

unsigned vmf_dirty_bitmap_take_chunk(VmfDirtyBitmap *bitmap, uint64_t chunk, VmfPageSet *out)
{
    return vmf_dirty_bitmap_take(bitmap, chunk * VMF_CHUNK_WORDS, VMF_CHUNK_WORDS, out->words);
}

unsigned vmf_dirty_bitmap_peek_chunk(const VmfDirtyBitmap *bitmap, uint64_t chunk, VmfPageSet *out)
{
    vmf_page_set_clear(out);
    for (unsigned w = 0; chunk < bitmap->n_chunks && w < VMF_CHUNK_WORDS; w++)
        out->words[w] = vmf_sparse_words_get(bitmap->words, chunk * VMF_CHUNK_WORDS + w);
    return vmf_page_set_count(out);
}

bool vmf_dirty_bitmap_test(const VmfDirtyBitmap *bitmap, uint64_t page)
{
    return page < bitmap->n_pages && (vmf_sparse_words_get(bitmap->words, page / 64) >> (page % 64) & 1);
}

static bool chunk_is_dirty(const VmfDirtyBitmap *bitmap, uint64_t chunk)
{
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        if (vmf_sparse_words_get(bitmap->words, chunk * VMF_CHUNK_WORDS + w))
            return true;
    }
    return false;
}

bool vmf_dirty_bitmap_next_chunk(const VmfDirtyBitmap *bitmap, uint64_t from, uint64_t *chunk)
{
    uint64_t mask = ~UINT64_C(0) << (from % 64);

    for (uint64_t s = from / 64; s < bitmap->n_summary_words; s++, mask = ~UINT64_C(0)) {
        for (uint64_t bits = atomic_load(&bitmap->summary[s]) & mask; bits; bits &= bits - 1) {
            *chunk = s * 64 + __builtin_ctzll(bits);
            if (chunk_is_dirty(bitmap, *chunk))
                return true;
        }
    }
    return false;
}

uint64_t vmf_dirty_bitmap_count(const VmfDirtyBitmap *bitmap)
{
    int64_t count = atomic_load_explicit(&bitmap->count, memory_order_relaxed);
    return MAX(count, 0);
}
