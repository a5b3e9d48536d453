/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "tools/common.h"
#include "tools/dirs.h"
#include "tools/machine-status.h"
#include "tools/report.h"

static const char description[] = "Lists the machines that run in this runtime directory, one a line. A machine whose "
                                  "process ended without tidying up is dead: run "
                                  "takes its name again.";

static int compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static GPtrArray *machine_names(const char *runtime_dir)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GDir) dir = g_dir_open(runtime_dir, 0, NULL);
    const char *file;

    while (dir && (file = g_dir_read_name(dir))) {
        g_autofree char *name = g_strndup(file, strlen(file) - MIN(strlen(file), strlen(".sock")));

        if (g_str_has_suffix(file, ".sock") && vmf_check_machine_name(name, NULL))
            g_ptr_array_add(names, g_steal_pointer(&name));
    }
    g_ptr_array_sort(names, compare_names);
    return names;
}

static void list_one(const VmfCommon *common, const char *name)
{
    g_autoptr(VmfClient) client = vmf_client_open(common->runtime_dir, name, NULL);
    json_t *status = client ? vmf_machine_status(client, NULL) : NULL;
    const char *word;
    g_autofree char *line = NULL;

    if (!status)
        status = json_pack("{s:s,s:s,s:s}", "type", "status", "name", name, "status", "dead");
    word = json_string_value(json_object_get(status, "status"));
    line = g_strdup_printf("%-24s %s", name, word);
    vmf_report_line(common->json, status, "%s", line);
}

int vmf_verb_list(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_autoptr(GPtrArray) names = NULL;
    int exit_code;

    if (!vmf_common_parse(&common, argc, argv, "", description, NULL, 0, &exit_code))
        return exit_code;
    names = machine_names(common.runtime_dir);
    for (guint i = 0; i < names->len; i++)
        list_one(&common, g_ptr_array_index(names, i));
    return VMF_EXIT_OK;
}
