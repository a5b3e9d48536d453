/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/exchange.h"

#include <vmferry/error.h>

#include "stream/clock.h"
#include "stream/wire.h"

#define SILENCE_NS (30 * VMF_NS_PER_S)

static void tell(VmfTargetExchange *exchange, const char *id, const char *what, const GError *error)
{
    g_autofree char *text = error ? g_strdup_printf("%s: %s", what, error->message) : g_strdup(what);

    exchange->ops->tell(exchange->opaque, id, text);
}

static bool write_journal(VmfTargetExchange *exchange, VmfJournalState state, GError **error)
{
    bool written = exchange->ops->journal(exchange->opaque, state, error);

    exchange->refused |= written && state == VMF_JOURNAL_REFUSED;
    return written;
}

static void give_storage_back(VmfTargetExchange *exchange)
{
    g_autoptr(GError) error = NULL;

    if (exchange->taken && !exchange->ops->storage(exchange->opaque, false, &error))
        tell(exchange, "storage", "storage could not be released", error);
    exchange->taken = false;
}

/* ---- what the table asks for ----------------------------------------------------------------------------------------------- */

static void send_ready(VmfTargetExchange *exchange)
{
    exchange->silent_due_ns = exchange->ops->now_ns(exchange->opaque) + SILENCE_NS;
    if (!exchange->ops->send(exchange->opaque, VMF_RECORD_READY, NULL, NULL))
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_LOST);
}

static void discard(VmfTargetExchange *exchange)
{
    give_storage_back(exchange);
    exchange->ops->discard(exchange->opaque);
}

static void send_refused(VmfTargetExchange *exchange)
{
    /* READY never left, so nobody will ask; an entry that says why saves the next reader a guess. */
    if (exchange->begun)
        write_journal(exchange, VMF_JOURNAL_REFUSED, NULL);
    discard(exchange);
    exchange->ops->send(exchange->opaque, VMF_RECORD_REFUSED, exchange->why, NULL);
}

/* Started, or durably not; where neither can be written the guest stands still and nothing is said of it. */
static void write_started(VmfTargetExchange *exchange)
{
    g_clear_error(&exchange->why);
    if (write_journal(exchange, VMF_JOURNAL_STARTED, &exchange->why))
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_DURABLE);
    else
        vmf_target_exchange_feed(exchange, write_journal(exchange, VMF_JOURNAL_REFUSED, NULL) ? VMF_TARGET_EV_REFUSED
                                                                                             : VMF_TARGET_EV_UNSURE);
}

static void start(VmfTargetExchange *exchange)
{
    g_autoptr(GError) error = NULL;

    exchange->not_started = !exchange->ops->start(exchange->opaque, &error);
    if (exchange->not_started)
        tell(exchange, "guest.stopped", "the guest is here and could not be started", error);
    exchange->ops->send(exchange->opaque, VMF_RECORD_RUNNING, NULL, NULL);
}

static void send_never(VmfTargetExchange *exchange)
{
    discard(exchange);
    exchange->ops->send(exchange->opaque, VMF_RECORD_NEVER, exchange->why, NULL);
}

/* NEVER is a promise: without the durable entry it is not given. */
static void refuse(VmfTargetExchange *exchange)
{
    if (!exchange->why)
        exchange->why = g_error_new(VMF_ERROR, VMF_ERROR_CANCELLED, "source: took the guest back");
    bool durable = write_journal(exchange, VMF_JOURNAL_REFUSED, NULL);
    discard(exchange);
    if (durable)
        exchange->ops->send(exchange->opaque, VMF_RECORD_NEVER, exchange->why, NULL);
}

bool vmf_target_exchange_feed(VmfTargetExchange *exchange, VmfTargetEvent event)
{
    switch (vmf_handover_target_step(exchange->table, &exchange->state, event)) {
    case VMF_TARGET_DO_NOTHING:
        break;
    case VMF_TARGET_DO_SEND_READY:
        send_ready(exchange);
        break;
    case VMF_TARGET_DO_SEND_REFUSED:
        send_refused(exchange);
        break;
    case VMF_TARGET_DO_WRITE_STARTED:
        write_started(exchange);
        break;
    case VMF_TARGET_DO_START:
        start(exchange);
        break;
    case VMF_TARGET_DO_SEND_RUNNING:
        exchange->ops->send(exchange->opaque, VMF_RECORD_RUNNING, NULL, NULL);
        break;
    case VMF_TARGET_DO_SEND_NEVER:
        send_never(exchange);
        break;
    case VMF_TARGET_DO_REFUSE:
        refuse(exchange);
        break;
    case VMF_TARGET_DO_DISCARD:
        discard(exchange);
        break;
    case VMF_TARGET_DO_HOLD:
        tell(exchange, "handover.held",
             event == VMF_TARGET_EV_UNSURE ? "the journal takes no entry, so that nobody may know whether the guest was started: "
                                             "it stands still here"
                                           : "READY was sent and the source's decision did not come: the guest stands still here",
             exchange->why);
        break;
    case VMF_TARGET_DO_REFUSE_EVENT:
        return false;
    }
    return true;
}

