/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/common.h"

#include <stdio.h>
#include <string.h>
#include <vmferry/error.h>

#include "tools/dirs.h"
#include "tools/report.h"

#define HELP_COLUMNS 100

int vmf_common_exit_code(const GError *error)
{
    static const struct {
        VmfErrorCode code;
        VmfExit exit_code;
    } table[] = {
        {VMF_ERROR_USAGE, VMF_EXIT_USAGE},    {VMF_ERROR_URI, VMF_EXIT_USAGE},
        {VMF_ERROR_INSECURE, VMF_EXIT_USAGE}, {VMF_ERROR_HELD, VMF_EXIT_HELD},
        {VMF_ERROR_OFFERED, VMF_EXIT_HELD},   {VMF_ERROR_JOURNAL_DAMAGED, VMF_EXIT_HELD},
        {VMF_ERROR_ABANDONED, VMF_EXIT_HELD}, {VMF_ERROR_UNSUPPORTED, VMF_EXIT_UNSUPPORTED},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(table); i++)
        if (g_error_matches(error, VMF_ERROR, table[i].code))
            return table[i].exit_code;
    return VMF_EXIT_FAILED;
}

int vmf_common_fail(const VmfCommon *common, const GError *error)
{
    vmf_report_error(common->json, error);
    return vmf_common_exit_code(error);
}

void vmf_common_clear(VmfCommon *common)
{
    g_free(common->runtime_dir);
    g_strfreev(common->operands);
}

static bool has_operands(const VmfCommon *common, const char *verb, const char *synopsis, unsigned least, unsigned most,
                         GError **error)
{
    unsigned given = common->operands ? g_strv_length(common->operands) : 0;

    if (given >= least && given <= most)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: %s: expected %s", verb,
                given < least ? "something is missing" : "too many operands", *synopsis ? synopsis : "no operands");
    return false;
}

/* As people's terminals are wide; GOption prints a summary as it stands. */
static char *wrap(const char *text)
{
    g_auto(GStrv) words = g_strsplit(text, " ", -1);
    GString *out = g_string_new(NULL);
    size_t column = 0;

    for (unsigned i = 0; words[i]; i++) {
        const char *newline = strrchr(words[i], '\n');
        size_t length = strcspn(words[i], "\n");

        if (i > 0)
            g_string_append_c(out, column + 1 + length > HELP_COLUMNS ? '\n' : ' ');
        column = i == 0 || column + 1 + length > HELP_COLUMNS ? length : column + 1 + length;
        if (newline)
            column = strlen(newline + 1);
        g_string_append(out, words[i]);
    }
    return g_string_free(out, FALSE);
}

bool vmf_common_wants_json(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

bool vmf_common_parse(VmfCommon *common, int argc, char **argv, const char *synopsis, const char *description,
                      const GOptionEntry *entries, unsigned n_operands, int *exit_code)
{
    return vmf_common_parse_some(common, argc, argv, synopsis, description, entries, n_operands, n_operands, exit_code);
}

bool vmf_common_parse_some(VmfCommon *common, int argc, char **argv, const char *synopsis, const char *description,
                           const GOptionEntry *entries, unsigned least, unsigned most, int *exit_code)
{
    const GOptionEntry common_entries[] = {
        {"runtime-dir", 0, 0, G_OPTION_ARG_FILENAME, &common->runtime_dir, "Where the machines' sockets are", "DIR"},
        {"json", 0, 0, G_OPTION_ARG_NONE, &common->json, "JSON lines on stdout, nothing else", NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_STRING_ARRAY, &common->operands, NULL, NULL},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new(synopsis);
    g_autoptr(GError) option_error = NULL, error = NULL;
    g_autofree char *given_dir = NULL, *summary = wrap(description);
    bool wants_json;

    *exit_code = VMF_EXIT_OK;
    wants_json = vmf_common_wants_json(argc, argv);
    g_option_context_set_summary(context, summary);
    if (entries)
        g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_add_main_entries(context, common_entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &option_error))
        g_set_error(&error, VMF_ERROR, VMF_ERROR_USAGE, "%s: %s", argv[0], option_error->message);
    else
        has_operands(common, argv[0], synopsis, least, most, &error);
    given_dir = common->runtime_dir;
    common->runtime_dir = vmf_runtime_dir(given_dir);
    if (!error)
        return true;
    common->json = wants_json; /* wherever it stood: the parser stops at the first mistake */
    *exit_code = vmf_common_fail(common, error);
    return false;
}

VmfClient *vmf_common_connect(const VmfCommon *common, int *exit_code)
{
    g_autoptr(GError) error = NULL;
    VmfClient *client = vmf_client_open(common->runtime_dir, common->operands[0], &error);

    if (!client)
        *exit_code = vmf_common_fail(common, error);
    return client;
}

int vmf_common_command(int argc, char **argv, const char *description, const char *command, const char *done)
{
    g_auto(VmfCommon) common = {0};
    g_autoptr(VmfClient) client = NULL;
    g_autoptr(GError) error = NULL;
    int exit_code;
    json_t *result;

    if (!vmf_common_parse(&common, argc, argv, "NAME", description, NULL, 1, &exit_code))
        return exit_code;
    client = vmf_common_connect(&common, &exit_code);
    if (!client)
        return exit_code;
    result = vmf_client_execute(client, command, NULL, &error);
    if (!result)
        return vmf_common_fail(&common, error);
    json_decref(result);
    vmf_report_line(common.json,
                    json_pack("{s:s,s:s,s:s}", "type", "status", "name", common.operands[0], "status", done),
                    "vmferry: %s: %s", common.operands[0], done);
    return VMF_EXIT_OK;
}
