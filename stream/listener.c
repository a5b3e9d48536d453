/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/listener.h"

static VmfListener *(*const constructors[])(const VmfUri *uri, VmfConnectFlags flags, GError **error) = {
    [VMF_URI_TCP] = vmf_listener_tcp_new,   [VMF_URI_UNIX] = vmf_listener_unix_new, [VMF_URI_FD] = vmf_listener_fd_new,
    [VMF_URI_EXEC] = vmf_listener_exec_new, [VMF_URI_FILE] = vmf_listener_file_new,
};

VmfListener *vmf_listener_new(const char *uri, VmfConnectFlags flags, GError **error)
{
    g_autoptr(VmfUri) parsed = vmf_uri_parse(uri, error);
    g_autoptr(VmfListener) listener = NULL;

    if (!parsed)
        return NULL;
    listener = constructors[parsed->kind](parsed, flags, error);
    if (!listener)
        return NULL;
    listener->uri = g_steal_pointer(&parsed);
    listener->flags = flags;
    /* Not before: the eventfd might get the very number that an fd: address speaks of. */
    return vmf_wake_init(&listener->wake, error) ? g_steal_pointer(&listener) : NULL;
}

void vmf_listener_free(VmfListener *listener)
{
    if (!listener)
        return;
    if (listener->ops->free)
        listener->ops->free(listener);
    vmf_wake_clear(&listener->wake);
    vmf_uri_free(listener->uri);
    g_free(listener->bound_uri);
    g_free(listener);
}

const char *vmf_listener_uri(const VmfListener *listener)
{
    return listener->bound_uri ? listener->bound_uri : listener->uri->text;
}

bool vmf_listener_is_shut_down(VmfListener *listener, GError **error)
{
    if (!vmf_wake_is_thrown(&listener->wake))
        return false;
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: accept: the listener was shut down",
                vmf_listener_uri(listener));
    return true;
}

void vmf_listener_error_timeout(VmfListener *listener, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "%s: accept: nobody came in time", vmf_listener_uri(listener));
}

VmfChannel *vmf_listener_accept(VmfListener *listener, int64_t timeout_ns, GError **error)
{
    VmfChannel *channel;

    if (vmf_listener_is_shut_down(listener, error))
        return NULL;
    if (listener->accepted >= listener->max_channels) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: accept: it gives one channel only",
                    vmf_listener_uri(listener));
        return NULL;
    }
    channel = listener->ops->accept(listener, vmf_deadline_after(timeout_ns), error);
    if (!channel)
        return NULL;
    listener->accepted++;
    return listener->wrap ? listener->wrap(channel, listener->accepted - 1, listener->wrap_opaque) : channel;
}

bool vmf_listener_is_one_way(const VmfListener *listener)
{
    return listener->one_way;
}

unsigned vmf_listener_max_channels(const VmfListener *listener)
{
    return listener->max_channels;
}

void vmf_listener_set_wrap(VmfListener *listener, VmfChannelWrap wrap, void *opaque)
{
    listener->wrap = wrap;
    listener->wrap_opaque = opaque;
}

void vmf_listener_shutdown(VmfListener *listener)
{
    vmf_wake_throw(&listener->wake);
    if (listener->ops->shutdown)
        listener->ops->shutdown(listener);
}
