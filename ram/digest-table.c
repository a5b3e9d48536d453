/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Digests are sparse words (sparse-words.h), a chunk is a group of them: pages with data cost about ten octets each
 * where they are few, and 4 KiB a chunk where they are many.
 *
 * The sum of a chunk with few is computed when it is asked for. That of one whose digests are an array is kept, by difference: taking the
 * old digest's share out and putting the new one's in. It is there before the array is.
 */
#include "ram/digest-table.h"

#include <stdatomic.h>

#include "ram/page-scan.h"
#include "ram/sparse-array.h"
#include "ram/sparse-words.h"

struct VmfDigestTable {
    uint64_t n_pages;
    uint64_t n_chunks;
    VmfSparseWords *digests; /* by page */
    _Atomic uint64_t *sums;  /* of chunks whose digests are an array */
    _Atomic uint64_t total;
    _Atomic uint64_t n_data;
};

VmfDigestTable *vmf_digest_table_new(uint64_t n_pages, GError **error)
{
    g_autoptr(VmfDigestTable) table = g_new0(VmfDigestTable, 1);

    table->n_pages = n_pages;
    table->n_chunks = n_pages / VMF_CHUNK_PAGES + (n_pages % VMF_CHUNK_PAGES != 0);
    table->digests = vmf_sparse_words_new(n_pages, "digest table", error);
    if (!table->digests)
        return NULL;
    table->sums = vmf_sparse_array_new(table->n_chunks, sizeof(uint64_t), "digest table", error);
    return table->sums ? g_steal_pointer(&table) : NULL;
}

void vmf_digest_table_free(VmfDigestTable *table)
{
    if (!table)
        return;
    vmf_sparse_words_free(table->digests);
    vmf_sparse_array_free((void *)table->sums, table->n_chunks, sizeof(uint64_t));
    g_free(table);
}

uint64_t vmf_digest_table_n_pages(const VmfDigestTable *table)
{
    return table->n_pages;
}

static VmfPageSet in_block(const VmfDigestTable *table, uint64_t chunk, const VmfPageSet *pages)
{
    return vmf_page_set_slice(pages, 0, (unsigned)MIN(table->n_pages - chunk * VMF_CHUNK_PAGES, VMF_CHUNK_PAGES));
}

/* What setting @pages of @chunk to @digests does to the sums. */
typedef struct {
    uint64_t sum;
    uint64_t n_data;
    bool any;
} Change;

static Change weigh(uint64_t chunk, const VmfPageSet *pages, const uint64_t *before, const uint64_t *digests)
{
    Change change = {0, 0, false};

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = pages->words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            uint64_t index = chunk * VMF_CHUNK_PAGES + page, old = before[page], now = digests ? digests[page] : 0;
            if (old == now)
                continue;
            change.sum += vmf_page_digest_mix(index, now) - vmf_page_digest_mix(index, old);
            change.n_data += (uint64_t)(now != 0) - (old != 0);
            change.any = true;
        }
    return change;
}

static uint64_t computed_sum(const VmfDigestTable *table, uint64_t chunk)
{
    uint64_t digests[VMF_CHUNK_PAGES], sum = 0;
    unsigned n = (unsigned)MIN(table->n_pages - chunk * VMF_CHUNK_PAGES, VMF_CHUNK_PAGES);

    if (vmf_sparse_words_is_void(table->digests, chunk))
        return 0;
    vmf_sparse_words_read(table->digests, chunk, NULL, digests);
    for (unsigned page = 0; page < n; page++)
        sum += vmf_page_digest_mix(chunk * VMF_CHUNK_PAGES + page, digests[page]);
    return sum;
}

/* Digests that stay as they are are not written: untouched memory stays untouched. */
void vmf_digest_table_update(VmfDigestTable *table, uint64_t chunk, const VmfPageSet *pages, const uint64_t *digests)
{
    uint64_t before[VMF_CHUNK_PAGES];

    if (chunk >= table->n_chunks || vmf_page_set_is_empty(pages) || (!digests && vmf_sparse_words_is_void(table->digests, chunk)))
        return;
    VmfPageSet own = in_block(table, chunk, pages);
    bool array = vmf_sparse_words_is_array(table->digests, chunk);
    vmf_sparse_words_read(table->digests, chunk, &own, before);
    Change change = weigh(chunk, &own, before, digests);
    if (!change.any)
        return;
    if (array)
        atomic_fetch_add(&table->sums[chunk], change.sum);
    if (array || !vmf_sparse_words_store(table->digests, chunk, &own, digests)) {
        if (!array)
            atomic_store(&table->sums[chunk], computed_sum(table, chunk) + change.sum);
        vmf_sparse_words_store_array(table->digests, chunk, &own, digests);
    }
    atomic_fetch_add(&table->total, change.sum);
    atomic_fetch_add_explicit(&table->n_data, change.n_data, memory_order_relaxed);
}

uint64_t vmf_digest_table_get(const VmfDigestTable *table, uint64_t page)
{
    return page < table->n_pages ? vmf_sparse_words_get(table->digests, page) : 0;
}

void vmf_digest_table_read(const VmfDigestTable *table, uint64_t chunk, const VmfPageSet *pages, uint64_t *digests)
{
    if (chunk < table->n_chunks)
        vmf_sparse_words_read(table->digests, chunk, pages, digests);
}

uint64_t vmf_digest_table_chunk_sum(const VmfDigestTable *table, uint64_t chunk)
{
    if (chunk >= table->n_chunks)
        return 0;
    return vmf_sparse_words_is_array(table->digests, chunk) ? atomic_load(&table->sums[chunk]) : computed_sum(table, chunk);
}

uint64_t vmf_digest_table_total(const VmfDigestTable *table)
{
    return atomic_load(&table->total);
}

uint64_t vmf_digest_table_n_data(const VmfDigestTable *table)
{
    return atomic_load_explicit(&table->n_data, memory_order_relaxed);
}

uint64_t vmf_digest_table_bytes(const VmfDigestTable *table)
{
    return vmf_sparse_words_bytes(table->digests);
}
