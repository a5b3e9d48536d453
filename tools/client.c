/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/client.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tools/dirs.h"

#define ANSWER_TIMEOUT_MS 30000
#define SLICE_MS 100              /* of that wait, in which nobody asks whether it is still of use */
#define LINE_MAX_BYTES (4u << 20) /* the machine is ours, but a defect in it shall not eat our memory */

struct VmfClient {
    int fd;
    char *name;
    GString *input;
    GQueue events; /* of json_t */
    VmfClientAbandoned abandoned;
};

static void set_error(VmfClient *client, VmfErrorCode code, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "machine %s: control socket: %s", client->name, why);
}

/* One line that has arrived, parsed; NULL: none. */
static json_t *take_line(VmfClient *client)
{
    char *newline = memchr(client->input->str, '\n', client->input->len);
    json_t *message;

    if (!newline)
        return NULL;
    message = json_loadb(client->input->str, newline - client->input->str, 0, NULL);
    g_string_erase(client->input, 0, newline + 1 - client->input->str);
    return message ? message : json_object();
}

/* Waits once for bytes. 1: some came, 0: timeout or signal, -1: gone. */
static int receive(VmfClient *client, int timeout_ms)
{
    struct pollfd poll_fd = {client->fd, POLLIN, 0};
    char bytes[16384];
    ssize_t n;

    if (poll(&poll_fd, 1, timeout_ms) <= 0)
        return 0;
    n = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0 || client->input->len > LINE_MAX_BYTES)
        return -1;
    g_string_append_len(client->input, bytes, n);
    return 1;
}

/* Who waits for an answer. */
typedef struct {
    int64_t deadline_us;
    void (*meanwhile)(void *opaque); /* or NULL */
    void *opaque;
} Wait;

static Wait short_wait(void)
{
    return (Wait){.deadline_us = g_get_monotonic_time() + ANSWER_TIMEOUT_MS * INT64_C(1000)};
}

/* The next message that is no event; events on the way are kept. */
static json_t *receive_answer(VmfClient *client, const Wait *wait, GError **error)
{
    for (;;) {
        json_t *message;
        int64_t left_us = wait->deadline_us - g_get_monotonic_time();

        while ((message = take_line(client))) {
            if (!json_object_get(message, "event"))
                return message;
            g_queue_push_tail(&client->events, message);
        }
        if (left_us <= 0) {
            set_error(client, VMF_ERROR_TIMEOUT, "no answer", error);
            return NULL;
        }
        if (client->abandoned && client->abandoned()) {
            set_error(client, VMF_ERROR_ABANDONED, "no longer waiting for its answer", error);
            return NULL;
        }
        if (wait->meanwhile)
            wait->meanwhile(wait->opaque);
        if (receive(client, MIN(left_us / 1000 + 1, SLICE_MS)) < 0) {
            set_error(client, VMF_ERROR_CONTROL_LOST, "the machine's process has gone", error);
            return NULL;
        }
    }
}

static bool send_all(VmfClient *client, const char *text, size_t length, GError **error)
{
    while (length > 0) {
        ssize_t n = send(client->fd, text, length, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            set_error(client, VMF_ERROR_CONTROL_LOST, "the machine's process has gone", error);
            return false;
        }
        text += n;
        length -= n;
    }
    return true;
}

static int code_of_id(const char *id)
{
#define X(code, code_id, hint)                                                                                         \
    if (strcmp(id, code_id) == 0)                                                                                      \
        return code;
    VMF_ERROR_CODES(X)
#undef X
    return VMF_ERROR_PEER;
}

static void set_reported_error(const json_t *body, GError **error)
{
    const char *id = json_string_value(json_object_get(body, "x-vmferry-id"));
    const char *desc = json_string_value(json_object_get(body, "desc"));

    g_set_error_literal(error, VMF_ERROR, id ? code_of_id(id) : VMF_ERROR_PEER, desc ? desc : "the machine refused");
}

/* Takes over @arguments. */
static json_t *execute(VmfClient *client, const char *command, json_t *arguments, Wait wait, GError **error)
{
    json_t *request = json_pack("{s:s,s:o*}", "execute", command, "arguments", arguments);
    g_autofree char *text = json_dumps(request, JSON_COMPACT);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    json_t *answer = NULL, *result;

    json_decref(request);
    if (send_all(client, line, strlen(line), error))
        answer = receive_answer(client, &wait, error);
    if (!answer)
        return NULL;
    result = json_incref(json_object_get(answer, "return"));
    if (!result)
        set_reported_error(json_object_get(answer, "error"), error);
    json_decref(answer);
    return result;
}

json_t *vmf_client_execute(VmfClient *client, const char *command, json_t *arguments, GError **error)
{
    return execute(client, command, arguments, short_wait(), error);
}

json_t *vmf_client_execute_patiently(VmfClient *client, const char *command, json_t *arguments, void (*meanwhile)(void *opaque),
                                     void *opaque, GError **error)
{
    return execute(client, command, arguments, (Wait){INT64_MAX, meanwhile, opaque}, error);
}

void vmf_client_set_abandoned(VmfClient *client, VmfClientAbandoned abandoned)
{
    client->abandoned = abandoned;
}

void vmf_client_forget_events(VmfClient *client)
{
    json_t *event;

    while ((event = g_queue_pop_head(&client->events)))
        json_decref(event);
}

json_t *vmf_client_next_event(VmfClient *client, int timeout_ms, GError **error)
{
    json_t *message;

    if (g_queue_is_empty(&client->events) && receive(client, timeout_ms) < 0) {
        set_error(client, VMF_ERROR_CONTROL_LOST, "the machine's process has gone", error);
        return NULL;
    }
    while ((message = take_line(client)))
        g_queue_push_tail(&client->events, message);
    return g_queue_pop_head(&client->events);
}

static bool connect_to(VmfClient *client, const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (g_strlcpy(address.sun_path, path, sizeof(address.sun_path)) >= sizeof(address.sun_path)) {
        set_error(client, VMF_ERROR_USAGE, "the runtime directory's path is too long", error);
        return false;
    }
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd >= 0 && connect(client->fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return true;
    if (errno == ENOENT || errno == ECONNREFUSED)
        set_error(client, VMF_ERROR_STATE, "no machine of this name runs here", error);
    else
        set_error(client, VMF_ERROR_IO, g_strerror(errno), error);
    return false;
}

static bool negotiate(VmfClient *client, GError **error)
{
    Wait wait = short_wait();
    json_t *greeting = receive_answer(client, &wait, error);
    json_t *result = greeting ? vmf_client_execute(client, "qmp_capabilities", NULL, error) : NULL;

    json_decref(greeting);
    json_decref(result);
    return result != NULL;
}

VmfClient *vmf_client_open(const char *runtime_dir, const char *name, GError **error)
{
    g_autoptr(VmfClient) client = g_new0(VmfClient, 1);
    g_autofree char *path = NULL;

    client->fd = -1;
    client->name = g_strdup(name);
    client->input = g_string_new(NULL);
    g_queue_init(&client->events);
    if (!vmf_check_machine_name(name, error))
        return NULL;
    path = vmf_machine_path(runtime_dir, name, "sock");
    if (!connect_to(client, path, error) || !negotiate(client, error))
        return NULL;
    return g_steal_pointer(&client);
}

void vmf_client_free(VmfClient *client)
{
    if (!client)
        return;
    vmf_client_forget_events(client);
    g_string_free(client->input, TRUE);
    if (client->fd >= 0)
        close(client->fd);
    g_free(client->name);
    g_free(client);
}
