/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/control.h"

#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "machine/block-jobs.h"
#include "machine/control-state.h"
#include "machine/qmp.h"

static const VmfControlServerOps server_ops = {.request = vmf_qmp_request, .greeting = vmf_qmp_greeting};

static void close_fd(void *fd)
{
    close(GPOINTER_TO_INT(fd));
}

static void copy_config(VmfControl *control, const VmfControlConfig *config)
{
    control->config = *config;
    control->config.name = g_strdup(config->name);
    control->config.host_name = g_strdup(config->host_name);
    control->config.socket_path = g_strdup(config->socket_path);
    control->config.state_dir = g_strdup(config->state_dir);
}

VmfControl *vmf_control_new(const VmfControlConfig *config, GError **error)
{
    g_autoptr(VmfControl) control = g_new0(VmfControl, 1);

    copy_config(control, config);
    control->loop = g_main_loop_new(NULL, FALSE);
    control->fds = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, close_fd);
    control->awaiting_guest = config->incoming;
    control->was_running = vmf_machine_is_running(config->machine);
    if (config->incoming && config->paused) {
        vmf_machine_lend(config->machine);
        vmf_machine_stop(config->machine, NULL); /* stands already; now also once the guest is there */
    }
    vmf_parameters_init(&control->parameters);
    control->parameters.host_name = control->config.host_name;
    control->parameters.journal = config->journal;
    control->parameters.machine = control->config.name;
    control->parameters.fault = config->fault;
    control->parameters.fault_opaque = config->opaque;
    if (!vmf_parameters_check(&control->parameters, error))
        return NULL;
    control->multifd = control->events = control->return_path = control->auto_converge = true;
    control->mailbox = vmf_mailbox_new(error);
    if (!control->mailbox)
        return NULL;
    control->server = vmf_control_server_new(config->socket_path, &server_ops, control, error);
    return control->server ? g_steal_pointer(&control) : NULL;
}

void vmf_control_free(VmfControl *control)
{
    if (!control)
        return;
    vmf_block_jobs_end(control);
    vmf_control_forget_migration(control);
    vmf_control_server_free(control->server);
    vmf_mailbox_free(control->mailbox);
    g_hash_table_unref(control->fds);
    g_main_loop_unref(control->loop);
    g_clear_error(&control->error);
    g_free((char *)control->config.name);
    g_free(control->copy_disks);
    g_free(control->incremental_bitmap);
    json_decref(control->bitmap_mapping);
    g_free((char *)control->config.host_name);
    g_free((char *)control->config.socket_path);
    g_free((char *)control->config.state_dir);
    g_free(control);
}

bool vmf_control_run(VmfControl *control, GError **error)
{
    g_main_loop_run(control->loop);
    if (!control->error)
        return true;
    g_propagate_error(error, g_steal_pointer(&control->error));
    return false;
}

/* A migration under way ends first: it may be past the point where it can be taken back. */
void vmf_control_quit(VmfControl *control, const char *reason)
{
    if (control->quitting)
        return;
    control->quitting = true;
    vmf_control_event(control, "SHUTDOWN", json_pack("{s:b,s:s}", "guest", 0, "reason", reason));
    if (vmf_control_is_migrating(control))
        vmf_session_cancel(vmf_migration_session(control->migration));
    else
        g_main_loop_quit(control->loop);
}

void vmf_control_event(VmfControl *control, const char *name, json_t *data)
{
    int64_t now_us = g_get_real_time();
    json_t *event = json_pack("{s:{s:I,s:I},s:s}", "timestamp", "seconds", (json_int_t)(now_us / G_USEC_PER_SEC),
                              "microseconds", (json_int_t)(now_us % G_USEC_PER_SEC), "event", name);

    if (data)
        json_object_set_new(event, "data", data);
    if (control->server)
        vmf_control_server_broadcast(control->server, event);
    if (control->config.event)
        control->config.event(control->config.opaque, event);
    json_decref(event);
}

/* ---- the guest --------------------------------------------------------------------------------------------------- */

bool vmf_control_is_migrating(const VmfControl *control)
{
    return control->migration && !vmf_migration_has_ended(control->migration);
}

static VmfStatus incoming_status(const VmfControl *control)
{
    VmfStatistics statistics = {.status = VMF_STATUS_NONE};

    if (control->migration && vmf_migration_is_incoming(control->migration))
        vmf_migration_get_statistics(control->migration, &statistics);
    return statistics.status;
}

bool vmf_control_is_loading(const VmfControl *control)
{
    return vmf_control_is_migrating(control) && incoming_status(control) == VMF_STATUS_POSTCOPY_ACTIVE;
}

/* A guest that arrives paused is here as well once it is this side's. */
static bool has_arrived(VmfControl *control)
{
    return incoming_status(control) == VMF_STATUS_COMPLETED || vmf_control_is_loading(control) ||
           vmf_machine_is_running(control->config.machine);
}

bool vmf_control_awaits_guest(VmfControl *control)
{
    control->awaiting_guest = control->awaiting_guest && !has_arrived(control);
    return control->awaiting_guest;
}

