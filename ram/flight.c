/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/flight.h"

#include <vmferry/error.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "ram/sparse-array.h"
#include "ram/sparse-words.h"
#include "stream/clock.h"
#include "stream/trace.h"

#define RING 4096u /* records under way on a lane: small ones are bounded by number, large ones by bytes */
#define BOUND_SMALL (1u << 20)
#define BOUND_USUAL (4u << 20)
#define SLOW_BYTES_PER_SECOND 125000000u /* 1 Gbit/s */
#define RATE_BYTES_MIN (1u << 20)        /* a shorter burst has to carry so much to count */
#define RATE_INTERVAL_NS 50000000        /* acknowledgements are added up over this long before they count as a rate */

typedef struct {
    VmfChunkId id;
    uint32_t bytes;
} Record;

typedef struct {
    uint64_t sent;   /* sequence of the next record */
    uint64_t landed; /* all below are acknowledged */
    Record ring[RING];
} Lane;

/* Which of 32 chunks were claimed in a round: none, if it is not the round that is asked about. */
typedef struct {
    uint32_t round;
    uint32_t claimed;
} Claims;

/* What the table of chunks under way holds for each: 0 for the many that are not. */
typedef struct {
    uint32_t records;
    uint32_t lane; /* that they are on */
} UnderWay;

typedef struct {
    uint64_t n_chunks;
    Claims *claims;             /* a bit a chunk, in memory that costs nothing until one is claimed */
    VmfSparseWords *under_way;  /* UnderWay, a word a chunk */
} Block;

struct VmfFlight {
    pthread_mutex_t lock;
    pthread_cond_t landed;
    bool acknowledged;
    bool closed;
    unsigned n_lanes, n_blocks;
    Block *blocks;
    Lane *lanes;
    uint64_t unacknowledged_bytes;
    uint64_t rtt_ns;
    uint64_t rate_since_ns; /* of rate_bytes */
    uint64_t rate_bytes;
    _Atomic uint64_t rate;
};

static uint64_t n_claims(uint64_t n_chunks)
{
    return n_chunks / 32 + 1;
}

static bool block_init(Block *block, uint64_t n_chunks, GError **error)
{
    block->n_chunks = n_chunks;
    block->claims = vmf_sparse_array_new(n_claims(n_chunks), sizeof(Claims), "chunk table", error);
    block->under_way = block->claims ? vmf_sparse_words_new(MAX(n_chunks, 1), "chunk table", error) : NULL;
    return block->under_way != NULL;
}

VmfFlight *vmf_flight_new(unsigned n_lanes, unsigned n_blocks, const uint64_t *n_chunks, bool acknowledged, GError **error)
{
    g_autoptr(VmfFlight) flight = g_new0(VmfFlight, 1);
    pthread_condattr_t attributes;

    pthread_mutex_init(&flight->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&flight->landed, &attributes);
    pthread_condattr_destroy(&attributes);
    flight->acknowledged = acknowledged;
    flight->n_lanes = n_lanes;
    flight->n_blocks = n_blocks;
    flight->blocks = g_new0(Block, n_blocks);
    flight->lanes = g_new0(Lane, n_lanes);
    for (unsigned b = 0; b < n_blocks; b++)
        if (!block_init(&flight->blocks[b], n_chunks[b], error))
            return NULL;
    return g_steal_pointer(&flight);
}

void vmf_flight_free(VmfFlight *flight)
{
    if (!flight)
        return;
    for (unsigned b = 0; b < flight->n_blocks; b++) {
        vmf_sparse_array_free(flight->blocks[b].claims, n_claims(flight->blocks[b].n_chunks), sizeof(Claims));
        vmf_sparse_words_free(flight->blocks[b].under_way);
    }
    g_free(flight->blocks);
    g_free(flight->lanes);
    pthread_cond_destroy(&flight->landed);
    pthread_mutex_destroy(&flight->lock);
    g_free(flight);
}

static UnderWay under_way_of(const VmfFlight *flight, VmfChunkId id)
{
    uint64_t word = vmf_sparse_words_get(flight->blocks[id.block].under_way, id.chunk);

    return (UnderWay){(uint32_t)word, (uint32_t)(word >> 32)};
}

static void set_under_way(VmfFlight *flight, VmfChunkId id, UnderWay what)
{
    VmfSparseWords *words = flight->blocks[id.block].under_way;

    vmf_sparse_words_take(words, id.chunk);
    if (what.records > 0)
        vmf_sparse_words_or(words, id.chunk, (uint64_t)what.lane << 32 | what.records);
}

