/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sessions: one migration of one guest, seen from one side.
 *
 * vmf_session_run() blocks; give it a thread. Everything else here may be called from any thread while it runs. Both sides may live
 * in one process; the library has no state outside its handles.
 */
#ifndef VMFERRY_SESSION_H
#define VMFERRY_SESSION_H

#include <vmferry/channel.h>
#include <vmferry/guest.h>
#include <vmferry/journal.h>

G_BEGIN_DECLS

typedef struct VmfSession VmfSession;

/* QEMU's status words, in the order a migration passes through them. */
#define VMF_STATUSES(X)                                                                                                         \
    X(VMF_STATUS_NONE, "none")                                                                                                  \
    X(VMF_STATUS_SETUP, "setup")                                                                                                \
    X(VMF_STATUS_ACTIVE, "active")                                                                                              \
    X(VMF_STATUS_PRE_SWITCHOVER, "pre-switchover")                                                                              \
    X(VMF_STATUS_DEVICE, "device")                                                                                              \
    X(VMF_STATUS_POSTCOPY_ACTIVE, "postcopy-active")                                                                            \
    X(VMF_STATUS_COMPLETED, "completed")                                                                                        \
    X(VMF_STATUS_FAILED, "failed")                                                                                              \
    X(VMF_STATUS_CANCELLING, "cancelling")                                                                                      \
    X(VMF_STATUS_CANCELLED, "cancelled")
typedef enum {
#define X(code, word) code,
    VMF_STATUSES(X)
#undef X
    VMF_STATUS_N
} VmfStatus;
const char *vmf_status_word(VmfStatus status);

typedef enum {
    VMF_OUTCOME_NONE, /* still running */
    VMF_OUTCOME_COMPLETED,
    VMF_OUTCOME_FAILED,
    VMF_OUTCOME_CANCELLED,
    VMF_OUTCOME_HELD,
    VMF_OUTCOME_PREFLIGHT_OK,
    VMF_OUTCOME_PREFLIGHT_REFUSED,
    VMF_OUTCOME_N
} VmfOutcome;
const char *vmf_outcome_word(VmfOutcome outcome); /* "completed", …, "preflight-refused" */

typedef enum { VMF_AUDIT_AFTER, VMF_AUDIT_BEFORE, VMF_AUDIT_OFF, VMF_AUDIT_N } VmfAudit;
const char *vmf_audit_name(VmfAudit audit); /* "after", "before", "off" */
bool vmf_audit_parse(const char *name, VmfAudit *out, GError **error);

typedef enum {
    VMF_VERIFIED_OFF,
    VMF_VERIFIED_TRANSPORT,
    VMF_VERIFIED_FULL,
    VMF_VERIFIED_NOT_APPLICABLE,
    VMF_VERIFIED_FAILED,
    VMF_VERIFIED_N
} VmfVerified;
const char *vmf_verified_word(VmfVerified verified);

#define VMF_CHANNELS_MAX 64

/* ---- the convergence policy ------------------------------------------------------------------------------------------------ */

/* What a policy is told between two rounds. */
typedef struct {
    size_t size;
    unsigned round;                /* rounds sent so far */
    uint64_t elapsed_ns;           /* since the first page */
    uint64_t pending_bytes;        /* still to send, in flight included */
    uint64_t stop_bytes;           /* of which only after the stop */
    uint64_t rate_bytes_per_second;      /* acknowledged by the target, lately */
    uint64_t dirty_bytes_per_second;     /* written by the guest lately, at least: a page counts once a round */
    uint64_t sent_bytes;           /* payload so far, all rounds */
    uint64_t first_pass_bytes;     /* payload of the first round */
    uint64_t rtt_ns;
    uint64_t state_ns;             /* forecast: read and load device state */
    uint64_t journal_ns;           /* forecast: journal sync */
    uint64_t forecast_ns;          /* of the stop, were it taken now */
    uint64_t downtime_limit_ns;
    unsigned throttle_percent;     /* in force */
    bool can_throttle;
    unsigned throttle_maximum;     /* percent, the most that the session will do; 0: that of VmfGuestOps */
    bool dirty_is_settled;         /* dirty_bytes_per_second is of at least 100 ms at this throttle_percent, or better */
} VmfPolicyInput;

