/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Units of a disk against an array that has a state for each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "block/units.h"

#define N 300u /* several words, and a part of one */

typedef enum { DONE, WANTED, UNDER_WAY } State; /* wanted: to do */

static uint64_t first_that(const State *model, uint64_t from, uint64_t end, bool todo, bool under_way)
{
    for (uint64_t at = from; at < end; at++)
        if ((todo && model[at] == WANTED) || (under_way && model[at] == UNDER_WAY))
            return at;
    return end;
}

static void compare(const VmfDiskUnits *units, const State *model, uint64_t from, uint64_t end)
{
    uint64_t left = 0, run = 0;

    for (unsigned at = 0; at < N; at++)
        left += model[at] != DONE;
    assert_int_equal(units->n_left, left);
    assert_int_equal(vmf_disk_units_next_todo(units, from), first_that(model, from, N, true, false));
    assert_int_equal(vmf_disk_units_next_left(units, from, end), first_that(model, from, end, true, true));
    assert_int_equal(vmf_disk_units_next_under_way(units, from, end), first_that(model, from, end, false, true));
    while (run < 20 && from + run < N && model[from + run] == WANTED)
        run++;
    assert_int_equal(vmf_disk_units_run(units, from, 20), run);
}

static void change(State *model, uint64_t from, uint64_t end, State before, State after)
{
    for (uint64_t at = from; at < end; at++)
        model[at] = model[at] == before ? after : model[at];
}

static void step(VmfDiskUnits *units, State *model, GRand *rand)
{
    uint64_t from = (uint64_t)g_rand_int_range(rand, 0, N), end = (uint64_t)g_rand_int_range(rand, (int)from + 1, N + 1);

    switch (g_rand_int_range(rand, 0, 4)) {
    case 0:
        for (uint64_t at = from; at < end; at++)
            if (model[at] == DONE) {
                assert_int_equal(vmf_disk_units_set_todo(units, at * VMF_DISK_UNIT + 5, 1), 1);
                model[at] = WANTED;
            }
        units->cursor = 0;
        break;
    case 1:
        vmf_disk_units_begin(units, from, end - from);
        change(model, from, end, WANTED, UNDER_WAY);
        break;
    case 2:
        vmf_disk_units_end(units, from, end - from);
        change(model, from, end, UNDER_WAY, DONE);
        break;
    default:
        vmf_disk_units_undo(units, from, end - from);
        change(model, from, end, UNDER_WAY, WANTED);
    }
    compare(units, model, from, end);
}

static void test_against_model(void **state)
{
    VmfDiskUnits units;
    State model[N] = {DONE};
    GRand *rand = g_rand_new_with_seed(3);

    assert_true(vmf_disk_units_init(&units, (uint64_t)N * VMF_DISK_UNIT - 512));
    assert_int_equal(units.n, N);
    for (unsigned i = 0; i < 20000; i++)
        step(&units, model, rand);
    vmf_disk_units_clear(&units);
    g_rand_free(rand);
}

static void test_urgent(void **state)
{
    VmfDiskUnits units;
    uint64_t first;

    assert_true(vmf_disk_units_init(&units, (uint64_t)N * VMF_DISK_UNIT));
    assert_false(vmf_disk_units_ask(&units, 0, N));
    assert_int_equal(vmf_disk_units_set_todo(&units, 10 * VMF_DISK_UNIT, 100 * VMF_DISK_UNIT), 100);
    assert_int_equal(vmf_disk_units_set_todo(&units, 10 * VMF_DISK_UNIT - 1, 2), 1);
    assert_false(vmf_disk_units_ask(&units, 0, 9));
    assert_true(vmf_disk_units_ask(&units, 0, 12));
    assert_true(vmf_disk_units_ask(&units, 11, 13)); /* 11 is asked for already */
    assert_int_equal(units.urgent->len, 4);
    assert_int_equal(vmf_disk_units_take_urgent(&units, 2, &first), 2);
    assert_int_equal(first, 9);
    vmf_disk_units_begin(&units, 9, 2);
    assert_int_equal(vmf_disk_units_take_urgent(&units, 4, &first), 4); /* 10 is under way */
    assert_int_equal(first, 11);
    vmf_disk_units_begin(&units, 11, 4);
    assert_int_equal(vmf_disk_units_take_urgent(&units, 4, &first), 0);
    assert_true(vmf_disk_units_ask(&units, 11, 12)); /* it is not done */
    assert_int_equal(units.urgent->len, 0);
    vmf_disk_units_undo(&units, 11, 1);
    assert_int_equal(units.cursor, 0);
    assert_true(vmf_disk_units_ask(&units, 11, 12)); /* and can be asked for again */
    assert_int_equal(vmf_disk_units_take_urgent(&units, 4, &first), 1);
    vmf_disk_units_end(&units, 12, 3);
    assert_false(vmf_disk_units_ask(&units, 12, 15));
    assert_true(vmf_disk_units_ask(&units, 0, N)); /* of many some */
    assert_true(units.urgent->len > 0 && units.urgent->len < 90);
    vmf_disk_units_clear(&units);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_model),
        cmocka_unit_test(test_urgent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
