/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/control-client.h"

#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine/qmp-framer.h"

#define OUTPUT_PAUSE (64u << 10) /* more waits: requests wait as well */
#define OUTPUT_MAX (1u << 20)    /* more waits: the client does not read and is dropped */

struct VmfControlAnswer {
    VmfControlClient *client; /* NULL: it has gone */
    json_t *request;
};

struct VmfControlClient {
    int fd;
    const VmfControlClientOps *ops;
    void *opaque;
    VmfQmpFramer framer;
    GByteArray *output;
    GArray *fds; /* of int */
    guint read_watch, write_watch, hang_up_watch;
    json_t *request;           /* that is being answered; NULL: none */
    VmfControlAnswer *awaited; /* deferred: nothing more is read, or answered, before it is given; NULL: none */
    guint resume;              /* it was given */
    bool negotiated;
    bool at_end; /* nothing more is read; what is queued is still answered and sent */
    bool ruined; /* where the next request would start is not known */
    bool gone;
};

static gboolean on_readable(int fd, GIOCondition condition, void *opaque);
static gboolean on_writable(int fd, GIOCondition condition, void *opaque);
static gboolean on_hang_up(int fd, GIOCondition condition, void *opaque);

static void unwatch(guint *watch)
{
    if (*watch)
        g_source_remove(*watch);
    *watch = 0;
}

static void unwatch_all(VmfControlClient *client)
{
    unwatch(&client->read_watch);
    unwatch(&client->write_watch);
    unwatch(&client->hang_up_watch);
    unwatch(&client->resume);
}

static void set_watch(VmfControlClient *client, guint *watch, bool wanted, GIOCondition condition, GUnixFDSourceFunc call)
{
    if (!wanted)
        unwatch(watch);
    else if (!*watch)
        *watch = g_unix_fd_add(client->fd, condition | G_IO_HUP | G_IO_ERR, call, client);
}

static void drop(VmfControlClient *client)
{
    if (client->gone)
        return;
    client->gone = true;
    unwatch_all(client);
    shutdown(client->fd, SHUT_RDWR);
    client->ops->gone(client->opaque, client);
}

/* The watches follow from what is queued; called after every change of it. */
static void update_watches(VmfControlClient *client)
{
    bool want_read = !client->at_end && !client->awaited && client->output->len <= OUTPUT_PAUSE;
    bool want_write = client->output->len > 0;

    if (client->gone)
        return;
    set_watch(client, &client->read_watch, want_read, G_IO_IN, on_readable);
    set_watch(client, &client->write_watch, want_write, G_IO_OUT, on_writable);
    set_watch(client, &client->hang_up_watch, client->awaited && !want_write, 0, on_hang_up);
}

static void write_some(VmfControlClient *client)
{
    while (client->output->len > 0 && !client->gone) {
        ssize_t n = send(client->fd, client->output->data, client->output->len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n >= 0)
            g_byte_array_remove_range(client->output, 0, n);
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            drop(client);
    }
}

void vmf_control_client_send(VmfControlClient *client, const json_t *message)
{
    char *text;

    if (client->gone)
        return;
    text = json_dumps(message, JSON_COMPACT);
    g_byte_array_append(client->output, (const uint8_t *)text, strlen(text));
    g_byte_array_append(client->output, (const uint8_t *)"\r\n", 2);
    free(text);
    write_some(client);
    if (client->output->len > OUTPUT_MAX)
        drop(client);
    update_watches(client);
}

static void respond(VmfControlClient *client, json_t *request, const char *problem)
{
    client->request = request;
    json_t *response = client->ops->request(client->opaque, client, request, problem);
    client->request = NULL;

    if (response)
        vmf_control_client_send(client, response);
    json_decref(response);
}

static void parse_and_respond(VmfControlClient *client, const char *text, size_t length)
{
    json_error_t parse_error;
    json_t *request = json_loadb(text, length, JSON_REJECT_DUPLICATES, &parse_error);
    g_autofree char *problem = request ? NULL : g_strdup_printf("JSON parse error: %s", parse_error.text);

    respond(client, request, problem);
    json_decref(request);
}

static void handle_frames(VmfControlClient *client)
{
    const char *text;
    size_t length;

    while (!client->gone && !client->ruined && !client->awaited && client->output->len <= OUTPUT_PAUSE) {
        switch (vmf_qmp_framer_next(&client->framer, &text, &length)) {
        case VMF_QMP_FRAME_MORE:
            return;
        case VMF_QMP_FRAME_OBJECT:
            parse_and_respond(client, text, length);
            break;
        case VMF_QMP_FRAME_GARBAGE:
            respond(client, NULL, "JSON parse error: a request is one JSON object");
            break;
        case VMF_QMP_FRAME_TOO_LONG:
            client->at_end = client->ruined = true;
            respond(client, NULL, "the request is too long");
            return;
        }
    }
}