/* ---- what happens ---------------------------------------------------------------------------------------------------------- */

void vmf_target_exchange_init(VmfTargetExchange *exchange, const VmfTargetExchangeOps *ops, void *opaque)
{
    *exchange = (VmfTargetExchange){.ops = ops, .opaque = opaque, .table = &vmf_target_table};
}

void vmf_target_exchange_clear(VmfTargetExchange *exchange)
{
    g_clear_error(&exchange->why);
}

void vmf_target_exchange_checked(VmfTargetExchange *exchange, const GError *why)
{
    bool good = !why;

    if (exchange->state != VMF_TARGET_LOADING) /* dead while it was checked: nothing is taken or written any more */
        return;
    if (why)
        exchange->why = g_error_copy(why);
    if (good)
        good = exchange->taken = exchange->ops->storage(exchange->opaque, true, &exchange->why);
    if (good)
        good = exchange->begun = write_journal(exchange, VMF_JOURNAL_READY, &exchange->why);
    vmf_target_exchange_feed(exchange, good ? VMF_TARGET_EV_GOOD : VMF_TARGET_EV_BAD);
}

/* Dead by ABORT ahead of READY: the entry is made when somebody asks, for a SWITCHOVER that is still under way. */
static VmfAnswer answer_dead(VmfTargetExchange *exchange, VmfQuestion question)
{
    if (!exchange->refused && (question == VMF_QUESTION_INQUIRE || question == VMF_QUESTION_CONFIRM))
        return VMF_ANSWER_UNKNOWN;
    return exchange->refused || write_journal(exchange, VMF_JOURNAL_REFUSED, NULL) ? VMF_ANSWER_NEVER : VMF_ANSWER_NONE;
}

VmfAnswer vmf_target_exchange_question(VmfTargetExchange *exchange, VmfQuestion question)
{
    if (question == VMF_QUESTION_QUERY && exchange->state != VMF_TARGET_LOADING)
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_RUN);
    if (question == VMF_QUESTION_ABORT)
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_ABORT);
    if (question == VMF_QUESTION_CONFIRM)
        vmf_target_exchange_confirmed(exchange);
    switch (exchange->state) {
    case VMF_TARGET_RUNNING:
        return VMF_ANSWER_RUNNING;
    case VMF_TARGET_DEAD:
        return answer_dead(exchange, question);
    case VMF_TARGET_LOADING:
        return question == VMF_QUESTION_INQUIRE ? VMF_ANSWER_UNKNOWN : VMF_ANSWER_HELD;
    default:
        return VMF_ANSWER_HELD;
    }
}

void vmf_target_exchange_confirmed(VmfTargetExchange *exchange)
{
    if (exchange->state == VMF_TARGET_RUNNING)
        write_journal(exchange, VMF_JOURNAL_CONFIRMED, NULL);
}

bool vmf_target_exchange_resolve(VmfTargetExchange *exchange, bool run)
{
    return vmf_target_exchange_feed(exchange, run ? VMF_TARGET_EV_RESOLVE_RUN : VMF_TARGET_EV_RESOLVE_DISCARD);
}

int64_t vmf_target_exchange_due(const VmfTargetExchange *exchange)
{
    return exchange->state == VMF_TARGET_READY ? exchange->silent_due_ns : VMF_EXCHANGE_NEVER;
}

void vmf_target_exchange_tick(VmfTargetExchange *exchange)
{
    if (exchange->state == VMF_TARGET_READY && exchange->ops->now_ns(exchange->opaque) >= exchange->silent_due_ns)
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_LOST);
}

bool vmf_target_exchange_is_held(const VmfTargetExchange *exchange)
{
    return exchange->state == VMF_TARGET_HOLD;
}
