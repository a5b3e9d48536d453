/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest that writes far more than the link carries, on both backends: what is said, what throttling does to it by its own count, and
 * that it has its full speed again as soon as the migration has ended, however it did.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "machine/machine-private.h"
#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)
#define DIRTY (100 * MIB) /* bytes a second */
#define LOOK_MS 200 /* over which the guest's own count is taken */

static VmfMachine *make(const char *backend)
{
    VmfMachineConfig config = {
        .name = "guest",
        .backend = backend,
        .memory_bytes = 8 * MIB,
        .dirty_bytes_per_second = DIRTY,
        .set_bytes = 2 * MIB,
        .seed = 7,
    };
    g_autoptr(GError) error = NULL;
    VmfMachine *machine = vmf_machine_new(&config, &error);

    if (!machine)
        fail_msg("%s", error->message);
    return machine;
}

static VmfMachineInfo info_of(VmfMachine *machine)
{
    VmfMachineInfo info;

    vmf_machine_get_info(machine, &info);
    return info;
}

/* Pages that the guest writes in a while, by its own count. */
static uint64_t pages_written(VmfMachine *machine)
{
    uint64_t before = info_of(machine).pages_written;

    g_usleep(LOOK_MS * 1000);
    return info_of(machine).pages_written - before;
}

/* What it writes where nobody slows it. */
static uint64_t let_it_run(VmfMachine *machine)
{
    assert_true(vmf_machine_start(machine, NULL));
    while (info_of(machine).pages_written < 2 * 2 * MIB / 4096)
        g_usleep(1000);
    return pages_written(machine);
}

/* @full is what the guest writes by itself, which the host may keep far below DIRTY. */
static void init_trip(VmfTrip *trip, uint64_t full)
{
    vmf_trip_init(trip);
    trip->source_parameters.max_bandwidth = MAX(MIN(4 * MIB, full * 4096 * 1000 / LOOK_MS / 15), MIB / 4);
    trip->source_parameters.throttle_maximum = 90;
}

static VmfStatistics statistics_of(VmfTripRunning *running)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    vmf_session_get_statistics(vmf_trip_source(running), &statistics);
    assert_int_equal(statistics.outcome, VMF_OUTCOME_NONE);
    return statistics;
}

/* It is as it was. */
static void check_full_speed(VmfMachine *machine, uint64_t full)
{
    assert_true(vmf_machine_is_running(machine));
    assert_int_equal(info_of(machine).throttle_percent, 0);
    assert_int_equal(info_of(machine).guest_errors, 0);
    uint64_t best = 0;
    for (unsigned i = 0; i < 200 && best < full * 7 / 10; i++) /* others may have the processors for a while */
        best = MAX(best, pages_written(machine));
    assert_true(best >= full * 7 / 10);
}

static bool has_said_so(const VmfStatistics *statistics)
{
    return strstr(statistics->converge_reason, "will not converge, because ") && statistics->n_throttle_steps > 0;
}

/* Throttled by the most that is allowed it goes on, and says so, until it is cancelled. */
static void test_goes_on_until_cancelled(void **state)
{
    g_autoptr(VmfMachine) a = make(*state);
    g_autoptr(VmfMachine) b = make(*state);
    VmfStatistics statistics;
    VmfTrip trip;

    uint64_t full = let_it_run(a);
    init_trip(&trip, full);
    VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    do {
        g_usleep(5000);
        statistics = statistics_of(running);
    } while (!has_said_so(&statistics));
    assert_int_equal(statistics.throttle_percent, 90);
    assert_true(statistics.expected_downtime_ns > statistics.downtime_ns + 20000000);
    const VmfThrottleStep *step = &statistics.throttle_steps[statistics.n_throttle_steps - 1];
    assert_int_equal(step->percent, 90);
    assert_true(statistics.throttle_steps[0].dirty_before_bytes_per_second > 0);
    assert_true(step->dirty_after_bytes_per_second < DIRTY / 2);
    assert_int_equal(info_of(a).throttle_percent, 90);
    assert_true(pages_written(a) * 4096 * 1000 / LOOK_MS < DIRTY / 2);
    unsigned round = statistics.round;
    while (statistics_of(running).round == round) /* it goes on */
        g_usleep(5000);
    vmf_session_cancel(vmf_trip_source(running));
    assert_false(vmf_trip_finish(running));
    assert_int_equal(trip.source.outcome, VMF_OUTCOME_CANCELLED);
    check_full_speed(a, full);
    assert_non_null(strstr(trip.events, "source converge: does not converge yet: the guest writes "));
    assert_non_null(strstr(trip.events, "source converge.throttle: throttled by 90 % the guest writes "));
    assert_non_null(strstr(trip.events, ", throttled by the most allowed, 90 %, and the link carries "));
    vmf_trip_clear(&trip);
}

