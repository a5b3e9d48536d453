/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dirty bitmap of one RAM block: which pages are still to be sent. One bit a page, and a summary of one bit a
 * chunk, so that a sparse terabyte costs what is dirty, in memory and in time. Every call may come from several threads
 * at once.
 */
#ifndef RAM_BITMAP_H
#define RAM_BITMAP_H

#include "ram/page-set.h"

typedef struct VmfDirtyBitmap VmfDirtyBitmap;

/* All clean. NULL with VMF_ERROR_MEMORY. */
VmfDirtyBitmap *vmf_dirty_bitmap_new(uint64_t n_pages, GError **error);
void vmf_dirty_bitmap_free(VmfDirtyBitmap *bitmap);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfDirtyBitmap, vmf_dirty_bitmap_free)

uint64_t vmf_dirty_bitmap_n_pages(const VmfDirtyBitmap *bitmap);

/* Adds the bits of @words; bit n of words[w] is page (first_word + w) * 64 + n. Bits past the last page are ignored. */
void vmf_dirty_bitmap_or_words(VmfDirtyBitmap *bitmap, uint64_t first_word, const uint64_t *words, size_t n_words);
/* Adds pages [first_page, first_page + n_pages), as far as they exist. */
void vmf_dirty_bitmap_set_range(VmfDirtyBitmap *bitmap, uint64_t first_page, uint64_t n_pages);

/*
 * Takes the bits of words [first_word, first_word + n_words) out of the bitmap, each bit by exactly one caller, and
 * returns how many there were. Taking a whole chunk (8 words from a multiple of 8) also tells the summary; taking less
 * leaves the chunk to be looked at again by vmf_dirty_bitmap_next_chunk(), which costs time only.
 */
unsigned vmf_dirty_bitmap_take(VmfDirtyBitmap *bitmap, uint64_t first_word, size_t n_words, uint64_t *out);
/* The whole of @chunk. */
unsigned vmf_dirty_bitmap_take_chunk(VmfDirtyBitmap *bitmap, uint64_t chunk, VmfPageSet *out);
/* The same without taking. */
unsigned vmf_dirty_bitmap_peek_chunk(const VmfDirtyBitmap *bitmap, uint64_t chunk, VmfPageSet *out);
bool vmf_dirty_bitmap_test(const VmfDirtyBitmap *bitmap, uint64_t page);

/*
 * The first chunk at or after @from that has a dirty page: true and *chunk, or false. Every bit whose setter has
 * returned, and that nobody has begun to take, is seen.
 */
bool vmf_dirty_bitmap_next_chunk(const VmfDirtyBitmap *bitmap, uint64_t from, uint64_t *chunk);

/* Dirty pages. Exact when no other call is under way, otherwise off by what those calls change. */
uint64_t vmf_dirty_bitmap_count(const VmfDirtyBitmap *bitmap);

#endif
