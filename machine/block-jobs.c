/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A job's thread begins the backup and waits for its end; each it tells the main loop by a letter, in this order.
 * Beginning may take long, so that job->backup comes at any time: whoever cancels sets the flag first and then looks
 * for the backup, the thread puts the backup there first and then looks at the flag, so one of them finds the other.
 */
#include "machine/block-jobs.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <vmferry/error.h>

#include "machine/control-state.h"
#include "machine/qmp.h"

typedef struct {
    VmfControl *control;
    char *id;
    VmfDisk *disk;
    VmfBackupOptions options; /* with copies of its strings */
    int64_t begun_us;
    VmfControlAnswer *answer; /* to whoever asked for it; NULL: it was given */
    pthread_t thread;
    VmfFlag cancelled;
    VmfBackup *_Atomic backup; /* NULL: it has not begun */
    GError *error;             /* the thread's until its last letter: why it did not begin, or failed */
} Job;

/* ---- the thread -------------------------------------------------------------------------------------------------- */

static void tell_begun(void *opaque, void *argument);
static void tell_end(void *opaque, void *argument);

static void *job_main(void *opaque)
{
    Job *job = opaque;
    VmfMailbox *mailbox = job->control->mailbox;
    VmfBackup *backup = vmf_backup_begin(job->disk, &job->options, &job->error);

    if (backup) {
        atomic_store(&job->backup, backup);
        if (atomic_load(&job->cancelled))
            vmf_backup_cancel(backup);
        vmf_mailbox_post(mailbox, tell_begun, job->control, job, NULL);
        vmf_backup_wait(backup, &job->error);
    }
    vmf_mailbox_post(mailbox, tell_end, job->control, job, NULL);
    return NULL;
}

/* ---- jobs -------------------------------------------------------------------------------------------------------- */

static Job *job_new(VmfControl *control, const char *id, VmfDisk *disk, const VmfBackupOptions *options)
{
    Job *job = g_new0(Job, 1);

    job->control = control;
    job->id = g_strdup(id);
    job->disk = disk;
    job->options = *options;
    job->options.target = g_strdup(options->target);
    job->options.bitmap = g_strdup(options->bitmap);
    job->options.cancelled = &job->cancelled;
    job->begun_us = g_get_monotonic_time();
    return job;
}

/* It has no thread, or no more. */
static void job_clear(Job *job)
{
    vmf_backup_free(atomic_load(&job->backup));
    g_clear_error(&job->error);
    g_free((char *)job->options.target);
    g_free((char *)job->options.bitmap);
    g_free(job->id);
    g_free(job);
}

static void job_cancel(Job *job)
{
    atomic_store(&job->cancelled, true);
    VmfBackup *backup = atomic_load(&job->backup);
    if (backup)
        vmf_backup_cancel(backup);
}

static void answer(Job *job, json_t *result, const GError *error)
{
    if (job->answer)
        vmf_qmp_answer(g_steal_pointer(&job->answer), result, error);
    else
        json_decref(result);
}

static void job_free(void *opaque)
{
    Job *job = opaque;

    job_cancel(job);
    pthread_join(job->thread, NULL);
    answer(job, atomic_load(&job->backup) ? json_object() : NULL, job->error);
    job_clear(job);
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
static json_t *describe(Job *job)
{
    VmfBackup *backup = atomic_load(&job->backup);
    VmfBackupProgress progress = {.size = sizeof(progress)};

    if (backup)
        vmf_backup_get_progress(backup, &progress);
    return json_pack("{s:s,s:s,s:I,s:I,s:I,s:{s:I,s:I,s:I,s:I,s:I}}", "type", "backup", "device", job->id, "len",
                     (json_int_t)progress.total_bytes, "offset", (json_int_t)progress.done_bytes, "speed",
                     (json_int_t)job->options.bytes_per_second, "x-vmferry", "total_bytes", (json_int_t)progress.total_bytes,
                     "done_bytes", (json_int_t)progress.done_bytes, "written_bytes", (json_int_t)progress.written_bytes,
                     "early_bytes", (json_int_t)progress.early_bytes, "total_ns",
                     (json_int_t)(g_get_monotonic_time() - job->begun_us) * 1000);
}

/* ---- in the main loop -------------------------------------------------------------------------------------------- */

static void tell_begun(void *opaque, void *argument)
{
    answer(argument, json_object(), NULL);
}

static void tell_event(VmfControl *control, Job *job)
{
    bool cancelled = g_error_matches(job->error, VMF_ERROR, VMF_ERROR_CANCELLED);
    json_t *data = describe(job);

    if (job->error) {
        json_object_set_new(data, "error", json_string(job->error->message));
        json_object_set_new(data, "x-vmferry-id", json_string(vmf_error_id(job->error)));
    }
    vmf_control_event(control, cancelled ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED", data);
}

/* Of what did not begin the answer is all that there is. It is no more in the list when clients hear of it. */
static void tell_end(void *opaque, void *argument)
{
    VmfControl *control = opaque;
    Job *job = argument;
    guint index;

    if (g_ptr_array_find(control->jobs, job, &index))
        g_ptr_array_steal_index(control->jobs, index);
    if (atomic_load(&job->backup))
        tell_event(control, job);
    job_free(job);
}

bool vmf_block_job_begin(VmfControl *control, VmfControlClient *client, const char *id, VmfDisk *disk,
                         const VmfBackupOptions *options, GError **error)
{
    Job *job;

    if (find(control, id)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "job %s: there is one of this name", id);
        return false;
    }
    job = job_new(control, id, disk, options);
    if (pthread_create(&job->thread, NULL, job_main, job) != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "job %s: no thread can be started", id);
        job_clear(job);
        return false;
    }
    job->answer = vmf_control_client_defer(client);
    if (!control->jobs)
        control->jobs = g_ptr_array_new_with_free_func(job_free);
    g_ptr_array_add(control->jobs, job);
    return true;
}

bool vmf_block_job_cancel(VmfControl *control, const char *id, GError **error)
{
    Job *job = find(control, id);

    if (job)
        job_cancel(job);
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "job %s: cancel: there is none", id);
    return job != NULL;
}

json_t *vmf_block_jobs_query(const VmfControl *control)
{
    json_t *list = json_array();

    for (guint i = 0; control->jobs && i < control->jobs->len; i++) {
        Job *each = g_ptr_array_index(control->jobs, i);
        json_t *job = describe(each);

        json_object_set_new(job, "busy", json_true());
        json_object_set_new(job, "paused", json_false());
        json_object_set_new(job, "ready", json_false());
        json_object_set_new(job, "io-status", json_string("ok"));
        json_object_set_new(job, "status", json_string(atomic_load(&each->backup) ? "running" : "created"));
        json_array_append_new(list, job);
    }
    return list;
}

/* The letters that they have posted are dropped with the mailbox, unread. All are cancelled ahead of waiting for one. */
void vmf_block_jobs_end(VmfControl *control)
{
    for (guint i = 0; control->jobs && i < control->jobs->len; i++)
        job_cancel(g_ptr_array_index(control->jobs, i));
    g_clear_pointer(&control->jobs, g_ptr_array_unref);
}
