/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/filter-pass.h"

static VmfChannel *below(VmfChannel *channel)
{
    return ((VmfFilter *)channel)->below;
}

void vmf_filter_init(VmfFilter *filter, const VmfChannelOps *ops, VmfChannel *to)
{
    vmf_channel_init(&filter->base, ops, to->name, to->one_way);
    filter->below = to;
}

ssize_t vmf_filter_pass_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    return below(channel)->ops->readv(below(channel), iov, n, error);
}

ssize_t vmf_filter_pass_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    return below(channel)->ops->writev(below(channel), iov, n, error);
}

int vmf_filter_pass_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    return vmf_channel_wait_readable(below(channel), timeout_ns, error);
}

bool vmf_filter_pass_has_room(VmfChannel *channel)
{
    return vmf_channel_has_room(below(channel));
}

uint64_t vmf_filter_pass_unsent_bytes(VmfChannel *channel)
{
    return vmf_channel_unsent_bytes(below(channel));
}

bool vmf_filter_pass_finish(VmfChannel *channel, GError **error)
{
    return vmf_channel_finish(below(channel), error);
}

void vmf_filter_pass_shutdown(VmfChannel *channel)
{
    vmf_channel_shutdown(below(channel));
}

void vmf_filter_pass_free(VmfChannel *channel)
{
    vmf_channel_free(below(channel));
}
