/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Migration parameters: QEMU's names and units where it has the parameter, x-vmferry-NAME with the unit last where it
 * has not. Bandwidth and downtime limit reach a migration that runs; the others count from the next one.
 */
#include "machine/qmp.h"

#include <string.h>
#include <vmferry/error.h>

typedef enum { KIND_UNSIGNED, KIND_UINT64, KIND_BOOL, KIND_AUDIT, KIND_STRING } Kind;

typedef struct {
    const char *name;
    Kind kind;
    size_t offset;             /* into VmfParameters */
    uint64_t minimum, maximum; /* in the parameter's own unit */
    uint64_t scale;            /* what one unit is in VmfParameters' */
    const char *unset;         /* a string: what stands for none */
} Parameter;

#define FIELD(member) offsetof(VmfParameters, member)
#define NS_PER_MS UINT64_C(1000000)
#define DAY_NS (UINT64_C(86400) * 1000 * NS_PER_MS)

static const Parameter table[] = {
    {"max-bandwidth", KIND_UINT64, FIELD(max_bandwidth), 0, INT64_MAX, 1},
    {"downtime-limit", KIND_UINT64, FIELD(downtime_limit_ns), 0, 2000000, NS_PER_MS},
    {"multifd-channels", KIND_UNSIGNED, FIELD(channels), 1, VMF_CHANNELS_MAX, 1},
    {"max-cpu-throttle", KIND_UNSIGNED, FIELD(throttle_maximum), 0, 99, 1},
    {"x-vmferry-downtime-limit-ns", KIND_UINT64, FIELD(downtime_limit_ns), 0, 2000000 * NS_PER_MS, 1},
    {"x-vmferry-switchover-timeout-ns", KIND_UINT64, FIELD(switchover_timeout_ns), 0, DAY_NS, 1},
    {"x-vmferry-timeout-ns", KIND_UINT64, FIELD(timeout_ns), 0, 365 * DAY_NS, 1},
    {"x-vmferry-stream-version", KIND_UNSIGNED, FIELD(stream_version), 2, 3, 1},
    {"x-vmferry-minimum-rounds", KIND_UNSIGNED, FIELD(minimum_rounds), 0, 1000000, 1},
    {"x-vmferry-pause-before-switchover", KIND_BOOL, FIELD(pause_before_switchover), 0, 1, 1},
    {"x-vmferry-audit", KIND_AUDIT, FIELD(audit), 0, 0, 1},
    {"x-vmferry-disks", KIND_STRING, FIELD(copy_disks), 0, 0, 1, "none"},
    {"x-vmferry-incremental-bitmap", KIND_STRING, FIELD(incremental_bitmap), 0, 0, 1, ""},
    {"x-vmferry-disk-latency-goal-ns", KIND_UINT64, FIELD(disk_latency_goal_ns), 0, DAY_NS, 1},
    {"x-vmferry-mirror-disks", KIND_BOOL, FIELD(mirror_disks), 0, 1, 1},
    {"x-vmferry-verify-disks", KIND_BOOL, FIELD(verify_disks), 0, 1, 1},
};

static const Parameter *find(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

static bool apply_number(void *field, const Parameter *parameter, const json_t *value, GError **error)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value) || number < 0 || (uint64_t)number < parameter->minimum ||
        (uint64_t)number > parameter->maximum) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "Parameter '%s' expects an integer from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                    parameter->name, parameter->minimum, parameter->maximum);
        return false;
    }
    if (parameter->kind == KIND_UNSIGNED)
        *(unsigned *)field = number * parameter->scale;
    else
        *(uint64_t *)field = number * parameter->scale;
    return true;
}

static bool apply_bool(void *field, const Parameter *parameter, const json_t *value, GError **error)
{
    *(bool *)field = json_is_true(value);
    if (!json_is_boolean(value))
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' expects a boolean", parameter->name);
    return json_is_boolean(value);
}

