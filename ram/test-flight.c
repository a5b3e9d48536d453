/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is under way: who may claim a chunk, how much may be unacknowledged, what an acknowledgement may say. Then
 * several lanes and an acknowledger that takes its time, watched by a model that knows one rule: the records of a chunk
 * are under way on one lane.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>

#include "ram/flight.h"
#include "stream/clock.h"

#define KIB 1024u
#define MIB (1024u * KIB)
#define BLOCK_0 64
#define BLOCK_1 3

static const uint64_t n_chunks[2] = {BLOCK_0, BLOCK_1};

static VmfFlight *new_flight(unsigned n_lanes)
{
    VmfFlight *flight = vmf_flight_new(n_lanes, 2, n_chunks, true, NULL);

    assert_non_null(flight);
    return flight;
}

static VmfChunkId chunk(uint64_t index)
{
    return (VmfChunkId){0, index};
}

static bool land(VmfFlight *flight, unsigned lane, uint64_t sequence)
{
    return vmf_flight_land(flight, lane, sequence, 0, NULL, NULL, NULL, NULL);
}

/* ---- claims ---------------------------------------------------------------------------------------------------- */

static void a_chunk_is_claimed_once_a_round(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(2);

    assert_true(vmf_flight_claim(flight, 0, 1, chunk(5)));
    assert_false(vmf_flight_claim(flight, 0, 1, chunk(5)));
    assert_false(vmf_flight_claim(flight, 1, 1, chunk(5)));
    assert_true(vmf_flight_claim(flight, 1, 1, (VmfChunkId){1, 2}));
    assert_true(vmf_flight_claim(flight, 1, 2, chunk(5)));
}

static void a_chunk_under_way_stays_on_its_lane(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(2);

    assert_true(vmf_flight_claim(flight, 0, 1, chunk(5)));
    assert_true(vmf_flight_launch(flight, 0, chunk(5), 4096));
    assert_true(vmf_flight_launch(flight, 0, chunk(5), 4096));
    assert_false(vmf_flight_claim(flight, 1, 2, chunk(5)));
    assert_true(vmf_flight_claim(flight, 0, 2, chunk(5)));
    assert_true(land(flight, 0, 1));
    assert_false(vmf_flight_claim(flight, 1, 3, chunk(5)));
    assert_true(land(flight, 0, 2));
    assert_true(vmf_flight_claim(flight, 1, 3, chunk(5)));
}

static void a_chunk_is_preferred_by_one_lane(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(4);
    unsigned taken[4] = {0};

    for (uint64_t c = 0; c < BLOCK_0; c++) {
        unsigned n = 0;
        for (unsigned lane = 0; lane < 4; lane++) {
            bool prefers = vmf_flight_prefers(flight, lane, chunk(c));
            n += prefers;
            taken[lane] += prefers;
        }
        assert_int_equal(n, 1);
    }
    for (unsigned lane = 0; lane < 4; lane++)
        assert_in_range(taken[lane], BLOCK_0 / 8, BLOCK_0 / 2);
}

static void a_lane_prefers_what_it_has_under_way(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(4);

    for (unsigned lane = 0; lane < 4; lane++) {
        assert_true(vmf_flight_claim(flight, lane, 1, chunk(lane)));
        assert_true(vmf_flight_launch(flight, lane, chunk(lane), 100));
    }
    for (unsigned lane = 0; lane < 4; lane++)
        for (unsigned c = 0; c < 4; c++)
            assert_int_equal(vmf_flight_prefers(flight, lane, chunk(c)), lane == c);
}

/* ---- the bound ------------------------------------------------------------------------------------------------- */

static uint64_t launch_all(VmfFlight *flight, unsigned lane, uint32_t bytes)
{
    uint64_t n = 0;

    while (vmf_flight_try_launch(flight, lane, chunk(n % BLOCK_0), bytes))
        n++;
    return n;
}

