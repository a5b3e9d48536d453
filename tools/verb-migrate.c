/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Drives a migration through the machine's control socket: starts it, shows how it goes, says how it ended. The machine
 * needs nobody to look on; when this process goes, the migration does not.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/vmferry.h>

#include "machine/qmp-error.h"
#include "tools/common.h"
#include "tools/interrupts.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/report.h"
#include "tools/summary.h"

#define PROGRESS_MS 100
#define SETTLE_MS 10

static const char description[] = "Moves the guest of machine NAME, running, to the machine that waits at URI "
                                  "(tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND), or "
                                  "writes it to file:PATH. The last line says who runs the guest and what it cost. "
                                  "Ctrl-C cancels, a second one only stops waiting.\n\n"
                                  "Exit status: 0 the guest is at the target (or the file is whole), 1 failed and the "
                                  "guest is where it was, 2 usage, 3 done with a "
                                  "warning, 4 nobody knows who runs the guest, 77 not supported here.";

typedef struct {
    char *channels, *downtime_limit, *max_bandwidth, *audit, *stream_version, *switchover_timeout, *timeout, *then;
    gboolean dry_run, one_way, keep, detach, pause, insecure;
    int progress_fd;
} Options;

typedef struct {
    VmfCommon common;
    Options options;
    const char *name, *uri; /* the operands */
    VmfClient *client;
    VmfProgress progress;
    json_t *machine; /* x-vmferry-query-machine */
    json_t *detail;  /* x-vmferry of query-migrate, the latest; of the end, once it has ended */
    bool switches;   /* the guest was or is being handed over, as far as it was told */
} Migrate;

static void clear(Migrate *migrate)
{
    Options *o = &migrate->options;
    char *strings[] = {o->channels,       o->downtime_limit,     o->max_bandwidth, o->audit,
                       o->stream_version, o->switchover_timeout, o->timeout,       o->then};

    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
    if (migrate->progress.programs)
        fclose(migrate->progress.programs);
    json_decref(migrate->machine);
    json_decref(migrate->detail);
    vmf_client_free(migrate->client);
    vmf_common_clear(&migrate->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Migrate, clear)

/* ---- the command line -------------------------------------------------------------------------------------------- */

static bool parse_options(Migrate *migrate, int argc, char **argv, int *exit_code)
{
    Options *o = &migrate->options;
    const GOptionEntry entries[] = {
        {"channels", 0, 0, G_OPTION_ARG_STRING, &o->channels, "Page channels, 1 to 64 (2)", "N"},
        {"downtime-limit", 0, 0, G_OPTION_ARG_STRING, &o->downtime_limit, "How long the guest may stand still (20ms)",
         "TIME"},
        {"max-bandwidth", 0, 0, G_OPTION_ARG_STRING, &o->max_bandwidth, "Over all channels, a second (no limit)",
         "SIZE"},
        {"audit", 0, 0, G_OPTION_ARG_STRING, &o->audit, "Compare all memory: after, before the guest runs, off (after)",
         "WHEN"},
        {"dry-run", 0, 0, G_OPTION_ARG_NONE, &o->dry_run,
         "Ask the target whether it would take the guest, move nothing", NULL},
        {"stream-version", 0, 0, G_OPTION_ARG_STRING, &o->stream_version, "3 or 2 (3)", "N"},
        {"one-way", 0, 0, G_OPTION_ARG_NONE, &o->one_way,
         "Nobody answers: write a stream, leave the guest stopped here", NULL},
        {"then", 0, 0, G_OPTION_ARG_STRING, &o->then, "After a stream was written: stop, cont or quit (stop)", "WHAT"},
        {"keep", 0, 0, G_OPTION_ARG_NONE, &o->keep, "Do not end the machine that the guest has left", NULL},
        {"detach", 0, 0, G_OPTION_ARG_NONE, &o->detach, "Return at once; see status --follow", NULL},
        {"pause-before-switchover", 0, 0, G_OPTION_ARG_NONE, &o->pause, "Wait there until cont", NULL},
        {"switchover-timeout", 0, 0, G_OPTION_ARG_STRING, &o->switchover_timeout,
         "How long the target may take beyond the downtime limit (2s)", "TIME"},
        {"timeout", 0, 0, G_OPTION_ARG_STRING, &o->timeout, "Give up when the guest has not moved by then (never)",
         "TIME"},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure, "Allow plaintext off the loopback", NULL},
        {"progress", 0, 0, G_OPTION_ARG_INT, &o->progress_fd, "Write JSON status lines to this descriptor", "FD"},
        G_OPTION_ENTRY_NULL};

    o->progress_fd = -1;
    if (!vmf_common_parse(&migrate->common, argc, argv, "NAME URI", description, entries, 2, exit_code))
        return false;
    migrate->name = migrate->common.operands[0];
    migrate->uri = migrate->common.operands[1];
    return true;
}

