/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two tables of migration/handover.c, printed by migration/test-model.c (--print), which compares this file with them.
 * Included by handover.pml.
 */

/* ---- source ---- */

mtype:source_state = {
    SOURCE_PRECOPY, SOURCE_STOPPED, SOURCE_OFFERED, SOURCE_COMMITTING, SOURCE_ASKING, SOURCE_HELD,
    SOURCE_RETURNING, SOURCE_BACK, SOURCE_GONE
}
mtype:source_event = {
    SOURCE_EV_STOP, SOURCE_EV_OFFER, SOURCE_EV_READY_GOOD, SOURCE_EV_READY_BAD, SOURCE_EV_REFUSED, SOURCE_EV_RUNNING,
    SOURCE_EV_NEVER, SOURCE_EV_STARTED, SOURCE_EV_LOST, SOURCE_EV_EXPIRED, SOURCE_EV_CANCEL, SOURCE_EV_STORAGE,
    SOURCE_EV_RESOLVE_RUN, SOURCE_EV_RESOLVE_DISCARD
}
mtype:source_action = {
    SOURCE_DO_NOTHING, SOURCE_DO_STAY, SOURCE_DO_SEND_SWITCHOVER, SOURCE_DO_SEND_RUN, SOURCE_DO_ASK, SOURCE_DO_RETURN,
    SOURCE_DO_ABORT_AND_RETURN, SOURCE_DO_TAKE_BACK, SOURCE_DO_RELEASE, SOURCE_DO_HOLD, SOURCE_DO_REFUSE_EVENT
}

