/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fd: addresses: descriptors that somebody opened and handed over, for either end. A socket goes both ways, a pipe one.
 *
 * The descriptor is taken over when the connector (listener) was made: it is closed with the channel, or with the
 * connector when no channel was opened.
 */
#include "stream/channel-fd.h"
#include "stream/connector-address.h"
#include "stream/listener.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Who speaks over a TCP connection that others made is as naked as over our own. */
static bool socket_is_allowed(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    struct sockaddr_storage peer = {0};
    socklen_t length = sizeof(peer);

    if (!vmf_socket_is_usable(uri->fd, uri->text, error))
        return false;
    getpeername(uri->fd, (struct sockaddr *)&peer, &length);
    if ((flags & VMF_CONNECT_INSECURE) || (peer.ss_family != AF_INET && peer.ss_family != AF_INET6))
        return true;
    return vmf_addresses_are_private(uri, &(struct addrinfo){.ai_addr = (struct sockaddr *)&peer, .ai_addrlen = length},
                                     error);
}

bool vmf_fd_check(const VmfUri *uri, VmfFdUse use, VmfConnectFlags flags, bool *is_socket, GError **error)
{
    static const int wrong_way[] = {[VMF_FD_TO_WRITE] = O_RDONLY, [VMF_FD_TO_READ] = O_WRONLY};
    struct stat st;
    int mode = fcntl(uri->fd, F_GETFL);

    *is_socket = false;
    if (mode < 0 || fstat(uri->fd, &st) < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: open: the descriptor is not open", uri->text);
        return false;
    }
    *is_socket = S_ISSOCK(st.st_mode);
    if (*is_socket)
        return socket_is_allowed(uri, flags, error);
    if ((mode & O_ACCMODE) != wrong_way[use] && !S_ISDIR(st.st_mode))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: open: the descriptor cannot be %s", uri->text,
                use == VMF_FD_TO_WRITE ? "written" : "read");
    return false;
}

/* ---- the sending end -------------------------------------------------------------------------------------------- */

static VmfChannel *fd_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    return vmf_channel_from_fd(connector->uri->fd, connector->uri->text, connector->one_way, error);
}

static void fd_connector_free(VmfConnector *connector)
{
    if (connector->opened == 0)
        close(connector->uri->fd);
}

static const VmfConnectorOps connector_ops = {.open = fd_open, .free = fd_connector_free};

VmfConnector *vmf_connector_fd_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    VmfConnector *connector;
    bool is_socket;

    if (!vmf_fd_check(uri, VMF_FD_TO_WRITE, flags, &is_socket, error))
        return NULL;
    connector = g_new0(VmfConnector, 1);
    connector->ops = &connector_ops;
    connector->one_way = !is_socket || (flags & VMF_CONNECT_ONE_WAY);
    connector->max_channels = 1;
    return connector;
}

/* ---- the receiving end ------------------------------------------------------------------------------------------ */

static VmfChannel *fd_accept(VmfListener *listener, int64_t deadline_ns, GError **error)
{
    return vmf_channel_from_fd(listener->uri->fd, listener->uri->text, listener->one_way, error);
}

static void fd_listener_free(VmfListener *listener)
{
    if (listener->accepted == 0)
        close(listener->uri->fd);
}

static const VmfListenerOps listener_ops = {.accept = fd_accept, .free = fd_listener_free};

VmfListener *vmf_listener_fd_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    VmfListener *listener;
    bool is_socket;

    if (!vmf_fd_check(uri, VMF_FD_TO_READ, flags, &is_socket, error))
        return NULL;
    listener = g_new0(VmfListener, 1);
    listener->ops = &listener_ops;
    listener->one_way = !is_socket || (flags & VMF_CONNECT_ONE_WAY);
    listener->max_channels = 1;
    return listener;
}
