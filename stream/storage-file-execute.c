/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests of a file, executed by the thread that calls. */
#include "stream/storage-file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(VMF_REQUEST_IOV_MAX <= IOV_MAX, "one system call takes all pieces");

static int sync_data(int fd)
{
    int result;

    do
        result = fdatasync(fd);
    while (result < 0 && errno == EINTR);
    return result < 0 ? errno : 0;
}

/* ---- zeros ------------------------------------------------------------------------------------------------------ */

#define ZEROS_BYTES (1u << 20)

/* A short direct write goes on where it is aligned. Returns an errno. */
static int write_zeros_from(const VmfStorageFile *file, const void *zeros, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        size_t wanted = MIN(length, ZEROS_BYTES);
        ssize_t done = pwrite(file->fd, zeros, wanted, (off_t)offset);
        uint64_t good;

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return errno;
        good = (size_t)done == wanted ? wanted : (uint64_t)done & ~(uint64_t)(file->base.alignment - 1);
        if (good == 0)
            return EIO;
        offset += good;
        length -= good;
    }
    return 0;
}

static int write_zeros(const VmfStorageFile *file, uint64_t offset, uint64_t length)
{
    void *zeros;
    int err = posix_memalign(&zeros, 4096, ZEROS_BYTES);

    if (err != 0)
        return err;
    memset(zeros, 0, ZEROS_BYTES);
    err = write_zeros_from(file, zeros, offset, length);
    free(zeros);
    return err;
}

/* From the one that frees space to the one that always works. */
static const int zero_modes[] = {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

/* Returns an errno, EOPNOTSUPP for all that means "not here". */
static int zero_by_mode(const VmfStorageFile *file, int mode, uint64_t offset, uint64_t length)
{
    int result;

    do
        result = fallocate(file->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
    while (result < 0 && errno == EINTR);
    return result == 0 ? 0 : errno == ENOSYS ? EOPNOTSUPP : errno;
}

int vmf_storage_file_zero(VmfStorageFile *file, const VmfStorageRequest *request)
{
    unsigned way = atomic_load(&file->zero_way);
    int err = EOPNOTSUPP;

    while (err == EOPNOTSUPP && way < G_N_ELEMENTS(zero_modes)) {
        err = zero_by_mode(file, zero_modes[way], request->offset, request->length);
        if (err == EOPNOTSUPP)
            atomic_store(&file->zero_way, ++way);
    }
    if (err == EOPNOTSUPP)
        err = write_zeros(file, request->offset, request->length);
    return err == 0 && request->fua ? sync_data(file->fd) : err;
}

/* ---- all requests ----------------------------------------------------------------------------------------------- */

static GError *transfer(VmfStorageFile *file, VmfStorageRequest *request)
{
    int flags = request->kind == VMF_REQUEST_WRITE && request->fua ? RWF_DSYNC : 0;
    GError *error = NULL;
    ssize_t result;

    do {
        off_t at = (off_t)(request->offset + request->progress);

        if (request->kind == VMF_REQUEST_READ)
            result = preadv2(file->fd, request->left, (int)request->n_left, at, 0);
        else
            result = pwritev2(file->fd, request->left, (int)request->n_left, at, flags);
    } while (!vmf_storage_request_attempted(&file->base, request, result < 0 ? -errno : result, &error));
    return error;
}

GError *vmf_storage_file_execute(VmfStorageFile *file, VmfStorageRequest *request)
{
    int err;

    if (request->kind == VMF_REQUEST_READ || request->kind == VMF_REQUEST_WRITE)
        return transfer(file, request);
    err = request->kind == VMF_REQUEST_ZERO ? vmf_storage_file_zero(file, request) : sync_data(file->fd);
    return err == 0 ? NULL : vmf_storage_request_error(&file->base, request, err);
}
