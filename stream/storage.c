/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What all kinds of storage have in common.
 *
 * Theory of Operation
 *
 * done() of a request may submit again, so it must not be called from where that would recurse. Requests that have
 * ended, those that were refused at once too, wait in a list; vmf_storage_poll() and vmf_storage_wait() tell them one
 * after the other, and so does a vmf_storage_submit() that had to wait for room, unless it is called from a done()
 * itself.
 *
 * Invariant: under_way = busy + number of those that ended and were not told. busy <= depth; under_way may be more for
 * a moment.
 */
#include "stream/storage-private.h"

#include <vmferry/error.h>

#include <errno.h>
#include <string.h>

/* Below this the call that begins a request costs something beside the request, and some are begun together. */
#define BATCH_BELOW_BYTES (64u << 10)
#define BATCH_MAX 16

VmfStorage *vmf_storage_open(const char *uri, const VmfStorageOptions *options, GError **error)
{
    g_autoptr(VmfStorageUri) parsed = vmf_storage_uri_parse(uri, error);

    if (!parsed)
        return NULL;
    if (parsed->kind == VMF_STORAGE_URI_FILE)
        return vmf_storage_file_open(parsed->path, options, error);
#ifdef HAVE_LIBNBD
    return vmf_storage_nbd_open(g_steal_pointer(&parsed), options, error);
#else
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: open: this build has no NBD", uri);
    return NULL;
#endif
}

void vmf_storage_shutdown(VmfStorage *storage)
{
    if (storage->ops->shutdown)
        storage->ops->shutdown(storage);
}

void vmf_storage_free(VmfStorage *storage)
{
    if (!storage)
        return;
    storage->ops->free(storage);
    g_free(storage->name);
    g_free(storage);
}

const char *vmf_storage_name(const VmfStorage *storage)
{
    return storage->name;
}

const char *vmf_storage_backend(const VmfStorage *storage)
{
    return storage->backend;
}

uint64_t vmf_storage_size(const VmfStorage *storage)
{
    return atomic_load_explicit(&storage->size, memory_order_relaxed);
}

uint32_t vmf_storage_alignment(const VmfStorage *storage)
{
    return storage->alignment;
}

bool vmf_storage_is_in_place(const VmfStorage *storage)
{
    return storage->in_place;
}