static void four_mebibytes_are_under_way_over_all_lanes(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(2);

    assert_true(vmf_flight_try_launch(flight, 1, chunk(63), MIB));
    assert_int_equal(launch_all(flight, 0, 512 * KIB), 6);
    assert_int_equal(vmf_flight_unacknowledged_bytes(flight), 4 * MIB);
    assert_int_equal(vmf_flight_sequence(flight, 0), 6);
    assert_int_equal(vmf_flight_sequence(flight, 1), 1);
    assert_false(vmf_flight_try_launch(flight, 1, chunk(62), 1));
    assert_true(land(flight, 0, 1));
    assert_true(vmf_flight_try_launch(flight, 1, chunk(62), 512 * KIB));
    assert_false(vmf_flight_try_launch(flight, 1, chunk(62), 1));
}

/* Whatever is acknowledged after 60 ms and is this small came at less than 1 Gbit/s. */
static void make_slow(VmfFlight *flight)
{
    assert_true(vmf_flight_launch(flight, 0, chunk(0), 4096));
    g_usleep(60000);
    assert_true(land(flight, 0, vmf_flight_sequence(flight, 0)));
    assert_in_range(vmf_flight_rate(flight), 1, 124999999);
}

static void a_slow_link_has_one_mebibyte_under_way(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(1);

    make_slow(flight);
    assert_int_equal(launch_all(flight, 0, 256 * KIB), 4);
}

/*
 * One record as large as a number allows makes a high rate whatever the host is busy with, and the moment's sleep one
 * that a round trip in whole nanoseconds can be found for.
 */
static void a_long_fat_link_has_two_round_trips_under_way(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(1);

    assert_true(vmf_flight_launch(flight, 0, chunk(0), UINT32_MAX));
    g_usleep(10000);
    assert_true(land(flight, 0, 1));
    uint64_t rate = vmf_flight_rate(flight);
    assert_true(rate > 125000000);
    vmf_flight_set_rtt(flight, (uint64_t)(32.5 * MIB * 1e9 / (2.0 * (double)rate)));
    assert_int_equal(launch_all(flight, 0, MIB), 32);
}

static void a_record_beyond_the_bound_goes_alone(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(2);

    assert_true(vmf_flight_try_launch(flight, 0, chunk(0), 4096));
    assert_false(vmf_flight_try_launch(flight, 0, chunk(1), 5 * MIB));
    assert_true(land(flight, 0, 1));
    assert_true(vmf_flight_try_launch(flight, 0, chunk(1), 5 * MIB));
    assert_false(vmf_flight_try_launch(flight, 1, chunk(2), 1));
}

static void small_records_are_bounded_by_number(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(2);

    assert_int_equal(launch_all(flight, 0, 200), 4096);
    assert_true(vmf_flight_try_launch(flight, 1, chunk(0), 200));
    assert_true(land(flight, 0, 1));
    assert_true(vmf_flight_try_launch(flight, 0, chunk(0), 200));
    assert_false(vmf_flight_try_launch(flight, 0, chunk(0), 200));
    assert_true(land(flight, 0, 4097));
    assert_int_equal(vmf_flight_unacknowledged_bytes(flight), 200);
}

static void nothing_is_bounded_without_acknowledgements(void **state)
{
    g_autoptr(VmfFlight) flight = vmf_flight_new(2, 2, n_chunks, false, NULL);

    for (unsigned i = 0; i < 10000; i++)
        assert_true(vmf_flight_launch(flight, 0, chunk(0), 512 * KIB));
    assert_int_equal(vmf_flight_sequence(flight, 0), 10000);
    assert_int_equal(vmf_flight_unacknowledged_bytes(flight), 0);
    assert_true(vmf_flight_claim(flight, 1, 1, chunk(0)));
    assert_true(vmf_flight_drain(flight, 0));
    assert_false(land(flight, 0, 1));
    assert_true(vmf_flight_claim(flight, 0, 2, chunk(0)));
}

/* ---- acknowledgements ------------------------------------------------------------------------------------------ */

