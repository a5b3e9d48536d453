/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The link breaks at each step of the handover, and comes back at once: both sides have journals, so the source asks on a new channel and
 * everything settles without a person. Never two running guests, never none.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <string.h>

#include "tests/world.h"

typedef enum { STAYS = 1 << 0, MOVES = 1 << 1 } End;

typedef struct {
    const char *point;
    unsigned may_be;
} Row;

static const Row rows[] = {
    {"source.journal.offered.done", STAYS},
    {"source.storage.release.done", STAYS},
    {"source.send.switchover.due", STAYS},
    {"source.send.switchover.done", STAYS}, /* until it has sent RUN the source takes its guest back */
    {"target.storage.acquire.done", STAYS},
    {"target.journal.ready.done", STAYS},
    {"target.send.ready.due", STAYS},
    {"target.send.ready.done", STAYS | MOVES}, /* what was written may or may not arrive */
    {"source.send.run.due", MOVES},
    {"source.send.run.done", MOVES},
    {"target.journal.started.due", MOVES},
    {"target.journal.started.done", MOVES},
    {"target.guest.start.done", MOVES},
    {"target.send.running.due", MOVES},
    {"target.send.running.done", MOVES},
    {"source.journal.gone.done", MOVES},
    {"source.send.end.due", MOVES},
};

typedef struct {
    const Row *row;
    VmfChannel *main; /* of the source; the first that was opened */
    _Atomic bool met; /* each side's thread asks */
} Cut;

static VmfChannel *note_main(VmfChannel *channel, unsigned index, void *opaque)
{
    Cut *cut = opaque;

    if (index == 0)
        cut->main = channel;
    return channel;
}

static bool cut_here(void *opaque, const char *point)
{
    Cut *cut = opaque;

    if (strcmp(cut->row->point, point) == 0 && !atomic_exchange(&cut->met, true))
        vmf_channel_shutdown(cut->main);
    return false;
}

static void play(const Row *row)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 16, VMF_RAM_ANON, 16 << 20, 4 << 20);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 16, VMF_RAM_ANON, 0, 0);
    Cut cut = {.row = row};
    VmfTestJournal from, to;
    VmfTrip trip;

    vmf_test_journal_init(&from);
    vmf_test_journal_init(&to);
    vmf_trip_init(&trip);
    trip.wrap_source = note_main;
    trip.wrap_opaque = &cut;
    trip.keeps_holds = true;
    VmfParameters *both[] = {&trip.source_parameters, &trip.target_parameters};
    for (unsigned i = 0; i < 2; i++) {
        both[i]->journal = i ? to.journal : from.journal;
        both[i]->machine = "vm";
        both[i]->peer = "memory";
        both[i]->fault = cut_here;
        both[i]->fault_opaque = &cut;
    }
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(10000);
    vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    assert_true(cut.met);

    bool here = vmf_machine_is_running(a), there = vmf_machine_is_running(b);
    print_message("cut at %s: %s\n%s", row->point, there ? "moved" : "stayed", trip.events);
    assert_true(here != there);
    assert_true(row->may_be & (here ? STAYS : MOVES));
    assert_int_equal(trip.source_done, there);
    assert_int_equal(trip.source.outcome, there ? VMF_OUTCOME_COMPLETED : VMF_OUTCOME_FAILED);
    VmfJournalState left = vmf_test_journal_clear(&from), came = vmf_test_journal_clear(&to);
    assert_int_equal(left, there ? VMF_JOURNAL_GONE : VMF_JOURNAL_BACK);
    if (there)
        assert_true(came == VMF_JOURNAL_STARTED || came == VMF_JOURNAL_CONFIRMED);
    else
        assert_true(came == VMF_JOURNAL_REFUSED || came == VMF_JOURNAL_NONE);
    vmf_trip_clear(&trip);
}

static void test_every_cut_settles(void **state)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++)
        play(&rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_cut_settles)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
