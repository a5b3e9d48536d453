/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/outgoing.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/vmferry.h>

#include "machine/qmp-error.h"
#include "tools/interrupts.h"
#include "tools/numbers.h"
#include "tools/report.h"
#include "tools/summary.h"

#define PROGRESS_MS 100
#define SETTLE_MS 10
#define SETTLE_MAX_MS 3000 /* a source that missed the arrival is not waited for */

/* ---- the command line -------------------------------------------------------------------------------------------- */

bool vmf_outgoing_parse_channels(const char *text, uint64_t *value, GError **error)
{
    return vmf_parse_number(text, 1, VMF_CHANNELS_MAX, value, error);
}

json_t *vmf_outgoing_parameters(const char *verb, const VmfOutgoingOption *options, size_t n, const char *audit,
                                GError **error)
{
    json_t *parameters = json_object();

    for (size_t i = 0; i < n; i++) {
        uint64_t value;

        if (!options[i].text)
            continue;
        if (!options[i].parse(options[i].text, &value, error)) {
            g_prefix_error(error, "%s: %s: ", verb, options[i].option);
            json_decref(parameters);
            return NULL;
        }
        json_object_set_new(parameters, options[i].parameter, json_integer(value));
    }
    if (audit)
        json_object_set_new(parameters, "x-vmferry-audit", json_string(audit));
    return parameters;
}

bool vmf_outgoing_check(const char *verb, const char *then, const char *audit, int progress_fd, GError **error)
{
    VmfAudit ignored;

    if (then && strcmp(then, "stop") != 0 && strcmp(then, "cont") != 0 && strcmp(then, "quit") != 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: --then: '%s': expected stop, cont or quit", verb, then);
    else if (progress_fd >= 0 && fcntl(progress_fd, F_GETFD) < 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: --progress: descriptor %d is not open", verb, progress_fd);
    else
        return !audit || vmf_audit_parse(audit, &ignored, error);
    return false;
}

bool vmf_outgoing_check_disks(const char *verb, const char *disks, const char *needing, GError **error)
{
    if (!needing || (disks && *disks && strcmp(disks, "none") != 0))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: %s: no disk is copied; it is for --disks", verb, needing);
    return false;
}

/* ---- while it runs ----------------------------------------------------------------------------------------------- */

static void tell_event(VmfOutgoing *outgoing, const json_t *data)
{
    const char *id = json_string_value(json_object_get(data, "id"));
    const char *text = json_string_value(json_object_get(data, "text"));

    vmf_progress_clear(&outgoing->progress);
    vmf_report_event(outgoing->common->json,
                     json_pack("{s:s,s:s,s:s,s:s}", "type", "event", "name", outgoing->name, "id", id ? id : "", "text",
                               text ? text : ""),
                     "vmferry: %s: %s", outgoing->name, text);
}

static void tell_status(VmfOutgoing *outgoing, const json_t *data)
{
    const char *status = json_string_value(json_object_get(data, "status"));

    outgoing->switches |= strcmp(status, "device") == 0 || strcmp(status, "completed") == 0;
    if (strcmp(status, "pre-switchover") == 0) {
        vmf_progress_clear(&outgoing->progress);
        vmf_report_event(outgoing->common->json,
                         json_pack("{s:s,s:s,s:s,s:s}", "type", "event", "name", outgoing->name, "id",
                                   "migration.pre-switchover", "text", "waits before its switchover"),
                         "vmferry: %s: waits before its switchover; 'vmferry cont %s' goes on", outgoing->name,
                         outgoing->name);
    }
}

/* True when it tells of the end. */
static bool handle_event(VmfOutgoing *outgoing, const json_t *event)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    const json_t *data = json_object_get(event, "data");

    if (!name)
        return false;
    if (strcmp(name, "X_VMFERRY_EVENT") == 0)
        tell_event(outgoing, data);
    else if (strcmp(name, "MIGRATION") == 0)
        tell_status(outgoing, data);
    else if (strcmp(name, "X_VMFERRY_MIGRATION_ENDED") == 0) {
        json_decref(outgoing->detail);
        outgoing->detail = json_incref((json_t *)data);
        return true;
    }
    return false;
}

static bool show_progress(VmfOutgoing *outgoing, GError **error)
{
    json_t *info = vmf_client_execute(outgoing->client, "query-migrate", NULL, error);

    if (!info)
        return false;
    json_decref(outgoing->detail);
    outgoing->detail = json_incref(json_object_get(info, "x-vmferry"));
    outgoing->held = json_object_get(info, "x-vmferry-hold") != NULL;
    outgoing->switches |= strcmp(json_string_value(json_object_get(info, "status")), "device") == 0;
    vmf_progress_show(&outgoing->progress, outgoing->name, outgoing->detail);
    json_decref(info);
    return true;
}

static bool cancel(VmfOutgoing *outgoing, GError **error)
{
    json_t *result = vmf_client_execute(outgoing->client, "migrate_cancel", NULL, error);

    json_decref(result);
    return result != NULL;
}

/* Until the end, or until a hold is stated. False with @error: it is not known how it ended. */
static bool wait_for_end(VmfOutgoing *outgoing, GError **error)
{
    int64_t next_us = g_get_monotonic_time();
    bool cancelled = false;

    for (;;) {
        int64_t left_us = next_us - g_get_monotonic_time();
        json_t *event = NULL;
        GError *cut = NULL;

        if (vmf_interrupts_abandon()) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_ABANDONED,
                        "machine %s: no longer waiting; the migration may still be going on", outgoing->name);
            return false;
        }
        if (!cancelled && vmf_interrupts_cancel()) {
            if (!cancel(outgoing, error))
                return false;
            cancelled = true;
        }
        if (left_us <= 0) {
            if (!show_progress(outgoing, error))
                return false;
            if (outgoing->held)
                return true;
            next_us = g_get_monotonic_time() + PROGRESS_MS * 1000;
            continue;
        }
        event = vmf_client_next_event(outgoing->client, left_us / 1000 + 1, &cut);
        if (cut) {
            g_propagate_error(error, cut);
            return false;
        }
        if (event && handle_event(outgoing, event)) {
            json_decref(event);
            return true;
        }
        json_decref(event);
    }
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static bool is_running(VmfOutgoing *outgoing)
{
    json_t *status = vmf_client_execute(outgoing->client, "query-status", NULL, NULL);
    bool running = json_is_true(json_object_get(status, "running"));

    json_decref(status);
    return running;
}

