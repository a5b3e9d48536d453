/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <xxhash.h>

#include "ram/page-scan.h"
#include "ram/page-set.h"

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static int set_up(void **state)
{
    *state = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    memset(*state, 0, VMF_CHUNK_SIZE);
    return 0;
}

static int tear_down(void **state)
{
    free(*state);
    return 0;
}

static bool naive_is_zero(const uint8_t *page)
{
    for (unsigned i = 0; i < VMF_PAGE_SIZE; i++) {
        if (page[i])
            return false;
    }
    return true;
}

static void every_bit_of_a_page_counts(void **state)
{
    uint8_t *page = *state;
    const VmfPageScan *scan;

    for (unsigned i = 0; (scan = vmf_page_scan_nth(i)); i++) {
        assert_true(vmf_page_is_zero(scan, page, VMF_PAGE_SIZE));
        for (unsigned bit = 0; bit < VMF_PAGE_SIZE * 8; bit++) {
            page[bit / 8] = 1 << (bit % 8);
            assert_false(vmf_page_is_zero(scan, page, VMF_PAGE_SIZE));
            page[bit / 8] = 0;
        }
        /* Nothing before or after the page counts. */
        memset(page + VMF_PAGE_SIZE, 0xff, 64);
        assert_true(vmf_page_is_zero(scan, page, VMF_PAGE_SIZE));
        memset(page + VMF_PAGE_SIZE, 0, 64);
    }
}

/* A third zero, a third full of noise, a third with one byte set. */
static void fill(uint8_t *chunk, uint64_t *seed)
{
    memset(chunk, 0, VMF_CHUNK_SIZE);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        uint8_t *at = chunk + page * VMF_PAGE_SIZE;
        unsigned kind = next_random(seed) % 3;
        if (kind == 1)
            at[next_random(seed) % VMF_PAGE_SIZE] = 1;
        for (unsigned i = 0; kind == 2 && i < VMF_PAGE_SIZE; i++)
            at[i] = next_random(seed);
    }
}

static void check_scan(const VmfPageScan *scan, const uint8_t *chunk, unsigned n_pages, const VmfPageSet *candidates)
{
    const uint64_t untouched = 0x1234;
    uint64_t digests[VMF_CHUNK_PAGES];
    VmfPageSet data, zero;

    vmf_page_set_clear(&data);
    vmf_page_set_clear(&zero);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        digests[page] = untouched;
    vmf_page_scan(scan, chunk, VMF_PAGE_SIZE, n_pages, candidates ? candidates->words : NULL, data.words, zero.words,
                  digests);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        const uint8_t *at = chunk + page * VMF_PAGE_SIZE;
        bool wanted = page < n_pages && (!candidates || vmf_page_set_test(candidates, page));
        bool is_zero = naive_is_zero(at);
        assert_int_equal(vmf_page_set_test(&zero, page), wanted && is_zero);
        assert_int_equal(vmf_page_set_test(&data, page), wanted && !is_zero);
        assert_true(digests[page] == (!wanted ? untouched : is_zero ? 0 : XXH3_64bits(at, VMF_PAGE_SIZE)));
    }
}

static void all_implementations_agree_with_a_naive_one(void **state)
{
    uint8_t *chunk = *state;
    const VmfPageScan *scan;
    VmfPageSet candidates;
    uint64_t seed = 99;

    for (unsigned round = 0; round < 5; round++) {
        fill(chunk, &seed);
        for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
            candidates.words[w] = next_random(&seed);
        for (unsigned i = 0; (scan = vmf_page_scan_nth(i)); i++) {
            check_scan(scan, chunk, VMF_CHUNK_PAGES, NULL);
            check_scan(scan, chunk, VMF_CHUNK_PAGES, &candidates);
            check_scan(scan, chunk, 1 + next_random(&seed) % VMF_CHUNK_PAGES, &candidates);
            check_scan(scan, chunk, 65, NULL);
            check_scan(scan, chunk, 1, NULL);
        }
    }
}

