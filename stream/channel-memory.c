/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Channels in memory: two rings, one for each direction, shared by two ends.
 *
 * Theory of Operation
 *
 * A ring has one reader and one writer. Its lock guards positions and flags only: the writer owns the free part of the
 * buffer and the reader owns the filled part, so both copy without the lock, at the same time, and take it again to
 * publish what they did.
 *
 * Ends behave as sockets do. An end that is shut down (or freed) reads nothing more and cannot write; its peer first
 * drains what was sent before, then reads the end of the stream, and its writes fail.
 */
#include "stream/channel.h"
#include "stream/channel-wait.h"

#include <string.h>

#define DEFAULT_CAPACITY (1024 * 1024)

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t *data;
    size_t capacity;
    size_t start; /* of the filled part */
    size_t used;
    bool no_more_writes; /* the writing end is down: what is used is the rest */
    bool no_more_reads;  /* the reading end is down */
} Ring;

typedef struct {
    atomic_int ends;
    Ring rings[2];
} Pair;

typedef struct {
    VmfChannel base;
    Pair *pair;
    Ring *in;
    Ring *out;
} MemoryChannel;

static void ring_init(Ring *ring, size_t capacity)
{
    pthread_mutex_init(&ring->lock, NULL);
    vmf_cond_init(&ring->changed);
    ring->data = g_malloc(capacity);
    ring->capacity = capacity;
}

static void ring_clear(Ring *ring)
{
    g_free(ring->data);
    pthread_cond_destroy(&ring->changed);
    pthread_mutex_destroy(&ring->lock);
}

typedef enum { INTO_RING, OUT_OF_RING } Direction;

static void copy_piece(uint8_t *ring, uint8_t *user, size_t length, Direction direction)
{
    if (direction == INTO_RING)
        memcpy(ring, user, length);
    else
        memcpy(user, ring, length);
}

/* Moves up to @room bytes between @iov and the ring from @position on, around the ring's end. Returns how many. */
static size_t ring_copy(Ring *ring, size_t position, size_t room, const struct iovec *iov, int n, Direction direction)
{
    size_t done = 0;

    for (int i = 0; i < n && done < room; i++) {
        size_t length = MIN(iov[i].iov_len, room - done);
        size_t at = (position + done) % ring->capacity;
        size_t first = MIN(length, ring->capacity - at);

        if (length == 0)
            continue;
        copy_piece(ring->data + at, iov[i].iov_base, first, direction);
        copy_piece(ring->data, (uint8_t *)iov[i].iov_base + first, length - first, direction);
        done += length;
    }
    return done;
}

static bool ring_readable(const Ring *ring)
{
    return ring->used > 0 || ring->no_more_writes || ring->no_more_reads;
}

static ssize_t memory_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    Ring *ring = ((MemoryChannel *)channel)->in;
    size_t start, filled, got;

    pthread_mutex_lock(&ring->lock);
    while (!ring_readable(ring))
        pthread_cond_wait(&ring->changed, &ring->lock);
    start = ring->start;
    filled = ring->no_more_reads ? 0 : ring->used;
    pthread_mutex_unlock(&ring->lock);
    if (filled == 0)
        return 0;

    got = ring_copy(ring, start, filled, iov, n, OUT_OF_RING);

    pthread_mutex_lock(&ring->lock);
    ring->start = (start + got) % ring->capacity;
    ring->used -= got;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
    return got;
}

/* Waits for room and says where it is. Returns false when nothing can be written any more. */
static bool wait_for_room(VmfChannel *channel, Ring *ring, size_t *position, size_t *room, GError **error)
{
    bool here, there;

    pthread_mutex_lock(&ring->lock);
    while (ring->used == ring->capacity && !ring->no_more_writes && !ring->no_more_reads)
        pthread_cond_wait(&ring->changed, &ring->lock);
    here = ring->no_more_writes;
    there = ring->no_more_reads;
    *position = (ring->start + ring->used) % ring->capacity;
    *room = ring->capacity - ring->used;
    pthread_mutex_unlock(&ring->lock);
    if (here)
        vmf_channel_error_shut_down(channel, error);
    else if (there)
        g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "%s: write: the other end is closed", channel->name);
    return !here && !there;
}

static ssize_t memory_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    Ring *ring = ((MemoryChannel *)channel)->out;
    size_t position, room, sent;

    if (!wait_for_room(channel, ring, &position, &room, error))
        return -1;

    sent = ring_copy(ring, position, room, iov, n, INTO_RING);

    pthread_mutex_lock(&ring->lock);
    ring->used += sent;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
    return sent;
}

static bool memory_has_room(VmfChannel *channel)
{
    Ring *ring = ((MemoryChannel *)channel)->out;

    pthread_mutex_lock(&ring->lock);
    bool room = ring->used < ring->capacity || ring->no_more_writes || ring->no_more_reads;
    pthread_mutex_unlock(&ring->lock);
    return room;
}

static int memory_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    Ring *ring = ((MemoryChannel *)channel)->in;
    int64_t deadline = vmf_deadline_after(timeout_ns);
    bool in_time = true, readable;

    pthread_mutex_lock(&ring->lock);
    while (!ring_readable(ring) && in_time)
        in_time = vmf_cond_wait_until(&ring->changed, &ring->lock, deadline);
    readable = ring_readable(ring);
    pthread_mutex_unlock(&ring->lock);
    return readable;
}

static void set_flag(Ring *ring, bool *flag)
{
    pthread_mutex_lock(&ring->lock);
    *flag = true;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
}

static void memory_shutdown(VmfChannel *channel)
{
    MemoryChannel *memory = (MemoryChannel *)channel;

    set_flag(memory->in, &memory->in->no_more_reads);
    set_flag(memory->out, &memory->out->no_more_writes);
}

static void memory_free(VmfChannel *channel)
{
    Pair *pair = ((MemoryChannel *)channel)->pair;

    memory_shutdown(channel);
    if (atomic_fetch_sub(&pair->ends, 1) > 1)
        return;
    ring_clear(&pair->rings[0]);
    ring_clear(&pair->rings[1]);
    g_free(pair);
}

static const VmfChannelOps memory_ops = {
    .kind = "memory",
    .readv = memory_readv,
    .writev = memory_writev,
    .wait_readable = memory_wait_readable,
    .has_room = memory_has_room,
    .shutdown = memory_shutdown,
    .free = memory_free,
};

static VmfChannel *memory_end(Pair *pair, Ring *in, Ring *out)
{
    MemoryChannel *memory = g_new0(MemoryChannel, 1);

    vmf_channel_init(&memory->base, &memory_ops, "memory", false);
    memory->pair = pair;
    memory->in = in;
    memory->out = out;
    return &memory->base;
}

void vmf_channel_memory_pair(size_t capacity, VmfChannel **a, VmfChannel **b)
{
    Pair *pair = g_new0(Pair, 1);

    atomic_init(&pair->ends, 2);
    for (size_t i = 0; i < G_N_ELEMENTS(pair->rings); i++)
        ring_init(&pair->rings[i], capacity > 0 ? capacity : DEFAULT_CAPACITY);
    *a = memory_end(pair, &pair->rings[0], &pair->rings[1]);
    *b = memory_end(pair, &pair->rings[1], &pair->rings[0]);
}
