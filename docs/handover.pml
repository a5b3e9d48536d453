/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handover's exchange (handover.rst) as a model for spin; ./scripts/check-model searches all of it.
 *
 * Two sides, a main channel that may be cut once, questions on channels of their own that may be lost, a process beside the target that
 * answers from the same journal, one crash of each side at most, each with or without a return, one write of a journal that fails, and
 * people who resolve what is held. Time is not in it: whatever may happen after a while may happen at any moment.
 *
 * The states, events and actions and what leads where are the very tables of migration/handover.c: handover-tables.pml is printed from
 * them. What the sides do for each action stands below, as in migration/exchange-source.c and exchange-target.c, and migration/test-model.c
 * compares the two, call by call. The answers are those of migration/answer.c.
 *
 * Each of these macros plants one mistake, which the search has to find:
 *
 * PLANT_OFFER_NOT_WRITTEN: the source offers without offered(T)
 * PLANT_NO_STARTED_ENTRY: the target starts without started(T)
 * PLANT_RUN_BEFORE_DURABLE: the first instruction comes ahead of started(T)
 * PLANT_NEVER_WITHOUT_REFUSED: the target says NEVER without refused(T)
 * PLANT_ABORT_NOT_REMEMBERED: NEVER for an unknown token leaves nothing in the journal
 * PLANT_REFUSAL_FORGOTTEN_EARLY: refused(T) is deleted while SWITCHOVER may still come
 * PLANT_ENTRY_BEGUN_TWICE: ready(T) is written over a refused(T)
 * PLANT_UNSETTLED_IS_READ: another process reads a started(T) that its writer could not make durable
 * PLANT_TAKE_BACK_AFTER_RUN: silence after RUN brings the guest back
 * PLANT_TAKE_BACK_ON_EXPIRY: a question that nobody answers does
 * PLANT_STARTED_IS_NEVER: a guest that has run at the target is taken back
 * PLANT_RESOLVE_WITHOUT_ASKING: resolve --run without --fenced asks nobody
 * PLANT_END_WITHOUT_GONE: END is sent though gone(T) could not be written
 * PLANT_NOBODY_ASKS: nobody is asked after RUN
 * PLANT_DISCARD_AFTER_READY: a target discards what it promised when the source is silent
 * PLANT_NO_STORAGE_RETAKE: the source runs again without its storage
 * PLANT_TARGET_TAKES_NO_LOCK: the target runs on storage that it did not wait for
 */
#include "handover-tables.pml"

/* ---- what travels ---- */

mtype:a_message = { SWITCHOVER, READY, REFUSED, RUN, RUNNING, NEVER, ABORT, END }
mtype:a_question = { QUERY, ASK_ABORT, CONFIRM }
mtype:an_answer = { SAYS_RUNNING, SAYS_STARTED, SAYS_NEVER }

chan to_target = [3] of { mtype:a_message };
chan to_source = [2] of { mtype:a_message };
chan ask = [1] of { mtype:a_question };
chan answers = [2] of { mtype:an_answer };

bool link = true;   /* the main channel takes messages; it breaks once, and those under way arrive, or do not */
bool asked = false; /* one question at a time: it, or its answer, is under way */

/* ---- what survives a crash ---- */

mtype:an_entry = { NO_ENTRY, IS_OFFERED, IS_BACK, IS_GONE, IS_READY, IS_STARTED, IS_REFUSED, IS_CONFIRMED }

mtype:an_entry source_entry = NO_ENTRY, target_entry = NO_ENTRY;
/* What a write that failed may have left: nobody reads it while the writer lives (vmf_journal_set takes it back), a crash may show it. */
mtype:an_entry source_maybe = NO_ENTRY, target_maybe = NO_ENTRY;

/* ---- what does not ---- */

mtype:source_state source = SOURCE_PRECOPY;
mtype:target_state target = TARGET_LOADING;
bool source_up = true, target_up = true;      /* the processes live */
bool source_runs = true, target_runs = false; /* vCPUs run */
bool source_lock = false, target_lock = false;
bool source_returns = false, target_returns = false; /* after its crash the host comes back, with its state directory */

/* ---- the world ---- */

