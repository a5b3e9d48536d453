/* SPDX-License-Identifier: LGPL-2.1-or-later */
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

json_t *vmf_qmp_migrate(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    const char *then = json_string_value(json_object_get(arguments, "x-vmferry-then"));
    g_autofree char *uri = NULL;
    VmfParameters parameters;
    VmfMigrateRequest request = {.parameters = &parameters, .flags = flags_for(control, arguments)};

    if (is_true(arguments, "resume")) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "migrate: there is no paused migration to resume");
        return NULL;
    }
    if (then && !parse_then(then, &request.then, error))
        return NULL;
    if (!parameters_for(control, arguments, &parameters, error))
        return NULL;
    uri = vmf_control_resolve_uri(control, json_string_value(json_object_get(arguments, "uri")), error);
    request.uri = uri;
    return uri && vmf_control_migrate(control, &request, error) ? json_object() : NULL;
}

json_t *vmf_qmp_migrate_incoming(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    g_autofree char *uri =
        vmf_control_resolve_uri(control, json_string_value(json_object_get(arguments, "uri")), error);

    return uri && vmf_control_incoming(control, uri, error) ? json_object() : NULL;
}

/* As in QEMU: nothing to cancel is no error. Waiting for a guest is not a migration yet, and quit ends it. */
json_t *vmf_qmp_migrate_cancel(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
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

json_t *vmf_qmp_query_migrate(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    if (!control->migration)
        return json_object();
    return vmf_qmp_migration_info(control->migration);
}
