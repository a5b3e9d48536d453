/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/disk-option.h"

#include <string.h>
#include <vmferry/error.h>

#include "tools/numbers.h"

/* A path is what is no URI. */
static char *uri_of(const char *text)
{
    static const char *const schemes[] = {"file:", "nbd:", "nbds:", "nbd+unix:", "nbds+unix:"};

    for (size_t i = 0; i < G_N_ELEMENTS(schemes); i++)
        if (g_str_has_prefix(text, schemes[i]))
            return g_strdup(text);
    return g_strconcat("file:", text, NULL);
}

/* What stands after the last comma is a setting, if it reads like one: a path may have commas too. False: it is none;
 * or *@error. */
static bool parse_setting(const char *text, VmfMachineDiskConfig *disk, char **bitmaps, GError **error)
{
    uint64_t number;

    if (g_str_has_prefix(text, "size="))
        return vmf_parse_size(text + strlen("size="), &disk->create_bytes, error);
    if (g_str_has_prefix(text, "sector=") && vmf_parse_number(text + strlen("sector="), 512, 4096, &number, error)) {
        disk->sector_bytes = (uint32_t)number;
        return true;
    }
    if (g_str_has_prefix(text, "bitmaps=") && text[strlen("bitmaps=")]) {
        g_free(*bitmaps);
        disk->bitmaps = *bitmaps = g_strdup(text + strlen("bitmaps="));
        return true;
    }
    if (strcmp(text, "readonly") == 0)
        return disk->read_only = true;
    if (strcmp(text, "buffered") == 0)
        return disk->buffered = true;
    if (strcmp(text, "no-lock") == 0)
        return disk->no_lock = true;
    return false;
}

static bool parse_one(VmfDiskArguments *arguments, const char *text, bool insecure, GError **error)
{
    VmfMachineDiskConfig *disk = &arguments->disks[arguments->n_disks];
    const char *equals = strchr(text, '=');
    char **bitmaps = &arguments->strings[3 * arguments->n_disks + 2];
    GError *problem = NULL;
    char *comma;

    if (!equals || equals == text || !equals[1]) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected NAME=URI[,size=SIZE][,readonly]…", text);
        return false;
    }
    g_autofree char *rest = g_strdup(equals + 1);
    while ((comma = strrchr(rest, ',')) && parse_setting(comma + 1, disk, bitmaps, &problem))
        *comma = '\0';
    if (problem) {
        g_propagate_error(error, problem);
        return false;
    }
    disk->name = arguments->strings[3 * arguments->n_disks] = g_strndup(text, (gsize)(equals - text));
    disk->uri = arguments->strings[3 * arguments->n_disks + 1] = uri_of(rest);
    disk->connect = insecure ? VMF_CONNECT_INSECURE : 0;
    arguments->n_disks++;
    return true;
}

bool vmf_disk_arguments_parse(VmfDiskArguments *arguments, char *const *texts, bool insecure, GError **error)
{
    for (; texts && *texts; texts++) {
        if (arguments->n_disks == VMF_MACHINE_DISKS_MAX) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': a machine has at most %d disks", *texts,
                        VMF_MACHINE_DISKS_MAX);
            return false;
        }
        if (!parse_one(arguments, *texts, insecure, error))
            return false;
    }
    return true;
}

void vmf_disk_arguments_clear(VmfDiskArguments *arguments)
{
    for (size_t i = 0; i < G_N_ELEMENTS(arguments->strings); i++)
        g_free(arguments->strings[i]);
}
