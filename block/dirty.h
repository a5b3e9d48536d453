/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which parts of a disk were written: a bit for each granule of 64 KiB, set before the write is submitted and again
 * when it has ended.
 *
 * Whoever copies the disk takes bits, then reads those granules. A write that was under way when its first bit was
 * taken may have been read before it landed; its second bit says so. After a drain nothing is under way, and what is
 * taken then is the rest.
 */
#ifndef BLOCK_DIRTY_H
#define BLOCK_DIRTY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define VMF_DISK_GRANULE_BYTES 65536u

typedef struct VmfDiskDirty VmfDiskDirty;

/* For a disk of @size_bytes, nothing set. NULL with @error: no memory for it. */
VmfDiskDirty *vmf_disk_dirty_new(uint64_t size_bytes, GError **error);
void vmf_disk_dirty_free(VmfDiskDirty *dirty);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfDiskDirty, vmf_disk_dirty_free)

uint64_t vmf_disk_dirty_granules(const VmfDiskDirty *dirty); /* of the disk, the last one may be shorter */
/* Any thread. Sets all granules that [offset, offset + length) touches; the range lies within the disk. */
void vmf_disk_dirty_mark(VmfDiskDirty *dirty, uint64_t offset, uint64_t length);
/* Any thread. Clears those that lie in it, as far as they were set. */
void vmf_disk_dirty_clear(VmfDiskDirty *dirty, uint64_t offset, uint64_t length);
/* Any thread. */
bool vmf_disk_dirty_is_set(VmfDiskDirty *dirty, uint64_t granule);
uint64_t vmf_disk_dirty_count(VmfDiskDirty *dirty); /* granules; of a moment that is over */
/*
 * Finds the first run of set granules at or after @from, at most @max long, clears it, and returns its length; 0: there
 * is none. One thread at a time.
 */
uint64_t vmf_disk_dirty_take(VmfDiskDirty *dirty, uint64_t from, uint64_t max, uint64_t *first);

#endif
