/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/storage-lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <unistd.h>
#include <vmferry/error.h>

struct VmfStorageLock {
    char *path;
    int fd;
    atomic_bool held; /* changed by the session's thread and by the owner's, one at a time; read by any */
};

static bool fail(const VmfStorageLock *lock, const char *operation, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "storage: %s: %s: %s", lock->path, operation, why);
    return false;
}

VmfStorageLock *vmf_storage_lock_open(const char *path, GError **error)
{
    g_autoptr(VmfStorageLock) lock = g_new0(VmfStorageLock, 1);

    lock->path = g_strdup(path);
    lock->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
    if (lock->fd >= 0)
        return g_steal_pointer(&lock);
    fail(lock, "open", g_strerror(errno), error);
    return NULL;
}

void vmf_storage_lock_free(VmfStorageLock *lock)
{
    if (!lock)
        return;
    /* By name, not by closing: a child between its fork and its exec has the descriptor as well. */
    vmf_storage_lock_release(lock, NULL);
    if (lock->fd >= 0)
        close(lock->fd);
    g_free(lock->path);
    g_free(lock);
}

bool vmf_storage_lock_acquire(VmfStorageLock *lock, GError **error)
{
    int result;

    do
        result = flock(lock->fd, LOCK_EX | LOCK_NB);
    while (result < 0 && errno == EINTR);
    if (result < 0)
        return fail(lock, "lock", errno == EWOULDBLOCK ? "another holds it" : g_strerror(errno), error);
    atomic_store(&lock->held, true);
    return true;
}

bool vmf_storage_lock_release(VmfStorageLock *lock, GError **error)
{
    if (!atomic_exchange(&lock->held, false))
        return true;
    return flock(lock->fd, LOCK_UN) == 0 || fail(lock, "unlock", g_strerror(errno), error);
}

bool vmf_storage_lock_is_held(VmfStorageLock *lock)
{
    return atomic_load(&lock->held);
}

const char *vmf_storage_lock_path(const VmfStorageLock *lock)
{
    return lock->path;
}