inline source_step(event, action)
{
    if
    :: source == SOURCE_PRECOPY    && event == SOURCE_EV_STOP            -> source = SOURCE_STOPPED; action = SOURCE_DO_NOTHING
    :: source == SOURCE_PRECOPY    && event == SOURCE_EV_LOST            -> source = SOURCE_BACK; action = SOURCE_DO_STAY
    :: source == SOURCE_PRECOPY    && event == SOURCE_EV_CANCEL          -> source = SOURCE_BACK; action = SOURCE_DO_STAY
    :: source == SOURCE_STOPPED    && event == SOURCE_EV_OFFER           -> source = SOURCE_OFFERED; action = SOURCE_DO_SEND_SWITCHOVER
    :: source == SOURCE_STOPPED    && event == SOURCE_EV_LOST            -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_STOPPED    && event == SOURCE_EV_CANCEL          -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_OFFERED    && event == SOURCE_EV_READY_GOOD      -> source = SOURCE_COMMITTING; action = SOURCE_DO_SEND_RUN
    :: source == SOURCE_OFFERED    && event == SOURCE_EV_READY_BAD       -> source = SOURCE_RETURNING; action = SOURCE_DO_ABORT_AND_RETURN
    :: source == SOURCE_OFFERED    && event == SOURCE_EV_REFUSED         -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_OFFERED    && event == SOURCE_EV_LOST            -> source = SOURCE_RETURNING; action = SOURCE_DO_ABORT_AND_RETURN
    :: source == SOURCE_OFFERED    && event == SOURCE_EV_CANCEL          -> source = SOURCE_RETURNING; action = SOURCE_DO_ABORT_AND_RETURN
    :: source == SOURCE_COMMITTING && event == SOURCE_EV_RUNNING         -> source = SOURCE_GONE; action = SOURCE_DO_RELEASE
    :: source == SOURCE_COMMITTING && event == SOURCE_EV_NEVER           -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_COMMITTING && event == SOURCE_EV_STARTED         -> source = SOURCE_HELD; action = SOURCE_DO_HOLD
    :: source == SOURCE_COMMITTING && event == SOURCE_EV_LOST            -> source = SOURCE_ASKING; action = SOURCE_DO_ASK
    :: source == SOURCE_COMMITTING && event == SOURCE_EV_CANCEL          -> source = SOURCE_COMMITTING; action = SOURCE_DO_NOTHING
    :: source == SOURCE_ASKING     && event == SOURCE_EV_RUNNING         -> source = SOURCE_GONE; action = SOURCE_DO_RELEASE
    :: source == SOURCE_ASKING     && event == SOURCE_EV_NEVER           -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_ASKING     && event == SOURCE_EV_STARTED         -> source = SOURCE_HELD; action = SOURCE_DO_HOLD
    :: source == SOURCE_ASKING     && event == SOURCE_EV_LOST            -> source = SOURCE_ASKING; action = SOURCE_DO_NOTHING
    :: source == SOURCE_ASKING     && event == SOURCE_EV_EXPIRED         -> source = SOURCE_HELD; action = SOURCE_DO_HOLD
    :: source == SOURCE_ASKING     && event == SOURCE_EV_CANCEL          -> source = SOURCE_ASKING; action = SOURCE_DO_NOTHING
    :: source == SOURCE_HELD       && event == SOURCE_EV_RUNNING         -> source = SOURCE_GONE; action = SOURCE_DO_RELEASE
    :: source == SOURCE_HELD       && event == SOURCE_EV_NEVER           -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_HELD       && event == SOURCE_EV_STARTED         -> source = SOURCE_HELD; action = SOURCE_DO_NOTHING
    :: source == SOURCE_HELD       && event == SOURCE_EV_LOST            -> source = SOURCE_HELD; action = SOURCE_DO_NOTHING
    :: source == SOURCE_HELD       && event == SOURCE_EV_CANCEL          -> source = SOURCE_HELD; action = SOURCE_DO_NOTHING
    :: source == SOURCE_HELD       && event == SOURCE_EV_RESOLVE_RUN     -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN
    :: source == SOURCE_HELD       && event == SOURCE_EV_RESOLVE_DISCARD -> source = SOURCE_GONE; action = SOURCE_DO_RELEASE
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_RUNNING         -> source = SOURCE_GONE; action = SOURCE_DO_RELEASE
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_NEVER           -> source = SOURCE_RETURNING; action = SOURCE_DO_NOTHING
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_STARTED         -> source = SOURCE_HELD; action = SOURCE_DO_HOLD
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_LOST            -> source = SOURCE_RETURNING; action = SOURCE_DO_NOTHING
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_CANCEL          -> source = SOURCE_RETURNING; action = SOURCE_DO_NOTHING
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_STORAGE         -> source = SOURCE_BACK; action = SOURCE_DO_TAKE_BACK
    :: source == SOURCE_RETURNING  && event == SOURCE_EV_RESOLVE_DISCARD -> source = SOURCE_GONE; action = SOURCE_DO_RELEASE
    :: else -> action = SOURCE_DO_REFUSE_EVENT
    fi
}