typedef bool (*Parser)(const char *text, uint64_t *value, GError **error);

static bool parse_channels(const char *text, uint64_t *value, GError **error)
{
    return vmf_parse_number(text, 1, VMF_CHANNELS_MAX, value, error);
}

static bool parse_stream_version(const char *text, uint64_t *value, GError **error)
{
    return vmf_parse_number(text, 2, 3, value, error);
}

/* Only what was given: the rest is the machine's to say, who may have been told by migrate-set-parameters. */
static json_t *parameters_of(const Options *o, GError **error)
{
    const struct {
        const char *text, *option, *parameter;
        Parser parse;
    } table[] = {
        {o->channels, "--channels", "multifd-channels", parse_channels},
        {o->downtime_limit, "--downtime-limit", "x-vmferry-downtime-limit-ns", vmf_parse_duration},
        {o->max_bandwidth, "--max-bandwidth", "max-bandwidth", vmf_parse_size},
        {o->stream_version, "--stream-version", "x-vmferry-stream-version", parse_stream_version},
        {o->switchover_timeout, "--switchover-timeout", "x-vmferry-switchover-timeout-ns", vmf_parse_duration},
        {o->timeout, "--timeout", "x-vmferry-timeout-ns", vmf_parse_duration},
    };
    json_t *parameters = json_object();

    for (size_t i = 0; i < G_N_ELEMENTS(table); i++) {
        uint64_t value;

        if (!table[i].text)
            continue;
        if (!table[i].parse(table[i].text, &value, error)) {
            g_prefix_error(error, "migrate: %s: ", table[i].option);
            json_decref(parameters);
            return NULL;
        }
        json_object_set_new(parameters, table[i].parameter, json_integer(value));
    }
    if (o->audit)
        json_object_set_new(parameters, "x-vmferry-audit", json_string(o->audit));
    if (o->pause)
        json_object_set_new(parameters, "x-vmferry-pause-before-switchover", json_true());
    return parameters;
}

static bool check_options(const Migrate *migrate, GError **error)
{
    const Options *o = &migrate->options;
    bool writes = o->one_way || g_str_has_prefix(migrate->uri, "file:");
    VmfAudit audit;

    if (o->then && !writes)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "migrate: --then: the guest moves away; it is for file: and --one-way");
    else if (o->then && strcmp(o->then, "stop") != 0 && strcmp(o->then, "cont") != 0 && strcmp(o->then, "quit") != 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "migrate: --then: '%s': expected stop, cont or quit", o->then);
    else if (o->progress_fd >= 0 && fcntl(o->progress_fd, F_GETFD) < 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "migrate: --progress: descriptor %d is not open",
                    o->progress_fd);
    else
        return !o->audit || vmf_audit_parse(o->audit, &audit, error);
    return false;
}

