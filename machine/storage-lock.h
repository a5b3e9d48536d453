/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lock file that stands for storage which both hosts can reach: whoever holds it may run the guest.
 *
 * It is flock()'s lock, so that it goes with the process however that ends, and flock(1) is another holder. The file is
 * never removed: a lock on a file that has lost its name keeps nobody out.
 */
#ifndef MACHINE_STORAGE_LOCK_H
#define MACHINE_STORAGE_LOCK_H

#include <glib.h>
#include <stdbool.h>

typedef struct VmfStorageLock VmfStorageLock;

/* Opens the file, made where it is not there; does not take the lock. */
VmfStorageLock *vmf_storage_lock_open(const char *path, GError **error);
/* Releases it, if it is held. NULL is allowed. */
void vmf_storage_lock_free(VmfStorageLock *lock);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfStorageLock, vmf_storage_lock_free)

/* At once or not at all. Fine where it is held already. */
bool vmf_storage_lock_acquire(VmfStorageLock *lock, GError **error);
/* Fine where it is not held. */
bool vmf_storage_lock_release(VmfStorageLock *lock, GError **error);

bool vmf_storage_lock_is_held(VmfStorageLock *lock);
const char *vmf_storage_lock_path(const VmfStorageLock *lock);

#endif
