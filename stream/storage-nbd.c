/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Exports of NBD servers.
 *
 * Theory of Operation
 *
 * Where the server says that its connections are views of one thing (multi-conn), each queue has one of its own;
 * otherwise all share that of the storage, which also serves the calls that have no queue. A request becomes commands
 * one after the other, each of at most what the server takes at once. The protocol knows no pieces: those that are not
 * one range of memory go through a buffer that their slot keeps.
 *
 * A command's callback only notes its result and puts the request into the list of its queue; it runs with the
 * connection's lock held, in whichever thread moves the connection on. What follows is done by the queue's own thread.
 */
#include "stream/storage-nbd-connection.h"
#include "stream/storage-private.h"

#include <vmferry/error.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What every server takes. */
#define COMMAND_BYTES_MAX (UINT64_C(32) << 20)
#define ZERO_BYTES_MAX (UINT64_C(1) << 30)
#define ALIGNMENT_MAX 4096

typedef struct {
    VmfStorage base;
    VmfStorageUri *uri; /* owned */
    VmfConnectFlags flags;
    const _Atomic bool *cancelled; /* as in VmfStorageOptions */
    bool connects;
    int64_t silence_ns;
    uint64_t command_bytes_max;
    bool can_fua, can_flush, can_zero, can_extents, can_multi_conn;
    VmfNbdConnection *connection;
    pthread_mutex_t calls_lock; /* over the queue of the calls */
    VmfStorageQueue *calls;
    pthread_mutex_t lock;   /* over connections */
    GPtrArray *connections; /* all that are open, for shutdown */
    atomic_bool shut_down;
} NbdStorage;

typedef struct NbdSlot NbdSlot;

typedef struct {
    VmfStorageQueue base;
    NbdStorage *storage;
    VmfNbdConnection *connection;
    bool owns_connection;
    NbdSlot *slots;           /* depth of them */
    NbdSlot *free_slot;       /* a list */
    VmfRequestList completed; /* under the connection's lock: their commands have been answered */
} NbdQueue;

/* Of a busy request. */
struct NbdSlot {
    NbdQueue *queue;
    NbdSlot *next;
    VmfStorageRequest *request;
    void *bounce; /* kept */
    uint64_t bounce_bytes;
    uint64_t bytes; /* of the command under way */
    int err;        /* its result */
};

enum { STEP_TRANSFER, STEP_FLUSH };

/* ---- commands, under the connection's lock ---------------------------------------------------------------------- */

static int on_completion(void *opaque, int *err)
{
    NbdSlot *slot = opaque;

    slot->err = *err;
    vmf_request_list_append(&slot->queue->completed, slot->request);
    return 1;
}

/* The memory of what is left, if it is one range; otherwise NULL. */
static void *one_range(const VmfStorageRequest *request)
{
    char *start = request->left->iov_base, *end = start;

    for (unsigned i = 0; i < request->n_left; i++) {
        if (request->left[i].iov_base != end && request->left[i].iov_len > 0)
            return NULL;
        end += request->left[i].iov_len;
    }
    return start;
}

static void *bounce_of(NbdSlot *slot, uint64_t bytes)
{
    if (slot->bounce_bytes < bytes) {
        g_free(slot->bounce);
        slot->bounce = g_try_malloc(bytes);
        slot->bounce_bytes = slot->bounce ? bytes : 0;
    }
    return slot->bounce;
}

/* Copies the first @bytes of what is left of the pieces to the buffer, or the other way. */
static void copy_pieces(const NbdSlot *slot, bool to_bounce)
{
    const VmfStorageRequest *request = slot->request;
    uint64_t at = 0;

    for (unsigned i = 0; i < request->n_left && at < slot->bytes; i++) {
        uint64_t now = MIN(request->left[i].iov_len, slot->bytes - at);

        if (to_bounce)
            memcpy((char *)slot->bounce + at, request->left[i].iov_base, now);
        else
            memcpy(request->left[i].iov_base, (char *)slot->bounce + at, now);
        at += now;
    }
}

static uint64_t bytes_at_once(const NbdStorage *storage, const VmfStorageRequest *request)
{
    uint64_t most =
        request->kind == VMF_REQUEST_ZERO && storage->can_zero ? ZERO_BYTES_MAX : storage->command_bytes_max;

    return MIN(request->length - request->progress, most);
}