static json_t *migrate_arguments(const Migrate *migrate, GError **error)
{
    const Options *o = &migrate->options;
    json_t *parameters = check_options(migrate, error) ? parameters_of(o, error) : NULL;

    if (!parameters)
        return NULL;
    /* Who stays to see the end does what comes then; a machine that quit by itself could not be asked how it went. */
    return json_pack("{s:s,s:b,s:b,s:b,s:s,s:o}", "uri", migrate->uri, "x-vmferry-dry-run", o->dry_run,
                     "x-vmferry-one-way", o->one_way, "x-vmferry-insecure", o->insecure, "x-vmferry-then",
                     o->detach && o->then ? o->then : "stop", "x-vmferry-parameters", parameters);
}

/* ---- while it runs ----------------------------------------------------------------------------------------------- */

static void tell_event(Migrate *migrate, const json_t *data)
{
    const char *id = json_string_value(json_object_get(data, "id"));
    const char *text = json_string_value(json_object_get(data, "text"));

    vmf_progress_clear(&migrate->progress);
    vmf_report_event(migrate->common.json,
                     json_pack("{s:s,s:s,s:s,s:s}", "type", "event", "name", migrate->name, "id", id ? id : "", "text",
                               text ? text : ""),
                     "vmferry: %s: %s", migrate->name, text);
}

static void tell_status(Migrate *migrate, const json_t *data)
{
    const char *status = json_string_value(json_object_get(data, "status"));

    migrate->switches |= strcmp(status, "device") == 0 || strcmp(status, "completed") == 0;
    if (strcmp(status, "pre-switchover") == 0) {
        vmf_progress_clear(&migrate->progress);
        vmf_report_event(migrate->common.json,
                         json_pack("{s:s,s:s,s:s,s:s}", "type", "event", "name", migrate->name, "id",
                                   "migration.pre-switchover", "text", "waits before its switchover"),
                         "vmferry: %s: waits before its switchover; 'vmferry cont %s' goes on", migrate->name,
                         migrate->name);
    }
}

/* True when it tells of the end. */
static bool handle_event(Migrate *migrate, const json_t *event)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    const json_t *data = json_object_get(event, "data");

    if (!name)
        return false;
    if (strcmp(name, "X_VMFERRY_EVENT") == 0)
        tell_event(migrate, data);
    else if (strcmp(name, "MIGRATION") == 0)
        tell_status(migrate, data);
    else if (strcmp(name, "X_VMFERRY_MIGRATION_ENDED") == 0) {
        json_decref(migrate->detail);
        migrate->detail = json_incref((json_t *)data);
        return true;
    }
    return false;
}

static bool show_progress(Migrate *migrate, GError **error)
{
    json_t *info = vmf_client_execute(migrate->client, "query-migrate", NULL, error);

    if (!info)
        return false;
    json_decref(migrate->detail);
    migrate->detail = json_incref(json_object_get(info, "x-vmferry"));
    migrate->switches |= strcmp(json_string_value(json_object_get(info, "status")), "device") == 0;
    vmf_progress_show(&migrate->progress, migrate->name, migrate->detail);
    json_decref(info);
    return true;
}

static bool cancel(Migrate *migrate, GError **error)
{
    json_t *result = vmf_client_execute(migrate->client, "migrate_cancel", NULL, error);

    json_decref(result);
    return result != NULL;
}

/* False with @error: it is not known how it ended. */
static bool wait_for_end(Migrate *migrate, GError **error)
{
    int64_t next_us = g_get_monotonic_time();
    bool cancelled = false;

    for (;;) {
        int64_t left_us = next_us - g_get_monotonic_time();
        json_t *event = NULL;
        GError *cut = NULL;

        if (vmf_interrupts_abandon()) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_ABANDONED,
                        "machine %s: no longer waiting; the migration may still be going on", migrate->name);
            return false;
        }
        if (!cancelled && vmf_interrupts_cancel()) {
            if (!cancel(migrate, error))
                return false;
            cancelled = true;
        }
        if (left_us <= 0) {
            if (!show_progress(migrate, error))
                return false;
            next_us = g_get_monotonic_time() + PROGRESS_MS * 1000;
            continue;
        }
        event = vmf_client_next_event(migrate->client, left_us / 1000 + 1, &cut);
        if (cut) {
            g_propagate_error(error, cut);
            return false;
        }
        if (event && handle_event(migrate, event)) {
            json_decref(event);
            return true;
        }
        json_decref(event);
    }
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static bool is_running(Migrate *migrate)
{
    json_t *status = vmf_client_execute(migrate->client, "query-status", NULL, NULL);
    bool running = json_is_true(json_object_get(status, "running"));

    json_decref(status);
    return running;
}

