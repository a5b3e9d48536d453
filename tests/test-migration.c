/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that moves: every number of channels, both versions, both kinds of memory, and what must not be lost on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)
/* Of 30 each is of another kind; a sanitizer sees in them what it can. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define CUTS 30
#else
#define CUTS 100
#endif

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

static VmfMachine *make(VmfRamBackend backend)
{
    return vmf_test_machine("guest", 64, backend, 40 * MIB, 32 * MIB);
}

/* What a kind of trip is made of. */
typedef struct {
    const char *uri;
    unsigned channels, version;
    VmfRamBackend backend;
} Kind;

static void test_kinds(void **state)
{
    static const Kind kinds[] = {
        {NULL, 1, 3, VMF_RAM_ANON},
        {"tcp:127.0.0.1:0", 1, 3, VMF_RAM_MEMFD},
        {"tcp:127.0.0.1:0", 2, 3, VMF_RAM_ANON},
        {"tcp:127.0.0.1:0", 4, 3, VMF_RAM_ANON},
        {"tcp:127.0.0.1:0", 1, 2, VMF_RAM_ANON},
        {"tcp:[::1]:0", 2, 2, VMF_RAM_MEMFD},
        {NULL, 4, 2, VMF_RAM_ANON},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autoptr(VmfMachine) a = make(kinds[i].backend);
        g_autoptr(VmfMachine) b = make(kinds[i].backend);
        VmfMachineInfo before, after;
        VmfTrip trip;

        vmf_trip_init(&trip);
        trip.listen_uri = kinds[i].uri;
        trip.source_parameters.channels = kinds[i].channels;
        trip.source_parameters.stream_version = kinds[i].version;
        trip.source_parameters.audit = kinds[i].version == 3 ? VMF_AUDIT_BEFORE : VMF_AUDIT_AFTER;
        trip.source_parameters.minimum_rounds = 3;
        trip.source_parameters.max_bandwidth = 300 * MIB; /* so that no channel has sent everything before another wakes up */
        assert_true(vmf_machine_start(a, NULL));
        g_usleep(300000);
        go(&trip, a, b);
        vmf_machine_get_info(a, &before);
        g_usleep(50000);
        vmf_machine_get_info(b, &after);
        assert_int_equal(after.guest_errors, 0);
        assert_true(after.beats > before.beats);
        assert_true(trip.source.live_rounds_resent >= 1);
        assert_int_equal(trip.source.guest_gap_known, kinds[i].version == 3);
        assert_int_equal(trip.source.n_channels, kinds[i].channels);
        for (unsigned c = 0; c < kinds[i].channels; c++)
            assert_true(trip.source.channel_bytes[c] > 4096);
        vmf_trip_clear(&trip);
    }
}

static void wait_for_resent_round(VmfTripRunning *running)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    do {
        g_usleep(500);
        vmf_session_get_statistics(vmf_trip_source(running), &statistics);
    } while (statistics.outcome == VMF_OUTCOME_NONE &&
             (statistics.live_rounds_resent == 0 || statistics.status != VMF_STATUS_PRE_SWITCHOVER));
}

/* A run cut by a hundred live migrations, each at an instruction of its own, ends as the uncut run ends. */
static void test_hundred_cuts(void **state)
{
    static const unsigned channels[] = {1, 2, 4};
    g_autoptr(VmfMachine) uncut = vmf_test_machine("uncut", 16, VMF_RAM_ANON, 200 * MIB, 4 * MIB);
    VmfMachine *at = vmf_test_machine("cut", 16, VMF_RAM_ANON, 200 * MIB, 4 * MIB);
    g_autoptr(GRand) random = g_rand_new_with_seed(20261120);
    uint64_t instruction = 3000000;
    uint8_t expected[16], found[16];
    VmfMachineInfo info;

    assert_true(vmf_machine_run_to(at, instruction, NULL));
    for (unsigned cut = 0; cut < CUTS; cut++) {
        VmfMachine *next = vmf_test_machine("cut", 16, cut % 2 ? VMF_RAM_MEMFD : VMF_RAM_ANON, 200 * MIB, 4 * MIB);
        VmfTrip trip;

        vmf_trip_init(&trip);
        trip.listen_uri = cut % 3 ? "tcp:127.0.0.1:0" : NULL;
        trip.source_parameters.channels = channels[cut % 3];
        trip.source_parameters.stream_version = cut % 5 == 4 ? 2 : 3;
        trip.source_parameters.audit = cut % 5 == 4 ? VMF_AUDIT_AFTER : VMF_AUDIT_BEFORE;
        trip.source_parameters.pause_before_switchover = true;
        trip.source_parameters.switchover_timeout_ns = 60 * UINT64_C(1000000000); /* whatever else this host does */
        assert_true(vmf_machine_start(at, NULL));
        VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(at), vmf_machine_guest(next));
        wait_for_resent_round(running);
        while (!vmf_machine_stop_at(at, instruction, NULL)) /* the next of the seeded instructions that is not passed yet */
            instruction += (uint64_t)g_rand_int_range(random, 1000000, 3000000);
        vmf_session_continue(vmf_trip_source(running), NULL);
        bool done = vmf_trip_finish(running);
        if (!done)
            say_why(&trip);
        assert_true(done);
        assert_int_equal(trip.source.verified, VMF_VERIFIED_FULL);
        assert_true(trip.source.live_rounds_resent >= 1);
        assert_true(vmf_machine_stop(next, NULL));
        vmf_machine_free(at);
        at = next;
        vmf_trip_clear(&trip);
    }
    vmf_machine_get_info(at, &info);
    assert_int_equal(info.guest_errors, 0);
    instruction = info.instructions + 1000000;
    assert_true(vmf_machine_run_to(at, instruction, NULL));
    assert_true(vmf_machine_run_to(uncut, instruction, NULL));
    assert_true(vmf_machine_hash(at, found, NULL));
    assert_true(vmf_machine_hash(uncut, expected, NULL));
    assert_memory_equal(found, expected, sizeof(found));
    vmf_machine_free(at);
}

