/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files and block devices.
 *
 * Only regular files and block devices are opened: what else stands under the path is not touched, since to open a fifo
 * or a tape does something already. A new file is one that takes its name when it is committed (stream/partial-file.h).
 */
#include "stream/storage-file.h"

#include <vmferry/error.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void file_free(VmfStorage *storage)
{
    VmfStorageFile *file = (VmfStorageFile *)storage;

    vmf_partial_file_clear(&file->partial);
    close(file->fd);
}

static bool file_set_size(VmfStorage *storage, uint64_t size, GError **error)
{
    VmfStorageFile *file = (VmfStorageFile *)storage;
    int result;

    if (file->is_device && size <= vmf_storage_size(storage))
        return true;
    if (file->is_device || size > INT64_MAX)
        return vmf_storage_error(storage, "set the size", file->is_device ? ENOSPC : EFBIG, error);
    do
        result = ftruncate(file->fd, (off_t)size);
    while (result < 0 && errno == EINTR);
    if (result < 0)
        return vmf_storage_error(storage, "set the size", errno, error);
    atomic_store(&storage->size, size);
    return true;
}

static bool file_preallocate(VmfStorage *storage, uint64_t offset, uint64_t length, GError **error)
{
    VmfStorageFile *file = (VmfStorageFile *)storage;
    int result;

    if (file->is_device)
        return true;
    do
        result = fallocate(file->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
    while (result < 0 && errno == EINTR);
    if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS)
        return true;
    return vmf_storage_error(storage, "allocate", errno, error);
}

static bool file_flush(VmfStorage *storage, GError **error)
{
    VmfStorageRequest request = {.kind = VMF_REQUEST_FLUSH};
    GError *failed;

    vmf_storage_request_begin(&request);
    failed = vmf_storage_file_execute((VmfStorageFile *)storage, &request);
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

static bool file_commit(VmfStorage *storage, GError **error)
{
    return vmf_partial_file_commit(&((VmfStorageFile *)storage)->partial, error);
}

static bool file_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind,
                        uint64_t *extent_length, GError **error)
{
    VmfStorageFile *file = (VmfStorageFile *)storage;
    off_t data, end;

    if (file->is_device)
        return true;
    data = lseek(file->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return errno == EINVAL || errno == EOPNOTSUPP || vmf_storage_error(storage, "find extents", errno, error);
    if (data < 0 || (uint64_t)data > offset) {
        *kind = VMF_EXTENT_ZERO;
        end = data;
    } else {
        end = lseek(file->fd, (off_t)offset, SEEK_HOLE);
    }
    if (end > 0 && (uint64_t)end > offset)
        *extent_length = MIN(length, (uint64_t)end - offset);
    return true;
}

/* ---- blocking reads and writes ---------------------------------------------------------------------------------- */

static bool execute_piece(VmfStorageFile *file, VmfStorageRequest *request, void *data, uint64_t offset, size_t length,
                          GError **error)
{
    struct iovec iov = {data, length};
    VmfStorageRequest piece = {
        .kind = request->kind, .offset = offset, .length = length, .iov = &iov, .n_iov = 1, .fua = request->fua};
    GError *failed;

    vmf_storage_request_begin(&piece);
    failed = vmf_storage_file_execute(file, &piece);
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

/* The last block of a file that ends within it. */
static bool read_tail(VmfStorageFile *file, VmfStorageRequest *request, void *block, uint64_t offset, size_t length,
                      GError **error)
{
    ssize_t got;

    do
        got = pread(file->fd, block, file->base.alignment, (off_t)offset);
    while (got < 0 && errno == EINTR);
    if (got >= 0 && (size_t)got >= length)
        return true;
    g_propagate_error(error, vmf_storage_request_error(&file->base, request, got < 0 ? errno : EIO));
    return false;
}

#define BOUNCE_BYTES (1u << 20)

static bool through_bounce(VmfStorageFile *file, VmfStorageRequest *request, char *bounce, GError **error)
{
    uint32_t alignment = file->base.alignment;
    char *data = request->iov->iov_base;
    uint64_t at = 0;

    while (at < request->length) {
        size_t left = MIN(request->length - at, BOUNCE_BYTES), whole = left & ~(size_t)(alignment - 1);
        size_t now = whole ? whole : left;
        bool good;

        if (request->kind == VMF_REQUEST_WRITE)
            memcpy(bounce, data + at, now);
        if (whole)
            good = execute_piece(file, request, bounce, request->offset + at, now, error);
        else
            good = read_tail(file, request, bounce, request->offset + at, now, error);
        if (!good)
            return false;
        if (request->kind == VMF_REQUEST_READ)
            memcpy(data + at, bounce, now);
        at += now;
    }
    return true;
}

static bool file_execute(VmfStorage *storage, VmfStorageRequest *request, GError **error)
{
    VmfStorageFile *file = (VmfStorageFile *)storage;
    void *data = request->iov->iov_base, *bounce;
    bool good;

    if ((((uintptr_t)data | request->length) & (storage->alignment - 1)) == 0)
        return execute_piece(file, request, data, request->offset, request->length, error);
    if (posix_memalign(&bounce, storage->alignment, BOUNCE_BYTES) != 0)
        return vmf_storage_error(storage, "read or write", ENOMEM, error);
    good = through_bounce(file, request, bounce, error);
    free(bounce);
    return good;
}

/* ---- backends --------------------------------------------------------------------------------------------------- */

static const VmfFileBackend *const all_backends[] = {
#ifdef HAVE_IO_URING
    &vmf_file_backend_io_uring,
#endif
#ifdef HAVE_LIBAIO
    &vmf_file_backend_libaio,
#endif
    &vmf_file_backend_threads,
    NULL,
};

static bool is_good_for(const VmfStorageFile *file, const VmfFileBackend *backend)
{
    return file->direct || !backend->needs_direct;
}

/* Where the best one has no room for another queue, the next may. */
static VmfStorageQueue *file_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    VmfStorageFile *file = (VmfStorageFile *)storage;
    const VmfFileBackend *const *backend = file->backends;

    while (backend[1]) {
        VmfStorageQueue *queue = (*backend)->queue_new(file, depth, NULL);

        if (queue)
            return queue;
        do
            backend++;
        while (backend[1] && !is_good_for(file, *backend));
    }
    return (*backend)->queue_new(file, depth, error);
}

static bool choose_named_backend(VmfStorageFile *file, const char *name, GError **error)
{
    const VmfFileBackend *const *backend = all_backends;

    while (*backend && strcmp((*backend)->name, name) != 0)
        backend++;
    if (!*backend || !(*backend)->works()) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: open: %s: %s", file->base.name, name,
                    *backend ? "this system does not allow it" : "no such backend in this build");
        return false;
    }
    file->backends = backend;
    file->base.backend = name;
    return true;
}

