/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * Two files may be locked: the one that is written (disk->lock_fd, as of any acquired disk) and the one that it will
 * replace (base_fd), so that nobody begins to use that one meanwhile. The two change their names in one step,
 * so that a crash leaves either state and nothing in between; where the filesystem has no such step the old file is
 * gone with the commit.
 *
 * A base is one file: what is written is what is replaced. Its name is taken away ahead of the first change.
 */
#include "block/receive.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/bitmap-aside.h"
#include "block/disk-private.h"
#include "block/lock.h"
#include "block/signature.h"
#include "stream/partial-file.h"

typedef struct VmfReceiving {
    char *path;         /* where links lead to; NULL: an export */
    char *partial;      /* NULL: written in place */
    int base_fd;        /* what is to be replaced, locked; -1: nothing */
    bool has_name;      /* taken from the other one, or from nobody */
    bool base_is_aside; /* then: it is under the other name */
    bool onto_base;
    bool named_partial; /* onto a base: that is its name now */
    char *signature;    /* onto a base: what may not be replaced unless it is proven; NULL: nothing */
    bool committed;
    bool bitmaps_void;       /* what speaks of the disk that was here before is aside */
    VmfBitmapsAside asides[2]; /* of the disk's name, and of where links lead to */
    uint64_t size_before;
    bool windowed_before;
} VmfReceiving;

/* ---- what is there ----------------------------------------------------------------------------------------------- */

typedef struct {
    bool exists, is_file, is_partial;
    uint64_t size;
    char *signature; /* owned; NULL: none */
} Place;

static bool problem(GError **error, VmfErrorCode code, const VmfDisk *disk, const char *text)
{
    g_set_error(error, VMF_ERROR, code, "disk %s: receive: %s: %s", disk->name, disk->uri, text);
    return false;
}

/* A file that is a base is the disk itself; what is not has room for it. */
static bool check_content(const VmfDisk *disk, const Place *place, uint64_t wanted, VmfReceiveOnto onto, GError **error)
{
    bool exact = onto == VMF_RECEIVE_ONTO_BASE && place->is_file;

    if (exact ? place->size != wanted : place->size < wanted) {
        g_autofree char *text =
            g_strdup_printf("%s has %" G_GUINT64_FORMAT " bytes, the disk that comes %" G_GUINT64_FORMAT,
                            onto == VMF_RECEIVE_ONTO_BASE ? "the base" : "it", place->size, wanted);
        return problem(error, VMF_ERROR_DISK_PLACE, disk, text);
    }
    return onto == VMF_RECEIVE_ONTO_BASE || !place->signature || disk->overwrite ||
           problem(error, VMF_ERROR_DISK_PLACE, disk, place->signature);
}

/* Of a file or a device that is open and locked. */
static bool look_at_fd(const VmfDisk *disk, int fd, Place *place, GError **error)
{
    struct stat status;
    off_t end = lseek(fd, 0, SEEK_END);

    if (fstat(fd, &status) < 0 || end < 0)
        return vmf_disk_error(disk, VMF_ERROR_IO, "receive", g_strerror(errno), error);
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        return problem(error, VMF_ERROR_DISK_PLACE, disk, "it is neither a file nor a block device");
    place->exists = true;
    place->is_file = S_ISREG(status.st_mode);
    place->size = (uint64_t)end;
    place->signature = vmf_signature_of_fd(fd);
    return true;
}

static bool look_at_export(const VmfDisk *disk, Place *place, GError **error)
{
    /* One that cannot be written is refused. */
    VmfStorageOptions options = {.mode = VMF_STORAGE_MODIFY, .connect = disk->connect, .cancelled = &disk->given_up};
    g_autoptr(VmfStorage) storage = vmf_storage_open(disk->uri, &options, error);

    if (!storage)
        return false;
    *place = (Place){.exists = true, .size = vmf_storage_size(storage), .signature = vmf_signature_of_storage(storage)};
    return !atomic_load(&disk->given_up) || problem(error, VMF_ERROR_CANCELLED, disk, "it was given up");
}

static void unlock_and_close(int *fd)
{
    if (*fd < 0)
        return;
    vmf_disk_lock_drop(*fd);
    close(*fd);
    *fd = -1;
}

