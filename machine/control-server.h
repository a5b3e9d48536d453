/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The control socket of one machine: listens, keeps the clients, tells them all of an event. Runs in the default main
 * context. */
#ifndef VMFERRY_MACHINE_CONTROL_SERVER_H
#define VMFERRY_MACHINE_CONTROL_SERVER_H

#include "machine/control-client.h"

#define VMF_CONTROL_CLIENTS_MAX 128 /* more are turned away */

typedef struct VmfControlServer VmfControlServer;

typedef struct {
    /* As VmfControlClientOps.request. */
    json_t *(*request)(void *opaque, VmfControlClient *client, json_t *request, const char *problem);
    /* What a new client is told first. Owned by the caller of this callback. */
    json_t *(*greeting)(void *opaque);
} VmfControlServerOps;

/* Binds @path, mode 0600; what stands there is replaced, so the caller has made sure that nobody serves it. */
VmfControlServer *vmf_control_server_new(const char *path, const VmfControlServerOps *ops, void *opaque,
                                         GError **error);
/* Says what is still to be said (for a second at most), closes everything and removes the socket. */
void vmf_control_server_free(VmfControlServer *server);

/* To every client that has negotiated. */
void vmf_control_server_broadcast(VmfControlServer *server, const json_t *event);

#endif