/* True for the first who asks in @round. */
static bool claim_once(VmfFlight *flight, uint32_t round, VmfChunkId id)
{
    Claims *claims = &flight->blocks[id.block].claims[id.chunk / 32];
    uint32_t bit = UINT32_C(1) << id.chunk % 32;

    if (claims->round != round)
        *claims = (Claims){round, 0};
    bool first = !(claims->claimed & bit);
    claims->claimed |= bit;
    return first;
}

bool vmf_flight_claim(VmfFlight *flight, unsigned lane, uint32_t round, VmfChunkId id)
{
    pthread_mutex_lock(&flight->lock);
    UnderWay now = under_way_of(flight, id);
    bool mine = (now.records == 0 || now.lane == lane) && claim_once(flight, round, id);
    if (mine)
        VMF_TRACE(chunk_claimed, flight, lane, round, id.block, id.chunk);
    pthread_mutex_unlock(&flight->lock);
    return mine;
}

/* The hash keeps a chunk that is dirtied again and again where it was, and spreads neighbours, which tend to be dirty together. */
bool vmf_flight_prefers(VmfFlight *flight, unsigned lane, VmfChunkId id)
{
    uint64_t hash = (id.chunk * UINT64_C(0x9E3779B97F4A7C15)) >> 32;

    pthread_mutex_lock(&flight->lock);
    UnderWay now = under_way_of(flight, id);
    pthread_mutex_unlock(&flight->lock);
    return (now.records > 0 ? now.lane : (unsigned)(hash % flight->n_lanes)) == lane;
}

static uint64_t bound_bytes(const VmfFlight *flight)
{
    uint64_t rate = atomic_load_explicit(&flight->rate, memory_order_relaxed);

    if (rate > 0 && rate < SLOW_BYTES_PER_SECOND)
        return BOUND_SMALL;
    double two_trips = 2.0 * (double)rate * (double)flight->rtt_ns / 1e9;
    return MAX(BOUND_USUAL, (uint64_t)two_trips);
}

/* A record that is larger than the bound must still be able to go, alone. */
static bool has_room(const VmfFlight *flight, const Lane *lane, uint32_t bytes)
{
    if (lane->sent - lane->landed >= RING)
        return false;
    return flight->unacknowledged_bytes == 0 || flight->unacknowledged_bytes + bytes <= bound_bytes(flight);
}

static void await_room_locked(VmfFlight *flight, unsigned index, uint32_t bytes)
{
    const Lane *lane = &flight->lanes[index];

    if (flight->closed || !flight->acknowledged || has_room(flight, lane, bytes))
        return;
    VMF_TRACE(lane_wait, flight, index, bytes, flight->unacknowledged_bytes);
    while (!flight->closed && !has_room(flight, lane, bytes))
        pthread_cond_wait(&flight->landed, &flight->lock);
    VMF_TRACE(lane_resume, flight, index, flight->unacknowledged_bytes);
}

static bool launch(VmfFlight *flight, unsigned index, VmfChunkId id, uint32_t bytes, bool wait)
{
    Lane *lane = &flight->lanes[index];

    pthread_mutex_lock(&flight->lock);
    if (wait)
        await_room_locked(flight, index, bytes);
    bool go = !flight->closed && (!flight->acknowledged || has_room(flight, lane, bytes));
    if (go && flight->acknowledged) {
        lane->ring[lane->sent % RING] = (Record){id, bytes};
        set_under_way(flight, id, (UnderWay){under_way_of(flight, id).records + 1, index});
        flight->unacknowledged_bytes += bytes;
        if (flight->rate_since_ns == 0)
            flight->rate_since_ns = (uint64_t)vmf_now_ns();
    }
    lane->sent += go;
    pthread_mutex_unlock(&flight->lock);
    return go;
}

bool vmf_flight_launch(VmfFlight *flight, unsigned lane, VmfChunkId id, uint32_t bytes)
{
    return launch(flight, lane, id, bytes, true);
}

bool vmf_flight_try_launch(VmfFlight *flight, unsigned lane, VmfChunkId id, uint32_t bytes)
{
    return launch(flight, lane, id, bytes, false);
}

uint64_t vmf_flight_sequence(VmfFlight *flight, unsigned lane)
{
    pthread_mutex_lock(&flight->lock);
    uint64_t sequence = flight->lanes[lane].sent;
    pthread_mutex_unlock(&flight->lock);
    return sequence;
}

/*
 * Time in which nothing was under way is not counted: the link was idle, not slow. Nor is a burst that was over before an interval was
 * and carried little: it lasted a round trip, whatever the link can do, and hundreds of them would talk the rate down to that.
 */
