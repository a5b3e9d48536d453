/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What both sides of a migration share: parameters, status, statistics, cancelling. */
#ifndef MIGRATION_SESSION_H
#define MIGRATION_SESSION_H

#include <pthread.h>
#include <stdatomic.h>

#include <vmferry/session.h>

#include "migration/guest.h"
#include "migration/status.h"
#include "stream/record.h"

struct VmfSession {
    bool is_source;
    VmfGuest *guest;         /* not owned */
    VmfConnector *connector; /* source; not owned */
    VmfListener *listener;   /* target; not owned */
    VmfParameters parameters;
    char *host_name;
    GError *parameters_error;
    VmfSessionOps ops;
    void *opaque;

    VmfRateLimit *rate;
    _Atomic uint64_t downtime_limit_ns;
    _Atomic uint64_t max_bandwidth;
    _Atomic bool cancelled;
    bool killed;          /* a fault point was met: nothing is put right or said any more; session thread */
    _Atomic bool offered; /* source: SWITCHOVER has left, the session's thread answers a cancel itself */

    pthread_mutex_t lock;     /* of all that follows */
    pthread_cond_t changed;   /* CLOCK_MONOTONIC */
    VmfStatistics statistics; /* what is not gathered on demand */
    bool may_continue;        /* vmf_session_continue was called */
    GError *expiry;           /* a limit has passed, by the watchdog's word; NULL: none */
    VmfChannel *spared;       /* not shut by a cancel, for the source to say ABORT on; NULL: none */
    char **incompatibilities;
    char *peer_host_name;     /* NULL: not told */
    GPtrArray *channels;      /* VmfChannel, to be shut down by a cancel; not owned */
    void (*gather)(void *gather_opaque, VmfStatistics *statistics); /* brings statistics up to date, under the lock */
    void *gather_opaque;
};

/* The status: asserts that the transition is legal. */
void vmf_session_set_status(VmfSession *session, VmfStatus status);
VmfStatus vmf_session_status(VmfSession *session);
void vmf_session_event(VmfSession *session, const char *id, const char *format, ...) G_GNUC_PRINTF(3, 4);

bool vmf_session_is_cancelled(VmfSession *session);
/* VMF_ERROR_CANCELLED if it is, or the limit that has passed: for loops. */
bool vmf_session_check_cancelled(VmfSession *session, GError **error);
/* Waits on `changed`, lock held, until @deadline_ns. False: it passed. */
bool vmf_session_wait_locked(VmfSession *session, int64_t deadline_ns);

/* While a channel is listed here, a cancel shuts it down. Adding one to a cancelled session shuts it down at once. */
void vmf_session_add_channel(VmfSession *session, VmfChannel *channel);
void vmf_session_remove_channel(VmfSession *session, VmfChannel *channel);
void vmf_session_shutdown_channels(VmfSession *session);
/* The same, and ends a connect that nobody answers. */
void vmf_session_wake(VmfSession *session);

/* False where a fault point is set: all channels are shut down, as if this side had been killed here. */
bool vmf_session_fault(VmfSession *session, const char *point, GError **error);

/* Takes @name. */
void vmf_session_set_peer_host_name(VmfSession *session, char *name);
void vmf_session_set_incompatibilities(VmfSession *session, char **texts);

/* The two sides. They leave status and outcome set. */
bool vmf_source_run(VmfSession *session, GError **error);
bool vmf_target_run(VmfSession *session, GError **error);

#endif
