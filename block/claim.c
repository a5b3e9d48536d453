/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/claim.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "block/lock.h"
#include "block/signature.h"

static bool fail(const char *name, VmfErrorCode code, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "%s: %s", name, why);
    return false;
}

/* A device is opened exclusively by VmfStorage: two such openings exclude each other, and beside one of ours it could not zero all. */
static int open_it(const char *path, mode_t mode, VmfClaimKind kind, bool *writes)
{
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd = open(path, O_RDWR | flags);

    *writes = true;
    if (fd >= 0 || !S_ISREG(mode) || kind == VMF_CLAIM_CHANGE || (errno != EACCES && errno != EPERM && errno != EROFS))
        return fd;
    *writes = false;
    return open(path, O_RDONLY | flags);
}

static bool lock(int fd, bool writes, VmfClaimKind kind, const char *name, GError **error)
{
    GError *failed = NULL;

    if (vmf_disk_lock_take(fd, writes, name, &failed))
        return true;
    if (kind != VMF_CLAIM_CHANGE && failed->code == VMF_ERROR_UNSUPPORTED) {
        g_error_free(failed);
        return true;
    }
    g_propagate_error(error, failed);
    return false;
}

static bool check_device(int fd, const char *name, GError **error)
{
    g_autofree char *signature = vmf_signature_of_fd(fd);

    return !signature || fail(name, VMF_ERROR_DISK_PLACE, signature, error);
}

bool vmf_claim_take(const char *path, VmfClaimKind kind, const char *name, int *fd, GError **error)
{
    struct stat status;
    bool writes;

    *fd = -1;
    if (stat(path, &status) < 0 || !(S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)))
        return true;
    *fd = open_it(path, status.st_mode, kind, &writes);
    if (*fd < 0)
        return fail(name, VMF_ERROR_IO, g_strerror(errno), error);
    if (lock(*fd, writes, kind, name, error) &&
        (!S_ISBLK(status.st_mode) || kind != VMF_CLAIM_REPLACE || check_device(*fd, name, error)))
        return true;
    vmf_claim_drop(fd);
    return false;
}

bool vmf_claim_is_at(int fd, const char *path)
{
    struct stat claimed, found;

    return fd >= 0 && fstat(fd, &claimed) == 0 && stat(path, &found) == 0 && claimed.st_dev == found.st_dev &&
           claimed.st_ino == found.st_ino;
}

bool vmf_claim_renew(const char *path, VmfClaimKind kind, const char *name, int *fd, GError **error)
{
    int other;

    if (vmf_claim_is_at(*fd, path))
        return true;
    if (!vmf_claim_take(path, kind, name, &other, error))
        return false;
    vmf_claim_drop(fd);
    *fd = other;
    return true;
}

bool vmf_claim_renew_uri(const char *uri, VmfClaimKind kind, int *fd, GError **error)
{
    const char *path = g_str_has_prefix(uri, "file:") ? uri + strlen("file:") : NULL;

    return !path || vmf_claim_renew(path, kind, uri, fd, error);
}

void vmf_claim_drop(int *fd)
{
    if (*fd < 0)
        return;
    vmf_disk_lock_drop(*fd);
    close(*fd);
    *fd = -1;
}
