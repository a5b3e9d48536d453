/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "ram/page-set.h"

static void masks_cover_what_lies_in_the_word(void **state)
{
    for (uint64_t first = 0; first < 200; first += 7) {
        for (uint64_t end = 0; end < 200; end += 5) {
            for (uint64_t word = 0; word < 4; word++) {
                uint64_t mask = 0;
                for (unsigned bit = 0; bit < 64; bit++)
                    mask |= (uint64_t)(word * 64 + bit >= first && word * 64 + bit < end) << bit;
                assert_true(vmf_page_word_mask(word, first, end) == mask);
            }
        }
    }
}

static VmfPageSet every_nth(unsigned n)
{
    VmfPageSet set;

    vmf_page_set_clear(&set);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page += n)
        vmf_page_set_add(&set, page);
    return set;
}

static void set_operations(void **state)
{
    VmfPageSet twos = every_nth(2), threes = every_nth(3), empty;
    VmfPageSet either = vmf_page_set_or(&twos, &threes), both = vmf_page_set_and(&twos, &threes);
    VmfPageSet only_twos = vmf_page_set_and_not(&twos, &threes), slice = vmf_page_set_slice(&twos, 63, 130);

    vmf_page_set_clear(&empty);
    assert_true(vmf_page_set_is_empty(&empty));
    assert_false(vmf_page_set_is_empty(&both));
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        assert_int_equal(vmf_page_set_test(&either, page), page % 2 == 0 || page % 3 == 0);
        assert_int_equal(vmf_page_set_test(&both, page), page % 6 == 0);
        assert_int_equal(vmf_page_set_test(&only_twos, page), page % 2 == 0 && page % 3 != 0);
        assert_int_equal(vmf_page_set_test(&slice, page), page % 2 == 0 && page >= 63 && page < 193);
    }
    assert_int_equal(vmf_page_set_count(&twos), 256);
}

static void runs_are_found_across_words(void **state)
{
    const unsigned runs[][2] = {{0, 1}, {5, 3}, {60, 70}, {200, 56}, {300, 1}, {448, 64}};
    unsigned first, n_pages, from = 0;
    VmfPageSet set;

    vmf_page_set_clear(&set);
    for (unsigned i = 0; i < G_N_ELEMENTS(runs); i++)
        vmf_page_set_add_range(&set, runs[i][0], runs[i][1]);
    for (unsigned i = 0; i < G_N_ELEMENTS(runs); i++, from = first + n_pages) {
        assert_true(vmf_page_set_next_run(&set, from, &first, &n_pages));
        assert_int_equal(first, runs[i][0]);
        assert_int_equal(n_pages, runs[i][1]);
    }
    assert_false(vmf_page_set_next_run(&set, from, &first, &n_pages));
    assert_true(vmf_page_set_next_run(&set, 100, &first, &n_pages));
    assert_int_equal(first, 100); /* from within a run: its rest */
    assert_int_equal(n_pages, 30);
}

static void pieces_hold_as_many_pages_as_allowed(void **state)
{
    VmfPageSet set = every_nth(3);
    unsigned seen = 0;

    for (unsigned from = 0, end; from < VMF_CHUNK_PAGES; from = end) {
        end = vmf_page_set_cut(&set, from, 50);
        VmfPageSet piece = vmf_page_set_slice(&set, from, end - from);
        assert_int_equal(vmf_page_set_count(&piece), MIN(50, 171 - seen));
        seen += vmf_page_set_count(&piece);
    }
    assert_int_equal(seen, 171);
    vmf_page_set_add_range(&set, 0, VMF_CHUNK_PAGES);
    assert_int_equal(vmf_page_set_cut(&set, 128, 128), 256);
    assert_int_equal(vmf_page_set_cut(&set, 0, 512), 512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_cover_what_lies_in_the_word),
        cmocka_unit_test(set_operations),
        cmocka_unit_test(runs_are_found_across_words),
        cmocka_unit_test(pieces_hold_as_many_pages_as_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