static bool partial_error(const VmfDisk *disk, const char *partial, int err, GError **error)
{
    g_set_error(error, VMF_ERROR, err == EBUSY ? VMF_ERROR_LOCKED : err == EMLINK ? VMF_ERROR_DISK_PLACE : VMF_ERROR_IO,
                "disk %s: receive: %s: %s", disk->name, partial, vmf_partial_file_problem(err));
    return false;
}

/* As any disk's file, and as one that may be, or become, PATH.partial. */
static bool lock_file(const VmfDisk *disk, int fd, const char *path, GError **error)
{
    struct stat status;
    int err = 0;

    if (!disk->no_lock && !vmf_disk_lock_take(fd, true, disk->uri, error)) {
        g_prefix_error(error, "disk %s: receive: ", disk->name);
        return false;
    }
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
        err = vmf_partial_file_lock(fd, disk->no_lock);
    return !err || partial_error(disk, path, err, error);
}

/* A descriptor with the locks, or -1 with @error; where there is nothing, -1 without one. */
static int open_and_lock(const VmfDisk *disk, const char *path, GError **error)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0) {
        if (errno != ENOENT)
            vmf_disk_error(disk, VMF_ERROR_IO, "receive", g_strerror(errno), error);
        return -1;
    }
    if (lock_file(disk, fd, path, error))
        return fd;
    unlock_and_close(&fd);
    return -1;
}

/* The same of PATH.partial, which is never somebody's file that has another name as well. @create: O_CREAT or 0. */
static int open_partial(const VmfDisk *disk, const char *partial, int create, GError **error)
{
    int fd = vmf_partial_file_open(partial, O_RDWR | create, disk->no_lock);

    if (fd < 0) {
        if (errno != ENOENT || create)
            partial_error(disk, partial, errno, error);
        return -1;
    }
    if (lock_file(disk, fd, partial, error))
        return fd;
    unlock_and_close(&fd);
    return -1;
}

/* Of where links lead to; to be freed with g_free(). */
static char *partial_of(const char *path)
{
    char *resolved = realpath(path, NULL);
    char *partial = g_strconcat(resolved ? resolved : path, ".partial", NULL);

    free(resolved);
    return partial;
}

/* It would be replaced by the copy, wherever it was to lead. */
static bool is_link_to_nothing(const char *path)
{
    struct stat status;

    return lstat(path, &status) == 0 && S_ISLNK(status.st_mode);
}

static bool is_file_or_nothing(int fd)
{
    struct stat status;

    return fd < 0 || (fstat(fd, &status) == 0 && S_ISREG(status.st_mode));
}

