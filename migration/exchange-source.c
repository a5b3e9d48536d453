/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/exchange.h"

#include <string.h>

#include "stream/clock.h"
#include "stream/wire.h"

#define ASK_NS (500 * VMF_NS_PER_MS)
#define ASK_HELD_NS (5 * VMF_NS_PER_S)
#define RETAKE_NS (100 * VMF_NS_PER_MS)
#define SAY_NS (2 * VMF_NS_PER_S)           /* in RETURNING without storage: when people hear of it */
#define ABORT_END_NS (800 * VMF_NS_PER_MS) /* how long ABORT is repeated beside a guest that goes on */

static int64_t now(const VmfSourceExchange *exchange)
{
    return exchange->ops->now_ns(exchange->opaque);
}

static void tell(VmfSourceExchange *exchange, const char *id, const char *what, const GError *error)
{
    g_autofree char *text = error ? g_strdup_printf("%s: %s", what, error->message) : g_strdup(what);

    exchange->ops->tell(exchange->opaque, id, text);
}

static bool write_journal(VmfSourceExchange *exchange, VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    return exchange->ops->journal(exchange->opaque, state, peer_id, error);
}

static bool can_ask(const VmfSourceExchange *exchange)
{
    static const uint8_t nobody[sizeof(exchange->peer_id)];

    return exchange->reconnects && memcmp(exchange->peer_id, nobody, sizeof(nobody)) != 0;
}

/* ---- asking ---------------------------------------------------------------------------------------------------------------- */

/* What there is to ask in this state, if anything. */
static bool has_question(const VmfSourceExchange *exchange, VmfQuestion *question)
{
    *question = VMF_QUESTION_ABORT;
    switch (exchange->state) {
    case VMF_SOURCE_ASKING:
    case VMF_SOURCE_HELD:
        *question = exchange->question;
        return can_ask(exchange);
    case VMF_SOURCE_RETURNING:
    case VMF_SOURCE_BACK:
        return can_ask(exchange) && exchange->abort_untold;
    default:
        return false;
    }
}

static void ask_if_due(VmfSourceExchange *exchange)
{
    VmfQuestion question;

    if (exchange->asked || !has_question(exchange, &question) || now(exchange) < exchange->ask_due_ns)
        return;
    exchange->asked = true;
    exchange->ask_due_ns = now(exchange) + exchange->ask_interval_ns;
    exchange->ops->ask(exchange->opaque, question);
}

static void begin_asking(VmfSourceExchange *exchange)
{
    exchange->ask_interval_ns = ASK_NS;
    exchange->ask_due_ns = now(exchange);
    if (!can_ask(exchange))
        vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_EXPIRED);
    else
        ask_if_due(exchange);
}

/* ---- what the table asks for ----------------------------------------------------------------------------------------------- */

static void send_or_lose(VmfSourceExchange *exchange, uint32_t type)
{
    if (exchange->main_lost || !exchange->ops->send(exchange->opaque, type, NULL)) {
        exchange->main_lost = true;
        vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_LOST);
    }
}

static void send_run(VmfSourceExchange *exchange)
{
    exchange->expiry_ns = now(exchange) + exchange->running_ns;
    exchange->ask_due_ns = can_ask(exchange) ? now(exchange) + VMF_EXCHANGE_SILENCE_NS : exchange->expiry_ns;
    send_or_lose(exchange, VMF_RECORD_RUN);
}

static void retake_storage(VmfSourceExchange *exchange)
{
    exchange->retake_due_ns = now(exchange) + RETAKE_NS;
    if (exchange->released && !exchange->ops->storage(exchange->opaque, true, NULL)) {
        /* Who has it may be a target to which the ABORT on the main channel did not get through. */
        exchange->abort_untold = true;
        ask_if_due(exchange);
        return;
    }
    exchange->released = false;
    vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_STORAGE);
}

static void begin_return(VmfSourceExchange *exchange)
{
    exchange->ask_interval_ns = ASK_NS;
    exchange->ask_due_ns = now(exchange);
    exchange->say_due_ns = now(exchange) + SAY_NS;
    retake_storage(exchange);
}

static void abort_and_return(VmfSourceExchange *exchange)
{
    exchange->abort_untold = exchange->main_lost || !exchange->ops->send(exchange->opaque, VMF_RECORD_ABORT, NULL);
    begin_return(exchange);
}

static void write_back(VmfSourceExchange *exchange)
{
    g_autoptr(GError) error = NULL;

    if (exchange->journaled && !write_journal(exchange, VMF_JOURNAL_BACK, NULL, &error))
        tell(exchange, "journal", "that the guest is back could not be written down", error);
}