/*
 * What the source's exchange calls for a row, when all of it succeeds, and when the last call or calls fail:
 *
 * PRECOPY, LOST: writes BACK -> BACK
 * PRECOPY, CANCEL: writes BACK -> BACK
 * STOPPED, OFFER: says SWITCHOVER -> OFFERED
 * STOPPED, OFFER: says SWITCHOVER, locks, runs, writes BACK, asks ABORT -> BACK
 * STOPPED, OFFER: says SWITCHOVER, locks, asks ABORT -> RETURNING
 * STOPPED, LOST: locks, runs, writes BACK -> BACK
 * STOPPED, LOST: locks, asks ABORT -> RETURNING
 * STOPPED, CANCEL: locks, runs, writes BACK -> BACK
 * STOPPED, CANCEL: locks, asks ABORT -> RETURNING
 * OFFERED, READY_GOOD: says RUN -> COMMITTING
 * OFFERED, READY_GOOD: says RUN, asks QUERY -> ASKING
 * OFFERED, READY_BAD: says ABORT, locks, runs, writes BACK -> BACK
 * OFFERED, READY_BAD: says ABORT, locks, runs, writes BACK, asks ABORT -> BACK
 * OFFERED, READY_BAD: says ABORT, locks, asks ABORT -> RETURNING
 * OFFERED, REFUSED: locks, runs, writes BACK -> BACK
 * OFFERED, REFUSED: locks, asks ABORT -> RETURNING
 * OFFERED, LOST: says ABORT, locks, runs, writes BACK -> BACK
 * OFFERED, LOST: says ABORT, locks, runs, writes BACK, asks ABORT -> BACK
 * OFFERED, LOST: says ABORT, locks, asks ABORT -> RETURNING
 * OFFERED, CANCEL: says ABORT, locks, runs, writes BACK -> BACK
 * OFFERED, CANCEL: says ABORT, locks, runs, writes BACK, asks ABORT -> BACK
 * OFFERED, CANCEL: says ABORT, locks, asks ABORT -> RETURNING
 * COMMITTING, RUNNING: writes GONE -> GONE
 * COMMITTING, NEVER: locks, runs, writes BACK -> BACK
 * COMMITTING, NEVER: locks, asks ABORT -> RETURNING
 * COMMITTING, LOST: asks QUERY -> ASKING
 * ASKING, RUNNING: writes GONE -> GONE
 * ASKING, NEVER: locks, runs, writes BACK -> BACK
 * ASKING, NEVER: locks, asks ABORT -> RETURNING
 * HELD, RUNNING: writes GONE -> GONE
 * HELD, NEVER: locks, runs, writes BACK -> BACK
 * HELD, NEVER: locks, asks ABORT -> RETURNING
 * HELD, RESOLVE_RUN: locks, runs, writes BACK -> BACK
 * HELD, RESOLVE_RUN: locks, asks ABORT -> RETURNING
 * HELD, RESOLVE_DISCARD: writes GONE -> GONE
 * RETURNING, RUNNING: writes GONE -> GONE
 * RETURNING, STORAGE: runs, writes BACK -> BACK
 * RETURNING, RESOLVE_DISCARD: writes GONE -> GONE
 */

/* ---- target ---- */

mtype:target_state = {
    TARGET_LOADING, TARGET_READY, TARGET_HOLD, TARGET_STARTING, TARGET_RUNNING, TARGET_DEAD
}
mtype:target_event = {
    TARGET_EV_GOOD, TARGET_EV_BAD, TARGET_EV_RUN, TARGET_EV_DURABLE, TARGET_EV_REFUSED, TARGET_EV_UNSURE,
    TARGET_EV_ABORT, TARGET_EV_LOST, TARGET_EV_RESOLVE_RUN, TARGET_EV_RESOLVE_DISCARD
}
mtype:target_action = {
    TARGET_DO_NOTHING, TARGET_DO_SEND_READY, TARGET_DO_SEND_REFUSED, TARGET_DO_WRITE_STARTED, TARGET_DO_START, TARGET_DO_SEND_RUNNING,
    TARGET_DO_SEND_NEVER, TARGET_DO_REFUSE, TARGET_DO_DISCARD, TARGET_DO_HOLD, TARGET_DO_REFUSE_EVENT
}

