/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A channel that breaks anywhere: small migrations, each cut at a seeded octet of one direction of one channel, and the same with an
 * octet inverted. Whatever happens, the guest runs exactly once, or a side says that it holds it: never twice, never nowhere.
 */
#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/world.h"

#define KIB UINT64_C(1024)
#define CUTS 60  /* for each end and direction: 240 in all */
#define FLIPS 25 /* likewise */

typedef enum { SOURCE_WRITES, SOURCE_READS, TARGET_WRITES, TARGET_READS, N_PLACES } Place;
static const char *const places[] = {"source writes", "source reads", "target writes", "target reads"};

typedef struct {
    VmfFault fault;
    Place place;
    unsigned index; /* of the channel, in the order opened or accepted */
    bool met;       /* the channel was there */
} Plan;

static VmfChannel *wrap(VmfChannel *channel, unsigned index, Plan *plan, bool at_source)
{
    bool here = (plan->place < TARGET_WRITES) == at_source && index == plan->index;

    if (here) /* the other side's thread is in here too */
        plan->met = true;
    return here ? vmf_filter_fault(channel, &plan->fault, 1) : channel;
}

static VmfChannel *wrap_source(VmfChannel *channel, unsigned index, void *plan)
{
    return wrap(channel, index, plan, true);
}

static VmfChannel *wrap_target(VmfChannel *channel, unsigned index, void *plan)
{
    return wrap(channel, index, plan, false);
}

static VmfMachine *small_machine(const char *name, bool works)
{
    VmfMachineConfig config = {.name = name, .memory_bytes = 512 * KIB, .seed = 5};

    if (works) {
        config.dirty_bytes_per_second = 4096 * KIB;
        config.set_bytes = 128 * KIB;
    }
    VmfMachine *machine = vmf_machine_new(&config, NULL);
    assert_non_null(machine);
    return machine;
}

/* ---- one trip -------------------------------------------------------------------------------------------------------------- */

typedef enum { AT_SOURCE, AT_TARGET, HELD_AND_AT_SOURCE, HELD_AND_AT_TARGET, HELD_BY_BOTH, N_ENDS } End;
static const char *const ends[] = {"at the source", "at the target", "held, runs at the source", "held, runs at the target",
                                   "held by both"};

typedef struct {
    bool here, there; /* the guest runs at the source, at the target */
    bool source_holds, target_holds;
} Outcome;

static void fail_with(const char *what, const Plan *plan, const VmfTrip *trip)
{
    fail_msg("%s: %s, channel %u, octet %u: source %s, target %s", what, places[plan->place], plan->index,
             (unsigned)plan->fault.offset, trip->source_error ? trip->source_error->message : "done",
             trip->target_error ? trip->target_error->message : "done");
}

static End judge(const Outcome *o, const Plan *plan, const VmfTrip *trip)
{
    if (o->here && o->there)
        fail_with("the guest runs twice", plan, trip);
    if (!o->here && !o->there && !o->source_holds)
        fail_with("the guest runs nowhere, and its source does not say so", plan, trip);
    if (!o->here && !o->there && !o->target_holds)
        fail_with("the source holds a guest that the target has given up", plan, trip);
    if (o->source_holds)
        return o->there ? HELD_AND_AT_TARGET : HELD_BY_BOTH;
    if (o->target_holds)
        return HELD_AND_AT_SOURCE;
    return o->here ? AT_SOURCE : AT_TARGET;
}

/* Both sides say in their return values and outcomes what is the case. */
static void check_words(const Outcome *o, const Plan *plan, const VmfTrip *trip)
{
    if (trip->source_done != (trip->source.outcome == VMF_OUTCOME_COMPLETED) || trip->target_done != o->there ||
        (trip->source_done && !o->there) || trip->source_done == (trip->source_error != NULL) ||
        trip->target_done == (trip->target_error != NULL))
        fail_with("a side says what is not the case", plan, trip);
}

static End travel(Plan *plan, unsigned version, unsigned channels)
{
    g_autoptr(VmfMachine) a = small_machine("a", true);
    g_autoptr(VmfMachine) b = small_machine("b", false);
    VmfMachineInfo info;
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.channels = channels;
    trip.source_parameters.stream_version = version;
    trip.source_parameters.audit = VMF_AUDIT_OFF;
    trip.source_parameters.downtime_limit_ns = 1000000000;
    trip.source_parameters.switchover_timeout_ns = 1000000000;
    trip.source_parameters.minimum_rounds = 2;
    trip.wrap_source = wrap_source;
    trip.wrap_target = wrap_target;
    trip.wrap_opaque = plan;
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(3000);
    vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    Outcome outcome = {
        .here = vmf_machine_is_running(a),
        .there = vmf_machine_is_running(b),
        .source_holds = trip.source.outcome == VMF_OUTCOME_HELD,
        .target_holds = trip.target.outcome == VMF_OUTCOME_HELD,
    };
    End end = judge(&outcome, plan, &trip);
    check_words(&outcome, plan, &trip);
    vmf_machine_get_info(outcome.there ? b : a, &info);
    assert_int_equal(info.guest_errors, 0);
    vmf_trip_clear(&trip);
    return end;
}

/* ---- where ----------------------------------------------------------------------------------------------------------------- */

/* About as many octets as a whole migration moves in this place: the range in which faults make sense. */
static uint64_t octets_in(Place place, unsigned index)
{
    bool out = place == SOURCE_WRITES || place == TARGET_READS;

    if (index == 0)
        return out ? 1460 : 360;
    return out ? 188 * KIB : 130;
}

/* Half of them anywhere, half near the end, where the handover is. */
static uint64_t choose(GRand *rand, uint64_t octets, unsigned n)
{
    uint64_t tail = MIN(octets, 160);

    return n % 2 ? octets - tail + (uint64_t)g_rand_int_range(rand, 0, (gint32)tail) : (uint64_t)g_rand_int_range(rand, 0, (gint32)octets);
}

static void play(VmfFaultKind kind, unsigned count)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(kind + 11);
    unsigned seen[N_ENDS] = {0};

    for (Place place = 0; place < N_PLACES; place++)
        for (unsigned n = 0; n < count; n++) {
            unsigned version = n % 4 == 3 ? 2 : 3, index = n % 3 == 2;
            Plan plan = {.place = place, .index = index};
            plan.fault = (VmfFault){.kind = kind, .on_read = place == SOURCE_READS || place == TARGET_READS,
                                    .offset = choose(rand, octets_in(place, index), n)};
            seen[travel(&plan, version, 1)]++;
            assert_true(plan.met || index > 0); /* a stream that is refused never opens a page channel */
        }
    for (unsigned e = 0; e < N_ENDS; e++)
        print_message("%s: %u\n", ends[e], seen[e]);
    assert_true(seen[AT_SOURCE] > 0 && seen[AT_TARGET] > 0);
}

static void test_cuts(void **state)
{
    play(VMF_FAULT_CUT, CUTS);
}

static void test_flips(void **state)
{
    play(VMF_FAULT_FLIP, FLIPS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_flips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
