/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* file: addresses: a stream that is kept. Written by a connector, read by a listener. */
#include "stream/channel-fd.h"
#include "stream/listener.h"

static VmfChannel *file_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    return vmf_channel_file_write_new(connector->uri->argument, error);
}

static const VmfConnectorOps connector_ops = {.open = file_open};

VmfConnector *vmf_connector_file_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    VmfConnector *connector = g_new0(VmfConnector, 1);

    connector->ops = &connector_ops;
    connector->one_way = true;
    connector->max_channels = 1;
    return connector;
}

typedef struct {
    VmfListener base;
    VmfChannel *file; /* until it is accepted */
} FileListener;

static VmfChannel *file_accept(VmfListener *listener, int64_t deadline_ns, GError **error)
{
    return g_steal_pointer(&((FileListener *)listener)->file);
}

static void file_listener_free(VmfListener *listener)
{
    vmf_channel_free(((FileListener *)listener)->file);
}

static const VmfListenerOps listener_ops = {.accept = file_accept, .free = file_listener_free};

/* Opened here already: that a file is missing is known before a machine is built for it. */
VmfListener *vmf_listener_file_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    VmfChannel *file = vmf_channel_file_read_new(uri->argument, error);
    FileListener *listener;

    if (!file)
        return NULL;
    listener = g_new0(FileListener, 1);
    listener->base.ops = &listener_ops;
    listener->base.one_way = true;
    listener->base.max_channels = 1;
    listener->file = file;
    return &listener->base;
}
