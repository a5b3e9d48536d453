/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/channel-bytes.h"

#include <string.h>

typedef struct {
    VmfChannel base;
    const uint8_t *data; /* reading */
    size_t length, position;
    GByteArray *into; /* writing */
} BytesChannel;

static ssize_t bytes_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    BytesChannel *bytes = (BytesChannel *)channel;
    size_t done = 0;

    if (bytes->into)
        return vmf_channel_error_direction(channel, "read", error);
    for (int i = 0; i < n && bytes->position < bytes->length; i++) {
        size_t length = MIN(iov[i].iov_len, bytes->length - bytes->position);
        if (length > 0)
            memcpy(iov[i].iov_base, bytes->data + bytes->position, length);
        bytes->position += length;
        done += length;
    }
    return (ssize_t)done;
}

static ssize_t bytes_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    BytesChannel *bytes = (BytesChannel *)channel;
    size_t done = 0;

    if (!bytes->into)
        return vmf_channel_error_direction(channel, "write", error);
    for (int i = 0; i < n; i++) {
        if (iov[i].iov_len > G_MAXUINT / 2 - bytes->into->len) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%s: write: more than memory is meant to hold",
                        channel->name);
            return -1;
        }
        if (iov[i].iov_len > 0)
            g_byte_array_append(bytes->into, iov[i].iov_base, (guint)iov[i].iov_len);
        done += iov[i].iov_len;
    }
    return (ssize_t)done;
}

/* Nothing here waits. */
static int bytes_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    return 1;
}

static void bytes_shutdown(VmfChannel *channel)
{
}

static void bytes_free(VmfChannel *channel)
{
}

static const VmfChannelOps ops = {
    .kind = "bytes",
    .readv = bytes_readv,
    .writev = bytes_writev,
    .wait_readable = bytes_wait_readable,
    .shutdown = bytes_shutdown,
    .free = bytes_free,
};

static BytesChannel *bytes_channel(const char *name)
{
    BytesChannel *bytes = g_new0(BytesChannel, 1);

    vmf_channel_init(&bytes->base, &ops, name, true);
    return bytes;
}

VmfChannel *vmf_channel_of_bytes(const void *data, size_t length, const char *name)
{
    BytesChannel *bytes = bytes_channel(name);

    bytes->data = data;
    bytes->length = length;
    return &bytes->base;
}

size_t vmf_channel_bytes_position(const VmfChannel *channel)
{
    return ((const BytesChannel *)channel)->position;
}

VmfChannel *vmf_channel_into_bytes(GByteArray *bytes, const char *name)
{
    BytesChannel *channel = bytes_channel(name);

    channel->into = bytes;
    return &channel->base;
}
