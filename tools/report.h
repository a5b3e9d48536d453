/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What people and programs are told: lines of text, or JSON lines of the types status, event, summary and error. */
#ifndef VMFERRY_TOOLS_REPORT_H
#define VMFERRY_TOOLS_REPORT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/* One JSON line, written and flushed at once. Takes over @object. */
void vmf_report_json(FILE *file, json_t *object);

/* On stdout: @object with @json, the text otherwise. Takes over @object. */
void vmf_report_line(bool json, json_t *object, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* Something to tell beside the result: a JSON event on stdout, or text on stderr. Takes over @object. */
void vmf_report_event(bool json, json_t *object, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* "vmferry: object: operation: detail: cause" on stderr, or an error line on stdout. */
void vmf_report_error(bool json, const GError *error);
/* The same for an error that the machine described: {id, message, cause, hint}. */
void vmf_report_error_object(bool json, const json_t *error);

#endif
