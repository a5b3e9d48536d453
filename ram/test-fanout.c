/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lanes that share threads: everything arrives, and a channel that stands still holds up nothing that another can carry. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "ram/test-rig.h"
#include "stream/filter-pass.h"

/* Channels that say that they have no room while they are shut, whatever the truth is. */
typedef struct {
    _Atomic bool shut[RIG_LANES_MAX];
    _Atomic unsigned asked, turned_away;
} Gates;

typedef struct {
    VmfFilter filter;
    Gates *gates;
    unsigned index;
} Gate;

static bool gate_has_room(VmfChannel *channel)
{
    Gate *gate = (Gate *)channel;

    atomic_fetch_add(&gate->gates->asked, 1);
    if (!atomic_load(&gate->gates->shut[gate->index]))
        return vmf_filter_pass_has_room(channel);
    atomic_fetch_add(&gate->gates->turned_away, 1);
    return false;
}

static const VmfChannelOps gate_ops = {
    .kind = "gate",
    .readv = vmf_filter_pass_readv,
    .writev = vmf_filter_pass_writev,
    .wait_readable = vmf_filter_pass_wait_readable,
    .has_room = gate_has_room,
    .unsent_bytes = vmf_filter_pass_unsent_bytes,
    .finish = vmf_filter_pass_finish,
    .shutdown = vmf_filter_pass_shutdown,
    .free = vmf_filter_pass_free,
};

static VmfChannel *wrap(VmfChannel *channel, unsigned index, void *opaque)
{
    Gate *gate = g_new0(Gate, 1);

    vmf_filter_init(&gate->filter, &gate_ops, channel);
    gate->gates = opaque;
    gate->index = index;
    return &gate->filter.base;
}

static VmfRig *new_rig(Gates *gates, unsigned n_lanes, unsigned n_threads)
{
    VmfRig *rig = vmf_rig_new();

    vmf_rig_write_range(rig, 0, 0, RIG_RAM_PAGES, 1);
    vmf_rig_write_range(rig, 1, 0, 20, 2);
    rig->wrap = wrap;
    rig->wrap_opaque = gates;
    rig->n_threads = n_threads;
    vmf_rig_connect(rig, n_lanes);
    return rig;
}

static void run_round(VmfRig *rig)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_rig_round(rig, &error))
        fail_msg("%s", error->message);
}

static void end(VmfRig *rig)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_rig_end(rig, &error))
        fail_msg("%s", error->message);
    g_autofree char *difference = vmf_rig_difference(rig);
    if (difference)
        fail_msg("%s differs", difference);
}

static uint64_t records(VmfRig *rig, unsigned lane)
{
    return vmf_flight_sequence(rig->save->flight, lane);
}

static void as_many_lanes_as_there_are_share_as_many_threads_as_there_are(void **state)
{
    for (unsigned n_lanes = 1; n_lanes <= RIG_LANES_MAX; n_lanes++) {
        for (unsigned n_threads = 0; n_threads <= RIG_LANES_MAX + 1; n_threads++) {
            Gates gates = {0};
            g_autoptr(VmfRig) rig = new_rig(&gates, n_lanes, n_threads);

            for (uint32_t value = 3; value < 8; value++) {
                run_round(rig);
                vmf_rig_write_range(rig, 0, value * 300, 400, value);
            }
            end(rig);
        }
    }
}

/* The lane that the first chunk falls to. */
static unsigned first_choice(VmfRig *rig)
{
    unsigned lane = 0;

    while (!vmf_flight_prefers(rig->save->flight, lane, (VmfChunkId){0, 0}))
        lane++;
    return lane;
}

static void a_shut_channel_is_passed_over(void **state)
{
    Gates gates = {0};
    g_autoptr(VmfRig) rig = new_rig(&gates, 3, 1);
    unsigned shut = first_choice(rig);

    atomic_store(&gates.shut[shut], true);
    run_round(rig);
    assert_int_equal(records(rig, shut), 0);
    assert_true(atomic_load(&gates.turned_away) > 0);
    atomic_store(&gates.shut[shut], false);
    vmf_rig_write_range(rig, 0, 0, RIG_RAM_PAGES, 9);
    run_round(rig); /* harvests */
    run_round(rig);
    assert_true(records(rig, shut) > 0);
    end(rig);
}

/* Single pages here and there. */
static void no_channel_is_asked_for_each_page(void **state)
{
    Gates gates = {0};
    g_autoptr(VmfRig) rig = new_rig(&gates, 4, 1);

    run_round(rig);
    for (uint64_t chunk = 0; chunk < RIG_CHUNKS; chunk++)
        vmf_rig_write(rig, 0, chunk * VMF_CHUNK_PAGES, 7);
    run_round(rig); /* harvests */
    atomic_store(&gates.asked, 0);
    run_round(rig);
    assert_in_range(atomic_load(&gates.asked), 0, 4);
    end(rig);
}

/* Then there is nothing better to do than to wait for one. */
static void where_all_are_shut_one_is_waited_for(void **state)
{
    Gates gates = {.shut = {true, true, true, true}};
    g_autoptr(VmfRig) rig = new_rig(&gates, 4, 2);

    run_round(rig);
    end(rig);
}

static void a_lane_with_a_thread_of_its_own_is_not_asked(void **state)
{
    Gates gates = {.shut = {true, true}};
    g_autoptr(VmfRig) rig = new_rig(&gates, 2, 2);

    run_round(rig);
    end(rig);
    assert_int_equal(atomic_load(&gates.turned_away), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_many_lanes_as_there_are_share_as_many_threads_as_there_are),
        cmocka_unit_test(a_shut_channel_is_passed_over),
        cmocka_unit_test(no_channel_is_asked_for_each_page),
        cmocka_unit_test(where_all_are_shut_one_is_waited_for),
        cmocka_unit_test(a_lane_with_a_thread_of_its_own_is_not_asked),
    };

    return cmocka_run_group_tests_name("fanout", tests, NULL, NULL);
}