/* Where the data of the next command is; NULL: no memory. */
static void *data_of(NbdSlot *slot)
{
    VmfStorageRequest *request = slot->request;
    void *data = request->kind == VMF_REQUEST_ZERO ? NULL : one_range(request);

    if (data)
        return data;
    data = bounce_of(slot, slot->bytes);
    if (data && request->kind == VMF_REQUEST_WRITE)
        copy_pieces(slot, true);
    else if (data && request->kind == VMF_REQUEST_ZERO)
        memset(data, 0, slot->bytes);
    return data;
}

/* Gives the next command of a request to the server. Returns an errno: it could not be given. */
static int issue_transfer(const NbdStorage *storage, NbdSlot *slot, nbd_completion_callback completion)
{
    VmfStorageRequest *request = slot->request;
    VmfNbdConnection *connection = slot->queue->connection;
    uint32_t fua = request->fua && storage->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
    uint64_t offset = request->offset + request->progress;
    bool as_command = request->kind == VMF_REQUEST_ZERO && storage->can_zero;
    int64_t cookie;
    void *data;

    slot->bytes = bytes_at_once(storage, request);
    data = as_command ? NULL : data_of(slot);
    if (as_command)
        cookie = nbd_aio_zero(connection->nbd, slot->bytes, offset, completion, fua);
    else if (!data)
        return ENOMEM;
    else if (request->kind == VMF_REQUEST_READ)
        cookie = nbd_aio_pread(connection->nbd, data, slot->bytes, offset, completion, 0);
    else
        cookie = nbd_aio_pwrite(connection->nbd, data, slot->bytes, offset, completion, fua);
    return cookie < 0 ? vmf_nbd_connection_errno(connection) : 0;
}

static int issue_command(NbdSlot *slot)
{
    NbdQueue *queue = slot->queue;
    nbd_completion_callback completion = {.callback = on_completion, .user_data = slot};

    if (slot->request->step == STEP_TRANSFER)
        return issue_transfer(queue->storage, slot, completion);
    if (nbd_aio_flush(queue->connection->nbd, completion, 0) < 0)
        return vmf_nbd_connection_errno(queue->connection);
    return 0;
}

/* ---- requests, under the connection's lock ---------------------------------------------------------------------- */

static void end_request(NbdSlot *slot, int err)
{
    NbdQueue *queue = slot->queue;
    VmfStorageRequest *request = slot->request;
    int why = vmf_nbd_connection_reason(queue->connection, err);
    GError *error = why == 0 ? NULL : vmf_storage_request_error(&queue->storage->base, request, why);

    if (error && (atomic_load(&queue->storage->shut_down) || vmf_nbd_connection_is_cancelled(queue->connection)))
        error->code = VMF_ERROR_CANCELLED;
    slot->request = NULL;
    slot->next = queue->free_slot;
    queue->free_slot = slot;
    vmf_storage_request_ended(&queue->base, request, error);
}

static void issue_or_end(NbdSlot *slot)
{
    int err = issue_command(slot);

    if (err != 0)
        end_request(slot, err);
}

static void begin_request(NbdQueue *queue, VmfStorageRequest *request)
{
    NbdSlot *slot = queue->free_slot;

    queue->free_slot = slot->next;
    slot->request = request;
    request->slot = slot;
    request->step = request->kind == VMF_REQUEST_FLUSH ? STEP_FLUSH : STEP_TRANSFER;
    if (request->step == STEP_FLUSH && !queue->storage->can_flush)
        end_request(slot, 0); /* what such a server has taken it does not lose */
    else
        issue_or_end(slot);
}

/* A command has moved its bytes. Returns whether the whole request has. */
static bool is_transferred(NbdSlot *slot)
{
    VmfStorageRequest *request = slot->request;
    GError *none = NULL;

    if (request->kind == VMF_REQUEST_ZERO) {
        request->progress += slot->bytes;
        return request->progress == request->length;
    }
    if (request->kind == VMF_REQUEST_READ && !one_range(request))
        copy_pieces(slot, false);
    return vmf_storage_request_attempted(&slot->queue->storage->base, request, (int64_t)slot->bytes, &none);
}

