/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A page is first tested for zeros; most pages with data say so in their first bytes, so the test
 * costs them next to nothing, and what it did read is in the cache when the page is hashed. A page of zeros is read
 * once, by wide loads.
 *
 * The zero test comes in three widths, chosen when a session starts; the digest is libxxhash's, which chooses by CPU
 * itself where it was built to (x86).
 *
 * The guest may write what is read here. That is meant (see page-scan.h), and these functions alone are hidden from the
 * thread sanitizer, so that it still sees everything else.
 */
#include "ram/page-scan.h"

#include <glib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define XXH_DISPATCH_DISABLE_REPLACE
#if __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#define HAVE_XXH_DISPATCH 1
#endif
#endif
#include <xxhash.h>

#include "ram/page-set.h"

#define GUEST_WRITES __attribute__((no_sanitize("thread")))

static uint64_t digest_portable(const void *page, size_t page_size)
{
    uint64_t digest = XXH3_64bits(page, page_size);
    return digest ? digest : 1;
}

GUEST_WRITES static bool is_zero_portable(const void *page, size_t page_size)
{
    const uint64_t *word = page;

    for (size_t i = 0; i < page_size / sizeof(*word); i += 8) {
        uint64_t any =
            word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] | word[i + 6] | word[i + 7];
        if (any)
            return false;
    }
    return true;
}

static const VmfPageScan scan_portable = {"portable", is_zero_portable, digest_portable};

#if defined(__x86_64__)
/*
 * libxxhash's own choice of AVX2 or AVX-512 returns with the upper halves of the vector registers in use (0.8.1, as
 * packaged), after which every SSE instruction of this thread, in whatever code, runs at a quarter of its speed.
 * Zeroing them costs a few cycles.
 */
__attribute__((target("avx"))) static uint64_t digest_avx(const void *page, size_t page_size)
{
#if HAVE_XXH_DISPATCH
    uint64_t digest = XXH3_64bits_dispatch(page, page_size);
    _mm256_zeroupper();
    return digest ? digest : 1;
#else
    return digest_portable(page, page_size);
#endif
}

__attribute__((target("avx2"))) GUEST_WRITES static bool is_zero_avx2(const void *page, size_t page_size)
{
    const __m256i_u *v = page; /* what is digested of a disk may lie anywhere */

    if (*(const uint64_t *)page)
        return false;
    for (size_t i = 0; i < page_size / sizeof(*v); i += 8) {
        __m256i a = _mm256_or_si256(_mm256_or_si256(v[i], v[i + 1]), _mm256_or_si256(v[i + 2], v[i + 3]));
        __m256i b = _mm256_or_si256(_mm256_or_si256(v[i + 4], v[i + 5]), _mm256_or_si256(v[i + 6], v[i + 7]));
        a = _mm256_or_si256(a, b);
        if (!_mm256_testz_si256(a, a))
            return false;
    }
    return true;
}

__attribute__((target("avx512f"))) GUEST_WRITES static bool is_zero_avx512(const void *page, size_t page_size)
{
    const __m512i_u *v = page;

    if (*(const uint64_t *)page)
        return false;
    for (size_t i = 0; i < page_size / sizeof(*v); i += 8) {
        __m512i a = _mm512_or_si512(_mm512_or_si512(v[i], v[i + 1]), _mm512_or_si512(v[i + 2], v[i + 3]));
        __m512i b = _mm512_or_si512(_mm512_or_si512(v[i + 4], v[i + 5]), _mm512_or_si512(v[i + 6], v[i + 7]));
        a = _mm512_or_si512(a, b);
        if (_mm512_test_epi64_mask(a, a))
            return false;
    }
    return true;
}

static const VmfPageScan scan_avx2 = {"avx2", is_zero_avx2, digest_avx};
static const VmfPageScan scan_avx512 = {"avx512", is_zero_avx512, digest_avx};
#endif

const VmfPageScan *vmf_page_scan_nth(unsigned index)
{
    const VmfPageScan *usable[3];
    unsigned n = 0;

#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        usable[n++] = &scan_avx512;
    if (__builtin_cpu_supports("avx2"))
        usable[n++] = &scan_avx2;
#endif
    usable[n++] = &scan_portable;
    return index < n ? usable[index] : NULL;
}

const VmfPageScan *vmf_page_scan_select(void)
{
    return vmf_page_scan_nth(0);
}

bool vmf_page_is_zero(const VmfPageScan *scan, const void *page, size_t page_size)
{
    return scan->is_zero(page, page_size);
}

void vmf_page_scan(const VmfPageScan *scan, const void *base, size_t page_size, unsigned n_pages,
                   const uint64_t *candidates, uint64_t *data, uint64_t *zero, uint64_t *digests)
{
    for (unsigned w = 0; w * 64 < n_pages; w++) {
        uint64_t wanted = vmf_page_word_mask(w, 0, n_pages) & (candidates ? candidates[w] : ~UINT64_C(0));
        uint64_t with_data = 0;
        for (uint64_t left = wanted; left; left &= left - 1) {
            unsigned page = w * 64 + __builtin_ctzll(left);
            const uint8_t *at = (const uint8_t *)base + page * page_size;
            bool is_zero = scan->is_zero(at, page_size);
            if (!is_zero)
                with_data |= left & -left;
            if (digests)
                digests[page] = is_zero ? 0 : scan->digest(at, page_size);
        }
        data[w] = with_data;
        zero[w] = wanted & ~with_data;
    }
}

void vmf_page_scan_digests(const VmfPageScan *scan, const void *base, size_t page_size, unsigned n_pages,
                           const uint64_t *pages, uint64_t *digests)
{
    VmfPageSet data, zero;

    vmf_page_scan(scan, base, page_size, n_pages, pages, data.words, zero.words, digests);
}
