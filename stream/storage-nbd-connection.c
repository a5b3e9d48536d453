/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/storage-nbd-connection.h"
#include "stream/channel-wait.h"
#include "stream/connector-address.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_NS (10 * VMF_NS_PER_S)
#define FAREWELL_TIMEOUT_NS (1 * VMF_NS_PER_S)
#define LOOK_NS (VMF_NS_PER_S / 20)   /* so often who waits looks whether it is cancelled */
#define SILENCE_NS (2 * VMF_NS_PER_S) /* a server that is only slow is let finish what it is at */

/* ---- moving on -------------------------------------------------------------------------------------------------- */

static bool is_over(struct nbd_handle *nbd)
{
    return nbd_aio_is_closed(nbd) > 0 || nbd_aio_is_dead(nbd) > 0;
}

static struct pollfd what_to_poll(struct nbd_handle *nbd)
{
    unsigned direction = nbd_aio_get_direction(nbd);
    struct pollfd fd = {.fd = nbd_aio_get_fd(nbd)};

    if (direction & LIBNBD_AIO_DIRECTION_READ)
        fd.events |= POLLIN;
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        fd.events |= POLLOUT;
    return fd;
}

/* Reading has priority: answers make room for requests. */
static void notify(struct nbd_handle *nbd, const struct pollfd *fd)
{
    bool broken = fd->revents & (POLLERR | POLLHUP | POLLNVAL);

    if ((fd->events & POLLIN) && (fd->revents & POLLIN || broken))
        nbd_aio_notify_read(nbd);
    else if ((fd->events & POLLOUT) && (fd->revents & POLLOUT || broken))
        nbd_aio_notify_write(nbd);
}

void vmf_nbd_connection_kick(VmfNbdConnection *connection)
{
    uint64_t one = 1;

    connection->waiting_since_ns = 0; /* there is something new to be answered */
    if (connection->driven && write(connection->kick, &one, sizeof(one)) < 0)
        return; /* EAGAIN: it was kicked so often that once more makes no difference */
}

static bool is_cancelled(const _Atomic bool *cancelled)
{
    return cancelled && atomic_load(cancelled);
}

/* When who waits is to look whether it is cancelled. */
static int64_t next_look(const _Atomic bool *cancelled, int64_t deadline_ns)
{
    return cancelled ? MIN(deadline_ns, vmf_deadline_after(LOOK_NS)) : deadline_ns;
}

/* Nobody waits longer for a server that says nothing, once it is cancelled. */
static void give_up_if_silent(VmfNbdConnection *connection, bool moved)
{
    if (moved || !is_cancelled(connection->cancelled)) {
        connection->silent_since_ns = 0;
        return;
    }
    if (connection->silent_since_ns == 0)
        connection->silent_since_ns = vmf_now_ns();
    else if (vmf_now_ns() - connection->silent_since_ns > SILENCE_NS)
        vmf_nbd_connection_shutdown(connection);
}

/* When a server that has said nothing so far is given up. Who kicks begins anew. */
static int64_t end_of_silence(VmfNbdConnection *connection)
{
    if (connection->silence_ns == 0)
        return VMF_NEVER;
    if (connection->waiting_since_ns == 0)
        connection->waiting_since_ns = vmf_now_ns();
    return connection->waiting_since_ns + connection->silence_ns;
}

static void give_up_when_due(VmfNbdConnection *connection, bool moved)
{
    if (moved)
        connection->waiting_since_ns = 0;
    if (connection->gave_up || connection->silence_ns == 0 || connection->waiting_since_ns == 0 ||
        vmf_now_ns() < end_of_silence(connection))
        return;
    connection->gave_up = true;
    vmf_nbd_connection_shutdown(connection);
}

static void drive(VmfNbdConnection *connection)
{
    struct pollfd fds[2] = {what_to_poll(connection->nbd), {.fd = connection->kick, .events = POLLIN}};
    int64_t until_ns = next_look(connection->cancelled, end_of_silence(connection));
    uint64_t kicks;

    connection->driven = true;
    pthread_mutex_unlock(&connection->lock);
    vmf_poll_until(fds, 2, until_ns);
    pthread_mutex_lock(&connection->lock);
    connection->driven = false;
    give_up_if_silent(connection, fds[0].revents != 0);
    give_up_when_due(connection, fds[0].revents != 0);
    if ((fds[1].revents & POLLIN) && read(connection->kick, &kicks, sizeof(kicks)) < 0)
        kicks = 0;
    notify(connection->nbd, &fds[0]);
    pthread_cond_broadcast(&connection->moved);
}

void vmf_nbd_connection_wait(VmfNbdConnection *connection)
{
    if (connection->driven)
        pthread_cond_wait(&connection->moved, &connection->lock);
    else if (!is_over(connection->nbd))
        drive(connection);
}

void vmf_nbd_connection_wake(VmfNbdConnection *connection)
{
    pthread_mutex_lock(&connection->lock);
    vmf_nbd_connection_kick(connection);
    pthread_cond_broadcast(&connection->moved);
    pthread_mutex_unlock(&connection->lock);
}

void vmf_nbd_connection_poll(VmfNbdConnection *connection)
{
    struct pollfd fd;

    if (connection->driven)
        return;
    for (;;) {
        if (is_over(connection->nbd))
            return;
        fd = what_to_poll(connection->nbd);
        if (vmf_poll_until(&fd, 1, 0) <= 0)
            return;
        notify(connection->nbd, &fd);
        pthread_cond_broadcast(&connection->moved);
    }
}

bool vmf_nbd_connection_is_cancelled(const VmfNbdConnection *connection)
{
    return is_cancelled(connection->cancelled);
}

int vmf_nbd_connection_reason(const VmfNbdConnection *connection, int err)
{
    return err != 0 && connection->gave_up ? ETIMEDOUT : err;
}

