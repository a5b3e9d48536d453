/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * A request that is begun is only put into the queue's list. Whoever waits carries out one of the list, the first or
 * any by seed, under a lock of the storage: so what has been carried out is at each moment a sequence of whole
 * operations, and a crash is a point in it.
 *
 * To lose what was not flushed, writes are kept as patches, in order. A flush applies them; a crash applies some of
 * them, and of some a beginning, as the caches of a disk do. A read sees the storage below with the patches on top.
 *
 * All data goes through a buffer of its own: this is for tests, which are small.
 */
#include "stream/storage-fault.h"
#include "stream/storage-private.h"

#include <vmferry/error.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define SECTOR_BYTES 512

/* A write that is not durable. */
typedef struct {
    VmfRequestKind kind; /* WRITE or ZERO */
    uint64_t offset;
    uint64_t length;
    uint8_t *data; /* owned; of ZERO NULL */
} Patch;

typedef struct {
    VmfStorage base;
    VmfStorage *below;
    VmfStorageFault *faults; /* owned */
    size_t n_faults;
    const VmfStorageFault *full, *reorder, *crash; /* among faults; NULL: none */
    pthread_mutex_t lock;                          /* over all that follows, and over the storage below */
    VmfStorageQueue *queue;                        /* of the storage below */
    unsigned *times;                               /* by fault */
    uint64_t written;                              /* bytes */
    uint64_t operations;
    bool crashed;
    GRand *rand;        /* of the crash */
    GPtrArray *patches; /* with lose_unflushed */
} FaultStorage;

typedef struct {
    VmfStorageQueue base;
    FaultStorage *fault;
    GRand *rand;      /* of the order; NULL: as they came */
    GPtrArray *begun; /* requests */
} FaultQueue;

static void patch_free(Patch *patch)
{
    g_free(patch->data);
    g_free(patch);
}

/* ---- what reaches the storage below ----------------------------------------------------------------------------- */

static void below_done(VmfStorageRequest *request, GError *error)
{
    *(GError **)request->opaque = error;
}

static GError *zero_below(FaultStorage *fault, uint64_t offset, uint64_t length)
{
    GError *error = NULL;
    VmfStorageRequest request = {
        .kind = VMF_REQUEST_ZERO, .offset = offset, .length = length, .done = below_done, .opaque = &error};

    vmf_storage_submit(fault->queue, &request);
    vmf_storage_wait(fault->queue, 0);
    return error;
}

static GError *apply(FaultStorage *fault, const Patch *patch, uint64_t length)
{
    GError *error = NULL;

    length -= length % vmf_storage_alignment(fault->below);
    if (length > 0 && patch->kind == VMF_REQUEST_ZERO)
        error = zero_below(fault, patch->offset, length);
    else if (length > 0)
        vmf_storage_write(fault->below, patch->offset, patch->data, length, &error);
    return error;
}

static GError *apply_all(FaultStorage *fault)
{
    GError *error = NULL;

    for (guint i = 0; i < fault->patches->len && !error; i++) {
        const Patch *patch = g_ptr_array_index(fault->patches, i);

        error = apply(fault, patch, patch->length);
    }
    g_ptr_array_set_size(fault->patches, 0);
    return error;
}

/* A third of what was not flushed is lost, a third is there, and of a third the beginning. */
static void lose(FaultStorage *fault)
{
    GError *error;

    for (guint i = 0; i < fault->patches->len; i++) {
        const Patch *patch = g_ptr_array_index(fault->patches, i);
        uint64_t kept = patch->length;

        if (g_rand_int_range(fault->rand, 0, 3) == 0)
            continue;
        if (g_rand_boolean(fault->rand))
            kept = (uint64_t)(g_rand_double(fault->rand) * (double)(kept / SECTOR_BYTES)) * SECTOR_BYTES;
        error = apply(fault, patch, kept);
        g_clear_error(&error);
    }
    g_ptr_array_set_size(fault->patches, 0);
}

static GError *write_or_keep(FaultStorage *fault, VmfStorageRequest *request, uint8_t *data, uint64_t length)
{
    Patch now = {request->kind, request->offset, length, data};

    if (!fault->crash || !fault->crash->lose_unflushed)
        return apply(fault, &now, length);
    now.data = data ? g_memdup2(data, length) : NULL;
    g_ptr_array_add(fault->patches, g_memdup2(&now, sizeof(now)));
    return NULL;
}