/* The session that holds the guest, and why; NULL: none does. */
static VmfMigration *holder(VmfControl *control, char **why)
{
    VmfMigration *const migrations[] = {control->migration, control->loading};

    for (size_t i = 0; i < G_N_ELEMENTS(migrations); i++)
        if (migrations[i] && (*why = vmf_migration_hold(migrations[i])))
            return migrations[i];
    *why = NULL;
    return NULL;
}

bool vmf_control_is_held(VmfControl *control)
{
    g_autofree char *hold = NULL;

    return holder(control, &hold) != NULL;
}

static bool holds_nothing(VmfControl *control, VmfErrorCode code, const char *operation, GError **error)
{
    g_autofree char *hold = NULL;

    if (!holder(control, &hold))
        return true;
    g_set_error(error, VMF_ERROR, code, "machine %s: %s: the guest is held: %s", control->config.name, operation, hold);
    return false;
}

bool vmf_control_holds_nothing(VmfControl *control, const char *operation, GError **error)
{
    return holds_nothing(control, VMF_ERROR_HELD, operation, error);
}

bool vmf_control_resolve(VmfControl *control, bool run, bool fenced, GError **error)
{
    g_autofree char *hold = NULL;
    VmfMigration *held = holder(control, &hold);

    if (held && !vmf_migration_has_ended(held))
        return vmf_session_resolve(vmf_migration_session(held), run, fenced, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: resolve: no guest is held here", control->config.name);
    return false;
}

static bool is_switching_over(VmfControl *control)
{
    VmfStatistics statistics;

    if (!vmf_control_is_migrating(control) || vmf_migration_is_incoming(control->migration))
        return false;
    vmf_migration_get_statistics(control->migration, &statistics);
    return statistics.status == VMF_STATUS_DEVICE || statistics.status == VMF_STATUS_COMPLETED;
}

static bool has_failed(VmfControl *control)
{
    VmfMachineInfo info;

    vmf_machine_get_info(control->config.machine, &info);
    return *info.failure;
}

const char *vmf_control_run_state(VmfControl *control)
{
    if (vmf_control_is_held(control))
        return "finish-migrate";
    if (vmf_control_awaits_guest(control))
        return "inmigrate";
    if (control->migration && vmf_migration_has_moved_away(control->migration))
        return "postmigrate";
    if (vmf_machine_is_running(control->config.machine))
        return "running";
    if (has_failed(control))
        return "internal-error";
    return is_switching_over(control) ? "finish-migrate" : "paused";
}

void vmf_control_note_run_state(VmfControl *control)
{
    bool running = vmf_machine_is_running(control->config.machine);

    if (running == control->was_running)
        return;
    control->was_running = running;
    vmf_control_event(control, running ? "RESUME" : "STOP", NULL);
}

static bool is_owners_to_run(VmfControl *control, const char *verb, GError **error)
{
    const char *why = NULL;

    if (!holds_nothing(control, VMF_ERROR_OFFERED, verb, error))
        return false;
    if (vmf_control_awaits_guest(control))
        why = "the guest has not arrived";
    else if (control->migration && vmf_migration_has_moved_away(control->migration))
        why = "the guest has moved away";
    else if (is_switching_over(control))
        why = "the guest is being handed over";
    if (why)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: %s: %s", control->config.name, verb, why);
    return !why;
}

bool vmf_control_stop_guest(VmfControl *control, GError **error)
{
    bool done = is_owners_to_run(control, "stop", error) && vmf_machine_stop(control->config.machine, error);

    if (done && vmf_control_is_migrating(control))
        vmf_migration_set_was_running(control->migration, false);
    vmf_control_note_run_state(control);
    return done;
}

bool vmf_control_has_no_offer(VmfControl *control, const char *operation, GError **error)
{
    VmfJournalEntry entry;

    if (!control->config.journal)
        return true;
    if (!vmf_journal_find_offer(control->config.journal, control->config.name, &entry, error))
        return false;
    if (entry.state != VMF_JOURNAL_OFFERED)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_OFFERED, "machine %s: %s: its guest was offered to %s and may be running there",
                control->config.name, operation, *entry.peer_host ? entry.peer_host : entry.peer);
    return false;
}

/* The session took the guest back and could not write that down: now perhaps. */
static void write_back(VmfControl *control)
{
    VmfJournalEntry entry;

    if (!control->migration || !control->config.journal || vmf_control_is_migrating(control) || vmf_control_is_held(control) ||
        vmf_migration_is_incoming(control->migration) || vmf_migration_has_moved_away(control->migration))
        return;
    if (vmf_journal_find_offer(control->config.journal, control->config.name, &entry, NULL) && entry.state == VMF_JOURNAL_OFFERED)
        vmf_journal_set(control->config.journal, true, entry.token, VMF_JOURNAL_BACK, NULL, NULL);
}

/* A session that runs knows better than its entry: until it stops the guest for the handover the guest is its owner's. */
static bool may_cont(VmfControl *control, GError **error)
{
    write_back(control);
    return is_owners_to_run(control, "cont", error) &&
           (vmf_control_is_migrating(control) || vmf_control_has_no_offer(control, "cont", error));
}

bool vmf_control_cont_guest(VmfControl *control, GError **error)
{
    bool done = may_cont(control, error) && vmf_machine_start(control->config.machine, error);

    if (done && vmf_control_is_migrating(control))
        vmf_migration_set_was_running(control->migration, true);
    vmf_control_note_run_state(control);
    return done;
}