bool vmf_storage_wants_stable_writes(const VmfStorage *storage)
{
    return storage->wants_stable_writes;
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static const char *const request_words[] = {
    [VMF_REQUEST_READ] = "read",
    [VMF_REQUEST_WRITE] = "write",
    [VMF_REQUEST_ZERO] = "zero",
    [VMF_REQUEST_FLUSH] = "flush",
};

static VmfErrorCode code_of(int err)
{
    return err == ENOSPC || err == EDQUOT ? VMF_ERROR_NO_SPACE : VMF_ERROR_IO;
}

static GError *refusal(const VmfStorage *storage, const VmfStorageRequest *request, const char *why)
{
    return g_error_new(VMF_ERROR, VMF_ERROR_IO,
                       "%s: %s: %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT ": %s", storage->name,
                       request_words[request->kind], request->length, request->offset, why);
}

GError *vmf_storage_request_error(const VmfStorage *storage, const VmfStorageRequest *request, int err)
{
    GError *error = NULL;

    if (request->kind == VMF_REQUEST_FLUSH) {
        vmf_storage_error(storage, "flush", err, &error);
        return error;
    }
    error = refusal(storage, request, g_strerror(err));
    error->code = code_of(err);
    return error;
}

bool vmf_storage_error(const VmfStorage *storage, const char *operation, int err, GError **error)
{
    g_set_error(error, VMF_ERROR, code_of(err), "%s: %s: %s", storage->name, operation, g_strerror(err));
    return false;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static bool is_within(const VmfStorage *storage, uint64_t offset, uint64_t length)
{
    uint64_t end;

    return !__builtin_add_overflow(offset, length, &end) && end <= vmf_storage_size(storage);
}

static bool is_aligned(const VmfStorage *storage, uint64_t value)
{
    return (value & (storage->alignment - 1)) == 0;
}

static const char *why_pieces_are_wrong(const VmfStorage *storage, const VmfStorageRequest *request)
{
    uint64_t sum = 0, mixed = 0;

    if ((request->n_iov < 1 && request->length > 0) || request->n_iov > VMF_REQUEST_IOV_MAX)
        return "it has no pieces, or too many";
    for (unsigned i = 0; i < request->n_iov; i++) {
        mixed |= (uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len;
        if (__builtin_add_overflow(sum, request->iov[i].iov_len, &sum))
            return "its pieces are longer than memory";
    }
    if (sum != request->length)
        return "its length is not the sum of its pieces";
    return storage->any_memory || is_aligned(storage, mixed) ? NULL : "a piece is not aligned";
}

static const char *why_refused(const VmfStorage *storage, const VmfStorageRequest *request)
{
    if (request->kind == VMF_REQUEST_FLUSH)
        return NULL;
    if (request->kind != VMF_REQUEST_READ && storage->mode == VMF_STORAGE_READ)
        return "it is open for reading only";
    if (!is_within(storage, request->offset, request->length))
        return "it reaches past the end";
    if (!is_aligned(storage, request->offset | request->length))
        return "offset or length is not aligned";
    return request->kind == VMF_REQUEST_ZERO ? NULL : why_pieces_are_wrong(storage, request);
}

/* ---- whole-storage calls ---------------------------------------------------------------------------------------- */

static bool may_write(const VmfStorage *storage, const char *operation, GError **error)
{
    if (storage->mode != VMF_STORAGE_READ)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: %s: it is open for reading only", storage->name, operation);
    return false;
}

static bool in_range(const VmfStorage *storage, const char *operation, uint64_t offset, uint64_t length, GError **error)
{
    if (is_within(storage, offset, length))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO,
                "%s: %s: %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT ": it reaches past the end",
                storage->name, operation, length, offset);
    return false;
}

bool vmf_storage_set_size(VmfStorage *storage, uint64_t size, GError **error)
{
    return may_write(storage, "set the size", error) && storage->ops->set_size(storage, size, error);
}

bool vmf_storage_preallocate(VmfStorage *storage, uint64_t offset, uint64_t length, GError **error)
{
    if (!may_write(storage, "allocate", error) || !in_range(storage, "allocate", offset, length, error))
        return false;
    return length == 0 || !storage->ops->preallocate || storage->ops->preallocate(storage, offset, length, error);
}

bool vmf_storage_flush(VmfStorage *storage, GError **error)
{
    return storage->mode == VMF_STORAGE_READ || storage->ops->flush(storage, error);
}

bool vmf_storage_commit(VmfStorage *storage, GError **error)
{
    return vmf_storage_flush(storage, error) && (!storage->ops->commit || storage->ops->commit(storage, error));
}

static bool transfer(VmfStorage *storage, VmfRequestKind kind, uint64_t offset, void *data, size_t length,
                     GError **error)
{
    struct iovec iov = {data, length};
    VmfStorageRequest request = {.kind = kind, .offset = offset, .length = length, .iov = &iov, .n_iov = 1};
    bool is_tail = kind == VMF_REQUEST_READ && offset + length == vmf_storage_size(storage);
    const char *why = NULL;

    if (kind != VMF_REQUEST_READ && !may_write(storage, request_words[kind], error))
        return false;
    if (!in_range(storage, request_words[kind], offset, length, error))
        return false;
    if (!is_aligned(storage, offset) || !(is_aligned(storage, length) || is_tail))
        why = "offset or length is not aligned";
    if (why)
        g_propagate_error(error, refusal(storage, &request, why));
    return !why && (length == 0 || storage->ops->execute(storage, &request, error));
}

bool vmf_storage_read(VmfStorage *storage, uint64_t offset, void *data, size_t length, GError **error)
{
    return transfer(storage, VMF_REQUEST_READ, offset, data, length, error);
}

bool vmf_storage_write(VmfStorage *storage, uint64_t offset, const void *data, size_t length, GError **error)
{
    return transfer(storage, VMF_REQUEST_WRITE, offset, (void *)data, length, error);
}

bool vmf_storage_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind,
                        uint64_t *extent_length, GError **error)
{
    *kind = VMF_EXTENT_DATA;
    *extent_length = length;
    if (!in_range(storage, "find extents", offset, length, error))
        return false;
    return length == 0 || storage->ops->extent(storage, offset, length, kind, extent_length, error);
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

/* So often an attempt may come to nothing before the request fails. */
#define ATTEMPTS_MAX 1000

void vmf_storage_request_begin(VmfStorageRequest *request)
{
    request->left = request->iov;
    request->n_left = request->n_iov;
    request->progress = 0;
    request->error = NULL;
    request->attempts = 0;
    request->step = 0;
}

static void advance(VmfStorageRequest *request, uint64_t bytes)
{
    request->progress += bytes;
    while (request->n_left > 0 && bytes >= request->left->iov_len) {
        bytes -= request->left->iov_len;
        request->left++;
        request->n_left--;
    }
    if (bytes > 0) {
        request->left->iov_base = (char *)request->left->iov_base + bytes;
        request->left->iov_len -= bytes;
    }
}

bool vmf_storage_request_attempted(const VmfStorage *storage, VmfStorageRequest *request, int64_t result,
                                   GError **error)
{
    /* Direct I/O goes on where it is aligned, and transfers the beginning of that block again. */
    uint64_t bytes = result > 0 ? (uint64_t)result : 0;

    if (bytes > request->length - request->progress)
        bytes = request->length - request->progress;
    if (request->progress + bytes < request->length)
        bytes -= bytes & (storage->alignment - 1);
    if (bytes > 0) {
        advance(request, bytes);
        request->attempts = 0;
        return request->progress == request->length;
    }
    if ((result == -EINTR || result == -EAGAIN) && ++request->attempts < ATTEMPTS_MAX) {
        if (result == -EAGAIN)
            g_usleep(1000);
        return false;
    }
    if (result >= 0 && request->kind == VMF_REQUEST_READ)
        *error = refusal(storage, request, "the storage ends before that: it was made shorter");
    else
        *error = vmf_storage_request_error(storage, request, result < 0 ? (int)-result : EIO);
    return true;
}

void vmf_storage_request_ended(VmfStorageQueue *queue, VmfStorageRequest *request, GError *error)
{
    request->error = error;
    queue->busy--;
    vmf_request_list_append(&queue->ended, request);
}

/* ---- queues ----------------------------------------------------------------------------------------------------- */

VmfStorageQueue *vmf_storage_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    VmfStorageQueue *queue;

    if (depth < 1 || depth > VMF_STORAGE_DEPTH_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: queue: a depth of %u is not between 1 and %u",
                    storage->name, depth, VMF_STORAGE_DEPTH_MAX);
        return NULL;
    }
    queue = storage->ops->queue_new(storage, depth, error);
    if (!queue)
        return NULL;
    queue->storage = storage;
    queue->depth = depth;
    vmf_request_list_init(&queue->staged);
    vmf_request_list_init(&queue->ended);
    return queue;
}

