/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/connector.h"

static VmfConnector *(*const constructors[])(const VmfUri *uri, VmfConnectFlags flags, GError **error) = {
    [VMF_URI_TCP] = vmf_connector_tcp_new,   [VMF_URI_UNIX] = vmf_connector_unix_new,
    [VMF_URI_FD] = vmf_connector_fd_new,     [VMF_URI_EXEC] = vmf_connector_exec_new,
    [VMF_URI_FILE] = vmf_connector_file_new,
};

VmfConnector *vmf_connector_new(const char *uri, VmfConnectFlags flags, GError **error)
{
    g_autoptr(VmfUri) parsed = vmf_uri_parse(uri, error);
    g_autoptr(VmfConnector) connector = NULL;

    if (!parsed)
        return NULL;
    connector = constructors[parsed->kind](parsed, flags, error);
    if (!connector)
        return NULL;
    connector->uri = g_steal_pointer(&parsed);
    connector->flags = flags;
    /* Not before: the eventfd might get the very number that an fd: address speaks of. */
    return vmf_wake_init(&connector->wake, error) ? g_steal_pointer(&connector) : NULL;
}

void vmf_connector_free(VmfConnector *connector)
{
    if (!connector)
        return;
    if (connector->ops->free)
        connector->ops->free(connector);
    vmf_wake_clear(&connector->wake);
    vmf_uri_free(connector->uri);
    g_free(connector);
}

static const char *name_of(const VmfConnector *connector)
{
    return connector->uri ? connector->uri->text : "memory";
}

bool vmf_connector_is_shut_down(VmfConnector *connector, GError **error)
{
    if (!vmf_wake_is_thrown(&connector->wake))
        return false;
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: open: cancelled", name_of(connector));
    return true;
}

VmfChannel *vmf_connector_open(VmfConnector *connector, int64_t timeout_ns, GError **error)
{
    VmfChannel *channel;

    if (vmf_connector_is_shut_down(connector, error))
        return NULL;
    if (connector->opened >= connector->max_channels) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: open: it gives one channel only", name_of(connector));
        return NULL;
    }
    channel = connector->ops->open(connector, vmf_deadline_after(timeout_ns), error);
    if (!channel)
        return NULL;
    connector->opened++;
    return connector->wrap ? connector->wrap(channel, connector->opened - 1, connector->wrap_opaque) : channel;
}

void vmf_connector_shutdown(VmfConnector *connector)
{
    vmf_wake_throw(&connector->wake);
}

bool vmf_connector_is_one_way(const VmfConnector *connector)
{
    return connector->one_way;
}

unsigned vmf_connector_max_channels(const VmfConnector *connector)
{
    return connector->max_channels;
}

void vmf_connector_set_wrap(VmfConnector *connector, VmfChannelWrap wrap, void *opaque)
{
    connector->wrap = wrap;
    connector->wrap_opaque = opaque;
}
