/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A link between two hosts that fails, as all channels over it see it at once.
 *
 * A channel that was there when the link failed never comes back, also where the failure passes: a stream that has lost
 * bytes is of no use. Each filter is in the link's list for as long as it lives; what it is told is in its own fields,
 * under the link's lock.
 */
#include "stream/channel-wait.h"
#include "stream/filter-pass.h"

#include <errno.h>
#include <stdatomic.h>

#include "stream/clock.h"

struct VmfLink {
    atomic_uint references;
    pthread_mutex_t lock; /* of all that follows, and of `failed` and `down` of each channel */
    pthread_cond_t changed;
    GPtrArray *channels; /* LinkFilter; not owned */
    VmfLinkFailure how;
    int64_t until_ns; /* channels that are added before this fail as well; INT64_MAX: all */
};

typedef struct {
    VmfFilter filter;
    VmfLink *link; /* a reference */
    bool failed;   /* in the way of `how` */
    bool down;     /* vmf_channel_shutdown() was called */
    VmfLinkFailure how;
} LinkFilter;

VmfLink *vmf_link_new(void)
{
    VmfLink *link = g_new0(VmfLink, 1);

    atomic_init(&link->references, 1);
    pthread_mutex_init(&link->lock, NULL);
    vmf_cond_init(&link->changed);
    link->channels = g_ptr_array_new();
    return link;
}

static VmfLink *reference(VmfLink *link)
{
    atomic_fetch_add(&link->references, 1);
    return link;
}

void vmf_link_unref(VmfLink *link)
{
    if (!link || atomic_fetch_sub(&link->references, 1) > 1)
        return;
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->lock);
    g_ptr_array_unref(link->channels);
    g_free(link);
}

/* Lock held. */
static void fail(LinkFilter *channel, VmfLinkFailure how)
{
    if (channel->failed)
        return;
    channel->failed = true;
    channel->how = how;
    if (how == VMF_LINK_CUT)
        vmf_channel_shutdown(channel->filter.below);
}

void vmf_link_fail(VmfLink *link, VmfLinkFailure how, int64_t for_ns)
{
    pthread_mutex_lock(&link->lock);
    link->how = how;
    link->until_ns = vmf_deadline_after(for_ns);
    for (guint i = 0; i < link->channels->len; i++)
        fail(g_ptr_array_index(link->channels, i), how);
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
}

/* ---- the filter -------------------------------------------------------------------------------------------------- */

typedef enum { OPEN, CUT, SILENT, DOWN } Condition;

static Condition condition(LinkFilter *channel)
{
    pthread_mutex_lock(&channel->link->lock);
    Condition now = channel->down ? DOWN : !channel->failed ? OPEN : (channel->how == VMF_LINK_CUT ? CUT : SILENT);
    pthread_mutex_unlock(&channel->link->lock);
    return now;
}

/* Until shutdown: true; until @deadline_ns: false. */
static bool wait_for_shutdown(LinkFilter *channel, int64_t deadline_ns)
{
    bool in_time = true;

    pthread_mutex_lock(&channel->link->lock);
    while (!channel->down && in_time)
        in_time = vmf_cond_wait_until(&channel->link->changed, &channel->link->lock, deadline_ns);
    bool down = channel->down;
    pthread_mutex_unlock(&channel->link->lock);
    return down;
}

/* Bytes that come out of a link that has fallen silent meanwhile were on their way when it did, and are lost. */
static ssize_t link_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    LinkFilter *self = (LinkFilter *)channel;
    g_autoptr(GError) cause = NULL;
    ssize_t got = 0;

    if (condition(self) == OPEN)
        got = vmf_filter_pass_readv(channel, iov, n, &cause);
    switch (condition(self)) {
    case OPEN:
        if (cause)
            g_propagate_error(error, g_steal_pointer(&cause));
        return got;
    case SILENT:
        wait_for_shutdown(self, VMF_NEVER);
        return 0;
    default:
        return 0;
    }
}

static int link_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    LinkFilter *self = (LinkFilter *)channel;
    int64_t deadline = vmf_deadline_after(timeout_ns);
    g_autoptr(GError) cause = NULL;
    int readable = 1;

    if (condition(self) == OPEN)
        readable = vmf_filter_pass_wait_readable(channel, timeout_ns, &cause);
    switch (condition(self)) {
    case OPEN:
        if (cause)
            g_propagate_error(error, g_steal_pointer(&cause));
        return readable;
    case SILENT:
        return wait_for_shutdown(self, deadline);
    default:
        return 1; /* the end of the stream */
    }
}

static ssize_t link_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    LinkFilter *self = (LinkFilter *)channel;
    g_autoptr(GError) cause = NULL;
    ssize_t sent = 0;

    if (condition(self) == OPEN)
        sent = vmf_filter_pass_writev(channel, iov, n, &cause);
    switch (condition(self)) {
    case OPEN:
        if (cause)
            g_propagate_error(error, g_steal_pointer(&cause));
        return sent;
    case SILENT:
        return vmf_iov_length(iov, n);
    case CUT:
        return vmf_channel_error_errno(channel, "write", EPIPE, error);
    default:
        return vmf_channel_error_shut_down(channel, error);
    }
}

static void link_shutdown(VmfChannel *channel)
{
    LinkFilter *self = (LinkFilter *)channel;

    pthread_mutex_lock(&self->link->lock);
    self->down = true;
    pthread_cond_broadcast(&self->link->changed);
    pthread_mutex_unlock(&self->link->lock);
    vmf_filter_pass_shutdown(channel);
}

static void link_free(VmfChannel *channel)
{
    LinkFilter *self = (LinkFilter *)channel;

    pthread_mutex_lock(&self->link->lock);
    g_ptr_array_remove_fast(self->link->channels, self);
    pthread_mutex_unlock(&self->link->lock);
    vmf_filter_pass_free(channel);
    vmf_link_unref(self->link);
}

static const VmfChannelOps link_ops = {
    .kind = "link",
    .readv = link_readv,
    .writev = link_writev,
    .wait_readable = link_wait_readable,
    .has_room = vmf_filter_pass_has_room,
    .unsent_bytes = vmf_filter_pass_unsent_bytes,
    .finish = vmf_filter_pass_finish,
    .shutdown = link_shutdown,
    .free = link_free,
};

VmfChannel *vmf_filter_link(VmfChannel *below, VmfLink *link)
{
    LinkFilter *self = g_new0(LinkFilter, 1);

    vmf_filter_init(&self->filter, &link_ops, below);
    self->link = reference(link);
    pthread_mutex_lock(&link->lock);
    g_ptr_array_add(link->channels, self);
    if (link->until_ns > vmf_now_ns())
        fail(self, link->how);
    pthread_mutex_unlock(&link->lock);
    return &self->filter.base;
}