/* Whether its guest was throttled by the most ahead of it. */
static bool times_out(const char *backend, uint64_t timeout_ns)
{
    g_autoptr(VmfMachine) a = make(backend);
    g_autoptr(VmfMachine) b = make(backend);
    VmfTrip trip;

    uint64_t full = let_it_run(a);
    init_trip(&trip, full);
    trip.source_parameters.timeout_ns = timeout_ns;
    assert_false(vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b)));
    assert_string_equal(vmf_error_id(trip.source_error), "channel.timeout");
    check_full_speed(a, full);
    assert_false(vmf_machine_is_running(b));
    bool throttled = strstr(trip.events, "the guest is throttled by 90 %");
    vmf_trip_clear(&trip);
    return throttled;
}

/* How many rounds fit into a while is up to the host. */
static void test_timeout_ends_it(void **state)
{
    uint64_t timeout_ns = UINT64_C(2500000000);
    unsigned tries = 0;

    while (!times_out(*state, timeout_ns)) {
        assert_true(tries++ < 3);
        timeout_ns *= 3;
    }
}

/* Throttled enough it converges. While somebody decides it runs here, at full speed; then at the target, likewise. */
static void test_converges_and_waits(void **state)
{
    g_autoptr(VmfMachine) a = make(*state);
    g_autoptr(VmfMachine) b = make(*state);
    VmfTrip trip;

    uint64_t full = let_it_run(a);
    init_trip(&trip, full);
    trip.source_parameters.throttle_maximum = 99;
    trip.source_parameters.pause_before_switchover = true;
    trip.source_parameters.max_bandwidth = full * 4096 * 1000 / LOOK_MS * 2 / 5;
    VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    while (statistics_of(running).status != VMF_STATUS_PRE_SWITCHOVER)
        g_usleep(5000);
    assert_true(statistics_of(running).n_throttle_steps > 0);
    check_full_speed(a, full);
    assert_int_equal(statistics_of(running).status, VMF_STATUS_PRE_SWITCHOVER);
    assert_true(vmf_session_continue(vmf_trip_source(running), NULL));
    bool done = vmf_trip_finish(running);
    if (!done)
        print_message("%s\n%s", trip.source_error ? trip.source_error->message : "", trip.events);
    assert_true(done);
    assert_int_equal(trip.source.verified, VMF_VERIFIED_FULL);
    assert_int_equal(info_of(a).throttle_percent, 0); /* should the guest ever come back */
    check_full_speed(b, full);
    vmf_trip_clear(&trip);
}

#define ON(backend)                                                                                                                     \
    {"goes on, " backend, test_goes_on_until_cancelled, NULL, NULL, backend},                                                          \
        {"timeout, " backend, test_timeout_ends_it, NULL, NULL, backend},                                                              \
        {"converges, " backend, test_converges_and_waits, NULL, NULL, backend}

int main(void)
{
    const struct CMUnitTest on_rv32[] = {ON("rv32")}, on_kvm[] = {ON("kvm")};
    g_autoptr(GError) error = NULL;
    int failed = cmocka_run_group_tests_name("rv32", on_rv32, NULL, NULL);

    if (vmf_kvm_works(&error))
        return failed + cmocka_run_group_tests_name("kvm", on_kvm, NULL, NULL);
    print_message("skip: on kvm: %s\n", error->message);
    return failed;
}