static void acknowledging_what_was_not_sent_is_refused(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(2);
    const VmfChunkId outside[] = {{0, BLOCK_0}, {1, BLOCK_1}, {2, 0}, {UINT32_MAX, UINT64_MAX}};
    const uint64_t sum = 0;

    for (unsigned i = 0; i < 4; i++)
        assert_true(vmf_flight_launch(flight, 0, chunk(i), 100));
    assert_false(land(flight, 0, 5));
    assert_false(land(flight, 0, UINT64_MAX));
    assert_false(land(flight, 1, 1));
    assert_int_equal(vmf_flight_unacknowledged_bytes(flight), 400);
    assert_true(land(flight, 0, 3));
    assert_true(land(flight, 0, 3));
    assert_false(land(flight, 0, 2));
    assert_int_equal(vmf_flight_unacknowledged_bytes(flight), 100);
    for (unsigned i = 0; i < G_N_ELEMENTS(outside); i++)
        assert_false(vmf_flight_land(flight, 0, 3, 1, &outside[i], &sum, NULL, NULL));
}

typedef struct {
    unsigned n;
    VmfChunkId ids[8];
    uint64_t sums[8];
} Checked;

static void note_checked(void *opaque, VmfChunkId id, uint64_t sum)
{
    Checked *checked = opaque;

    checked->ids[checked->n] = id;
    checked->sums[checked->n++] = sum;
}

static void a_sum_is_checked_when_nothing_of_its_chunk_is_under_way(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(1);
    const VmfChunkId ids[] = {{0, 1}, {0, 2}, {1, 0}};
    const uint64_t sums[] = {11, 22, 33};
    Checked checked = {0};

    assert_true(vmf_flight_launch(flight, 0, ids[0], 100));
    assert_true(vmf_flight_launch(flight, 0, ids[1], 100));
    assert_true(vmf_flight_launch(flight, 0, ids[2], 100));
    assert_true(vmf_flight_launch(flight, 0, ids[1], 100));
    assert_true(vmf_flight_land(flight, 0, 3, 3, ids, sums, note_checked, &checked));
    assert_int_equal(checked.n, 2);
    assert_true(checked.ids[0].chunk == 1 && checked.sums[0] == 11);
    assert_true(checked.ids[1].block == 1 && checked.sums[1] == 33);
    assert_true(vmf_flight_land(flight, 0, 4, 1, &ids[1], &sums[1], note_checked, &checked));
    assert_int_equal(checked.n, 3);
    assert_true(checked.ids[2].chunk == 2 && checked.sums[2] == 22);
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfFlight *flight;
    bool drain; /* otherwise launch */
    bool result;
    pthread_t thread;
} Waiter;

static void *waiter_main(void *opaque)
{
    Waiter *waiter = opaque;

    waiter->result = waiter->drain ? vmf_flight_drain(waiter->flight, 600 * VMF_NS_PER_S)
                                   : vmf_flight_launch(waiter->flight, 0, chunk(9), MIB);
    return NULL;
}

static void start_waiters(VmfFlight *flight, Waiter *waiters)
{
    for (unsigned i = 0; i < 2; i++) {
        waiters[i] = (Waiter){.flight = flight, .drain = i == 0};
        assert_int_equal(pthread_create(&waiters[i].thread, NULL, waiter_main, &waiters[i]), 0);
    }
}

static void join_waiters(Waiter *waiters)
{
    for (unsigned i = 0; i < 2; i++)
        pthread_join(waiters[i].thread, NULL);
}

static void draining_waits_for_what_is_under_way(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(1);

    assert_true(vmf_flight_drain(flight, 0));
    assert_true(vmf_flight_launch(flight, 0, chunk(0), 100));
    assert_false(vmf_flight_drain(flight, VMF_NS_PER_MS));
    assert_true(land(flight, 0, 1));
    assert_true(vmf_flight_drain(flight, 0));
}

