/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/handover.h"

#include <assert.h>

#include "stream/trace.h"

static const char *const source_names[] = {"precopy", "stopped",   "offered", "committing", "asking",
                                           "held",    "returning", "back",    "gone"};
static_assert(sizeof(source_names) / sizeof(source_names[0]) == VMF_SOURCE_N, "source states");
static const char *const source_event_names[] = {"stop",    "offer",   "ready-good",  "ready-bad",      "refused",
                                                 "running", "never",   "started",     "lost",           "expired",
                                                 "cancel",  "storage", "resolve-run", "resolve-discard"};
static_assert(sizeof(source_event_names) / sizeof(source_event_names[0]) == VMF_SOURCE_EV_N, "source events");
static const char *const target_names[] = {"loading", "ready", "hold", "starting", "running", "dead"};
static_assert(sizeof(target_names) / sizeof(target_names[0]) == VMF_TARGET_N, "target states");
static const char *const target_event_names[] = {"good",   "bad",   "run",  "durable",     "refused",
                                                 "unsure", "abort", "lost", "resolve-run", "resolve-discard"};
static_assert(sizeof(target_event_names) / sizeof(target_event_names[0]) == VMF_TARGET_EV_N, "target events");

/* What is not in the tables cannot happen. */
#define AT(state, event) [VMF_SOURCE_##state][VMF_SOURCE_EV_##event]
#define GO(next, action) {VMF_SOURCE_##next, VMF_SOURCE_DO_##action}
const VmfSourceTable vmf_source_table = {
    AT(PRECOPY, STOP) = GO(STOPPED, NOTHING),
    AT(PRECOPY, LOST) = GO(BACK, STAY),
    AT(PRECOPY, CANCEL) = GO(BACK, STAY),

    AT(STOPPED, OFFER) = GO(OFFERED, SEND_SWITCHOVER),
    AT(STOPPED, LOST) = GO(RETURNING, RETURN),
    AT(STOPPED, CANCEL) = GO(RETURNING, RETURN),

    AT(OFFERED, READY_GOOD) = GO(COMMITTING, SEND_RUN),
    AT(OFFERED, READY_BAD) = GO(RETURNING, ABORT_AND_RETURN),
    AT(OFFERED, REFUSED) = GO(RETURNING, RETURN),
    AT(OFFERED, LOST) = GO(RETURNING, ABORT_AND_RETURN),
    AT(OFFERED, CANCEL) = GO(RETURNING, ABORT_AND_RETURN),

    AT(COMMITTING, RUNNING) = GO(GONE, RELEASE),
    AT(COMMITTING, NEVER) = GO(RETURNING, RETURN),
    AT(COMMITTING, STARTED) = GO(HELD, HOLD),
    AT(COMMITTING, LOST) = GO(ASKING, ASK),
    AT(COMMITTING, CANCEL) = GO(COMMITTING, NOTHING), /* too late: only the target knows now */

    AT(ASKING, RUNNING) = GO(GONE, RELEASE),
    AT(ASKING, NEVER) = GO(RETURNING, RETURN),
    AT(ASKING, STARTED) = GO(HELD, HOLD),
    AT(ASKING, EXPIRED) = GO(HELD, HOLD),
    AT(ASKING, LOST) = GO(ASKING, NOTHING),
    AT(ASKING, CANCEL) = GO(ASKING, NOTHING),

    AT(HELD, RUNNING) = GO(GONE, RELEASE),
    AT(HELD, NEVER) = GO(RETURNING, RETURN),
    AT(HELD, STARTED) = GO(HELD, NOTHING),
    AT(HELD, LOST) = GO(HELD, NOTHING),
    AT(HELD, CANCEL) = GO(HELD, NOTHING),
    AT(HELD, RESOLVE_RUN) = GO(RETURNING, RETURN),
    AT(HELD, RESOLVE_DISCARD) = GO(GONE, RELEASE),

    AT(RETURNING, STORAGE) = GO(BACK, TAKE_BACK),
    AT(RETURNING, RUNNING) = GO(GONE, RELEASE), /* an operator started it there */
    AT(RETURNING, STARTED) = GO(HELD, HOLD),
    AT(RETURNING, NEVER) = GO(RETURNING, NOTHING),
    AT(RETURNING, LOST) = GO(RETURNING, NOTHING),
    AT(RETURNING, CANCEL) = GO(RETURNING, NOTHING),
    AT(RETURNING, RESOLVE_DISCARD) = GO(GONE, RELEASE),
};
#undef AT
#undef GO
static_assert(VMF_SOURCE_PRECOPY == 0, "empty cells");

VmfSourceAction vmf_handover_source_step(const VmfSourceTable *table, VmfSourceState *state, VmfSourceEvent event)
{
    const VmfSourceCell *cell = &(*table)[*state][event];
    bool known = cell->next != VMF_SOURCE_PRECOPY;

    VMF_TRACE(handover_source, state, source_names[*state], source_event_names[event],
              known ? source_names[cell->next] : "refused");
    if (!known)
        return VMF_SOURCE_DO_REFUSE_EVENT;
    *state = cell->next;
    return cell->action;
}

#define AT(state, event) [VMF_TARGET_##state][VMF_TARGET_EV_##event]
#define GO(next, action) {VMF_TARGET_##next, VMF_TARGET_DO_##action}
const VmfTargetTable vmf_target_table = {
    AT(LOADING, GOOD) = GO(READY, SEND_READY),
    AT(LOADING, BAD) = GO(DEAD, SEND_REFUSED),
    AT(LOADING, ABORT) = GO(DEAD, DISCARD),
    AT(LOADING, LOST) = GO(DEAD, DISCARD),

    AT(READY, RUN) = GO(STARTING, WRITE_STARTED),
    AT(READY, ABORT) = GO(DEAD, REFUSE),
    AT(READY, LOST) = GO(HOLD, HOLD),

    AT(HOLD, RUN) = GO(STARTING, WRITE_STARTED),
    AT(HOLD, ABORT) = GO(DEAD, REFUSE),
    AT(HOLD, LOST) = GO(HOLD, NOTHING),
    AT(HOLD, RESOLVE_RUN) = GO(STARTING, WRITE_STARTED),
    AT(HOLD, RESOLVE_DISCARD) = GO(DEAD, REFUSE),

    AT(STARTING, DURABLE) = GO(RUNNING, START),
    AT(STARTING, REFUSED) = GO(DEAD, SEND_NEVER),
    AT(STARTING, UNSURE) = GO(HOLD, HOLD),

    AT(RUNNING, RUN) = GO(RUNNING, SEND_RUNNING),
    AT(RUNNING, ABORT) = GO(RUNNING, SEND_RUNNING),
    AT(RUNNING, LOST) = GO(RUNNING, NOTHING), /* the source may go: the guest is here */
};
#undef AT
#undef GO
static_assert(VMF_TARGET_LOADING == 0, "empty cells");

VmfTargetAction vmf_handover_target_step(const VmfTargetTable *table, VmfTargetState *state, VmfTargetEvent event)
{
    const VmfTargetCell *cell = &(*table)[*state][event];
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

const char *vmf_source_event_name(VmfSourceEvent event)
{
    return source_event_names[event];
}

const char *vmf_target_state_name(VmfTargetState state)
{
    return target_names[state];
}

const char *vmf_target_event_name(VmfTargetEvent event)
{
    return target_event_names[event];
}