void vmf_storage_queue_free(VmfStorageQueue *queue)
{
    if (!queue)
        return;
    vmf_storage_wait(queue, 0);
    queue->ops->free(queue);
    g_free(queue);
}

unsigned vmf_storage_under_way(const VmfStorageQueue *queue)
{
    return queue->under_way;
}

static void tell(VmfStorageQueue *queue)
{
    bool was_telling = queue->telling;
    VmfStorageRequest *request;

    queue->telling = true;
    while ((request = vmf_request_list_pop(&queue->ended))) {
        GError *error = g_steal_pointer(&request->error);

        queue->under_way--;
        request->done(request, error);
    }
    queue->telling = was_telling;
}

static void reap(VmfStorageQueue *queue, bool wait)
{
    if (queue->busy > 0)
        queue->ops->reap(queue, wait);
}

void vmf_storage_poll(VmfStorageQueue *queue)
{
    reap(queue, false);
    tell(queue);
}

void vmf_storage_wait(VmfStorageQueue *queue, unsigned n)
{
    while (queue->under_way > n) {
        reap(queue, queue->ended.n == 0);
        tell(queue);
    }
}

void vmf_storage_wait_or_wake(VmfStorageQueue *queue)
{
    queue->wakeable = true;
    reap(queue, queue->ended.n == 0);
    queue->wakeable = false;
    atomic_store(&queue->woken, false);
    tell(queue);
}

void vmf_storage_wake(VmfStorageQueue *queue)
{
    atomic_store(&queue->woken, true);
    if (queue->ops->wake)
        queue->ops->wake(queue);
}

static void make_room(VmfStorageQueue *queue)
{
    while (queue->busy >= queue->depth) {
        reap(queue, true);
        if (!queue->telling)
            tell(queue);
    }
}

static bool is_worth_beginning(const VmfStorageQueue *queue, const VmfStorageRequest *newest)
{
    return newest->length >= BATCH_BELOW_BYTES || queue->staged.n >= BATCH_MAX || queue->staged.n * 2 >= queue->depth;
}

void vmf_storage_submit(VmfStorageQueue *queue, VmfStorageRequest *request)
{
    const char *why = why_refused(queue->storage, request);

    vmf_storage_request_begin(request);
    if (!why && (request->length > 0 || request->kind == VMF_REQUEST_FLUSH))
        make_room(queue);
    queue->under_way++;
    if (why)
        request->error = refusal(queue->storage, request, why);
    if (why || (request->length == 0 && request->kind != VMF_REQUEST_FLUSH)) {
        vmf_request_list_append(&queue->ended, request);
        return;
    }
    queue->busy++;
    vmf_request_list_append(&queue->staged, request);
    if (is_worth_beginning(queue, request))
        queue->ops->issue(queue);
}
