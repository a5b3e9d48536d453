/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks in an image of one moment.
 *
 * Theory of operation. The moment is the stop. There each disk begins a backup (vmferry/backup.h) of all of it: from
 * then on what the guest is about to write is read first, and its write waits for that. The backup's target looks like
 * storage and is the way into the image: what is written there is put at its place, in the backup's thread.
 */
#include <vmferry/error.h>

#include "block/backup.h"
#include "block/disk.h"
#include "migration/image-disk-save.h"
#include "stream/clock.h"
#include "stream/storage-private.h"

#define WAIT_NS (100 * VMF_NS_PER_MS)
#define SECTOR_BYTES 512u

typedef struct {
    VmfStorage base;
    VmfImageDiskSaveOne *one;
} ImageTarget;

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static GError *carry_out(ImageTarget *target, const VmfStorageRequest *request)
{
    VmfImageDiskSaveOne *one = target->one;
    GError *error = NULL;

    if (request->kind != VMF_REQUEST_WRITE || request->n_iov != 1)
        return g_error_new(VMF_ERROR, VMF_ERROR_INTERNAL, "disk %s: image: a request that none makes",
                           vmf_disk_name(one->disk));
    vmf_image_disk_save_put(one, request->offset, request->iov->iov_base, request->length, &error);
    one->save->source->sent_bytes += request->length;
    return error;
}

static void queue_issue(VmfStorageQueue *queue)
{
}

/* The lane takes a copy, so it has ended for its owner. */
static void queue_reap(VmfStorageQueue *queue, bool wait)
{
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(&queue->staged)))
        vmf_storage_request_ended(queue, request, carry_out((ImageTarget *)queue->storage, request));
}

static void queue_free(VmfStorageQueue *queue)
{
}

static VmfStorageQueue *target_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    static const VmfStorageQueueOps ops = {.issue = queue_issue, .reap = queue_reap, .free = queue_free};
    VmfStorageQueue *queue = g_new0(VmfStorageQueue, 1);

    queue->ops = &ops;
    return queue;
}

/* ---- storage ----------------------------------------------------------------------------------------------------- */

static bool target_flush(VmfStorage *storage, GError **error)
{
    return vmf_image_disk_save_flush(((ImageTarget *)storage)->one, error);
}

static void target_free(VmfStorage *storage)
{
}

static VmfStorage *target_new(VmfImageDiskSaveOne *one)
{
    static const VmfStorageOps ops = {.free = target_free, .flush = target_flush, .queue_new = target_queue_new};
    ImageTarget *target = g_new0(ImageTarget, 1);

    target->base = (VmfStorage){
        .ops = &ops,
        .name = g_strdup_printf("image of disk %s", vmf_disk_name(one->disk)),
        .backend = "image",
        .mode = VMF_STORAGE_CREATE,
        .size = vmf_disk_size(one->disk),
        .alignment = SECTOR_BYTES,
        .any_memory = true,
    };
    target->one = one;
    return &target->base;
}

/* ---- the moment -------------------------------------------------------------------------------------------------- */

static void on_ended(VmfBackup *backup, void *opaque)
{
    VmfSession *session = opaque;

    pthread_mutex_lock(&session->lock);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

static bool begin(VmfImageDiskSaveOne *one, GError **error)
{
    VmfSession *session = one->save->source->session;

    vmf_disk_drain(one->disk);
    one->backup = vmf_backup_begin_onto(one->disk, target_new(one), session->max_bandwidth, on_ended, session, error);
    if (!one->backup)
        g_prefix_error(error, "point in time: ");
    return one->backup != NULL;
}

/* For the statistics: of all disks, what has not been read yet. */
static void note_remaining(VmfImageDiskSave *save)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < save->source->n_disks; i++) {
        VmfBackupProgress progress = {.size = sizeof(progress)};
        vmf_backup_get_progress(save->disks[i].backup, &progress);
        bytes += progress.total_bytes - MIN(progress.done_bytes, progress.total_bytes);
    }
    save->source->unsynced_bytes = bytes;
}

static bool instant_setup(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfImageDiskSave *save = opaque;

    for (unsigned i = 0; i < save->source->n_disks; i++)
        save->source->total_bytes += vmf_disk_size(save->disks[i].disk);
    return true;
}

static bool instant_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfImageDiskSave *save = opaque;

    for (unsigned i = 0; i < save->source->n_disks; i++)
        if (!begin(&save->disks[i], error))
            return false;
    note_remaining(save);
    return true;
}

static void instant_cleanup(void *opaque)
{
    vmf_image_disk_save_cancel(opaque);
}

VmfOwner vmf_image_disk_instant_owner(VmfImageDiskSave *save)
{
    static const VmfSaveHandlers handlers = {
        .size = sizeof(VmfSaveHandlers),
        .save_setup = instant_setup,
        .save_complete = instant_complete,
        .save_cleanup = instant_cleanup,
    };

    return (VmfOwner){.name = "disks",
                      .handlers = &handlers,
                      .opaque = save,
                      .downtime = offsetof(VmfStatistics, downtime_disk_ns)};
}

static bool has_ended(VmfBackup *backup)
{
    VmfBackupProgress progress = {.size = sizeof(progress)};

    vmf_backup_get_progress(backup, &progress);
    return progress.ended;
}

/* A disk that is all zeros asks nobody on its way whether it is to go on. */
static bool wait_for(VmfImageDiskSave *save, VmfBackup *backup, GError **error)
{
    VmfSession *session = save->source->session;

    while (!has_ended(backup)) {
        pthread_mutex_lock(&session->lock);
        if (!has_ended(backup))
            vmf_session_wait_locked(session, vmf_now_ns() + WAIT_NS);
        pthread_mutex_unlock(&session->lock);
        note_remaining(save);
        if (!vmf_session_check_cancelled(session, error))
            return false;
    }
    note_remaining(save);
    return vmf_backup_wait(backup, error);
}

bool vmf_image_disk_save_wait(VmfImageDiskSave *save, GError **error)
{
    for (unsigned i = 0; save->disks && i < save->source->n_disks; i++)
        if (save->disks[i].backup && !wait_for(save, save->disks[i].backup, error))
            return false;
    return true;
}

void vmf_image_disk_save_cancel(VmfImageDiskSave *save)
{
    for (unsigned i = 0; save->disks && i < save->source->n_disks; i++)
        g_clear_pointer(&save->disks[i].backup, vmf_backup_free);
}
