/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/qmp.h"

#include <vmferry/error.h>

static json_t *capabilities(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    json_t *enable = json_object_get(arguments, "enable");

    if (json_array_size(enable) > 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "Capability not available");
        return NULL;
    }
    vmf_control_client_set_negotiated(client);
    return json_object();
}

static json_t *query_version(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return vmf_qmp_version();
}

static json_t *query_commands(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    json_t *list = json_array();
    size_t n;
    const VmfQmpCommand *commands = vmf_qmp_commands(&n);

    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:s}", "name", commands[i].name));
    return list;
}

/* clang-format off */
static const VmfQmpArgument capabilities_arguments[] = {{"enable", VMF_QMP_ARRAY, false}, {NULL}};
static const VmfQmpArgument any_arguments[] = {{"*", VMF_QMP_ANY, false}, {NULL}};
static const VmfQmpArgument quit_arguments[] = {{"x-vmferry-force", VMF_QMP_BOOL, false}, {NULL}};
static const VmfQmpArgument resolve_arguments[] = {{"action", VMF_QMP_STRING, true}, {"fenced", VMF_QMP_BOOL, false}, {NULL}};
static const VmfQmpArgument fd_arguments[] = {{"fdname", VMF_QMP_STRING, true}, {NULL}};
static const VmfQmpArgument incoming_arguments[] = {
    {"uri", VMF_QMP_STRING, true},
    {"x-vmferry-lazy", VMF_QMP_BOOL, false},
    {"x-vmferry-bitmaps", VMF_QMP_ANY, false},
    {"x-vmferry-skip-unknown-bitmaps", VMF_QMP_BOOL, false},
    {NULL}
};
static const VmfQmpArgument continue_arguments[] = {{"state", VMF_QMP_STRING, true}, {NULL}};
static const VmfQmpArgument set_capabilities_arguments[] = {{"capabilities", VMF_QMP_ARRAY, true}, {NULL}};
static const VmfQmpArgument bitmap_arguments[] = {{"node", VMF_QMP_STRING, true}, {"name", VMF_QMP_STRING, true}, {NULL}};
static const VmfQmpArgument bitmap_add_arguments[] = {
    {"node", VMF_QMP_STRING, true},
    {"name", VMF_QMP_STRING, true},
    {"granularity", VMF_QMP_INT, false},
    {"persistent", VMF_QMP_BOOL, false},
    {"disabled", VMF_QMP_BOOL, false},
    {NULL}
};
static const VmfQmpArgument bitmap_merge_arguments[] = {
    {"node", VMF_QMP_STRING, true},
    {"target", VMF_QMP_STRING, true},
    {"bitmaps", VMF_QMP_ARRAY, true},
    {NULL}
};
static const VmfQmpArgument bitmap_set_arguments[] = {
    {"node", VMF_QMP_STRING, true},
    {"name", VMF_QMP_STRING, true},
    {"extents", VMF_QMP_ARRAY, true}, /* of [offset, length] */
    {NULL}
};
static const VmfQmpArgument drive_backup_arguments[] = {
    {"job-id", VMF_QMP_STRING, false},
    {"device", VMF_QMP_STRING, true},
    {"target", VMF_QMP_STRING, true},
    {"sync", VMF_QMP_STRING, true},
    {"bitmap", VMF_QMP_STRING, false},
    {"speed", VMF_QMP_INT, false},
    {"x-vmferry-buffered", VMF_QMP_BOOL, false},
    {"x-vmferry-force", VMF_QMP_BOOL, false},
    {"x-vmferry-insecure", VMF_QMP_BOOL, false},
    {NULL}
};
static const VmfQmpArgument block_job_arguments[] = {{"device", VMF_QMP_STRING, true}, {NULL}};
static const VmfQmpArgument migrate_arguments[] = {
    {"uri", VMF_QMP_STRING, true},
    {"detach", VMF_QMP_BOOL, false}, /* as in QEMU: accepted, without effect */
    {"resume", VMF_QMP_BOOL, false},
    {"x-vmferry-dry-run", VMF_QMP_BOOL, false},
    {"x-vmferry-one-way", VMF_QMP_BOOL, false},
    {"x-vmferry-insecure", VMF_QMP_BOOL, false},
    {"x-vmferry-then", VMF_QMP_STRING, false},
    {"x-vmferry-parameters", VMF_QMP_OBJECT, false},
    {"x-vmferry-bitmaps", VMF_QMP_ANY, false}, /* as the capability dirty-bitmaps, and its mapping, for this migration */
    {"x-vmferry-image", VMF_QMP_BOOL, false}, /* as the capability mapped-ram, for this migration; the rest is about images */
    {"x-vmferry-stop-first", VMF_QMP_BOOL, false},
    {"x-vmferry-point-in-time", VMF_QMP_BOOL, false}, /* as the capability background-snapshot, for this migration */
    {"x-vmferry-parent", VMF_QMP_STRING, false},
    {"x-vmferry-ram-only", VMF_QMP_BOOL, false},
    {"x-vmferry-buffered", VMF_QMP_BOOL, false},
    {"x-vmferry-io", VMF_QMP_STRING, false},
    {"x-vmferry-force", VMF_QMP_BOOL, false},
    {NULL}
};
/* clang-format on */

