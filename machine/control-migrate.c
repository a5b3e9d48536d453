/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Migrations of the machine: how they begin, what their end means for the guest here. */
#include "machine/bitmap-map.h"
#include "machine/control-state.h"
#include "machine/qmp.h"

#include <string.h>
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

/* What was offered from here in the past is here again, so it was taken there: that this was never told is of no more interest. */
static void settle_offer(VmfControl *control)
{
    VmfJournal *journal = control->config.journal;
    uint8_t uuid[16];
    VmfJournalEntry entry;

    if (control->offer_settled || !journal || !control->listener || vmf_listener_is_one_way(control->listener) ||
        vmf_control_awaits_guest(control))
        return;
    control->offer_settled = true;
    if (!vmf_journal_find_offer(journal, control->config.name, &entry, NULL))
        return;
    vmf_guest_uuid(vmf_machine_guest(control->config.machine), uuid);
    if (entry.state == VMF_JOURNAL_OFFERED && memcmp(entry.uuid, uuid, sizeof(uuid)) == 0)
        vmf_journal_set(journal, true, entry.token, VMF_JOURNAL_GONE, NULL, NULL);
}

/* Who quits while the guest changes hands may find it held in the end; the session waits for a second word then. */
static void quit_held(VmfControl *control)
{
    if (control->quitting && vmf_control_is_migrating(control) && vmf_control_is_held(control))
        vmf_session_cancel(vmf_migration_session(control->migration));
}

static gboolean on_pass_timer(void *opaque)
{
    tell_passes(opaque);
    vmf_control_note_run_state(opaque);
    settle_offer(opaque);
    quit_held(opaque);
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

/* Clients follow the migration that has come after it. */
static void on_loading_status(void *opaque, VmfStatus status)
{
    log_line(opaque, "status", vmf_status_word(status));
}

static void stop_pass_timer(VmfControl *control)
{
    if (control->pass_timer)
        g_source_remove(control->pass_timer);
    control->pass_timer = 0;
}

static void on_source_ended(void *opaque);
static void on_target_ended(void *opaque);
static void on_loading_ended(void *opaque);
static const VmfMigrationOps source_ops = {.status_changed = on_status, .event = on_event, .ended = on_source_ended};
static const VmfMigrationOps target_ops = {.status_changed = on_status, .event = on_event, .ended = on_target_ended};
static const VmfMigrationOps loading_ops = {.status_changed = on_loading_status, .event = on_event, .ended = on_loading_ended};

/* Makes room for the next one. */
static void dismiss(VmfControl *control)
{
    if (vmf_control_is_loading(control)) {
        vmf_migration_set_ops(control->migration, &loading_ops);
        control->loading = control->migration;
        stop_pass_timer(control);
    } else {
        vmf_migration_free(control->migration);
    }
    control->migration = NULL;
}

/* What is the same for all of them is filled in here. */
static bool begin(VmfControl *control, VmfMigrationConfig *config, GError **error)
{
    bool outgoing = config->connector || config->save;
    VmfMigration *migration;

    config->guest = vmf_machine_guest(control->config.machine);
    config->link = control->config.link;
    config->was_running = outgoing && vmf_machine_is_running(control->config.machine);
    config->mailbox = control->mailbox;
    config->ops = outgoing ? &source_ops : &target_ops;
    config->opaque = control;
    vmf_machine_lend(control->config.machine);
    migration = vmf_migration_new(config, error);
    if (!migration) {
        vmf_machine_take_back(control->config.machine);
        return false;
    }
    dismiss(control);
    control->migration = migration;
    control->side = outgoing ? "source" : "target";
    control->passes_told = 0;
    control->pass_timer = g_timeout_add(PASS_INTERVAL_MS, on_pass_timer, control);
    return true;
}

/* ---- out of here ------------------------------------------------------------------------------------------------- */

/* The guest is here, and its session stays for a source that may have missed that: it has waited long enough if the guest moves on. */
static void end_arrival(VmfControl *control)
{
    if (vmf_control_is_migrating(control) && vmf_migration_is_incoming(control->migration) && !vmf_control_awaits_guest(control) &&
        !vmf_control_is_loading(control))
        vmf_migration_finish(control->migration);
}

static bool may_migrate(VmfControl *control, GError **error)
{
    const char *why = NULL;

    if (!vmf_control_holds_nothing(control, "migrate", error))
        return false;
    end_arrival(control);
    if (vmf_control_awaits_guest(control))
        why = "Guest is waiting for an incoming migration";
    else if (vmf_control_is_migrating(control) && !vmf_control_is_loading(control))
        why = "There's a migration process in progress";
    else if (control->migration && vmf_migration_has_moved_away(control->migration))
        why = "the guest has moved away";
    if (why)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: migrate: %s", control->config.name, why);
    return !why;
}

/* It would not go on at the target either, and nothing there would say why. Into an image it may go, for who looks into it. */
static bool goes_on(VmfControl *control, GError **error)
{
    VmfMachineInfo info;

    vmf_machine_get_info(control->config.machine, &info);
    if (*info.failure)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: migrate: the guest cannot go on: %s", control->config.name,
                    info.failure);
    return !*info.failure;
}

