/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The moment. The disk's gate (disk.h) first holds every change, until none is under way in the storage: what the disk
 * then has is what the backup will show. There the bitmap's bits are set aside, and it goes on with none. A change that
 * is held was marked when it was submitted, so its bit is among those set aside; it is marked again when it ends, so it
 * is in what the bitmap has for the next backup as well.
 *
 * The copy. A unit of 64 KiB is to do, being read, or done. A change that touches a unit which is not done is held, and
 * its units are read next; once they have been read it goes on. So a guest waits for reads of its own disk; for the
 * target only when all buffers wait to be written there.
 *
 * The end. Success: the target is durable, then what was set aside is dropped. Anything else: it is merged into what
 * was recorded since. The bitmap's file has both all the while, so a crash is a failure like any other.
 */
#include "block/backup.h"

#include "block/backup-private.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <vmferry/error.h>

#include "stream/clock.h"
#include "stream/storage-uri.h"

#define SILENCE_NS (30 * VMF_NS_PER_S)

static bool refuse(const VmfDisk *disk, VmfErrorCode code, const char *what, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "disk %s: backup: %s: %s", disk->name, what, why);
    return false;
}

/* ---- the gate: the disk's lock is held --------------------------------------------------------------------------- */

static bool gate_holds(void *opaque, const VmfDiskRequest *request, GError **refused)
{
    VmfBackup *backup = opaque;
    bool held = false;

    if (request->length == 0)
        return false;
    pthread_mutex_lock(&backup->lock);
    if (backup->state == BACKUP_DRAINS || backup->state == BACKUP_PREPARES)
        held = true;
    else if (backup->state == BACKUP_COPIES)
        held = vmf_disk_units_ask(&backup->units, request->offset / VMF_DISK_UNIT,
                                  (request->offset + request->length - 1) / VMF_DISK_UNIT + 1);
    if (held && backup->state == BACKUP_COPIES)
        vmf_backup_wake(backup);
    pthread_mutex_unlock(&backup->lock);
    return held;
}

static void gate_quiet(void *opaque)
{
    VmfBackup *backup = opaque;
    GError *error = NULL;

    pthread_mutex_lock(&backup->lock);
    if (backup->state == BACKUP_DRAINS) {
        backup->aside = backup->bitmap && vmf_bitmaps_set_aside(backup->disk->bitmaps, backup->bitmap, &error);
        backup->state = BACKUP_PREPARES;
        if (error)
            vmf_backup_fail(backup, error);
        pthread_cond_broadcast(&backup->changed);
    }
    pthread_mutex_unlock(&backup->lock);
}

static GError *cancelled(const VmfBackup *backup, const char *why)
{
    return g_error_new(VMF_ERROR, VMF_ERROR_CANCELLED, "disk %s: backup: %s", backup->disk->name, why);
}

static void gate_released(void *opaque)
{
    VmfBackup *backup = opaque;

    pthread_mutex_lock(&backup->lock);
    if (backup->state != BACKUP_OVER)
        vmf_backup_fail(backup, cancelled(backup, "the disk was released"));
    pthread_mutex_unlock(&backup->lock);
}

static const VmfDiskGate gate = {.holds = gate_holds, .quiet = gate_quiet, .released = gate_released};

/* ---- state: lock held -------------------------------------------------------------------------------------------- */

void vmf_backup_wake(VmfBackup *backup)
{
    if (backup->in_queue)
        vmf_storage_wake(backup->queue);
    backup->in_queue = false;
    pthread_cond_broadcast(&backup->changed);
}

void vmf_backup_fail(VmfBackup *backup, GError *error)
{
    if (backup->error)
        g_error_free(error);
    else
        backup->error = error;
    backup->state = BACKUP_OVER;
    if (backup->target)
        vmf_storage_shutdown(backup->target); /* nobody waits for a server that says nothing */
    vmf_backup_wake(backup);
}

/* ---- the target -------------------------------------------------------------------------------------------------- */

static bool is_onto_base(const VmfBackup *backup)
{
    return backup->bitmap && !backup->full;
}

static VmfClaimKind claim_of(const VmfBackup *backup, const VmfBackupOptions *options)
{
    if (is_onto_base(backup))
        return VMF_CLAIM_CHANGE;
    return options->force ? VMF_CLAIM_FORCE : VMF_CLAIM_REPLACE;
}

static bool named(const VmfBackup *backup, bool done, GError **error)
{
    if (!done)
        g_prefix_error(error, "disk %s: backup: ", backup->disk->name);
    return done;
}

