/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the control of a machine knows, as its commands see it. Only the main loop's thread touches it. */
#ifndef VMFERRY_MACHINE_CONTROL_STATE_H
#define VMFERRY_MACHINE_CONTROL_STATE_H

#include "machine/control-migration.h"
#include "machine/control-server.h"
#include "machine/control.h"

/* What becomes of the guest here after it has been written to a channel without a way back. */
typedef enum { VMF_THEN_STOP, VMF_THEN_CONT, VMF_THEN_QUIT, VMF_THEN_N } VmfThen;

struct VmfControl {
    VmfControlConfig config; /* with copies of its strings */
    GMainLoop *loop;
    VmfMailbox *mailbox;
    VmfControlServer *server;
    GHashTable *fds; /* name (owned) -> descriptor, from getfd */

    bool awaiting_guest; /* see vmf_control_awaits_guest() */
    VmfListener *listener;
    VmfMigration *migration; /* the latest, or NULL */
    const char *side;        /* of the latest, also while it is being freed */
    VmfThen then;
    guint pass_timer;
    unsigned passes_told; /* of this migration, by MIGRATION_PASS */
    bool was_running;     /* as the last STOP or RESUME event said */

    VmfParameters parameters; /* for the migrations to come */
    bool multifd, events, return_path, auto_converge;

    bool quitting;
    GError *error; /* why the guest did not arrive */
};

/* QEMU's word for what the guest does ("running", "paused", "inmigrate", "postmigrate", "finish-migrate"). */
const char *vmf_control_run_state(VmfControl *control);
/* A session runs: one that moves the guest out, or one that waits for it. */
bool vmf_control_is_migrating(const VmfControl *control);
/* The guest is to arrive and has not yet. It has as soon as it runs; its session may still have something to say to the
 * peer. */
bool vmf_control_awaits_guest(VmfControl *control);
/* The guest stands here and may be running at the peer: neither side may start it before somebody knows. */
bool vmf_control_is_held(VmfControl *control);

/* Sends an event to everyone; takes over @data (NULL: none). */
void vmf_control_event(VmfControl *control, const char *name, json_t *data);
/* Sends STOP or RESUME when the guest has stopped or resumed since. To be called after whatever may have done that. */
void vmf_control_note_run_state(VmfControl *control);

/* control-migrate.c: starts a migration out of here. @parameters are those of this migration. */
typedef struct {
    const char *uri;
    VmfConnectFlags flags;
    const VmfParameters *parameters;
    VmfThen then;
} VmfMigrateRequest;
bool vmf_control_migrate(VmfControl *control, const VmfMigrateRequest *request, GError **error);
/* A migration ends in good order before the main loop does. */
void vmf_control_forget_migration(VmfControl *control);

/* "fd:NAME" with a name given by getfd becomes "fd:N"; anything else is copied. */
char *vmf_control_resolve_uri(VmfControl *control, const char *uri, GError **error);

#endif
