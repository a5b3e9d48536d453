/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of a backup: it reads by the disk, as the guest does, and writes by a queue of the target's. It sleeps in
 * the queue while something is under way there, and otherwise until a read has ended or the guest waits for one.
 */
#include "block/backup-private.h"

#include <stdlib.h>
#include <string.h>
#include <vmferry/error.h>

#include "stream/clock.h"

#define HOLE_UNITS_MAX 1024u
#define URGENT_UNITS 4u

/* ---- what comes next: lock held ---------------------------------------------------------------------------------- */

static Job *job_in(VmfBackup *backup, JobState state)
{
    for (unsigned i = 0; i < VMF_BACKUP_JOBS; i++)
        if (backup->jobs[i].state == state)
            return &backup->jobs[i];
    return NULL;
}

/* What the guest waits for goes first. */
static bool pick_urgent(VmfBackup *backup, Job *job)
{
    job->n = vmf_disk_units_take_urgent(&backup->units, URGENT_UNITS, &job->first);
    backup->progress.early_bytes += job->n * VMF_DISK_UNIT;
    return job->n > 0;
}

/* No further than what is known of holes goes. */
static bool pick_next(VmfBackup *backup, Job *job)
{
    VmfDiskUnits *units = &backup->units;
    uint64_t at, end;

    units->cursor = vmf_disk_units_next_todo(units, units->cursor);
    if (units->cursor == units->n)
        return false;
    at = units->cursor * VMF_DISK_UNIT;
    job->first = units->cursor;
    job->n = vmf_disk_units_run(units, job->first, VMF_BACKUP_RUN_UNITS);
    if (at < backup->extent_begin || at >= backup->extent_end)
        return true;
    end = backup->extent_is_hole ? backup->extent_end / VMF_DISK_UNIT
                                 : (backup->extent_end + VMF_DISK_UNIT - 1) / VMF_DISK_UNIT;
    if (backup->extent_end == backup->disk->size_bytes)
        end = units->n;
    if (backup->extent_is_hole && end > job->first)
        job->n = vmf_disk_units_run(units, job->first, MIN(HOLE_UNITS_MAX, end - job->first));
    else if (end > job->first)
        job->n = MIN(job->n, end - job->first);
    return true;
}

/* ---- holes ------------------------------------------------------------------------------------------------------- */

/*
 * A unit that is still to do has not been written since the moment; so what is a hole now was one then. Without an
 * answer it is data.
 */
static void learn_extent(VmfBackup *backup, uint64_t at)
{
    VmfDisk *disk = backup->disk;
    VmfExtentKind kind = VMF_EXTENT_DATA;
    uint64_t length = 0;

    if (at >= backup->extent_begin && at < backup->extent_end)
        return;
    bool known = vmf_disk_extent(disk, at, disk->size_bytes - at, &kind, &length, NULL) && length > 0;
    backup->extent_begin = at;
    backup->extent_end = known ? at + length : disk->size_bytes;
    backup->extent_is_hole = known && kind == VMF_EXTENT_ZERO;
}

/* All of it lies in a hole. */
static bool is_hole(const VmfBackup *backup, const Job *job)
{
    uint64_t begin = job->first * VMF_DISK_UNIT;
    uint64_t end = MIN(begin + job->n * VMF_DISK_UNIT, backup->disk->size_bytes);

    return backup->extent_is_hole && begin >= backup->extent_begin && end <= backup->extent_end;
}

