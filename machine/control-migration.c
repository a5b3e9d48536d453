/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/control-migration.h"

#include <pthread.h>
#include <string.h>
#include <vmferry/error.h>

#define HOLD_OF_OWNER "handover.held"
#define HOLD_OF_STORAGE "handover.storage"
#define HOLD_OF_MEMORY "restore.held"

struct VmfMigration {
    VmfMailbox *mailbox;
    const VmfMigrationOps *ops;
    void *opaque;
    bool incoming, one_way, is_save, dry_run;
    bool was_running, resumes;
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
    const char *hold_id; /* of the session's latest event that stated a hold; NULL: none */
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
    static const char *const holds[] = {HOLD_OF_OWNER, HOLD_OF_STORAGE, HOLD_OF_MEMORY};
    VmfMigration *migration = opaque;
    char **id_and_text = argument;

    for (size_t i = 0; i < G_N_ELEMENTS(holds); i++)
        if (strcmp(id_and_text[0], holds[i]) == 0)
            migration->hold_id = holds[i];
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
    vmf_migration_peer_host_name(migration);
    g_clear_pointer(&migration->session, vmf_session_free);
    g_clear_pointer(&migration->connector, vmf_connector_free);
    migration->ended = true;
}

char *vmf_migration_hold(VmfMigration *migration)
{
    if (!migration->ended)
        return vmf_session_hold(migration->session);
    return migration->statistics.outcome == VMF_OUTCOME_HELD ? g_strdup(migration->error->message) : NULL;
}

static void deliver_end(void *opaque, void *argument)
{
    VmfMigration *migration = opaque;

    if (migration->ended)
        return;
    conclude(migration);
    migration->ops->ended(migration->opaque);
}

const char *vmf_migration_hold_id(const VmfMigration *migration)
{
    return migration->hold_id ? migration->hold_id : HOLD_OF_OWNER;
}

void vmf_migration_finish(VmfMigration *migration)
{
    if (migration->ended)
        return;
    vmf_session_cancel(migration->session);
    conclude(migration);
    vmf_mailbox_deliver(migration->mailbox); /* none of its thread's letters comes after, when it may have been freed */
    migration->ops->ended(migration->opaque);
}

static void *run(void *opaque)
{
    VmfMigration *migration = opaque;

    vmf_session_run(migration->session, &migration->error);
    vmf_mailbox_post(migration->mailbox, deliver_end, migration, NULL, NULL);
    return NULL;
}

VmfChannel *vmf_migration_put_over_link(VmfChannel *channel, unsigned index, void *link)
{
    return vmf_filter_link(channel, link);
}

static VmfSession *new_session(const VmfMigrationConfig *config, VmfMigration *migration)
{
    if (config->save)
        return vmf_session_new_save(config->guest, config->save, config->parameters, &session_ops, migration);
    if (config->connector)
        return vmf_session_new_source(config->guest, config->connector, config->parameters, &session_ops, migration);
    if (config->restore)
        return vmf_session_new_restore(config->guest, config->restore, config->parameters, &session_ops, migration);
    return vmf_session_new_target(config->guest, config->listener, config->parameters, &session_ops, migration);
}

VmfMigration *vmf_migration_new(const VmfMigrationConfig *config, GError **error)
{
    VmfMigration *migration = g_new0(VmfMigration, 1);

    migration->mailbox = config->mailbox;
    migration->ops = config->ops;
    migration->opaque = config->opaque;
    migration->incoming = !config->connector && !config->save;
    migration->connector = config->connector;
    migration->is_save = config->save != NULL;
    migration->one_way = config->save || config->restore || (config->connector && vmf_connector_is_one_way(config->connector));
    migration->dry_run = config->parameters->dry_run;
    migration->stream_version = config->parameters->stream_version;
    migration->uri = g_strdup(config->uri);
    migration->was_running = config->was_running;
    migration->resumes = config->save && config->save->resume;
    if (config->link && config->connector)
        vmf_connector_set_wrap(config->connector, vmf_migration_put_over_link, config->link);
    migration->session = new_session(config, migration);
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

void vmf_migration_set_ops(VmfMigration *migration, const VmfMigrationOps *ops)
{
    migration->ops = ops;
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

bool vmf_migration_is_save(const VmfMigration *migration)
{
    return migration->is_save;
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

bool vmf_migration_resumes(const VmfMigration *migration)
{
    return migration->resumes && migration->was_running;
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

const char *vmf_migration_peer_host_name(VmfMigration *migration)
{
    if (!migration->ended && !migration->peer_host_name)
        migration->peer_host_name = vmf_session_peer_host_name(migration->session);
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