bool has_storage, can_ask;
bool link_breaks, source_dies, target_dies; /* what will happen, at whatever moment; in other worlds it does not */
/* How many there may be. Most planted mistakes show in the small world too, which is searched first. */
#ifdef SMALL
byte losses = 0, write_faults = 1, words = 1, bystanders = 1;
#else
byte losses = 1, write_faults = 1, words = 2, bystanders = 1;
#endif

/* ---- what is remembered for the sake of the properties ---- */

bool was_started = false;      /* started(T) has been durable */
bool ran_there = false;        /* the guest has run at the target */
bool damaged = false;          /* a sum was found wrong */
bool fenced = false;           /* a person had a copy run and said that the peer was dead, which it was */
/* A person said that a copy may go; or the source's process died ahead of the target's promise, or once it was to have the guest back. */
bool lost_with_reason = false;

/* ---- scratch within one step, no part of the state ---- */

hidden mtype:source_event event;
hidden mtype:target_event happened;
hidden mtype:a_message message;
hidden mtype:a_question question;
hidden mtype:an_answer said;
hidden byte written;

/* ---- journal and storage ---- */

/* The journal says whether a write is durable; one that it says is not may be. */
inline source_writes(state)
{
    if
    :: source_entry = state; source_maybe = NO_ENTRY; written = true
    :: write_faults > 0 -> write_faults--; source_maybe = state; written = false
    fi
}

/* An entry is begun once, and only its states follow each other: who begins it second fails. */
#ifdef PLANT_ENTRY_BEGUN_TWICE
#define MAY_BECOME(state) true
#else
#define MAY_BECOME(state) ((state == IS_READY && target_entry == NO_ENTRY) || \
                           (state == IS_STARTED && target_entry == IS_READY) || \
                           (state == IS_REFUSED && (target_entry == NO_ENTRY || target_entry == IS_READY || target_entry == IS_REFUSED)) || \
                           (state == IS_CONFIRMED && target_entry == IS_STARTED))
#endif

inline target_writes(state)
{
    if
    :: MAY_BECOME(state) ->
        target_entry = state; target_maybe = NO_ENTRY; was_started = was_started || state == IS_STARTED; written = true
    :: MAY_BECOME(state) && write_faults > 0 -> write_faults--; target_maybe = state; written = false
    :: !MAY_BECOME(state) -> written = false
    fi
}

#ifdef PLANT_TARGET_TAKES_NO_LOCK
#define TARGET_CAN_LOCK true
#else
#define TARGET_CAN_LOCK (!has_storage || !source_lock)
#endif

#ifdef PLANT_NO_STORAGE_RETAKE
#define SOURCE_CAN_LOCK true
#define SOURCE_TAKES_LOCK skip
#else
#define SOURCE_CAN_LOCK (!has_storage || !target_lock)
#define SOURCE_TAKES_LOCK source_lock = has_storage
#endif

/* ---- source ---- */

inline source_tables()
{
    source_step(event, action);
#ifdef PLANT_TAKE_BACK_AFTER_RUN
    if :: action == SOURCE_DO_ASK -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN :: else fi;
#endif
#ifdef PLANT_TAKE_BACK_ON_EXPIRY
    if :: event == SOURCE_EV_EXPIRED -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN :: else fi;
#endif
#ifdef PLANT_STARTED_IS_NEVER
    if :: event == SOURCE_EV_STARTED -> source = SOURCE_RETURNING; action = SOURCE_DO_RETURN :: else fi;
#endif
}

/* What cannot be sent is a cut. */
inline source_sends(what)
{
    if
    :: link && !main_lost -> to_target!what
    :: else -> main_lost = true; event = SOURCE_EV_LOST; goto react
    fi
}

#define HAS_QUESTION (can_ask && !asked && empty(ask) && \
                      (source == SOURCE_ASKING || source == SOURCE_HELD || \
                       ((source == SOURCE_RETURNING || (source == SOURCE_BACK && !over)) && abort_untold)))

