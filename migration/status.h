/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which status may follow which: one table for both sides. */
#ifndef VMFERRY_MIGRATION_STATUS_H
#define VMFERRY_MIGRATION_STATUS_H

#include <vmferry/session.h>

/* Whether a session may go from @from to @to. A status never follows itself. */
bool vmf_status_may(VmfStatus from, VmfStatus to);

/* Whether the session has ended in this status. */
bool vmf_status_is_final(VmfStatus status);

#endif