static void command_ended(NbdSlot *slot)
{
    VmfStorageRequest *request = slot->request;
    const NbdStorage *storage = slot->queue->storage;
    bool sync = request->fua && request->kind != VMF_REQUEST_READ && !storage->can_fua && storage->can_flush;

    if (slot->err != 0 || request->step == STEP_FLUSH) {
        end_request(slot, slot->err);
    } else if (!is_transferred(slot)) {
        issue_or_end(slot);
    } else if (sync) {
        request->step = STEP_FLUSH;
        issue_or_end(slot);
    } else {
        end_request(slot, 0);
    }
}

/* ---- queues ----------------------------------------------------------------------------------------------------- */

static void begin_staged(NbdQueue *queue)
{
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(&queue->base.staged)))
        begin_request(queue, request);
    vmf_nbd_connection_kick(queue->connection);
}

static void nbd_issue(VmfStorageQueue *base)
{
    NbdQueue *queue = (NbdQueue *)base;

    pthread_mutex_lock(&queue->connection->lock);
    begin_staged(queue);
    pthread_mutex_unlock(&queue->connection->lock);
}

static void end_completed(NbdQueue *queue)
{
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(&queue->completed)))
        command_ended(request->slot);
}

static void nbd_reap(VmfStorageQueue *base, bool wait)
{
    NbdQueue *queue = (NbdQueue *)base;
    unsigned before = base->ended.n;

    pthread_mutex_lock(&queue->connection->lock);
    begin_staged(queue);
    vmf_nbd_connection_poll(queue->connection);
    end_completed(queue);
    while (wait && base->ended.n == before && !vmf_storage_is_woken(base)) {
        vmf_nbd_connection_wait(queue->connection);
        end_completed(queue);
    }
    pthread_mutex_unlock(&queue->connection->lock);
}

static void nbd_wake(VmfStorageQueue *base)
{
    vmf_nbd_connection_wake(((NbdQueue *)base)->connection);
}

static void close_connection(NbdStorage *storage, VmfNbdConnection *connection)
{
    pthread_mutex_lock(&storage->lock);
    g_ptr_array_remove(storage->connections, connection);
    pthread_mutex_unlock(&storage->lock);
    vmf_nbd_connection_free(connection);
}

static void nbd_queue_free(VmfStorageQueue *base)
{
    NbdQueue *queue = (NbdQueue *)base;

    for (unsigned i = 0; i < base->depth; i++)
        g_free(queue->slots[i].bounce);
    g_free(queue->slots);
    if (queue->owns_connection)
        close_connection(queue->storage, queue->connection);
}

static const VmfStorageQueueOps nbd_queue_ops = {
    .issue = nbd_issue,
    .reap = nbd_reap,
    .wake = nbd_wake,
    .free = nbd_queue_free,
};

/* Adds @connection to those that a shutdown ends. False: it came too late. */
static bool add_connection(NbdStorage *storage, VmfNbdConnection *connection)
{
    bool in_time;

    pthread_mutex_lock(&storage->lock);
    in_time = !atomic_load(&storage->shut_down);
    if (in_time)
        g_ptr_array_add(storage->connections, connection);
    pthread_mutex_unlock(&storage->lock);
    return in_time;
}

static VmfNbdConnection *connect_to(const NbdStorage *storage, GError **error)
{
    const _Atomic bool *cancelled = storage->connects ? NULL : storage->cancelled;
    VmfNbdConnection *connection = vmf_nbd_connect(storage->uri, storage->flags, cancelled, error);

    if (!connection)
        return NULL;
    connection->cancelled = storage->cancelled;
    connection->silence_ns = storage->silence_ns;
    return connection;
}

/* NULL: the storage's is to be shared. A server may allow only so many, or mean another export by the same name
 * meanwhile. */
static VmfNbdConnection *own_connection(NbdStorage *storage)
{
    VmfNbdConnection *connection = storage->can_multi_conn ? connect_to(storage, NULL) : NULL;

    if (!connection)
        return NULL;
    if (nbd_get_size(connection->nbd) == nbd_get_size(storage->connection->nbd) && add_connection(storage, connection))
        return connection;
    vmf_nbd_connection_free(connection);
    return NULL;
}