proctype Source()
{
    mtype:source_action action = SOURCE_DO_NOTHING; /* what is left of it */
    mtype:a_question asks = QUERY;
    bool main_lost = false, abort_untold = false, over = false, booted = false;

    {
    /* The guest runs while it is offered in writing; without the entry there is no handover. */
    atomic {
#ifdef PLANT_OFFER_NOT_WRITTEN
        written = true
#else
        source_writes(IS_OFFERED);
        if
        :: written
        :: else -> event = SOURCE_EV_LOST; goto react
        fi
#endif
    };

end_wait:
    do
    :: atomic {
        action == SOURCE_DO_NOTHING ->
end_choice:
        if
        /* Whatever may happen next. */
        :: source == SOURCE_PRECOPY -> source_runs = false; event = SOURCE_EV_STOP
        :: source == SOURCE_STOPPED -> source_lock = false; event = SOURCE_EV_OFFER
        /* a failure, a deadline, silence, a cancel */
        :: source == SOURCE_PRECOPY || source == SOURCE_STOPPED || source == SOURCE_OFFERED || source == SOURCE_COMMITTING ->
            event = SOURCE_EV_LOST
        :: source == SOURCE_ASKING -> event = SOURCE_EV_EXPIRED
        :: !link && !main_lost && !over -> main_lost = true; event = SOURCE_EV_LOST

        :: to_source?READY -> event = SOURCE_EV_READY_GOOD
        :: to_source?READY -> damaged = damaged || source == SOURCE_OFFERED; event = SOURCE_EV_READY_BAD
        :: to_source?REFUSED -> event = SOURCE_EV_REFUSED
        :: to_source?RUNNING -> event = SOURCE_EV_RUNNING
        :: to_source?NEVER -> event = SOURCE_EV_NEVER

#ifndef PLANT_NOBODY_ASKS
        :: HAS_QUESTION ->
            asked = true;
            if
            :: source == SOURCE_ASKING || source == SOURCE_HELD -> ask!asks
            :: else -> ask!ASK_ABORT
            fi;
            goto end_wait
#endif
        :: answers?said ->
            asked = false;
            abort_untold = false;
            if
            /* It went on here: whoever says that it runs there was told to by a person. */
            :: source == SOURCE_BACK -> assert(said == SAYS_NEVER || fenced); over = true; goto end_wait
            :: source != SOURCE_BACK && said == SAYS_RUNNING -> event = SOURCE_EV_RUNNING
            :: source != SOURCE_BACK && said == SAYS_STARTED -> event = SOURCE_EV_STARTED
            :: source != SOURCE_BACK && said == SAYS_NEVER -> event = SOURCE_EV_NEVER
            fi
        :: source == SOURCE_BACK && !over -> over = true; goto end_wait /* ABORT is not repeated for ever */

        :: source == SOURCE_RETURNING && SOURCE_CAN_LOCK -> SOURCE_TAKES_LOCK; event = SOURCE_EV_STORAGE
        /* Who has it may be a target to which ABORT did not get through. */
        :: source == SOURCE_RETURNING && !SOURCE_CAN_LOCK && !abort_untold -> abort_untold = true; goto end_wait

        /* People. Without --fenced the target is asked to let go first. */
        :: words > 0 && source == SOURCE_HELD && can_ask && asks == QUERY -> words--; asks = ASK_ABORT; goto end_wait
#ifdef PLANT_RESOLVE_WITHOUT_ASKING
        :: words > 0 && source == SOURCE_HELD -> words--; event = SOURCE_EV_RESOLVE_RUN
#endif
        :: words > 0 && source == SOURCE_HELD && !target_up -> words--; fenced = true; event = SOURCE_EV_RESOLVE_RUN
        :: words > 0 && (source == SOURCE_HELD || source == SOURCE_RETURNING) ->
            words--; lost_with_reason = true; event = SOURCE_EV_RESOLVE_DISCARD
        fi;
react:
        source_tables();

        /* What is done for it: the first step of it at once; a crash may come ahead of the next. */
        if
        :: action == SOURCE_DO_SEND_SWITCHOVER -> source_sends(SWITCHOVER)
        :: action == SOURCE_DO_SEND_RUN -> source_sends(RUN)
        :: action == SOURCE_DO_ASK ->
            if
            :: can_ask
            :: else -> event = SOURCE_EV_EXPIRED; goto react
            fi
        :: action == SOURCE_DO_ABORT_AND_RETURN ->
            if
            :: link && !main_lost -> to_target!ABORT
            :: else -> abort_untold = true
            fi
        :: action == SOURCE_DO_STAY -> source_writes(IS_BACK); over = true
        :: action == SOURCE_DO_TAKE_BACK -> source_runs = true; goto end_wait
        :: action == SOURCE_DO_RELEASE -> goto end_wait
        /* RETURN: the storage is retaken above. HOLD: it is said. */
        :: action == SOURCE_DO_RETURN || action == SOURCE_DO_HOLD || action == SOURCE_DO_NOTHING || action == SOURCE_DO_REFUSE_EVENT
        fi;
        action = SOURCE_DO_NOTHING }

    /* The guest first: what a crash in between leaves is an offer without outcome, which costs a question. */
    :: atomic { action == SOURCE_DO_TAKE_BACK ->
        source_writes(IS_BACK);
        over = !abort_untold || !can_ask;
        action = SOURCE_DO_NOTHING }

    :: atomic { action == SOURCE_DO_RELEASE && !over ->
        source_writes(IS_GONE);
        over = true;
        /* The target forgets T after END: as long as it is not written down here, it must not. */
#ifndef PLANT_END_WITHOUT_GONE
        if
        :: !written -> action = SOURCE_DO_NOTHING
        :: else
        fi
#endif
        }
    /* Said once: a target that does not hear it keeps its entry. */
    :: atomic { action == SOURCE_DO_RELEASE && over ->
        if
        :: link && !main_lost -> to_target!END
        :: (!link || main_lost) && can_ask && empty(ask) -> asked = true; ask!CONFIRM
        :: !link || main_lost
        fi;
        action = SOURCE_DO_NOTHING }
    od
    } unless { atomic { !source_up -> source = 0; action = 0; asks = 0; main_lost = false; abort_untold = false; over = false } };

    /*
     * The process is dead, and its guest's memory with it. Where the host returns, people ask for the outcome (vmferry resolve --run), and
     * may then run the machine anew, which is refused as long as there is an offer without outcome.
     */
end_dead:
    do
    :: atomic { source_returns && source_entry == IS_OFFERED && can_ask && !asked && empty(ask) && words > 0 ->
        words--; asked = true; lost_with_reason = true; ask!ASK_ABORT } /* a copy that the target holds goes with it */
    :: atomic { answers?said ->
        asked = false;
        if
        :: source_returns && source_entry == IS_OFFERED && said == SAYS_NEVER -> source_entry = IS_BACK
        :: source_returns && source_entry == IS_OFFERED && said == SAYS_RUNNING -> source_entry = IS_GONE
        :: else
        fi }
    :: atomic { source_returns && source_entry == IS_OFFERED && !target_up && words > 0 -> words--; fenced = true; source_entry = IS_BACK }
    :: atomic { source_returns && source_entry == IS_OFFERED && words > 0 -> words--; lost_with_reason = true; source_entry = IS_GONE }
    :: atomic { source_returns && (source_entry == IS_BACK || source_entry == NO_ENTRY) && !booted && (!has_storage || !target_lock) ->
        booted = true; source_lock = has_storage; source_runs = true }
    od
}

