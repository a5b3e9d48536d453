/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/bitmap-aside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "block/bitmap-set.h"
#include "block/claim.h"
#include "stream/partial-file.h"

/* 1, 0, or -1 with errno. */
static int has_bitmaps(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0)
        return errno == ENOENT ? 0 : -1;
    bool found = vmf_bitmap_file_is_one(fd);
    close(fd);
    return found;
}

/* Returns errno. */
static int move(VmfBitmapsAside *aside, const char *path)
{
    g_autofree char *replaced = g_strconcat(path, ".replaced", NULL);

    if (rename(path, replaced) < 0)
        return errno;
    aside->path = g_strdup(path);
    aside->replaced = g_steal_pointer(&replaced);
    return 0;
}

bool vmf_bitmaps_aside_move(VmfBitmapsAside *aside, const char *path, GError **error)
{
    g_autofree char *name = g_strconcat("bitmaps: set file:", path, " aside", NULL);
    int found = aside->path ? 0 : has_bitmaps(path), err = found < 0 ? errno : 0, claim = -1;

    if (found > 0 && !vmf_claim_take(path, VMF_CLAIM_REPLACE, name, &claim, error))
        return false;
    if (found > 0)
        err = move(aside, path);
    vmf_claim_drop(&claim);
    if (!err && aside->path)
        err = vmf_sync_directory_of(path);
    if (err)
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: %s", name, g_strerror(err));
    return err == 0;
}

void vmf_bitmaps_aside_return(VmfBitmapsAside *aside)
{
    if (aside->path && rename(aside->replaced, aside->path) == 0)
        vmf_sync_directory_of(aside->path);
    vmf_bitmaps_aside_clear(aside);
}

void vmf_bitmaps_aside_remove(VmfBitmapsAside *aside)
{
    if (aside->path)
        unlink(aside->replaced);
    vmf_bitmaps_aside_clear(aside);
}

void vmf_bitmaps_aside_clear(VmfBitmapsAside *aside)
{
    g_clear_pointer(&aside->path, g_free);
    g_clear_pointer(&aside->replaced, g_free);
}
