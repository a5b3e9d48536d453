/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/control.h"

#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

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
    vmf_control_forget_migration(control);
    vmf_control_server_free(control->server);
    vmf_mailbox_free(control->mailbox);
    g_hash_table_unref(control->fds);
    g_main_loop_unref(control->loop);
    g_clear_error(&control->error);
    g_free((char *)control->config.name);
    g_free((char *)control->config.host_name);
    g_free((char *)control->config.socket_path);
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

bool vmf_control_awaits_guest(VmfControl *control)
{
    control->awaiting_guest &= !vmf_machine_is_running(control->config.machine);
    return control->awaiting_guest;
}

bool vmf_control_is_held(VmfControl *control)
{
    VmfStatistics statistics;

    if (!control->migration || !vmf_migration_has_ended(control->migration))
        return false;
    vmf_migration_get_statistics(control->migration, &statistics);
    return statistics.outcome == VMF_OUTCOME_HELD;
}

static bool is_switching_over(VmfControl *control)
{
    VmfStatistics statistics;

    if (!vmf_control_is_migrating(control) || vmf_migration_is_incoming(control->migration))
        return false;
    vmf_migration_get_statistics(control->migration, &statistics);
    return statistics.status == VMF_STATUS_DEVICE || statistics.status == VMF_STATUS_COMPLETED;
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

    if (vmf_control_is_held(control))
        why = "the guest may be running at the peer";
    else if (vmf_control_awaits_guest(control))
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

bool vmf_control_cont_guest(VmfControl *control, GError **error)
{
    bool done = is_owners_to_run(control, "cont", error) && vmf_machine_start(control->config.machine, error);

    if (done && vmf_control_is_migrating(control))
        vmf_migration_set_was_running(control->migration, true);
    vmf_control_note_run_state(control);
    return done;
}
