/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What all channels share: whole transfers on top of partial ones. */
#include "stream/channel.h"
#include "stream/channel-wait.h"

#include <errno.h>
#include <limits.h>

void vmf_channel_init(VmfChannel *channel, const VmfChannelOps *ops, const char *name, bool one_way)
{
    channel->ops = ops;
    channel->name = g_strdup(name);
    channel->one_way = one_way;
}

void vmf_channel_free(VmfChannel *channel)
{
    if (!channel)
        return;
    channel->ops->free(channel);
    g_free(channel->name);
    g_free(channel);
}

void vmf_channel_shutdown(VmfChannel *channel)
{
    channel->ops->shutdown(channel);
}

const char *vmf_channel_name(VmfChannel *channel)
{
    return channel->name;
}

bool vmf_channel_is_one_way(const VmfChannel *channel)
{
    return channel->one_way;
}

int vmf_channel_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    return channel->ops->wait_readable(channel, timeout_ns, error);
}

bool vmf_channel_has_room(VmfChannel *channel)
{
    return !channel->ops->has_room || channel->ops->has_room(channel);
}

uint64_t vmf_channel_unsent_bytes(VmfChannel *channel)
{
    return channel->ops->unsent_bytes ? channel->ops->unsent_bytes(channel) : 0;
}

bool vmf_channel_finish(VmfChannel *channel, GError **error)
{
    return !channel->ops->finish || channel->ops->finish(channel, error);
}

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

size_t vmf_iov_length(const struct iovec *iov, int n)
{
    size_t length = 0;

    for (int i = 0; i < n; i++)
        length += iov[i].iov_len;
    return length;
}

int vmf_iov_head(struct iovec *out, const struct iovec *iov, int n, size_t limit)
{
    int i;

    for (i = 0; i < n && limit > 0; i++) {
        out[i] = iov[i];
        out[i].iov_len = MIN(iov[i].iov_len, limit);
        limit -= out[i].iov_len;
    }
    return i;
}

/* What is left of a vector. Between calls the first entry is not empty, unless nothing is left. */
typedef struct {
    struct iovec *iov;
    int n;
} Cursor;

static void advance(Cursor *rest, size_t done)
{
    while (rest->n > 0 && done >= rest->iov->iov_len) {
        done -= rest->iov->iov_len;
        rest->iov++;
        rest->n--;
    }
    if (done > 0) {
        rest->iov->iov_base = (char *)rest->iov->iov_base + done;
        rest->iov->iov_len -= done;
    }
}

static int cut_short(VmfChannel *channel, size_t got, size_t missing, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "%s: read: the stream ended: %zu of %zu bytes came", channel->name,
                got, got + missing);
    return -1;
}

static void expect(VmfChannel *channel, size_t bytes)
{
    if (channel->ops->expect)
        channel->ops->expect(channel, bytes);
}

/* Returns 1, 0 when the stream ended before the first byte, or -1. */
static int read_whole(VmfChannel *channel, Cursor rest, GError **error)
{
    size_t got = 0;

    advance(&rest, 0);
    while (rest.n > 0) {
        expect(channel, vmf_iov_length(rest.iov, rest.n));
        ssize_t n = channel->ops->readv(channel, rest.iov, MIN(rest.n, IOV_MAX), error);

        if (n < 0)
            return -1;
        if (n == 0)
            return got == 0 ? 0 : cut_short(channel, got, vmf_iov_length(rest.iov, rest.n), error);
        got += n;
        advance(&rest, n);
    }
    return 1;
}

static int read_cursor(VmfChannel *channel, Cursor rest, GError **error)
{
    int result = read_whole(channel, rest, error);

    expect(channel, 0);
    return result;
}

bool vmf_channel_readv_all(VmfChannel *channel, struct iovec *iov, int n, GError **error)
{
    int result = read_cursor(channel, (Cursor){iov, n}, error);

    if (result == 0)
        cut_short(channel, 0, vmf_iov_length(iov, n), error);
    return result > 0;
}

bool vmf_channel_read_all(VmfChannel *channel, void *buf, size_t len, GError **error)
{
    struct iovec iov = {buf, len};

    return vmf_channel_readv_all(channel, &iov, 1, error);
}

bool vmf_channel_read_all_or_end(VmfChannel *channel, void *buf, size_t len, bool *ended, GError **error)
{
    struct iovec iov = {buf, len};
    int result = read_cursor(channel, (Cursor){&iov, 1}, error);

    *ended = result == 0;
    return result >= 0;
}

bool vmf_channel_read_all_deadline(VmfChannel *channel, void *buf, size_t len, int64_t deadline_monotonic_ns,
                                   GError **error)
{
    struct iovec iov = {buf, len};

    while (iov.iov_len > 0) {
        int ready = vmf_channel_wait_readable(channel, vmf_time_left(deadline_monotonic_ns), error);
        ssize_t n;

        if (ready == 0)
            g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "%s: read: %zu of %zu bytes came in time", channel->name,
                        len - iov.iov_len, len);
        if (ready <= 0)
            return false;
        n = channel->ops->readv(channel, &iov, 1, error);
        if (n == 0)
            cut_short(channel, len - iov.iov_len, iov.iov_len, error);
        if (n <= 0)
            return false;
        iov = (struct iovec){(char *)iov.iov_base + n, iov.iov_len - n};
    }
    return true;
}

bool vmf_channel_writev_all(VmfChannel *channel, struct iovec *iov, int n, GError **error)
{
    Cursor rest = {iov, n};

    advance(&rest, 0);
    while (rest.n > 0) {
        ssize_t sent = channel->ops->writev(channel, rest.iov, MIN(rest.n, IOV_MAX), error);

        if (sent < 0)
            return false;
        advance(&rest, sent);
    }
    return true;
}

bool vmf_channel_write_all(VmfChannel *channel, const void *buf, size_t len, GError **error)
{
    struct iovec iov = {(void *)buf, len};

    return vmf_channel_writev_all(channel, &iov, 1, error);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static bool peer_is_gone(int err)
{
    switch (err) {
    case EPIPE:
    case ECONNRESET:
    case ECONNABORTED:
    case ENOTCONN:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
    case ENETRESET:
        return true;
    default:
        return false;
    }
}

int vmf_channel_error_errno(const VmfChannel *channel, const char *operation, int err, GError **error)
{
    g_set_error(error, VMF_ERROR, peer_is_gone(err) ? VMF_ERROR_CUT : VMF_ERROR_IO, "%s: %s: %s", channel->name,
                operation, g_strerror(err));
    return -1;
}

int vmf_channel_error_shut_down(const VmfChannel *channel, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: write: the channel was shut down", channel->name);
    return -1;
}

int vmf_channel_error_direction(const VmfChannel *channel, const char *operation, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: %s: the channel goes the other way", channel->name,
                operation);
    return -1;
}
