/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <vmferry/error.h>

#include "tools/common.h"
#include "tools/report.h"

#define POLL_MS 20

static const char description[] = "Cancels the migration that moves the machine away; the guest goes on here. Once the "
                                  "other side has been told to run the guest it "
                                  "is too late, and said so.";

/* The detail of the migration out of here that runs or ran last; NULL with @error: there is none, or the machine has
 * gone. */
static json_t *query(VmfClient *client, const char *name, GError **error)
{
    json_t *info = vmf_client_execute(client, "query-migrate", NULL, error);
    json_t *detail;

    if (!info)
        return NULL;
    detail = json_incref(json_object_get(info, "x-vmferry"));
    json_decref(info);
    if (detail && strcmp(json_string_value(json_object_get(detail, "side")), "source") == 0)
        return detail;
    json_decref(detail);
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: cancel: no migration runs", name);
    return NULL;
}

/* A hold is one too, for who waits here: it may never end. */
static bool has_outcome(const json_t *detail)
{
    return json_is_true(json_object_get(detail, "ended")) || json_is_string(json_object_get(detail, "hold_reason"));
}

/* Asks and waits for the end, or for a hold. The outcome's word is the caller's. */
static char *cancel(VmfClient *client, const char *name, GError **error)
{
    json_t *detail = query(client, name, error);
    json_t *result;
    char *outcome;

    if (detail && json_is_true(json_object_get(detail, "ended"))) {
        json_decref(detail);
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "machine %s: cancel: no migration runs", name);
        return NULL;
    }
    result = detail ? vmf_client_execute(client, "migrate_cancel", NULL, error) : NULL;
    while (result && detail && !has_outcome(detail)) {
        json_decref(detail);
        g_usleep(POLL_MS * 1000);
        detail = query(client, name, error);
    }
    outcome = result && detail ? g_strdup(json_string_value(json_object_get(detail, "outcome"))) : NULL;
    json_decref(result);
    json_decref(detail);
    return outcome;
}

int vmf_verb_cancel(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_autoptr(VmfClient) client = NULL;
    g_autoptr(GError) error = NULL;
    g_autofree char *outcome = NULL;
    const char *name;
    int exit_code;

    if (!vmf_common_parse(&common, argc, argv, "NAME", description, NULL, 1, &exit_code))
        return exit_code;
    client = vmf_common_connect(&common, &exit_code);
    if (!client)
        return exit_code;
    name = common.operands[0];
    outcome = cancel(client, name, &error);
    if (!outcome)
        return vmf_common_fail(&common, error);
    vmf_report_line(common.json, json_pack("{s:s,s:s,s:s}", "type", "status", "name", name, "status", outcome),
                    strcmp(outcome, "cancelled") == 0 ? "vmferry: %s: migration %s"
                    : strcmp(outcome, "held") == 0    ? "vmferry: %s: too late, the guest is %s; see vmferry resolve"
                                                      : "vmferry: %s: too late, the migration has %s",
                    name, outcome);
    if (strcmp(outcome, "held") == 0)
        return VMF_EXIT_HELD;
    return strcmp(outcome, "cancelled") == 0 ? VMF_EXIT_OK : VMF_EXIT_FAILED;
}
