/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/test-memory-storage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include <xxhash.h>

#define BLOCK 4096u

static uint64_t next_random(MemoryStorage *storage)
{
    storage->seed ^= storage->seed << 13;
    storage->seed ^= storage->seed >> 7;
    storage->seed ^= storage->seed << 17;
    return storage->seed;
}

/* Counts the operation; 0, or the errno with which it fails. */
static int begin_op(MemoryStorage *storage, MemoryOpKind kind, uint64_t offset, uint64_t length)
{
    MemoryOp op = {kind, offset, length};
    unsigned number = storage->ops->len + 1;

    if (storage->crash_at && number >= storage->crash_at)
        return EIO;
    g_array_append_val(storage->ops, op);
    if (number == storage->fail_at)
        return storage->fail_errno;
    if (kind == OP_WRITE || kind == OP_ZERO)
        g_array_append_val(storage->unsaved, op);
    return 0;
}

/* The octets that are to be written, as they are now. */
static uint8_t *fetch(const VmfStorageRequest *request)
{
    uint8_t *data = g_malloc0(request->length), *at = data;

    assert_true(request->kind == VMF_REQUEST_WRITE || request->kind == VMF_REQUEST_ZERO);
    for (unsigned i = 0; i < request->n_iov; at += request->iov[i++].iov_len)
        memcpy(at, request->iov[i].iov_base, request->iov[i].iov_len);
    return data;
}

static int put(MemoryStorage *storage, const VmfStorageRequest *request, const uint8_t *data)
{
    int failed =
        begin_op(storage, request->kind == VMF_REQUEST_ZERO ? OP_ZERO : OP_WRITE, request->offset, request->length);

    if (!failed)
        memcpy(storage->octets + request->offset, data, request->length);
    return failed;
}

/* ---- whole-storage calls ------------------------------------------------------------------------------------ */

static bool result(VmfStorage *base, const char *operation, int failed, GError **error)
{
    return !failed || vmf_storage_error(base, operation, failed, error);
}

static void memory_free(VmfStorage *base)
{
    MemoryStorage *storage = (MemoryStorage *)base;

    assert_int_equal(storage->n_queues, 0);
    g_array_unref(storage->ops);
    g_array_unref(storage->unsaved);
    g_free(storage->octets);
    g_free(storage->durable);
}

static bool memory_set_size(VmfStorage *base, uint64_t size, GError **error)
{
    MemoryStorage *storage = (MemoryStorage *)base;
    int failed = begin_op(storage, OP_SET_SIZE, 0, size);

    if (!failed && size > storage->capacity)
        failed = ENOSPC;
    if (!failed && !base->in_place)
        atomic_store(&base->size, size);
    return result(base, "set size", failed, error);
}

static bool memory_preallocate(VmfStorage *base, uint64_t offset, uint64_t length, GError **error)
{
    return result(base, "allocate", begin_op((MemoryStorage *)base, OP_ALLOCATE, offset, length), error);
}

static bool memory_flush(VmfStorage *base, GError **error)
{
    MemoryStorage *storage = (MemoryStorage *)base;
    int failed = begin_op(storage, OP_FLUSH, 0, 0);

    for (guint i = 0; !failed && i < storage->unsaved->len; i++) {
        const MemoryOp *op = &g_array_index(storage->unsaved, MemoryOp, i);
        memcpy(storage->durable + op->offset, storage->octets + op->offset, op->length);
    }
    if (!failed)
        g_array_set_size(storage->unsaved, 0);
    return result(base, "flush", failed, error);
}

static bool memory_commit(VmfStorage *base, GError **error)
{
    MemoryStorage *storage = (MemoryStorage *)base;
    int failed = begin_op(storage, OP_COMMIT, 0, 0);

    storage->committed |= !failed;
    return result(base, "commit", failed, error);
}

static bool memory_execute(VmfStorage *base, VmfStorageRequest *request, GError **error)
{
    g_autofree uint8_t *data = fetch(request);
    int failed = put((MemoryStorage *)base, request, data);

    if (failed)
        g_propagate_error(error, vmf_storage_request_error(base, request, failed));
    return !failed;
}

/* ---- queues ------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfStorageRequest *request;
    uint64_t digest; /* of its pieces, when it was submitted */
    uint8_t *data;   /* once they were fetched */
} Pending;

typedef struct {
    VmfStorageQueue base;
    GArray *pending; /* Pending */
} MemoryQueue;