/* ---- target ---- */

inline target_tables()
{
    target_step(happened, action);
#ifdef PLANT_DISCARD_AFTER_READY
    if :: happened == TARGET_EV_LOST && action == TARGET_DO_HOLD -> target = TARGET_DEAD; action = TARGET_DO_DISCARD :: else fi;
#endif
#ifdef PLANT_RUN_BEFORE_DURABLE
    if :: action == TARGET_DO_WRITE_STARTED -> target_runs = true; ran_there = true :: else fi;
#endif
}

/* What is said again before it was heard is heard once. */
inline target_says(what)
{
    if
    :: link && len(to_source) < 2 -> to_source!what
    :: else
    fi
}

proctype Target()
{
    mtype:target_action action = TARGET_DO_NOTHING; /* what is left of it */
    bool main_lost = false, begun = false, refused = false, answering = false, ended = false;

    {
    true;
end_wait:
    do
    :: atomic {
        action == TARGET_DO_NOTHING && !answering ->
end_choice:
        if
        :: to_target?SWITCHOVER ->
            if
            :: target != TARGET_LOADING -> goto end_wait
            :: target == TARGET_LOADING -> happened = TARGET_EV_BAD
            :: target == TARGET_LOADING && TARGET_CAN_LOCK ->
                target_lock = has_storage;
                target_writes(IS_READY);
                begun = written;
                happened = (written -> TARGET_EV_GOOD : TARGET_EV_BAD)
            fi
        :: to_target?RUN -> happened = TARGET_EV_RUN
        :: to_target?ABORT -> happened = TARGET_EV_ABORT
        :: to_target?END ->
            if
            :: target == TARGET_RUNNING -> target_writes(IS_CONFIRMED); ended = written
            :: else
            fi;
            goto end_wait
        /* an error while it loads; silence after READY */
        :: target == TARGET_LOADING || target == TARGET_READY -> happened = TARGET_EV_LOST
        :: !link && empty(to_target) && !main_lost -> main_lost = true; happened = TARGET_EV_LOST

        /* QUERY stands for RUN. Before SWITCHOVER the target does not know the token: the journal answers, below. */
        :: target != TARGET_LOADING && !ended && nempty(ask) ->
            ask?question;
            answering = true;
            if
            :: question == CONFIRM && target == TARGET_RUNNING -> target_writes(IS_CONFIRMED); ended = written; goto end_wait
            :: question == CONFIRM && target != TARGET_RUNNING -> asked = false; answering = false; goto end_wait /* it is discarded */
            :: question == QUERY -> happened = TARGET_EV_RUN
            :: question == ASK_ABORT -> happened = TARGET_EV_ABORT
            fi

        /* People. Who says that the source is fenced has seen to it that its copy is not run again without asking. */
        :: words > 0 && target == TARGET_HOLD && !source_up && !source_runs && (source_entry == IS_OFFERED || !source_returns) ->
            words--; fenced = true; happened = TARGET_EV_RESOLVE_RUN
        :: words > 0 && target == TARGET_HOLD -> words--; lost_with_reason = true; happened = TARGET_EV_RESOLVE_DISCARD
        fi;
react:
        target_tables();

        /* What is done for it, as above: the journal at once, and what follows from it after the next chance for a crash. */
        if
        :: action == TARGET_DO_SEND_READY ->
            if
            :: link -> to_source!READY
            :: else -> happened = TARGET_EV_LOST; goto react
            fi
        :: action == TARGET_DO_WRITE_STARTED ->
#ifdef PLANT_NO_STARTED_ENTRY
            written = true;
#else
            target_writes(IS_STARTED);
#endif
            begun = written; /* started is durable */
            goto end_wait
        :: action == TARGET_DO_START -> target_runs = true; ran_there = true; goto end_wait
        :: action == TARGET_DO_SEND_RUNNING -> target_says(RUNNING)
        :: action == TARGET_DO_SEND_NEVER -> goto end_wait
        :: action == TARGET_DO_SEND_REFUSED || action == TARGET_DO_REFUSE ->
            if
#ifdef PLANT_NEVER_WITHOUT_REFUSED
            :: action == TARGET_DO_REFUSE -> refused = true
#endif
            :: action == TARGET_DO_REFUSE || begun -> target_writes(IS_REFUSED); refused = written
            :: action == TARGET_DO_SEND_REFUSED && !begun
            fi;
            goto end_wait
        :: action == TARGET_DO_DISCARD -> target_lock = false
        :: action == TARGET_DO_HOLD || action == TARGET_DO_NOTHING || action == TARGET_DO_REFUSE_EVENT
        fi;
        action = TARGET_DO_NOTHING }

    /* Started, or durably not; where neither can be written the guest stands still and nothing is said of it. */
    :: atomic { action == TARGET_DO_WRITE_STARTED && begun -> happened = TARGET_EV_DURABLE; goto react }
    :: atomic { action == TARGET_DO_WRITE_STARTED && !begun ->
        target_writes(IS_REFUSED);
        refused = written;
        begun = true;
        if
        /* The guest goes back to a source that may be dead by now: two faults. */
        :: written -> lost_with_reason = lost_with_reason || !source_up; happened = TARGET_EV_REFUSED
        :: else -> happened = TARGET_EV_UNSURE
        fi;
        goto react }
    :: atomic { action == TARGET_DO_START -> target_says(RUNNING); action = TARGET_DO_NOTHING }
    :: atomic { action == TARGET_DO_SEND_REFUSED -> target_lock = false; target_says(REFUSED); action = TARGET_DO_NOTHING }
    /* NEVER is a promise: without the durable entry it is not given. */
    :: atomic { action == TARGET_DO_SEND_NEVER || action == TARGET_DO_REFUSE ->
        target_lock = false;
        if
        :: refused -> assert(target_entry == IS_REFUSED); target_says(NEVER)
        :: else
        fi;
        action = TARGET_DO_NOTHING }

    /* The answer, where there was a question: by the state that it led to. */
    :: atomic { action == TARGET_DO_NOTHING && answering ->
        if
        :: target == TARGET_DEAD && !refused -> target_writes(IS_REFUSED); refused = written
        :: else
        fi;
        if
        :: target == TARGET_RUNNING -> answers!SAYS_RUNNING
        :: target == TARGET_DEAD && refused -> assert(target_entry == IS_REFUSED); answers!SAYS_NEVER
        :: target == TARGET_HOLD || (target == TARGET_DEAD && !refused) -> asked = false /* held, or no answer: asked again */
        fi;
        answering = false }
    od
    } unless { atomic { !target_up ->
        action = 0; main_lost = false; begun = false; refused = false; answering = false; ended = false } };
end_dead:
    false
}

