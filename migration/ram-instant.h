/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RAM as an owner of state whose pages go as they are at one instant, the stop (ram/capture.h), while the guest runs
 * on:
 *
 *     set-up;  vmf_ram_instant_arm()  the guest runs;  [stop]  pending_exact, save_complete  the instant;
 *     vmf_ram_instant_hash(), if it is to be audited;  [start];  vmf_ram_instant_write(), vmf_ram_instant_audit();
 * clean-up
 *
 * All on the session's thread.
 */
#ifndef MIGRATION_RAM_INSTANT_H
#define MIGRATION_RAM_INSTANT_H

#include "migration/ram-source.h"

typedef struct VmfRamInstant VmfRamInstant;

/* Over a VmfRamSource that is attached; there are no rounds. */
const VmfSaveHandlers *vmf_ram_instant_handlers(void);

/* Ahead of the set-up. @kernel_writes: VmfCaptureConfig's. */
void vmf_ram_instant_attach(VmfRamSource *ram, bool kernel_writes);

/* The guest is to be stopped next: what it writes until then is protected in the pause. */
bool vmf_ram_instant_arm(VmfRamSource *ram, GError **error);

/* The guest stands: remembers what all its memory is. */
bool vmf_ram_instant_hash(VmfRamSource *ram, const _Atomic bool *cancel, GError **error);

/* Pushes all pages of the instant, once each, through all lanes, and flushes them. Counts are closed then. */
bool vmf_ram_instant_write(VmfRamSource *ram, GError **error);

/* After both: what was written and is not what was hashed, in words, newly allocated; NULL: nothing. */
char *vmf_ram_instant_audit(VmfRamSource *ram, uint64_t *n_different);

/* What it took, in a sentence for people. Newly allocated. */
char *vmf_ram_instant_describe(VmfRamSource *ram);

#endif
