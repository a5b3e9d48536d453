/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A cancel, or the deadline of the stop, in the instant in which SWITCHOVER leaves: the target may have it or not, so
 * it has to hear ABORT, or it would hold a guest that goes on at the source.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "stream/filter-pass.h"
#include "tests/world.h"

typedef enum { STAYS = 1 << 0, MOVES = 1 << 1 } End;

typedef struct {
    bool over_fd;  /* one channel for everything, which cannot be opened again; otherwise memory channels */
    bool gets_out; /* SWITCHOVER is written, and then the instant is there; otherwise it stays stuck */
    bool is_cancelled;
    bool waits;      /* the write returns once the channel is shut down */
    bool is_slow;    /* the target takes its time to read what was written ahead of it */
    unsigned may_be; /* End */
} Row;

static const Row rows[] = {
    {true, true, true, false, false, STAYS | MOVES}, /* READY may be there first, and then it is too late */
    {true, true, true, false, true, STAYS | MOVES},
    {false, true, true, false, false, STAYS | MOVES},
    {true, false, true, true, false, STAYS},
    {false, false, true, true, false, STAYS},
    {false, true, false, true, false, STAYS | MOVES},
};

typedef struct {
    const Row *row;
    VmfTripRunning *running;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started; /* the trip is there */
    bool is_due;  /* what is written next is SWITCHOVER */
    bool shut;
    bool met;
    unsigned unread; /* so often a slow target has not read all yet */
} Instant;

typedef struct {
    VmfFilter filter;
    Instant *instant;
} InstantFilter;

static void await(Instant *instant, const bool *what)
{
    pthread_mutex_lock(&instant->lock);
    while (!*what)
        pthread_cond_wait(&instant->changed, &instant->lock);
    pthread_mutex_unlock(&instant->lock);
}

static void set(Instant *instant, bool *what)
{
    pthread_mutex_lock(&instant->lock);
    *what = true;
    pthread_cond_broadcast(&instant->changed);
    pthread_mutex_unlock(&instant->lock);
}

static ssize_t instant_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    Instant *instant = ((InstantFilter *)channel)->instant;
    const Row *row = instant->row;

    if (!instant->is_due)
        return vmf_filter_pass_writev(channel, iov, n, error);
    instant->is_due = false;
    instant->met = true;
    ssize_t sent = row->gets_out ? vmf_filter_pass_writev(channel, iov, n, error) : 0;
    if (row->is_cancelled)
        vmf_session_cancel(vmf_trip_source(instant->running));
    if (row->waits)
        await(instant, &instant->shut);
    return row->gets_out ? sent : vmf_channel_error_shut_down(channel, error);
}

static uint64_t instant_unsent(VmfChannel *channel)
{
    Instant *instant = ((InstantFilter *)channel)->instant;

    if (instant->met && instant->row->is_slow && instant->unread > 0)
        return (uint64_t)instant->unread-- << 20;
    return vmf_filter_pass_unsent_bytes(channel);
}

static void instant_shutdown(VmfChannel *channel)
{
    Instant *instant = ((InstantFilter *)channel)->instant;

    vmf_filter_pass_shutdown(channel);
    set(instant, &instant->shut);
}

static const VmfChannelOps instant_ops = {
    .kind = "instant",
    .readv = vmf_filter_pass_readv,
    .writev = instant_writev,
    .wait_readable = vmf_filter_pass_wait_readable,
    .unsent_bytes = instant_unsent,
    .finish = vmf_filter_pass_finish,
    .shutdown = instant_shutdown,
    .free = vmf_filter_pass_free,
};

static VmfChannel *watch_main(VmfChannel *channel, unsigned index, void *opaque)
{
    InstantFilter *filter;

    if (index != 0)
        return channel;
    filter = g_new0(InstantFilter, 1);
    vmf_filter_init(&filter->filter, &instant_ops, channel);
    filter->instant = opaque;
    return &filter->filter.base;
}

/* By the thread that then writes. */
static bool note_point(void *opaque, const char *point)
{
    Instant *instant = opaque;

    if (strcmp(point, "source.send.switchover.due") == 0) {
        await(instant, &instant->started);
        instant->is_due = true;
    }
    return false;
}

static void play(const Row *row)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 16, VMF_RAM_ANON, 16 << 20, 4 << 20);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 16, VMF_RAM_ANON, 0, 0);
    Instant instant = {.row = row, .unread = 50, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    VmfTestJournal from, to;
    VmfTrip trip;

    vmf_test_journal_init(&from);
    vmf_test_journal_init(&to);
    vmf_trip_init(&trip);
    trip.source_parameters.journal = from.journal;
    trip.target_parameters.journal = to.journal;
    trip.is_over_fd = row->over_fd;
    trip.keeps_holds = true; /* the target's, until it has read ABORT; where none comes this does not end */
    trip.wrap_source = watch_main;
    trip.wrap_opaque = &instant;
    trip.source_parameters.fault = note_point;
    trip.source_parameters.fault_opaque = &instant;
    assert_true(vmf_machine_start(a, NULL));
    g_usleep(10000);
    instant.running = vmf_trip_start(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    set(&instant, &instant.started);
    vmf_trip_finish(instant.running);
    bool here = vmf_machine_is_running(a), there = vmf_machine_is_running(b);
    print_message("row %td: %s, %s; %s\n%s", row - rows, there ? "moved" : "stayed",
                  trip.source_error ? trip.source_error->message : "",
                  trip.target_error ? trip.target_error->message : "", trip.events);
    assert_true(instant.met);
    assert_true(here != there);
    assert_true(row->may_be & (here ? STAYS : MOVES));
    assert_int_equal(trip.source_done, there);
    assert_int_equal(trip.target_done, there);
    assert_int_not_equal(trip.target.outcome, VMF_OUTCOME_HELD);
    assert_int_equal(vmf_test_journal_clear(&from), there ? VMF_JOURNAL_GONE : VMF_JOURNAL_BACK);
    vmf_test_journal_clear(&to);
    vmf_trip_clear(&trip);
}

static void test_every_row(void **state)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++)
        play(&rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_row)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