bool vmf_control_migrate(VmfControl *control, const VmfMigrateRequest *request, GError **error)
{
    VmfParameters parameters = *request->parameters;
    VmfConnector *connector;

    if (!may_migrate(control, error) || !goes_on(control, error) ||
        !vmf_bitmap_map_apply(control->config.machine, request->bitmaps, false, error))
        return false;
    connector = vmf_connector_new(request->uri, request->flags, error);
    if (!connector)
        return false;
    parameters.peer = request->uri;
    control->then = request->then;
    VmfMigrationConfig config = {.connector = connector, .parameters = &parameters, .uri = request->uri};
    return begin(control, &config, error);
}

static bool is_kvm(const VmfControl *control)
{
    VmfMachineInfo info;

    vmf_machine_get_info(control->config.machine, &info);
    return strcmp(info.backend, "kvm") == 0;
}

/* The lock stands for storage that the machine does not know more of. */
static bool check_storage(VmfControl *control, const VmfSaveOptions *options, GError **error)
{
    VmfMachineInfo info;

    vmf_machine_get_info(control->config.machine, &info);
    if (!info.lock_path || !options->resume || options->ram_only)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "machine %s: save: the guest goes on and writes the storage that its lock stands for: save its memory alone "
                "(--ram-only), or leave it stopped (--then stop)",
                control->config.name);
    return false;
}

bool vmf_control_save(VmfControl *control, const VmfSaveOptions *options, const VmfParameters *parameters, bool quit,
                      GError **error)
{
    VmfSaveOptions own = *options;
    VmfMigrationConfig config = {.save = &own, .parameters = parameters, .uri = options->uri};

    own.kernel_writes = is_kvm(control);
    if (!may_migrate(control, error) || !check_storage(control, options, error) ||
        !vmf_bitmap_map_apply(control->config.machine, NULL, false, error)) /* images have no bitmaps */
        return false;
    control->then = quit ? VMF_THEN_QUIT : VMF_THEN_STOP;
    return begin(control, &config, error);
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

/* A hold that ended with the machine is what the machine ends with. */
static void quit_if_due(VmfControl *control)
{
    if (!control->quitting)
        return;
    vmf_control_holds_nothing(control, "quit", &control->error);
    g_main_loop_quit(control->loop);
}

static void on_source_ended(void *opaque)
{
    VmfControl *control = opaque;
    VmfStatistics statistics;

    take_back(control);
    tell_end(control);
    vmf_migration_get_statistics(control->migration, &statistics);
    if (vmf_migration_has_moved_away(control->migration)) {
        g_clear_pointer(&control->loading, vmf_migration_free);
        vmf_machine_release_ram(control->config.machine, NULL); /* what cannot be given back now goes with the process */
    } else if (statistics.outcome == VMF_OUTCOME_COMPLETED && vmf_migration_is_one_way(control->migration))
        after_save(control);
    quit_if_due(control);
}

/* ---- into here --------------------------------------------------------------------------------------------------- */

static bool await_guest(VmfControl *control, GError **error)
{
    VmfMigrationConfig config = {
        .listener = control->listener, .parameters = &control->parameters, .uri = vmf_listener_uri(control->listener)};

    return begin(control, &config, error);
}

static bool awaits_nobody_yet(VmfControl *control, GError **error)
{
    bool begun = control->listener || control->migration;

    if (control->awaiting_guest && !begun)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: migrate-incoming: %s", control->config.name,
                begun ? "The incoming migration has already been started"
                      : "'--incoming' was not specified on the command line");
    return false;
}

/* An image, or a stream without a way back, is a copy of the guest, and what it is a copy of may be running elsewhere. */
static bool may_take_copy(VmfControl *control, GError **error)
{
    return vmf_control_has_no_offer(control, "migrate-incoming", error);
}