/* What is there already: not the disk itself, and nothing that is in use. */
static bool check_target_file(VmfBackup *backup, const char *path, const VmfBackupOptions *options, GError **error)
{
    struct stat target, own;
    bool found = stat(path, &target) == 0;

    if (!found && errno == ENOENT && is_onto_base(backup))
        return refuse(backup->disk, VMF_ERROR_DISK_BASE, options->target, "there is no base", error);
    if (found && backup->disk->path && stat(backup->disk->path, &own) == 0 && target.st_dev == own.st_dev &&
        target.st_ino == own.st_ino)
        return refuse(backup->disk, VMF_ERROR_USAGE, options->target, "it is the disk itself", error);
    backup->target_is_file = found && S_ISREG(target.st_mode);
    backup->target_path = g_strdup(path);
    backup->target_uri = g_strdup(options->target);
    backup->claim = claim_of(backup, options);
    return named(backup, vmf_claim_take(path, backup->claim, options->target, &backup->target_lock, error), error);
}

static bool check_target(VmfBackup *backup, const VmfBackupOptions *options, GError **error)
{
    g_autoptr(VmfStorageUri) uri = vmf_storage_uri_parse(options->target, error);

    return uri && (uri->kind != VMF_STORAGE_URI_FILE || check_target_file(backup, uri->path, options, error));
}

/* A base that is changed has its name. */
static bool renew_claim(VmfBackup *backup, GError **error)
{
    return !backup->target_path || backup->claim == VMF_CLAIM_CHANGE ||
           named(backup, vmf_claim_renew(backup->target_path, backup->claim, backup->target_uri, &backup->target_lock, error), error);
}

static bool commit_target(VmfBackup *backup, GError **error)
{
    return renew_claim(backup, error) && vmf_storage_commit(backup->target, error);
}

static VmfStorage *open_storage(const VmfBackup *backup, const VmfBackupOptions *options, bool buffered, GError **error)
{
    VmfStorageOptions storage = {
        .mode = is_onto_base(backup) ? VMF_STORAGE_MODIFY : VMF_STORAGE_CREATE,
        .connect = options->connect,
        .exclusive = true,
        .buffered = buffered,
        .cancelled = options->cancelled,
        .silence_ns = options->silence_ns ? options->silence_ns : SILENCE_NS,
    };

    return vmf_storage_open(options->target, &storage, error);
}

/* A file that is a base is the disk itself; what is not has room for it. */
static bool check_room(const VmfBackup *backup, const VmfBackupOptions *options, GError **error)
{
    uint64_t has = vmf_storage_size(backup->target), size = backup->disk->size_bytes;

    if (is_onto_base(backup) && backup->target_is_file && has != size) {
        g_autofree char *why = g_strdup_printf(
            "it is no base of this disk: it has %" G_GUINT64_FORMAT " bytes, the disk %" G_GUINT64_FORMAT, has, size);
        return refuse(backup->disk, VMF_ERROR_DISK_BASE, options->target, why, error);
    }
    return has >= size || refuse(backup->disk, VMF_ERROR_NO_SPACE, options->target, "it is smaller than the disk", error);
}

/* Direct, where the disk's last unit can be written so. */
static bool open_target(VmfBackup *backup, const VmfBackupOptions *options, GError **error)
{
    uint64_t size = backup->disk->size_bytes;

    backup->target = open_storage(backup, options, options->buffered, error);
    if (backup->target && size % vmf_storage_alignment(backup->target)) {
        g_clear_pointer(&backup->target, vmf_storage_free);
        backup->target = open_storage(backup, options, true, error);
    }
    if (!backup->target)
        return false;
    if (size % vmf_storage_alignment(backup->target))
        return refuse(backup->disk, VMF_ERROR_UNSUPPORTED, options->target,
                      "it cannot be written up to the disk's last sector", error);
    backup->fresh = !vmf_storage_is_in_place(backup->target);
    return backup->fresh ? vmf_storage_set_size(backup->target, size, error) : check_room(backup, options, error);
}

/* ---- what is to be copied ---------------------------------------------------------------------------------------- */

static void set_todo(VmfBackup *backup, uint64_t offset, uint64_t length)
{
    backup->progress.total_bytes += vmf_disk_units_set_todo(&backup->units, offset, length) * VMF_DISK_UNIT;
}