static void overlay(FaultStorage *fault, uint8_t *data, uint64_t offset, uint64_t length)
{
    for (guint i = 0; i < fault->patches->len; i++) {
        const Patch *patch = g_ptr_array_index(fault->patches, i);
        uint64_t from = MAX(offset, patch->offset), to = MIN(offset + length, patch->offset + patch->length);

        if (from >= to)
            continue;
        if (patch->data)
            memcpy(data + (from - offset), patch->data + (from - patch->offset), to - from);
        else
            memset(data + (from - offset), 0, to - from);
    }
}

/* ---- faults ----------------------------------------------------------------------------------------------------- */

static bool is_hit(FaultStorage *fault, size_t i, unsigned on, uint64_t offset, uint64_t length)
{
    const VmfStorageFault *f = &fault->faults[i];
    unsigned wanted = f->on ? f->on
                            : VMF_STORAGE_FAULT_ON(VMF_REQUEST_READ) | VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE) |
                                  VMF_STORAGE_FAULT_ON(VMF_REQUEST_ZERO);
    bool has_place = !(on & (VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH) | VMF_STORAGE_FAULT_ON_COMMIT));

    if (f->kind != VMF_STORAGE_FAULT_ERROR || !(wanted & on) || (f->times > 0 && fault->times[i] >= f->times))
        return false;
    if (has_place && (offset >= f->offset + f->length || f->offset >= offset + length))
        return false;
    fault->times[i]++;
    return true;
}

/* The errno of an error that stands there, or 0. */
static int planned_error(FaultStorage *fault, unsigned on, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < fault->n_faults; i++)
        if (is_hit(fault, i, on, offset, length))
            return fault->faults[i].err ? fault->faults[i].err : EIO;
    return 0;
}

/* An operation is about to be carried out. Returns whether it is the one at which the host goes down. */
static bool counts_as_last(FaultStorage *fault)
{
    return fault->operations++ == (fault->crash ? fault->crash->after_operations : UINT64_MAX);
}

static void go_down(FaultStorage *fault)
{
    if (fault->patches)
        lose(fault);
    fault->crashed = true;
}

/* Of the next @length bytes so many can be written; *@err is what to say if that is less. */
static uint64_t room(FaultStorage *fault, uint64_t length, int *err)
{
    uint64_t left;

    if (!fault->full)
        return length;
    left = fault->full->after_bytes > fault->written ? fault->full->after_bytes - fault->written : 0;
    *err = fault->full->err ? fault->full->err : ENOSPC;
    return MIN(left, length);
}

/* ---- requests, under the lock ----------------------------------------------------------------------------------- */

static GError *carry_out_read(FaultStorage *fault, VmfStorageRequest *request)
{
    g_autofree uint8_t *data = g_malloc(request->length);
    uint8_t *from = data;
    GError *error = NULL;

    if (!vmf_storage_read(fault->below, request->offset, data, request->length, &error))
        return error;
    if (fault->patches)
        overlay(fault, data, request->offset, request->length);
    for (unsigned i = 0; i < request->n_iov; i++) {
        memcpy(request->iov[i].iov_base, from, request->iov[i].iov_len);
        from += request->iov[i].iov_len;
    }
    return NULL;
}

static uint8_t *gather(const VmfStorageRequest *request)
{
    uint8_t *data = g_malloc(request->length), *to = data;

    for (unsigned i = 0; i < request->n_iov; i++) {
        memcpy(to, request->iov[i].iov_base, request->iov[i].iov_len);
        to += request->iov[i].iov_len;
    }
    return data;
}

static GError *carry_out_write(FaultStorage *fault, VmfStorageRequest *request)
{
    g_autofree uint8_t *data = request->kind == VMF_REQUEST_WRITE ? gather(request) : NULL;
    bool last = counts_as_last(fault);
    uint64_t length = request->length;
    GError *error;
    int err = EIO;

    if (data)
        length = room(fault, length, &err);
    if (last)
        length = MIN(length, fault->crash->after_bytes);
    error = write_or_keep(fault, request, data, length);
    fault->written += data ? length : 0;
    if (last)
        go_down(fault);
    if (!error && length == request->length && request->fua && !last)
        error = fault->patches ? apply_all(fault) : NULL;
    if (!error && (length < request->length || last))
        error = vmf_storage_request_error(&fault->base, request, last ? EIO : err);
    return error;
}

static GError *carry_out_flush(FaultStorage *fault, VmfStorageRequest *request)
{
    GError *error = NULL;

    if (counts_as_last(fault)) {
        go_down(fault);
        return vmf_storage_request_error(&fault->base, request, EIO);
    }
    if (fault->patches)
        error = apply_all(fault);
    if (!error)
        vmf_storage_flush(fault->below, &error);
    return error;
}

