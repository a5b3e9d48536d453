/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One connection to the control socket: requests in, responses and events out.
 *
 * Bounds: a request (VMF_QMP_REQUEST_MAX), the descriptors that wait for a getfd, and the output. Once more than a
 * little output waits the client's requests wait too, so a client that writes without reading only stops itself; events
 * go on, and a client that lets them pile up is dropped.
 *
 * An answer that takes time is deferred: whoever works on the request gives it later. Until then the client's next
 * requests wait, so that answers come in the order of requests; others are served, and events go on.
 */
#ifndef VMFERRY_MACHINE_CONTROL_CLIENT_H
#define VMFERRY_MACHINE_CONTROL_CLIENT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define VMF_CONTROL_FDS_MAX 4 /* descriptors received that no getfd has claimed */

typedef struct VmfControlClient VmfControlClient;
typedef struct VmfControlAnswer VmfControlAnswer;

typedef struct {
    /* One whole request, or NULL with @problem where there was something that is no request. Returns the response,
     * owned; NULL: it was deferred. */
    json_t *(*request)(void *opaque, VmfControlClient *client, json_t *request, const char *problem);
    /* The connection is over: the owner frees the client, not from within this call. */
    void (*gone)(void *opaque, VmfControlClient *client);
} VmfControlClientOps;

/* Takes ownership of @fd, a connected stream socket. */
VmfControlClient *vmf_control_client_new(int fd, const VmfControlClientOps *ops, void *opaque);
void vmf_control_client_free(VmfControlClient *client);

void vmf_control_client_send(VmfControlClient *client, const json_t *message);
/*
 * From within request(), of a whole request: the response comes later, by vmf_control_answer_give(), which is called
 * once, whatever becomes of the client meanwhile.
 */
VmfControlAnswer *vmf_control_client_defer(VmfControlClient *client);
/* What it is the answer to. */
const json_t *vmf_control_answer_request(const VmfControlAnswer *answer);
/* Takes over @answer. The client's next requests follow from the main loop, not from within this call. */
void vmf_control_answer_give(VmfControlAnswer *answer, const json_t *response);
/* Waits at most @timeout_ms until what was sent has left. */
void vmf_control_client_flush(VmfControlClient *client, int timeout_ms);

/* Where the protocol stands: before and after qmp_capabilities. */
bool vmf_control_client_is_negotiated(const VmfControlClient *client);
void vmf_control_client_set_negotiated(VmfControlClient *client);

/* The oldest descriptor that came with the client's bytes, now the caller's; -1: none. */
int vmf_control_client_take_fd(VmfControlClient *client);

#endif