static void find_todo(VmfBackup *backup)
{
    uint64_t offset, length;

    if (!backup->bitmap || backup->full)
        set_todo(backup, 0, backup->disk->size_bytes);
    else
        for (uint64_t at = 0; vmf_bitmaps_next_aside(backup->disk->bitmaps, backup->bitmap, at, &offset, &length);
             at = offset + length)
            set_todo(backup, offset, length);
}

/* ---- beginning --------------------------------------------------------------------------------------------------- */

static bool allocate(VmfBackup *backup, GError **error)
{
    return vmf_disk_units_init(&backup->units, backup->disk->size_bytes) ||
           refuse(backup->disk, VMF_ERROR_MEMORY, "start", "out of memory", error);
}

static VmfBackup *new_backup(VmfDisk *disk, const VmfBackupOptions *options)
{
    VmfBackup *backup = g_new0(VmfBackup, 1);

    backup->disk = disk;
    backup->bitmap = g_strdup(options->bitmap);
    backup->full = options->full;
    backup->bytes_per_second = options->bytes_per_second;
    backup->cancelled = options->cancelled;
    backup->ended = options->ended;
    backup->opaque = options->opaque;
    backup->target_lock = -1;
    pthread_mutex_init(&backup->lock, NULL);
    pthread_cond_init(&backup->changed, NULL);
    return backup;
}

/* The thread has ended, or is the caller, or there was none. Who cancels meanwhile shuts the target down ahead of this or not at all. */
static void close_target(VmfBackup *backup)
{
    g_clear_pointer(&backup->queue, vmf_storage_queue_free);
    pthread_mutex_lock(&backup->lock);
    VmfStorage *target = g_steal_pointer(&backup->target);
    pthread_mutex_unlock(&backup->lock);
    vmf_storage_free(target);
    vmf_claim_drop(&backup->target_lock);
}

static void clear(VmfBackup *backup)
{
    close_target(backup);
    pthread_cond_destroy(&backup->changed);
    pthread_mutex_destroy(&backup->lock);
    vmf_disk_units_clear(&backup->units);
    g_clear_error(&backup->error);
    g_free(backup->target_path);
    g_free(backup->target_uri);
    g_free(backup->bitmap);
    g_free(backup);
}

/* Lock held, and given up while it waits. The disk's storage may say nothing any more. */
static void await_quiet(VmfBackup *backup)
{
    while (backup->state == BACKUP_DRAINS)
        if (!backup->cancelled)
            pthread_cond_wait(&backup->changed, &backup->lock);
        else if (atomic_load(backup->cancelled))
            vmf_backup_fail(backup, cancelled(backup, "it was cancelled"));
        else
            vmf_backup_sleep(backup, VMF_BACKUP_LOOK_NS);
}

/* The same. */
static bool reach_moment(VmfBackup *backup)
{
    await_quiet(backup);
    if (backup->state == BACKUP_OVER)
        return false;
    pthread_mutex_unlock(&backup->lock);
    find_todo(backup);
    pthread_mutex_lock(&backup->lock);
    if (backup->state != BACKUP_OVER)
        backup->state = BACKUP_COPIES;
    return backup->state != BACKUP_OVER;
}

static bool refuse_gate(VmfDisk *disk, GError **error)
{
    bool whole = false;

    vmf_disk_is_whole(disk, &whole, NULL);
    return refuse(disk, VMF_ERROR_STATE, "start",
                  whole ? "there is one already, or the disk is released" : "a part of it is still being restored", error);
}

/* Ahead of the target, which may be what restores the disk; whoever comes in between is seen by take_moment(). */
static bool check_gate(VmfDisk *disk, GError **error)
{
    pthread_mutex_lock(&disk->lock);
    bool is_free = !disk->gate && disk->acquired;
    pthread_mutex_unlock(&disk->lock);
    return is_free || refuse_gate(disk, error);
}

static bool take_moment(VmfBackup *backup, GError **error)
{
    if (!vmf_disk_set_gate(backup->disk, &gate, backup))
        return refuse_gate(backup->disk, error);
    backup->gated = true;
    pthread_mutex_lock(&backup->lock);
    bool reached = reach_moment(backup);
    pthread_mutex_unlock(&backup->lock);
    vmf_disk_gate_moved(backup->disk);
    if (!reached)
        g_propagate_error(error, g_error_copy(backup->error));
    return reached;
}

static void leave_gate(VmfBackup *backup)
{
    if (backup->gated)
        vmf_disk_clear_gate(backup->disk);
    backup->gated = false;
}

