/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handover's exchange, both sides (docs/handover.rst): what the tables of handover.h ask for, over callbacks.
 *
 * Theory of operation. An exchange has no thread, no channel, no clock. Its owner calls it when something happened (a message, an answer, a
 * cut, a person's word) and when vmf_…_exchange_due() has come; it calls back for everything that touches the world. Calls come from one
 * thread at a time. So the whole handover is a function of the order in which things happen, which is what the simulation searches.
 *
 * A callback that fails says so and the exchange goes on from that; a callback of a process that was killed (in tests) does nothing and
 * fails, and what the exchange believes afterwards does not matter.
 */
#ifndef MIGRATION_EXCHANGE_H
#define MIGRATION_EXCHANGE_H

#include <vmferry/handover.h>

#include "migration/handover.h"

#define VMF_EXCHANGE_SILENCE_NS (2 * INT64_C(1000000000)) /* after RUN without RUNNING: ask */
#define VMF_EXCHANGE_NEVER INT64_MAX                      /* nothing is due */

/* ---- source ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t (*now_ns)(void *opaque);
    /* OFFERED, then BACK or GONE; OFFERED again with another @peer_id. Durable when it returns true. @peer_id NULL: as it was. */
    bool (*journal)(void *opaque, VmfJournalState state, const uint8_t *peer_id, GError **error);
    /* Gives the guest's storage up, or takes it. */
    bool (*storage)(void *opaque, bool take, GError **error);
    /* Runs the guest, if it ran. */
    bool (*start)(void *opaque, GError **error);
    /* SWITCHOVER, RUN or ABORT on the main channel. False: it may have left all the same. */
    bool (*send)(void *opaque, uint32_t type, GError **error);
    /* Asks on a channel of its own; vmf_source_exchange_answer() follows, later. */
    void (*ask)(void *opaque, VmfQuestion question);
    /* Something for people: a stable id and a sentence. */
    void (*tell)(void *opaque, const char *id, const char *text);
} VmfSourceExchangeOps;

typedef struct {
    const VmfSourceExchangeOps *ops;
    void *opaque;
    const VmfSourceTable *table;
    VmfSourceState state;
    bool reconnects;        /* the target can be reached anew */
    int64_t running_ns;     /* how long RUNNING may take until the hold is stated */
    uint8_t peer_id[16];    /* of the target's state directory, as in our journal */

    bool journaled;         /* offered(T) may be there */
    bool released;          /* storage may be another's */
    bool main_lost;         /* nothing can be said on the main channel */
    bool late;              /* READY did not come in time */
    bool asked;             /* an answer is under way */
    bool abort_untold;      /* the target may not know that T is dead */
    bool over;
    bool may_end;           /* the target may be told that we know, and forget T: gone(T) is durable */
    VmfQuestion question;   /* in HELD: QUERY, or ABORT at an operator's word */
    int64_t ready_due_ns, expiry_ns, ask_due_ns, ask_interval_ns, retake_due_ns, say_due_ns, abort_end_ns;
} VmfSourceExchange;

void vmf_source_exchange_init(VmfSourceExchange *exchange, const VmfSourceExchangeOps *ops, void *opaque, bool reconnects,
                              int64_t running_ns);

/* Writes offered(T) while the guest still runs. False: there will be no handover. */
bool vmf_source_exchange_prepare(VmfSourceExchange *exchange, const uint8_t peer_id[16], GError **error);
/* The guest is stopped; state and pages are sent: gives up storage and sends SWITCHOVER. READY is due at @ready_due_ns. */
void vmf_source_exchange_offer(VmfSourceExchange *exchange, int64_t ready_due_ns, GError **error);
/* READY came with the right sums, and names the target's state directory. */
void vmf_source_exchange_ready(VmfSourceExchange *exchange, const uint8_t peer_id[16], GError **error);
/* Everything else that happens. Returns false where it cannot happen. */
bool vmf_source_exchange_feed(VmfSourceExchange *exchange, VmfSourceEvent event);
/* Nothing gets through on the main channel any more. */
void vmf_source_exchange_lose_main(VmfSourceExchange *exchange);
void vmf_source_exchange_answer(VmfSourceExchange *exchange, VmfAnswer answer);
/* A person's word. Not fenced: the target is asked to let go first. False: nothing is held here. */
bool vmf_source_exchange_resolve(VmfSourceExchange *exchange, bool run, bool fenced);