static GError *carry_out(FaultStorage *fault, VmfStorageRequest *request)
{
    int err;

    if (fault->crashed)
        return vmf_storage_request_error(&fault->base, request, EIO);
    err = planned_error(fault, VMF_STORAGE_FAULT_ON(request->kind), request->offset, request->length);
    if (err != 0)
        return vmf_storage_request_error(&fault->base, request, err);
    if (request->kind == VMF_REQUEST_READ)
        return carry_out_read(fault, request);
    return request->kind == VMF_REQUEST_FLUSH ? carry_out_flush(fault, request) : carry_out_write(fault, request);
}

static GError *carry_out_locked(FaultStorage *fault, VmfStorageRequest *request)
{
    GError *error;

    pthread_mutex_lock(&fault->lock);
    error = carry_out(fault, request);
    pthread_mutex_unlock(&fault->lock);
    return error;
}

/* ---- whole-storage calls ---------------------------------------------------------------------------------------- */

static bool fault_execute(VmfStorage *storage, VmfStorageRequest *request, GError **error)
{
    GError *failed = carry_out_locked((FaultStorage *)storage, request);

    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

static bool fault_flush(VmfStorage *storage, GError **error)
{
    VmfStorageRequest request = {.kind = VMF_REQUEST_FLUSH};

    return fault_execute(storage, &request, error);
}

/* Locks, and counts a call that changes something. Returns true, locked, when it can go on. */
static bool begin_operation(FaultStorage *fault, const char *operation, unsigned on, GError **error)
{
    int err;

    pthread_mutex_lock(&fault->lock);
    err = fault->crashed ? EIO : planned_error(fault, on, 0, 0);
    if (err == 0 && counts_as_last(fault)) {
        go_down(fault);
        err = EIO;
    }
    if (err == 0)
        return true;
    pthread_mutex_unlock(&fault->lock);
    return vmf_storage_error(&fault->base, operation, err, error);
}

static bool fault_set_size(VmfStorage *storage, uint64_t size, GError **error)
{
    FaultStorage *fault = (FaultStorage *)storage;
    bool good;

    if (!begin_operation(fault, "set the size", 0, error))
        return false;
    good = vmf_storage_set_size(fault->below, size, error);
    atomic_store(&storage->size, vmf_storage_size(fault->below));
    pthread_mutex_unlock(&fault->lock);
    return good;
}

static bool fault_preallocate(VmfStorage *storage, uint64_t offset, uint64_t length, GError **error)
{
    FaultStorage *fault = (FaultStorage *)storage;
    bool good;

    if (!begin_operation(fault, "allocate", 0, error))
        return false;
    good = vmf_storage_preallocate(fault->below, offset, length, error);
    pthread_mutex_unlock(&fault->lock);
    return good;
}

static bool fault_commit(VmfStorage *storage, GError **error)
{
    FaultStorage *fault = (FaultStorage *)storage;
    bool good;

    if (!begin_operation(fault, "rename", VMF_STORAGE_FAULT_ON_COMMIT, error))
        return false;
    good = vmf_storage_commit(fault->below, error);
    pthread_mutex_unlock(&fault->lock);
    return good;
}

static bool fault_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind,
                         uint64_t *extent_length, GError **error)
{
    FaultStorage *fault = (FaultStorage *)storage;
    bool good = true;

    pthread_mutex_lock(&fault->lock);
    if (fault->crashed)
        good = vmf_storage_error(storage, "find extents", EIO, error);
    else if (!fault->patches || fault->patches->len == 0) /* else: all may be data */
        good = vmf_storage_extent(fault->below, offset, length, kind, extent_length, error);
    pthread_mutex_unlock(&fault->lock);
    return good;
}

static void fault_free(VmfStorage *storage)
{
    FaultStorage *fault = (FaultStorage *)storage;

    if (fault->patches)
        g_ptr_array_unref(fault->patches);
    vmf_storage_queue_free(fault->queue);
    vmf_storage_free(fault->below);
    g_rand_free(fault->rand);
    g_free(fault->faults);
    g_free(fault->times);
    pthread_mutex_destroy(&fault->lock);
}

/* ---- queues ----------------------------------------------------------------------------------------------------- */

static void fault_issue(VmfStorageQueue *queue)
{
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(&queue->staged)))
        g_ptr_array_add(((FaultQueue *)queue)->begun, request);
}

