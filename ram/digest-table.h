/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The digests of one RAM block: what each page's content was when it was sent (source) or placed (target). 0 stands for
 * a page of zeros and for one that was never seen; such pages cost no memory, the others eight to a dozen octets each.
 *
 * One thread at a time changes a chunk; any thread may read at any time and sees, for each value, some state that it
 * had.
 */
#ifndef RAM_DIGEST_TABLE_H
#define RAM_DIGEST_TABLE_H

#include "ram/page-set.h"

typedef struct VmfDigestTable VmfDigestTable;

/* All zero. NULL with VMF_ERROR_MEMORY. */
VmfDigestTable *vmf_digest_table_new(uint64_t n_pages, GError **error);
void vmf_digest_table_free(VmfDigestTable *table);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfDigestTable, vmf_digest_table_free)

uint64_t vmf_digest_table_n_pages(const VmfDigestTable *table);

/*
 * Sets the digests of @pages of @chunk from @digests (by page in the chunk, entries of other pages are not read); NULL:
 * all 0. Pages past the end of the block are ignored.
 */
void vmf_digest_table_update(VmfDigestTable *table, uint64_t chunk, const VmfPageSet *pages, const uint64_t *digests);

uint64_t vmf_digest_table_get(const VmfDigestTable *table, uint64_t page);
/* The digests of @pages (NULL: all) of @chunk into their places in @digests, which has room for a chunk: cheaper than one by one. */
void vmf_digest_table_read(const VmfDigestTable *table, uint64_t chunk, const VmfPageSet *pages, uint64_t *digests);
/* Sum, modulo 2^64, of vmf_page_digest_mix(page in the block, digest) over the chunk's pages. Costs no more than a microsecond. */
uint64_t vmf_digest_table_chunk_sum(const VmfDigestTable *table, uint64_t chunk);
/* The sum of all chunk sums. Constant cost. */
uint64_t vmf_digest_table_total(const VmfDigestTable *table);
/* Pages whose digest is not 0. Constant cost. */
uint64_t vmf_digest_table_n_data(const VmfDigestTable *table);
/* Memory occupied by digests, in bytes. */
uint64_t vmf_digest_table_bytes(const VmfDigestTable *table);

#endif