/* ---- a process that has only the journal: beside the target, or after its crash ---- */

proctype Answers()
{
end_wait:
    do
    :: atomic {
        nempty(ask) && ((!target_up && target_returns) || (target_up && bystanders > 0)) ->
        ask?question;
        if
        :: target_up -> bystanders--
        :: else
        fi;
        if
        :: question == CONFIRM && target_entry == IS_STARTED && !target_up -> target_entry = IS_CONFIRMED; asked = false
        :: question == CONFIRM && (target_entry != IS_STARTED || target_up) -> asked = false /* an entry is its process's as long as that lives */
#ifdef PLANT_UNSETTLED_IS_READ
        :: question != CONFIRM && target_up && target_maybe == IS_STARTED -> answers!SAYS_RUNNING
#endif
        :: question != CONFIRM && (target_entry == IS_STARTED || target_entry == IS_CONFIRMED) && target_up -> answers!SAYS_RUNNING
        :: question != CONFIRM && (target_entry == IS_STARTED || target_entry == IS_CONFIRMED) && !target_up -> answers!SAYS_STARTED
        :: question != CONFIRM && target_entry == IS_READY && target_up -> asked = false /* held */
        :: question != CONFIRM &&
           (target_entry == IS_REFUSED || target_entry == NO_ENTRY || (target_entry == IS_READY && !target_up)) ->
#ifdef PLANT_ABORT_NOT_REMEMBERED
            if :: target_entry != NO_ENTRY -> target_entry = IS_REFUSED :: else fi;
#else
            target_entry = IS_REFUSED;
#endif
            answers!SAYS_NEVER
        fi }
    /* What has an outcome may be forgotten; a refusal not as long as the SWITCHOVER that it is for may still arrive. */
    :: atomic { target_entry == IS_CONFIRMED -> target_entry = NO_ENTRY }
#ifdef PLANT_REFUSAL_FORGOTTEN_EARLY
    :: atomic { target_entry == IS_REFUSED && target == TARGET_LOADING -> target_entry = NO_ENTRY }
#endif
    :: atomic { target_entry == IS_REFUSED && !target_up -> target_entry = NO_ENTRY }
    od
}