inline target_step(event, action)
{
    if
    :: target == TARGET_LOADING    && event == TARGET_EV_GOOD            -> target = TARGET_READY; action = TARGET_DO_SEND_READY
    :: target == TARGET_LOADING    && event == TARGET_EV_BAD             -> target = TARGET_DEAD; action = TARGET_DO_SEND_REFUSED
    :: target == TARGET_LOADING    && event == TARGET_EV_ABORT           -> target = TARGET_DEAD; action = TARGET_DO_DISCARD
    :: target == TARGET_LOADING    && event == TARGET_EV_LOST            -> target = TARGET_DEAD; action = TARGET_DO_DISCARD
    :: target == TARGET_READY      && event == TARGET_EV_RUN             -> target = TARGET_STARTING; action = TARGET_DO_WRITE_STARTED
    :: target == TARGET_READY      && event == TARGET_EV_ABORT           -> target = TARGET_DEAD; action = TARGET_DO_REFUSE
    :: target == TARGET_READY      && event == TARGET_EV_LOST            -> target = TARGET_HOLD; action = TARGET_DO_HOLD
    :: target == TARGET_HOLD       && event == TARGET_EV_RUN             -> target = TARGET_STARTING; action = TARGET_DO_WRITE_STARTED
    :: target == TARGET_HOLD       && event == TARGET_EV_ABORT           -> target = TARGET_DEAD; action = TARGET_DO_REFUSE
    :: target == TARGET_HOLD       && event == TARGET_EV_LOST            -> target = TARGET_HOLD; action = TARGET_DO_NOTHING
    :: target == TARGET_HOLD       && event == TARGET_EV_RESOLVE_RUN     -> target = TARGET_STARTING; action = TARGET_DO_WRITE_STARTED
    :: target == TARGET_HOLD       && event == TARGET_EV_RESOLVE_DISCARD -> target = TARGET_DEAD; action = TARGET_DO_REFUSE
    :: target == TARGET_STARTING   && event == TARGET_EV_DURABLE         -> target = TARGET_RUNNING; action = TARGET_DO_START
    :: target == TARGET_STARTING   && event == TARGET_EV_REFUSED         -> target = TARGET_DEAD; action = TARGET_DO_SEND_NEVER
    :: target == TARGET_STARTING   && event == TARGET_EV_UNSURE          -> target = TARGET_HOLD; action = TARGET_DO_HOLD
    :: target == TARGET_RUNNING    && event == TARGET_EV_RUN             -> target = TARGET_RUNNING; action = TARGET_DO_SEND_RUNNING
    :: target == TARGET_RUNNING    && event == TARGET_EV_ABORT           -> target = TARGET_RUNNING; action = TARGET_DO_SEND_RUNNING
    :: target == TARGET_RUNNING    && event == TARGET_EV_LOST            -> target = TARGET_RUNNING; action = TARGET_DO_NOTHING
    :: else -> action = TARGET_DO_REFUSE_EVENT
    fi
}

/*
 * What the target's exchange calls for a row, when all of it succeeds, and when the last call or calls fail:
 *
 * LOADING, GOOD: says READY -> READY
 * LOADING, GOOD: says READY -> HOLD
 * LOADING, BAD: writes REFUSED, unlocks, says REFUSED -> DEAD
 * READY, RUN: writes STARTED, runs, says RUNNING -> RUNNING
 * READY, RUN: writes STARTED, writes REFUSED, unlocks, says NEVER -> DEAD
 * READY, RUN: writes STARTED, writes REFUSED -> HOLD
 * READY, ABORT: writes REFUSED, unlocks, says NEVER -> DEAD
 * READY, ABORT: writes REFUSED, unlocks -> DEAD
 * HOLD, RUN: writes STARTED, runs, says RUNNING -> RUNNING
 * HOLD, RUN: writes STARTED, writes REFUSED, unlocks, says NEVER -> DEAD
 * HOLD, RUN: writes STARTED, writes REFUSED -> HOLD
 * HOLD, ABORT: writes REFUSED, unlocks, says NEVER -> DEAD
 * HOLD, ABORT: writes REFUSED, unlocks -> DEAD
 * HOLD, RESOLVE_RUN: writes STARTED, runs, says RUNNING -> RUNNING
 * HOLD, RESOLVE_RUN: writes STARTED, writes REFUSED, unlocks, says NEVER -> DEAD
 * HOLD, RESOLVE_RUN: writes STARTED, writes REFUSED -> HOLD
 * HOLD, RESOLVE_DISCARD: writes REFUSED, unlocks, says NEVER -> DEAD
 * HOLD, RESOLVE_DISCARD: writes REFUSED, unlocks -> DEAD
 * STARTING, DURABLE: runs, says RUNNING -> RUNNING
 * STARTING, REFUSED: unlocks, says NEVER -> DEAD
 * RUNNING, RUN: says RUNNING -> RUNNING
 * RUNNING, ABORT: says RUNNING -> RUNNING
 */
