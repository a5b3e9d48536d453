/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/bitmap-lock.h"

#include <fcntl.h>
#include <vmferry/error.h>

#include "block/claim.h"
#include "block/lock.h"
#include "stream/storage-file.h"

static bool claim(const char *path, int *fd, GError **error)
{
    g_autofree char *uri = g_strconcat("file:", path, NULL);

    return vmf_claim_take(path, VMF_CLAIM_REPLACE, uri, fd, error);
}

/* Another may have given a new one the name, and let go of this one, ahead of the lock. */
bool vmf_bitmaps_hold_file(const char *path, int *fd, GError **error)
{
    do {
        vmf_claim_drop(fd);
        if (!claim(path, fd, error))
            return false;
    } while (*fd >= 0 && !vmf_claim_is_at(*fd, path));
    return true;
}

bool vmf_bitmaps_hold_name(const char *path, int fd, int *other, GError **error)
{
    *other = -1;
    return vmf_claim_is_at(fd, path) || claim(path, other, error);
}

bool vmf_bitmaps_lock_new(const VmfStorage *storage, int *fd, GError **error)
{
    GError *failed = NULL;

    *fd = fcntl(vmf_storage_file_fd(storage), F_DUPFD_CLOEXEC, 0);
    if (vmf_disk_lock_take(*fd, true, vmf_storage_name(storage), &failed))
        return true;
    if (g_error_matches(failed, VMF_ERROR, VMF_ERROR_UNSUPPORTED)) {
        g_error_free(failed);
        return true;
    }
    vmf_claim_drop(fd);
    g_propagate_error(error, failed);
    return false;
}

void vmf_bitmaps_unlock(int *fd)
{
    vmf_claim_drop(fd);
}
