/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the engine itself needs of a RAM block beside the public calls: its division into pages and chunks. */
#ifndef RAM_BLOCK_H
#define RAM_BLOCK_H

#include "ram/page-set.h"

uint64_t vmf_ram_block_n_pages(const VmfRamBlock *block);
/* Chunks that hold at least one page; the last may be short. */
uint64_t vmf_ram_block_n_chunks(const VmfRamBlock *block);
/* The pages of @chunk (which exists): returns how many, 1 to VMF_CHUNK_PAGES, and sets the first one's index in the
 * block. */
unsigned vmf_ram_block_chunk_pages(const VmfRamBlock *block, uint64_t chunk, uint64_t *first_page);
/*
 * Discards all of it, makes it accessible and makes sure that the host can fill it again: what a load begins with. False with
 * @error: it cannot (hugetlb pages that others have reserved).
 */
bool vmf_ram_block_empty(VmfRamBlock *block, GError **error);
/*
 * Makes [offset, offset + length), whole host pages, inaccessible until the block is emptied: whoever touches it gets SIGSEGV, a
 * system call EFAULT.
 */
void vmf_ram_block_forbid(VmfRamBlock *block, uint64_t offset, uint64_t length);
/* Where page @page of the block (which exists) lies. */
void *vmf_ram_block_page(const VmfRamBlock *block, uint64_t page);

#endif
