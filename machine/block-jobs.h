/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs on disks that go on beside the guest: backups. Main loop's thread only. */
#ifndef VMFERRY_MACHINE_BLOCK_JOBS_H
#define VMFERRY_MACHINE_BLOCK_JOBS_H

#include <jansson.h>
#include <vmferry/backup.h>

typedef struct VmfControl VmfControl;
typedef struct VmfControlClient VmfControlClient;

/*
 * Begins one; @id names it in events and commands. True: the answer to the request of @client is deferred until it has
 * begun, or could not, as vmf_backup_begin() says: that may take as long as a server likes, and is done in a thread of
 * the job's. VMF_ERROR_STATE: there is a job of this name; VMF_ERROR_MEMORY.
 *
 * The end of what has begun is an event: BLOCK_JOB_COMPLETED (with "error" where it failed) or BLOCK_JOB_CANCELLED.
 */
bool vmf_block_job_begin(VmfControl *control, VmfControlClient *client, const char *id, VmfDisk *disk,
                         const VmfBackupOptions *options, GError **error);
/* Also one that begins, which fails then. */
bool vmf_block_job_cancel(VmfControl *control, const char *id, GError **error);
/* Those that run or begin, as query-block-jobs has them. */
json_t *vmf_block_jobs_query(const VmfControl *control);
/* Cancels all and waits; no events come of it, and who waits for one to begin is told that it does not. */
void vmf_block_jobs_end(VmfControl *control);

#endif