/* The lane that waits launches one more, which the drain may or may not see; the second landing takes it too. */
static void landing_wakes_whoever_waits(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(1);
    Waiter waiters[2];

    assert_true(vmf_flight_launch(flight, 0, chunk(0), 4 * MIB));
    start_waiters(flight, waiters);
    assert_true(land(flight, 0, 1));
    pthread_join(waiters[1].thread, NULL);
    assert_true(land(flight, 0, 2));
    pthread_join(waiters[0].thread, NULL);
    assert_true(waiters[0].result);
    assert_true(waiters[1].result);
}

static void closing_wakes_whoever_waits(void **state)
{
    g_autoptr(VmfFlight) flight = new_flight(1);
    Waiter waiters[2];

    assert_true(vmf_flight_launch(flight, 0, chunk(0), 4 * MIB));
    start_waiters(flight, waiters);
    vmf_flight_close(flight);
    join_waiters(waiters);
    assert_false(waiters[0].result);
    assert_false(waiters[1].result);
    assert_false(vmf_flight_try_launch(flight, 0, chunk(1), 1));
    assert_false(vmf_flight_drain(flight, 600 * VMF_NS_PER_S));
}

/* ---- all at once ----------------------------------------------------------------------------------------------- */

#define LANES 4
#define ROUNDS 40
#define RECORDS_MAX 3 /* of a chunk in a round */
#define SENT_MAX (ROUNDS * BLOCK_0 * RECORDS_MAX)

typedef struct {
    VmfFlight *flight;
    pthread_barrier_t round;
    pthread_mutex_t lock; /* of the model: */
    unsigned under_way[BLOCK_0];
    unsigned lane_of[BLOCK_0];
    uint64_t sent[LANES], landed[LANES];
    uint8_t chunks[LANES][SENT_MAX]; /* of each record */
    uint32_t claimed_in[BLOCK_0];    /* the last round in which somebody claimed it */
    _Atomic unsigned violations, missed;
    _Atomic bool done;
} Model;

typedef struct {
    Model *model;
    unsigned lane;
    pthread_t thread;
} Lane;

/* The model counts a record ahead of the flight, and lets go of it together with the flight: a claim that comes too
 * early shows. */
static void send_chunk(Lane *lane, GRand *rand, uint64_t c, uint32_t round)
{
    Model *model = lane->model;
    unsigned n = (unsigned)g_rand_int_range(rand, 1, RECORDS_MAX + 1);

    pthread_mutex_lock(&model->lock);
    if (model->under_way[c] > 0 && model->lane_of[c] != lane->lane)
        model->violations++;
    if (model->claimed_in[c] == round)
        model->violations++;
    model->claimed_in[c] = round;
    model->lane_of[c] = lane->lane;
    model->under_way[c] += n;
    pthread_mutex_unlock(&model->lock);
    for (unsigned i = 0; i < n; i++) {
        vmf_flight_launch(lane->model->flight, lane->lane, chunk(c), (uint32_t)g_rand_int_range(rand, 200, 512 * KIB));
        pthread_mutex_lock(&model->lock);
        model->chunks[lane->lane][model->sent[lane->lane]++] = (uint8_t)c;
        pthread_mutex_unlock(&model->lock);
    }
}

/*
 * The fan-out's two walks. Every other first walk is left out and a walk begins anywhere, so that lanes come across
 * what others have under way from the round before.
 */
static void walk_chunks(Lane *lane, GRand *rand, uint32_t round)
{
    VmfFlight *flight = lane->model->flight;
    unsigned first = g_rand_int_range(rand, 0, BLOCK_0);

    for (unsigned walk = (unsigned)g_rand_int_range(rand, 0, 2); walk < 2; walk++)
        for (unsigned i = 0; i < BLOCK_0; i++) {
            VmfChunkId id = chunk((first + i) % BLOCK_0);
            if ((walk == 1 || vmf_flight_prefers(flight, lane->lane, id)) &&
                vmf_flight_claim(flight, lane->lane, round, id))
                send_chunk(lane, rand, id.chunk, round);
        }
}