typedef enum { VMF_DECIDE_ROUND, VMF_DECIDE_SWITCHOVER, VMF_DECIDE_GIVE_UP } VmfDecision;
#define VMF_POLICY_REASON_SIZE 200 /* bytes, the terminating NUL included */
typedef struct {
    size_t size;
    VmfDecision decision;      /* VMF_DECIDE_ROUND unless set */
    unsigned throttle_percent; /* from now on; as in force unless set. The session cuts it to throttle_maximum */
    uint64_t wait_ns;          /* before the next round, where one at once is of no use; a cancel or a new limit ends it */
    char reason[VMF_POLICY_REASON_SIZE]; /* one sentence for status and events; "" unless set: nothing new to say */
} VmfPolicyOutput;

/*
 * How long the guest would stand still if it were stopped now: pending bytes at the acknowledged rate, 1.5 round trips, device state
 * and journal. UINT64_MAX: not in any time that can be told (nothing was acknowledged yet). The session fills forecast_ns with it.
 */
uint64_t vmf_policy_forecast_ns(const VmfPolicyInput *input);

typedef struct VmfPolicyOps {
    size_t size;
    const char *name;
    void *(*create)(void);
    void (*destroy)(void *policy);
    /* Session thread, once between two rounds. No I/O, no clock: everything is in @input, so it can be tested without a guest. */
    void (*decide)(void *policy, const VmfPolicyInput *input, VmfPolicyOutput *output);
} VmfPolicyOps;

/* The default (docs/decisions.rst): goes on below the limit while it pays, throttles above it when rounds gain nothing. */
extern const VmfPolicyOps vmf_policy_default;

/* ---- parameters ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    size_t size;                   /* sizeof(VmfParameters) */
    unsigned channels;             /* 1 to VMF_CHANNELS_MAX: page channels beside the main channel, as far as the URI allows */
    uint64_t downtime_limit_ns;
    uint64_t max_bandwidth;        /* bytes a second over all channels; 0: unlimited */
    uint64_t switchover_timeout_ns; /* beyond the downtime limit: how long READY may take */
    uint64_t timeout_ns;           /* whole precopy phase; 0: none. Then the migration fails, the guest stays */
    VmfAudit audit;
    unsigned stream_version;       /* 3 or 2 */
    bool dry_run;                  /* preflight only */
    bool pause_before_switchover;
    unsigned minimum_rounds;       /* live rounds that must be sent before the stop, whatever the policy says */
    unsigned throttle_maximum;     /* percent; 0: never throttle */
    const VmfPolicyOps *policy;
    const char *host_name;         /* told to the peer, for its messages: up to 255 bytes of UTF-8 without control characters; copied */
    /*
     * Fault point: called at each named point ("source.switchover.sent", …); true makes the session behave as if killed there.
     * For tests. NULL: none.
     */
    bool (*fault)(void *fault_opaque, const char *point);
    void *fault_opaque;
    /*
     * Where the handover is written down, so that it can be settled after a crash; must outlive the session. NULL: nowhere, and nobody can
     * be asked afterwards. @machine: what this guest is called here, @peer: how to reach the target again, both for the entries; copied.
     */
    VmfJournal *journal;
    const char *machine;
    const char *peer;
    /*
     * Source: which disks of the guest are copied with it: "all", "none", or names with commas between them; NULL: none. The others are
     * where both hosts reach them. Stream version 3, not into images. Copied.
     */
    const char *copy_disks;
    bool verify_disks; /* all of them is read from storage once more, at both ends before RUN, and compared */
    /*
     * While the guest runs its disks are read only as fast as 99 of 100 of its writes end at their storage in this time; 0: as fast as they
     * can be.
     */
    uint64_t disk_latency_goal_ns;
    bool mirror_disks; /* after the first pass a write of the guest ends when both ends have it, so that it cannot outrun the copy */
    /*
     * The target has a base of each disk that is copied, and this bitmap of each of them has what differs from it (vmferry/bitmap.h): that
     * is sent, the rest is compared with the base by digests, at both ends read from storage, and the first difference fails the
     * migration while nothing of the base has been changed. The bitmap is read, and stays as it is. NULL or "": there is no base. Copied.
     */
    const char *incremental_bitmap;
} VmfParameters;