/* What is to become of the machine that the guest has left, or was written from. */
static const char *last_command(const Migrate *migrate)
{
    const char *outcome = json_string_value(json_object_get(migrate->detail, "outcome"));

    if (!outcome || strcmp(outcome, "completed") != 0)
        return NULL;
    if (!json_is_true(json_object_get(migrate->detail, "one_way")))
        return migrate->options.keep ? NULL : "quit";
    return migrate->options.then && strcmp(migrate->options.then, "stop") != 0 ? migrate->options.then : NULL;
}

static void run_last_command(Migrate *migrate)
{
    const char *command = last_command(migrate);
    g_autoptr(GError) error = NULL;
    json_t *result = command ? vmf_client_execute(migrate->client, command, NULL, &error) : NULL;

    if (command && !result && !g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST))
        vmf_report_error(migrate->common.json, error);
    json_decref(result);
}

static int report(Migrate *migrate, const VmfSummary *summary)
{
    g_autofree char *text = vmf_summary_text(summary);

    vmf_progress_clear(&migrate->progress);
    vmf_summary_complain(summary, migrate->common.json);
    vmf_report_line(migrate->common.json, vmf_summary_json(summary), "vmferry: %s", text);
    return vmf_summary_exit_code(summary);
}

static int conclude(Migrate *migrate)
{
    VmfSummary summary = {.name = migrate->name, .detail = migrate->detail};
    json_t *machine = vmf_client_execute(migrate->client, "x-vmferry-query-machine", NULL, NULL);

    if (machine) {
        json_decref(migrate->machine);
        migrate->machine = machine;
    }
    summary.machine = migrate->machine;
    summary.machine_gone = !machine;
    summary.host_name = json_string_value(json_object_get(migrate->machine, "host_name"));
    summary.was_running = json_is_true(json_object_get(migrate->detail, "was_running"));
    run_last_command(migrate);
    summary.runs_here = is_running(migrate);
    return report(migrate, &summary);
}

/* What came before the connection broke may tell of the end. */
static bool end_was_told(Migrate *migrate)
{
    json_t *event;
    bool ended = false;

    while (!ended && (event = vmf_client_next_event(migrate->client, 0, NULL))) {
        ended = handle_event(migrate, event);
        json_decref(event);
    }
    return ended;
}

/* A machine that still answers has only dropped us. */
static VmfHold hold_after(Migrate *migrate, const GError *error)
{
    g_autoptr(VmfClient) again = NULL;

    if (!g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST))
        return VMF_HOLD_UNWATCHED;
    again = vmf_client_open(migrate->common.runtime_dir, migrate->name, NULL);
    if (again)
        return VMF_HOLD_UNWATCHED;
    return migrate->switches ? VMF_HOLD_SOURCE_GONE : VMF_HOLD_DIED_WITH_SOURCE;
}

/* The figures as they were seen last, with an end that was not seen. */
static json_t *unseen_end(const Migrate *migrate, const GError *error)
{
    json_t *detail = migrate->detail ? json_copy(migrate->detail) : json_pack("{s:s}", "side", "source");

    json_object_set_new(detail, "uri", json_string(migrate->uri));
    json_object_set_new(detail, "outcome", json_string("held"));
    json_object_set_new(detail, "verified", json_null());
    json_object_set_new(detail, "error", vmf_qmp_error_object(error, NULL));
    return detail;
}

