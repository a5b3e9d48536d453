/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/qmp.h"

#include <stdio.h>
#include <string.h>
#include <vmferry/vmferry.h>

#include "machine/qmp-error.h"

#define GENERIC "GenericError"
#define NOT_FOUND "CommandNotFound"

static const char *const type_names[] = {
    [VMF_QMP_STRING] = "string", [VMF_QMP_BOOL] = "boolean", [VMF_QMP_INT] = "integer",
    [VMF_QMP_OBJECT] = "object", [VMF_QMP_ARRAY] = "array",
};

static bool has_type(const json_t *value, VmfQmpType type)
{
    static const json_type json_types[] = {
        [VMF_QMP_STRING] = JSON_STRING,
        [VMF_QMP_INT] = JSON_INTEGER,
        [VMF_QMP_OBJECT] = JSON_OBJECT,
        [VMF_QMP_ARRAY] = JSON_ARRAY,
    };

    if (type == VMF_QMP_ANY)
        return true;
    if (type == VMF_QMP_BOOL)
        return json_is_boolean(value);
    return json_typeof(value) == json_types[type];
}

json_t *vmf_qmp_version(void)
{
    int major = 0, minor = 0, micro = 0;
    g_autofree char *package = g_strdup_printf("vmferry %s", vmf_version());

    sscanf(vmf_version(), "%d.%d.%d", &major, &minor, &micro);
    /* The member is called so because clients look for it there; its numbers are this program's. */
    return json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "major", major, "minor", minor, "micro", micro, "package",
                     package);
}

json_t *vmf_qmp_greeting(void *control)
{
    return json_pack("{s:{s:o,s:[]}}", "QMP", "version", vmf_qmp_version(), "capabilities");
}

/* @desc may quote what was sent, which is any bytes: jansson has no answer for those. */
static json_t *refuse(const char *class, const char *desc)
{
    g_autofree char *text = g_utf8_make_valid(desc, -1);

    return json_pack("{s:{s:s,s:s}}", "error", "class", class, "desc", text);
}

static json_t *refuse_error(const GError *error)
{
    json_t *response = refuse(GENERIC, error->message);
    json_t *body = json_object_get(response, "error");

    json_object_set_new(body, "x-vmferry-id", json_string(vmf_error_id(error)));
    json_object_set_new(body, "x-vmferry-hint", json_string(vmf_qmp_error_hint(error)));
    return response;
}

static const VmfQmpArgument *find_argument(const VmfQmpArgument *arguments, const char *name)
{
    for (; arguments && arguments->name; arguments++)
        if (strcmp(arguments->name, name) == 0 || strcmp(arguments->name, "*") == 0)
            return arguments;
    return NULL;
}

static bool check_arguments(const VmfQmpArgument *expected, json_t *given, GError **error)
{
    const char *name;
    json_t *value;

    json_object_foreach(given, name, value)
    {
        const VmfQmpArgument *argument = find_argument(expected, name);

        if (!argument) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' is unexpected", name);
            return false;
        }
        if (!has_type(value, argument->type)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Invalid parameter type for '%s', expected: %s", name,
                        type_names[argument->type]);
            return false;
        }
    }
    for (; expected && expected->name; expected++) {
        if (expected->required && !json_object_get(given, expected->name)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter '%s' is missing", expected->name);
            return false;
        }
    }
    return true;
}

static const VmfQmpCommand *find_command(const char *name)
{
    size_t n;
    const VmfQmpCommand *commands = vmf_qmp_commands(&n);

    for (size_t i = 0; i < n; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static json_t *return_or_refuse(json_t *result, const GError *error)
{
    return result ? json_pack("{s:o}", "return", result) : refuse_error(error);
}

/* NULL: it was deferred. */
static json_t *run_command(VmfControl *control, VmfControlClient *client, const VmfQmpCommand *command,
                           json_t *arguments)
{
    g_autoptr(GError) error = NULL;
    json_t *result = NULL;

    if (check_arguments(command->arguments, arguments, &error))
        result = command->run(control, client, arguments, &error);
    return result || error ? return_or_refuse(result, error) : NULL;
}

/* A client says qmp_capabilities first, and only once. */
static json_t *check_mode(VmfControlClient *client, const char *name)
{
    bool negotiates = strcmp(name, "qmp_capabilities") == 0;

    if (!negotiates && !vmf_control_client_is_negotiated(client))
        return refuse(NOT_FOUND, "Expecting capabilities negotiation with 'qmp_capabilities'");
    if (negotiates && vmf_control_client_is_negotiated(client))
        return refuse(NOT_FOUND, "Capabilities negotiation is already complete, command ignored");
    return NULL;
}

static json_t *check_envelope(const json_t *request)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)request, name, value)
    {
        if (strcmp(name, "execute") != 0 && strcmp(name, "arguments") != 0 && strcmp(name, "id") != 0) {
            g_autofree char *desc = g_strdup_printf("QMP input member '%s' is unexpected", name);

            return refuse(GENERIC, desc);
        }
    }
    if (!json_is_string(json_object_get(request, "execute")))
        return refuse(GENERIC, "QMP input lacks member 'execute', a string");
    value = json_object_get(request, "arguments");
    if (value && !json_is_object(value))
        return refuse(GENERIC, "QMP input member 'arguments' must be an object");
    return NULL;
}

static json_t *answer(VmfControl *control, VmfControlClient *client, json_t *request)
{
    const char *name = json_string_value(json_object_get(request, "execute"));
    const VmfQmpCommand *command;
    json_t *response = check_envelope(request);

    if (!response)
        response = check_mode(client, name);
    if (response)
        return response;
    command = find_command(name);
    if (!command) {
        g_autofree char *desc = g_strdup_printf("The command %s has not been found", name);

        return refuse(NOT_FOUND, desc);
    }
    return run_command(control, client, command, json_object_get(request, "arguments"));
}

static json_t *with_id_of(const json_t *request, json_t *response)
{
    json_t *id = json_object_get(request, "id");

    if (id && response)
        json_object_set(response, "id", id);
    return response;
}

json_t *vmf_qmp_request(void *control, VmfControlClient *client, json_t *request, const char *problem)
{
    return with_id_of(request, problem ? refuse(GENERIC, problem) : answer(control, client, request));
}

void vmf_qmp_answer(VmfControlAnswer *answer, json_t *result, const GError *error)
{
    json_t *response = with_id_of(vmf_control_answer_request(answer), return_or_refuse(result, error));

    vmf_control_answer_give(answer, response);
    json_decref(response);
}
