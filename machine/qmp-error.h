/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Errors as programs get them, and why they happened in words for people. */
#ifndef VMFERRY_MACHINE_QMP_ERROR_H
#define VMFERRY_MACHINE_QMP_ERROR_H

#include <glib.h>
#include <jansson.h>

/*
 * One sentence without a stop that stands alone, as at the end of "the migration failed: ". @peer is the other side of
 * the channel ("target", "source"), NULL where nobody answers. Valid UTF-8, owned by the caller.
 */
char *vmf_qmp_error_cause(const GError *error, const char *peer);

/* What to do about it, by what it says first. Never NULL; static strings. */
const char *vmf_qmp_error_hint(const GError *error);

/* {id, message, cause, hint}, owned by the caller. */
json_t *vmf_qmp_error_object(const GError *error, const char *peer);

#endif
