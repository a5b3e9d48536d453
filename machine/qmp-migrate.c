/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/bitmap-map.h"
#include "machine/qmp.h"

#include <string.h>
#include <vmferry/error.h>

static bool parse_then(const char *name, VmfThen *then, GError **error)
{
    static const char *const names[VMF_THEN_N] = {
        [VMF_THEN_STOP] = "stop", [VMF_THEN_CONT] = "cont", [VMF_THEN_QUIT] = "quit"};

    for (*then = 0; *then < VMF_THEN_N; (*then)++)
        if (strcmp(names[*then], name) == 0)
            return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'x-vmferry-then' expects stop, cont or quit");
    return false;
}

static bool is_true(const json_t *arguments, const char *name)
{
    return json_is_true(json_object_get(arguments, name));
}

/* What holds for this migration: the machine's parameters, what its capabilities say, what the command adds. */
static bool parameters_for(VmfControl *control, const json_t *arguments, VmfParameters *parameters, GError **error)
{
    *parameters = control->parameters;
    if (!control->multifd)
        parameters->channels = 1;
    if (!control->auto_converge)
        parameters->throttle_maximum = 0;
    parameters->dry_run = is_true(arguments, "x-vmferry-dry-run");
    return vmf_qmp_apply_parameters(parameters, json_object_get(arguments, "x-vmferry-parameters"), error);
}

static VmfConnectFlags flags_for(VmfControl *control, const json_t *arguments)
{
    VmfConnectFlags flags = 0;

    if (!control->return_path || is_true(arguments, "x-vmferry-one-way"))
        flags |= VMF_CONNECT_ONE_WAY;
    if (control->config.insecure || is_true(arguments, "x-vmferry-insecure"))
        flags |= VMF_CONNECT_INSECURE;
    return flags;
}

static const char *string(const json_t *arguments, const char *name)
{
    return json_string_value(json_object_get(arguments, name));
}

/* What only images have, on a stream: it would be lost without a word. */
static bool check_stream_arguments(const json_t *arguments, GError **error)
{
    static const char *const names[] = {"x-vmferry-stop-first", "x-vmferry-point-in-time", "x-vmferry-parent", "x-vmferry-ram-only",
                                        "x-vmferry-buffered", "x-vmferry-io", "x-vmferry-force"};

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        if (json_object_get(arguments, names[i])) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' is about images: it needs x-vmferry-image", names[i]);
            return false;
        }
    return true;
}

/* Then the guest runs on afterwards, unless the command says otherwise. */
static bool is_point_in_time(const VmfControl *control, const json_t *arguments)
{
    return control->background_snapshot || is_true(arguments, "x-vmferry-point-in-time");
}

static bool check_stream(const VmfControl *control, const json_t *arguments, GError **error)
{
    if (!control->background_snapshot)
        return check_stream_arguments(arguments, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED,
                "background-snapshot: a stream is written in rounds: it needs mapped-ram, an image");
    return false;
}

static bool save(VmfControl *control, const json_t *arguments, const VmfMigrateRequest *request, GError **error)
{
    VmfSaveOptions options = {
        .size = sizeof(options),
        .uri = request->uri,
        .parent = string(arguments, "x-vmferry-parent"),
        .flags = request->flags & VMF_CONNECT_INSECURE,
        .buffered = is_true(arguments, "x-vmferry-buffered"),
        .backend = string(arguments, "x-vmferry-io"),
        .stop_first = is_true(arguments, "x-vmferry-stop-first"),
        .resume = request->then == VMF_THEN_CONT,
        .ram_only = is_true(arguments, "x-vmferry-ram-only"),
        .point_in_time = is_point_in_time(control, arguments),
        .force = is_true(arguments, "x-vmferry-force"),
    };

    if (!g_str_has_prefix(request->uri, "file:") && !g_str_has_prefix(request->uri, "nbd:") &&
        !g_str_has_prefix(request->uri, "nbd+")) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: mapped-ram: an image goes to file:PATH or an NBD export", request->uri);
        return false;
    }
    return vmf_control_save(control, &options, request->parameters, request->then == VMF_THEN_QUIT, error);
}

