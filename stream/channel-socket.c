/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Channels over stream sockets.
 *
 * A call that would wait polls instead: whoever sleeps inside recvmsg or sendmsg is woken by every event of the socket,
 * so that the reader of acknowledgements is woken by room to write and the writer by each acknowledgement; poll is woken
 * by what it asked for. shutdown(2) wakes it from another thread.
 *
 * Who reads a record's payload needs all of it, so it is not woken for each piece that comes: that is what SO_RCVLOWAT is for. Waking
 * and switching cost more than it takes to copy 64 KiB.
 *
 * Between hosts TCP sizes its own buffers: what can be set is capped far below what its autotuning reaches. On the
 * loopback nothing is gained by more than a record's worth: what waits in a large buffer falls out of the cache before it
 * is copied again, all the more where several channels share a processor; less means more wake-ups.
 *
 * Milliseconds for a GiB between two processes on two processors, cubic, medians of eight. One page channel: 447, of which the source and
 * the target computed for 868; woken at 64 KiB 396 and 707, at 128 KiB 390 and 751. Four channels: 324 and 598 with 1 MiB of buffer,
 * 303 and 581 with 512 KiB, 309 and 594 with 256. Two channels are indifferent to both: 294 and 575.
 */
#include "stream/channel-fd.h"
#include "stream/channel-wait.h"
#include "stream/connector-address.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LOOPBACK_BUFFER_BYTES (512 * 1024)
/* Unix sockets do not grow by themselves. The kernel caps it silently. */
#define UNIX_BUFFER_BYTES (1024 * 1024)
#define WAKE_BYTES ((size_t)64 * 1024)

typedef struct {
    VmfChannel base;
    int fd;
    size_t expected; /* bytes, by the reader */
    int wakes_at;    /* bytes: the socket's SO_RCVLOWAT */
    atomic_bool down;
} SocketChannel;

static bool worth_another_try(const SocketChannel *sock, short events)
{
    if (errno == EINTR)
        return true;
    return errno == EAGAIN && vmf_poll_until(&(struct pollfd){.fd = sock->fd, .events = events}, 1, VMF_NEVER) > 0;
}

static void set_option(int fd, int level, int option, int value)
{
    setsockopt(fd, level, option, &value, sizeof(value));
}

static void wake_at(SocketChannel *sock, size_t bytes)
{
    int least = (int)CLAMP(bytes, 1, WAKE_BYTES);

    if (least == sock->wakes_at)
        return;
    set_option(sock->fd, SOL_SOCKET, SO_RCVLOWAT, least);
    sock->wakes_at = least;
}

static void socket_expect(VmfChannel *channel, size_t bytes)
{
    ((SocketChannel *)channel)->expected = bytes;
}

static bool wait_for_data(SocketChannel *sock)
{
    if (errno == EAGAIN) {
        wake_at(sock, sock->expected);
        errno = EAGAIN;
    }
    return worth_another_try(sock, POLLIN);
}

static ssize_t socket_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    SocketChannel *sock = (SocketChannel *)channel;
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = n};
    ssize_t got;

    do {
        /* The kernel would still hand out what had come before the shutdown. */
        if (atomic_load(&sock->down))
            return 0;
        got = recvmsg(sock->fd, &message, MSG_DONTWAIT);
    } while (got < 0 && wait_for_data(sock));

    if (got >= 0)
        return got;
    return atomic_load(&sock->down) ? 0 : vmf_channel_error_errno(channel, "read", errno, error);
}

static ssize_t socket_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    SocketChannel *sock = (SocketChannel *)channel;
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = n};
    ssize_t sent;

    do {
        sent = sendmsg(sock->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && worth_another_try(sock, POLLOUT));

    if (sent >= 0)
        return sent;
    if (atomic_load(&sock->down))
        return vmf_channel_error_shut_down(channel, error);
    return vmf_channel_error_errno(channel, "write", errno, error);
}

static int socket_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    SocketChannel *sock = (SocketChannel *)channel;
    struct pollfd fd = {.fd = sock->fd, .events = POLLIN};

    wake_at(sock, 1);
    int ready = vmf_poll_until(&fd, 1, vmf_deadline_after(timeout_ns));

    return ready < 0 ? vmf_channel_error_errno(channel, "poll", errno, error) : ready;
}

static bool socket_has_room(VmfChannel *channel)
{
    struct pollfd fd = {.fd = ((SocketChannel *)channel)->fd, .events = POLLOUT};

    return poll(&fd, 1, 0) != 0; /* an error is for writev() to tell */
}

static uint64_t socket_unsent_bytes(VmfChannel *channel)
{
    int bytes = 0;

    if (ioctl(((SocketChannel *)channel)->fd, SIOCOUTQ, &bytes) < 0)
        return 0;
    return MAX(bytes, 0);
}

static void socket_shutdown(VmfChannel *channel)
{
    SocketChannel *sock = (SocketChannel *)channel;

    atomic_store(&sock->down, true);
    shutdown(sock->fd, SHUT_RDWR);
}

static void socket_free(VmfChannel *channel)
{
    close(((SocketChannel *)channel)->fd);
}

static const VmfChannelOps socket_ops = {
    .kind = "socket",
    .readv = socket_readv,
    .expect = socket_expect,
    .writev = socket_writev,
    .wait_readable = socket_wait_readable,
    .has_room = socket_has_room,
    .unsent_bytes = socket_unsent_bytes,
    .shutdown = socket_shutdown,
    .free = socket_free,
};

/* None of these is vital: where the kernel refuses one, the channel still works. */
static void tune(int fd)
{
    struct sockaddr_storage peer = {0};
    socklen_t length = sizeof(peer);

    getpeername(fd, (struct sockaddr *)&peer, &length);
    if (peer.ss_family == AF_UNIX) {
        set_option(fd, SOL_SOCKET, SO_SNDBUF, UNIX_BUFFER_BYTES);
        return;
    }
    if (vmf_address_is_loopback((struct sockaddr *)&peer))
        set_option(fd, SOL_SOCKET, SO_SNDBUF, LOOPBACK_BUFFER_BYTES);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    /* A host that is gone is noticed in half a minute, not in the two hours (idle) or fifteen minutes (sending) of the defaults. */
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30000);
}

VmfChannel *vmf_channel_socket_new(int fd, const char *name, bool one_way)
{
    SocketChannel *sock = g_new0(SocketChannel, 1);
    int flags = fcntl(fd, F_GETFL);

    vmf_channel_init(&sock->base, &socket_ops, name, one_way);
    sock->fd = fd;
    sock->wakes_at = 1;
    atomic_init(&sock->down, false);
    if (flags >= 0 && (flags & O_NONBLOCK))
        fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    tune(fd);
    return &sock->base;
}
