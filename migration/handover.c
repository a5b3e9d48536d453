/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/handover.h"

#include <assert.h>

#include "stream/trace.h"

static const char *const source_names[] = {"precopy", "stopped", "offered", "committing", "gone", "back", "held"};
static_assert(sizeof(source_names) / sizeof(source_names[0]) == VMF_SOURCE_N, "source states");
static const char *const source_event_names[] = {"stop",    "offer",   "ready-good", "ready-bad", "refused",
                                                 "running", "never",   "lost",       "cancel"};
static_assert(sizeof(source_event_names) / sizeof(source_event_names[0]) == VMF_SOURCE_EV_N, "source events");
static const char *const target_names[] = {"loading", "ready", "hold", "running", "dead"};
static_assert(sizeof(target_names) / sizeof(target_names[0]) == VMF_TARGET_N, "target states");
static const char *const target_event_names[] = {"good", "bad", "run", "run-bad", "abort", "lost"};
static_assert(sizeof(target_event_names) / sizeof(target_event_names[0]) == VMF_TARGET_EV_N, "target events");

typedef struct {
    VmfSourceState next;
    VmfSourceAction action;
} SourceCell;

/* What is not in the table cannot happen. */
#define AT(state, event) [VMF_SOURCE_##state][VMF_SOURCE_EV_##event]
#define GO(next, action) {VMF_SOURCE_##next, VMF_SOURCE_DO_##action}
static const SourceCell source_table[VMF_SOURCE_N][VMF_SOURCE_EV_N] = {
    AT(PRECOPY, STOP) = GO(STOPPED, NOTHING),
    AT(PRECOPY, LOST) = GO(BACK, NOTHING),
    AT(PRECOPY, CANCEL) = GO(BACK, NOTHING),

    AT(STOPPED, OFFER) = GO(OFFERED, SEND_SWITCHOVER),
    AT(STOPPED, LOST) = GO(BACK, TAKE_BACK),
    AT(STOPPED, CANCEL) = GO(BACK, TAKE_BACK),

    AT(OFFERED, READY_GOOD) = GO(COMMITTING, SEND_RUN),
    AT(OFFERED, READY_BAD) = GO(BACK, ABORT_AND_TAKE_BACK),
    AT(OFFERED, REFUSED) = GO(BACK, TAKE_BACK),
    AT(OFFERED, LOST) = GO(BACK, ABORT_AND_TAKE_BACK),
    AT(OFFERED, CANCEL) = GO(BACK, ABORT_AND_TAKE_BACK),

    AT(COMMITTING, RUNNING) = GO(GONE, RELEASE),
    AT(COMMITTING, NEVER) = GO(BACK, TAKE_BACK),
    AT(COMMITTING, LOST) = GO(HELD, HOLD),
    AT(COMMITTING, CANCEL) = GO(COMMITTING, NOTHING), /* too late: only the target knows now */
};
#undef AT
#undef GO

/* A filled cell never leads to PRECOPY (state 0), so an empty one can be told. */
static_assert(VMF_SOURCE_PRECOPY == 0, "empty cells");

VmfSourceAction vmf_handover_source_step(VmfSourceState *state, VmfSourceEvent event)
{
    const SourceCell *cell = &source_table[*state][event];
    bool known = cell->next != VMF_SOURCE_PRECOPY;

    VMF_TRACE(handover_source, state, source_names[*state], source_event_names[event],
              known ? source_names[cell->next] : "refused");
    if (!known)
        return VMF_SOURCE_DO_REFUSE_EVENT;
    *state = cell->next;
    return cell->action;
}

typedef struct {
    VmfTargetState next;
    VmfTargetAction action;
} TargetCell;

#define AT(state, event) [VMF_TARGET_##state][VMF_TARGET_EV_##event]
#define GO(next, action) {VMF_TARGET_##next, VMF_TARGET_DO_##action}
static const TargetCell target_table[VMF_TARGET_N][VMF_TARGET_EV_N] = {
    AT(LOADING, GOOD) = GO(READY, SEND_READY),
    AT(LOADING, BAD) = GO(DEAD, SEND_REFUSED),
    AT(LOADING, ABORT) = GO(DEAD, DISCARD),
    AT(LOADING, LOST) = GO(DEAD, DISCARD),

    AT(READY, RUN) = GO(RUNNING, START),
    AT(READY, RUN_BAD) = GO(DEAD, SEND_NEVER),
    AT(READY, ABORT) = GO(DEAD, DISCARD),
    AT(READY, LOST) = GO(HOLD, HOLD),

    AT(HOLD, RUN) = GO(RUNNING, START),
    AT(HOLD, RUN_BAD) = GO(DEAD, SEND_NEVER),
    AT(HOLD, ABORT) = GO(DEAD, DISCARD),

    AT(RUNNING, LOST) = GO(RUNNING, NOTHING), /* the source may go: the guest is here */
};
#undef AT
#undef GO
static_assert(VMF_TARGET_LOADING == 0, "empty cells");

VmfTargetAction vmf_handover_target_step(VmfTargetState *state, VmfTargetEvent event)
{
    const TargetCell *cell = &target_table[*state][event];
    bool known = cell->next != VMF_TARGET_LOADING;

    VMF_TRACE(handover_target, state, target_names[*state], target_event_names[event],
              known ? target_names[cell->next] : "refused");
    if (!known)
        return VMF_TARGET_DO_REFUSE_EVENT;
    *state = cell->next;
    return cell->action;
}

const char *vmf_source_state_name(VmfSourceState state)
{
    return source_names[state];
}

const char *vmf_target_state_name(VmfTargetState state)
{
    return target_names[state];
}
