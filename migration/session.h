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

/* How far a source's offer is, and so what a cancel or a limit that has passed may do to its channels. Never goes back. */
typedef enum {
    VMF_OFFER_NONE,    /* shut them: a closed channel says all that there is to say */
    VMF_OFFER_LEAVING, /* SWITCHOVER is being written: once it may have arrived, ABORT has to follow */
    VMF_OFFER_LEFT,    /* the session's thread has deadlines of its own and answers a cancel itself */
} VmfOffer;

struct VmfSession {
    /* What vmf_session_run() does where it is no migration: a save, a restore. NULL: the side of one. */
    bool (*run)(VmfSession *session, GError **error);
    void *own;              /* what that needs to know, from vmf_session_new_… on */
    GDestroyNotify free_own;
    const char *operation;  /* what people call it: "migration", "save", "restore" */
    bool is_source;
    bool stop_first;         /* source: the guest is stopped ahead of the first page, and nothing has to be logged */
    VmfGuest *guest;         /* not owned */
    VmfConnector *connector; /* source; not owned */
    VmfListener *listener;   /* target; not owned */
    VmfParameters parameters;
    char *host_name, *machine, *peer, *copy_disks, *incremental_bitmap; /* copies, for the parameters */
    GError *parameters_error;
    VmfSessionOps ops;
    void *opaque;

    VmfRateLimit *rate;
    _Atomic uint64_t downtime_limit_ns;
    _Atomic uint64_t max_bandwidth;
    _Atomic bool cancelled;
    int64_t handshake_ns; /* target: for a connection to say who it is. Tests shorten both, ahead of the run */
    int64_t silence_ns;   /* target: for an accepted source to send anything */
    bool killed;          /* a fault point was met: nothing is put right or said any more; session thread */
    _Atomic VmfOffer offer; /* source; changed under the lock */
    _Atomic int64_t stop_allowance_ns; /* source: what an owner of state needs of the stop beyond all limits, having been asked to */

    pthread_mutex_t lock;     /* of all that follows */
    pthread_cond_t changed;   /* CLOCK_MONOTONIC */
    VmfStatistics statistics; /* what is not gathered on demand */
    bool may_continue;        /* vmf_session_continue was called */
    GError *expiry;           /* a limit has passed, by the watchdog's word; NULL: none */
    char *hold;               /* why the guest is held here; NULL: it is not */
    bool leaving;             /* cancelled while it is held: run() returns and leaves it so */
    struct {
        bool pending, run, fenced;
    } resolution;             /* a person's word */
    uint8_t peer_state[16];   /* source: id of the target's state directory; zeros: not told */
    VmfChannel *spared;       /* not shut by a cancel, for the source to say ABORT on; NULL: none */
    char **incompatibilities;
    char *peer_host_name;     /* NULL: not told */
    GPtrArray *channels;      /* VmfChannel, to be shut down by a cancel; not owned */
    void (*gather)(void *gather_opaque, VmfStatistics *statistics); /* brings statistics up to date, under the lock */
    void *gather_opaque;
};

/* A session that has no other side; the caller sets run, own and free_own. */
VmfSession *vmf_session_new(VmfGuest *guest, const VmfParameters *parameters, const VmfSessionOps *ops, void *opaque);

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
/* The same, and ends a connect that nobody answers; after the offer nothing, while it leaves new channels can still be opened. */
void vmf_session_wake(VmfSession *session);
/* SWITCHOVER is about to be written. False, and the error of vmf_session_check_cancelled(): it shall not be. */
bool vmf_session_begin_offer(VmfSession *session, GError **error);
/* It was written. */
void vmf_session_end_offer(VmfSession *session);

/* False where a fault point is set: all channels are shut down, as if this side had been killed here; and after that. */
bool vmf_session_fault(VmfSession *session, const char *point, GError **error);
/* The same for the two points around a step of the handover, NAME.due and NAME.done. */
bool vmf_session_due(VmfSession *session, const char *name, GError **error);
bool vmf_session_done(VmfSession *session, const char *name, GError **error);

/* States the hold, with the outcome HELD, or (@why NULL) that there is none any more. */
void vmf_session_set_hold(VmfSession *session, const char *why);

/* Takes @name. */
void vmf_session_set_peer_host_name(VmfSession *session, char *name);
void vmf_session_set_incompatibilities(VmfSession *session, char **texts);

/* The two sides. They leave status and outcome set. */
bool vmf_source_run(VmfSession *session, GError **error);
bool vmf_target_run(VmfSession *session, GError **error);

#endif
