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

    vmf_disk_pace_init(&pace, false, MOST);
    vmf_disk_pace_look(&pace, 10, 10);
    assert_int_equal(pace.depth, MOST);
    assert_int_equal(pace.pause_ns, 0);
}

static void test_it_finds_what_the_storage_bears(void **state)
{
    VmfDiskPace pace;
    unsigned late = 0;

    vmf_disk_pace_init(&pace, true, MOST);
    windows(&pace, 5, 10, &late);
    late = 0;
    windows(&pace, 5, 100, &late);
    /* It tries again and again, and is late in no more than every third window; otherwise it uses what there is. */
    assert_in_range(late, 1, 34);
    assert_in_range(pace.depth, 2, 6);
    windows(&pace, MOST, 20, &late);
    assert_int_equal(pace.depth, MOST);
}

static void test_where_one_is_too_much_it_pauses(void **state)
{
    VmfDiskPace pace;
    unsigned late = 0;

    vmf_disk_pace_init(&pace, true, MOST);
    windows(&pace, 0, 100, &late);
    assert_int_equal(pace.depth, 1);
    assert_int_equal(pace.pause_ns, 200000000); /* and no more: a copy that never ends helps nobody */
    windows(&pace, MOST, 60, &late);
    assert_int_equal(pace.depth, MOST);
    assert_int_equal(pace.pause_ns, 0);
}

static void test_one_late_in_a_hundred_is_fine(void **state)
{
    VmfDiskPace pace;

    vmf_disk_pace_init(&pace, true, MOST);
    vmf_disk_pace_look(&pace, 100, 1);
    assert_int_equal(pace.depth, MOST);
    vmf_disk_pace_look(&pace, 100, 2);
    assert_int_equal(pace.depth, MOST / 2);
    vmf_disk_pace_look(&pace, 0, 0); /* nobody writes */
    assert_int_equal(pace.depth, MOST / 2 + 1);
}

/* Few writes in each window: they are judged by the hundred. */
static void test_few_writes(void **state)
{
    VmfDiskPace pace;

    vmf_disk_pace_init(&pace, true, MOST);
    vmf_disk_pace_look(&pace, 10, 1);
    assert_int_equal(pace.depth, MOST);
    vmf_disk_pace_look(&pace, 10, 1); /* the second one is more than a hundred may have */
    assert_int_equal(pace.depth, MOST / 2);
    for (unsigned i = 0; i < 9; i++)
        vmf_disk_pace_look(&pace, 10, 0);
    assert_int_equal(pace.depth, MOST / 2);
    vmf_disk_pace_look(&pace, 10, 1);
    assert_int_equal(pace.depth, MOST / 2 + 1);
}

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        cmocka_unit_test(test_without_a_goal),
        cmocka_unit_test(test_it_finds_what_the_storage_bears),
        cmocka_unit_test(test_where_one_is_too_much_it_pauses),
        cmocka_unit_test(test_one_late_in_a_hundred_is_fine),
        cmocka_unit_test(test_few_writes),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
