/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Streams in files. A new file takes its name when finish() has synced it. */
#include "stream/channel-fd.h"
#include "stream/filter-pass.h"
#include "stream/partial-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    VmfFilter filter;    /* below: reads, writes and syncs */
    VmfPartialFile file; /* all zeros: read, or written in place */
} FileChannel;

static bool file_finish(VmfChannel *channel, GError **error)
{
    FileChannel *file = (FileChannel *)channel;

    return vmf_filter_pass_finish(channel, error) && vmf_partial_file_commit(&file->file, error);
}

static void file_free(VmfChannel *channel)
{
    FileChannel *file = (FileChannel *)channel;

    vmf_partial_file_clear(&file->file);
    vmf_filter_pass_free(channel);
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
    return &file->filter.base;
}

static void open_error(const char *path, int err, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "file:%s: open: %s", path, g_strerror(err));
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static VmfChannel *write_partial(const char *path, GError **error)
{
    VmfPartialFile file;
    int fd = vmf_partial_file_create(&file, path, O_WRONLY, error);
    VmfChannel *channel;

    if (fd < 0)
        return NULL;
    channel = file_channel(path, fd, true, error);
    if (channel)
        ((FileChannel *)channel)->file = file;
    else
        vmf_partial_file_clear(&file);
    return channel;
}

/* A device must not be mounted, or somebody's who says so in the same way. */
static VmfChannel *write_in_place(const char *path, mode_t mode, GError **error)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | (S_ISBLK(mode) ? O_EXCL : 0));

    if (fd >= 0)
        return file_channel(path, fd, true, error);
    open_error(path, errno, error);
    return NULL;
}

VmfChannel *vmf_channel_file_write_new(const char *path, GError **error)
{
    struct stat st;

    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return write_in_place(path, st.st_mode, error);
    return write_partial(path, error);
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
