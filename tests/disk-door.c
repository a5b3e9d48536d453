/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/disk-door.h"

typedef struct {
    VmfStorage base;
    VmfStorage *below;
    Door *door;
} DoorStorage;

static GError *carry_out(DoorStorage *storage, VmfStorageRequest *request)
{
    g_autofree uint8_t *zeros = request->kind == VMF_REQUEST_ZERO ? g_malloc0(request->length) : NULL;
    GError *error = NULL;

    if (request->kind == VMF_REQUEST_FLUSH)
        vmf_storage_flush(storage->below, &error);
    else if (request->kind == VMF_REQUEST_READ)
        vmf_storage_read(storage->below, request->offset, request->iov[0].iov_base, request->length, &error);
    else
        vmf_storage_write(storage->below, request->offset, zeros ? zeros : request->iov[0].iov_base, request->length,
                          &error);
    return error;
}

/* Lock held. */
static void shut_at(Door *door, VmfRequestKind kind)
{
    if (door->shuts_at == 0 || door->shuts_at != (int)kind)
        return;
    door->shut = true;
    door->shuts_at = 0;
}

static void door_reap(VmfStorageQueue *queue, bool wait)
{
    DoorStorage *storage = (DoorStorage *)queue->storage;
    Door *door = storage->door;
    VmfStorageRequest *request;

    pthread_mutex_lock(&door->lock);
    for (request = queue->staged.head; request; request = request->next)
        shut_at(door, request->kind);
    while (wait && door->shut && !vmf_storage_is_woken(queue))
        pthread_cond_wait(&door->opened, &door->lock);
    bool shut = door->shut;
    pthread_mutex_unlock(&door->lock);
    if (!shut && queue->staged.n > 0)
        g_usleep(door->delay_us);
    while (!shut && (request = vmf_request_list_pop(&queue->staged)))
        vmf_storage_request_ended(queue, request, carry_out(storage, request));
}

void await_shut(Door *door)
{
    bool shut = false;

    while (!shut) {
        g_usleep(1000);
        pthread_mutex_lock(&door->lock);
        shut = door->shut;
        pthread_mutex_unlock(&door->lock);
    }
}

void open_door(Door *door, int shuts_at)
{
    pthread_mutex_lock(&door->lock);
    door->shut = false;
    door->shuts_at = shuts_at;
    pthread_cond_broadcast(&door->opened);
    pthread_mutex_unlock(&door->lock);
}

static void door_wake(VmfStorageQueue *queue)
{
    Door *door = ((DoorStorage *)queue->storage)->door;

    pthread_mutex_lock(&door->lock);
    pthread_cond_broadcast(&door->opened);
    pthread_mutex_unlock(&door->lock);
}

static void door_issue(VmfStorageQueue *queue)
{
}

static VmfStorageQueue *door_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    static const VmfStorageQueueOps ops = {
        .issue = door_issue, .reap = door_reap, .wake = door_wake, .free = door_issue};
    VmfStorageQueue *queue = g_new0(VmfStorageQueue, 1);

    queue->ops = &ops;
    return queue;
}

static bool door_flush(VmfStorage *storage, GError **error)
{
    return vmf_storage_flush(((DoorStorage *)storage)->below, error);
}

static bool door_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind,
                        uint64_t *extent_length, GError **error)
{
    return vmf_storage_extent(((DoorStorage *)storage)->below, offset, length, kind, extent_length, error);
}

static void door_free(VmfStorage *storage)
{
    vmf_storage_free(((DoorStorage *)storage)->below);
}

VmfStorage *put_door(VmfStorage *below, void *opaque, GError **error)
{
    static const VmfStorageOps ops = {
        .free = door_free, .flush = door_flush, .extent = door_extent, .queue_new = door_queue_new};
    DoorStorage *storage = g_new0(DoorStorage, 1);

    *storage = (DoorStorage){.below = below, .door = opaque};
    storage->base = (VmfStorage){.ops = &ops,
                                 .name = g_strdup("door"),
                                 .backend = "door",
                                 .mode = VMF_STORAGE_MODIFY,
                                 .size = vmf_storage_size(below),
                                 .alignment = vmf_storage_alignment(below)};
    return &storage->base;
}
