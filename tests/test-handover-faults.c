/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Either side dies at each fault point of the handover: never two running guests, never none without a stated reason. A side that was
 * killed at a point says nothing and puts nothing right; what its guest did in that process is gone with it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tests/world.h"

typedef enum {
    AT_SOURCE = 1 << 0,        /* the guest goes on where it was */
    AT_TARGET = 1 << 1,        /* it has moved */
    HELD = 1 << 2,             /* one side holds it and says so */
    DIED_WITH_SOURCE = 1 << 3, /* as it would have without migration */
    MOVED = 1 << 4,            /* both knew that it was the target's when that one died */
} Outcome;

typedef struct {
    const char *point;
    unsigned may_be; /* what was written may or may not arrive when the writer dies */
} Row;

static const Row rows[] = {
    {"source.static.sent", DIED_WITH_SOURCE},
    {"source.accepted", DIED_WITH_SOURCE},
    {"source.ahead.sent", DIED_WITH_SOURCE},
    {"source.round.sent", DIED_WITH_SOURCE},
    {"source.journal.offered.due", DIED_WITH_SOURCE},
    {"source.journal.offered.done", DIED_WITH_SOURCE},
    {"source.stopped", DIED_WITH_SOURCE},
    {"source.storage.release.due", DIED_WITH_SOURCE},
    {"source.storage.release.done", DIED_WITH_SOURCE},
    {"source.send.switchover.due", DIED_WITH_SOURCE},
    {"source.send.switchover.done", HELD | DIED_WITH_SOURCE},
    {"source.send.run.due", HELD},
    {"source.send.run.done", AT_TARGET | HELD},
    {"source.journal.gone.due", AT_TARGET},
    {"source.journal.gone.done", AT_TARGET},
    {"source.send.end.due", AT_TARGET},
    {"source.send.end.done", AT_TARGET},
    {"target.accepted", AT_SOURCE},
    {"target.loaded", AT_SOURCE},
    {"target.arrived", AT_SOURCE},
    {"target.storage.acquire.due", AT_SOURCE},
    {"target.storage.acquire.done", AT_SOURCE},
    {"target.journal.ready.due", AT_SOURCE},
    {"target.journal.ready.done", AT_SOURCE},
    {"target.send.ready.due", AT_SOURCE},
    {"target.send.ready.done", HELD}, /* the source had READY and sent RUN: silence is no answer */
    {"target.journal.started.due", HELD},
    {"target.journal.started.done", HELD},
    {"target.guest.start.due", HELD},
    {"target.guest.start.done", HELD}, /* it ran, and died with the target: the source cannot know */
    {"target.send.running.due", HELD},
    {"target.send.running.done", MOVED},
    {"target.journal.confirmed.due", MOVED},
    {"target.journal.confirmed.done", MOVED},
};

typedef struct {
    const char *point;
    bool met;
} Fault;

static bool is_here(void *opaque, const char *point)
{
    Fault *fault = opaque;
    bool here = strcmp(fault->point, point) == 0;

    fault->met |= here;
    return here;
}

static void run_row(const Row *row)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 16, VMF_RAM_ANON, 16 << 20, 4 << 20);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 16, VMF_RAM_ANON, 0, 0);
    bool at_source = g_str_has_prefix(row->point, "source.");
    Fault fault = {row->point, false};
    VmfTrip trip;

    vmf_trip_init(&trip);
    VmfParameters *killed = at_source ? &trip.source_parameters : &trip.target_parameters;
    killed->fault = is_here;
    killed->fault_opaque = &fault;
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(20000);
    vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    assert_true(fault.met);

    /* What ran in a process that was killed runs no more. */
    bool source_runs = vmf_machine_is_running(a) && !at_source;
    bool target_runs = vmf_machine_is_running(b) && at_source;
    bool held = (at_source ? &trip.target : &trip.source)->outcome == VMF_OUTCOME_HELD;
    unsigned outcome = (source_runs ? AT_SOURCE : 0) | (target_runs ? AT_TARGET : 0) | (held ? HELD : 0);
    if (outcome == 0 && at_source && !trip.target_done)
        outcome = DIED_WITH_SOURCE;
    if (outcome == 0 && !at_source && trip.source_done)
        outcome = MOVED;
    print_message("killed at %s: %u\n", row->point, outcome);
    assert_int_equal(__builtin_popcount(outcome), 1);
    assert_true(outcome & row->may_be);
    vmf_trip_clear(&trip);
}

static void test_every_point(void **state)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++)
        run_row(&rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_point)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
