/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A client of a machine's control socket: one command at a time, events kept until they are asked for. */
#ifndef VMFERRY_TOOLS_CLIENT_H
#define VMFERRY_TOOLS_CLIENT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

typedef struct VmfClient VmfClient;

/* Whether nobody waits for an answer any more; asked often while one is awaited. */
typedef bool (*VmfClientAbandoned)(void);

/* Connects to the machine's socket in @runtime_dir and negotiates. */
VmfClient *vmf_client_open(const char *runtime_dir, const char *name, GError **error);
void vmf_client_free(VmfClient *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfClient, vmf_client_free)

/*
 * Runs a command and returns what it answers, owned by the caller. Takes over @arguments (NULL: none). An error that
 * the machine reports comes back with the id that it had there.
 */
json_t *vmf_client_execute(VmfClient *client, const char *command, json_t *arguments, GError **error);

/* The same of what may take as long as it likes: @meanwhile() is called often until it is answered. */
json_t *vmf_client_execute_patiently(VmfClient *client, const char *command, json_t *arguments, void (*meanwhile)(void *opaque),
                                     void *opaque, GError **error);

/* From now on an answer is awaited only until @abandoned() is true; then the error is VMF_ERROR_ABANDONED. */
void vmf_client_set_abandoned(VmfClient *client, VmfClientAbandoned abandoned);

/* Forgets the events that came so far: those before the answer to the last command, which are about what was before it.
 */
void vmf_client_forget_events(VmfClient *client);

/*
 * The next event, owned by the caller. NULL without @error: none within @timeout_ms, or a signal came. NULL with @error
 * (VMF_ERROR_CONTROL_LOST): the machine's process has gone.
 */
json_t *vmf_client_next_event(VmfClient *client, int timeout_ms, GError **error);

#endif
