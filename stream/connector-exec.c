/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* exec: addresses: a command at either end. It is started when the channel is opened. */
#include "stream/channel-fd.h"
#include "stream/listener.h"

static VmfChannel *exec_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    return vmf_channel_exec_new(connector->uri->argument,
                                connector->one_way ? VMF_EXEC_WRITE : VMF_EXEC_WRITE | VMF_EXEC_READ, error);
}

static const VmfConnectorOps connector_ops = {.open = exec_open};

VmfConnector *vmf_connector_exec_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    VmfConnector *connector = g_new0(VmfConnector, 1);

    connector->ops = &connector_ops;
    connector->one_way = flags & VMF_CONNECT_ONE_WAY;
    connector->max_channels = 1;
    return connector;
}

static VmfChannel *exec_accept(VmfListener *listener, int64_t deadline_ns, GError **error)
{
    return vmf_channel_exec_new(listener->uri->argument,
                                listener->one_way ? VMF_EXEC_READ : VMF_EXEC_WRITE | VMF_EXEC_READ, error);
}

static const VmfListenerOps listener_ops = {.accept = exec_accept};

VmfListener *vmf_listener_exec_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    VmfListener *listener = g_new0(VmfListener, 1);

    listener->ops = &listener_ops;
    listener->one_way = flags & VMF_CONNECT_ONE_WAY;
    listener->max_channels = 1;
    return listener;
}
