/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connecting to tcp: and unix: addresses. */
#include "stream/connector.h"
#include "stream/channel-fd.h"
#include "stream/connector-address.h"

#include <errno.h>
#include <unistd.h>

/* A unix listener whose backlog is full refuses with EAGAIN, and nothing can be polled for: try again this often. */
#define BACKLOG_RETRY_NS (5 * 1000 * 1000)

static void connect_error(VmfConnector *connector, int err, GError **error)
{
    if (vmf_connector_is_shut_down(connector, error))
        return;
    g_set_error(error, VMF_ERROR, err == ETIME ? VMF_ERROR_TIMEOUT : VMF_ERROR_CONNECT, "%s: connect: %s",
                connector->uri->text, err == ETIME ? "no answer in time" : g_strerror(err));
}

/* Waits for a connection in progress. Returns 0 or an errno; ETIME is our own deadline, ETIMEDOUT the kernel's. */
static int wait_connected(VmfConnector *connector, int fd, int64_t deadline_ns)
{
    int err = 0, ready = vmf_wake_poll(&connector->wake, fd, POLLOUT, deadline_ns);
    socklen_t length = sizeof(err);

    if (ready < 0)
        return errno;
    if (ready == 0)
        return ETIME;
    if (vmf_wake_is_thrown(&connector->wake))
        return ECANCELED;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0 ? errno : err;
}

static int connect_until(VmfConnector *connector, int fd, const struct sockaddr *address, socklen_t length,
                         int64_t deadline_ns)
{
    while (connect(fd, address, length) < 0) {
        if (errno == EINPROGRESS || errno == EINTR)
            return wait_connected(connector, fd, deadline_ns);
        if (errno != EAGAIN || address->sa_family != AF_UNIX)
            return errno;
        if (vmf_time_left(deadline_ns) == 0)
            return ETIME;
        if (vmf_wake_poll(&connector->wake, -1, 0, vmf_deadline_after(BACKLOG_RETRY_NS)) != 0)
            return ECANCELED;
    }
    return 0;
}

/* Returns a connected descriptor or -1 with *@err. */
static int connect_one(VmfConnector *connector, const struct sockaddr *address, socklen_t length, int64_t deadline_ns,
                       int *err)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    *err = fd < 0 ? errno : connect_until(connector, fd, address, length, deadline_ns);
    if (*err == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* An address that never answers leaves time for those after it. */
static int64_t share_of(int64_t deadline_ns, const VmfAddresses *rest)
{
    int64_t n = 0;

    if (deadline_ns == VMF_NEVER)
        return VMF_NEVER;
    for (; rest; rest = rest->ai_next)
        n++;
    return vmf_deadline_after(vmf_time_left(deadline_ns) / n);
}

static VmfChannel *tcp_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    g_autoptr(VmfAddresses) list = vmf_resolve(connector->uri, 0, error);
    int err = 0;

    if (!list)
        return NULL;
    if (!(connector->flags & VMF_CONNECT_INSECURE) && !vmf_addresses_are_private(connector->uri, list, error))
        return NULL;
    for (const VmfAddresses *at = list; at && err != ECANCELED; at = at->ai_next) {
        int fd = connect_one(connector, at->ai_addr, at->ai_addrlen, share_of(deadline_ns, at), &err);

        if (fd >= 0)
            return vmf_channel_socket_new(fd, connector->uri->text, connector->one_way);
    }
    connect_error(connector, err, error);
    return NULL;
}

static VmfChannel *unix_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    struct sockaddr_un address = vmf_address_unix(connector->uri->argument);
    int err, fd = connect_one(connector, (struct sockaddr *)&address, sizeof(address), deadline_ns, &err);

    if (fd >= 0)
        return vmf_channel_socket_new(fd, connector->uri->text, connector->one_way);
    connect_error(connector, err, error);
    return NULL;
}

static const VmfConnectorOps tcp_ops = {.open = tcp_open};
static const VmfConnectorOps unix_ops = {.open = unix_open};

static VmfConnector *socket_connector(const VmfConnectorOps *ops, VmfConnectFlags flags)
{
    VmfConnector *connector = g_new0(VmfConnector, 1);

    connector->ops = ops;
    connector->one_way = flags & VMF_CONNECT_ONE_WAY;
    connector->max_channels = G_MAXUINT;
    return connector;
}

/* What needs no name server is refused here already, before anybody prepares a migration; names are looked at when
 * opening. */
static bool is_allowed(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    g_autoptr(VmfAddresses) list = NULL;

    if (flags & VMF_CONNECT_INSECURE)
        return true;
    list = vmf_resolve(uri, VMF_RESOLVE_NUMERIC_ONLY, NULL);
    return vmf_addresses_are_private(uri, list, error);
}

VmfConnector *vmf_connector_tcp_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    const char *missing = !*uri->host ? "host" : uri->port == 0 ? "port" : NULL;

    if (missing) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: parse: connecting needs a %s", uri->text, missing);
        return NULL;
    }
    return is_allowed(uri, flags, error) ? socket_connector(&tcp_ops, flags) : NULL;
}

VmfConnector *vmf_connector_unix_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    return socket_connector(&unix_ops, flags);
}