static void run_last_command(VmfOutgoing *outgoing)
{
    const char *outcome = json_string_value(json_object_get(outgoing->detail, "outcome"));
    bool completed = outcome && strcmp(outcome, "completed") == 0;
    bool written = json_is_true(json_object_get(outgoing->detail, "one_way"));
    const char *command = !completed ? NULL : written ? outgoing->after_write : outgoing->after_move;
    g_autoptr(GError) error = NULL;
    json_t *result = command ? vmf_client_execute(outgoing->client, command, NULL, &error) : NULL;

    if (command && !result && !g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST))
        vmf_report_error(outgoing->common->json, error);
    json_decref(result);
}

static int report(VmfOutgoing *outgoing, const VmfSummary *summary)
{
    g_autofree char *text = vmf_summary_text(summary);

    vmf_progress_clear(&outgoing->progress);
    vmf_summary_complain(summary, outgoing->common->json);
    vmf_report_line(outgoing->common->json, vmf_summary_json(summary), "vmferry: %s", text);
    return vmf_summary_exit_code(summary);
}

static int conclude(VmfOutgoing *outgoing)
{
    VmfSummary summary = {.name = outgoing->name, .detail = outgoing->detail};
    json_t *machine = vmf_client_execute(outgoing->client, "x-vmferry-query-machine", NULL, NULL);

    if (machine) {
        json_decref(outgoing->machine);
        outgoing->machine = machine;
    }
    summary.machine = outgoing->machine;
    summary.machine_gone = !machine;
    summary.host_name = json_string_value(json_object_get(outgoing->machine, "host_name"));
    summary.was_running = json_is_true(json_object_get(outgoing->detail, "was_running"));
    run_last_command(outgoing);
    summary.runs_here = is_running(outgoing);
    return report(outgoing, &summary);
}

/* What came before the connection broke may tell of the end. */
static bool end_was_told(VmfOutgoing *outgoing)
{
    json_t *event;
    bool ended = false;

    while (!ended && (event = vmf_client_next_event(outgoing->client, 0, NULL))) {
        ended = handle_event(outgoing, event);
        json_decref(event);
    }
    return ended;
}

/* A machine that still answers has only dropped us. */
static VmfHold hold_after(VmfOutgoing *outgoing, const GError *error)
{
    g_autoptr(VmfClient) again = NULL;

    if (!g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST))
        return VMF_HOLD_UNWATCHED;
    again = vmf_client_open(outgoing->common->runtime_dir, outgoing->name, NULL);
    if (again)
        return VMF_HOLD_UNWATCHED;
    return outgoing->switches ? VMF_HOLD_SOURCE_GONE : VMF_HOLD_DIED_WITH_SOURCE;
}

