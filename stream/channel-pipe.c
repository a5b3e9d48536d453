/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Channels over descriptors that are no sockets: pipes, files, character devices.
 *
 * Nothing like shutdown(2) exists for them, so the descriptors are made non-blocking, and who has to wait polls an
 * eventfd as well. O_NONBLOCK belongs to the open file, which others may share (a shell's standard output): it is put
 * back at the end.
 */
#include "stream/channel-fd.h"
#include "stream/channel-wait.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

/* A pipe's default of 64 KiB costs eight times the wake-ups. The kernel may refuse it. */
#define PIPE_BYTES (1024 * 1024)

typedef struct {
    int fd; /* -1: not there */
    int flags;
    bool regular;
} Side;

typedef struct {
    VmfChannel base;
    Side in;
    Side out;
    VmfWake wake;
} PipeChannel;

static ssize_t pipe_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    PipeChannel *pipes = (PipeChannel *)channel;

    if (pipes->in.fd < 0)
        return vmf_channel_error_direction(channel, "read", error);
    while (!vmf_wake_is_thrown(&pipes->wake)) {
        ssize_t got = readv(pipes->in.fd, iov, n);

        if (got >= 0)
            return got;
        if (errno == EAGAIN)
            vmf_wake_poll(&pipes->wake, pipes->in.fd, POLLIN, VMF_NEVER);
        else if (errno != EINTR)
            return vmf_channel_error_errno(channel, "read", errno, error);
    }
    return 0;
}

/*
 * writev() has no MSG_NOSIGNAL. SIGPIPE is sent to the thread that writes: it is held back there and taken out again,
 * unless one was pending before, which is not ours.
 */
static ssize_t writev_without_sigpipe(int fd, const struct iovec *iov, int n)
{
    sigset_t broken_pipe, before, pending;
    ssize_t sent;
    int err;

    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    sigemptyset(&pending);
    pthread_sigmask(SIG_BLOCK, &broken_pipe, &before);
    if (sigismember(&before, SIGPIPE))
        sigpending(&pending);
    sent = writev(fd, iov, n);
    err = errno;
    if (sent < 0 && err == EPIPE && !sigismember(&pending, SIGPIPE))
        while (sigtimedwait(&broken_pipe, NULL, &(struct timespec){0}) < 0 && errno == EINTR)
            continue;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = err;
    return sent;
}

static ssize_t pipe_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    PipeChannel *pipes = (PipeChannel *)channel;

    if (pipes->out.fd < 0)
        return vmf_channel_error_direction(channel, "write", error);
    while (!vmf_wake_is_thrown(&pipes->wake)) {
        ssize_t sent =
            pipes->out.regular ? writev(pipes->out.fd, iov, n) : writev_without_sigpipe(pipes->out.fd, iov, n);

        if (sent >= 0)
            return sent;
        if (errno == EAGAIN)
            vmf_wake_poll(&pipes->wake, pipes->out.fd, POLLOUT, VMF_NEVER);
        else if (errno != EINTR)
            return vmf_channel_error_errno(channel, "write", errno, error);
    }
    return vmf_channel_error_shut_down(channel, error);
}

static int pipe_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    PipeChannel *pipes = (PipeChannel *)channel;
    int ready;

    if (pipes->in.fd < 0)
        return vmf_channel_error_direction(channel, "read", error);
    ready = vmf_wake_poll(&pipes->wake, pipes->in.fd, POLLIN, vmf_deadline_after(timeout_ns));
    return ready < 0 ? vmf_channel_error_errno(channel, "poll", errno, error) : ready;
}

static bool pipe_finish(VmfChannel *channel, GError **error)
{
    PipeChannel *pipes = (PipeChannel *)channel;

    if (!pipes->out.regular || fdatasync(pipes->out.fd) == 0)
        return true;
    vmf_channel_error_errno(channel, "sync", errno, error);
    return false;
}

static void pipe_shutdown(VmfChannel *channel)
{
    vmf_wake_throw(&((PipeChannel *)channel)->wake);
}

static void side_open(Side *side, int fd)
{
    struct stat st = {0};

    side->fd = fd;
    if (fd < 0)
        return;
    side->regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    side->flags = fcntl(fd, F_GETFL);
    if (!side->regular && side->flags >= 0)
        fcntl(fd, F_SETFL, side->flags | O_NONBLOCK);
    if (S_ISFIFO(st.st_mode))
        fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES);
}

static void side_close(Side *side)
{
    if (side->fd < 0)
        return;
    if (!side->regular && side->flags >= 0)
        fcntl(side->fd, F_SETFL, side->flags);
    close(side->fd);
    side->fd = -1;
}

void vmf_channel_pipe_close_write(VmfChannel *channel)
{
    PipeChannel *pipes = (PipeChannel *)channel;

    if (pipes->out.fd != pipes->in.fd)
        side_close(&pipes->out);
    pipes->out.fd = -1;
}

static void pipe_free(VmfChannel *channel)
{
    PipeChannel *pipes = (PipeChannel *)channel;

    if (pipes->out.fd != pipes->in.fd)
        side_close(&pipes->out);
    side_close(&pipes->in);
    vmf_wake_clear(&pipes->wake);
}

static const VmfChannelOps pipe_ops = {
    .kind = "pipe",
    .readv = pipe_readv,
    .writev = pipe_writev,
    .wait_readable = pipe_wait_readable,
    .finish = pipe_finish,
    .shutdown = pipe_shutdown,
    .free = pipe_free,
};

VmfChannel *vmf_channel_pipe_new(int read_fd, int write_fd, const char *name, bool one_way, GError **error)
{
    g_autofree PipeChannel *pipes = g_new0(PipeChannel, 1);

    if (!vmf_wake_init(&pipes->wake, error)) {
        if (read_fd >= 0)
            close(read_fd);
        if (write_fd >= 0 && write_fd != read_fd)
            close(write_fd);
        return NULL;
    }
    vmf_channel_init(&pipes->base, &pipe_ops, name, one_way);
    side_open(&pipes->in, read_fd);
    pipes->out = pipes->in;
    if (write_fd != read_fd)
        side_open(&pipes->out, write_fd);
    return &g_steal_pointer(&pipes)->base;
}
