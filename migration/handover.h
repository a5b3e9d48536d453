/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who owns the guest: the two state machines of docs/handover.rst, without I/O, clock or memory. exchange-source.c and
 * exchange-target.c feed in what happened and do what comes out.
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
    VMF_SOURCE_ASKING,     /* the same, and the main channel says nothing: the target is asked on another */
    VMF_SOURCE_HELD,       /* nobody knows, and it has been said so; still asking */
    VMF_SOURCE_RETURNING,  /* the guest is ours, and waits for its storage */
    VMF_SOURCE_BACK,       /* the guest is ours again, or still */
    VMF_SOURCE_GONE,       /* the guest is the target's */
    VMF_SOURCE_N
} VmfSourceState;

typedef enum {
    VMF_SOURCE_EV_STOP,       /* the guest is stopped */
    VMF_SOURCE_EV_OFFER,      /* storage is released; about to send SWITCHOVER */
    VMF_SOURCE_EV_READY_GOOD, /* READY with our sums */
    VMF_SOURCE_EV_READY_BAD,  /* READY with other sums */
    VMF_SOURCE_EV_REFUSED,
    VMF_SOURCE_EV_RUNNING,
    VMF_SOURCE_EV_NEVER,
    VMF_SOURCE_EV_STARTED, /* started there, by a process that is no more */
    VMF_SOURCE_EV_LOST,    /* a cut, silence, a deadline ahead of RUN, a local failure */
    VMF_SOURCE_EV_EXPIRED, /* RUNNING is overdue, or there is no way to ask */
    VMF_SOURCE_EV_CANCEL,
    VMF_SOURCE_EV_STORAGE, /* storage is ours again, or there is none */
    VMF_SOURCE_EV_RESOLVE_RUN,
    VMF_SOURCE_EV_RESOLVE_DISCARD,
    VMF_SOURCE_EV_N
} VmfSourceEvent;

typedef enum {
    VMF_SOURCE_DO_NOTHING,
    VMF_SOURCE_DO_STAY, /* the guest never stopped */
    VMF_SOURCE_DO_SEND_SWITCHOVER,
    VMF_SOURCE_DO_SEND_RUN,
    VMF_SOURCE_DO_ASK,              /* QUERY, until told */
    VMF_SOURCE_DO_RETURN,           /* retake storage, then tell STORAGE */
    VMF_SOURCE_DO_ABORT_AND_RETURN, /* tell the target first, as far as it can be told */
    VMF_SOURCE_DO_TAKE_BACK,        /* run the guest here, if it ran */
    VMF_SOURCE_DO_RELEASE,          /* the guest is gone: write it down, free it */
    VMF_SOURCE_DO_HOLD,             /* say that nobody knows */
    VMF_SOURCE_DO_REFUSE_EVENT,     /* cannot happen here: a defect of the caller or of the peer; the state is unchanged */
} VmfSourceAction;

/* A cell that leads to PRECOPY is empty: nothing ever does. */
typedef struct {
    VmfSourceState next;
    VmfSourceAction action;
} VmfSourceCell;
typedef VmfSourceCell VmfSourceTable[VMF_SOURCE_N][VMF_SOURCE_EV_N];
extern const VmfSourceTable vmf_source_table;

/* The one place where the owner changes. @table: vmf_source_table, but in the simulation, which must find what is wrong with another. */
VmfSourceAction vmf_handover_source_step(const VmfSourceTable *table, VmfSourceState *state, VmfSourceEvent event);

/* ---- target ---------------------------------------------------------------------------------------------------------------- */

typedef enum {
    VMF_TARGET_LOADING,
    VMF_TARGET_READY,    /* READY may have left: never discards by itself */
    VMF_TARGET_HOLD,     /* the source is out of reach */
    VMF_TARGET_STARTING, /* RUN came: started(T) is being written */
    VMF_TARGET_RUNNING,  /* the guest is ours */
    VMF_TARGET_DEAD,     /* nothing of it is here */
    VMF_TARGET_N
} VmfTargetState;

typedef enum {
    VMF_TARGET_EV_GOOD,    /* SWITCHOVER, every check passed, storage taken, ready(T) written */
    VMF_TARGET_EV_BAD,     /* SWITCHOVER, and something of that failed */
    VMF_TARGET_EV_RUN,     /* RUN or QUERY */
    VMF_TARGET_EV_DURABLE, /* started(T) is durable */
    VMF_TARGET_EV_REFUSED, /* it is not, and refused(T) is */
    VMF_TARGET_EV_UNSURE,  /* neither could be written */
    VMF_TARGET_EV_ABORT,
    VMF_TARGET_EV_LOST,    /* a cut, silence, a local failure */
    VMF_TARGET_EV_RESOLVE_RUN,
    VMF_TARGET_EV_RESOLVE_DISCARD,
    VMF_TARGET_EV_N
} VmfTargetEvent;

typedef enum {
    VMF_TARGET_DO_NOTHING,
    VMF_TARGET_DO_SEND_READY,
    VMF_TARGET_DO_SEND_REFUSED,
    VMF_TARGET_DO_WRITE_STARTED, /* then tell DURABLE, REFUSED or UNSURE */
    VMF_TARGET_DO_START,         /* start the guest, then send RUNNING */
    VMF_TARGET_DO_SEND_RUNNING,
    VMF_TARGET_DO_SEND_NEVER,
    VMF_TARGET_DO_REFUSE, /* write refused(T), then send NEVER, then discard */
    VMF_TARGET_DO_DISCARD,
    VMF_TARGET_DO_HOLD,
    VMF_TARGET_DO_REFUSE_EVENT,
} VmfTargetAction;

/* A cell that leads to LOADING is empty. */
typedef struct {
    VmfTargetState next;
    VmfTargetAction action;
} VmfTargetCell;
typedef VmfTargetCell VmfTargetTable[VMF_TARGET_N][VMF_TARGET_EV_N];
extern const VmfTargetTable vmf_target_table;

VmfTargetAction vmf_handover_target_step(const VmfTargetTable *table, VmfTargetState *state, VmfTargetEvent event);

/* For messages and tests. */
const char *vmf_source_state_name(VmfSourceState state);
const char *vmf_source_event_name(VmfSourceEvent event);
const char *vmf_target_state_name(VmfTargetState state);
const char *vmf_target_event_name(VmfTargetEvent event);

#endif
