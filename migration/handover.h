/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who owns the guest: the two state machines of docs/handover.rst, without I/O, clock or memory. The session feeds in what happened
 * and does what comes out, so the same tables serve real sockets and a simulated world.
 */
#ifndef MIGRATION_HANDOVER_H
#define MIGRATION_HANDOVER_H

#include <stdbool.h>

/* ---- source ---------------------------------------------------------------------------------------------------------------- */

typedef enum {
    VMF_SOURCE_PRECOPY,    /* the guest runs here, or is paused here */
    VMF_SOURCE_STOPPED,    /* stopped for the handover */
    VMF_SOURCE_OFFERED,    /* SWITCHOVER may have left */
    VMF_SOURCE_COMMITTING, /* RUN may have left: the target may run */
    VMF_SOURCE_GONE,       /* the guest is the target's */
    VMF_SOURCE_BACK,       /* the guest is ours again, or still */
    VMF_SOURCE_HELD,       /* nobody knows: stopped until somebody who does says so */
    VMF_SOURCE_N
} VmfSourceState;

typedef enum {
    VMF_SOURCE_EV_STOP,         /* the guest is stopped */
    VMF_SOURCE_EV_OFFER,        /* about to send SWITCHOVER */
    VMF_SOURCE_EV_READY_GOOD,   /* READY with our sums */
    VMF_SOURCE_EV_READY_BAD,    /* READY with other sums */
    VMF_SOURCE_EV_REFUSED,
    VMF_SOURCE_EV_RUNNING,
    VMF_SOURCE_EV_NEVER,
    VMF_SOURCE_EV_LOST,         /* a cut, a deadline, a local failure */
    VMF_SOURCE_EV_CANCEL,
    VMF_SOURCE_EV_N
} VmfSourceEvent;

typedef enum {
    VMF_SOURCE_DO_NOTHING,
    VMF_SOURCE_DO_SEND_SWITCHOVER,
    VMF_SOURCE_DO_SEND_RUN,
    VMF_SOURCE_DO_TAKE_BACK,           /* run the guest here, if it ran */
    VMF_SOURCE_DO_ABORT_AND_TAKE_BACK, /* tell the target first, as far as it can be told */
    VMF_SOURCE_DO_RELEASE,             /* the guest is gone: free it */
    VMF_SOURCE_DO_HOLD,
    VMF_SOURCE_DO_REFUSE_EVENT, /* cannot happen here: a defect of the caller or of the peer; the state is unchanged */
} VmfSourceAction;

/* The one place where the owner changes. */
VmfSourceAction vmf_handover_source_step(VmfSourceState *state, VmfSourceEvent event);

/* ---- target ---------------------------------------------------------------------------------------------------------------- */

typedef enum {
    VMF_TARGET_LOADING,
    VMF_TARGET_READY,   /* READY may have left: never discards by itself */
    VMF_TARGET_HOLD,    /* the source is out of reach */
    VMF_TARGET_RUNNING, /* the guest is ours */
    VMF_TARGET_DEAD,    /* nothing of it is here */
    VMF_TARGET_N
} VmfTargetState;

typedef enum {
    VMF_TARGET_EV_GOOD,    /* SWITCHOVER, and every check passed */
    VMF_TARGET_EV_BAD,     /* SWITCHOVER, and a check failed */
    VMF_TARGET_EV_RUN,     /* RUN came and the guest can be started */
    VMF_TARGET_EV_RUN_BAD, /* RUN came and the guest cannot be started */
    VMF_TARGET_EV_ABORT,
    VMF_TARGET_EV_LOST,    /* a cut, a local failure */
    VMF_TARGET_EV_N
} VmfTargetEvent;

typedef enum {
    VMF_TARGET_DO_NOTHING,
    VMF_TARGET_DO_SEND_READY,
    VMF_TARGET_DO_SEND_REFUSED,
    VMF_TARGET_DO_START, /* start the guest, then send RUNNING */
    VMF_TARGET_DO_SEND_NEVER,
    VMF_TARGET_DO_DISCARD,
    VMF_TARGET_DO_HOLD,
    VMF_TARGET_DO_REFUSE_EVENT,
} VmfTargetAction;

VmfTargetAction vmf_handover_target_step(VmfTargetState *state, VmfTargetEvent event);

/* For messages and tests. */
const char *vmf_source_state_name(VmfSourceState state);
const char *vmf_target_state_name(VmfTargetState state);

#endif
