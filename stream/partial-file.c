/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/partial-file.h"

#include <vmferry/error.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

bool vmf_partial_file_is_at(int fd, const char *name)
{
    struct stat opened, named;

    return fd >= 0 && fstat(fd, &opened) == 0 && lstat(name, &named) == 0 && opened.st_ino == named.st_ino &&
           opened.st_dev == named.st_dev;
}

/* A file that has another name as well is somebody's. */
static bool is_ours_alone(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink <= 1;
}

int vmf_partial_file_lock(int fd, bool lockless)
{
    int result;

    do
        result = flock(fd, LOCK_EX | LOCK_NB);
    while (result < 0 && errno == EINTR);
    if (result == 0 || (lockless && errno != EWOULDBLOCK))
        return 0;
    return errno == EWOULDBLOCK ? EBUSY : errno;
}

/* As a disk: those locks are of another kind, and known here only by their being there (block/lock.h). */
static bool is_in_use(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* 0, EAGAIN: open it again, or another errno. */
static int take_over(int fd, const char *partial, bool lockless)
{
    int err = is_ours_alone(fd) ? vmf_partial_file_lock(fd, lockless) : EMLINK;

    if (err)
        return err;
    /* Between open and lock the former writer may have renamed or removed it. */
    if (!vmf_partial_file_is_at(fd, partial))
        return EAGAIN;
    if (is_in_use(fd))
        return EBUSY;
    return is_ours_alone(fd) ? 0 : EMLINK; /* as nobody could tell before it was locked */
}

int vmf_partial_file_open(const char *partial, int flags, bool lockless)
{
    int err, fd;

    do {
        /* Without waiting, should it be a fifo. */
        fd = open(partial, flags | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (fd < 0)
            return -1;
        err = take_over(fd, partial, lockless);
        if (err == 0 && fcntl(fd, F_SETFL, flags) == 0)
            return fd;
        err = err ? err : errno;
        close(fd);
    } while (err == EAGAIN);
    errno = err;
    return -1;
}

const char *vmf_partial_file_problem(int err)
{
    return err == EBUSY    ? "somebody else is writing it"
           : err == EMLINK ? "it is no file, or has another name as well, and so is somebody's"
                           : g_strerror(err);
}

/* Returns a locked, empty descriptor, or -1 with errno. */
static int open_empty(const char *partial, int access)
{
    int err, fd = vmf_partial_file_open(partial, access | O_CREAT, false);

    if (fd < 0 || (fchmod(fd, 0600) == 0 && ftruncate(fd, 0) == 0))
        return fd;
    err = errno;
    close(fd);
    errno = err;
    return -1;
}

int vmf_partial_file_create(VmfPartialFile *file, const char *path, int access, GError **error)
{
    g_autofree char *resolved = realpath(path, NULL);
    g_autofree char *partial = g_strconcat(resolved ? resolved : path, ".partial", NULL);
    int fd = open_empty(partial, access);

    *file = (VmfPartialFile){0};
    if (fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "file:%s: create %s: %s", path, partial,
                    vmf_partial_file_problem(errno));
        return -1;
    }
    file->path = g_strdup(resolved ? resolved : path);
    file->partial = g_steal_pointer(&partial);
    return fd;
}

int vmf_sync_directory_of(const char *path)
{
    g_autofree char *directory = g_path_get_dirname(path);
    int err = 0, fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return errno;
    /* Some filesystems cannot sync a directory and say EINVAL. */
    if (fsync(fd) < 0 && errno != EINVAL)
        err = errno;
    close(fd);
    return err;
}

bool vmf_partial_file_commit(VmfPartialFile *file, GError **error)
{
    const char *operation = "rename";
    int err = 0;

    if (!file->partial)
        return true;
    if (rename(file->partial, file->path) < 0) {
        err = errno;
    } else {
        g_clear_pointer(&file->partial, g_free);
        operation = "sync the directory";
        err = vmf_sync_directory_of(file->path);
    }
    if (err != 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "file:%s: %s: %s", file->path, operation, g_strerror(err));
    return err == 0;
}

void vmf_partial_file_clear(VmfPartialFile *file)
{
    if (file->partial)
        unlink(file->partial);
    g_clear_pointer(&file->partial, g_free);
    g_clear_pointer(&file->path, g_free);
}