static bool is_zero(const uint8_t *data, size_t length)
{
    return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

/* ---- jobs -------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of(const VmfBackup *backup, const Job *job)
{
    return MIN(job->n * VMF_DISK_UNIT, backup->disk->size_bytes - job->first * VMF_DISK_UNIT);
}

static void job_ends(Job *job)
{
    VmfBackup *backup = job->backup;

    pthread_mutex_lock(&backup->lock);
    job->state = JOB_FREE;
    backup->progress.done_bytes += job->n * VMF_DISK_UNIT;
    pthread_mutex_unlock(&backup->lock);
}

static void on_written(VmfStorageRequest *request, GError *error)
{
    Job *job = request->opaque;
    VmfBackup *backup = job->backup;

    pthread_mutex_lock(&backup->lock);
    if (error)
        vmf_backup_fail(backup, error);
    else if (request->kind == VMF_REQUEST_WRITE)
        backup->progress.written_bytes += request->length;
    pthread_mutex_unlock(&backup->lock);
    if (error)
        vmf_disk_gate_moved(backup->disk);
    job_ends(job);
}

static void write_job(VmfBackup *backup, Job *job, bool zero)
{
    uint64_t length = bytes_of(backup, job);

    if (zero && backup->fresh) {
        job_ends(job);
        return;
    }
    job->write_iov = (struct iovec){job->data, length};
    job->write = (VmfStorageRequest){
        .kind = zero ? VMF_REQUEST_ZERO : VMF_REQUEST_WRITE,
        .offset = job->first * VMF_DISK_UNIT,
        .length = length,
        .iov = zero ? NULL : &job->write_iov,
        .n_iov = zero ? 0 : 1,
        .done = on_written,
        .opaque = job,
    };
    vmf_storage_submit(backup->queue, &job->write);
}

/* On the disk's thread. The guest may go on, the target comes later. */
static void on_read(VmfDiskRequest *request, const GError *error)
{
    Job *job = request->opaque;
    VmfBackup *backup = job->backup;
    VmfDisk *disk = backup->disk;

    pthread_mutex_lock(&backup->lock);
    vmf_disk_units_end(&backup->units, job->first, job->n);
    job->state = JOB_READ;
    if (error)
        vmf_backup_fail(backup, g_error_copy(error));
    vmf_backup_wake(backup);
    pthread_mutex_unlock(&backup->lock);
    vmf_disk_gate_moved(disk);
}

static void read_job(VmfBackup *backup, Job *job)
{
    uint64_t length = bytes_of(backup, job);

    job->iov = (struct iovec){job->data, length};
    job->read = (VmfDiskRequest){
        .operation = VMF_DISK_READ,
        .offset = job->first * VMF_DISK_UNIT,
        .length = length,
        .iov = &job->iov,
        .n_iov = 1,
        .done = on_read,
        .opaque = job,
    };
    vmf_disk_submit(backup->disk, &job->read);
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static bool may_read_on(const VmfBackup *backup)
{
    return backup->bytes_per_second == 0 || vmf_now_ns() >= backup->next_ns;
}

static void count_against_rate(VmfBackup *backup, uint64_t bytes)
{
    if (backup->bytes_per_second)
        backup->next_ns = MAX(backup->next_ns, vmf_now_ns()) +
                          (int64_t)((double)bytes / (double)backup->bytes_per_second * VMF_NS_PER_S);
}

/* Lock held; given up meanwhile. True: something was begun. */
static bool begin_one(VmfBackup *backup)
{
    Job *job = job_in(backup, JOB_FREE);
    bool hole, found;

    if (!job || backup->error)
        return false;
    found = pick_urgent(backup, job);
    if (!found && may_read_on(backup) && (found = pick_next(backup, job))) {
        pthread_mutex_unlock(&backup->lock);
        learn_extent(backup, job->first * VMF_DISK_UNIT);
        pthread_mutex_lock(&backup->lock);
        found = !backup->error && pick_next(backup, job);
    }
    if (!found)
        return false;
    hole = is_hole(backup, job);
    vmf_disk_units_begin(&backup->units, job->first, job->n);
    if (hole)
        vmf_disk_units_end(&backup->units, job->first, job->n);
    job->state = hole ? JOB_WRITING : JOB_READING;
    pthread_mutex_unlock(&backup->lock);
    if (hole) {
        write_job(backup, job, true);
        vmf_disk_gate_moved(backup->disk);
    } else {
        count_against_rate(backup, bytes_of(backup, job));
        read_job(backup, job);
    }
    pthread_mutex_lock(&backup->lock);
    return true;
}

/* Lock held; given up meanwhile. */
static bool write_one(VmfBackup *backup)
{
    Job *job = job_in(backup, JOB_READ);

    if (!job)
        return false;
    if (backup->error) {
        job->state = JOB_FREE;
        return true;
    }
    job->state = JOB_WRITING;
    pthread_mutex_unlock(&backup->lock);
    write_job(backup, job, is_zero(job->data, bytes_of(backup, job)));
    pthread_mutex_lock(&backup->lock);
    return true;
}

/* Lock held. Whether all has been done that will be. */
static bool is_through(VmfBackup *backup)
{
    if (job_in(backup, JOB_READING) || job_in(backup, JOB_READ))
        return false;
    return backup->error || vmf_disk_units_next_todo(&backup->units, backup->units.cursor) == backup->units.n;
}

void vmf_backup_sleep(VmfBackup *backup, int64_t ns)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    ns += until.tv_nsec;
    until.tv_sec += ns / VMF_NS_PER_S;
    until.tv_nsec = ns % VMF_NS_PER_S;
    pthread_cond_timedwait(&backup->changed, &backup->lock, &until);
}

/* Lock held; given up meanwhile. */
static void wait_for_more(VmfBackup *backup)
{
    bool by_rate = !backup->error && job_in(backup, JOB_FREE) && !may_read_on(backup);

    if (vmf_storage_under_way(backup->queue) == 0) {
        if (by_rate)
            vmf_backup_sleep(backup, MAX(backup->next_ns - vmf_now_ns(), 0) + 1);
        else
            pthread_cond_wait(&backup->changed, &backup->lock);
        return;
    }
    backup->in_queue = true;
    pthread_mutex_unlock(&backup->lock);
    vmf_storage_wait_or_wake(backup->queue);
    pthread_mutex_lock(&backup->lock);
    backup->in_queue = false;
}

static void copy_all(VmfBackup *backup)
{
    pthread_mutex_lock(&backup->lock);
    while (!is_through(backup))
        if (!write_one(backup) && !begin_one(backup))
            wait_for_more(backup);
    pthread_mutex_unlock(&backup->lock);
    vmf_storage_wait(backup->queue, 0);
}

static bool make_jobs(VmfBackup *backup)
{
    for (unsigned i = 0; i < VMF_BACKUP_JOBS; i++) {
        backup->jobs[i].backup = backup;
        if (posix_memalign(&backup->jobs[i].data, 4096, VMF_BACKUP_RUN_UNITS * VMF_DISK_UNIT) != 0)
            return false;
    }
    return true;
}

bool vmf_backup_copy(VmfBackup *backup)
{
    if (make_jobs(backup)) {
        copy_all(backup);
    } else {
        pthread_mutex_lock(&backup->lock);
        vmf_backup_fail(backup,
                        g_error_new(VMF_ERROR, VMF_ERROR_MEMORY, "disk %s: backup: out of memory", backup->disk->name));
        pthread_mutex_unlock(&backup->lock);
    }
    for (unsigned i = 0; i < VMF_BACKUP_JOBS; i++)
        g_clear_pointer(&backup->jobs[i].data, free);
    pthread_mutex_lock(&backup->lock);
    bool done = !backup->error;
    pthread_mutex_unlock(&backup->lock);
    return done;
}
