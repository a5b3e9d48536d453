/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The target's side of one migration, shared by its phases: target.c (loading), target-handover.c (the exchange). */
#ifndef MIGRATION_TARGET_H
#define MIGRATION_TARGET_H

#include "migration/disk-target.h"
#include "migration/exchange.h"
#include "migration/incoming.h"
#include "migration/section-load.h"
#include "ram/receiver.h"

typedef struct VmfTarget {
    VmfSession *session;
    GArray *owners;
    VmfStaticData *ours;
    VmfReception *reception;
    VmfIncoming *incoming;
    VmfSectionLoad sections;
    VmfRamLoad *ram;             /* NULL: the guest has none */
    VmfDiskTarget *disks;
    VmfReceiver inline_receiver; /* pages on the main channel */
    bool inline_pages;
    bool announced;              /* PAGE_CHANNELS came */
    VmfPageChannels page_channels;
    GPtrArray *pages;            /* PageChannel; under the session's lock */
    GError *page_error;          /* the first of any of them; likewise */
    int64_t deadline_ns;         /* when the main channel is shut down by the tick; 0: never; likewise */
    bool over;                   /* nobody joins any more; likewise */
    int64_t heard_ns;            /* when the source had last sent something; 0: it need not; likewise */
    uint64_t n_heard;            /* records until then; likewise */
    int64_t begun_ns;
    bool one_way_done;           /* a stream without a way back was loaded whole */

    VmfTargetExchange exchange;
    VmfSwitchover offer;
    bool run;                    /* the guest is to run on arrival */
    bool has_entry;              /* the journal's, of this token */
    bool discarded;              /* nothing of the guest is kept */
    pthread_t reader;            /* of the main channel, from READY on */
    bool reading;

    uint8_t token[VMF_TOKEN_SIZE]; /* under the session's lock from here on */
    bool has_token;                /* SWITCHOVER came */
    GQueue messages;               /* VmfTargetMessage: what came on the main channel */
    GError *main_error;            /* how it ended */
    GQueue questions;              /* VmfTargetQuestion *, from channels of their own; not owned */
    unsigned n_unanswered;         /* answers that are not sent yet */
} VmfTarget;

/* ---- target.c, for the handover --------------------------------------------------------------------------------------------- */

/* The next record that is not to be skipped. */
bool vmf_target_next_record(VmfTarget *target, VmfRecord *record, GError **error);
/* The guest is this side's: statistics, UUID, status. */
void vmf_target_note_running(VmfTarget *target);

/* ---- target-handover.c ------------------------------------------------------------------------------------------------------ */

void vmf_target_handover_init(VmfTarget *target);
void vmf_target_handover_clear(VmfTarget *target);
/*
 * SWITCHOVER was decoded into target->offer, and @why says what does not fit (NULL: nothing). True: the guest is this
 * side's. False: nothing of it is kept, unless the exchange still holds it.
 */
bool vmf_target_hand_over(VmfTarget *target, const GError *why, GError **error);
/* For the reception: a question that came on a channel of its own. Waits for the session's thread. Any thread. */
VmfAnswer vmf_target_question(void *target, const uint8_t token[VMF_TOKEN_SIZE], VmfQuestion question, GError **error);
/* Its answer has been sent, or could not be. */
void vmf_target_answered(void *target);

#endif