bool vmf_control_restore(VmfControl *control, const VmfRestoreOptions *options, unsigned n_threads, GError **error)
{
    VmfParameters parameters = control->parameters;
    VmfRestoreOptions own = *options;
    VmfMigrationConfig config = {.restore = &own, .parameters = &parameters, .uri = options->uri};

    own.kernel_touches = is_kvm(control);
    if (n_threads > 0)
        parameters.channels = n_threads;
    return awaits_nobody_yet(control, error) && may_take_copy(control, error) && begin(control, &config, error);
}

/* What is read at any place, not listened to. */
static bool is_image(VmfControl *control, const char *uri)
{
    if (g_str_has_prefix(uri, "nbd:") || g_str_has_prefix(uri, "nbd+unix:"))
        return true;
    return g_str_has_prefix(uri, "file:") && (control->mapped_ram || vmf_image_is_at(uri + strlen("file:")));
}

static bool listen_at(VmfControl *control, const char *uri, GError **error)
{
    control->listener = vmf_listener_new(uri, control->config.insecure ? VMF_CONNECT_INSECURE : 0, error);
    if (!control->listener)
        return false;
    if (control->config.link)
        vmf_listener_set_wrap(control->listener, vmf_migration_put_over_link, control->config.link);
    if ((!vmf_listener_is_one_way(control->listener) || may_take_copy(control, error)) && await_guest(control, error))
        return true;
    g_clear_pointer(&control->listener, vmf_listener_free);
    return false;
}

static bool restore_from(VmfControl *control, const char *uri, VmfRestoreMode mode, GError **error)
{
    bool is_file = g_str_has_prefix(uri, "file:");
    g_autofree char *order = is_file ? g_strconcat(uri + strlen("file:"), ".order", NULL) : NULL;
    VmfRestoreOptions options = {
        .size = sizeof(options),
        .uri = uri,
        .flags = control->config.insecure ? VMF_CONNECT_INSECURE : 0,
        .paused = control->config.paused,
        .mode = mode,
        .order_path = mode == VMF_RESTORE_LAZY ? order : NULL,
    };

    return vmf_control_restore(control, &options, 0, error);
}

bool vmf_control_incoming(VmfControl *control, const char *uri, VmfRestoreMode mode, GError **error)
{
    if (!awaits_nobody_yet(control, error))
        return false;
    if (is_image(control, uri))
        return restore_from(control, uri, mode, error);
    if (mode == VMF_RESTORE_EAGER)
        return listen_at(control, uri, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: migrate-incoming: x-vmferry-lazy: only an image can be restored lazily", uri);
    return false;
}

const char *vmf_control_incoming_uri(const VmfControl *control)
{
    return control->listener ? vmf_listener_uri(control->listener) : NULL;
}

static void arrived(VmfControl *control)
{
    control->awaiting_guest = false;
    settle_offer(control);
    vmf_machine_take_back(control->config.machine);
    /* Nobody is awaited or answered here any more: the address is for the next who wants to. */
    g_clear_pointer(&control->listener, vmf_listener_free);
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
        quit_if_due(control);
        return;
    default:
        did_not_arrive(control);
    }
}

/* It is no longer the migration that is asked about, and what is known of it goes with the event. */
static void tell_whole(VmfControl *control)
{
    static const char id[] = "restore.whole", text[] = "all of the guest is here";

    log_line(control, id, text);
    vmf_control_event(control, "X_VMFERRY_EVENT",
                      json_pack("{s:s,s:s,s:o}", "id", id, "text", text, "x-vmferry", vmf_qmp_migration_detail(control->loading)));
}

/* The guest was moving on already. If it has not all of its memory, it is lost with whatever was under way. */
static void on_loading_ended(void *opaque)
{
    VmfControl *control = opaque;
    const GError *error = vmf_migration_error(control->loading);

    if (error) {
        if (!control->error)
            control->error = g_error_copy(error);
        vmf_control_quit(control, "host-error");
    } else {
        tell_whole(control);
        if (!vmf_control_is_migrating(control))
            vmf_machine_take_back(control->config.machine);
    }
    g_clear_pointer(&control->loading, vmf_migration_free);
}

void vmf_control_forget_migration(VmfControl *control)
{
    stop_pass_timer(control);
    g_clear_pointer(&control->migration, vmf_migration_free);
    g_clear_pointer(&control->loading, vmf_migration_free);
    g_clear_pointer(&control->listener, vmf_listener_free);
}
