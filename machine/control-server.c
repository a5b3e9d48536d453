/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/control-server.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <vmferry/error.h>

#define FLUSH_TIMEOUT_MS 1000

struct VmfControlServer {
    int fd;
    char *path;
    const VmfControlServerOps *ops;
    void *opaque;
    GPtrArray *clients; /* of VmfControlClient, owned */
    GPtrArray *gone;    /* those to be freed once no call of theirs is on the stack */
    guint watch, sweep;
};

static json_t *on_request(void *opaque, VmfControlClient *client, json_t *request, const char *problem)
{
    VmfControlServer *server = opaque;

    return server->ops->request(server->opaque, client, request, problem);
}

static gboolean sweep(void *opaque)
{
    VmfControlServer *server = opaque;

    server->sweep = 0;
    g_ptr_array_set_size(server->gone, 0);
    return G_SOURCE_REMOVE;
}

static void on_gone(void *opaque, VmfControlClient *client)
{
    VmfControlServer *server = opaque;
    guint index;

    if (g_ptr_array_find(server->clients, client, &index))
        g_ptr_array_add(server->gone, g_ptr_array_steal_index(server->clients, index));
    if (!server->sweep)
        server->sweep = g_idle_add(sweep, server);
}

static const VmfControlClientOps client_ops = {.request = on_request, .gone = on_gone};

static gboolean on_connection(int listen_fd, GIOCondition condition, void *opaque)
{
    VmfControlServer *server = opaque;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    VmfControlClient *client;
    json_t *greeting;

    if (fd < 0)
        return G_SOURCE_CONTINUE;
    if (server->clients->len >= VMF_CONTROL_CLIENTS_MAX) {
        close(fd);
        return G_SOURCE_CONTINUE;
    }
    client = vmf_control_client_new(fd, &client_ops, server);
    g_ptr_array_add(server->clients, client);
    greeting = server->ops->greeting(server->opaque);
    vmf_control_client_send(client, greeting);
    json_decref(greeting);
    return G_SOURCE_CONTINUE;
}

static int listen_at(const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "control socket: %s: the path is longer than %zu bytes", path,
                    sizeof(address.sun_path) - 1);
        return -1;
    }
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(path);
    /* The mode of the socket becomes that of its name, without a moment in which others could connect. */
    if (fd < 0 || fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, SOMAXCONN) < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "control socket: %s: %s", path, g_strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

VmfControlServer *vmf_control_server_new(const char *path, const VmfControlServerOps *ops, void *opaque, GError **error)
{
    int fd = listen_at(path, error);
    VmfControlServer *server;

    if (fd < 0)
        return NULL;
    server = g_new0(VmfControlServer, 1);
    server->fd = fd;
    server->path = g_strdup(path);
    server->ops = ops;
    server->opaque = opaque;
    server->clients = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_control_client_free);
    server->gone = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_control_client_free);
    server->watch = g_unix_fd_add(fd, G_IO_IN, on_connection, server);
    return server;
}

void vmf_control_server_free(VmfControlServer *server)
{
    int64_t deadline_ms;

    if (!server)
        return;
    deadline_ms = g_get_monotonic_time() / 1000 + FLUSH_TIMEOUT_MS;
    g_source_remove(server->watch);
    /* Flushing may drop a client, which takes it out of the list. */
    for (guint i = server->clients->len; i-- > 0;)
        vmf_control_client_flush(g_ptr_array_index(server->clients, i),
                                 MAX(deadline_ms - g_get_monotonic_time() / 1000, 0));
    if (server->sweep)
        g_source_remove(server->sweep);
    unlink(server->path);
    close(server->fd);
    g_ptr_array_unref(server->clients);
    g_ptr_array_unref(server->gone);
    g_free(server->path);
    g_free(server);
}

void vmf_control_server_broadcast(VmfControlServer *server, const json_t *event)
{
    for (guint i = server->clients->len; i-- > 0;) {
        VmfControlClient *client = g_ptr_array_index(server->clients, i);

        if (vmf_control_client_is_negotiated(client))
            vmf_control_client_send(client, event);
    }
}
