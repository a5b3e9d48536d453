/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Migrations of the machine: how they begin, what their end means for the guest here. */
#include "machine/control-state.h"
#include "machine/qmp.h"

#include <vmferry/error.h>

#define PASS_INTERVAL_MS 50 /* how often the session is asked for its round */

static void tell_passes(VmfControl *control)
{
    VmfStatistics statistics;

    vmf_migration_get_statistics(control->migration, &statistics);
    while (control->events && control->passes_told < statistics.round) {
        control->passes_told++;
        vmf_control_event(control, "MIGRATION_PASS", json_pack("{s:i}", "pass", (int)control->passes_told));
    }
}

static gboolean on_pass_timer(void *opaque)
{
    tell_passes(opaque);
    vmf_control_note_run_state(opaque);
    return G_SOURCE_CONTINUE;
}

static void log_line(VmfControl *control, const char *id, const char *text)
{
    if (control->config.log)
        control->config.log(control->config.opaque, control->side, id, text);
}

static void on_status(void *opaque, VmfStatus status)
{
    VmfControl *control = opaque;

    log_line(control, "status", vmf_status_word(status));
    vmf_control_note_run_state(control);
    if (control->events)
        vmf_control_event(control, "MIGRATION", json_pack("{s:s}", "status", vmf_status_word(status)));
}

static void on_event(void *opaque, const char *id, const char *text)
{
    log_line(opaque, id, text);
    vmf_control_event(opaque, "X_VMFERRY_EVENT", json_pack("{s:s,s:s}", "id", id, "text", text));
}

static void stop_pass_timer(VmfControl *control)
{
    if (control->pass_timer)
        g_source_remove(control->pass_timer);
    control->pass_timer = 0;
}

static void on_source_ended(void *opaque);
static void on_target_ended(void *opaque);
static const VmfMigrationOps source_ops = {.status_changed = on_status, .event = on_event, .ended = on_source_ended};
static const VmfMigrationOps target_ops = {.status_changed = on_status, .event = on_event, .ended = on_target_ended};

static bool begin(VmfControl *control, VmfConnector *connector, const VmfParameters *parameters, const char *uri,
                  GError **error)
{
    VmfMigrationConfig config = {
        .guest = vmf_machine_guest(control->config.machine),
        .connector = connector,
        .listener = control->listener,
        .parameters = parameters,
        .uri = uri,
        .was_running = connector && vmf_machine_is_running(control->config.machine),
        .mailbox = control->mailbox,
        .ops = connector ? &source_ops : &target_ops,
        .opaque = control,
    };
    VmfMigration *migration;

    vmf_machine_lend(control->config.machine);
    migration = vmf_migration_new(&config, error);
    if (!migration) {
        vmf_machine_take_back(control->config.machine);
        return false;
    }
    vmf_migration_free(control->migration);
    control->migration = migration;
    control->side = connector ? "source" : "target";
    control->passes_told = 0;
    control->pass_timer = g_timeout_add(PASS_INTERVAL_MS, on_pass_timer, control);
    return true;
}

/* ---- out of here ------------------------------------------------------------------------------------------------- */

static bool may_migrate(VmfControl *control, GError **error)
{
    const char *why = NULL;

    if (vmf_control_awaits_guest(control))
        why = "Guest is waiting for an incoming migration";
    else if (vmf_control_is_migrating(control))
        why = "There's a migration process in progress";
    else if (control->migration && vmf_migration_has_moved_away(control->migration))
        why = "the guest has moved away";
    else if (vmf_control_is_held(control))
        why = "the outcome of the last migration is not known";
    if (why)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: migrate: %s", control->config.name, why);
    return !why;
}

bool vmf_control_migrate(VmfControl *control, const VmfMigrateRequest *request, GError **error)
{
    VmfParameters parameters = *request->parameters;
    VmfConnector *connector;

    if (!may_migrate(control, error))
        return false;
    connector = vmf_connector_new(request->uri, request->flags, error);
    if (!connector)
        return false;
    parameters.host_name = control->config.host_name;
    control->then = request->then;
    return begin(control, connector, &parameters, request->uri, error);
}

static void after_save(VmfControl *control)
{
    if (control->then == VMF_THEN_CONT)
        vmf_control_cont_guest(control, NULL);
    else if (control->then == VMF_THEN_QUIT)
        vmf_control_quit(control, "host-qmp-quit");
}

