/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connector and a listener in one process, over memory channels. What is opened waits in a queue until it is
 * accepted, as in a socket's backlog; the queue outlives whichever end is freed first.
 */
#include "stream/listener.h"

#define BACKLOG 128

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    GQueue waiting; /* of VmfChannel: the listener's ends */
    size_t capacity;
    bool closed; /* the listener is gone or shut down */
    int ends;
} Link;

typedef struct {
    VmfConnector base;
    Link *link;
} LinkConnector;

typedef struct {
    VmfListener base;
    Link *link;
} LinkListener;

static void link_close(Link *link)
{
    pthread_mutex_lock(&link->lock);
    link->closed = true;
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
}

static void link_unref(Link *link)
{
    int left;

    pthread_mutex_lock(&link->lock);
    left = --link->ends;
    pthread_mutex_unlock(&link->lock);
    if (left > 0)
        return;
    g_queue_clear_full(&link->waiting, (GDestroyNotify)vmf_channel_free);
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->lock);
    g_free(link);
}

static VmfChannel *link_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    Link *link = ((LinkConnector *)connector)->link;
    VmfChannel *here, *there;
    bool accepted;

    vmf_channel_memory_pair(link->capacity, &here, &there);
    pthread_mutex_lock(&link->lock);
    accepted = !link->closed && link->waiting.length < BACKLOG;
    if (accepted)
        g_queue_push_tail(&link->waiting, there);
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
    if (accepted)
        return here;
    vmf_channel_free(here);
    vmf_channel_free(there);
    g_set_error(error, VMF_ERROR, VMF_ERROR_CONNECT, "memory: connect: nobody accepts");
    return NULL;
}

static VmfChannel *link_accept(VmfListener *listener, int64_t deadline_ns, GError **error)
{
    Link *link = ((LinkListener *)listener)->link;
    VmfChannel *channel;
    bool in_time = true;

    pthread_mutex_lock(&link->lock);
    while (!link->closed && g_queue_is_empty(&link->waiting) && in_time)
        in_time = vmf_cond_wait_until(&link->changed, &link->lock, deadline_ns);
    channel = link->closed ? NULL : g_queue_pop_head(&link->waiting);
    pthread_mutex_unlock(&link->lock);
    if (!channel && !vmf_listener_is_shut_down(listener, error))
        vmf_listener_error_timeout(listener, error);
    return channel;
}

static void link_shutdown(VmfListener *listener)
{
    link_close(((LinkListener *)listener)->link);
}

static void link_connector_free(VmfConnector *connector)
{
    link_unref(((LinkConnector *)connector)->link);
}

/* Who was never accepted sees the end of the stream now, not when the connector goes. */
static void link_listener_free(VmfListener *listener)
{
    Link *link = ((LinkListener *)listener)->link;

    link_close(link);
    g_queue_clear_full(&link->waiting, (GDestroyNotify)vmf_channel_free);
    link_unref(link);
}

static const VmfConnectorOps connector_ops = {.open = link_open, .free = link_connector_free};
static const VmfListenerOps listener_ops = {
    .accept = link_accept, .shutdown = link_shutdown, .free = link_listener_free};

static Link *link_new(size_t capacity)
{
    Link *link = g_new0(Link, 1);

    pthread_mutex_init(&link->lock, NULL);
    vmf_cond_init(&link->changed);
    g_queue_init(&link->waiting);
    link->capacity = capacity;
    link->ends = 2;
    return link;
}

void vmf_memory_link_new(size_t capacity, VmfConnector **connector, VmfListener **listener)
{
    LinkConnector *from = g_new0(LinkConnector, 1);
    LinkListener *to = g_new0(LinkListener, 1);

    from->link = to->link = link_new(capacity);
    from->base.ops = &connector_ops;
    from->base.max_channels = G_MAXUINT;
    to->base.ops = &listener_ops;
    to->base.max_channels = G_MAXUINT;
    to->base.bound_uri = g_strdup("memory:");
    /* Without a descriptor left for it only the flag is there, and nothing here polls. */
    vmf_wake_init(&from->base.wake, NULL);
    vmf_wake_init(&to->base.wake, NULL);
    *connector = &from->base;
    *listener = &to->base;
}