/* The guest first, the journal after it: what a crash in between leaves is an offer without outcome, which costs a question. */
static void take_back(VmfSourceExchange *exchange)
{
    g_autoptr(GError) error = NULL;

    if (!exchange->ops->start(exchange->opaque, &error))
        tell(exchange, "guest.stopped", "the guest could not be started again", error);
    write_back(exchange);
    exchange->abort_end_ns = now(exchange) + ABORT_END_NS;
    exchange->over = !exchange->abort_untold || !can_ask(exchange);
    ask_if_due(exchange);
}

/*
 * Without a durable gone(T) the target must keep what it knows: once it has forgotten T it answers NEVER, and after a crash our journal
 * would have somebody ask.
 */
static void release(VmfSourceExchange *exchange)
{
    g_autoptr(GError) error = NULL;

    exchange->may_end = !exchange->journaled || write_journal(exchange, VMF_JOURNAL_GONE, NULL, &error);
    if (!exchange->may_end)
        tell(exchange, "journal", "that the guest is gone could not be written down", error);
    exchange->over = true;
}

static void hold(VmfSourceExchange *exchange, VmfSourceEvent event)
{
    exchange->ask_interval_ns = ASK_HELD_NS;
    tell(exchange, "handover.held",
         event == VMF_SOURCE_EV_STARTED
             ? "the guest was started at the target, and the process that ran it there is no more; "
               "this copy may be older than its disks and peers"
             : "RUN was sent and nobody says what became of it; the guest may run at the target",
         NULL);
}

bool vmf_source_exchange_feed(VmfSourceExchange *exchange, VmfSourceEvent event)
{
    switch (vmf_handover_source_step(exchange->table, &exchange->state, event)) {
    case VMF_SOURCE_DO_NOTHING:
        break;
    case VMF_SOURCE_DO_STAY:
        write_back(exchange);
        exchange->over = true;
        break;
    case VMF_SOURCE_DO_SEND_SWITCHOVER:
        send_or_lose(exchange, VMF_RECORD_SWITCHOVER);
        break;
    case VMF_SOURCE_DO_SEND_RUN:
        send_run(exchange);
        break;
    case VMF_SOURCE_DO_ASK:
        begin_asking(exchange);
        break;
    case VMF_SOURCE_DO_RETURN:
        begin_return(exchange);
        break;
    case VMF_SOURCE_DO_ABORT_AND_RETURN:
        abort_and_return(exchange);
        break;
    case VMF_SOURCE_DO_TAKE_BACK:
        take_back(exchange);
        break;
    case VMF_SOURCE_DO_RELEASE:
        release(exchange);
        break;
    case VMF_SOURCE_DO_HOLD:
        hold(exchange, event);
        break;
    case VMF_SOURCE_DO_REFUSE_EVENT:
        return false;
    }
    return true;
}

/* ---- what happens ---------------------------------------------------------------------------------------------------------- */

void vmf_source_exchange_init(VmfSourceExchange *exchange, const VmfSourceExchangeOps *ops, void *opaque, bool reconnects,
                              int64_t running_ns)
{
    *exchange = (VmfSourceExchange){
        .ops = ops,
        .opaque = opaque,
        .table = &vmf_source_table,
        .reconnects = reconnects,
        .running_ns = running_ns,
        .question = VMF_QUESTION_QUERY,
        .ready_due_ns = VMF_EXCHANGE_NEVER,
    };
}

bool vmf_source_exchange_prepare(VmfSourceExchange *exchange, const uint8_t peer_id[16], GError **error)
{
    memcpy(exchange->peer_id, peer_id, sizeof(exchange->peer_id));
    exchange->journaled = true;
    return write_journal(exchange, VMF_JOURNAL_OFFERED, peer_id, error);
}

void vmf_source_exchange_offer(VmfSourceExchange *exchange, int64_t ready_due_ns, GError **error)
{
    exchange->ready_due_ns = ready_due_ns;
    exchange->released = true;
    bool released = exchange->ops->storage(exchange->opaque, false, error);
    vmf_source_exchange_feed(exchange, released ? VMF_SOURCE_EV_OFFER : VMF_SOURCE_EV_LOST);
}

/* From RUN on only that directory's word counts, so it is written down ahead of it. */
void vmf_source_exchange_ready(VmfSourceExchange *exchange, const uint8_t peer_id[16], GError **error)
{
    if (exchange->state == VMF_SOURCE_OFFERED && memcmp(exchange->peer_id, peer_id, sizeof(exchange->peer_id)) != 0) {
        if (!write_journal(exchange, VMF_JOURNAL_OFFERED, peer_id, error)) {
            vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_READY_BAD);
            return;
        }
        memcpy(exchange->peer_id, peer_id, sizeof(exchange->peer_id));
    }
    vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_READY_GOOD);
}

