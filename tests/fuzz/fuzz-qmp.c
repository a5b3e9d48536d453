/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The control socket: what a client says, to the control of a small rv32 machine. The first octet: bit 0 the machine waits for a guest,
 * bit 1 the client has said qmp_capabilities already, bits 4-7 in how many pieces the rest comes.
 *
 * A client can name any command line and any path; here connectors and listeners lead nowhere.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vmferry/error.h>

#include "machine/control-client.h"
#include "machine/control-state.h"
#include "machine/qmp.h"
#include "tests/fuzz/fuzz.h"

#define TURNS_MAX 2000 /* of the main loop, for one input */

VmfConnector *__wrap_vmf_connector_new(const char *uri, VmfConnectFlags flags, GError **error);
VmfListener *__wrap_vmf_listener_new(const char *uri, VmfConnectFlags flags, GError **error);

static bool may_open(const char *uri, GError **error)
{
    if (strlen(uri) % 2 == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: nothing is opened here", uri);
    return false;
}

/* Nobody is at the other end: whoever opens a channel is told so. */
VmfConnector *__wrap_vmf_connector_new(const char *uri, VmfConnectFlags flags, GError **error)
{
    VmfConnector *connector;
    VmfListener *listener;

    if (!may_open(uri, error))
        return NULL;
    vmf_memory_link_new(4096, &connector, &listener);
    vmf_listener_free(listener);
    return connector;
}

VmfListener *__wrap_vmf_listener_new(const char *uri, VmfConnectFlags flags, GError **error)
{
    VmfConnector *connector;
    VmfListener *listener;

    if (!may_open(uri, error))
        return NULL;
    vmf_memory_link_new(4096, &connector, &listener);
    vmf_connector_free(connector);
    return listener;
}

static VmfControl *control_new(VmfMachine *machine, bool incoming)
{
    g_autofree char *path = g_strdup_printf("%s/vmf-fuzz-%d", g_get_tmp_dir(), getpid());
    VmfControlConfig config = {
        .machine = machine, .name = "fuzzed", .host_name = "here", .socket_path = path, .incoming = incoming};
    g_autoptr(GError) error = NULL;
    VmfControl *control = vmf_control_new(&config, &error);

    FUZZ_CHECK(control);
    return control;
}

static void client_gone(void *opaque, VmfControlClient *client)
{
    *(bool *)opaque = true;
}

static VmfControl *the_control; /* of this execution */

static json_t *client_request(void *opaque, VmfControlClient *client, json_t *request, const char *problem)
{
    json_t *response = vmf_qmp_request(the_control, client, request, problem);

    FUZZ_CHECK(json_is_object(response));
    FUZZ_CHECK(!json_object_get(response, "error") != !json_object_get(response, "return"));
    return response;
}

static void drain(int fd)
{
    char scratch[4096];

    while (recv(fd, scratch, sizeof(scratch), MSG_DONTWAIT) > 0)
        ;
}

/* Says @data, and turns the main loop until the client's end has nothing more to do. */
static void say(int fd, const uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && !g_main_context_pending(NULL))
            return;
        data += MAX(sent, 0);
        size -= (size_t)MAX(sent, 0);
        for (unsigned i = 0; i < TURNS_MAX && g_main_context_iteration(NULL, FALSE); i++)
            drain(fd);
    }
}

static void converse(const uint8_t *data, size_t size)
{
    static const VmfControlClientOps ops = {.request = client_request, .gone = client_gone};
    size_t piece = MAX(1, (size - 1) / (1 + (data[0] >> 4)));
    bool gone = false;
    int ends[2];

    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    VmfControlClient *client = vmf_control_client_new(ends[0], &ops, &gone);
    if (data[0] & 2)
        vmf_control_client_set_negotiated(client);
    for (size_t at = 1; at < size && !gone; at += piece)
        say(ends[1], data + at, MIN(piece, size - at));
    shutdown(ends[1], SHUT_WR);
    for (unsigned i = 0; i < TURNS_MAX && !gone; i++) {
        g_main_context_iteration(NULL, FALSE);
        drain(ends[1]);
    }
    FUZZ_CHECK(gone);
    vmf_control_client_free(client);
    close(ends[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    VmfMachineConfig config = {.name = "fuzzed", .memory_bytes = 256 << 10, .unpaced = false};
    g_autoptr(GError) error = NULL;

    if (size < 1)
        return 0;
    VmfMachine *machine = vmf_machine_new(&config, &error);
    FUZZ_CHECK(machine);
    the_control = control_new(machine, data[0] & 1);
    converse(data, size);
    vmf_control_free(the_control);
    vmf_machine_free(machine);
    while (g_main_context_iteration(NULL, FALSE))
        ;
    return 0;
}
