/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <vmferry/error.h>

#include "ram/digest-table.h"
#include "ram/page-scan.h"

#define N_PAGES (5 * VMF_CHUNK_PAGES + 10)
#define N_CHUNKS 6

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void compare(const VmfDigestTable *table, const uint64_t *model)
{
    uint64_t total = 0, n_data = 0;

    for (uint64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
        uint64_t sum = 0;
        for (uint64_t page = chunk * VMF_CHUNK_PAGES; page < MIN(N_PAGES, (chunk + 1) * VMF_CHUNK_PAGES); page++) {
            assert_true(vmf_digest_table_get(table, page) == model[page]);
            sum += vmf_page_digest_mix(page, model[page]);
            n_data += model[page] != 0;
        }
        assert_true(vmf_digest_table_chunk_sum(table, chunk) == sum);
        total += sum;
    }
    assert_true(vmf_digest_table_total(table) == total);
    assert_int_equal(vmf_digest_table_n_data(table), n_data);
}

static void random_updates_agree_with_a_model(void **state)
{
    g_autoptr(VmfDigestTable) table = vmf_digest_table_new(N_PAGES, NULL);
    g_autofree uint64_t *model = g_new0(uint64_t, N_CHUNKS * VMF_CHUNK_PAGES);
    uint64_t digests[VMF_CHUNK_PAGES], seed = 3;
    VmfPageSet pages;

    for (unsigned i = 0; i < 1000; i++) {
        uint64_t chunk = next_random(&seed) % N_CHUNKS;
        bool all_zero = next_random(&seed) % 10 == 0;
        for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
            pages.words[w] = next_random(&seed);
        for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
            digests[page] = next_random(&seed) % 3 ? next_random(&seed) : 0;
            if (vmf_page_set_test(&pages, page) && chunk * VMF_CHUNK_PAGES + page < N_PAGES)
                model[chunk * VMF_CHUNK_PAGES + page] = all_zero ? 0 : digests[page];
        }
        vmf_digest_table_update(table, chunk, &pages, all_zero ? NULL : digests);
        if (i % 20 == 0)
            compare(table, model);
    }
    compare(table, model);
    vmf_digest_table_update(table, N_CHUNKS, &pages, digests);
    compare(table, model);
    assert_int_equal(vmf_digest_table_get(table, N_PAGES), 0);
    assert_int_equal(vmf_digest_table_chunk_sum(table, N_CHUNKS), 0);
}

static void equal_content_by_another_way_has_equal_sums(void **state)
{
    g_autoptr(VmfDigestTable) one = vmf_digest_table_new(N_PAGES, NULL);
    g_autoptr(VmfDigestTable) other = vmf_digest_table_new(N_PAGES, NULL);
    uint64_t first[VMF_CHUNK_PAGES], second[VMF_CHUNK_PAGES];
    VmfPageSet all;

    vmf_page_set_clear(&all);
    vmf_page_set_add_range(&all, 0, VMF_CHUNK_PAGES);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        first[page] = page + 1;
        second[page] = page % 5;
    }
    vmf_digest_table_update(one, 2, &all, first);
    vmf_digest_table_update(one, 2, &all, second);
    vmf_digest_table_update(other, 2, &all, second);
    assert_true(vmf_digest_table_total(one) == vmf_digest_table_total(other));
    assert_true(vmf_digest_table_total(one) != 0);
    vmf_digest_table_update(one, 2, &all, NULL);
    assert_int_equal(vmf_digest_table_total(one), 0);
    assert_int_equal(vmf_digest_table_n_data(one), 0);
}

static uint64_t resident_kib(void)
{
    g_autofree char *text = NULL;
    unsigned long long size, resident;

    assert_true(g_file_get_contents("/proc/self/statm", &text, NULL, NULL));
    assert_int_equal(sscanf(text, "%llu %llu", &size, &resident), 2);
    return resident * 4;
}

static void a_sparse_terabyte_costs_its_pages_with_data(void **state)
{
    uint64_t before = resident_kib(), digests[VMF_CHUNK_PAGES] = {0};
    g_autoptr(VmfDigestTable) table = vmf_digest_table_new(UINT64_C(1) << 28, NULL);
    VmfPageSet pages;

    vmf_page_set_clear(&pages);
    vmf_page_set_add_range(&pages, 0, VMF_CHUNK_PAGES);
    for (uint64_t chunk = 0; chunk < 1000; chunk++)
        vmf_digest_table_update(table, chunk * 500, &pages, digests); /* zeros cost nothing */
    assert_int_equal(vmf_digest_table_bytes(table), 0);
    digests[7] = 1;
    for (uint64_t chunk = 0; chunk < 10; chunk++)
        vmf_digest_table_update(table, chunk * 50000, &pages, digests);
    assert_true(vmf_digest_table_bytes(table) <= 10 * 32);
    assert_int_equal(vmf_digest_table_n_data(table), 10);
    /* of 2 GiB that exist; sanitizers shadow each of these pages */
    assert_true(resident_kib() < before + 65536);
}