/* When vmf_source_exchange_tick() has to be called at the latest. */
int64_t vmf_source_exchange_due(const VmfSourceExchange *exchange);
void vmf_source_exchange_tick(VmfSourceExchange *exchange);
/* Nothing more will happen here: state is BACK or GONE. */
bool vmf_source_exchange_is_over(const VmfSourceExchange *exchange);
/* Nobody knows who has the guest, or it is ours and cannot run: what people are told. */
bool vmf_source_exchange_is_held(const VmfSourceExchange *exchange);

/* ---- target ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t (*now_ns)(void *opaque);
    /* READY, then STARTED or REFUSED, then CONFIRMED; or REFUSED alone. Durable when it returns true. */
    bool (*journal)(void *opaque, VmfJournalState state, GError **error);
    bool (*storage)(void *opaque, bool take, GError **error);
    /* Runs the guest, if it is to run. */
    bool (*start)(void *opaque, GError **error);
    /* READY, RUNNING, REFUSED or NEVER (both with @why) on the main channel. False: it may have left all the same. */
    bool (*send)(void *opaque, uint32_t type, const GError *why, GError **error);
    /* Nothing of the guest is kept. */
    void (*discard)(void *opaque);
    void (*tell)(void *opaque, const char *id, const char *text);
} VmfTargetExchangeOps;

typedef struct {
    const VmfTargetExchangeOps *ops;
    void *opaque;
    const VmfTargetTable *table;
    VmfTargetState state;

    bool taken;       /* storage is ours */
    bool begun;       /* the journal has an entry of T */
    bool refused;     /* refused(T) is durable */
    bool not_started; /* the guest is ours and could not be started */
    GError *why;      /* for REFUSED and NEVER */
    int64_t silent_due_ns;
} VmfTargetExchange;

void vmf_target_exchange_init(VmfTargetExchange *exchange, const VmfTargetExchangeOps *ops, void *opaque);
void vmf_target_exchange_clear(VmfTargetExchange *exchange);

/* SWITCHOVER was checked; @why NULL: all of it is right. Takes storage, writes ready(T), answers READY or REFUSED. */
void vmf_target_exchange_checked(VmfTargetExchange *exchange, const GError *why);
/* What comes on the main channel, and its end. Returns false where it cannot happen. */
bool vmf_target_exchange_feed(VmfTargetExchange *exchange, VmfTargetEvent event);
/* A question on a channel of its own. NONE: no answer. */
VmfAnswer vmf_target_exchange_question(VmfTargetExchange *exchange, VmfQuestion question);
/* END came: the source knows. */
void vmf_target_exchange_confirmed(VmfTargetExchange *exchange);
/* A person's word; to run it, that the source is fenced. False: nothing is held here. */
bool vmf_target_exchange_resolve(VmfTargetExchange *exchange, bool run);

int64_t vmf_target_exchange_due(const VmfTargetExchange *exchange);
void vmf_target_exchange_tick(VmfTargetExchange *exchange);
bool vmf_target_exchange_is_held(const VmfTargetExchange *exchange);

/* ---- tokens of the past ---------------------------------------------------------------------------------------------------- */

/* Answers for a token that no exchange of this process has. NONE with @error: the journal cannot say. */
VmfAnswer vmf_journal_answer(VmfJournal *journal, VmfQuestion question, const uint8_t token[16], GError **error);

#endif
