/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/report.h"

#include <stdlib.h>

#include "machine/qmp-error.h"

void vmf_report_json(FILE *file, json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);

    fprintf(file, "%s\n", text);
    fflush(file);
    free(text);
    json_decref(object);
}

static void G_GNUC_PRINTF(4, 0)
    report(FILE *text_file, bool json, json_t *object, const char *format, va_list arguments)
{
    g_autofree char *text = NULL;

    if (json) {
        vmf_report_json(stdout, object);
        return;
    }
    json_decref(object);
    text = g_strdup_vprintf(format, arguments);
    fprintf(text_file, "%s\n", text);
    fflush(text_file);
}

void vmf_report_line(bool json, json_t *object, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    report(stdout, json, object, format, arguments);
    va_end(arguments);
}

void vmf_report_event(bool json, json_t *object, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    report(stderr, json, object, format, arguments);
    va_end(arguments);
}

void vmf_report_error(bool json, const GError *error)
{
    json_t *object = vmf_qmp_error_object(error, NULL);

    vmf_report_error_object(json, object);
    json_decref(object);
}

void vmf_report_error_object(bool json, const json_t *error)
{
    const char *hint = json_string_value(json_object_get(error, "hint"));

    if (json) {
        json_t *line = json_pack("{s:s}", "type", "error");

        json_object_update(line, (json_t *)error);
        vmf_report_json(stdout, line);
        return;
    }
    fprintf(stderr, "vmferry: %s\n", json_string_value(json_object_get(error, "message")));
    if (hint && *hint)
        fprintf(stderr, "vmferry: hint: %s\n", hint);
}