static void the_zero_test_alone_and_the_digest_alone(void **state)
{
    uint8_t *chunk = *state;
    uint64_t digests[VMF_CHUNK_PAGES], seed = 5;
    const VmfPageScan *scan = vmf_page_scan_select();
    VmfPageSet data, zero, wanted;

    fill(chunk, &seed);
    vmf_page_scan(scan, chunk, VMF_PAGE_SIZE, VMF_CHUNK_PAGES, NULL, data.words, zero.words, NULL);
    assert_int_equal(vmf_page_set_count(&data) + vmf_page_set_count(&zero), VMF_CHUNK_PAGES);
    vmf_page_set_clear(&wanted);
    vmf_page_set_add_range(&wanted, 100, 300);
    memset(digests, 0xff, sizeof(digests));
    vmf_page_scan_digests(scan, chunk, VMF_PAGE_SIZE, VMF_CHUNK_PAGES, wanted.words, digests);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        bool has_data = vmf_page_set_test(&data, page);
        uint64_t expected = has_data ? XXH3_64bits(chunk + page * VMF_PAGE_SIZE, VMF_PAGE_SIZE) : 0;
        assert_true(digests[page] == (vmf_page_set_test(&wanted, page) ? expected : UINT64_MAX));
    }
}

/* The values are those of the format document's formula, computed by another program. */
static void the_mix_is_the_documents(void **state)
{
    assert_true(vmf_page_digest_mix(5, 0) == 0);
    assert_true(vmf_page_digest_mix(0, 1) == UINT64_C(0xf7622d3784a0ad54));
    assert_true(vmf_page_digest_mix(123456789, UINT64_C(0xfedcba9876543210)) == UINT64_C(0x5a53a7982d247dbb));
    /* Two pages that change places are noticed. */
    assert_true(vmf_page_digest_mix(1, 10) + vmf_page_digest_mix(2, 20) !=
                vmf_page_digest_mix(1, 20) + vmf_page_digest_mix(2, 10));
}

/* The thread sanitizer is to accept a guest that writes what is scanned. */
typedef struct {
    uint64_t *words;
    _Atomic bool stop;
} Writer;

static void *write_pages(void *opaque)
{
    Writer *writer = opaque;

    for (uint64_t i = 0; !atomic_load(&writer->stop); i++)
        writer->words[i * 97 % (VMF_CHUNK_SIZE / sizeof(uint64_t))] = i;
    return NULL;
}

static void a_guest_may_write_meanwhile(void **state)
{
    Writer writer = {.words = *state};
    uint64_t digests[VMF_CHUNK_PAGES];
    VmfPageSet data, zero;
    pthread_t thread;
    const VmfPageScan *scan;

    assert_int_equal(pthread_create(&thread, NULL, write_pages, &writer), 0);
    for (unsigned i = 0; i < 60; i++) {
        for (unsigned n = 0; (scan = vmf_page_scan_nth(n)); n++) {
            vmf_page_scan(scan, *state, VMF_PAGE_SIZE, VMF_CHUNK_PAGES, NULL, data.words, zero.words, digests);
            assert_int_equal(vmf_page_set_count(&data) + vmf_page_set_count(&zero), VMF_CHUNK_PAGES);
        }
    }
    atomic_store(&writer.stop, true);
    pthread_join(thread, NULL);
}

/* A disk's content is looked at where it lies, in memory of whoever has it. */
static void it_may_lie_anywhere(void **state)
{
    g_autofree uint8_t *memory = g_malloc0(4096 + 64);
    const VmfPageScan *scan;

    for (unsigned i = 0; (scan = vmf_page_scan_nth(i)); i++)
        for (unsigned at = 0; at < 64; at += 8) {
            assert_true(scan->is_zero(memory + at, 4096));
            memory[at + 4095] = 1;
            assert_false(scan->is_zero(memory + at, 4096));
            memory[at + 4095] = 0;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_may_lie_anywhere),
        cmocka_unit_test_setup_teardown(every_bit_of_a_page_counts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_implementations_agree_with_a_naive_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_zero_test_alone_and_the_digest_alone, set_up, tear_down),
        cmocka_unit_test(the_mix_is_the_documents),
        cmocka_unit_test_setup_teardown(a_guest_may_write_meanwhile, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
