/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/read-ahead.h"

#include <pthread.h>
#include <stdlib.h>
#include <vmferry/error.h>

#include "stream/io-memory.h"

typedef struct {
    VmfReadPiece piece;
    VmfDiskRequest request;
    struct iovec iov;
    GError *error;
    bool ended; /* under the lock */
    VmfReadAhead *ahead;
} Slot;

/* A ring: slots [first, first + n) are in use. */
struct VmfReadAhead {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    unsigned n_slots, first, n;
    uint8_t *memory;
    uint64_t pending;
    Slot slots[];
};

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Slot *slot = request->opaque;

    pthread_mutex_lock(&slot->ahead->lock);
    slot->error = error ? g_error_copy(error) : NULL;
    slot->ended = true;
    pthread_cond_signal(&slot->ahead->ended);
    pthread_mutex_unlock(&slot->ahead->lock);
}

VmfReadAhead *vmf_read_ahead_new(unsigned n_buffers, GError **error)
{
    g_autoptr(VmfReadAhead) ahead = g_malloc0(sizeof(VmfReadAhead) + n_buffers * sizeof(Slot));

    pthread_mutex_init(&ahead->lock, NULL);
    pthread_cond_init(&ahead->ended, NULL);
    ahead->memory = vmf_io_memory_new((size_t)n_buffers * VMF_READ_AHEAD_BYTES);
    if (!ahead->memory) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: buffers of %u bytes: out of memory", VMF_READ_AHEAD_BYTES);
        return NULL;
    }
    for (; ahead->n_slots < n_buffers; ahead->n_slots++) {
        ahead->slots[ahead->n_slots].piece.data = ahead->memory + (size_t)ahead->n_slots * VMF_READ_AHEAD_BYTES;
        ahead->slots[ahead->n_slots].ahead = ahead;
    }
    return g_steal_pointer(&ahead);
}

void vmf_read_ahead_free(VmfReadAhead *ahead)
{
    if (!ahead)
        return;
    while (vmf_read_ahead_next(ahead))
        vmf_read_ahead_give_back(ahead);
    free(ahead->memory);
    pthread_cond_destroy(&ahead->ended);
    pthread_mutex_destroy(&ahead->lock);
    g_free(ahead);
}

bool vmf_read_ahead_has_room(const VmfReadAhead *ahead)
{
    return ahead->n < ahead->n_slots;
}

void vmf_read_ahead_begin(VmfReadAhead *ahead, VmfDisk *disk, unsigned tag, uint64_t offset, uint64_t length)
{
    Slot *slot = &ahead->slots[(ahead->first + ahead->n) % ahead->n_slots];

    g_assert(vmf_read_ahead_has_room(ahead) && length <= VMF_READ_AHEAD_BYTES);
    slot->piece =
        (VmfReadPiece){.disk = disk, .tag = tag, .offset = offset, .length = length, .data = slot->piece.data};
    slot->iov = (struct iovec){slot->piece.data, length};
    slot->ended = false;
    slot->request = (VmfDiskRequest){
        .operation = VMF_DISK_READ,
        .offset = offset,
        .length = length,
        .iov = &slot->iov,
        .n_iov = 1,
        .done = on_done,
        .opaque = slot,
    };
    ahead->n++;
    ahead->pending += length;
    vmf_disk_submit(disk, &slot->request);
}

const VmfReadPiece *vmf_read_ahead_next(VmfReadAhead *ahead)
{
    Slot *slot = &ahead->slots[ahead->first];

    if (ahead->n == 0)
        return NULL;
    pthread_mutex_lock(&ahead->lock);
    while (!slot->ended)
        pthread_cond_wait(&ahead->ended, &ahead->lock);
    pthread_mutex_unlock(&ahead->lock);
    slot->piece.error = slot->error;
    return &slot->piece;
}

void vmf_read_ahead_give_back(VmfReadAhead *ahead)
{
    Slot *slot = &ahead->slots[ahead->first];

    g_clear_error(&slot->error);
    ahead->pending -= slot->piece.length;
    ahead->first = (ahead->first + 1) % ahead->n_slots;
    ahead->n--;
}

unsigned vmf_read_ahead_under_way(const VmfReadAhead *ahead)
{
    return ahead->n;
}

uint64_t vmf_read_ahead_pending(const VmfReadAhead *ahead)
{
    return ahead->pending;
}
