/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks of which the target has a base: what is not dirty since is compared, by digests, and not sent (record BASE in
 * docs/stream-format.rst).
 */
#ifndef MIGRATION_DISK_BASE_H
#define MIGRATION_DISK_BASE_H

#include "migration/disk-source.h"
#include "stream/message.h"

/*
 * Source, ahead of the first pass and tracked: tells of all of disk @i that its bitmap of what is to be sent does not
 * have, and names it.
 */
bool vmf_disk_base_tell(VmfDiskSource *source, unsigned i, VmfSaveStream *stream, GError **error);

/*
 * Target, ahead of the first write: what @base says lies within the disk and is made of whole granules that were not
 * named. Reads them from @disk, compares, and names them. VMF_ERROR_DISK_BASE says where the two differ.
 */
bool vmf_disk_base_compare(VmfDiskProof *proof, VmfDisk *disk, VmfReadAhead *ahead, const VmfDiskBase *base,
                           bool (*alive)(void *opaque, GError **error), void *opaque, GError **error);

#endif
