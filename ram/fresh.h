/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fresh memory of a target: pages that nobody has touched are put in place together with their content. That costs half of what a first
 * touch and a copy do. Blocks whose memory may consist of huge pages are left alone: there a first touch brings 2 MiB at once.
 */
#ifndef RAM_FRESH_H
#define RAM_FRESH_H

#include "ram/page-set.h"

typedef struct VmfFresh VmfFresh;

/*
 * Watches those of @blocks, empty now, for which it pays: from here on their pages come to be through vmf_fresh_place() alone, and whoever
 * else touches one meets a page of zeros. NULL where it pays for none or where the host does not permit it (the calls below take NULL):
 * go on with plain writes. The blocks outlive it.
 */
VmfFresh *vmf_fresh_new(VmfRamBlock *const *blocks, unsigned n_blocks);
/* Ends the watch: what was not placed is ordinary untouched memory again. */
void vmf_fresh_free(VmfFresh *fresh);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfFresh, vmf_fresh_free)

/* Whether the memory of @block will consist of small pages alone, as far as the host tells. */
bool vmf_fresh_is_small(const VmfRamBlock *block);

/* Whether block @index is watched. Memory that is may not be populated otherwise. */
bool vmf_fresh_has(const VmfFresh *fresh, unsigned index);
/* The index of @block if it is watched, or -1. */
int vmf_fresh_index(const VmfFresh *fresh, const VmfRamBlock *block);

/* Which of @pages of @chunk were not placed yet: none of a block that is not watched. */
VmfPageSet vmf_fresh_absent(const VmfFresh *fresh, unsigned index, uint64_t chunk, const VmfPageSet *pages);

/*
 * Places pages [first_page, first_page + n_pages) of watched block @index with @content, which is page-aligned memory of the caller's.
 * Any thread, for one page one at a time. VMF_ERROR_MEMORY.
 */
bool vmf_fresh_place(VmfFresh *fresh, unsigned index, uint64_t first_page, unsigned n_pages, const uint8_t *content, GError **error);

/*
 * Places zeros in pages [first_page, first_page + n_pages), all of one chunk, ahead of the content that a receiver will read straight
 * into them. What is there, by whomever, stays. Returns how many were placed, or -1: no memory.
 */
int vmf_fresh_provide(VmfFresh *fresh, unsigned index, uint64_t first_page, unsigned n_pages);

#endif