/* ---- what breaks ---- */

inline empty_out(channel, into)
{
    do
    :: nempty(channel) -> channel?into
    :: empty(channel) -> break
    od
}

proctype Faults()
{
end_wait:
    do
    :: atomic { link && link_breaks -> link = false; link_breaks = false }
    :: atomic { !link && nempty(to_target) -> empty_out(to_target, message) }
    :: atomic { !link && nempty(to_source) -> empty_out(to_source, message) }
    :: atomic { losses > 0 && nempty(ask) -> losses--; ask?question; asked = false }
    :: atomic { losses > 0 && nempty(answers) -> losses--; answers?said; asked = false }
    :: atomic { source_up && source_dies ->
        source_dies = false;
        lost_with_reason = lost_with_reason || source == SOURCE_RETURNING || source == SOURCE_BACK || ask?[ASK_ABORT] ||
                           !target_up || target == TARGET_LOADING || target == TARGET_DEAD;
        source_up = false; source_runs = false; source_lock = false; link = false; link_breaks = false;
        empty_out(to_source, message);
        empty_out(answers, said);
        asked = nempty(ask);
        if :: source_maybe != NO_ENTRY -> source_entry = source_maybe :: true fi;
        source_maybe = NO_ENTRY;
        if :: source_returns = true :: true fi }
    :: atomic { target_up && target_dies ->
        target_dies = false;
        target_up = false; target_runs = false; target_lock = false; link = false; link_breaks = false;
        target = TARGET_DEAD;
        empty_out(to_target, message);
        asked = nempty(ask) || nempty(answers);
        if :: target_maybe != NO_ENTRY -> target_entry = target_maybe; was_started = was_started || target_maybe == IS_STARTED :: true fi;
        target_maybe = NO_ENTRY;
        if :: target_returns = true :: true fi }
    od
}

