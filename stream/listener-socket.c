/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Listening on tcp: and unix: addresses.
 *
 * A host name that stands for several addresses is bound to the first that works; who connects by the same name tries
 * them all. An empty host is bound once, for both IPv6 and IPv4.
 */
#include "stream/listener.h"
#include "stream/channel-fd.h"
#include "stream/connector-address.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

/* All page channels of a migration, and a crowd of strangers at once: whom a full backlog drops calls again after a second. */
#define BACKLOG 4096

typedef struct {
    VmfListener base;
    int fd;
    dev_t path_dev; /* unix: the socket file that we made */
    ino_t path_ino;
} SocketListener;

/* The connection went away again before it was accepted, or its network is in trouble: the next one may be better. */
static bool is_somebody_elses_trouble(int err)
{
    switch (err) {
    case EINTR:
    case EAGAIN:
    case ECONNABORTED:
    case EPROTO:
    case EPERM:
    case ENETDOWN:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENOPROTOOPT:
    case ENONET:
        return true;
    default:
        return false;
    }
}

static VmfChannel *accepted_channel(SocketListener *listener, int fd, const struct sockaddr_storage *peer,
                                    socklen_t length)
{
    g_autofree char *name = NULL;

    name = peer->ss_family == AF_UNIX ? g_strdup(vmf_listener_uri(&listener->base))
                                      : vmf_address_uri((const struct sockaddr *)peer, length);
    return vmf_channel_socket_new(fd, name, listener->base.one_way);
}

static VmfChannel *socket_accept(VmfListener *base, int64_t deadline_ns, GError **error)
{
    SocketListener *listener = (SocketListener *)base;

    for (;;) {
        struct sockaddr_storage peer = {0};
        socklen_t length = sizeof(peer);
        int ready, fd = accept4(listener->fd, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC);

        if (fd >= 0)
            return accepted_channel(listener, fd, &peer, length);
        if (!is_somebody_elses_trouble(errno)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: accept: %s", vmf_listener_uri(base), g_strerror(errno));
            return NULL;
        }
        ready = vmf_wake_poll(&base->wake, listener->fd, POLLIN, deadline_ns);
        if (vmf_listener_is_shut_down(base, error))
            return NULL;
        if (ready == 0) {
            vmf_listener_error_timeout(base, error);
            return NULL;
        }
    }
}

static void socket_listener_free(VmfListener *base)
{
    SocketListener *listener = (SocketListener *)base;
    struct stat st;

    if (listener->fd >= 0)
        close(listener->fd);
    /* Somebody may have replaced the socket since: theirs stays. */
    if (listener->path_ino && lstat(base->uri->argument, &st) == 0 && st.st_ino == listener->path_ino &&
        st.st_dev == listener->path_dev)
        unlink(base->uri->argument);
}

static const VmfListenerOps socket_ops = {.accept = socket_accept, .free = socket_listener_free};

static SocketListener *socket_listener(int fd, VmfConnectFlags flags)
{
    SocketListener *listener = g_new0(SocketListener, 1);

    listener->base.ops = &socket_ops;
    listener->base.one_way = flags & VMF_CONNECT_ONE_WAY;
    listener->base.max_channels = G_MAXUINT;
    listener->fd = fd;
    return listener;
}

static void listen_error(const VmfUri *uri, const char *operation, int err, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CONNECT, "%s: %s: %s", uri->text, operation, g_strerror(err));
}

static int new_socket(int family)
{
    return socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* ---- tcp -------------------------------------------------------------------------------------------------------- */

static int bind_tcp(const VmfAddresses *at)
{
    int on = 1, off = 0, err, fd = new_socket(at->ai_family);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (at->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    err = errno;
    close(fd);
    errno = err;
    return -1;
}

/* IPv6 first: for an empty host it is the one that serves IPv4 too. */
static int bind_first(const VmfAddresses *list)
{
    static const int families[] = {AF_INET6, AF_INET};
    int err = EADDRNOTAVAIL;

    for (size_t i = 0; i < G_N_ELEMENTS(families); i++) {
        for (const VmfAddresses *at = list; at; at = at->ai_next) {
            int fd = at->ai_family == families[i] ? bind_tcp(at) : -1;

            if (fd >= 0)
                return fd;
            if (at->ai_family == families[i])
                err = errno;
        }
    }
    errno = err;
    return -1;
}

static char *bound_uri(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);

    getsockname(fd, (struct sockaddr *)&address, &length);
    return vmf_address_uri((struct sockaddr *)&address, length);
}

VmfListener *vmf_listener_tcp_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    g_autoptr(VmfAddresses) list = vmf_resolve(uri, VMF_RESOLVE_PASSIVE, error);
    SocketListener *listener;
    int fd;

    if (!list)
        return NULL;
    if (!(flags & VMF_CONNECT_INSECURE) && !vmf_addresses_are_private(uri, list, error))
        return NULL;
    fd = bind_first(list);
    if (fd < 0) {
        listen_error(uri, "listen", errno, error);
        return NULL;
    }
    listener = socket_listener(fd, flags);
    listener->base.bound_uri = bound_uri(fd);
    return &listener->base;
}

/* ---- unix ------------------------------------------------------------------------------------------------------- */

/* A socket file that nobody listens on any more is what a killed process leaves behind. */
static bool is_stale(const struct sockaddr_un *address)
{
    struct stat st;
    bool refused;
    int fd;

    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    fd = new_socket(AF_UNIX);
    refused = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    return refused;
}

static bool bind_unix(int fd, const VmfUri *uri, GError **error)
{
    struct sockaddr_un address = vmf_address_unix(uri->argument);
    int result = bind(fd, (struct sockaddr *)&address, sizeof(address));

    if (result < 0 && errno == EADDRINUSE && is_stale(&address)) {
        unlink(address.sun_path);
        result = bind(fd, (struct sockaddr *)&address, sizeof(address));
    }
    /* Nobody can connect before listen(), so nobody gets in ahead of the mode. */
    if (result == 0 && chmod(address.sun_path, 0600) == 0 && listen(fd, BACKLOG) == 0)
        return true;
    listen_error(uri, "listen", errno, error);
    if (result == 0)
        unlink(address.sun_path);
    return false;
}

VmfListener *vmf_listener_unix_new(const VmfUri *uri, VmfConnectFlags flags, GError **error)
{
    SocketListener *listener;
    struct stat st;
    int fd = new_socket(AF_UNIX);

    if (fd < 0) {
        listen_error(uri, "socket", errno, error);
        return NULL;
    }
    if (!bind_unix(fd, uri, error)) {
        close(fd);
        return NULL;
    }
    listener = socket_listener(fd, flags);
    if (lstat(uri->argument, &st) == 0) {
        listener->path_dev = st.st_dev;
        listener->path_ino = st.st_ino;
    }
    return &listener->base;
}
