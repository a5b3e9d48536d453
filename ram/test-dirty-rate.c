/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that runs for 1 ms of every 10, seen at intervals that have nothing to do with that. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "ram/dirty-rate.h"

#define MS UINT64_C(1000000)
#define PER_MS 1000000 /* bytes, while it runs */
#define PERIOD 10 /* ms, of which it runs the first */

/* Bytes written in [from, to) ms. */
static uint64_t written(unsigned from, unsigned to)
{
    uint64_t bytes = 0;

    for (unsigned ms = from; ms < to; ms++)
        bytes += ms % PERIOD == 0 ? PER_MS : 0;
    return bytes;
}

static void test_turns_are_averaged(void **state)
{
    for (unsigned step = 1; step < 40; step++) {
        VmfDirtyRate rate = {0};
        for (unsigned ms = 3; ms < 2000; ms += step) {
            vmf_dirty_rate_add(&rate, written(ms, ms + step), step * MS);
            assert_int_equal(rate.settled, ms + step - 3 >= 100);
            if (rate.settled) /* 100 MB/s, but for the part of a turn at either end */
                assert_in_range(rate.bytes_per_second, 88 * MS, 112 * MS);
        }
    }
}

static void test_a_long_round_is_a_window(void **state)
{
    VmfDirtyRate rate = {0};

    vmf_dirty_rate_add(&rate, 500 * MS, 1000 * MS);
    assert_true(rate.settled);
    assert_int_equal(rate.bytes_per_second, 500 * MS);
    vmf_dirty_rate_add(&rate, 0, 1000 * MS);
    assert_int_equal(rate.bytes_per_second, 0);
}

static void test_a_new_degree_begins_anew(void **state)
{
    VmfDirtyRate rate = {0};

    vmf_dirty_rate_add(&rate, 99 * MS, 99 * MS);
    assert_false(rate.settled);
    assert_int_equal(rate.bytes_per_second, 1000 * MS); /* the best there is */
    vmf_dirty_rate_restart(&rate);
    assert_int_equal(rate.bytes_per_second, 1000 * MS);
    vmf_dirty_rate_add(&rate, 1 * MS, 10 * MS);
    assert_false(rate.settled);
    assert_int_equal(rate.bytes_per_second, 100 * MS);
    vmf_dirty_rate_add(&rate, 9 * MS, 90 * MS);
    assert_true(rate.settled);
    assert_int_equal(rate.bytes_per_second, 100 * MS);
    vmf_dirty_rate_restart(&rate);
    vmf_dirty_rate_set(&rate, 7);
    assert_true(rate.settled);
    assert_int_equal(rate.bytes_per_second, 7);
}

static void test_no_time_at_all(void **state)
{
    VmfDirtyRate rate = {0};

    vmf_dirty_rate_add(&rate, 0, 0);
    assert_int_equal(rate.bytes_per_second, 0);
    vmf_dirty_rate_add(&rate, 4096, 0);
    assert_false(rate.settled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turns_are_averaged),
        cmocka_unit_test(test_a_long_round_is_a_window),
        cmocka_unit_test(test_a_new_degree_begins_anew),
        cmocka_unit_test(test_no_time_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
