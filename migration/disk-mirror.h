/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mirroring: from its start on the guest is told of a write only when the target has it too. So no more is ever pending
 * than what is on its way, however much the guest writes: it is slowed to what both ends take.
 *
 * A mirror that does not get on, for whatever reason, lets go of the guest's writes at once: what is dirty is then sent
 * in rounds again. No write of the guest fails for it.
 */
#ifndef MIGRATION_DISK_MIRROR_H
#define MIGRATION_DISK_MIRROR_H

#include <pthread.h>

#include "migration/disk-source.h"

/* @source is between two passes, and has nothing to be answered; it and @stream outlive the mirror. NULL with @error:
 * there is no thread for it, or somebody else has a disk's writes. */
VmfDiskMirror *vmf_disk_mirror_start(VmfDiskSource *source, VmfSaveStream *stream, GError **error);
/* Lets go of all writes and waits for its thread. False with @error: what it was sending could not be sent. NULL is
 * fine. */
bool vmf_disk_mirror_end(VmfDiskMirror *mirror, GError **error);
/* It gives up. Any thread, as what follows. */
void vmf_disk_mirror_let_go(VmfDiskMirror *mirror);
/* False: it has given up. */
bool vmf_disk_mirror_is_on(const VmfDiskMirror *mirror);
/* The watchdog's: a mirror that has been stuck for long gives up. */
void vmf_disk_mirror_look(VmfDiskMirror *mirror, int64_t now_ns);
/* The target has written this piece. False: it was not waited for. */
bool vmf_disk_mirror_arrived(VmfDiskMirror *mirror, uint64_t number);
/* All that was to be copied when it began is there: what the guest was told of is at both ends from now on. */
void vmf_disk_mirror_caught_up(VmfDiskMirror *mirror);
/* How many since then. */
uint64_t vmf_disk_mirror_writes(const VmfDiskMirror *mirror);

#endif
