/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * A disk is a name for storage that may be this host's to use or another's. Released, nothing of it is open: no
 * descriptor keeps a cache alive, or an export busy, or a lock. Acquiring goes lock, open, look: what is opened before
 * the lock is held could be what another host was about to change, its size too. Releasing goes the other way: drain,
 * flush, close, unlock.
 *
 * The file that is locked and the file that is opened have to be one; a name can be given to another in between, so
 * that is compared.
 *
 * The I/O thread lives as long as the disk. It touches storage and queue only while requests are under way, and those
 * two change only while none are, so they need no lock of their own; the mutex that requests go through orders the
 * accesses.
 */
#include "block/disk-private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "block/bitmap-aside.h"
#include "block/lock.h"
#include "block/receive.h"

#define NAME_MAX_BYTES 63u

bool vmf_disk_error(const VmfDisk *disk, VmfErrorCode code, const char *operation, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "disk %s: %s: %s: %s", disk->name, operation, disk->uri, why);
    return false;
}

static bool named(const VmfDisk *disk, bool done, GError **error)
{
    if (!done)
        g_prefix_error(error, "disk %s: ", disk->name);
    return done;
}

/* ---- the storage ------------------------------------------------------------------------------------------------- */

static VmfStorage *open_storage(const VmfDisk *disk, const char *uri, VmfStorageMode mode, bool buffered, GError **error)
{
    VmfStorageOptions options = {.mode = mode,
                                 .connect = disk->connect,
                                 .exclusive = disk->exclusive,
                                 .buffered = buffered,
                                 .cancelled = &disk->given_up,
                                 .connects = !disk->receiving, /* a guest may have to be taken back onto it */
                                 .backend = disk->backend_wanted};

    return vmf_storage_open(uri, &options, error);
}

/* Direct where a sector can be read and written so; a guest's request is never read, changed and written back. */
static VmfStorage *open_for_sectors(const VmfDisk *disk, const char *uri, GError **error)
{
    VmfStorageMode mode = disk->read_only ? VMF_STORAGE_READ : VMF_STORAGE_MODIFY;
    g_autoptr(VmfStorage) storage = open_storage(disk, uri, mode, disk->buffered, error);

    if (storage && vmf_storage_alignment(storage) > disk->sector_bytes && disk->path) {
        g_clear_pointer(&storage, vmf_storage_free);
        storage = open_storage(disk, uri, mode, true, error);
    }
    if (storage && vmf_storage_alignment(storage) > disk->sector_bytes) {
        vmf_disk_error(disk, VMF_ERROR_UNSUPPORTED, "open",
             "it cannot be read and written in units of a sector: give the disk larger ones", error);
        return NULL;
    }
    return g_steal_pointer(&storage);
}

static bool check_size(const VmfDisk *disk, uint64_t size, GError **error)
{
    if (size == 0 || size % disk->sector_bytes) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO,
                    "disk %s: open: %s: its size, %" G_GUINT64_FORMAT " bytes, is no multiple of %u", disk->name,
                    disk->uri, size, disk->sector_bytes);
        return false;
    }
    if (disk->windowed ? size < disk->size_bytes : disk->size_bytes && disk->size_bytes != size) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO,
                    "disk %s: open: %s: it has %" G_GUINT64_FORMAT " bytes, expected are %" G_GUINT64_FORMAT,
                    disk->name, disk->uri, size, disk->size_bytes);
        return false;
    }
    return true;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static bool check_options(const VmfDisk *disk, GError **error)
{
    size_t length = strlen(disk->name);

    if (length < 1 || length > NAME_MAX_BYTES)
        return vmf_disk_error(disk, VMF_ERROR_USAGE, "open", "a name has 1 to 63 bytes", error);
    if (disk->sector_bytes != 512 && disk->sector_bytes != 4096)
        return vmf_disk_error(disk, VMF_ERROR_USAGE, "open", "a sector has 512 or 4096 bytes", error);
    if (disk->create_bytes && (!disk->path || disk->read_only))
        return vmf_disk_error(disk, VMF_ERROR_USAGE, "open", "only a file that is written can be made", error);
    return true;
}