static VmfStorageQueue *queue_over(NbdStorage *storage, VmfNbdConnection *own, unsigned depth)
{
    NbdQueue *queue = g_new0(NbdQueue, 1);

    queue->base.ops = &nbd_queue_ops;
    queue->storage = storage;
    queue->owns_connection = own != NULL;
    queue->connection = own ? own : storage->connection;
    queue->slots = g_new0(NbdSlot, depth);
    vmf_request_list_init(&queue->completed);
    for (unsigned i = 0; i < depth; i++) {
        queue->slots[i].queue = queue;
        queue->slots[i].next = queue->free_slot;
        queue->free_slot = &queue->slots[i];
    }
    return &queue->base;
}

static VmfStorageQueue *nbd_queue_new(VmfStorage *base, unsigned depth, GError **error)
{
    NbdStorage *storage = (NbdStorage *)base;

    /* The first queue is the storage's own. */
    return queue_over(storage, storage->calls ? own_connection(storage) : NULL, depth);
}

/* ---- whole-storage calls ---------------------------------------------------------------------------------------- */

static void call_done(VmfStorageRequest *request, GError *error)
{
    *(GError **)request->opaque = error;
}

static bool nbd_execute(VmfStorage *base, VmfStorageRequest *request, GError **error)
{
    NbdStorage *storage = (NbdStorage *)base;
    GError *failed = NULL;

    request->done = call_done;
    request->opaque = &failed;
    pthread_mutex_lock(&storage->calls_lock);
    vmf_storage_submit(storage->calls, request);
    vmf_storage_wait(storage->calls, 0);
    pthread_mutex_unlock(&storage->calls_lock);
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

static bool nbd_flush_all(VmfStorage *base, GError **error)
{
    VmfStorageRequest request = {.kind = VMF_REQUEST_FLUSH};

    return nbd_execute(base, &request, error);
}

static bool nbd_set_size_at_least(VmfStorage *base, uint64_t size, GError **error)
{
    return size <= vmf_storage_size(base) || vmf_storage_error(base, "set the size", ENOSPC, error);
}

typedef struct {
    bool done;
    int err;
    bool known;
    uint32_t bytes, flags;
} Status;

static int on_status(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *err)
{
    Status *status = opaque;

    if (!status->known && n >= 2 && strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0) {
        status->known = true;
        status->bytes = entries[0];
        status->flags = entries[1];
    }
    return 0;
}

static int on_status_end(void *opaque, int *err)
{
    Status *status = opaque;

    status->err = *err;
    status->done = true;
    return 1;
}

static void ask_status(VmfNbdConnection *connection, uint64_t offset, uint64_t bytes, Status *status)
{
    nbd_extent_callback extent = {.callback = on_status, .user_data = status};
    nbd_completion_callback end = {.callback = on_status_end, .user_data = status};

    pthread_mutex_lock(&connection->lock);
    if (nbd_aio_block_status(connection->nbd, bytes, offset, extent, end, LIBNBD_CMD_FLAG_REQ_ONE) < 0) {
        status->err = vmf_nbd_connection_errno(connection);
        status->done = true;
    }
    vmf_nbd_connection_kick(connection);
    while (!status->done)
        vmf_nbd_connection_wait(connection);
    status->err = vmf_nbd_connection_reason(connection, status->err);
    pthread_mutex_unlock(&connection->lock);
}

static bool nbd_extent(VmfStorage *base, uint64_t offset, uint64_t length, VmfExtentKind *kind, uint64_t *extent_length,
                       GError **error)
{
    NbdStorage *storage = (NbdStorage *)base;
    uint64_t start = offset & ~(uint64_t)(base->alignment - 1), within = offset - start;
    uint64_t bytes = MIN((within + length + base->alignment - 1) & ~(uint64_t)(base->alignment - 1), ZERO_BYTES_MAX);
    Status status = {0};

    if (!storage->can_extents)
        return true;
    ask_status(storage->connection, start, bytes, &status);
    if (status.err != 0)
        return vmf_storage_error(base, "find extents", status.err, error);
    if (!status.known || status.bytes <= within)
        return true; /* it says nothing: data, to be sure */
    *kind = status.flags & LIBNBD_STATE_ZERO ? VMF_EXTENT_ZERO : VMF_EXTENT_DATA;
    *extent_length = MIN(length, status.bytes - within);
    return true;
}

static void nbd_shutdown_all(VmfStorage *base)
{
    NbdStorage *storage = (NbdStorage *)base;

    pthread_mutex_lock(&storage->lock);
    atomic_store(&storage->shut_down, true);
    for (guint i = 0; i < storage->connections->len; i++)
        vmf_nbd_connection_shutdown(g_ptr_array_index(storage->connections, i));
    pthread_mutex_unlock(&storage->lock);
}

static void nbd_free(VmfStorage *base)
{
    NbdStorage *storage = (NbdStorage *)base;

    vmf_storage_queue_free(storage->calls);
    if (storage->connection)
        close_connection(storage, storage->connection);
    g_ptr_array_unref(storage->connections);
    pthread_mutex_destroy(&storage->calls_lock);
    pthread_mutex_destroy(&storage->lock);
    vmf_storage_uri_free(storage->uri);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static const VmfStorageOps nbd_ops = {
    .free = nbd_free,
    .set_size = nbd_set_size_at_least,
    .flush = nbd_flush_all,
    .execute = nbd_execute,
    .extent = nbd_extent,
    .queue_new = nbd_queue_new,
    .shutdown = nbd_shutdown_all,
};

static bool refuse(const NbdStorage *storage, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: open: %s", storage->base.name, why);
    return false;
}

/* What a server says of itself is checked as anything else that a peer says. */
static bool learn(NbdStorage *storage, GError **error)
{
    struct nbd_handle *nbd = storage->connection->nbd;
    int64_t size = nbd_get_size(nbd), least = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
    int64_t most = nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);
    uint64_t alignment = least > 0 ? (uint64_t)least : 1;

    if (size < 0)
        return refuse(storage, "the server does not say how large it is", error);
    if (alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
        return refuse(storage, "the server wants requests to be multiples of more than 4096 bytes", error);
    if (storage->base.mode != VMF_STORAGE_READ && nbd_is_read_only(nbd) != 0)
        return refuse(storage, "the export is for reading only", error);
    storage->base.alignment = (uint32_t)alignment;
    atomic_store(&storage->base.size, (uint64_t)size & ~(alignment - 1));
    storage->command_bytes_max = COMMAND_BYTES_MAX;
    if (most > 0 && (uint64_t)most < COMMAND_BYTES_MAX)
        storage->command_bytes_max = MAX((uint64_t)most & ~(alignment - 1), alignment);
    storage->can_fua = nbd_can_fua(nbd) > 0;
    storage->can_flush = nbd_can_flush(nbd) > 0;
    storage->can_zero = nbd_can_zero(nbd) > 0;
    storage->can_multi_conn = nbd_can_multi_conn(nbd) > 0;
    storage->can_extents = nbd_can_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
    return true;
}

static bool open_export(NbdStorage *storage, GError **error)
{
    storage->connection = connect_to(storage, error);
    if (!storage->connection)
        return false;
    add_connection(storage, storage->connection);
    if (!learn(storage, error))
        return false;
    storage->calls = vmf_storage_queue_new(&storage->base, 1, error);
    return storage->calls != NULL;
}

VmfStorage *vmf_storage_nbd_open(VmfStorageUri *uri, const VmfStorageOptions *options, GError **error)
{
    NbdStorage *storage = g_new0(NbdStorage, 1);

    storage->base.ops = &nbd_ops;
    storage->base.name = g_strdup(uri->address->text);
    storage->base.backend = "nbd";
    storage->base.mode = options->mode;
    storage->base.in_place = options->mode != VMF_STORAGE_READ;
    storage->base.wants_stable_writes = true;
    storage->base.any_memory = true;
    storage->uri = uri;
    storage->flags = options->connect;
    storage->cancelled = options->cancelled;
    storage->connects = options->connects;
    storage->silence_ns = options->silence_ns;
    storage->connections = g_ptr_array_new();
    pthread_mutex_init(&storage->calls_lock, NULL);
    pthread_mutex_init(&storage->lock, NULL);
    if (open_export(storage, error))
        return &storage->base;
    vmf_storage_free(&storage->base);
    return NULL;
}
