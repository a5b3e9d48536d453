/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a filter is made of: the channel below, and a table entry for everything that it leaves alone. */
#ifndef VMF_STREAM_FILTER_PASS_H
#define VMF_STREAM_FILTER_PASS_H

#include "stream/channel.h"

typedef struct {
    VmfChannel base;
    VmfChannel *below; /* owned */
} VmfFilter;

/* The filter takes the name of what is below. */
void vmf_filter_init(VmfFilter *filter, const VmfChannelOps *ops, VmfChannel *below);

ssize_t vmf_filter_pass_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error);
ssize_t vmf_filter_pass_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error);
int vmf_filter_pass_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error);
bool vmf_filter_pass_has_room(VmfChannel *channel);
uint64_t vmf_filter_pass_unsent_bytes(VmfChannel *channel);
bool vmf_filter_pass_finish(VmfChannel *channel, GError **error);
void vmf_filter_pass_shutdown(VmfChannel *channel);
void vmf_filter_pass_free(VmfChannel *channel);

#endif