static void end_aside(VmfBackup *backup, bool keep)
{
    if (backup->aside)
        vmf_bitmaps_end_aside(backup->disk->bitmaps, backup->bitmap, keep);
    backup->aside = false;
}

/* From here on it can neither fail nor be cancelled. */
static bool settle(VmfBackup *backup, GError *error)
{
    pthread_mutex_lock(&backup->lock);
    if (error)
        vmf_backup_fail(backup, error);
    backup->state = BACKUP_OVER;
    bool done = !backup->error;
    pthread_mutex_unlock(&backup->lock);
    return done;
}

static void *backup_main(void *opaque)
{
    VmfBackup *backup = opaque;
    GError *error = NULL;
    bool copied = vmf_backup_copy(backup);

    leave_gate(backup); /* no write need wait for the target to sync */
    if (copied)
        commit_target(backup, &error);
    end_aside(backup, !settle(backup, error));
    close_target(backup);
    pthread_mutex_lock(&backup->lock);
    backup->is_over = backup->progress.ended = true;
    pthread_cond_broadcast(&backup->changed);
    pthread_mutex_unlock(&backup->lock);
    if (backup->ended)
        backup->ended(backup, backup->opaque);
    return NULL;
}

/* Signals are the embedder's business, and its threads'. */
static bool start_thread(VmfBackup *backup, GError **error)
{
    sigset_t all, before;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(&backup->thread, NULL, backup_main, backup);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err == 0 || refuse(backup->disk, VMF_ERROR_MEMORY, "thread", g_strerror(err), error);
}

/* @backup has its target. NULL: it is gone. */
static VmfBackup *start(VmfBackup *backup, GError **error)
{
    backup->queue = vmf_storage_queue_new(backup->target, VMF_BACKUP_JOBS, error);
    if (backup->queue && (!is_onto_base(backup) || vmf_backup_check_base(backup, error)) && take_moment(backup, error) &&
        start_thread(backup, error))
        return backup;
    leave_gate(backup);
    end_aside(backup, true);
    clear(backup);
    return NULL;
}

VmfBackup *vmf_backup_begin_onto(VmfDisk *disk, VmfStorage *target, uint64_t bytes_per_second,
                                 void (*ended)(VmfBackup *backup, void *opaque), void *opaque, GError **error)
{
    VmfBackupOptions options = {.bytes_per_second = bytes_per_second, .ended = ended, .opaque = opaque};
    VmfBackup *backup = new_backup(disk, &options);

    backup->target = target;
    backup->fresh = true;
    if (allocate(backup, error))
        return start(backup, error);
    clear(backup);
    return NULL;
}

VmfBackup *vmf_backup_begin(VmfDisk *disk, const VmfBackupOptions *options, GError **error)
{
    VmfBackupOptions own = {0};
    VmfBackup *backup;

    memcpy(&own, options, MIN(options->size, sizeof(own)));
    if (own.bitmap && !vmf_bitmaps_check_source(disk->bitmaps, own.bitmap, error))
        return NULL;
    backup = new_backup(disk, &own);
    if (check_gate(disk, error) && check_target(backup, &own, error) && open_target(backup, &own, error) && allocate(backup, error))
        return start(backup, error);
    clear(backup);
    return NULL;
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

void vmf_backup_cancel(VmfBackup *backup)
{
    pthread_mutex_lock(&backup->lock);
    if (backup->state != BACKUP_OVER)
        vmf_backup_fail(backup, cancelled(backup, "it was cancelled"));
    pthread_mutex_unlock(&backup->lock);
    vmf_disk_gate_moved(backup->disk);
}

bool vmf_backup_wait(VmfBackup *backup, GError **error)
{
    pthread_mutex_lock(&backup->lock);
    while (!backup->is_over)
        pthread_cond_wait(&backup->changed, &backup->lock);
    bool done = !backup->error;
    if (!done)
        g_propagate_error(error, g_error_copy(backup->error));
    pthread_mutex_unlock(&backup->lock);
    return done;
}

void vmf_backup_free(VmfBackup *backup)
{
    if (!backup)
        return;
    vmf_backup_cancel(backup);
    pthread_join(backup->thread, NULL);
    clear(backup);
}

void vmf_backup_get_progress(VmfBackup *backup, VmfBackupProgress *progress)
{
    size_t size = MIN(progress->size, sizeof(*progress));

    pthread_mutex_lock(&backup->lock);
    memcpy(progress, &backup->progress, size);
    pthread_mutex_unlock(&backup->lock);
    progress->size = size;
}