/* What the command says, else the capability and the mapping. */
static const json_t *bitmaps_for(const VmfControl *control, const json_t *arguments, json_t *all)
{
    const json_t *given = json_object_get(arguments, "x-vmferry-bitmaps");

    if (given || !control->dirty_bitmaps)
        return given;
    return control->bitmap_mapping ? control->bitmap_mapping : all;
}

json_t *vmf_qmp_migrate(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    bool to_image = control->mapped_ram || is_true(arguments, "x-vmferry-image");
    const char *then = string(arguments, "x-vmferry-then");
    g_autofree char *uri = NULL;
    VmfParameters parameters;
    VmfMigrateRequest request = {
        .parameters = &parameters, .flags = flags_for(control, arguments), .bitmaps = bitmaps_for(control, arguments, json_true())};

    if (is_true(arguments, "resume")) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "migrate: there is no paused migration to resume");
        return NULL;
    }
    if (then && !parse_then(then, &request.then, error))
        return NULL;
    if (!then && to_image && is_point_in_time(control, arguments))
        request.then = VMF_THEN_CONT;
    if (!parameters_for(control, arguments, &parameters, error))
        return NULL;
    uri = vmf_control_resolve_uri(control, json_string_value(json_object_get(arguments, "uri")), error);
    request.uri = uri;
    if (!uri)
        return NULL;
    bool begun = to_image ? save(control, arguments, &request, error)
                          : check_stream(control, arguments, error) && vmf_control_migrate(control, &request, error);
    return begun ? json_object() : NULL;
}

/* What aliases mean here; while nobody is awaited yet. */
static bool take_map(VmfControl *control, const json_t *arguments, GError **error)
{
    const json_t *given = json_object_get(arguments, "x-vmferry-bitmaps");
    bool skip = is_true(arguments, "x-vmferry-skip-unknown-bitmaps");

    given = given ? given : control->bitmap_mapping;
    if (vmf_control_is_migrating(control) || (!given && !skip))
        return true;
    return vmf_bitmap_map_apply(control->config.machine, given ? given : json_true(), skip, error);
}

json_t *vmf_qmp_migrate_incoming(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    g_autofree char *uri =
        vmf_control_resolve_uri(control, json_string_value(json_object_get(arguments, "uri")), error);

    VmfRestoreMode mode = is_true(arguments, "x-vmferry-lazy") ? VMF_RESTORE_LAZY : VMF_RESTORE_EAGER;

    return uri && take_map(control, arguments, error) && vmf_control_incoming(control, uri, mode, error) ? json_object() : NULL;
}

/* As in QEMU: nothing to cancel is no error. Waiting for a guest is not a migration yet, and quit ends it. */
json_t *vmf_qmp_migrate_cancel(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    if (!vmf_control_holds_nothing(control, "cancel", error))
        return NULL;
    if (vmf_control_is_migrating(control) && !vmf_migration_is_incoming(control->migration))
        vmf_session_cancel(vmf_migration_session(control->migration));
    return json_object();
}

json_t *vmf_qmp_migrate_continue(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    const char *state = json_string_value(json_object_get(arguments, "state"));

    if (strcmp(state, "pre-switchover") != 0 || !vmf_control_is_migrating(control)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "Migration not in expected state: %s", state);
        return NULL;
    }
    return vmf_session_continue(vmf_migration_session(control->migration), error) ? json_object() : NULL;
}

/* Returns at once: query-migrate, or X_VMFERRY_MIGRATION_ENDED, tells what came of it. */
json_t *vmf_qmp_resolve(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    const char *action = json_string_value(json_object_get(arguments, "action"));
    bool run = strcmp(action, "run") == 0;

    if (!run && strcmp(action, "discard") != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'action' expects run or discard");
        return NULL;
    }
    return vmf_control_resolve(control, run, is_true(arguments, "fenced"), error) ? json_object() : NULL;
}

json_t *vmf_qmp_query_migrate(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    if (!control->migration)
        return json_object();
    return vmf_qmp_migration_info(control->migration);
}
