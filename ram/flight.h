/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is under way: records sent and not acknowledged, of which chunks, on which lane.
 *
 * Theory of operation
 *
 * A lane is one page channel as the source sees it. Records of one lane arrive in order; records of two lanes do not. So that two
 * versions of a page never overtake each other, a chunk may have unacknowledged records on one lane only. The table here knows, for
 * each chunk, how many of its records are unacknowledged and on which lane they are; a lane claims a chunk for a round under the
 * lock, and may do so if nothing of it is under way or all of it on this very lane. That is the whole order between channels:
 * no barrier, and an idle lane takes what a slow one has not begun.
 *
 * The same lock bounds the bytes that are unacknowledged over all lanes. They are what a cut makes dirty again and what the stop has
 * to wait for, so the bound is small: the larger of 4 MiB and two round trips of the rate, 1 MiB on slow links. The rate is that of
 * acknowledgements, since bytes that a socket buffer took have not arrived anywhere.
 *
 * Without acknowledgements (a one-way stream) nothing is ever under way and nothing is bounded.
 */
#ifndef RAM_FLIGHT_H
#define RAM_FLIGHT_H

#include <vmferry/ram.h>

typedef struct VmfFlight VmfFlight;

typedef struct {
    unsigned block;
    uint64_t chunk;
} VmfChunkId;

/* @n_chunks: of each of the @n_blocks blocks. NULL with VMF_ERROR_MEMORY. */
VmfFlight *vmf_flight_new(unsigned n_lanes, unsigned n_blocks, const uint64_t *n_chunks, bool acknowledged, GError **error);
void vmf_flight_free(VmfFlight *flight);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfFlight, vmf_flight_free)

/* Claims @id for @lane in round @round (from 1): false if it was claimed in this round, or is under way on another lane. */
bool vmf_flight_claim(VmfFlight *flight, unsigned lane, uint32_t round, VmfChunkId id);

/* Whether @lane is the first choice for @id: where it is under way, otherwise a hash of its place. */
bool vmf_flight_prefers(VmfFlight *flight, unsigned lane, VmfChunkId id);

/*
 * Waits until @bytes more may be under way, then counts a record of @id on @lane. Before the record's digests are entered and before
 * it is sent. False once the flight is closed.
 */
bool vmf_flight_launch(VmfFlight *flight, unsigned lane, VmfChunkId id, uint32_t bytes);
/*
 * The same without waiting: false when there is no room now. A lane that holds unsent records has to send them before it waits, since
 * they are part of what it would wait for.
 */
bool vmf_flight_try_launch(VmfFlight *flight, unsigned lane, VmfChunkId id, uint32_t bytes);

/*
 * All records of @lane below @sequence have landed. @check is called under the lock for each of the @n entries of the
 * acknowledgement whose chunk has nothing more under way, so that source and target speak of the same records.
 * False when the peer acknowledges what was not sent.
 */
bool vmf_flight_land(VmfFlight *flight, unsigned lane, uint64_t sequence, unsigned n, const VmfChunkId *ids, const uint64_t *sums,
                     void (*check)(void *opaque, VmfChunkId id, uint64_t sum), void *opaque);

/* Records launched on @lane so far: the next one's sequence. The lane's own thread. */
uint64_t vmf_flight_sequence(VmfFlight *flight, unsigned lane);

/* Waits until no more than @bytes are under way. False: closed, or @timeout_ns passed. */
bool vmf_flight_wait(VmfFlight *flight, uint64_t bytes, int64_t timeout_ns);
/* The same until nothing is. */
bool vmf_flight_drain(VmfFlight *flight, int64_t timeout_ns);

/* Whether records of @id have not landed. From within @check or @call. */
bool vmf_flight_is_under_way(const VmfFlight *flight, VmfChunkId id);
/* Calls @call under the lock of @check: nothing lands meanwhile. */
void vmf_flight_freeze(VmfFlight *flight, void (*call)(void *opaque), void *opaque);

uint64_t vmf_flight_unacknowledged_bytes(VmfFlight *flight);
/* Bytes acknowledged a second, lately; 0: not known. Any thread. */
uint64_t vmf_flight_rate(VmfFlight *flight);
void vmf_flight_set_rtt(VmfFlight *flight, uint64_t rtt_ns);

/* Wakes everyone who waits, now and for ever. Any thread. */
void vmf_flight_close(VmfFlight *flight);

#endif