void vmf_source_exchange_lose_main(VmfSourceExchange *exchange)
{
    exchange->main_lost = true;
    vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_LOST);
}

void vmf_source_exchange_answer(VmfSourceExchange *exchange, VmfAnswer answer)
{
    static const VmfSourceEvent events[VMF_ANSWER_N] = {[VMF_ANSWER_RUNNING] = VMF_SOURCE_EV_RUNNING,
                                                        [VMF_ANSWER_STARTED] = VMF_SOURCE_EV_STARTED,
                                                        [VMF_ANSWER_NEVER] = VMF_SOURCE_EV_NEVER};
    bool settles = answer == VMF_ANSWER_RUNNING || answer == VMF_ANSWER_STARTED || answer == VMF_ANSWER_NEVER;

    exchange->asked = false;
    if (!settles)
        return;
    exchange->abort_untold = false;
    if (exchange->state == VMF_SOURCE_BACK) {
        exchange->over = true;
        if (answer != VMF_ANSWER_NEVER)
            tell(exchange, "handover.twice", "the target says that it started the guest, which runs here: somebody had it run there", NULL);
        return;
    }
    vmf_source_exchange_feed(exchange, events[answer]);
}

bool vmf_source_exchange_resolve(VmfSourceExchange *exchange, bool run, bool fenced)
{
    if (run && !fenced) {
        if (exchange->state != VMF_SOURCE_HELD)
            return false;
        exchange->question = VMF_QUESTION_ABORT;
        exchange->ask_due_ns = now(exchange);
        ask_if_due(exchange);
        return true;
    }
    return vmf_source_exchange_feed(exchange, run ? VMF_SOURCE_EV_RESOLVE_RUN : VMF_SOURCE_EV_RESOLVE_DISCARD);
}

/* ---- time ------------------------------------------------------------------------------------------------------------------ */

int64_t vmf_source_exchange_due(const VmfSourceExchange *exchange)
{
    VmfQuestion question;
    int64_t due = has_question(exchange, &question) && !exchange->asked ? exchange->ask_due_ns : VMF_EXCHANGE_NEVER;

    switch (exchange->state) {
    case VMF_SOURCE_OFFERED:
        return exchange->ready_due_ns;
    case VMF_SOURCE_COMMITTING:
        return exchange->ask_due_ns;
    case VMF_SOURCE_ASKING:
        return MIN(due, exchange->expiry_ns);
    case VMF_SOURCE_RETURNING:
        return MIN(due, MIN(exchange->retake_due_ns, exchange->say_due_ns));
    case VMF_SOURCE_BACK:
        return exchange->over ? VMF_EXCHANGE_NEVER : MIN(due, exchange->abort_end_ns);
    default:
        return due;
    }
}

static void tick_returning(VmfSourceExchange *exchange)
{
    if (now(exchange) >= exchange->say_due_ns) {
        exchange->say_due_ns = VMF_EXCHANGE_NEVER;
        tell(exchange, "handover.storage", "the guest is ours and stopped: its storage is still another's", NULL);
    }
    if (now(exchange) >= exchange->retake_due_ns)
        retake_storage(exchange);
}

void vmf_source_exchange_tick(VmfSourceExchange *exchange)
{
    switch (exchange->state) {
    case VMF_SOURCE_OFFERED:
        exchange->late = now(exchange) >= exchange->ready_due_ns;
        if (exchange->late)
            vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_LOST);
        break;
    case VMF_SOURCE_COMMITTING:
        if (now(exchange) >= exchange->ask_due_ns)
            vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_LOST);
        break;
    case VMF_SOURCE_ASKING:
        if (now(exchange) >= exchange->expiry_ns)
            vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_EXPIRED);
        break;
    case VMF_SOURCE_RETURNING:
        tick_returning(exchange);
        break;
    case VMF_SOURCE_BACK:
        exchange->over |= now(exchange) >= exchange->abort_end_ns;
        break;
    default:
        break;
    }
    if (!exchange->over)
        ask_if_due(exchange);
}

bool vmf_source_exchange_is_over(const VmfSourceExchange *exchange)
{
    return exchange->over;
}

bool vmf_source_exchange_is_held(const VmfSourceExchange *exchange)
{
    return exchange->state == VMF_SOURCE_HELD ||
           (exchange->state == VMF_SOURCE_RETURNING && exchange->say_due_ns == VMF_EXCHANGE_NEVER);
}
