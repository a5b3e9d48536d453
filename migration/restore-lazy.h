/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Restoring behind the back of a guest that runs: the steps that differ. */
#ifndef MIGRATION_RESTORE_LAZY_H
#define MIGRATION_RESTORE_LAZY_H

#include "migration/image-restore.h"

/* From here on whoever reads or writes the guest's disks that the image holds gets what they are to be, or waits for it. */
bool vmf_restore_lazy_begin_disks(VmfRestore *restore, GError **error);

/* From here on whoever touches the guest's memory gets it, or waits for it. */
bool vmf_restore_lazy_begin(VmfRestore *restore, GError **error);

/*
 * The guest has been started (or stays stopped): returns once all of its memory and its disks is there. A page, or a part of a disk, that
 * cannot be had holds the guest; false then, once a person has given it up, or with VMF_ERROR_HELD if the session is left so.
 */
bool vmf_restore_lazy_fill(VmfRestore *restore, GError **error);

/* Once, whatever happened. @why: the guest will never have all of its memory, which is inaccessible from here on; NULL: it has. */
void vmf_restore_lazy_end(VmfRestore *restore, const GError *why);

/* For the session's statistics, while there is a server. */
void vmf_restore_lazy_gather(VmfRestore *restore, VmfStatistics *statistics);

#endif
