/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs on disks that go on beside the guest: backups. Main loop's thread only. */
#ifndef VMFERRY_MACHINE_BLOCK_JOBS_H
#define VMFERRY_MACHINE_BLOCK_JOBS_H

#include <jansson.h>
#include <vmferry/backup.h>

typedef struct VmfControl VmfControl;

/*
 * Begins one; @id names it in events and commands. Its end is an event: BLOCK_JOB_COMPLETED (with "error" where it
 * failed) or BLOCK_JOB_CANCELLED. VMF_ERROR_STATE: there is a job of this name; otherwise as vmf_backup_begin().
 */
bool vmf_block_job_begin(VmfControl *control, const char *id, VmfDisk *disk, const VmfBackupOptions *options,
                         GError **error);
bool vmf_block_job_cancel(VmfControl *control, const char *id, GError **error);
/* Those that run, as query-block-jobs has them. */
json_t *vmf_block_jobs_query(const VmfControl *control);
/* Cancels all and waits; no events come of it. */
void vmf_block_jobs_end(VmfControl *control);

#endif
