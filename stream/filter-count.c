/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/filter-pass.h"

#include <stdatomic.h>

typedef struct {
    VmfFilter filter;
    _Atomic uint64_t sent;
    _Atomic uint64_t received;
} CountFilter;

static ssize_t count_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    ssize_t got = vmf_filter_pass_readv(channel, iov, n, error);

    if (got > 0)
        atomic_fetch_add_explicit(&((CountFilter *)channel)->received, got, memory_order_relaxed);
    return got;
}

static ssize_t count_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    ssize_t sent = vmf_filter_pass_writev(channel, iov, n, error);

    if (sent > 0)
        atomic_fetch_add_explicit(&((CountFilter *)channel)->sent, sent, memory_order_relaxed);
    return sent;
}

static const VmfChannelOps count_ops = {
    .kind = "count",
    .readv = count_readv,
    .writev = count_writev,
    .wait_readable = vmf_filter_pass_wait_readable,
    .has_room = vmf_filter_pass_has_room,
    .unsent_bytes = vmf_filter_pass_unsent_bytes,
    .finish = vmf_filter_pass_finish,
    .shutdown = vmf_filter_pass_shutdown,
    .free = vmf_filter_pass_free,
};

VmfChannel *vmf_filter_count(VmfChannel *below)
{
    CountFilter *count = g_new0(CountFilter, 1);

    vmf_filter_init(&count->filter, &count_ops, below);
    return &count->filter.base;
}

uint64_t vmf_filter_count_sent(VmfChannel *filter)
{
    return atomic_load_explicit(&((CountFilter *)filter)->sent, memory_order_relaxed);
}

uint64_t vmf_filter_count_received(VmfChannel *filter)
{
    return atomic_load_explicit(&((CountFilter *)filter)->received, memory_order_relaxed);
}