/*
 * The engine may take 0.3 % of the memory that is populated, 12 octets a page, and 4 MiB for everything else: as many pages in each of
 * 8192 chunks that are scattered over a terabyte, entered in pieces as records come.
 */
static void memory_follows_the_pages_with_data(void **state)
{
    static const unsigned pages_per_chunk[] = {1, 2, 3, 7, 20, 64, 128, 129, 200, 256, 300, 384, 385, 448, VMF_CHUNK_PAGES};
    uint64_t digests[VMF_CHUNK_PAGES];

    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        digests[page] = page + 1;
    for (unsigned i = 0; i < G_N_ELEMENTS(pages_per_chunk); i++) {
        g_autoptr(VmfDigestTable) table = vmf_digest_table_new(UINT64_C(1) << 28, NULL);
        unsigned n = pages_per_chunk[i];
        for (uint64_t chunk = 0; chunk < 8192; chunk++)
            for (unsigned from = 0; from < n; from += 128) {
                VmfPageSet pages = {{0}};
                vmf_page_set_add_range(&pages, from, MIN(n - from, 128));
                vmf_digest_table_update(table, chunk * 7, &pages, digests);
            }
        assert_int_equal(vmf_digest_table_n_data(table), n * UINT64_C(8192));
        assert_true(vmf_digest_table_bytes(table) <= 8192 * (uint64_t)n * VMF_PAGE_SIZE / 1000 * 3);
    }
}

/* Each thread its own chunks, a reader beside them. */
typedef struct {
    VmfDigestTable *table;
    unsigned index;
    _Atomic bool *stop;
    uint64_t seen; /* keeps the reads */
} Lane;

static void *update_chunks(void *opaque)
{
    Lane *lane = opaque;
    uint64_t digests[VMF_CHUNK_PAGES], seed = 100 + lane->index;
    VmfPageSet pages;

    for (unsigned i = 0; i < 300; i++) {
        for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
            pages.words[w] = next_random(&seed);
        for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
            digests[page] = next_random(&seed) % 4;
        vmf_digest_table_update(lane->table, lane->index, &pages, digests);
    }
    return NULL;
}

static void *read_everything(void *opaque)
{
    Lane *lane = opaque;
    uint64_t sum = 0;

    while (!atomic_load(lane->stop)) {
        for (uint64_t chunk = 0; chunk < N_CHUNKS; chunk++)
            sum += vmf_digest_table_chunk_sum(lane->table, chunk) +
                   vmf_digest_table_get(lane->table, chunk * VMF_CHUNK_PAGES);
        sum += vmf_digest_table_total(lane->table);
        lane->seen = sum;
    }
    return NULL;
}

static void lanes_update_their_own_chunks(void **state)
{
    g_autoptr(VmfDigestTable) table = vmf_digest_table_new(N_PAGES, NULL);
    g_autofree uint64_t *model = g_new0(uint64_t, N_PAGES);
    pthread_t threads[N_CHUNKS], reader;
    Lane lanes[N_CHUNKS];
    _Atomic bool stop = false;

    for (unsigned i = 0; i < N_CHUNKS; i++)
        lanes[i] = (Lane){table, i, &stop};
    assert_int_equal(pthread_create(&reader, NULL, read_everything, &lanes[0]), 0);
    for (unsigned i = 0; i < N_CHUNKS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, update_chunks, &lanes[i]), 0);
    for (unsigned i = 0; i < N_CHUNKS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&stop, true);
    pthread_join(reader, NULL);
    for (uint64_t page = 0; page < N_PAGES; page++)
        model[page] = vmf_digest_table_get(table, page);
    compare(table, model);
}

static void an_impossible_size_is_an_error(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_digest_table_new(UINT64_MAX / 8 + 2, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_MEMORY));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_updates_agree_with_a_model),
        cmocka_unit_test(equal_content_by_another_way_has_equal_sums),
        cmocka_unit_test(a_sparse_terabyte_costs_its_pages_with_data),
        cmocka_unit_test(memory_follows_the_pages_with_data),
        cmocka_unit_test(lanes_update_their_own_chunks),
        cmocka_unit_test(an_impossible_size_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