/* Fills in the defaults: 2 channels, 20 ms, no bandwidth limit, audit after, version 3, … A larger library fills no more than the
 * caller's struct has, which is why the size is the caller's. */
void vmf_parameters_init_sized(VmfParameters *parameters, size_t size);
#define vmf_parameters_init(parameters) vmf_parameters_init_sized((parameters), sizeof(VmfParameters))

/* Whether all of @parameters is in range; the session does it too. */
bool vmf_parameters_check(const VmfParameters *parameters, GError **error);

/* ---- statistics ------------------------------------------------------------------------------------------------------------ */

/* A step of throttling, and what came of it. */
typedef struct {
    unsigned percent;
    uint64_t dirty_before_bytes_per_second; /* as the guest wrote ahead of it */
    uint64_t dirty_after_bytes_per_second;  /* after a round of it */
} VmfThrottleStep;
#define VMF_THROTTLE_STEPS_MAX 16

typedef struct {
    size_t size;
    VmfStatus status;
    VmfOutcome outcome;
    VmfVerified verified;

    unsigned round;                /* now running, from 1; after the end: how many there were, first and last included */
    unsigned live_rounds_resent;   /* rounds after the first that sent pages while the guest ran */
    uint64_t total_ns;             /* accepted to RUNNING (target: first record to running); without the audit */
    uint64_t setup_ns;
    uint64_t audit_ns;

    uint64_t downtime_ns;          /* vCPUs stopped until RUNNING received; the split: */
    uint64_t downtime_stop_ns;     /*   stopping vCPUs and devices */
    uint64_t downtime_ram_ns;      /*   last harvest and last pages until acknowledged */
    uint64_t downtime_state_ns;    /*   reading and sending device state */
    uint64_t downtime_ready_ns;    /*   SWITCHOVER sent until READY */
    uint64_t downtime_run_ns;      /*   RUN sent until RUNNING */
    uint64_t expected_downtime_ns; /* forecast; 0: none yet */
    uint64_t guest_gap_ns;         /* as the guest lived it; 0 with !guest_gap_known */
    bool guest_gap_known;

    uint64_t ram_total_bytes;
    uint64_t ram_remaining_bytes;
    uint64_t bytes_sent;           /* all channels, headers included */
    uint64_t bytes_received;
    uint64_t pages_data;           /* page sends with payload */
    uint64_t pages_zero;
    uint64_t pages_hole;
    uint64_t pages_resent;         /* of pages_data and pages_zero: after the first pass */
    uint64_t page_size;
    uint64_t rate_bytes_per_second;
    uint64_t dirty_bytes_per_second;
    uint64_t rtt_ns;
    unsigned throttle_percent;
    unsigned chunks_mended;        /* sent again because a sum differed */
    unsigned audit_pages_different;

    unsigned n_channels;           /* page channels */
    uint64_t channel_bytes[VMF_CHANNELS_MAX]; /* sent (target: received) on each page channel */

    uint64_t log_audit_cpu_ns;     /* spent on the log audit, between the rounds */
    uint64_t log_audit_pages;      /* hashed again by it, pages looked at twice counted twice */

    /* Of a guest that was restored: */
    uint64_t start_ns;             /* from the session's begin until the guest was started; 0: it was not */
    uint64_t working_set_ns;       /* until 90 % of the pages that it touched first the last time were there; 0: not known (yet) */
    uint64_t faults;               /* touches of pages that were not there yet, pages of zeros included */
    uint64_t fault_p50_ns;         /* from the touch (as it was read) until the page was there; the half were not slower */
    uint64_t fault_p99_ns;
    uint64_t fault_max_ns;

    char converge_reason[VMF_POLICY_REASON_SIZE]; /* what the policy said last, in words; "": nothing */
    unsigned n_throttle_steps;
    VmfThrottleStep throttle_steps[VMF_THROTTLE_STEPS_MAX]; /* in order; the oldest go when there are more */

    /* Of the disks that are copied: */
    uint64_t disk_total_bytes;     /* their sizes */
    uint64_t disk_sent_bytes;      /* data, all rounds (target: received) */
    uint64_t disk_zero_bytes;      /* said to be zeros, all rounds */
    uint64_t disk_remaining_bytes; /* source: to be sent, or not on the target's storage yet */
    unsigned disk_depth;           /* source: reads at once, at most: less than the most where a latency goal asks for it */
    uint64_t disk_mirrored_writes; /* of the guest, that ended at both ends */
    uint64_t downtime_disk_ns;     /* of the downtime: the last extents read and sent, and verified where that is asked for */
    uint64_t disk_base_bytes;      /* compared with the target's base, and not sent for that */

    /* Of the disks of a guest that was restored (disk_total_bytes, disk_sent_bytes and disk_remaining_bytes are theirs, too): */
    uint64_t disk_faults;          /* requests that had to wait for what was not there yet */
    uint64_t disk_fault_p50_ns;    /* from when the disk got the request until that went on; the half were not slower */
    uint64_t disk_fault_p99_ns;
    uint64_t disk_fault_max_ns;
} VmfStatistics;

