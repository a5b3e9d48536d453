/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks that are copied, at the target: the owner of what EXTENT and DISK_SYNC bring (docs/stream-format.rst). */
#ifndef MIGRATION_DISK_TARGET_H
#define MIGRATION_DISK_TARGET_H

#include "migration/disk-proof.h"
#include "migration/owners.h"
#include "stream/static-data.h"

typedef struct VmfDiskTarget VmfDiskTarget;

VmfDiskTarget *vmf_disk_target_new(VmfSession *session);
void vmf_disk_target_free(VmfDiskTarget *target);
/* Ahead of load_setup: what is to come, in which order of octets, and where answers go (NULL: nowhere). All outlive the
 * target's use. */
void vmf_disk_target_begin(VmfDiskTarget *target, const VmfStaticData *theirs, bool swap, VmfRecordWriter *writer);
VmfOwner vmf_disk_target_owner(VmfDiskTarget *target);
void vmf_disk_target_gather(const VmfDiskTarget *target, VmfStatistics *statistics);

#endif
