/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * While the guest stands, nobody may wait for ever: a target that neither reads nor answers would keep it standing. Whoever sends is
 * then blocked in a channel or for room, so somebody else has to look: a thread, for the time of the stop.
 */
#ifndef MIGRATION_WATCHDOG_H
#define MIGRATION_WATCHDOG_H

#include "migration/session.h"

typedef struct VmfWatchdog VmfWatchdog;

/* Shuts all channels of @session once @progress (any thread) has said the same for @patience_ns. */
VmfWatchdog *vmf_watchdog_new(VmfSession *session, int64_t patience_ns, uint64_t (*progress)(void *opaque), void *opaque,
                              GError **error);
/* Ends the watch. True: it had to act. */
bool vmf_watchdog_free(VmfWatchdog *watchdog);

#endif