/* After bytes came or went. A watch that goes away meanwhile is removed by its id, whatever its callback returns. */
static void go_on(VmfControlClient *client)
{
    handle_frames(client);
    if (client->at_end && !client->awaited && client->output->len == 0)
        drop(client);
    update_watches(client);
}

static void keep_fds(VmfControlClient *client, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (client->fds->len < VMF_CONTROL_FDS_MAX)
                g_array_append_val(client->fds, fd);
            else
                close(fd);
        }
    }
}

static ssize_t receive(VmfControlClient *client, void *data, size_t length)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * VMF_CONTROL_FDS_MAX)];
    } control;
    struct iovec iov = {data, length};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(client->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n > 0)
        keep_fds(client, &message);
    return n;
}

static gboolean on_readable(int fd, GIOCondition condition, void *opaque)
{
    VmfControlClient *client = opaque;
    uint8_t data[16384];
    ssize_t n = receive(client, data, sizeof(data));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n > 0)
        vmf_qmp_framer_push(&client->framer, data, n);
    else
        client->at_end = true; /* perhaps only its sending side: it may still read */
    go_on(client);
    return G_SOURCE_CONTINUE;
}

static gboolean on_writable(int fd, GIOCondition condition, void *opaque)
{
    VmfControlClient *client = opaque;

    write_some(client);
    go_on(client);
    return G_SOURCE_CONTINUE;
}

/* While an answer is awaited, for which nobody is there any more. */
static gboolean on_hang_up(int fd, GIOCondition condition, void *opaque)
{
    drop(opaque);
    return G_SOURCE_CONTINUE;
}

/* ---- deferred answers -------------------------------------------------------------------------------------------- */

VmfControlAnswer *vmf_control_client_defer(VmfControlClient *client)
{
    client->awaited = g_new0(VmfControlAnswer, 1);
    client->awaited->client = client;
    client->awaited->request = json_incref(client->request);
    return client->awaited;
}

const json_t *vmf_control_answer_request(const VmfControlAnswer *answer)
{
    return answer->request;
}

static gboolean on_resume(void *opaque)
{
    VmfControlClient *client = opaque;

    client->resume = 0;
    go_on(client);
    return G_SOURCE_REMOVE;
}

/* Whoever gives it need not expect that other requests are carried out meanwhile. */
void vmf_control_answer_give(VmfControlAnswer *answer, const json_t *response)
{
    VmfControlClient *client = answer->client;

    if (client) {
        client->awaited = NULL;
        if (!client->gone)
            client->resume = g_idle_add_full(G_PRIORITY_DEFAULT, on_resume, client, NULL);
        vmf_control_client_send(client, response);
    }
    json_decref(answer->request);
    g_free(answer);
}

/* ---- beginning and end ------------------------------------------------------------------------------------------- */

VmfControlClient *vmf_control_client_new(int fd, const VmfControlClientOps *ops, void *opaque)
{
    VmfControlClient *client = g_new0(VmfControlClient, 1);

    client->fd = fd;
    client->ops = ops;
    client->opaque = opaque;
    vmf_qmp_framer_init(&client->framer);
    client->output = g_byte_array_new();
    client->fds = g_array_new(FALSE, FALSE, sizeof(int));
    update_watches(client);
    return client;
}

void vmf_control_client_free(VmfControlClient *client)
{
    if (!client)
        return;
    unwatch_all(client);
    if (client->awaited)
        client->awaited->client = NULL;
    for (guint i = 0; i < client->fds->len; i++)
        close(g_array_index(client->fds, int, i));
    g_array_unref(client->fds);
    g_byte_array_unref(client->output);
    vmf_qmp_framer_clear(&client->framer);
    close(client->fd);
    g_free(client);
}

void vmf_control_client_flush(VmfControlClient *client, int timeout_ms)
{
    int64_t deadline = g_get_monotonic_time() + timeout_ms * INT64_C(1000);

    while (client->output->len > 0 && !client->gone) {
        struct pollfd poll_fd = {client->fd, POLLOUT, 0};
        int64_t left_us = deadline - g_get_monotonic_time();

        if (left_us <= 0 || poll(&poll_fd, 1, left_us / 1000 + 1) == 0)
            return;
        write_some(client);
    }
}

bool vmf_control_client_is_negotiated(const VmfControlClient *client)
{
    return client->negotiated;
}

void vmf_control_client_set_negotiated(VmfControlClient *client)
{
    client->negotiated = true;
}

int vmf_control_client_take_fd(VmfControlClient *client)
{
    int fd;

    if (client->fds->len == 0)
        return -1;
    fd = g_array_index(client->fds, int, 0);
    g_array_remove_index(client->fds, 0);
    return fd;
}