static bool learn_size(VmfDisk *disk, GError **error)
{
    struct stat status;

    disk->size_bytes = disk->create_bytes;
    if (disk->path && (disk->create_bytes || disk->incoming) && stat(disk->path, &status) < 0 && errno == ENOENT)
        return !disk->create_bytes || check_size(disk, disk->create_bytes, error);
    g_autoptr(VmfStorage) storage = open_storage(disk, disk->uri, VMF_STORAGE_READ, true, error);
    if (!storage)
        return named(disk, false, error);
    if (disk->incoming && !disk->create_bytes && vmf_storage_size(storage) % disk->sector_bytes)
        return true; /* to be replaced, if at all */
    if (!check_size(disk, vmf_storage_size(storage), error))
        return false;
    disk->size_bytes = vmf_storage_size(storage);
    return true;
}

static bool parse_uri(VmfDisk *disk, GError **error)
{
    g_autoptr(VmfStorageUri) uri = vmf_storage_uri_parse(disk->uri, error);

    if (uri && uri->kind == VMF_STORAGE_URI_FILE)
        disk->path = g_strdup(uri->path);
    return named(disk, uri != NULL, error);
}

static VmfDisk *new_disk(const char *name, const VmfDiskOptions *options)
{
    VmfDisk *disk = g_new0(VmfDisk, 1);
    VmfDiskOptions own = {0};

    memcpy(&own, options, MIN(options->size, sizeof(own)));
    disk->name = g_strdup(name);
    disk->uri = g_strdup(own.uri);
    disk->backend_wanted = g_strdup(own.backend);
    disk->bitmaps_path = g_strdup(own.bitmaps);
    disk->connect = own.connect;
    disk->create_bytes = own.create_bytes;
    disk->sector_bytes = own.sector_bytes ? own.sector_bytes : 512;
    disk->read_only = own.read_only;
    disk->buffered = own.buffered;
    disk->no_lock = own.no_lock;
    disk->incoming = own.incoming;
    disk->overwrite = own.overwrite;
    disk->lock_fd = -1;
    disk->tail = &disk->head;
    disk->held_tail = &disk->held;
    disk->dirty = g_ptr_array_new();
    disk->bitmaps = vmf_bitmaps_new(name);
    pthread_mutex_init(&disk->ownership, NULL);
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->changed, NULL);
    return disk;
}

static void clear_disk(VmfDisk *disk)
{
    pthread_cond_destroy(&disk->changed);
    pthread_mutex_destroy(&disk->lock);
    pthread_mutex_destroy(&disk->ownership);
    vmf_bitmaps_free(disk->bitmaps);
    g_clear_error(&disk->lost);
    g_ptr_array_unref(disk->dirty);
    g_free(disk->bitmaps_path);
    g_free(disk->backend_wanted);
    g_free(disk->path);
    g_free(disk->uri);
    g_free(disk->name);
    g_free(disk);
}

VmfDisk *vmf_disk_open(const char *name, const VmfDiskOptions *options, GError **error)
{
    VmfDisk *disk = new_disk(name, options);

    if (parse_uri(disk, error) && check_options(disk, error) && learn_size(disk, error) &&
        vmf_disk_io_start(disk, error)) {
        vmf_bitmaps_set_size(disk->bitmaps, disk->size_bytes);
        return disk;
    }
    clear_disk(disk);
    return NULL;
}

/* ---- whose it is ------------------------------------------------------------------------------------------------- */

/* Durably, before the new file has a size and is a disk: those of one that had this name before. */
static bool void_bitmaps(const VmfDisk *disk, GError **error)
{
    g_autofree char *path = vmf_disk_bitmaps_path(disk, true);
    VmfBitmapsAside aside = {NULL, NULL};

    if (!vmf_bitmaps_aside_move(&aside, path, error)) {
        vmf_bitmaps_aside_clear(&aside);
        return false;
    }
    vmf_bitmaps_aside_remove(&aside);
    return true;
}