/* It can be written over, or be replaced, or is not there. */
static bool check_partial(const VmfDisk *disk, const char *partial, GError **error)
{
    GError *failed = NULL;
    int fd = open_partial(disk, partial, 0, &failed);

    unlock_and_close(&fd);
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

/* The copy, and names for it, are made there. */
static bool check_directory(const VmfDisk *disk, const char *partial, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(partial);

    if (faccessat(AT_FDCWD, directory, W_OK | X_OK, AT_EACCESS) == 0)
        return true;
    g_autofree char *text = g_strdup_printf("nothing can be made in %s: %s", directory, g_strerror(errno));
    return problem(error, VMF_ERROR_DISK_PLACE, disk, text);
}

/* It is not mounted, nor somebody's who says so in the same way. Once it is locked: another machine has been told of then. */
static bool check_device(const VmfDisk *disk, GError **error)
{
    int fd = open(disk->path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd >= 0)
        return close(fd) == 0;
    return errno == EBUSY ? problem(error, VMF_ERROR_DISK_PLACE, disk, "it is mounted, or in use otherwise")
                          : vmf_disk_error(disk, VMF_ERROR_IO, "receive", g_strerror(errno), error);
}

/* Under the other name it is nobody's disk: what it holds is what a copy has begun to make of it. */
static bool look_at_file(const VmfDisk *disk, int fd, Place *place, GError **error)
{
    if (!look_at_fd(disk, fd, place, error))
        return false;
    if (place->is_partial)
        g_clear_pointer(&place->signature, g_free);
    return place->is_file || check_device(disk, error);
}

/* *@fd: what is there, locked; -1: nothing. */
static bool find_file(const VmfDisk *disk, VmfReceiveOnto onto, Place *place, int *fd, GError **error)
{
    g_autofree char *partial = partial_of(disk->path);
    GError *failed = NULL;

    *fd = open_and_lock(disk, disk->path, &failed);
    if (*fd < 0 && !failed && is_link_to_nothing(disk->path))
        problem(&failed, VMF_ERROR_DISK_PLACE, disk, "it is a link to a file that is not there");
    if (*fd < 0 && !failed && onto == VMF_RECEIVE_ONTO_BASE) {
        *fd = open_partial(disk, partial, 0, &failed);
        place->is_partial = true;
    }
    if (failed) {
        g_propagate_error(error, failed);
        return false;
    }
    if (is_file_or_nothing(*fd) && !check_directory(disk, partial, error))
        return false;
    if (!place->is_partial && is_file_or_nothing(*fd) && !check_partial(disk, partial, error))
        return false;
    return *fd < 0 || look_at_file(disk, *fd, place, error);
}

static bool find_place(const VmfDisk *disk, uint64_t wanted, VmfReceiveOnto onto, Place *place, int *fd, GError **error)
{
    if (disk->read_only)
        return problem(error, VMF_ERROR_DISK_PLACE, disk, "it is read-only here");
    if (wanted % disk->sector_bytes)
        return problem(error, VMF_ERROR_DISK_PLACE, disk, "the disk that comes is no multiple of its sectors");
    if (!(disk->path ? find_file(disk, onto, place, fd, error) : look_at_export(disk, place, error)))
        return false;
    if (place->exists)
        return check_content(disk, place, wanted, onto, error);
    return onto == VMF_RECEIVE_ANEW || problem(error, VMF_ERROR_DISK_PLACE, disk, "there is no base");
}

/* *@fd: what is there, locked; -1: nothing, or an export. */
static bool check_place(const VmfDisk *disk, uint64_t wanted, VmfReceiveOnto onto, Place *place, int *fd, GError **error)
{
    *place = (Place){0};
    *fd = -1;
    if (find_place(disk, wanted, onto, place, fd, error))
        return true;
    g_clear_pointer(&place->signature, g_free);
    unlock_and_close(fd);
    return false;
}

char *vmf_disk_receive_problem(VmfDisk *disk, uint64_t size_bytes, VmfReceiveOnto onto)
{
    g_autoptr(GError) error = NULL;
    Place place;
    int fd;

    pthread_mutex_lock(&disk->ownership);
    bool fine = disk->storage ? vmf_disk_error(disk, VMF_ERROR_STATE, "receive", "it is in use here", &error)
                              : check_place(disk, size_bytes, onto, &place, &fd, &error);
    if (fine) {
        g_free(place.signature);
        unlock_and_close(&fd);
    }
    pthread_mutex_unlock(&disk->ownership);
    return fine ? NULL : g_strdup(error->message);
}

bool vmf_disk_receive_is_same(const VmfDisk *one, const VmfDisk *other)
{
    struct stat a, b;

    if (strcmp(one->uri, other->uri) == 0)
        return true;
    if (!one->path || !other->path)
        return false;
    if (stat(one->path, &a) == 0 && stat(other->path, &b) == 0)
        return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_rdev == b.st_rdev;
    g_autofree char *here = g_path_get_basename(one->path), *there = g_path_get_basename(other->path);
    g_autofree char *in = g_path_get_dirname(one->path), *into = g_path_get_dirname(other->path);
    return strcmp(here, there) == 0 && stat(in, &a) == 0 && stat(into, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* ---- bitmaps of what was there ------------------------------------------------------------------------------------ */

/* Durable when it returns. */
static bool void_bitmaps(VmfDisk *disk, VmfReceiving *r, GError **error)
{
    g_autofree char *named = vmf_disk_bitmaps_path(disk, r->partial != NULL);
    g_autofree char *linked = r->path ? g_strconcat(r->path, ".bitmaps", NULL) : NULL;

    if (r->bitmaps_void)
        return true;
    r->bitmaps_void = (!named || vmf_bitmaps_aside_move(&r->asides[0], named, error)) &&
                      (!linked || vmf_bitmaps_aside_move(&r->asides[1], linked, error));
    if (!r->bitmaps_void)
        g_prefix_error(error, "disk %s: receive: ", disk->name);
    return r->bitmaps_void;
}

/* What they speak of is under its name, and the copy has changed nothing of it. */
static bool is_untouched(const VmfReceiving *r)
{
    struct stat base, found;

    if (r->onto_base)
        return r->partial && !r->named_partial;
    return r->partial && r->base_fd >= 0 && fstat(r->base_fd, &base) == 0 && stat(r->path, &found) == 0 &&
           base.st_ino == found.st_ino && base.st_dev == found.st_dev;
}

static void settle_bitmaps(VmfReceiving *r, VmfReceiveEnd how)
{
    bool back = how != VMF_RECEIVE_KEPT && is_untouched(r);

    for (unsigned i = 0; i < G_N_ELEMENTS(r->asides); i++)
        if (back)
            vmf_bitmaps_aside_return(&r->asides[i]);
        else if (how != VMF_RECEIVE_LEFT)
            vmf_bitmaps_aside_remove(&r->asides[i]);
}

/* ---- beginning --------------------------------------------------------------------------------------------------- */

/* A new file of this size under the other name, all zeros and locked. */
static bool make_partial(VmfDisk *disk, const VmfReceiving *r, GError **error)
{
    struct stat base;
    mode_t mode = r->base_fd >= 0 && fstat(r->base_fd, &base) == 0 ? base.st_mode & 0777 : 0600;
    int fd = open_partial(disk, r->partial, O_CREAT, error);

    if (fd < 0)
        return false;
    disk->lock_fd = fd;
    if (ftruncate(fd, 0) == 0 && ftruncate(fd, (off_t)disk->size_bytes) == 0 && fchmod(fd, mode) == 0)
        return true;
    return vmf_disk_error(disk, errno == ENOSPC || errno == EFBIG ? VMF_ERROR_NO_SPACE : VMF_ERROR_IO,
                          "make the partial file", g_strerror(errno), error);
}

static bool open_file(VmfDisk *disk, VmfReceiving *r, GError **error)
{
    bool at_partial = !r->onto_base || r->named_partial;
    g_autofree char *uri = NULL;

    r->path = realpath(disk->path, NULL);
    if (!r->path)
        r->path = strdup(disk->path);
    r->partial = partial_of(disk->path);
    uri = g_strconcat("file:", at_partial ? r->partial : r->path, NULL);
    if (r->onto_base) {
        disk->lock_fd = r->base_fd;
        r->base_fd = -1;
    } else if (!make_partial(disk, r, error)) {
        return false;
    }
    return vmf_disk_open_locked(disk, uri, at_partial ? r->partial : r->path, error);
}

static bool open_place(VmfDisk *disk, VmfReceiving *r, const Place *place, GError **error)
{
    if (disk->path && (!place->exists || place->is_file))
        return open_file(disk, r, error);
    if (!disk->path && !disk->no_lock)
        return vmf_disk_error(disk, VMF_ERROR_UNSUPPORTED, "lock",
                              "an export cannot be locked: it is to be said that there is one writer", error);
    disk->lock_fd = r->base_fd;
    r->base_fd = -1;
    disk->windowed = true;
    disk->exclusive = true;
    bool opened = (r->onto_base || void_bitmaps(disk, r, error)) && vmf_disk_open_locked(disk, disk->uri, disk->path, error);
    disk->exclusive = false;
    return opened;
}

static void receiving_free(VmfReceiving *r)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(r->asides); i++)
        vmf_bitmaps_aside_clear(&r->asides[i]);
    unlock_and_close(&r->base_fd);
    free(r->path);
    g_free(r->partial);
    g_free(r->signature);
    g_free(r);
}

static void forget(VmfDisk *disk)
{
    g_clear_pointer(&disk->receiving, receiving_free);
}

/* As if nothing had been begun; what is on storage stays. */
static void give_up(VmfDisk *disk)
{
    if (!vmf_disk_close_locked(disk, NULL))
        vmf_disk_close_anyway(disk);
    unlock_and_close(&disk->lock_fd);
    disk->size_bytes = disk->receiving->size_before;
    vmf_bitmaps_set_size(disk->bitmaps, disk->size_bytes);
    disk->windowed = disk->receiving->windowed_before;
}

static bool begin(VmfDisk *disk, uint64_t size_bytes, VmfReceiveOnto onto, GError **error)
{
    VmfReceiving *r;
    Place place;
    int fd;

    if (disk->storage || disk->receiving)
        return vmf_disk_error(disk, VMF_ERROR_STATE, "receive", "it is in use here", error);
    if (!check_place(disk, size_bytes, onto, &place, &fd, error))
        return false;
    r = disk->receiving = g_new0(VmfReceiving, 1);
    *r = (VmfReceiving){.base_fd = fd,
                        .onto_base = onto == VMF_RECEIVE_ONTO_BASE,
                        .named_partial = place.is_partial,
                        .signature = place.signature,
                        .size_before = disk->size_bytes,
                        .windowed_before = disk->windowed};
    disk->size_bytes = size_bytes;
    vmf_bitmaps_set_size(disk->bitmaps, size_bytes);
    if (open_place(disk, r, &place, error))
        return true;
    give_up(disk);
    forget(disk);
    return false;
}

bool vmf_disk_receive_begin(VmfDisk *disk, uint64_t size_bytes, VmfReceiveOnto onto, GError **error)
{
    pthread_mutex_lock(&disk->ownership);
    bool begun = begin(disk, size_bytes, onto, error);
    pthread_mutex_unlock(&disk->ownership);
    return begun;
}

bool vmf_disk_receive_is_new(const VmfDisk *disk)
{
    return disk->receiving && disk->receiving->partial && !disk->receiving->onto_base;
}

bool vmf_disk_receive_is_beside(const VmfDisk *disk)
{
    return vmf_disk_receive_is_new(disk) && !disk->receiving->committed;
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

/* Each takes the other's name. False: there is no such step here. */
static bool exchange(const VmfReceiving *r)
{
    return renameat2(AT_FDCWD, r->partial, AT_FDCWD, r->path, RENAME_EXCHANGE) == 0;
}

static bool is_no_step_here(int err)
{
    return err == EINVAL || err == ENOSYS;
}

/* Never onto what another has put there. Where there is no such step, that is looked at just before. */
static bool move_to_free(const char *from, const char *to)
{
    struct stat found;

    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return true;
    if (!is_no_step_here(errno))
        return false;
    if (lstat(to, &found) == 0)
        errno = EEXIST;
    else if (errno == ENOENT)
        return rename(from, to) == 0;
    return false;
}

static bool replaced(const VmfDisk *disk, GError **error)
{
    return problem(error, VMF_ERROR_DISK_PLACE, disk,
                   "what is there is not what was there when the copy began: another has put it there, or took it away");
}

/* Each file is still where it was when it was begun, and a place that was free still is. */
static bool check_names(const VmfDisk *disk, const VmfReceiving *r, GError **error)
{
    bool at_path = r->onto_base && !r->named_partial;
    struct stat found;

    if (!r->partial)
        return true;
    if (vmf_partial_file_is_at(disk->lock_fd, at_path ? r->path : r->partial) &&
        (at_path || (r->base_fd >= 0 ? vmf_partial_file_is_at(r->base_fd, r->path) : lstat(r->path, &found) < 0)))
        return true;
    return replaced(disk, error);
}

/* What has the other name goes, unless another writes it. */
static bool name_partial(VmfDisk *disk, VmfReceiving *r, GError **error)
{
    GError *failed = NULL;
    int err, fd = open_partial(disk, r->partial, 0, &failed);

    if (failed) {
        g_propagate_error(error, failed);
        return false;
    }
    r->named_partial = rename(r->path, r->partial) == 0;
    err = r->named_partial ? vmf_sync_directory_of(r->path) : errno;
    if (err && r->named_partial)
        r->named_partial = !move_to_free(r->partial, r->path);
    unlock_and_close(&fd);
    return !err || vmf_disk_error(disk, VMF_ERROR_IO, "mark the base as partial", g_strerror(err), error);
}

bool vmf_disk_receive_change(VmfDisk *disk, bool proven, GError **error)
{
    VmfReceiving *r = disk->receiving;

    if (r->signature && !proven && !disk->overwrite)
        return problem(error, VMF_ERROR_DISK_PLACE, disk, r->signature);
    return !r->onto_base || (check_names(disk, r, error) && void_bitmaps(disk, r, error) &&
                             (!r->partial || r->named_partial || name_partial(disk, r, error)));
}

/* Returns an errno; EEXIST: not by us. A name can be given to another file until the very step: then it is undone. */
static int replace_base(VmfReceiving *r)
{
    if (!exchange(r)) {
        if (!is_no_step_here(errno))
            return errno;
        return rename(r->partial, r->path) == 0 ? 0 : errno;
    }
    r->base_is_aside = vmf_partial_file_is_at(r->base_fd, r->partial);
    if (r->base_is_aside)
        return 0;
    exchange(r);
    return EEXIST;
}

/* Whoever writes under the other name by now keeps it. Then a copy goes, as nobody needs it; a base is somebody's. */
static bool leave_path(const VmfReceiving *r)
{
    return move_to_free(r->path, r->partial) || (errno == EEXIST && !r->onto_base && unlink(r->path) == 0);
}

/* Another may have the name by now: then it is left alone. @fd: on the disk's file. */
static void lose_name(VmfReceiving *r, int fd)
{
    if (!r->has_name || !vmf_partial_file_is_at(fd, r->path))
        return;
    if (!(r->base_is_aside && vmf_partial_file_is_at(r->base_fd, r->partial) ? exchange(r) : leave_path(r)))
        return;
    r->has_name = r->base_is_aside = false;
    vmf_sync_directory_of(r->path);
}

/* Or nothing has changed, unless that cannot be undone either. */
static bool take_name(VmfDisk *disk, VmfReceiving *r, GError **error)
{
    int err = 0;

    if (!r->partial || (r->onto_base && !r->named_partial))
        return true;
    if (r->base_fd >= 0)
        err = replace_base(r);
    else if (!move_to_free(r->partial, r->path))
        err = errno;
    if (err == EEXIST)
        return replaced(disk, error);
    r->has_name = !err;
    if (!err)
        err = vmf_sync_directory_of(r->path);
    if (!err)
        return true;
    lose_name(r, disk->lock_fd);
    return vmf_disk_error(disk, VMF_ERROR_IO, "take its name", g_strerror(err), error);
}

static bool make_durable(const VmfDisk *disk, GError **error)
{
    if (vmf_storage_flush(disk->storage, error))
        return true;
    g_prefix_error(error, "disk %s: ", disk->name);
    return false;
}

bool vmf_disk_receive_commit(VmfDisk *disk, GError **error)
{
    pthread_mutex_lock(&disk->ownership);
    VmfReceiving *r = disk->receiving;
    bool done = r && disk->storage && make_durable(disk, error) && check_names(disk, r, error) &&
                void_bitmaps(disk, r, error) && take_name(disk, r, error);
    if (done) {
        g_autofree char *bitmaps = vmf_disk_bitmaps_path(disk, r->partial != NULL);

        vmf_bitmaps_take_place(disk->bitmaps, bitmaps);
        disk->receiving->committed = true;
        disk->create_bytes = 0;
    }
    pthread_mutex_unlock(&disk->ownership);
    return done;
}

static void drop(VmfDisk *disk)
{
    VmfReceiving *r = disk->receiving;
    int fd = disk->lock_fd >= 0 ? fcntl(disk->lock_fd, F_DUPFD_CLOEXEC, 0)
                                : open(r->path ? r->path : "", O_RDONLY | O_CLOEXEC);

    /* What is returned to its name must not find the bitmaps of the copy there. */
    if (!r->bitmaps_void || vmf_bitmaps_discard(disk->bitmaps))
        lose_name(r, fd);
    give_up(disk);
    if (fd >= 0)
        close(fd);
}

void vmf_disk_receive_end(VmfDisk *disk, VmfReceiveEnd how)
{
    pthread_mutex_lock(&disk->ownership);
    VmfReceiving *r = disk->receiving;
    if (r && how == VMF_RECEIVE_DROPPED)
        drop(disk);
    else if (r && how == VMF_RECEIVE_KEPT && r->base_is_aside && vmf_partial_file_is_at(r->base_fd, r->partial))
        unlink(r->partial);
    else if (r && how == VMF_RECEIVE_LEFT && !r->committed)
        give_up(disk);
    if (r)
        settle_bitmaps(r, how);
    forget(disk);
    pthread_mutex_unlock(&disk->ownership);
}
