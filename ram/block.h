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
/* Where page @page of the block (which exists) lies. */
void *vmf_ram_block_page(const VmfRamBlock *block, uint64_t page);

#endif