/* Makes the file, where it is to be made. */
static bool create_file(VmfDisk *disk, GError **error)
{
    int fd, err = 0;

    if (!disk->create_bytes)
        return true;
    fd = open(disk->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);
    if (fd < 0 && errno != EEXIST)
        return vmf_disk_error(disk, VMF_ERROR_IO, "create", g_strerror(errno), error);
    bool voided = fd < 0 || void_bitmaps(disk, error);
    if (fd >= 0 && voided && (ftruncate(fd, (off_t)disk->create_bytes) < 0 || fsync(fd) < 0))
        err = errno;
    if (fd >= 0)
        close(fd);
    if (err || !voided)
        unlink(disk->path);
    if (!voided)
        return named(disk, false, error);
    if (err)
        return vmf_disk_error(disk, err == ENOSPC ? VMF_ERROR_NO_SPACE : VMF_ERROR_IO, "create", g_strerror(err), error);
    disk->create_bytes = 0;
    return true;
}

static bool take_lock(VmfDisk *disk, GError **error)
{
    if (disk->no_lock || (!disk->path && disk->read_only))
        return true;
    if (!disk->path)
        return vmf_disk_error(disk, VMF_ERROR_UNSUPPORTED, "lock",
                    "an export cannot be locked: it is to be said that there is one writer", error);
    disk->lock_fd = open(disk->path, (disk->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (disk->lock_fd < 0)
        return vmf_disk_error(disk, VMF_ERROR_IO, "open", g_strerror(errno), error);
    return named(disk, vmf_disk_lock_take(disk->lock_fd, !disk->read_only, disk->uri, error), error);
}

static void drop_lock(VmfDisk *disk)
{
    if (disk->lock_fd < 0)
        return;
    vmf_disk_lock_drop(disk->lock_fd);
    close(disk->lock_fd);
    disk->lock_fd = -1;
}

/* The name stands for what is locked, still. */
static bool check_locked(const VmfDisk *disk, const char *path, GError **error)
{
    struct stat locked, found;

    if (disk->lock_fd < 0)
        return true;
    if (fstat(disk->lock_fd, &locked) == 0 && stat(path, &found) == 0 && locked.st_dev == found.st_dev &&
        locked.st_ino == found.st_ino)
        return true;
    return vmf_disk_error(disk, VMF_ERROR_IO, "open", "it was replaced by another file meanwhile", error);
}

/* What this host kept of the file from before another wrote it. */
static void drop_cache(const VmfDisk *disk)
{
    if (disk->lock_fd >= 0)
        posix_fadvise(disk->lock_fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void set_acquired(VmfDisk *disk, bool acquired)
{
    pthread_mutex_lock(&disk->lock);
    disk->acquired = acquired;
    pthread_mutex_unlock(&disk->lock);
}

bool vmf_disk_open_locked(VmfDisk *disk, const char *uri, const char *path, GError **error)
{
    drop_cache(disk);
    g_autoptr(VmfStorage) storage = open_for_sectors(disk, uri, error);
    if (!storage)
        return named(disk, false, error);
    if (!check_locked(disk, path, error) || !check_size(disk, vmf_storage_size(storage), error))
        return false;
    disk->copies_writes = vmf_storage_wants_stable_writes(storage);
    if (disk->wrap) {
        storage = disk->wrap(g_steal_pointer(&storage), disk->wrap_opaque, error);
        if (!storage)
            return named(disk, false, error);
    }
    disk->queue = vmf_storage_queue_new(storage, VMF_DISK_DEPTH, error);
    if (!disk->queue)
        return named(disk, false, error);
    disk->storage = g_steal_pointer(&storage);
    set_acquired(disk, true);
    return true;
}

static void close_all(VmfDisk *disk)
{
    g_clear_pointer(&disk->queue, vmf_storage_queue_free);
    g_clear_pointer(&disk->storage, vmf_storage_free);
    drop_lock(disk);
}

/* When the disk's file was changed last, whose name may not be its own yet; 0: it is none. */
static int64_t file_mtime_ns(const VmfDisk *disk)
{
    struct stat status;

    if (!disk->path || (disk->lock_fd >= 0 ? fstat(disk->lock_fd, &status) : stat(disk->path, &status)) < 0 ||
        !S_ISREG(status.st_mode))
        return 0;
    return (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
}

char *vmf_disk_bitmaps_path(const VmfDisk *disk, bool is_file)
{
    if (disk->bitmaps_path)
        return g_strdup(disk->bitmaps_path);
    return is_file ? g_strconcat(disk->path, ".bitmaps", NULL) : NULL;
}

/* The file itself may be missing. */
static char *without_links(const char *path)
{
    char *resolved = realpath(path, NULL);
    g_autofree char *directory = g_path_get_dirname(path), *name = g_path_get_basename(path);
    char *result;

    if (!resolved && (resolved = realpath(directory, NULL)))
        result = g_build_filename(resolved, name, NULL);
    else
        result = g_strdup(resolved ? resolved : path);
    free(resolved);
    return result;
}

char *vmf_disk_bitmaps_file(const VmfDisk *disk)
{
    struct stat status;
    bool is_file = disk->path && (stat(disk->path, &status) < 0 || S_ISREG(status.st_mode));
    g_autofree char *path = disk->read_only ? NULL : vmf_disk_bitmaps_path(disk, is_file);

    return path ? without_links(path) : NULL;
}

/* A reader changes nothing, and may not touch what another records. */
static bool attach_bitmaps(VmfDisk *disk, GError **error)
{
    int64_t mtime_ns = file_mtime_ns(disk);

    vmf_bitmaps_set_size(disk->bitmaps, disk->size_bytes);
    g_autofree char *path = vmf_disk_bitmaps_path(disk, mtime_ns != 0);

    if (disk->read_only)
        return true;
    return vmf_disk_receive_is_beside(disk) ? vmf_bitmaps_attach_early(disk->bitmaps, error)
                                            : vmf_bitmaps_attach(disk->bitmaps, path, mtime_ns, error);
}

static bool acquire(VmfDisk *disk, GError **error)
{
    if (disk->storage)
        return true;
    if (disk->size_bytes == 0)
        return vmf_disk_error(disk, VMF_ERROR_STATE, "open", "it has not arrived", error);
    if (!create_file(disk, error))
        return false;
    if (!take_lock(disk, error) || !vmf_disk_open_locked(disk, disk->uri, disk->path, error)) {
        drop_lock(disk);
        return false;
    }
    return true;
}

/* What has come before has ended; what comes from now on is refused. */
static void shut(VmfDisk *disk)
{
    set_acquired(disk, false);
    vmf_disk_open_gate(disk);
    vmf_disk_drain(disk);
}

bool vmf_disk_close_locked(VmfDisk *disk, GError **error)
{
    if (!disk->storage)
        return true;
    shut(disk);
    if (!vmf_storage_flush(disk->storage, error)) {
        set_acquired(disk, true);
        return named(disk, false, error);
    }
    vmf_bitmaps_detach(disk->bitmaps, file_mtime_ns(disk));
    close_all(disk);
    return true;
}

void vmf_disk_close_anyway(VmfDisk *disk)
{
    shut(disk);
    vmf_bitmaps_detach(disk->bitmaps, file_mtime_ns(disk));
    close_all(disk);
}

bool vmf_disk_acquire(VmfDisk *disk, GError **error)
{
    pthread_mutex_lock(&disk->ownership);
    /* Requests come after this has returned: none is missed by a bitmap that is read now. */
    bool acquired = acquire(disk, error) && attach_bitmaps(disk, error);
    if (!acquired)
        vmf_disk_close_locked(disk, NULL);
    pthread_mutex_unlock(&disk->ownership);
    return acquired;
}

static bool may_release(VmfDisk *disk, GError **error)
{
    pthread_mutex_lock(&disk->lock);
    bool incomplete = disk->incomplete && disk->storage;
    pthread_mutex_unlock(&disk->lock);
    return !incomplete || vmf_disk_error(disk, VMF_ERROR_STATE, "release", "a part of it is still being restored", error);
}

bool vmf_disk_release(VmfDisk *disk, GError **error)
{
    pthread_mutex_lock(&disk->ownership);
    bool released = may_release(disk, error) && vmf_disk_close_locked(disk, error);
    pthread_mutex_unlock(&disk->ownership);
    return released;
}

void vmf_disk_give_up(VmfDisk *disk)
{
    atomic_store(&disk->given_up, true);
}

/* ---- whether all of it is here ----------------------------------------------------------------------------------- */

void vmf_disk_set_whole(VmfDisk *disk, bool whole)
{
    pthread_mutex_lock(&disk->lock);
    disk->incomplete = !whole;
    g_clear_error(&disk->lost);
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_set_lost(VmfDisk *disk, const GError *why)
{
    pthread_mutex_lock(&disk->lock);
    if (!disk->lost)
        disk->lost = g_error_copy(why);
    pthread_mutex_unlock(&disk->lock);
}

bool vmf_disk_is_whole(VmfDisk *disk, bool *whole, GError **error)
{
    pthread_mutex_lock(&disk->lock);
    *whole = !disk->incomplete;
    GError *lost = disk->lost ? g_error_copy(disk->lost) : NULL;
    pthread_mutex_unlock(&disk->lock);
    if (lost)
        g_propagate_error(error, lost);
    return !lost;
}

void vmf_disk_free(VmfDisk *disk)
{
    if (!disk)
        return;
    vmf_disk_receive_end(disk, VMF_RECEIVE_LEFT);
    if (!vmf_disk_release(disk, NULL))
        vmf_disk_close_anyway(disk);
    vmf_disk_drain(disk);
    vmf_disk_io_end(disk);
    clear_disk(disk);
}

/* ---- what it is -------------------------------------------------------------------------------------------------- */

/* What is missing is data, as far as anybody knows. Otherwise *@length is cut to what is not. */
static bool is_missing(VmfDisk *disk, uint64_t offset, uint64_t *length)
{
    uint64_t run = *length;

    pthread_mutex_lock(&disk->lock);
    bool missing = disk->gate && disk->gate->is_missing && disk->gate->is_missing(disk->gate_opaque, offset, *length, &run);
    pthread_mutex_unlock(&disk->lock);
    *length = run;
    return missing;
}

bool vmf_disk_extent(VmfDisk *disk, uint64_t offset, uint64_t length, VmfExtentKind *kind, uint64_t *extent_length,
                     GError **error)
{
    bool found = true;

    pthread_mutex_lock(&disk->ownership);
    if (!disk->storage) {
        found = vmf_disk_error(disk, VMF_ERROR_STATE, "find extents", "it is released", error);
    } else if (is_missing(disk, offset, &length)) {
        *kind = VMF_EXTENT_DATA;
        *extent_length = length;
    } else {
        found = named(disk, vmf_storage_extent(disk->storage, offset, length, kind, extent_length, error), error);
    }
    pthread_mutex_unlock(&disk->ownership);
    return found;
}

void vmf_disk_forget_cache(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->ownership);
    drop_cache(disk);
    pthread_mutex_unlock(&disk->ownership);
}

void vmf_disk_set_wrap(VmfDisk *disk, VmfStorage *(*wrap)(VmfStorage *, void *, GError **), void *opaque)
{
    disk->wrap = wrap;
    disk->wrap_opaque = opaque;
}

uint64_t vmf_disk_size(const VmfDisk *disk)
{
    return disk->size_bytes;
}

uint32_t vmf_disk_sector_size(const VmfDisk *disk)
{
    return disk->sector_bytes;
}

const char *vmf_disk_name(const VmfDisk *disk)
{
    return disk->name;
}

void vmf_disk_get_info(VmfDisk *disk, VmfDiskInfo *info)
{
    VmfDiskInfo own;

    pthread_mutex_lock(&disk->lock);
    own = disk->counters;
    own.acquired = disk->acquired;
    own.locked = disk->acquired && disk->lock_fd >= 0;
    own.direct = disk->acquired && vmf_storage_alignment(disk->storage) > 1;
    own.backend = disk->acquired ? vmf_storage_backend(disk->storage) : NULL;
    pthread_mutex_unlock(&disk->lock);
    own.size = MIN(info->size, sizeof(own));
    own.name = disk->name;
    own.uri = disk->uri;
    own.size_bytes = disk->size_bytes;
    own.sector_bytes = disk->sector_bytes;
    own.read_only = disk->read_only;
    memcpy(info, &own, own.size);
}
