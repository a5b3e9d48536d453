/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. One sparse array of 64-bit digests: the 512 digests of a chunk are 4 KiB, one page of this host,
 * which the kernel provides when the first of them is written. So a chunk without data costs nothing, and there is
 * neither an allocation nor a pointer to publish between threads. To keep that, a digest that does not change is not
 * written.
 *
 * Sums are kept by difference: taking the old digest's share out and putting the new one's in.
 */
#include "ram/digest-table.h"

#include <stdatomic.h>

#include "ram/page-scan.h"
#include "ram/sparse-array.h"

typedef struct {
    _Atomic uint64_t sum;
    _Atomic uint64_t touched; /* 1 once a digest was written: the chunk's page of digests exists */
} ChunkEntry;

struct VmfDigestTable {
    uint64_t n_pages;
    uint64_t n_chunks;
    _Atomic uint64_t *digests; /* by page */
    ChunkEntry *chunks;
    _Atomic uint64_t total;
    _Atomic uint64_t n_data;
    _Atomic uint64_t n_touched; /* chunks */
};

VmfDigestTable *vmf_digest_table_new(uint64_t n_pages, GError **error)
{
    g_autoptr(VmfDigestTable) table = g_new0(VmfDigestTable, 1);

    table->n_pages = n_pages;
    table->n_chunks = n_pages / VMF_CHUNK_PAGES + (n_pages % VMF_CHUNK_PAGES != 0);
    table->digests = vmf_sparse_array_new(n_pages, sizeof(uint64_t), "digest table", error);
    if (!table->digests)
        return NULL;
    table->chunks = vmf_sparse_array_new(table->n_chunks, sizeof(ChunkEntry), "digest table", error);
    if (!table->chunks)
        return NULL;
    return g_steal_pointer(&table);
}

void vmf_digest_table_free(VmfDigestTable *table)
{
    if (!table)
        return;
    vmf_sparse_array_free((void *)table->digests, table->n_pages, sizeof(uint64_t));
    vmf_sparse_array_free(table->chunks, table->n_chunks, sizeof(ChunkEntry));
    g_free(table);
}

uint64_t vmf_digest_table_n_pages(const VmfDigestTable *table)
{
    return table->n_pages;
}

/* What a change of page @page to @digest does to the sums. */
typedef struct {
    uint64_t sum;
    uint64_t n_data;
    bool any;
} Change;

static void set_digest(VmfDigestTable *table, uint64_t page, uint64_t digest, Change *change)
{
    uint64_t old = atomic_load_explicit(&table->digests[page], memory_order_relaxed);

    if (old == digest)
        return;
    atomic_store_explicit(&table->digests[page], digest, memory_order_relaxed);
    change->sum += vmf_page_digest_mix(page, digest) - vmf_page_digest_mix(page, old);
    change->n_data += (uint64_t)(digest != 0) - (old != 0);
    change->any = true;
}

static void account(VmfDigestTable *table, uint64_t chunk, const Change *change)
{
    ChunkEntry *entry = &table->chunks[chunk];

    if (!change->any)
        return;
    atomic_fetch_add(&entry->sum, change->sum);
    atomic_fetch_add(&table->total, change->sum);
    atomic_fetch_add_explicit(&table->n_data, change->n_data, memory_order_relaxed);
    if (!atomic_exchange_explicit(&entry->touched, 1, memory_order_relaxed))
        atomic_fetch_add_explicit(&table->n_touched, 1, memory_order_relaxed);
}

/* Read first, fresh memory would be mapped twice: as zeros for the read, and again for the write. */
static void provide(VmfDigestTable *table, uint64_t chunk)
{
    atomic_fetch_or_explicit(&table->digests[chunk * VMF_CHUNK_PAGES], 0, memory_order_relaxed);
}

void vmf_digest_table_update(VmfDigestTable *table, uint64_t chunk, const VmfPageSet *pages, const uint64_t *digests)
{
    Change change = {0, 0, false};

    if (chunk >= table->n_chunks)
        return;
    if (digests && !vmf_page_set_is_empty(pages))
        provide(table, chunk);
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        uint64_t word = chunk * VMF_CHUNK_WORDS + w;
        for (uint64_t left = pages->words[w] & vmf_page_word_mask(word, 0, table->n_pages); left; left &= left - 1) {
            unsigned page = w * 64 + __builtin_ctzll(left);
            set_digest(table, chunk * VMF_CHUNK_PAGES + page, digests ? digests[page] : 0, &change);
        }
    }
    account(table, chunk, &change);
}

uint64_t vmf_digest_table_get(const VmfDigestTable *table, uint64_t page)
{
    return page < table->n_pages ? atomic_load_explicit(&table->digests[page], memory_order_relaxed) : 0;
}

uint64_t vmf_digest_table_chunk_sum(const VmfDigestTable *table, uint64_t chunk)
{
    return chunk < table->n_chunks ? atomic_load(&table->chunks[chunk].sum) : 0;
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
    return atomic_load_explicit(&table->n_touched, memory_order_relaxed) * VMF_CHUNK_PAGES * sizeof(uint64_t);
}
