/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the engine does with a backup beside what an embedder may (vmferry/backup.h). */
#ifndef BLOCK_BACKUP_H
#define BLOCK_BACKUP_H

#include <vmferry/backup.h>

#include "stream/storage.h"

/*
 * As vmf_backup_begin() of all of @disk, onto @target, which reads as zeros where nothing is written, takes requests of
 * 64 KiB units up to the disk's last octet, and is taken over, also where this fails. Every unit that is not zeros is
 * written once. @ended as in VmfBackupOptions.
 */
VmfBackup *vmf_backup_begin_onto(VmfDisk *disk, VmfStorage *target, uint64_t bytes_per_second,
                                 void (*ended)(VmfBackup *backup, void *opaque), void *opaque, GError **error);

#endif
