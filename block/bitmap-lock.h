/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The lock on a file of bitmaps: a disk's (lock.h), so that it is nobody's disk either, and no backup or image is written over it. Whoever
 * gives another file its name has the lock of the one that is there, and holds PATH.partial (stream/partial-file.h) meanwhile.
 *
 * Errors: VMF_ERROR_LOCKED: another uses it; VMF_ERROR_IO. Where there are no such locks nobody has one.
 */
#ifndef BLOCK_BITMAP_LOCK_H
#define BLOCK_BITMAP_LOCK_H

#include "stream/storage.h"

/* What is at @path is kept by *@fd, -1 at first, as it is afterwards where nothing is there. */
bool vmf_bitmaps_hold_file(const char *path, int *fd, GError **error);
/* What is at @path is what @fd, which may be -1, keeps, or is nobody's and kept by *@other. */
bool vmf_bitmaps_hold_name(const char *path, int fd, int *other, GError **error);
/* Of a new file that vmf_storage_open() has returned: whatever name it has or will have. */
bool vmf_bitmaps_lock_new(const VmfStorage *storage, int *fd, GError **error);
/* *@fd may be -1, and is afterwards. */
void vmf_bitmaps_unlock(int *fd);

#endif
