/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/workload.h"

#include <string.h>
#include <vmferry/error.h>

#include "tools/numbers.h"

static bool parse_item(const char *name, const char *value, VmfMachineConfig *config, GError **error)
{
    uint64_t number;

    if (strcmp(name, "dirty") == 0)
        return vmf_parse_size(value, &config->dirty_bytes_per_second, error);
    if (strcmp(name, "set") == 0)
        return vmf_parse_size(value, &config->set_bytes, error);
    if (strcmp(name, "disk") == 0)
        return vmf_parse_size(value, &config->disk_bytes_per_second, error);
    if (strcmp(name, "disk-set") == 0)
        return vmf_parse_size(value, &config->disk_set_bytes, error);
    if (strcmp(name, "seed") == 0 && vmf_parse_number(value, 0, UINT32_MAX, &number, error)) {
        config->seed = number;
        return true;
    }
    if (strcmp(name, "line") == 0 && vmf_parse_number(value, 1, 1000000, &number, error)) {
        config->line_ms = number;
        return true;
    }
    if (error && !*error)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "'%s': expected dirty=SIZE, set=SIZE, disk=SIZE, disk-set=SIZE, seed=N or line=N", name);
    return false;
}

bool vmf_parse_workload(const char *text, VmfMachineConfig *config, GError **error)
{
    g_auto(GStrv) items = g_strsplit(text, ",", -1);

    for (unsigned i = 0; items[i]; i++) {
        char *equals = strchr(items[i], '=');

        if (equals)
            *equals++ = '\0';
        if (!parse_item(items[i], equals ? equals : "", config, error))
            return false;
    }
    return true;
}
