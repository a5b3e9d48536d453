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

    bool offer_settled;  /* with incoming: what was offered from here before has been looked at */
    bool awaiting_guest; /* see vmf_control_awaits_guest() */
    VmfListener *listener;
    VmfMigration *migration; /* the latest, or NULL */
    /* A lazy restore that brings the rest of the guest's memory while that is moved on or saved already; or NULL. */
    VmfMigration *loading;
    const char *side;        /* of the latest, also while it is being freed */
    VmfThen then;
    guint pass_timer;
    unsigned passes_told; /* of this migration, by MIGRATION_PASS */
    bool was_running;     /* as the last STOP or RESUME event said */

    VmfParameters parameters; /* for the migrations to come */
    char *copy_disks, *incremental_bitmap; /* theirs */
    json_t *bitmap_mapping;   /* block-bitmap-mapping; NULL: none was given */
    bool dirty_bitmaps;       /* the capability */
    bool multifd, events, return_path, auto_converge, mapped_ram, background_snapshot;

    GPtrArray *jobs; /* block-jobs.c; NULL: there was none yet */

    bool quitting;
    GError *error; /* why the guest did not arrive */
};

/* QEMU's word for what the guest does ("running", "paused", "inmigrate", "postmigrate", "finish-migrate"). */
const char *vmf_control_run_state(VmfControl *control);
/* A session runs: one that moves the guest out, or one that waits for it. */
bool vmf_control_is_migrating(const VmfControl *control);
/* It is a lazy restore whose guest is here: it can run, be moved on, and so on. */
bool vmf_control_is_loading(const VmfControl *control);
/* The guest is to arrive and has not yet. It has as soon as it runs; its session may still have something to say to the
 * peer. */
bool vmf_control_awaits_guest(VmfControl *control);
/* The guest stands here and may be running at the peer: neither side may start it before somebody knows. */
bool vmf_control_is_held(VmfControl *control);
/* False, with VMF_ERROR_HELD, while it is: @operation would end that, or change it. */
bool vmf_control_holds_nothing(VmfControl *control, const char *operation, GError **error);
/* False, with VMF_ERROR_OFFERED, while the journal has an offer of this guest without an outcome. */
bool vmf_control_has_no_offer(VmfControl *control, const char *operation, GError **error);

/* Sends an event to everyone; takes over @data (NULL: none). */
void vmf_control_event(VmfControl *control, const char *name, json_t *data);
/* Sends STOP or RESUME when the guest has stopped or resumed since. To be called after whatever may have done that. */
void vmf_control_note_run_state(VmfControl *control);

/* control-migrate.c: starts a migration out of here. @parameters are those of this migration. */
typedef struct {
    const char *uri;
    VmfConnectFlags flags;
    const VmfParameters *parameters;
    const json_t *bitmaps; /* which travel (machine/bitmap-map.h) */
    VmfThen then;
} VmfMigrateRequest;
bool vmf_control_migrate(VmfControl *control, const VmfMigrateRequest *request, GError **error);
/* The same into an image. Whether the guest goes on is in @options; @quit: the machine ends once the image is whole. */
bool vmf_control_save(VmfControl *control, const VmfSaveOptions *options, const VmfParameters *parameters, bool quit,
                      GError **error);
/* A migration ends in good order before the main loop does. */
void vmf_control_forget_migration(VmfControl *control);

/* "fd:NAME" with a name given by getfd becomes "fd:N"; anything else is copied. */
char *vmf_control_resolve_uri(VmfControl *control, const char *uri, GError **error);

#endif
