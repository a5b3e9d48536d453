/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A set of pages of one 2 MiB chunk: 512 bits, bit n of word w stands for page w * 64 + n of the chunk. Small enough to
 * live on the stack and to be copied.
 */
#ifndef RAM_PAGE_SET_H
#define RAM_PAGE_SET_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <vmferry/ram.h>

#define VMF_PAGE_SIZE 4096u                              /* bytes: the unit of dirty tracking and of digests */
#define VMF_CHUNK_PAGES (VMF_CHUNK_SIZE / VMF_PAGE_SIZE) /* 512 */
#define VMF_CHUNK_WORDS (VMF_CHUNK_PAGES / 64)           /* 8 */

typedef struct {
    uint64_t words[VMF_CHUNK_WORDS];
} VmfPageSet;

static inline void vmf_page_set_clear(VmfPageSet *set)
{
    memset(set, 0, sizeof(*set));
}

static inline bool vmf_page_set_test(const VmfPageSet *set, unsigned page)
{
    return set->words[page / 64] >> (page % 64) & 1;
}

static inline void vmf_page_set_add(VmfPageSet *set, unsigned page)
{
    set->words[page / 64] |= UINT64_C(1) << (page % 64);
}

static inline bool vmf_page_set_is_empty(const VmfPageSet *set)
{
    uint64_t any = 0;
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        any |= set->words[w];
    return any == 0;
}

static inline unsigned vmf_page_set_count(const VmfPageSet *set)
{
    unsigned count = 0;
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        count += __builtin_popcountll(set->words[w]);
    return count;
}

/* The bits of word @word that belong to pages [first, end). */
uint64_t vmf_page_word_mask(uint64_t word, uint64_t first, uint64_t end);

/* Adds pages [first, first + n_pages); the range lies in the chunk. */
void vmf_page_set_add_range(VmfPageSet *set, unsigned first, unsigned n_pages);
/* What of @set lies in [first, first + n_pages). */
VmfPageSet vmf_page_set_slice(const VmfPageSet *set, unsigned first, unsigned n_pages);
VmfPageSet vmf_page_set_or(const VmfPageSet *a, const VmfPageSet *b);
VmfPageSet vmf_page_set_and(const VmfPageSet *a, const VmfPageSet *b);
VmfPageSet vmf_page_set_and_not(const VmfPageSet *a, const VmfPageSet *b);

/*
 * The first run of adjacent pages of @set at or after @from: true and [*first, *first + *n_pages), or false when there
 * is none. Walk all runs by going on from *first + *n_pages.
 */
bool vmf_page_set_next_run(const VmfPageSet *set, unsigned from, unsigned *first, unsigned *n_pages);

/*
 * The end of the shortest piece [from, end) of the chunk that holds @max_pages pages of @set, or VMF_CHUNK_PAGES when
 * there are not so many: cuts a chunk into records of at most @max_pages pages.
 */
unsigned vmf_page_set_cut(const VmfPageSet *set, unsigned from, unsigned max_pages);

#endif