static const VmfQmpCommand commands[] = {
    {"qmp_capabilities", capabilities, capabilities_arguments},
    {"query-version", query_version, NULL},
    {"query-commands", query_commands, NULL},
    {"query-name", vmf_qmp_query_name, NULL},
    {"query-uuid", vmf_qmp_query_uuid, NULL},
    {"query-status", vmf_qmp_query_status, NULL},
    {"x-vmferry-query-machine", vmf_qmp_query_machine, NULL},
    {"query-block", vmf_qmp_query_block, NULL},
    {"block-dirty-bitmap-add", vmf_qmp_bitmap_add, bitmap_add_arguments},
    {"block-dirty-bitmap-remove", vmf_qmp_bitmap_remove, bitmap_arguments},
    {"block-dirty-bitmap-clear", vmf_qmp_bitmap_clear, bitmap_arguments},
    {"block-dirty-bitmap-enable", vmf_qmp_bitmap_enable, bitmap_arguments},
    {"block-dirty-bitmap-disable", vmf_qmp_bitmap_disable, bitmap_arguments},
    {"block-dirty-bitmap-merge", vmf_qmp_bitmap_merge, bitmap_merge_arguments},
    {"x-vmferry-bitmap-set", vmf_qmp_bitmap_set, bitmap_set_arguments},
    {"drive-backup", vmf_qmp_drive_backup, drive_backup_arguments},
    {"query-block-jobs", vmf_qmp_query_block_jobs, NULL},
    {"block-job-cancel", vmf_qmp_block_job_cancel, block_job_arguments},
    {"stop", vmf_qmp_stop, NULL},
    {"cont", vmf_qmp_cont, NULL},
    {"quit", vmf_qmp_quit, quit_arguments},
    {"getfd", vmf_qmp_getfd, fd_arguments},
    {"closefd", vmf_qmp_closefd, fd_arguments},
    {"migrate", vmf_qmp_migrate, migrate_arguments},
    {"migrate-incoming", vmf_qmp_migrate_incoming, incoming_arguments},
    {"migrate_cancel", vmf_qmp_migrate_cancel, NULL},
    {"migrate-continue", vmf_qmp_migrate_continue, continue_arguments},
    {"x-vmferry-resolve", vmf_qmp_resolve, resolve_arguments},
    {"query-migrate", vmf_qmp_query_migrate, NULL},
    {"migrate-set-parameters", vmf_qmp_set_parameters, any_arguments},
    {"query-migrate-parameters", vmf_qmp_query_parameters, NULL},
    {"migrate-set-capabilities", vmf_qmp_set_capabilities, set_capabilities_arguments},
    {"query-migrate-capabilities", vmf_qmp_query_capabilities, NULL},
};

const VmfQmpCommand *vmf_qmp_commands(size_t *n)
{
    *n = G_N_ELEMENTS(commands);
    return commands;
}