static void test_paused_guest_arrives_paused(void **state)
{
    g_autoptr(VmfMachine) a = make(VMF_RAM_ANON);
    g_autoptr(VmfMachine) b = make(VMF_RAM_ANON);
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.downtime_limit_ns = 1; /* it stands: there is no downtime to limit */
    assert_true(vmf_machine_run_to(a, 2000000, NULL));
    assert_true(vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b)));
    assert_false(vmf_machine_is_running(b));
    assert_in_range(trip.source.round, 2, 3); /* the first, perhaps one that waits for what is in flight, the last */
    uint8_t here[16], there[16];
    assert_true(vmf_machine_hash(a, here, NULL));
    assert_true(vmf_machine_hash(b, there, NULL));
    assert_memory_equal(here, there, sizeof(here));
    vmf_trip_clear(&trip);
}

/* A byte inverted in the payload of page channel 0, well into the first pass, in a chunk that is hardly written any more. */
static VmfChannel *flip_one(VmfChannel *channel, unsigned index, void *opaque)
{
    VmfFault fault = {.kind = VMF_FAULT_FLIP, .offset = 5000000};

    return index == 1 ? vmf_filter_fault(channel, &fault, 1) : channel;
}

static void test_flipped_byte_is_mended_and_named(void **state)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 32, VMF_RAM_ANON, MIB / 16, 8 * MIB);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 32, VMF_RAM_ANON, 0, 0);
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.channels = 1;
    trip.source_parameters.minimum_rounds = 4;
    trip.wrap_source = flip_one;
    assert_true(vmf_machine_run_to(a, 50000000, NULL)); /* its memory is filled by then */
    assert_true(vmf_machine_start(a, NULL));
    bool done = vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    if (!done)
        say_why(&trip);
    assert_true(done);
    assert_int_equal(trip.source.chunks_mended, 1);
    assert_non_null(strstr(trip.events, "source chunk.mended: RAM block ram: pages "));
    assert_int_equal(trip.source.verified, VMF_VERIFIED_FULL);
    vmf_trip_clear(&trip);
}

static void test_cancel_leaves_the_guest(void **state)
{
    g_autoptr(VmfMachine) a = make(VMF_RAM_ANON);
    g_autoptr(VmfMachine) b = make(VMF_RAM_ANON);
    VmfMachineInfo before, after;
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.listen_uri = "tcp:127.0.0.1:0";
    trip.source_parameters.max_bandwidth = 1 * MIB;
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(50000);
    VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    g_usleep(200000);
    vmf_session_cancel(vmf_trip_source(running));
    assert_false(vmf_trip_finish(running));
    assert_int_equal(trip.source.outcome, VMF_OUTCOME_CANCELLED);
    assert_string_equal(vmf_error_id(trip.source_error), "cancelled");
    assert_string_equal(trip.target_error->message, "source: took the guest back"); /* it was told */
    assert_true(vmf_machine_is_running(a));
    assert_false(vmf_machine_is_running(b));
    vmf_machine_get_info(a, &before);
    g_usleep(50000);
    vmf_machine_get_info(a, &after);
    assert_true(after.beats > before.beats);
    assert_int_equal(after.throttle_percent, 0);
    vmf_trip_clear(&trip);
}

static void test_pause_before_switchover(void **state)
{
    g_autoptr(VmfMachine) a = make(VMF_RAM_ANON);
    g_autoptr(VmfMachine) b = make(VMF_RAM_ANON);
    VmfTrip trip;
    VmfStatistics statistics = {.size = sizeof(statistics)};

    vmf_trip_init(&trip);
    trip.source_parameters.pause_before_switchover = true;
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(50000);
    VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    while (statistics.status != VMF_STATUS_PRE_SWITCHOVER) {
        g_usleep(1000);
        vmf_session_get_statistics(vmf_trip_source(running), &statistics);
    }
    VmfMachineInfo info;
    vmf_machine_get_info(a, &info);
    assert_true(vmf_machine_is_running(a));
    assert_int_equal(info.throttle_percent, 0);
    assert_true(vmf_session_continue(vmf_trip_source(running), NULL));
    assert_true(vmf_trip_finish(running));
    assert_true(vmf_machine_is_running(b));
    vmf_trip_clear(&trip);
}

/* The limit holds while a human decides, too. */
static void test_timeout_before_switchover(void **state)
{
    g_autoptr(VmfMachine) a = make(VMF_RAM_ANON);
    g_autoptr(VmfMachine) b = make(VMF_RAM_ANON);
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.pause_before_switchover = true;
    trip.source_parameters.timeout_ns = 400 * 1000 * 1000;
    assert_true(vmf_machine_start(a, NULL));
    assert_false(vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b)));
    assert_string_equal(vmf_error_id(trip.source_error), "channel.timeout");
    assert_true(vmf_machine_is_running(a));
    assert_false(vmf_machine_is_running(b));
    vmf_trip_clear(&trip);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_paused_guest_arrives_paused),
        cmocka_unit_test(test_flipped_byte_is_mended_and_named),
        cmocka_unit_test(test_cancel_leaves_the_guest),
        cmocka_unit_test(test_pause_before_switchover),
        cmocka_unit_test(test_timeout_before_switchover),
        cmocka_unit_test(test_hundred_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