static uint64_t digest_of(const VmfStorageRequest *request)
{
    uint64_t digest = 0;

    for (unsigned i = 0; i < request->n_iov; i++)
        digest += XXH3_64bits(request->iov[i].iov_base, request->iov[i].iov_len);
    return digest;
}

static void queue_issue(VmfStorageQueue *base)
{
    MemoryQueue *queue = (MemoryQueue *)base;
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(&base->staged))) {
        Pending pending = {request, base->storage->wants_stable_writes ? digest_of(request) : 0, NULL};
        g_array_append_val(queue->pending, pending);
    }
}

/*
 * Takes any request a step further: its octets are fetched, later they are put where they belong. Between the two
 * other requests may go both steps, as in a device that has more than one of them at a time. True: it has ended.
 */
static bool step_any(MemoryQueue *queue)
{
    MemoryStorage *storage = (MemoryStorage *)queue->base.storage;
    guint index = (guint)(next_random(storage) % queue->pending->len);
    Pending *pending = &g_array_index(queue->pending, Pending, index);
    VmfStorageRequest *request = pending->request;

    if (!pending->data) {
        pending->data = fetch(request);
        return false;
    }
    if (storage->base.wants_stable_writes)
        assert_true(pending->digest == digest_of(request));
    int failed = put(storage, request, pending->data);
    g_free(pending->data);
    g_array_remove_index_fast(queue->pending, index);
    vmf_storage_request_ended(&queue->base, request,
                              failed ? vmf_storage_request_error(&storage->base, request, failed) : NULL);
    return true;
}

static void queue_reap(VmfStorageQueue *base, bool wait)
{
    MemoryQueue *queue = (MemoryQueue *)base;

    queue_issue(base);
    while (wait && !step_any(queue))
        ;
    while (queue->pending->len > 0 && next_random((MemoryStorage *)base->storage) % 2)
        step_any(queue);
}

static void queue_free(VmfStorageQueue *base)
{
    ((MemoryStorage *)base->storage)->n_queues--;
    g_array_unref(((MemoryQueue *)base)->pending);
}

static const VmfStorageQueueOps queue_ops = {.issue = queue_issue, .reap = queue_reap, .free = queue_free};

static VmfStorageQueue *memory_queue_new(VmfStorage *base, unsigned depth, GError **error)
{
    MemoryQueue *queue = g_new0(MemoryQueue, 1);

    ((MemoryStorage *)base)->n_queues++;
    queue->base.ops = &queue_ops;
    queue->pending = g_array_new(false, false, sizeof(Pending));
    return &queue->base;
}

/* ---- making and breaking ------------------------------------------------------------------------------------ */

static const VmfStorageOps memory_ops = {
    .free = memory_free,
    .set_size = memory_set_size,
    .preallocate = memory_preallocate,
    .flush = memory_flush,
    .commit = memory_commit,
    .execute = memory_execute,
    .queue_new = memory_queue_new,
};

MemoryStorage *memory_storage_new(uint64_t capacity, bool in_place, uint64_t seed)
{
    MemoryStorage *storage = g_new0(MemoryStorage, 1);

    storage->base.ops = &memory_ops;
    storage->base.name = g_strdup("memory");
    storage->base.backend = "memory";
    storage->base.mode = VMF_STORAGE_CREATE;
    storage->base.size = in_place ? capacity : 0;
    storage->base.alignment = BLOCK;
    storage->base.in_place = in_place;
    storage->capacity = capacity;
    storage->octets = g_malloc(capacity);
    storage->durable = g_malloc(capacity);
    memset(storage->octets, in_place ? 0x5a : 0, capacity);
    memset(storage->durable, in_place ? 0x5a : 0, capacity);
    storage->seed = seed * 2 + 1;
    storage->ops = g_array_new(false, false, sizeof(MemoryOp));
    storage->unsaved = g_array_new(false, false, sizeof(MemoryOp));
    return storage;
}

uint8_t *memory_storage_after_crash(MemoryStorage *storage)
{
    uint8_t *found = g_memdup2(storage->durable, storage->capacity);

    for (guint i = 0; i < storage->unsaved->len; i++) {
        const MemoryOp *op = &g_array_index(storage->unsaved, MemoryOp, i);
        for (uint64_t at = op->offset; at < op->offset + op->length; at += BLOCK)
            if (next_random(storage) % 2)
                memcpy(found + at, storage->octets + at, BLOCK);
    }
    return found;
}
