/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Deadlines for whoever is blocked. The session's thread and its lanes wait in channels and for room; what they wait for may never
 * come, and the user's limits hold all the same. So a thread of its own looks every now and then, and ends the session when a limit
 * has passed: it notes why (session->expiry), and wakes everybody by shutting the channels down.
 */
#ifndef MIGRATION_WATCHDOG_H
#define MIGRATION_WATCHDOG_H

#include "migration/session.h"

typedef struct VmfWatchdog VmfWatchdog;

/* Starts to look: @look is called on the watchdog's thread until it returns false, with the reason. */
VmfWatchdog *vmf_watchdog_new(VmfSession *session, bool (*look)(void *opaque, GError **why), void *opaque, GError **error);
/* Ends the thread. */
void vmf_watchdog_free(VmfWatchdog *watchdog);

#endif
