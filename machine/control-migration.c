/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/control-migration.h"

#include <pthread.h>
#include <vmferry/error.h>

struct VmfMigration {
    VmfMailbox *mailbox;
    const VmfMigrationOps *ops;
    void *opaque;
    bool incoming, one_way, dry_run;
    bool was_running;
    unsigned stream_version;
    char *uri;
    VmfConnector *connector;
    VmfSession *session;
    pthread_t thread;
    GError *error; /* written by the thread, read after it has ended */
    bool ended;
    VmfStatistics statistics; /* once ended */
    char **incompatibilities;
    char *peer_host_name;
};

static void deliver_status(void *opaque, void *argument)
{
    VmfMigration *migration = opaque;

    migration->ops->status_changed(migration->opaque, GPOINTER_TO_UINT(argument));
}

static void post_status(void *opaque, VmfStatus status)
{
    VmfMigration *migration = opaque;

    vmf_mailbox_post(migration->mailbox, deliver_status, migration, GUINT_TO_POINTER(status), NULL);
}

static void deliver_event(void *opaque, void *argument)
{
    VmfMigration *migration = opaque;
    char **id_and_text = argument;

    migration->ops->event(migration->opaque, id_and_text[0], id_and_text[1]);
}

static void post_event(void *opaque, const char *id, const char *text)
{
    VmfMigration *migration = opaque;
    char **id_and_text = g_new0(char *, 3);

    id_and_text[0] = g_strdup(id);
    id_and_text[1] = g_strdup(text);
    vmf_mailbox_post(migration->mailbox, deliver_event, migration, id_and_text, (GDestroyNotify)g_strfreev);
}

static const VmfSessionOps session_ops = {
    .size = sizeof(VmfSessionOps), .status_changed = post_status, .event = post_event};

/* The session's memory (digests, bitmaps) goes at once; what people may still ask stays. */
static void conclude(VmfMigration *migration)
{
    pthread_join(migration->thread, NULL);
    migration->statistics.size = sizeof(VmfStatistics);
    vmf_session_get_statistics(migration->session, &migration->statistics);
    migration->incompatibilities = vmf_session_incompatibilities(migration->session);
    migration->peer_host_name = vmf_session_peer_host_name(migration->session);
    g_clear_pointer(&migration->session, vmf_session_free);
    g_clear_pointer(&migration->connector, vmf_connector_free);
    migration->ended = true;
}

static void deliver_end(void *opaque, void *argument)
{
    VmfMigration *migration = opaque;

    if (migration->ended)
        return;
    conclude(migration);
    migration->ops->ended(migration->opaque);
}

static void *run(void *opaque)
{
    VmfMigration *migration = opaque;

    vmf_session_run(migration->session, &migration->error);
    vmf_mailbox_post(migration->mailbox, deliver_end, migration, NULL, NULL);
    return NULL;
}

VmfMigration *vmf_migration_new(const VmfMigrationConfig *config, GError **error)
{
    VmfMigration *migration = g_new0(VmfMigration, 1);

    migration->mailbox = config->mailbox;
    migration->ops = config->ops;
    migration->opaque = config->opaque;
    migration->incoming = !config->connector;
    migration->connector = config->connector;
    migration->one_way = config->connector && vmf_connector_is_one_way(config->connector);
    migration->dry_run = config->parameters->dry_run;
    migration->stream_version = config->parameters->stream_version;
    migration->uri = g_strdup(config->uri);
    migration->was_running = config->was_running;
    migration->session =
        config->connector
            ? vmf_session_new_source(config->guest, config->connector, config->parameters, &session_ops, migration)
            : vmf_session_new_target(config->guest, config->listener, config->parameters, &session_ops, migration);
    if (pthread_create(&migration->thread, NULL, run, migration) == 0)
        return migration;
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "migration: no thread can be started");
    vmf_session_free(migration->session);
    vmf_connector_free(migration->connector);
    g_free(migration->uri);
    g_free(migration);
    return NULL;
}

/* Letters that the thread posted refer to the migration: they are delivered first, so that none comes after. */
void vmf_migration_free(VmfMigration *migration)
{
    if (!migration)
        return;
    if (!migration->ended) {
        vmf_session_cancel(migration->session);
        conclude(migration);
        vmf_mailbox_deliver(migration->mailbox);
    }
    g_clear_error(&migration->error);
    g_strfreev(migration->incompatibilities);
    g_free(migration->peer_host_name);
    g_free(migration->uri);
    g_free(migration);
}

bool vmf_migration_has_ended(const VmfMigration *migration)
{
    return migration->ended;
}

bool vmf_migration_is_incoming(const VmfMigration *migration)
{
    return migration->incoming;
}

bool vmf_migration_is_one_way(const VmfMigration *migration)
{
    return migration->one_way;
}

bool vmf_migration_is_dry_run(const VmfMigration *migration)
{
    return migration->dry_run;
}

unsigned vmf_migration_stream_version(const VmfMigration *migration)
{
    return migration->stream_version;
}

const char *vmf_migration_uri(const VmfMigration *migration)
{
    return migration->uri;
}

bool vmf_migration_was_running(const VmfMigration *migration)
{
    return migration->was_running;
}

void vmf_migration_set_was_running(VmfMigration *migration, bool running)
{
    migration->was_running = running;
}

VmfSession *vmf_migration_session(VmfMigration *migration)
{
    return migration->session;
}

const GError *vmf_migration_error(const VmfMigration *migration)
{
    return migration->ended ? migration->error : NULL;
}

const char *vmf_migration_peer_host_name(const VmfMigration *migration)
{
    return migration->peer_host_name;
}

char *const *vmf_migration_incompatibilities(const VmfMigration *migration)
{
    static char *const none[] = {NULL};

    return migration->incompatibilities ? migration->incompatibilities : none;
}

void vmf_migration_get_statistics(VmfMigration *migration, VmfStatistics *statistics)
{
    if (migration->ended) {
        *statistics = migration->statistics;
        return;
    }
    statistics->size = sizeof(*statistics);
    vmf_session_get_statistics(migration->session, statistics);
}

bool vmf_migration_has_moved_away(VmfMigration *migration)
{
    VmfStatistics statistics;

    if (migration->incoming || migration->one_way || migration->dry_run)
        return false;
    vmf_migration_get_statistics(migration, &statistics);
    return statistics.status == VMF_STATUS_COMPLETED;
}
