/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/flight.h"

#include <vmferry/error.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

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

/* Eight bytes a chunk, in memory that costs nothing until the chunk is sent. */
typedef struct {
    uint32_t round; /* in which it was claimed last */
    uint16_t under_way;
    uint8_t lane; /* that claimed it last */
} Chunk;

struct VmfFlight {
    pthread_mutex_t lock;
    pthread_cond_t landed;
    bool acknowledged;
    bool closed;
    unsigned n_lanes, n_blocks;
    uint64_t *n_chunks;
    Chunk **chunks;
    Lane *lanes;
    uint64_t unacknowledged_bytes;
    uint64_t rtt_ns;
    uint64_t rate_since_ns; /* of rate_bytes */
    uint64_t rate_bytes;
    _Atomic uint64_t rate;
};

static Chunk *map_chunks(uint64_t n, GError **error)
{
    void *at = mmap(NULL, MAX(n, 1) * sizeof(Chunk), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (at != MAP_FAILED)
        return at;
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "chunk table: no memory for %" G_GUINT64_FORMAT " chunks: %s", n,
                g_strerror(errno));
    return NULL;
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
    flight->n_chunks = g_memdup2(n_chunks, n_blocks * sizeof(*n_chunks));
    flight->chunks = g_new0(Chunk *, n_blocks);
    flight->lanes = g_new0(Lane, n_lanes);
    for (unsigned b = 0; b < n_blocks; b++) {
        flight->chunks[b] = map_chunks(n_chunks[b], error);
        if (!flight->chunks[b])
            return NULL;
    }
    return g_steal_pointer(&flight);
}

void vmf_flight_free(VmfFlight *flight)
{
    if (!flight)
        return;
    for (unsigned b = 0; b < flight->n_blocks; b++)
        if (flight->chunks[b])
            munmap(flight->chunks[b], MAX(flight->n_chunks[b], 1) * sizeof(Chunk));
    g_free(flight->chunks);
    g_free(flight->n_chunks);
    g_free(flight->lanes);
    pthread_cond_destroy(&flight->landed);
    pthread_mutex_destroy(&flight->lock);
    g_free(flight);
}

static Chunk *chunk_of(VmfFlight *flight, VmfChunkId id)
{
    return &flight->chunks[id.block][id.chunk];
}

bool vmf_flight_claim(VmfFlight *flight, unsigned lane, uint32_t round, VmfChunkId id)
{
    pthread_mutex_lock(&flight->lock);
    Chunk *chunk = chunk_of(flight, id);
    bool mine = chunk->round != round && (chunk->under_way == 0 || chunk->lane == lane);
    if (mine) {
        chunk->round = round;
        chunk->lane = (uint8_t)lane;
        VMF_TRACE(chunk_claimed, flight, lane, round, id.block, id.chunk);
    }
    pthread_mutex_unlock(&flight->lock);
    return mine;
}

/* The hash keeps a chunk that is dirtied again and again where it was, and spreads neighbours, which tend to be dirty together. */
bool vmf_flight_prefers(VmfFlight *flight, unsigned lane, VmfChunkId id)
{
    pthread_mutex_lock(&flight->lock);
    Chunk *chunk = chunk_of(flight, id);
    uint64_t hash = (id.chunk * UINT64_C(0x9E3779B97F4A7C15)) >> 32;
    unsigned lane_of_choice = chunk->under_way ? chunk->lane : (unsigned)(hash % flight->n_lanes);
    pthread_mutex_unlock(&flight->lock);
    return lane_of_choice == lane;
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
        chunk_of(flight, id)->under_way++;
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
        chunk_of(flight, record->id)->under_way--;
        bytes += record->bytes;
    }
    flight->unacknowledged_bytes -= bytes;
    for (unsigned i = 0; good && i < n; i++) {
        good = ids[i].block < flight->n_blocks && ids[i].chunk < flight->n_chunks[ids[i].block];
        if (good && chunk_of(flight, ids[i])->under_way == 0)
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
    return flight->chunks[id.block][id.chunk].under_way > 0;
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
