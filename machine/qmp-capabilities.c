/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Migration capabilities: QEMU's switches for what this engine has as well. They hold for the migrations to come. */
#include "machine/qmp.h"

#include <string.h>
#include <vmferry/error.h>

static const struct {
    const char *name;
    size_t offset; /* of a bool in VmfControl */
} table[] = {
    {"multifd", offsetof(VmfControl, multifd)},             /* off: one page channel, whatever multifd-channels says */
    {"events", offsetof(VmfControl, events)},               /* MIGRATION and MIGRATION_PASS */
    {"return-path", offsetof(VmfControl, return_path)},     /* off: a stream without answers, which is a save */
    {"auto-converge", offsetof(VmfControl, auto_converge)}, /* off: the guest is never slowed */
    {"dirty-bitmaps", offsetof(VmfControl, dirty_bitmaps)}, /* on: those of the guest's disks move with it */
    {"mapped-ram", offsetof(VmfControl, mapped_ram)},       /* on: file: is an image, not a stream */
    {"background-snapshot", offsetof(VmfControl, background_snapshot)}, /* on: an image is of one moment, the guest runs on */
    {"pause-before-switchover", offsetof(VmfControl, parameters) + offsetof(VmfParameters, pause_before_switchover)},
};

static bool *find(VmfControl *control, const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        if (name && strcmp(table[i].name, name) == 0)
            return (bool *)((char *)control + table[i].offset);
    return NULL;
}

static bool check(VmfControl *control, json_t *entry, GError **error)
{
    const char *name = json_string_value(json_object_get(entry, "capability"));

    if (!name || !json_is_boolean(json_object_get(entry, "state")) || json_object_size(entry) != 2) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "a capability reads {\"capability\": NAME, \"state\": BOOLEAN}");
        return false;
    }
    if (!find(control, name)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "Parameter 'capability' does not accept value '%s'", name);
        return false;
    }
    return true;
}

json_t *vmf_qmp_set_capabilities(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    json_t *list = json_object_get(arguments, "capabilities"), *entry;
    size_t i;

    if (vmf_control_is_migrating(control) && !vmf_control_awaits_guest(control)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "There's a migration process in progress");
        return NULL;
    }
    json_array_foreach(list, i, entry) if (!check(control, entry, error)) return NULL;
    json_array_foreach(list, i, entry) * find(control, json_string_value(json_object_get(entry, "capability"))) =
        json_is_true(json_object_get(entry, "state"));
    return json_object();
}

json_t *vmf_qmp_query_capabilities(VmfControl *control, VmfControlClient *client, const json_t *arguments,
                                   GError **error)
{
    json_t *list = json_array();

    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        json_array_append_new(
            list, json_pack("{s:s,s:b}", "capability", table[i].name, "state", *find(control, table[i].name)));
    return list;
}