/* ---- what must hold ---- */

/* At every moment. */
#define RUNS_TWICE (source_runs && target_runs)
#define STORAGE_TWICE (source_lock && target_lock)
#define RUNS_WITHOUT_STORAGE (has_storage && ((source_runs && !source_lock) || (target_runs && !target_lock)))
#define OLDER_COPY_RUNS (source_runs && ran_there && !fenced)
#define DAMAGED_COPY_RUNS (target_runs && damaged && !fenced)
#define GONE_UNSTARTED (source_up && source == SOURCE_GONE && !was_started && !lost_with_reason)

proctype Always()
{
end_wait:
    atomic {
        RUNS_TWICE || STORAGE_TWICE || RUNS_WITHOUT_STORAGE || OLDER_COPY_RUNS || DAMAGED_COPY_RUNS || GONE_UNSTARTED ->
        assert(!RUNS_TWICE);
        assert(!STORAGE_TWICE);
        assert(!RUNS_WITHOUT_STORAGE);
        assert(!OLDER_COPY_RUNS);
        assert(!DAMAGED_COPY_RUNS);
        assert(!GONE_UNSTARTED)
    }
}

/* When nothing can happen any more. */
#define HELD_AND_SAID ((source_up && (source == SOURCE_HELD || source == SOURCE_RETURNING)) || (target_up && target == TARGET_HOLD) || \
                       (!source_up && source_entry == IS_OFFERED))
#define HAS_COPY ((source_up && source != SOURCE_GONE) || (target_up && target != TARGET_LOADING && target != TARGET_DEAD))
/* From started(T) on it dies with the target. */
#define DIED (lost_with_reason || (!target_up && (was_started || !source_up)))
#define TARGET_ANSWERS (can_ask && (target_up || target_returns))
#define NOBODY_THERE (!source_up && !source_returns)

proctype AtLast()
{
    timeout ->
    /* Nobody is lost without a reason. */
    assert(source_runs || target_runs || (HELD_AND_SAID && HAS_COPY) || DIED);
    /* People's words settle every hold. */
    assert(!HELD_AND_SAID || words == 0 || NOBODY_THERE);
    /* Where somebody answers for the target, only STARTED leaves the source in a hold. */
    assert(!(source_up && source == SOURCE_HELD && TARGET_ANSWERS) || (!target_up && target_entry == IS_STARTED));
    assert(source != SOURCE_ASKING && source != SOURCE_COMMITTING || !source_up)
}

init {
    atomic {
        if :: has_storage = true; source_lock = true :: has_storage = false fi;
        if :: can_ask = true :: can_ask = false fi;
        if :: link_breaks = true :: link_breaks = false fi;
        if :: source_dies = true :: source_dies = false fi;
        if :: target_dies = true :: target_dies = false fi;
        run Source();
        run Target();
        run Answers();
        run Faults();
        run Always();
        run AtLast()
    }
}