/* Once the migration runs, not to know its end is not to know who runs the guest. */
static int lost_sight(Migrate *migrate, const GError *error)
{
    VmfSummary summary = {.name = migrate->name, .machine = migrate->machine};
    json_t *detail;
    int exit_code;

    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST) && end_was_told(migrate))
        return conclude(migrate);
    detail = unseen_end(migrate, error);
    summary.detail = detail;
    summary.host_name = json_string_value(json_object_get(migrate->machine, "host_name"));
    summary.was_running = json_is_true(json_object_get(migrate->machine, "running"));
    summary.hold = hold_after(migrate, error);
    exit_code = report(migrate, &summary);
    json_decref(detail);
    return exit_code;
}

/* A guest that has just arrived runs a little before its session has told the source all there is to tell. */
static bool has_settled(Migrate *migrate)
{
    json_t *info = vmf_client_execute(migrate->client, "query-migrate", NULL, NULL);
    const json_t *detail = json_object_get(info, "x-vmferry");
    const char *side = json_string_value(json_object_get(detail, "side"));
    bool settled = !side || strcmp(side, "target") != 0 || json_is_true(json_object_get(detail, "ended"));

    json_decref(info);
    return settled || !is_running(migrate);
}

/* The command was sent, and what came of it is not known. */
static bool may_have_begun(const GError *error)
{
    return g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST) ||
           g_error_matches(error, VMF_ERROR, VMF_ERROR_ABANDONED) ||
           g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT);
}

static bool begin(Migrate *migrate, json_t *arguments, GError **error)
{
    json_t *result;

    while (!has_settled(migrate) && !vmf_interrupts_cancel())
        g_usleep(SETTLE_MS * 1000);
    migrate->machine = vmf_client_execute(migrate->client, "x-vmferry-query-machine", NULL, error);
    if (!migrate->machine) {
        json_decref(arguments);
        return false;
    }
    result = vmf_client_execute(migrate->client, "migrate", arguments, error);
    vmf_client_forget_events(migrate->client); /* the end of an earlier migration may be among them */
    json_decref(result);
    return result != NULL;
}

int vmf_verb_migrate(int argc, char **argv)
{
    g_auto(Migrate) migrate = {0};
    g_autoptr(GError) error = NULL;
    json_t *arguments;
    int exit_code;

    if (!parse_options(&migrate, argc, argv, &exit_code))
        return exit_code;
    arguments = migrate_arguments(&migrate, &error);
    if (!arguments)
        return vmf_common_fail(&migrate.common, error);
    migrate.progress.json = migrate.common.json;
    migrate.progress.terminal = !migrate.common.json && isatty(STDERR_FILENO);
    if (migrate.options.progress_fd >= 0)
        migrate.progress.programs = fdopen(migrate.options.progress_fd, "w");
    migrate.client = vmf_common_connect(&migrate.common, &exit_code);
    if (!migrate.client) {
        json_decref(arguments);
        return exit_code;
    }
    vmf_interrupts_catch();
    vmf_client_set_abandoned(migrate.client, vmf_interrupts_abandon);
    if (!begin(&migrate, arguments, &error))
        return migrate.machine && may_have_begun(error) ? lost_sight(&migrate, error)
                                                        : vmf_common_fail(&migrate.common, error);
    if (!migrate.options.detach)
        return wait_for_end(&migrate, &error) ? conclude(&migrate) : lost_sight(&migrate, error);
    vmf_report_line(
        migrate.common.json, json_pack("{s:s,s:s,s:s}", "type", "status", "name", migrate.name, "status", "setup"),
        "vmferry: %s: migrates to %s; 'vmferry status --follow %s' shows how", migrate.name, migrate.uri, migrate.name);
    return VMF_EXIT_OK;
}