/* ---- sessions -------------------------------------------------------------------------------------------------------------- */

typedef struct VmfSessionOps {
    size_t size;
    /* The status changed. Session thread, no lock held. May be NULL. */
    void (*status_changed)(void *opaque, VmfStatus status);
    /* Something to tell people: id is stable ("converge.throttle", "stranger", "chunk.mended"), text is one sentence. May be NULL. */
    void (*event)(void *opaque, const char *id, const char *text);
} VmfSessionOps;

/* @guest, @connector (@listener) and @ops must outlive the session. */
VmfSession *vmf_session_new_source(VmfGuest *guest, VmfConnector *connector, const VmfParameters *parameters,
                                   const VmfSessionOps *ops, void *opaque);
VmfSession *vmf_session_new_target(VmfGuest *guest, VmfListener *listener, const VmfParameters *parameters,
                                   const VmfSessionOps *ops, void *opaque);
void vmf_session_free(VmfSession *session);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfSession, vmf_session_free)

/*
 * Runs the session to its end.
 *
 * Source: true when the guest runs at the target (or the file is whole, or the preflight was answered well). False with @error: the
 * guest is where it was, running if it ran, unless the outcome is HELD.
 * Target: true when the guest was started here (or arrived paused). False: nothing of it is left here.
 *
 * While nobody knows who has the guest the session holds it, stopped: the outcome in the statistics is HELD,
 * vmf_session_hold() says why, and run() does not return. The source goes on asking, the target goes on answering; an
 * answer, or vmf_session_resolve(), ends it. A cancel of a session that holds only makes run() return, with
 * VMF_ERROR_HELD: the guest stays as it is.
 */
bool vmf_session_run(VmfSession *session, GError **error);

/* Why the session holds the guest, in one sentence; NULL: it does not. Owned by the caller. Any thread. */
char *vmf_session_hold(VmfSession *session);

/*
 * A person's word on a guest that is held here. @run: it shall run here; otherwise it is given up. @fenced: the person states that the
 * other side is dead. Without that a source first asks the target to let go, and goes on only if it did; a target refuses with
 * VMF_ERROR_HELD, having nobody to ask. Returns at once; the session's end tells what came of it. VMF_ERROR_STATE: nothing is held.
 */
bool vmf_session_resolve(VmfSession *session, bool run, bool fenced, GError **error);

/* Asks for the end; run() returns soon with VMF_ERROR_CANCELLED, or completes when it is past the point of no return. */
void vmf_session_cancel(VmfSession *session);

/* Goes on after pause_before_switchover. False when the session does not wait there. */
bool vmf_session_continue(VmfSession *session, GError **error);

/* Limits that can change while it runs. */
void vmf_session_set_max_bandwidth(VmfSession *session, uint64_t bytes_per_second);
void vmf_session_set_downtime_limit(VmfSession *session, uint64_t downtime_limit_ns);

/* A consistent copy. @statistics->size is set by the caller. */
void vmf_session_get_statistics(VmfSession *session, VmfStatistics *statistics);

/*
 * After a preflight, or a refusal of the static data: the incompatibilities, a NULL-terminated list of "id: what: here X, there Y".
 * Owned by the caller (g_strfreev). Empty list: none.
 */
char **vmf_session_incompatibilities(VmfSession *session);

/* What the other side calls its host, for messages; NULL: it did not say (yet). Owned by the caller. */
char *vmf_session_peer_host_name(VmfSession *session);

G_END_DECLS
#endif
