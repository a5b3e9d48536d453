/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Zero test and digest of the pages of a chunk in one pass over memory.
 *
 * The digest of a page is XXH3-64 of its bytes (seed 0), with 0 replaced by 1; the digest of a page of zeros is 0 by
 * definition, so that untouched memory costs nothing. Pages may be written by the guest while they are read: the result
 * is then that of some mix of old and new bytes, which is why a page that was written has to be sent again.
 */
#ifndef RAM_PAGE_SCAN_H
#define RAM_PAGE_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One implementation, for one kind of CPU. Constant; nothing to free. */
typedef struct VmfPageScan {
    const char *name; /* "avx512", "avx2", "portable" */
    bool (*is_zero)(const void *page, size_t page_size);
    uint64_t (*digest)(const void *page, size_t page_size); /* of bytes that are not all zero; never 0 */
} VmfPageScan;

/* The best implementation for this CPU; a session asks once. */
const VmfPageScan *vmf_page_scan_select(void);
/* Implementation @index as far as this CPU can run it, NULL after the last: for tests and measurements. */
const VmfPageScan *vmf_page_scan_nth(unsigned index);

/* @page: aligned to 64 bytes; @page_size: a multiple of 512. */
bool vmf_page_is_zero(const VmfPageScan *scan, const void *page, size_t page_size);

/*
 * Looks at each page of @candidates (NULL: all) among the @n_pages (1 to 512) at @base and puts it into @data or @zero,
 * which are overwritten: (n_pages + 63) / 64 words each. @digests, by page, is written for the candidates only; NULL:
 * just the zero test.
 */
void vmf_page_scan(const VmfPageScan *scan, const void *base, size_t page_size, unsigned n_pages,
                   const uint64_t *candidates, uint64_t *data, uint64_t *zero, uint64_t *digests);

/* Digests of @pages among the @n_pages at @base, 0 for those that are zero: what a target does once they are in place.
 */
void vmf_page_scan_digests(const VmfPageScan *scan, const void *base, size_t page_size, unsigned n_pages,
                           const uint64_t *pages, uint64_t *digests);

/*
 * Binds a digest to its place (@page: its index in the block), so that sums over many pages notice pages that changed
 * places. 0 for digest 0; otherwise, all modulo 2^64, x = digest ^ ((page + 1) * 0x9E3779B97F4A7C15), then twice: x =
 * (x ^ x >> 32) * 0xD6E8FEB86659FD93, then x ^ x >> 32.
 */
static inline uint64_t vmf_page_digest_mix(uint64_t page, uint64_t digest)
{
    if (digest == 0)
        return 0;
    uint64_t x = digest ^ ((page + 1) * UINT64_C(0x9E3779B97F4A7C15));
    x = (x ^ x >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    x = (x ^ x >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    return x ^ x >> 32;
}

#endif