static bool choose_backend(VmfStorageFile *file, const char *name, GError **error)
{
    const VmfFileBackend *const *backend = all_backends;

    if (name && strcmp(name, "auto") != 0)
        return choose_named_backend(file, name, error);
    while (!is_good_for(file, *backend) || !(*backend)->works())
        backend++;
    file->backends = backend;
    file->base.backend = (*backend)->name;
    return true;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static const VmfStorageOps file_ops = {
    .free = file_free,
    .set_size = file_set_size,
    .preallocate = file_preallocate,
    .flush = file_flush,
    .commit = file_commit,
    .execute = file_execute,
    .extent = file_extent,
    .queue_new = file_queue_new,
};

static const char *why_unusable(mode_t mode)
{
    if (S_ISREG(mode) || S_ISBLK(mode))
        return NULL;
    if (S_ISDIR(mode))
        return "it is a directory";
    return S_ISFIFO(mode) ? "it is a fifo" : "it is no file or block device";
}

static bool open_error(const VmfStorageFile *file, int err, GError **error)
{
    return vmf_storage_error(&file->base, "open", err, error);
}

/* Asks before it opens, and again afterwards, of what it really got. */
static bool open_existing(VmfStorageFile *file, const char *path, bool exclusive, GError **error)
{
    int access = file->base.mode == VMF_STORAGE_READ ? O_RDONLY : O_RDWR;
    const char *why;
    struct stat st;

    if (stat(path, &st) < 0)
        return open_error(file, errno, error);
    why = why_unusable(st.st_mode);
    /* A device that is to be overwritten must not be mounted, or somebody's who says so in the same way. */
    if (!why && S_ISBLK(st.st_mode) && (exclusive || file->base.mode == VMF_STORAGE_CREATE))
        access |= O_EXCL;
    if (!why) {
        file->fd = open(path, access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (file->fd < 0)
            return open_error(file, errno, error);
        if (fstat(file->fd, &st) < 0 || fcntl(file->fd, F_SETFL, 0) < 0)
            return open_error(file, errno, error);
        why = why_unusable(st.st_mode);
    }
    if (why) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: open: %s", file->base.name, why);
        return false;
    }
    file->is_device = S_ISBLK(st.st_mode);
    file->base.in_place = file->base.mode != VMF_STORAGE_READ;
    return true;
}

static bool is_to_be_created(const char *path, VmfStorageMode mode)
{
    struct stat st;

    return mode == VMF_STORAGE_CREATE && (stat(path, &st) < 0 || S_ISREG(st.st_mode));
}

static bool measure(VmfStorageFile *file, GError **error)
{
    struct stat st;
    uint64_t size;

    if (fstat(file->fd, &st) < 0 || (file->is_device && ioctl(file->fd, BLKGETSIZE64, &size) < 0))
        return vmf_storage_error(&file->base, "find the size", errno, error);
    atomic_store(&file->base.size, file->is_device ? size : (uint64_t)st.st_size);
    return true;
}

static bool open_file(VmfStorageFile *file, const char *path, const VmfStorageOptions *options, GError **error)
{
    bool is_new = is_to_be_created(path, options->mode);

    if (is_new) {
        file->fd = vmf_partial_file_create(&file->partial, path, O_RDWR, error);
        if (file->fd < 0)
            return false;
    } else if (!open_existing(file, path, options->exclusive, error)) {
        return false;
    }
    vmf_storage_file_learn(file, options->buffered, is_new);
    return measure(file, error) && choose_backend(file, options->backend, error);
}

int vmf_storage_file_fd(const VmfStorage *storage)
{
    return ((const VmfStorageFile *)storage)->fd;
}

VmfStorage *vmf_storage_file_open(const char *path, const VmfStorageOptions *options, GError **error)
{
    VmfStorageFile *file = g_new0(VmfStorageFile, 1);

    file->base.ops = &file_ops;
    file->base.name = g_strconcat("file:", path, NULL);
    file->base.mode = options->mode;
    file->fd = -1;
    if (open_file(file, path, options, error))
        return &file->base;
    vmf_storage_free(&file->base);
    return NULL;
}
