/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The source's side of one migration, shared by its phases: source.c (set-up), precopy.c (rounds), switchover.c (handover). */
#ifndef MIGRATION_SOURCE_H
#define MIGRATION_SOURCE_H

#include "migration/compatibility.h"
#include "migration/handover.h"
#include "migration/return-path.h"
#include "migration/watchdog.h"

typedef struct {
    VmfChannel *channel; /* the outermost filter; owned */
    VmfChannel *count;   /* a filter within it */
    VmfRecordWriter *writer;
} VmfSourceChannel;

typedef struct {
    VmfSession *session;
    VmfStreamFormat format;
    GArray *owners;
    VmfRamSource ram;
    VmfStaticData *static_data;
    VmfSourceChannel main;
    GPtrArray *pages; /* VmfSourceChannel */
    VmfReturnPath *return_path; /* NULL: one-way */
    XXH3_state_t *device_sum;
    uint64_t static_sum;
    uint64_t features;   /* in force */
    uint32_t channels_allowed;
    uint8_t token[VMF_TOKEN_SIZE];

    VmfSourceState state;
    VmfWatchdog *watchdog;
    uint64_t octets_seen; /* the watchdog's: when anything got through last */
    int64_t octets_seen_ns;
    int64_t cancelled_ns; /* likewise: when it saw the cancel */
    bool was_running;    /* the guest ran when it was stopped */
    bool logging;        /* save_setup was reached */
    int64_t started_ns;  /* the session */
    _Atomic int64_t begun_ns;   /* accepted, all channels open */
    _Atomic int64_t stopped_ns; /* the stop was asked for */
    _Atomic unsigned throttle_percent; /* in force */
    uint64_t sent_before_round;
} VmfSource;

static inline const VmfGuestOps *vmf_source_guest_ops(const VmfSource *source)
{
    return vmf_guest_ops(source->session->guest);
}

/* The live rounds, until the policy says stop. */
bool vmf_source_precopy(VmfSource *source, GError **error);
/* Slows the guest, or lets it go. */
void vmf_source_throttle(VmfSource *source, unsigned percent);
/* Asks every owner what is left. @exact: after gathering what is new. */
bool vmf_source_pending(VmfSource *source, bool exact, VmfPending *pending, GError **error);

/*
 * From the stop to the end. False: `state` says where the guest is (BACK: here and as it was; HELD: nobody knows).
 */
bool vmf_source_switchover(VmfSource *source, GError **error);

/* For the watchdog: whether every limit is kept. */
bool vmf_source_look(void *source, GError **why);
/* When READY has to be here at the latest, a full audit aside: counted from the stop, for it is the guest that waits. */
int64_t vmf_source_stop_deadline(const VmfSource *source);

/* Tells the target that the guest stays here, as far as it can be told. */
void vmf_source_tell_abort(VmfSource *source);

/* A channel's failure, in the peer's words where it said some. Returns false. */
bool vmf_source_explain(VmfSource *source, GError **error);

#endif