static void measure(VmfFlight *flight, uint64_t bytes)
{
    uint64_t now = (uint64_t)vmf_now_ns(), elapsed = MAX(now - flight->rate_since_ns, 1);
    uint64_t before = atomic_load_explicit(&flight->rate, memory_order_relaxed);
    bool over = flight->unacknowledged_bytes == 0;

    flight->rate_bytes += bytes;
    if (elapsed < RATE_INTERVAL_NS && !over)
        return;
    if (elapsed >= RATE_INTERVAL_NS || flight->rate_bytes >= RATE_BYTES_MIN || before == 0) {
        double weight = MIN(1.0, (double)elapsed / RATE_INTERVAL_NS) / 2;
        double lately = (double)flight->rate_bytes * 1e9 / (double)elapsed;
        double rate = before ? (double)before * (1 - weight) + lately * weight : lately;
        atomic_store_explicit(&flight->rate, MAX((uint64_t)rate, 1), memory_order_relaxed);
    }
    flight->rate_bytes = 0;
    flight->rate_since_ns = over ? 0 : now;
}

bool vmf_flight_land(VmfFlight *flight, unsigned index, uint64_t sequence, unsigned n, const VmfChunkId *ids, const uint64_t *sums,
                     void (*check)(void *opaque, VmfChunkId id, uint64_t sum), void *opaque)
{
    Lane *lane = &flight->lanes[index];
    uint64_t bytes = 0;

    pthread_mutex_lock(&flight->lock);
    bool good = flight->acknowledged && sequence >= lane->landed && sequence <= lane->sent;
    for (; good && lane->landed < sequence; lane->landed++) {
        const Record *record = &lane->ring[lane->landed % RING];
        set_under_way(flight, record->id, (UnderWay){under_way_of(flight, record->id).records - 1, index});
        bytes += record->bytes;
    }
    flight->unacknowledged_bytes -= bytes;
    for (unsigned i = 0; good && i < n; i++) {
        good = ids[i].block < flight->n_blocks && ids[i].chunk < flight->blocks[ids[i].block].n_chunks;
        if (good && under_way_of(flight, ids[i]).records == 0)
            check(opaque, ids[i], sums[i]);
    }
    if (bytes > 0)
        measure(flight, bytes);
    if (good)
        VMF_TRACE(ack_landed, flight, index, sequence, flight->unacknowledged_bytes, vmf_flight_rate(flight));
    pthread_cond_broadcast(&flight->landed);
    pthread_mutex_unlock(&flight->lock);
    return good;
}

bool vmf_flight_wait(VmfFlight *flight, uint64_t bytes, int64_t timeout_ns)
{
    int64_t deadline = vmf_now_ns() + timeout_ns;
    struct timespec until = {(time_t)(deadline / VMF_NS_PER_S), (long)(deadline % VMF_NS_PER_S)};
    int waited = 0;

    pthread_mutex_lock(&flight->lock);
    while (!flight->closed && flight->unacknowledged_bytes > bytes && waited == 0)
        waited = pthread_cond_timedwait(&flight->landed, &flight->lock, &until);
    bool landed = !flight->closed && flight->unacknowledged_bytes <= bytes;
    pthread_mutex_unlock(&flight->lock);
    return landed;
}

bool vmf_flight_drain(VmfFlight *flight, int64_t timeout_ns)
{
    return vmf_flight_wait(flight, 0, timeout_ns);
}

bool vmf_flight_is_under_way(const VmfFlight *flight, VmfChunkId id)
{
    return under_way_of(flight, id).records > 0;
}

void vmf_flight_freeze(VmfFlight *flight, void (*call)(void *opaque), void *opaque)
{
    pthread_mutex_lock(&flight->lock);
    call(opaque);
    pthread_mutex_unlock(&flight->lock);
}

uint64_t vmf_flight_unacknowledged_bytes(VmfFlight *flight)
{
    pthread_mutex_lock(&flight->lock);
    uint64_t bytes = flight->unacknowledged_bytes;
    pthread_mutex_unlock(&flight->lock);
    return bytes;
}

uint64_t vmf_flight_rate(VmfFlight *flight)
{
    return atomic_load_explicit(&flight->rate, memory_order_relaxed);
}

void vmf_flight_set_rtt(VmfFlight *flight, uint64_t rtt_ns)
{
    pthread_mutex_lock(&flight->lock);
    flight->rtt_ns = rtt_ns;
    pthread_mutex_unlock(&flight->lock);
}

void vmf_flight_close(VmfFlight *flight)
{
    pthread_mutex_lock(&flight->lock);
    flight->closed = true;
    pthread_cond_broadcast(&flight->landed);
    pthread_mutex_unlock(&flight->lock);
}
