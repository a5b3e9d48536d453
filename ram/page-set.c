/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/page-set.h"

uint64_t vmf_page_word_mask(uint64_t word, uint64_t first, uint64_t end)
{
    uint64_t lowest = word * 64;

    if (end <= lowest || first >= lowest + 64 || first >= end)
        return 0;
    uint64_t mask = ~UINT64_C(0);
    if (first > lowest)
        mask &= ~UINT64_C(0) << (first - lowest);
    if (end < lowest + 64)
        mask &= ~(~UINT64_C(0) << (end - lowest));
    return mask;
}

void vmf_page_set_add_range(VmfPageSet *set, unsigned first, unsigned n_pages)
{
    for (unsigned w = first / 64; w < VMF_CHUNK_WORDS && w * 64 < first + n_pages; w++)
        set->words[w] |= vmf_page_word_mask(w, first, first + n_pages);
}

VmfPageSet vmf_page_set_slice(const VmfPageSet *set, unsigned first, unsigned n_pages)
{
    VmfPageSet slice;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        slice.words[w] = set->words[w] & vmf_page_word_mask(w, first, first + n_pages);
    return slice;
}

VmfPageSet vmf_page_set_or(const VmfPageSet *a, const VmfPageSet *b)
{
    VmfPageSet result;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        result.words[w] = a->words[w] | b->words[w];
    return result;
}

VmfPageSet vmf_page_set_and(const VmfPageSet *a, const VmfPageSet *b)
{
    VmfPageSet result;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        result.words[w] = a->words[w] & b->words[w];
    return result;
}

VmfPageSet vmf_page_set_and_not(const VmfPageSet *a, const VmfPageSet *b)
{
    VmfPageSet result;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        result.words[w] = a->words[w] & ~b->words[w];
    return result;
}

/* The first page at or after @from whose bit equals @value, or VMF_CHUNK_PAGES. */
static unsigned next_page(const VmfPageSet *set, unsigned from, bool value)
{
    if (from >= VMF_CHUNK_PAGES)
        return VMF_CHUNK_PAGES;
    uint64_t mask = ~UINT64_C(0) << (from % 64);
    for (unsigned w = from / 64; w < VMF_CHUNK_WORDS; w++, mask = ~UINT64_C(0)) {
        uint64_t bits = (value ? set->words[w] : ~set->words[w]) & mask;
        if (bits)
            return w * 64 + __builtin_ctzll(bits);
    }
    return VMF_CHUNK_PAGES;
}

bool vmf_page_set_next_run(const VmfPageSet *set, unsigned from, unsigned *first, unsigned *n_pages)
{
    *first = next_page(set, from, true);
    *n_pages = 0;
    if (*first == VMF_CHUNK_PAGES)
        return false;
    *n_pages = next_page(set, *first, false) - *first;
    return true;
}

unsigned vmf_page_set_cut(const VmfPageSet *set, unsigned from, unsigned max_pages)
{
    unsigned first, n_pages, left = max_pages;

    for (unsigned page = from; vmf_page_set_next_run(set, page, &first, &n_pages); page = first + n_pages) {
        if (n_pages >= left)
            return first + left;
        left -= n_pages;
    }
    return VMF_CHUNK_PAGES;
}
