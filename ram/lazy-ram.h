/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory that is filled while it is used. Whoever touches a page that is not there waits (userfaultfd) until it
 * has been placed, each page exactly once, complete, and never again afterwards.
 */
#ifndef RAM_LAZY_RAM_H
#define RAM_LAZY_RAM_H

#include "ram/page-reader.h"
#include "ram/uffd.h"

typedef struct VmfLazyRam VmfLazyRam;

/*
 * From here on touches of the @blocks, which are empty (vmf_ram_block_empty()) and outlive it, wait. Only of what
 * @ops->may_have_data() says may hold something; long stretches that do not are ordinary memory at once. Nobody
 * populates the blocks in any other way.
 */
VmfLazyRam *vmf_lazy_ram_new(VmfRamBlock *const *blocks, unsigned n_blocks, const VmfPageReaderOps *ops, void *source,
                             GError **error);
/*
 * Frees it. Without vmf_lazy_ram_end() before, the memory that it watched becomes inaccessible, as parts of it were
 * never placed: threads that wait there, and any that touch it later, get SIGSEGV, system calls EFAULT; nobody meets
 * wrong bytes. vmf_ram_block_empty() makes the block usable again.
 */
void vmf_lazy_ram_free(VmfLazyRam *ram);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfLazyRam, vmf_lazy_ram_free)

/* Where faults are read. */
int vmf_lazy_ram_fd(const VmfLazyRam *ram);
VmfUffdScope vmf_lazy_ram_scope(const VmfLazyRam *ram);
unsigned vmf_lazy_ram_n_blocks(const VmfLazyRam *ram);
VmfRamBlock *vmf_lazy_ram_block(const VmfLazyRam *ram, unsigned block);
/* The page in which @address lies; false: none of these blocks. */
bool vmf_lazy_ram_find(const VmfLazyRam *ram, uint64_t address, unsigned *block, uint64_t *page);
/* Whether pages of the block can only be placed a chunk at a time. */
bool vmf_lazy_ram_is_huge(const VmfLazyRam *ram, unsigned block);
/* Whether a page of zeros costs memory once it is placed. */
bool vmf_lazy_ram_zeros_cost(const VmfLazyRam *ram, unsigned block);

/* ---- any thread, several at once ------------------------------------------------------------------------------- */

/* Those of @pages that were not placed yet. */
VmfPageSet vmf_lazy_ram_absent(const VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages);

/*
 * Places @pages from @memory (page n of the chunk at n * VMF_PAGE_SIZE) and wakes who waits for them; what is there by
 * now stays as it is. Of a huge block: all pages of the chunk. Returns how many came to be there through this call; -1
 * with @error (VMF_ERROR_MEMORY).
 */
int vmf_lazy_ram_place(VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages, const void *memory,
                       GError **error);
/* The same with zeros. */
int vmf_lazy_ram_place_zeros(VmfLazyRam *ram, unsigned block, uint64_t chunk, const VmfPageSet *pages, GError **error);
/* Who waits for the page looks again whether it is there. */
void vmf_lazy_ram_wake(VmfLazyRam *ram, unsigned block, uint64_t page);

/*
 * The page (of a huge block: its chunk) cannot be had: it becomes inaccessible, as with vmf_lazy_ram_free(). Who waits
 * for it is let go into its SIGSEGV.
 */
void vmf_lazy_ram_forbid(VmfLazyRam *ram, unsigned block, uint64_t page);

/* All that is not zeros has been placed: the blocks are ordinary memory from now on. Once. */
void vmf_lazy_ram_end(VmfLazyRam *ram);

/* ---- counting a set of pages as they come in ------------------------------------------------------------------- */

/* Before anything is placed: the page (which exists) is of the set. False: no memory for it. */
bool vmf_lazy_ram_watch(VmfLazyRam *ram, unsigned block, uint64_t page);
/* How many there are, and how many of them are not placed yet. */
uint64_t vmf_lazy_ram_n_watched(const VmfLazyRam *ram);
uint64_t vmf_lazy_ram_n_watched_absent(const VmfLazyRam *ram);

#endif
