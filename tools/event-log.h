/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VMFERRY_LOG: one line for each status and event of a machine's migrations, for people and for grep. */
#ifndef VMFERRY_TOOLS_EVENT_LOG_H
#define VMFERRY_TOOLS_EVENT_LOG_H

#include <glib.h>
#include <stdbool.h>

typedef struct VmfEventLog VmfEventLog;

/* @target as in VMFERRY_LOG: a file to append to, "-" for stderr; NULL or "": none, and *@log is NULL. */
bool vmf_event_log_open(VmfEventLog **log, const char *target, GError **error);
void vmf_event_log_free(VmfEventLog *log);

/*
 * "TIME MACHINE SIDE ID TEXT". @text may hold what a peer said: whatever could end the line or move a cursor is shown as "?". A log that
 * cannot be written does not disturb the migration that it is about: the line is lost. NULL is allowed as @log.
 */
void vmf_event_log_write(VmfEventLog *log, const char *machine, const char *side, const char *id, const char *text);

#endif
