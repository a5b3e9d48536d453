/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/block-jobs.h"

#include <string.h>
#include <vmferry/error.h>

#include "machine/control-state.h"

typedef struct {
    VmfControl *control;
    char *id;
    uint64_t bytes_per_second;
    int64_t begun_us;
    VmfBackup *backup;
} Job;

static void job_free(void *opaque)
{
    Job *job = opaque;

    vmf_backup_free(job->backup);
    g_free(job->id);
    g_free(job);
}

static Job *find(const VmfControl *control, const char *id)
{
    for (guint i = 0; control->jobs && i < control->jobs->len; i++) {
        Job *job = g_ptr_array_index(control->jobs, i);

        if (strcmp(job->id, id) == 0)
            return job;
    }
    return NULL;
}

/* What events and the query have in common. */
static json_t *describe(const Job *job)
{
    VmfBackupProgress progress = {.size = sizeof(progress)};

    vmf_backup_get_progress(job->backup, &progress);
    return json_pack("{s:s,s:s,s:I,s:I,s:I,s:{s:I,s:I,s:I,s:I,s:I}}", "type", "backup", "device", job->id, "len",
                     (json_int_t)progress.total_bytes, "offset", (json_int_t)progress.done_bytes, "speed",
                     (json_int_t)job->bytes_per_second, "x-vmferry", "total_bytes", (json_int_t)progress.total_bytes,
                     "done_bytes", (json_int_t)progress.done_bytes, "written_bytes", (json_int_t)progress.written_bytes,
                     "early_bytes", (json_int_t)progress.early_bytes, "total_ns",
                     (json_int_t)(g_get_monotonic_time() - job->begun_us) * 1000);
}

/* In the main loop, after the backup's last deed. */
static void tell_end(void *opaque, void *argument)
{
    VmfControl *control = opaque;
    Job *job = argument;
    g_autoptr(GError) error = NULL;
    bool done = vmf_backup_wait(job->backup, &error);
    bool cancelled = g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED);
    json_t *data = describe(job);

    if (!done) {
        json_object_set_new(data, "error", json_string(error->message));
        json_object_set_new(data, "x-vmferry-id", json_string(vmf_error_id(error)));
    }
    g_ptr_array_remove(control->jobs, job);
    vmf_control_event(control, cancelled ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED", data);
}

static void on_ended(VmfBackup *backup, void *opaque)
{
    Job *job = opaque;

    vmf_mailbox_post(job->control->mailbox, tell_end, job->control, job, NULL);
}

bool vmf_block_job_begin(VmfControl *control, const char *id, VmfDisk *disk, const VmfBackupOptions *options,
                         GError **error)
{
    VmfBackupOptions own = *options;
    Job *job;

    if (find(control, id)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "job %s: there is one of this name", id);
        return false;
    }
    job = g_new0(Job, 1);
    *job = (Job){.control = control,
                 .id = g_strdup(id),
                 .bytes_per_second = options->bytes_per_second,
                 .begun_us = g_get_monotonic_time()};
    own.ended = on_ended;
    own.opaque = job;
    job->backup = vmf_backup_begin(disk, &own, error);
    if (!job->backup) {
        job_free(job);
        return false;
    }
    if (!control->jobs)
        control->jobs = g_ptr_array_new_with_free_func(job_free);
    g_ptr_array_add(control->jobs, job);
    return true;
}

bool vmf_block_job_cancel(VmfControl *control, const char *id, GError **error)
{
    Job *job = find(control, id);

    if (job)
        vmf_backup_cancel(job->backup);
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "job %s: cancel: there is none", id);
    return job != NULL;
}

json_t *vmf_block_jobs_query(const VmfControl *control)
{
    json_t *list = json_array();

    for (guint i = 0; control->jobs && i < control->jobs->len; i++) {
        json_t *job = describe(g_ptr_array_index(control->jobs, i));

        json_object_set_new(job, "busy", json_true());
        json_object_set_new(job, "paused", json_false());
        json_object_set_new(job, "ready", json_false());
        json_object_set_new(job, "io-status", json_string("ok"));
        json_object_set_new(job, "status", json_string("running"));
        json_array_append_new(list, job);
    }
    return list;
}

/* The letters that they have posted are dropped with the mailbox, unread. */
void vmf_block_jobs_end(VmfControl *control)
{
    g_clear_pointer(&control->jobs, g_ptr_array_unref);
}
