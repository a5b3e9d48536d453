/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/common.h"
#include "tools/report.h"

static const char description[] =
    "Ends the machine's process; a guest that is in it is lost. A migration that runs is cancelled first. A machine that "
    "holds a guest of which nobody knows who may run it is not ended without --force: see vmferry resolve.";

int vmf_verb_quit(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_autoptr(VmfClient) client = NULL;
    g_autoptr(GError) error = NULL;
    gboolean force = FALSE;
    const GOptionEntry entries[] = {
        {"force", 0, 0, G_OPTION_ARG_NONE, &force, "Also a machine that holds a guest: what is left is its journal", NULL},
        G_OPTION_ENTRY_NULL};
    int exit_code;
    json_t *result;

    if (!vmf_common_parse(&common, argc, argv, "NAME", description, entries, 1, &exit_code))
        return exit_code;
    client = vmf_common_connect(&common, &exit_code);
    if (!client)
        return exit_code;
    result = vmf_client_execute(client, "quit", json_pack("{s:b}", "x-vmferry-force", (int)force), &error);
    if (!result)
        return vmf_common_fail(&common, error);
    json_decref(result);
    vmf_report_line(common.json,
                    json_pack("{s:s,s:s,s:s}", "type", "status", "name", common.operands[0], "status", "quitting"),
                    "vmferry: %s: quitting", common.operands[0]);
    return VMF_EXIT_OK;
}