int vmf_nbd_connection_errno(VmfNbdConnection *connection)
{
    int err = nbd_get_errno();

    if (is_over(connection->nbd))
        return ENOTCONN;
    return err > 0 ? err : EIO;
}

void vmf_nbd_connection_shutdown(VmfNbdConnection *connection)
{
    int fd = nbd_aio_get_fd(connection->nbd);

    if (fd >= 0)
        shutdown(fd, SHUT_RDWR);
}

/* ---- beginning and end ------------------------------------------------------------------------------------------ */

/* Moves on until the handshake is done or has failed, until the deadline, or until it is cancelled. */
static bool is_ready_by(struct nbd_handle *nbd, int64_t deadline_ns, const _Atomic bool *cancelled)
{
    while (!is_over(nbd) && nbd_aio_is_ready(nbd) == 0) {
        struct pollfd fd = what_to_poll(nbd);
        int n = vmf_poll_until(&fd, 1, next_look(cancelled, deadline_ns));

        if (n < 0 || is_cancelled(cancelled) || (n == 0 && vmf_time_left(deadline_ns) == 0))
            return false;
        if (n > 0)
            notify(nbd, &fd);
    }
    return nbd_aio_is_ready(nbd) > 0;
}

static struct nbd_handle *handle_new(const VmfStorageUri *uri)
{
    struct nbd_handle *nbd = nbd_create();

    if (nbd && nbd_set_export_name(nbd, uri->export) == 0 &&
        nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
        (!uri->context || nbd_add_meta_context(nbd, uri->context) == 0) && nbd_set_pread_initialize(nbd, false) == 0)
        return nbd;
    if (nbd)
        nbd_close(nbd);
    return NULL;
}

static bool connect_error(const VmfStorageUri *uri, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CONNECT, "%s: connect: %s", uri->address->text, why ? why : "no memory");
    return false;
}

/* Returns a handle that is ready, or NULL. */
static struct nbd_handle *try_address(const VmfStorageUri *uri, const struct sockaddr *address, socklen_t length,
                                      const _Atomic bool *cancelled, GError **error)
{
    struct nbd_handle *nbd = handle_new(uri);

    if (nbd && nbd_aio_connect(nbd, address, length) == 0 &&
        is_ready_by(nbd, vmf_deadline_after(CONNECT_TIMEOUT_NS), cancelled))
        return nbd;
    g_clear_error(error);
    if (is_cancelled(cancelled))
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: connect: cancelled", uri->address->text);
    else
        connect_error(uri, nbd && !is_over(nbd) ? "the server does not answer" : nbd_get_error(), error);
    if (nbd)
        nbd_close(nbd);
    return NULL;
}

static struct nbd_handle *try_addresses(const VmfStorageUri *uri, const VmfAddresses *list,
                                        const _Atomic bool *cancelled, GError **error)
{
    struct nbd_handle *nbd = NULL;

    for (; list && !nbd; list = list->ai_next)
        nbd = try_address(uri, list->ai_addr, list->ai_addrlen, cancelled, error);
    return nbd;
}

static struct nbd_handle *open_handle(const VmfStorageUri *uri, VmfConnectFlags flags, const _Atomic bool *cancelled,
                                      GError **error)
{
    g_autoptr(VmfAddresses) list = NULL;
    g_autoptr(GError) failed = NULL;
    struct nbd_handle *nbd;

    if (uri->address->kind == VMF_URI_UNIX) {
        struct sockaddr_un address = vmf_address_unix(uri->address->argument);

        nbd = try_address(uri, (struct sockaddr *)&address, sizeof(address), cancelled, &failed);
    } else {
        list = vmf_resolve(uri->address, 0, error);
        if (!list)
            return NULL;
        if (!(flags & VMF_CONNECT_INSECURE) && !vmf_addresses_are_private(uri->address, list, error))
            return NULL;
        nbd = try_addresses(uri, list, cancelled, &failed);
    }
    if (!nbd)
        g_propagate_error(error, g_steal_pointer(&failed));
    return nbd;
}

VmfNbdConnection *vmf_nbd_connect(const VmfStorageUri *uri, VmfConnectFlags flags, const _Atomic bool *cancelled,
                                  GError **error)
{
    struct nbd_handle *nbd = open_handle(uri, flags, cancelled, error);
    VmfNbdConnection *connection;
    int kick;

    if (!nbd)
        return NULL;
    kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (kick < 0) {
        connect_error(uri, g_strerror(errno), error);
        nbd_close(nbd);
        return NULL;
    }
    connection = g_new0(VmfNbdConnection, 1);
    connection->nbd = nbd;
    connection->kick = kick;
    connection->cancelled = cancelled;
    pthread_mutex_init(&connection->lock, NULL);
    pthread_cond_init(&connection->moved, NULL);
    return connection;
}

/* Servers like to be told, and some to have the last word. */
static void say_farewell(struct nbd_handle *nbd)
{
    int64_t deadline_ns = vmf_deadline_after(FAREWELL_TIMEOUT_NS);

    if (is_over(nbd) || nbd_aio_disconnect(nbd, 0) < 0)
        return;
    while (!is_over(nbd)) {
        struct pollfd fd = what_to_poll(nbd);

        if (vmf_poll_until(&fd, 1, deadline_ns) <= 0)
            return;
        notify(nbd, &fd);
    }
}

void vmf_nbd_connection_free(VmfNbdConnection *connection)
{
    if (!connection)
        return;
    say_farewell(connection->nbd);
    nbd_close(connection->nbd);
    close(connection->kick);
    pthread_cond_destroy(&connection->moved);
    pthread_mutex_destroy(&connection->lock);
    g_free(connection);
}