static void carry_out_one(FaultQueue *faults)
{
    guint which = faults->rand ? (guint)g_rand_int_range(faults->rand, 0, (int)faults->begun->len) : 0;
    VmfStorageRequest *request = g_ptr_array_remove_index(faults->begun, which);

    vmf_storage_request_ended(&faults->base, request, carry_out_locked(faults->fault, request));
}

/* Who does not wait gets something now and then, so that who only polls gets there too. */
static void fault_reap(VmfStorageQueue *queue, bool wait)
{
    FaultQueue *faults = (FaultQueue *)queue;

    fault_issue(queue);
    if (wait || !faults->rand || g_rand_int_range(faults->rand, 0, 4) == 0)
        carry_out_one(faults);
}

static void fault_queue_free(VmfStorageQueue *queue)
{
    FaultQueue *faults = (FaultQueue *)queue;

    g_ptr_array_unref(faults->begun);
    g_clear_pointer(&faults->rand, g_rand_free);
}

static const VmfStorageQueueOps fault_queue_ops = {
    .issue = fault_issue,
    .reap = fault_reap,
    .free = fault_queue_free,
};

static VmfStorageQueue *fault_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    FaultStorage *fault = (FaultStorage *)storage;
    FaultQueue *faults = g_new0(FaultQueue, 1);

    faults->base.ops = &fault_queue_ops;
    faults->fault = fault;
    faults->rand = fault->reorder ? g_rand_new_with_seed(fault->reorder->seed) : NULL;
    faults->begun = g_ptr_array_new();
    return &faults->base;
}

/* ---- making it -------------------------------------------------------------------------------------------------- */

static const VmfStorageOps fault_ops = {
    .free = fault_free,
    .set_size = fault_set_size,
    .preallocate = fault_preallocate,
    .flush = fault_flush,
    .commit = fault_commit,
    .execute = fault_execute,
    .extent = fault_extent,
    .queue_new = fault_queue_new,
};

static const VmfStorageFault *find(const FaultStorage *fault, VmfStorageFaultKind kind)
{
    for (size_t i = 0; i < fault->n_faults; i++)
        if (fault->faults[i].kind == kind)
            return &fault->faults[i];
    return NULL;
}

VmfStorage *vmf_storage_fault_new(VmfStorage *below, const VmfStorageFault *faults, size_t n_faults, GError **error)
{
    FaultStorage *fault = g_new0(FaultStorage, 1);

    fault->base = (VmfStorage){
        .ops = &fault_ops,
        .name = g_strdup(vmf_storage_name(below)),
        .backend = vmf_storage_backend(below),
        .mode = below->mode,
        .size = vmf_storage_size(below),
        .alignment = vmf_storage_alignment(below),
        .in_place = vmf_storage_is_in_place(below),
        .wants_stable_writes = vmf_storage_wants_stable_writes(below),
        .any_memory = below->any_memory,
    };
    fault->below = below;
    fault->faults = g_memdup2(faults, n_faults * sizeof(*faults));
    fault->n_faults = n_faults;
    fault->times = g_new0(unsigned, n_faults);
    fault->full = find(fault, VMF_STORAGE_FAULT_FULL);
    fault->reorder = find(fault, VMF_STORAGE_FAULT_REORDER);
    fault->crash = find(fault, VMF_STORAGE_FAULT_CRASH);
    pthread_mutex_init(&fault->lock, NULL);
    fault->rand = g_rand_new_with_seed(fault->crash ? fault->crash->seed : 0);
    if (fault->crash && fault->crash->lose_unflushed)
        fault->patches = g_ptr_array_new_with_free_func((GDestroyNotify)patch_free);
    fault->queue = vmf_storage_queue_new(below, 1, error);
    if (fault->queue)
        return &fault->base;
    vmf_storage_free(&fault->base);
    return NULL;
}

uint64_t vmf_storage_fault_operations(VmfStorage *storage)
{
    FaultStorage *fault = (FaultStorage *)storage;
    uint64_t operations;

    pthread_mutex_lock(&fault->lock);
    operations = fault->operations;
    pthread_mutex_unlock(&fault->lock);
    return operations;
}

bool vmf_storage_fault_has_crashed(VmfStorage *storage)
{
    FaultStorage *fault = (FaultStorage *)storage;
    bool crashed;

    pthread_mutex_lock(&fault->lock);
    crashed = fault->crashed;
    pthread_mutex_unlock(&fault->lock);
    return crashed;
}
