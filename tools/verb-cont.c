/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "tools/common.h"
#include "tools/report.h"

static const char description[] = "Resumes the machine after stop. A migration that was started with "
                                  "--pause-before-switchover and waits there goes on instead.";

static bool waits_for_switchover(VmfClient *client)
{
    json_t *info = vmf_client_execute(client, "query-migrate", NULL, NULL);
    const char *status = json_string_value(json_object_get(info, "status"));
    bool waits = status && strcmp(status, "pre-switchover") == 0;

    json_decref(info);
    return waits;
}

int vmf_verb_cont(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_autoptr(VmfClient) client = NULL;
    g_autoptr(GError) error = NULL;
    const char *done = "running";
    int exit_code;
    json_t *result;

    if (!vmf_common_parse(&common, argc, argv, "NAME", description, NULL, 1, &exit_code))
        return exit_code;
    client = vmf_common_connect(&common, &exit_code);
    if (!client)
        return exit_code;
    if (waits_for_switchover(client)) {
        done = "switching over";
        result = vmf_client_execute(client, "migrate-continue", json_pack("{s:s}", "state", "pre-switchover"), &error);
    } else {
        result = vmf_client_execute(client, "cont", NULL, &error);
    }
    if (!result)
        return vmf_common_fail(&common, error);
    json_decref(result);
    vmf_report_line(common.json,
                    json_pack("{s:s,s:s,s:s}", "type", "status", "name", common.operands[0], "status", done),
                    "vmferry: %s: %s", common.operands[0], done);
    return VMF_EXIT_OK;
}