static void log_end(VmfControl *control)
{
    const GError *error = vmf_migration_error(control->migration);
    VmfStatistics statistics;

    vmf_migration_get_statistics(control->migration, &statistics);
    const char *outcome = vmf_outcome_word(statistics.outcome);
    g_autofree char *text = error ? g_strdup_printf("%s: %s", outcome, error->message) : g_strdup(outcome);
    log_line(control, "ended", text);
}

static void tell_end(VmfControl *control)
{
    stop_pass_timer(control);
    log_end(control);
    tell_passes(control);
    vmf_control_note_run_state(control);
    vmf_control_event(control, "X_VMFERRY_MIGRATION_ENDED", vmf_qmp_migration_detail(control->migration));
}

/* The guest is its owner's alone again, unless it has gone or may have. */
static void take_back(VmfControl *control)
{
    if (!vmf_migration_has_moved_away(control->migration) && !vmf_control_is_held(control))
        vmf_machine_take_back(control->config.machine);
}

static void on_source_ended(void *opaque)
{
    VmfControl *control = opaque;
    VmfStatistics statistics;

    take_back(control);
    tell_end(control);
    vmf_migration_get_statistics(control->migration, &statistics);
    if (vmf_migration_has_moved_away(control->migration))
        vmf_machine_release_ram(control->config.machine,
                                NULL); /* what cannot be given back now goes with the process */
    else if (statistics.outcome == VMF_OUTCOME_COMPLETED && vmf_migration_is_one_way(control->migration))
        after_save(control);
    if (control->quitting)
        g_main_loop_quit(control->loop);
}

/* ---- into here --------------------------------------------------------------------------------------------------- */

static bool await_guest(VmfControl *control, GError **error)
{
    VmfParameters parameters = control->parameters;

    parameters.host_name = control->config.host_name;
    return begin(control, NULL, &parameters, vmf_listener_uri(control->listener), error);
}

bool vmf_control_incoming(VmfControl *control, const char *uri, GError **error)
{
    if (!control->awaiting_guest || control->listener) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: migrate-incoming: %s", control->config.name,
                    control->listener ? "The incoming migration has already been started"
                                      : "'--incoming' was not specified on the command line");
        return false;
    }
    control->listener = vmf_listener_new(uri, control->config.insecure ? VMF_CONNECT_INSECURE : 0, error);
    if (!control->listener)
        return false;
    if (await_guest(control, error))
        return true;
    g_clear_pointer(&control->listener, vmf_listener_free);
    return false;
}

const char *vmf_control_incoming_uri(const VmfControl *control)
{
    return control->listener ? vmf_listener_uri(control->listener) : NULL;
}

static void arrived(VmfControl *control)
{
    control->awaiting_guest = false;
    vmf_machine_take_back(control->config.machine);
    vmf_listener_shutdown(control->listener);
    tell_end(control);
    if (control->quitting)
        g_main_loop_quit(control->loop);
}

static void did_not_arrive(VmfControl *control)
{
    const GError *error = vmf_migration_error(control->migration);

    tell_end(control);
    if (!control->quitting)
        control->error =
            error ? g_error_copy(error) : g_error_new(VMF_ERROR, VMF_ERROR_INTERNAL, "the guest did not arrive");
    g_main_loop_quit(control->loop);
}

/* A preflight was a question: the guest itself is still awaited. */
static void await_again(VmfControl *control)
{
    tell_end(control);
    if (control->quitting || !await_guest(control, &control->error))
        g_main_loop_quit(control->loop);
}

static void on_target_ended(void *opaque)
{
    VmfControl *control = opaque;
    VmfStatistics statistics;

    vmf_migration_get_statistics(control->migration, &statistics);
    switch (statistics.outcome) {
    case VMF_OUTCOME_COMPLETED:
        arrived(control);
        return;
    case VMF_OUTCOME_PREFLIGHT_OK:
    case VMF_OUTCOME_PREFLIGHT_REFUSED:
        await_again(control);
        return;
    case VMF_OUTCOME_HELD:
        tell_end(control);
        return;
    default:
        did_not_arrive(control);
    }
}

void vmf_control_forget_migration(VmfControl *control)
{
    stop_pass_timer(control);
    g_clear_pointer(&control->migration, vmf_migration_free);
    g_clear_pointer(&control->listener, vmf_listener_free);
}
