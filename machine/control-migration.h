/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One migration of the machine, from the command to its outcome: a session, the thread that runs it, and what became of
 * it. */
#ifndef VMFERRY_MACHINE_CONTROL_MIGRATION_H
#define VMFERRY_MACHINE_CONTROL_MIGRATION_H

#include <vmferry/session.h>

#include "machine/mailbox.h"

typedef struct VmfMigration VmfMigration;

/* All from the main loop. */
typedef struct {
    void (*status_changed)(void *opaque, VmfStatus status);
    void (*event)(void *opaque, const char *id, const char *text);
    /* The last call. The migration may be freed from within. */
    void (*ended)(void *opaque);
} VmfMigrationOps;

typedef struct {
    VmfGuest *guest;
    VmfConnector *connector; /* source; owned by the migration from the call on */
    VmfListener *listener;   /* target: the owner keeps it, it outlives the migration */
    const VmfParameters *parameters;
    const char *uri;  /* as people gave it; copied */
    bool was_running; /* source: the guest runs */
    VmfMailbox *mailbox;
    const VmfMigrationOps *ops;
    void *opaque;
} VmfMigrationConfig;

/* Starts it. */
VmfMigration *vmf_migration_new(const VmfMigrationConfig *config, GError **error);
/* Cancels, waits for the end, frees. */
void vmf_migration_free(VmfMigration *migration);

bool vmf_migration_has_ended(const VmfMigration *migration);
bool vmf_migration_is_incoming(const VmfMigration *migration);
/* Source: nobody answers at the other end, so the guest stays with its owner here. */
bool vmf_migration_is_one_way(const VmfMigration *migration);
bool vmf_migration_is_dry_run(const VmfMigration *migration);
unsigned vmf_migration_stream_version(const VmfMigration *migration);
const char *vmf_migration_uri(const VmfMigration *migration);
/* Source: whether the guest ran as far as its owner is concerned, who may change that while the migration runs. */
bool vmf_migration_was_running(const VmfMigration *migration);
void vmf_migration_set_was_running(VmfMigration *migration, bool running);
/* The session, or NULL after the end. */
VmfSession *vmf_migration_session(VmfMigration *migration);
/* Why it failed, or NULL. */
const GError *vmf_migration_error(const VmfMigration *migration);
/* NULL-terminated, empty before the end. */
char *const *vmf_migration_incompatibilities(const VmfMigration *migration);
/* What the other side calls its host; NULL before the end, or where it did not say. */
const char *vmf_migration_peer_host_name(const VmfMigration *migration);
void vmf_migration_get_statistics(VmfMigration *migration, VmfStatistics *statistics);

/* The guest runs at the peer (or waits there, paused), and nothing of it may run here. */
bool vmf_migration_has_moved_away(VmfMigration *migration);

#endif
