/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Populates memory ahead of the data that will be placed in it, on a thread of its own: the first touch of fresh memory
 * is what limits a target. Only a hint: nothing depends on it, and its errors end it silently.
 *
 * Never for what stays zero, and never for ranges that somebody else registered with userfaultfd for missing faults (populating them
 * hangs).
 */
#ifndef RAM_POPULATE_H
#define RAM_POPULATE_H

#include "ram/fresh.h"

typedef struct VmfPopulate VmfPopulate;

/*
 * Starts the thread, which gets what time the others leave. NULL if it cannot: go on without (the calls below take NULL). @fresh, which
 * may be NULL, outlives it: blocks that it watches are populated through it.
 */
VmfPopulate *vmf_populate_new(VmfFresh *fresh);
/*
 * Asks for pages [first_page, first_page + n_pages) of @block; never waits, forgets it when too much is queued. Returns
 * whether it was queued. Any thread. @block must outlive the populator.
 */
bool vmf_populate_push(VmfPopulate *populate, VmfRamBlock *block, uint64_t first_page, uint64_t n_pages);
/*
 * The caller is about to write pages [first_page, first_page + n_pages): what of them is queued and was not begun is populated before
 * this returns. Any thread. Returns how many pages that were.
 */
uint64_t vmf_populate_now(VmfPopulate *populate, VmfRamBlock *block, uint64_t first_page, uint64_t n_pages);
/* The caller is about to place these pages itself: what of them is queued and was not begun is forgotten. Any thread. */
void vmf_populate_forget(VmfPopulate *populate, VmfRamBlock *block, uint64_t first_page, uint64_t n_pages);
/* Pages populated so far. */
uint64_t vmf_populate_n_pages(const VmfPopulate *populate);
/* Drops what is queued, ends the thread and waits for it (at most one piece's time). */
void vmf_populate_free(VmfPopulate *populate);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfPopulate, vmf_populate_free)

#endif