static bool apply_audit(void *field, const Parameter *parameter, const json_t *value, GError **error)
{
    if (json_is_string(value))
        return vmf_audit_parse(json_string_value(value), field, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' expects after, before or off", parameter->name);
    return false;
}

/* The text stays that of @value. */
static bool apply_string(void *field, const Parameter *parameter, const json_t *value, GError **error)
{
    *(const char **)field = json_string_value(value);
    if (!json_is_string(value))
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' expects a string", parameter->name);
    return json_is_string(value);
}

static bool apply(VmfParameters *parameters, const Parameter *parameter, const json_t *value, GError **error)
{
    void *field = (char *)parameters + parameter->offset;

    switch (parameter->kind) {
    case KIND_BOOL:
        return apply_bool(field, parameter, value, error);
    case KIND_AUDIT:
        return apply_audit(field, parameter, value, error);
    case KIND_STRING:
        return apply_string(field, parameter, value, error);
    default:
        return apply_number(field, parameter, value, error);
    }
}

bool vmf_qmp_apply_parameters(VmfParameters *parameters, const json_t *values, GError **error)
{
    VmfParameters copy = *parameters;
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)values, name, value)
    {
        const Parameter *parameter = find(name);

        if (!parameter) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' is unexpected", name);
            return false;
        }
        if (!apply(&copy, parameter, value, error))
            return false;
    }
    if (!vmf_parameters_check(&copy, error))
        return false;
    *parameters = copy;
    return true;
}

/* Takes over @mapping. It is looked at when it is used, for only then is it known by which side. */
static bool set_mapping(VmfControl *control, json_t *mapping, GError **error)
{
    if (!json_is_array(mapping)) {
        json_decref(mapping);
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'block-bitmap-mapping' expects a list");
        return false;
    }
    json_decref(control->bitmap_mapping);
    control->bitmap_mapping = mapping;
    return true;
}

static void keep(char **own, const char **parameter)
{
    g_free(*own);
    *parameter = *own = g_strdup(*parameter);
}

json_t *vmf_qmp_set_parameters(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfSession *session = control->migration ? vmf_migration_session(control->migration) : NULL;
    json_t *mapping = json_incref(json_object_get(arguments, "block-bitmap-mapping"));

    json_object_del((json_t *)arguments, "block-bitmap-mapping");
    if (mapping && !set_mapping(control, mapping, error))
        return NULL;
    if (!vmf_qmp_apply_parameters(&control->parameters, arguments, error))
        return NULL;
    if (json_object_get(arguments, "x-vmferry-disks"))
        keep(&control->copy_disks, &control->parameters.copy_disks);
    if (json_object_get(arguments, "x-vmferry-incremental-bitmap"))
        keep(&control->incremental_bitmap, &control->parameters.incremental_bitmap);
    if (session && json_object_get(arguments, "max-bandwidth"))
        vmf_session_set_max_bandwidth(session, control->parameters.max_bandwidth);
    if (session &&
        (json_object_get(arguments, "downtime-limit") || json_object_get(arguments, "x-vmferry-downtime-limit-ns")))
        vmf_session_set_downtime_limit(session, control->parameters.downtime_limit_ns);
    return json_object();
}

static json_t *value_of(const VmfParameters *parameters, const Parameter *parameter)
{
    const void *field = (const char *)parameters + parameter->offset;

    switch (parameter->kind) {
    case KIND_UNSIGNED:
        return json_integer(*(const unsigned *)field / parameter->scale);
    case KIND_UINT64:
        return json_integer(*(const uint64_t *)field / parameter->scale);
    case KIND_BOOL:
        return json_boolean(*(const bool *)field);
    case KIND_AUDIT:
        return json_string(vmf_audit_name(*(const VmfAudit *)field));
    case KIND_STRING:
        return json_string(*(char *const *)field ? *(char *const *)field : parameter->unset);
    }
    g_assert_not_reached();
}

json_t *vmf_qmp_query_parameters(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    json_t *result = json_object();

    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        json_object_set_new(result, table[i].name, value_of(&control->parameters, &table[i]));
    if (control->bitmap_mapping)
        json_object_set(result, "block-bitmap-mapping", control->bitmap_mapping);
    return result;
}