/* The figures as they were seen last, with an end that was not seen. */
static json_t *unseen_end(const VmfOutgoing *outgoing, const char *outcome, const GError *error)
{
    json_t *detail = outgoing->detail ? json_copy(outgoing->detail) : json_pack("{s:s}", "side", "source");

    json_object_set_new(detail, "uri", json_string(outgoing->uri));
    json_object_set_new(detail, "outcome", json_string(outcome));
    json_object_set_new(detail, "verified", json_null());
    json_object_set_new(detail, "error", vmf_qmp_error_object(error, NULL));
    return detail;
}

/* Once the migration runs, not to know its end is not to know who runs the guest; but nobody gets one that is saved. */
static int lost_sight(VmfOutgoing *outgoing, const GError *error)
{
    VmfSummary summary = {.name = outgoing->name, .machine = outgoing->machine};
    json_t *detail;
    int exit_code;

    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST) && end_was_told(outgoing))
        return conclude(outgoing);
    summary.hold = hold_after(outgoing, error);
    summary.machine_gone = outgoing->saves && summary.hold != VMF_HOLD_UNWATCHED;
    detail = unseen_end(outgoing, summary.machine_gone ? "failed" : "held", error);
    summary.detail = detail;
    summary.host_name = json_string_value(json_object_get(outgoing->machine, "host_name"));
    summary.was_running = json_is_true(json_object_get(outgoing->machine, "running"));
    exit_code = report(outgoing, &summary);
    json_decref(detail);
    return exit_code;
}

/* A guest that has just arrived runs a little before its session has told the source all there is to tell. */
static bool has_settled(VmfOutgoing *outgoing)
{
    json_t *info = vmf_client_execute(outgoing->client, "query-migrate", NULL, NULL);
    const json_t *detail = json_object_get(info, "x-vmferry");
    const char *side = json_string_value(json_object_get(detail, "side"));
    bool settled = !side || strcmp(side, "target") != 0 || json_is_true(json_object_get(detail, "ended"));

    json_decref(info);
    return settled || !is_running(outgoing);
}

/* The command was sent, and what came of it is not known. */
static bool may_have_begun(const GError *error)
{
    return g_error_matches(error, VMF_ERROR, VMF_ERROR_CONTROL_LOST) ||
           g_error_matches(error, VMF_ERROR, VMF_ERROR_ABANDONED) ||
           g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT);
}

static bool begin(VmfOutgoing *outgoing, json_t *arguments, GError **error)
{
    int64_t end_us = g_get_monotonic_time() + SETTLE_MAX_MS * INT64_C(1000);
    json_t *result;

    while (!has_settled(outgoing) && !vmf_interrupts_cancel() && g_get_monotonic_time() < end_us)
        g_usleep(SETTLE_MS * 1000);
    outgoing->machine = vmf_client_execute(outgoing->client, "x-vmferry-query-machine", NULL, error);
    if (!outgoing->machine) {
        json_decref(arguments);
        return false;
    }
    result = vmf_client_execute(outgoing->client, "migrate", arguments, error);
    vmf_client_forget_events(outgoing->client); /* the end of an earlier migration may be among them */
    json_decref(result);
    return result != NULL;
}

static int drive(VmfOutgoing *outgoing, json_t *arguments)
{
    g_autoptr(GError) error = NULL;

    if (!begin(outgoing, arguments, &error))
        return outgoing->machine && may_have_begun(error) ? lost_sight(outgoing, error)
                                                          : vmf_common_fail(outgoing->common, error);
    if (!outgoing->detach)
        return wait_for_end(outgoing, &error) ? conclude(outgoing) : lost_sight(outgoing, error);
    vmf_report_line(outgoing->common->json,
                    json_pack("{s:s,s:s,s:s}", "type", "status", "name", outgoing->name, "status", "setup"),
                    "vmferry: %s: %s %s; 'vmferry status --follow %s' shows how", outgoing->name, outgoing->doing,
                    outgoing->uri, outgoing->name);
    return VMF_EXIT_OK;
}

int vmf_outgoing_run(VmfOutgoing *outgoing, json_t *arguments)
{
    int exit_code;

    outgoing->progress.json = outgoing->common->json;
    outgoing->progress.terminal = !outgoing->common->json && isatty(STDERR_FILENO);
    if (outgoing->progress_fd >= 0)
        outgoing->progress.programs = fdopen(outgoing->progress_fd, "w");
    outgoing->client = vmf_common_connect(outgoing->common, &exit_code);
    if (outgoing->client) {
        vmf_interrupts_catch();
        vmf_client_set_abandoned(outgoing->client, vmf_interrupts_abandon);
        exit_code = drive(outgoing, arguments);
    } else {
        json_decref(arguments);
    }
    if (outgoing->progress.programs)
        fclose(outgoing->progress.programs);
    json_decref(outgoing->machine);
    json_decref(outgoing->detail);
    vmf_client_free(outgoing->client);
    return exit_code;
}