static void *lane_main(void *opaque)
{
    Lane *lane = opaque;
    Model *model = lane->model;
    g_autoptr(GRand) rand = g_rand_new_with_seed(lane->lane + 1);

    for (uint32_t round = 1; round <= ROUNDS; round++) {
        walk_chunks(lane, rand, round);
        pthread_barrier_wait(&model->round);
        for (unsigned c = 0; lane->lane == 0 && c < BLOCK_0; c++)
            model->missed += model->claimed_in[c] != round;
        pthread_barrier_wait(&model->round);
    }
    return NULL;
}

static void land_some(Model *model, GRand *rand, unsigned lane)
{
    pthread_mutex_lock(&model->lock);
    uint64_t left = model->sent[lane] - model->landed[lane];
    uint64_t sequence = model->landed[lane] + (left ? 1 + g_rand_int(rand) % left : 0);
    if (!land(model->flight, lane, sequence))
        model->violations++;
    for (; model->landed[lane] < sequence; model->landed[lane]++)
        model->under_way[model->chunks[lane][model->landed[lane]]]--;
    pthread_mutex_unlock(&model->lock);
}

static void *acknowledger_main(void *opaque)
{
    Model *model = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(99);

    while (!model->done) {
        g_usleep((gulong)g_rand_int_range(rand, 0, 100));
        land_some(model, rand, (unsigned)g_rand_int_range(rand, 0, LANES));
        if (vmf_flight_unacknowledged_bytes(model->flight) > 4 * MIB)
            model->violations++;
    }
    return NULL;
}

static void records_of_a_chunk_are_under_way_on_one_lane(void **state)
{
    g_autofree Model *model = g_new0(Model, 1);
    Lane lanes[LANES];
    pthread_t acknowledger;

    model->flight = new_flight(LANES);
    pthread_mutex_init(&model->lock, NULL);
    pthread_barrier_init(&model->round, NULL, LANES);
    assert_int_equal(pthread_create(&acknowledger, NULL, acknowledger_main, model), 0);
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i] = (Lane){.model = model, .lane = i};
        assert_int_equal(pthread_create(&lanes[i].thread, NULL, lane_main, &lanes[i]), 0);
    }
    for (unsigned i = 0; i < LANES; i++)
        pthread_join(lanes[i].thread, NULL);
    assert_true(vmf_flight_drain(model->flight, 60 * VMF_NS_PER_S));
    model->done = true;
    pthread_join(acknowledger, NULL);
    assert_int_equal(model->violations, 0);
    assert_int_equal(model->missed, 0);
    for (unsigned i = 0; i < LANES; i++)
        assert_int_equal(vmf_flight_sequence(model->flight, i), model->sent[i]);
    pthread_barrier_destroy(&model->round);
    pthread_mutex_destroy(&model->lock);
    vmf_flight_free(model->flight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chunk_is_claimed_once_a_round),
        cmocka_unit_test(a_chunk_under_way_stays_on_its_lane),
        cmocka_unit_test(a_chunk_is_preferred_by_one_lane),
        cmocka_unit_test(a_lane_prefers_what_it_has_under_way),
        cmocka_unit_test(four_mebibytes_are_under_way_over_all_lanes),
        cmocka_unit_test(a_slow_link_has_one_mebibyte_under_way),
        cmocka_unit_test(a_long_fat_link_has_two_round_trips_under_way),
        cmocka_unit_test(a_record_beyond_the_bound_goes_alone),
        cmocka_unit_test(small_records_are_bounded_by_number),
        cmocka_unit_test(nothing_is_bounded_without_acknowledgements),
        cmocka_unit_test(acknowledging_what_was_not_sent_is_refused),
        cmocka_unit_test(a_sum_is_checked_when_nothing_of_its_chunk_is_under_way),
        cmocka_unit_test(draining_waits_for_what_is_under_way),
        cmocka_unit_test(landing_wakes_whoever_waits),
        cmocka_unit_test(closing_wakes_whoever_waits),
        cmocka_unit_test(records_of_a_chunk_are_under_way_on_one_lane),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
