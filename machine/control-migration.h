/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One migration of the machine, from the command to its outcome: a session, the thread that runs it, and what became of
 * it. */
#ifndef VMFERRY_MACHINE_CONTROL_MIGRATION_H
#define VMFERRY_MACHINE_CONTROL_MIGRATION_H

#include <vmferry/restore.h>
#include <vmferry/save.h>
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
    const VmfSaveOptions *save; /* source: into an image instead of through a connector */
    VmfListener *listener;   /* target: the owner keeps it, it outlives the migration */
    const VmfRestoreOptions *restore; /* target: from an image, and nobody is listened to; copied. NULL: not */
    const VmfParameters *parameters;
    const char *uri;  /* as people gave it; copied */
    VmfLink *link;    /* its channels go over it; NULL: none */
    bool was_running; /* source: the guest runs */
    VmfMailbox *mailbox;
    const VmfMigrationOps *ops;
    void *opaque;
} VmfMigrationConfig;

/* Starts it. */
VmfMigration *vmf_migration_new(const VmfMigrationConfig *config, GError **error);
/* Cancels one that has not ended, waits for the end and tells it. Not from within a call of its ops. */
void vmf_migration_finish(VmfMigration *migration);
/* Cancels, waits for the end, frees. */
void vmf_migration_free(VmfMigration *migration);

/* From now on others are told. */
void vmf_migration_set_ops(VmfMigration *migration, const VmfMigrationOps *ops);

bool vmf_migration_has_ended(const VmfMigration *migration);
bool vmf_migration_is_incoming(const VmfMigration *migration);
/* Source: nobody answers at the other end, so the guest stays with its owner here. */
bool vmf_migration_is_one_way(const VmfMigration *migration);
/* Source: into an image. */
bool vmf_migration_is_save(const VmfMigration *migration);
bool vmf_migration_is_dry_run(const VmfMigration *migration);
unsigned vmf_migration_stream_version(const VmfMigration *migration);
const char *vmf_migration_uri(const VmfMigration *migration);
/* Source: whether the guest ran as far as its owner is concerned, who may change that while the migration runs. */
bool vmf_migration_was_running(const VmfMigration *migration);
void vmf_migration_set_was_running(VmfMigration *migration, bool running);
/* Whether it is a save after which the guest goes on. */
bool vmf_migration_resumes(const VmfMigration *migration);
/* The session, or NULL after the end. */
VmfSession *vmf_migration_session(VmfMigration *migration);
/* Why it holds the guest, one sentence, owned by the caller; NULL: it does not. Also of one that was ended while it did. */
char *vmf_migration_hold(VmfMigration *migration);
/* What kind of hold that is, or was last: "handover.held", nobody knows who has the guest; "handover.storage", it is ours
 * and its storage is another's; "restore.held", it is ours and a part of its memory cannot be had. */
const char *vmf_migration_hold_id(const VmfMigration *migration);
/* Why it failed, or NULL. */
const GError *vmf_migration_error(const VmfMigration *migration);
/* NULL-terminated, empty before the end. */
char *const *vmf_migration_incompatibilities(const VmfMigration *migration);
/* What the other side calls its host; NULL where it did not say, or has not yet. */
const char *vmf_migration_peer_host_name(VmfMigration *migration);
/* A VmfChannelWrap: adds the channel to a VmfLink. For the listener, which is its owner's. */
VmfChannel *vmf_migration_put_over_link(VmfChannel *channel, unsigned index, void *link);
void vmf_migration_get_statistics(VmfMigration *migration, VmfStatistics *statistics);

/* The guest runs at the peer (or waits there, paused), and nothing of it may run here. */
bool vmf_migration_has_moved_away(VmfMigration *migration);

#endif
