/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pace of a copy beside models of storage: it finds what the guest bears, leaves it alone at once, and comes back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "migration/disk-pace.h"

#define MOST 16

/* Storage on which a write is late when more than @bears reads are under way; with fewer none is. */
static void windows(VmfDiskPace *pace, unsigned bears, unsigned n, unsigned *late_windows)
{
    for (unsigned i = 0; i < n; i++) {
        bool late = pace->depth > bears;

        *late_windows += late;
        vmf_disk_pace_look(pace, 100, late ? 50 : 0);
    }
}

static void test_without_a_goal(void **state)
{
    VmfDiskPace pace;

    vmf_disk_pace_init(&pace, false, MOST, 16);
    vmf_disk_pace_look(&pace, 10, 10);
    assert_int_equal(pace.depth, MOST);
    assert_int_equal(pace.pause_ns, 0);
}

static void test_it_finds_what_the_storage_bears(void **state)
{
    VmfDiskPace pace;
    unsigned late = 0;

    vmf_disk_pace_init(&pace, true, MOST, 16);
    assert_int_equal(pace.depth, 1);
    assert_int_equal(pace.granules, 1);
    assert_int_equal(pace.pause_ns, 0);
    windows(&pace, 5, 20, &late);
    assert_int_equal(late, 1);
    assert_in_range(pace.depth, 2, 5);
    windows(&pace, 5, 1000, &late);
    /* It tries again and again, and half of the writes of a try are late, but of all no more than one in a hundred. */
    assert_in_range(late, 10, 1020 / 50);
    assert_in_range(pace.depth, 2, 6);
    windows(&pace, MOST, 70, &late);
    assert_int_equal(pace.depth, MOST);
}

static void test_where_one_is_too_much_it_pauses(void **state)
{
    VmfDiskPace pace;
    unsigned late = 0;

    vmf_disk_pace_init(&pace, true, MOST, 16);
    windows(&pace, 0, 20, &late);
    assert_int_equal(pace.depth, 1);
    assert_int_equal(pace.granules, 1);
    assert_int_equal(pace.pause_ns, 16000000); /* and no more: a copy that never ends helps nobody */
    windows(&pace, MOST, 110, &late);
    assert_int_equal(pace.depth, MOST);
    assert_int_equal(pace.granules, 16);
    assert_int_equal(pace.pause_ns, 0);
}

/* One read at a time is borne, if it is small: there is no need to pause. */
static void test_reads_are_small_before_there_are_pauses(void **state)
{
    VmfDiskPace pace;

    vmf_disk_pace_init(&pace, true, MOST, 16);
    for (unsigned i = 0; i < 1000; i++) {
        bool late = pace.depth > 1 || pace.granules > 2;

        vmf_disk_pace_look(&pace, 100, late ? 5 : 0);
        assert_int_equal(pace.pause_ns, 0);
    }
    assert_int_equal(pace.depth, 1);
    assert_in_range(pace.granules, 1, 4);
}

/* On storage that bears what it is asked for. */
static void be_fast(VmfDiskPace *pace)
{
    unsigned late = 0;

    vmf_disk_pace_init(pace, true, MOST, 16);
    windows(pace, MOST, 40, &late);
    assert_int_equal(pace->depth, MOST);
}

static void test_one_late_in_a_hundred_is_fine(void **state)
{
    VmfDiskPace pace;

    be_fast(&pace);
    vmf_disk_pace_look(&pace, 100, 1);
    assert_int_equal(pace.depth, MOST);
    vmf_disk_pace_look(&pace, 100, 2);
    assert_int_equal(pace.depth, MOST / 2);
}

/* Whoever is late is paid for before it is faster again; where nobody writes that takes its time as well. */
static void test_a_late_write_is_paid_for(void **state)
{
    VmfDiskPace pace;

    be_fast(&pace);
    vmf_disk_pace_look(&pace, 100, 3);
    assert_int_equal(pace.depth, MOST / 2);
    vmf_disk_pace_look(&pace, 100, 0);
    vmf_disk_pace_look(&pace, 100, 0);
    assert_int_equal(pace.depth, MOST / 2);
    vmf_disk_pace_look(&pace, 100, 0);
    assert_int_equal(pace.depth, MOST / 2 + 1);
    vmf_disk_pace_look(&pace, 100, 3);
    assert_int_equal(pace.depth, MOST / 4);
    for (unsigned i = 0; i < 20; i++)
        vmf_disk_pace_look(&pace, 0, 0);
    assert_int_equal(pace.depth, MOST / 4);
    vmf_disk_pace_look(&pace, 0, 0);
    assert_int_equal(pace.depth, MOST / 4 + 1);
}

/* Few writes in each window: they are judged by the hundred. */
static void test_few_writes(void **state)
{
    VmfDiskPace pace;

    be_fast(&pace);
    vmf_disk_pace_look(&pace, 10, 1);
    assert_int_equal(pace.depth, MOST);
    vmf_disk_pace_look(&pace, 10, 1); /* the second one is more than a hundred may have */
    assert_int_equal(pace.depth, MOST / 2);
    for (unsigned i = 0; i < 19; i++)
        vmf_disk_pace_look(&pace, 10, 0);
    assert_int_equal(pace.depth, MOST / 2);
    vmf_disk_pace_look(&pace, 10, 0);
    assert_int_equal(pace.depth, MOST / 2 + 1);
}

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        cmocka_unit_test(test_without_a_goal),
        cmocka_unit_test(test_it_finds_what_the_storage_bears),
        cmocka_unit_test(test_where_one_is_too_much_it_pauses),
        cmocka_unit_test(test_reads_are_small_before_there_are_pauses),
        cmocka_unit_test(test_one_late_in_a_hundred_is_fine),
        cmocka_unit_test(test_a_late_write_is_paid_for),
        cmocka_unit_test(test_few_writes),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
