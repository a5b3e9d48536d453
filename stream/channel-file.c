/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Streams in files.
 *
 * Theory of Operation
 *
 * What is being written has the name PATH.partial and a lock. finish() syncs it, renames it to PATH and syncs the
 * directory, so under PATH there is the former file or the whole new one, whatever happens in between. A channel that
 * is freed before that removes its partial file; one that was killed leaves it behind, and the next writer takes it
 * over. Two writers at once are kept apart by the lock, which is held until the rename is done.
 *
 * Guest memory is in these files: they are created for their owner alone.
 */
#include "stream/channel-fd.h"
#include "stream/filter-pass.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    VmfFilter filter; /* below: reads, writes and syncs */
    char *path;
    char *partial; /* NULL: written in place, or finished */
} FileChannel;

static int sync_directory_of(const char *path)
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

static bool file_finish(VmfChannel *channel, GError **error)
{
    FileChannel *file = (FileChannel *)channel;
    int err;

    if (!vmf_filter_pass_finish(channel, error))
        return false;
    if (!file->partial)
        return true;
    if (rename(file->partial, file->path) < 0) {
        vmf_channel_error_errno(channel, "rename", errno, error);
        return false;
    }
    g_clear_pointer(&file->partial, g_free);
    err = sync_directory_of(file->path);
    if (err != 0)
        vmf_channel_error_errno(channel, "sync the directory", err, error);
    return err == 0;
}

static void file_free(VmfChannel *channel)
{
    FileChannel *file = (FileChannel *)channel;

    if (file->partial)
        unlink(file->partial);
    vmf_filter_pass_free(channel);
    g_free(file->partial);
    g_free(file->path);
}

static const VmfChannelOps file_ops = {
    .kind = "file",
    .readv = vmf_filter_pass_readv,
    .writev = vmf_filter_pass_writev,
    .wait_readable = vmf_filter_pass_wait_readable,
    .finish = file_finish,
    .shutdown = vmf_filter_pass_shutdown,
    .free = file_free,
};

static VmfChannel *file_channel(const char *path, int fd, bool for_writing, GError **error)
{
    g_autofree char *name = g_strconcat("file:", path, NULL);
    VmfChannel *below = vmf_channel_pipe_new(for_writing ? -1 : fd, for_writing ? fd : -1, name, true, error);
    FileChannel *file;

    if (!below)
        return NULL;
    file = g_new0(FileChannel, 1);
    vmf_filter_init(&file->filter, &file_ops, below);
    file->path = g_strdup(path);
    return &file->filter.base;
}

static void open_error(const char *path, int err, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "file:%s: open: %s", path, g_strerror(err));
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* Whether @fd is still what stands under @name: between open and lock the former writer may have renamed it to its own
 * path. */
static bool is_still_named(int fd, const char *name)
{
    struct stat opened, named;

    return fstat(fd, &opened) == 0 && lstat(name, &named) == 0 && opened.st_ino == named.st_ino &&
           opened.st_dev == named.st_dev;
}

/* Returns a locked, empty descriptor, or -1 with errno. */
static int open_partial(const char *partial)
{
    for (;;) {
        int err, fd = open(partial, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0)
            return -1;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 && is_still_named(fd, partial)) {
            if (fchmod(fd, 0600) == 0 && ftruncate(fd, 0) == 0)
                return fd;
        } else if (errno != EWOULDBLOCK) {
            close(fd);
            continue;
        }
        err = errno;
        close(fd);
        errno = err;
        return -1;
    }
}

static VmfChannel *write_partial(const char *path, GError **error)
{
    g_autofree char *partial = g_strconcat(path, ".partial", NULL);
    int fd = open_partial(partial);
    VmfChannel *channel;

    if (fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "file:%s: create %s: %s", path, partial,
                    errno == EWOULDBLOCK ? "somebody else is writing it" : g_strerror(errno));
        return NULL;
    }
    channel = file_channel(path, fd, true, error);
    if (channel)
        ((FileChannel *)channel)->partial = g_steal_pointer(&partial);
    return channel;
}

static VmfChannel *write_in_place(const char *path, GError **error)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0)
        return file_channel(path, fd, true, error);
    open_error(path, errno, error);
    return NULL;
}

VmfChannel *vmf_channel_file_write_new(const char *path, GError **error)
{
    g_autofree char *resolved = realpath(path, NULL); /* a link to a file stays one */
    const char *real = resolved ? resolved : path;
    struct stat st;

    if (stat(real, &st) == 0 && !S_ISREG(st.st_mode))
        return write_in_place(real, error);
    return write_partial(real, error);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static const char *why_unreadable(mode_t mode)
{
    if (S_ISDIR(mode))
        return "it is a directory";
    if (S_ISFIFO(mode))
        return "it is a fifo: use fd: or exec:";
    return NULL;
}

VmfChannel *vmf_channel_file_read_new(const char *path, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const char *unreadable;
    struct stat st;

    if (fd < 0) {
        open_error(path, errno, error);
        return NULL;
    }
    unreadable = fstat(fd, &st) < 0 ? g_strerror(errno) : why_unreadable(st.st_mode);
    if (unreadable) {
        close(fd);
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "file:%s: open: %s", path, unreadable);
        return NULL;
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return file_channel(path, fd, false, error);
}
