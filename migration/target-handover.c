/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The target's exchange (exchange-target.c) over real things: this session's channels, guest and journal.
 *
 * From READY on a thread of its own reads the main channel, and callers who ask about the token wait on theirs (incoming.c). All of
 * it meets in two queues, which the session's thread empties one at a time: so the exchange, the journal and the guest are touched by
 * that thread alone. Each step that touches the world has a fault point on either side.
 */
#include "migration/target.h"

#include <string.h>

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"

#define GAP_NS (2 * VMF_NS_PER_S)
#define ANSWERING_NS (60 * VMF_NS_PER_S)  /* after the start, until END: the source may have missed RUNNING */
#define QUESTION_NS (1 * VMF_NS_PER_S)    /* a caller waits for the session's thread */
#define FAREWELL_NS (2 * VMF_NS_PER_S)    /* the same without a journal: nobody counts the answers */
#define GOODBYE_NS (1 * VMF_NS_PER_S)     /* for answers to get out */
#define MESSAGES_MAX 16
#define KEEP_ENTRIES 64

typedef struct {
    uint32_t type; /* RUN, ABORT, QUERY, PING or END */
    uint64_t cookie;
} VmfTargetMessage;

typedef struct {
    VmfQuestion question;
    VmfAnswer answer;
    bool done;
} VmfTargetQuestion;

/* ---- what the exchange asks for -------------------------------------------------------------------------------------------- */

static int64_t now_ns(void *opaque)
{
    return vmf_now_ns();
}

static bool begin_entry(VmfTarget *target, VmfJournalState state, GError **error)
{
    VmfSession *session = target->session;
    VmfJournalEntry entry = {.is_source = false, .state = state};
    const char *host = target->incoming->static_data->host;

    memcpy(entry.token, target->token, sizeof(entry.token));
    memcpy(entry.uuid, target->incoming->static_data->machine.uuid, sizeof(entry.uuid));
    g_strlcpy(entry.machine, session->machine ? session->machine : "", sizeof(entry.machine));
    g_strlcpy(entry.peer_host, host ? host : "", sizeof(entry.peer_host));
    return vmf_journal_begin(session->parameters.journal, &entry, error);
}

static bool write_journal(VmfTarget *target, VmfJournalState state, GError **error)
{
    VmfJournal *journal = target->session->parameters.journal;

    if (!journal)
        return true;
    if (!target->has_entry)
        return target->has_entry = begin_entry(target, state, error);
    if (!vmf_journal_set(journal, false, target->token, state, NULL, error))
        return false;
    if (state == VMF_JOURNAL_REFUSED)
        vmf_journal_release(journal, false, target->token);
    if (state == VMF_JOURNAL_REFUSED || state == VMF_JOURNAL_CONFIRMED)
        vmf_journal_prune(journal, KEEP_ENTRIES);
    return true;
}

static bool journal(void *opaque, VmfJournalState state, GError **error)
{
    VmfTarget *target = opaque;
    g_autofree char *point = g_strdup_printf("target.journal.%s", vmf_journal_state_name(state));

    return vmf_session_due(target->session, point, error) && write_journal(target, state, error) &&
           vmf_session_done(target->session, point, error);
}

static bool storage(void *opaque, bool take, GError **error)
{
    VmfTarget *target = opaque;
    const VmfGuestOps *ops = vmf_guest_ops(target->session->guest);
    const char *point = take ? "target.storage.acquire" : "target.storage.release";
    bool (*change)(void *, GError **) = take ? ops->storage_acquire : ops->storage_release;

    return vmf_session_due(target->session, point, error) &&
           (!change || change(vmf_guest_opaque(target->session->guest), error)) && vmf_session_done(target->session, point, error);
}

static bool start_guest(VmfTarget *target, GError **error)
{
    const VmfGuestOps *ops = vmf_guest_ops(target->session->guest);

    return !target->run || (vmf_session_due(target->session, "target.guest.start", error) &&
                            ops->start(vmf_guest_opaque(target->session->guest), error) &&
                            vmf_session_done(target->session, "target.guest.start", error));
}

/* What was said of a hold is over. */
static void end_hold(VmfTarget *target)
{
    g_autofree char *hold = vmf_session_hold(target->session);

    if (hold && !vmf_target_exchange_is_held(&target->exchange))
        vmf_session_set_hold(target->session, NULL);
}

static bool start(void *opaque, GError **error)
{
    VmfTarget *target = opaque;

    if (target->session->killed)
        return false;
    bool started = start_guest(target, error);
    if (!target->session->killed) {
        end_hold(target);
        vmf_target_note_running(target);
    }
    return started;
}

static bool send_ready(VmfTarget *target, GError **error)
{
    VmfReady ready = {
        .flags = target->offer.flags & VMF_SWITCHOVER_AUDIT ? VMF_READY_AUDITED : 0,
        .static_sum = target->incoming->static_sum,
        .device_sum = vmf_section_load_sum(&target->sections),
        .n_blocks = target->ram ? target->ram->n_blocks : 0,
    };

    memcpy(ready.token, target->token, sizeof(ready.token));
    if (target->session->parameters.journal)
        vmf_journal_id(target->session->parameters.journal, ready.state_directory);
    ready.sums = g_new0(uint64_t, ready.n_blocks + 1);
    for (unsigned b = 0; b < ready.n_blocks; b++)
        ready.sums[b] = vmf_digest_table_total(target->ram->blocks[b].digests);
    bool sent = vmf_ready_send(target->incoming->writer, &ready, error);
    vmf_ready_clear(&ready);
    return sent;
}

static bool send_one(VmfTarget *target, uint32_t type, const GError *why, GError **error)
{
    switch (type) {
    case VMF_RECORD_READY:
        return send_ready(target, error);
    case VMF_RECORD_RUNNING:
        return vmf_token_send(target->incoming->writer, type, target->token, error);
    default:
        return vmf_complaint_send(target->incoming->writer, type, target->token, why, error);
    }
}

static bool send_record(void *opaque, uint32_t type, const GError *why, GError **error)
{
    VmfTarget *target = opaque;
    const char *point = type == VMF_RECORD_READY     ? "target.send.ready"
                        : type == VMF_RECORD_RUNNING ? "target.send.running"
                        : type == VMF_RECORD_REFUSED ? "target.send.refused"
                                                     : "target.send.never";

    return vmf_session_due(target->session, point, error) && send_one(target, type, why, error) &&
           vmf_session_done(target->session, point, error);
}

static void discard(void *opaque)
{
    VmfTarget *target = opaque;

    target->discarded = true; /* the memory goes when the session's threads have let go of it */
}

static void tell(void *opaque, const char *id, const char *text)
{
    VmfTarget *target = opaque;

    if (target->session->killed)
        return;
    if (vmf_target_exchange_is_held(&target->exchange))
        vmf_session_set_hold(target->session, text);
    vmf_session_event(target->session, id, "%s", text);
}

static const VmfTargetExchangeOps exchange_ops = {
    .now_ns = now_ns,
    .journal = journal,
    .storage = storage,
    .start = start,
    .send = send_record,
    .discard = discard,
    .tell = tell,
};

void vmf_target_handover_init(VmfTarget *target)
{
    vmf_target_exchange_init(&target->exchange, &exchange_ops, target);
    g_queue_init(&target->messages);
    g_queue_init(&target->questions);
}

void vmf_target_handover_clear(VmfTarget *target)
{
    vmf_target_exchange_clear(&target->exchange);
    vmf_switchover_clear(&target->offer);
    g_queue_clear_full(&target->messages, g_free);
    g_clear_error(&target->main_error);
}

/* ---- the main channel's reader --------------------------------------------------------------------------------------------- */

static bool decode(VmfTarget *target, const VmfRecord *record, VmfTargetMessage *message, GError **error)
{
    uint8_t token[VMF_TOKEN_SIZE];

    message->type = record->type;
    switch (record->type) {
    case VMF_RECORD_PING:
        return vmf_u64_decode(record, target->incoming->format.swap, &message->cookie, error);
    case VMF_RECORD_END:
        return vmf_empty_check(record, error);
    case VMF_RECORD_RUN:
    case VMF_RECORD_ABORT:
    case VMF_RECORD_QUERY:
        if (!vmf_token_decode(record, token, error))
            return false;
        if (memcmp(token, target->token, sizeof(token)) == 0)
            return true;
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record %s: of another token", vmf_record_name(record->type));
        return false;
    default:
        vmf_record_set_order_error(error, record->type, "after SWITCHOVER");
        return false;
    }
}

static bool post(VmfTarget *target, const VmfTargetMessage *message, GError **error)
{
    VmfSession *session = target->session;

    pthread_mutex_lock(&session->lock);
    bool room = g_queue_get_length(&target->messages) < MESSAGES_MAX;
    if (room)
        g_queue_push_tail(&target->messages, g_memdup2(message, sizeof(*message)));
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    if (!room)
        vmf_record_set_order_error(error, message->type, "so often");
    return room;
}

static void *reader_main(void *opaque)
{
    VmfTarget *target = opaque;
    VmfTargetMessage message = {0};
    GError *error = NULL;
    VmfRecord record;

    while (message.type != VMF_RECORD_END && vmf_target_next_record(target, &record, &error) &&
           decode(target, &record, &message, &error) && post(target, &message, &error))
        ;
    pthread_mutex_lock(&target->session->lock);
    target->main_error = error;
    pthread_cond_broadcast(&target->session->changed);
    pthread_mutex_unlock(&target->session->lock);
    return NULL;
}

static bool start_reader(VmfTarget *target, GError **error)
{
    int failed = pthread_create(&target->reader, NULL, reader_main, target);

    target->reading = failed == 0;
    if (failed)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "target: thread: %s", g_strerror(failed));
    return target->reading;
}

static void end_reader(VmfTarget *target)
{
    if (!target->reading)
        return;
    vmf_channel_shutdown(target->incoming->channel);
    pthread_join(target->reader, NULL);
    target->reading = false;
}

/* ---- questions ------------------------------------------------------------------------------------------------------------- */

/* Under the lock: hands the question to the session's thread and waits for what it says. */
static VmfAnswer ask_session(VmfTarget *target, VmfQuestion question)
{
    VmfSession *session = target->session;
    VmfTargetQuestion asked = {.question = question};
    int64_t deadline = vmf_now_ns() + QUESTION_NS;

    g_queue_push_tail(&target->questions, &asked);
    pthread_cond_broadcast(&session->changed);
    while (!asked.done && vmf_session_wait_locked(session, deadline))
        ;
    /* Once the session's thread has taken it, it answers. */
    while (!asked.done && !g_queue_remove(&target->questions, &asked))
        pthread_cond_wait(&session->changed, &session->lock);
    return asked.answer;
}

VmfAnswer vmf_target_question(void *opaque, const uint8_t token[VMF_TOKEN_SIZE], VmfQuestion question, GError **error)
{
    VmfTarget *target = opaque;
    VmfSession *session = target->session;
    VmfAnswer answer = VMF_ANSWER_NONE;

    pthread_mutex_lock(&session->lock);
    target->n_unanswered++;
    bool ours = target->has_token && memcmp(token, target->token, VMF_TOKEN_SIZE) == 0;
    if (ours)
        answer = ask_session(target, question);
    pthread_mutex_unlock(&session->lock);
    if (!ours && session->parameters.journal)
        return vmf_journal_answer(session->parameters.journal, question, token, error);
    if (answer == VMF_ANSWER_NONE)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "question: there is no answer now");
    return answer;
}

void vmf_target_answered(void *opaque)
{
    VmfTarget *target = opaque;

    pthread_mutex_lock(&target->session->lock);
    target->n_unanswered--;
    pthread_cond_broadcast(&target->session->changed);
    pthread_mutex_unlock(&target->session->lock);
}

static void say_goodbye(VmfTarget *target)
{
    VmfSession *session = target->session;
    int64_t deadline = vmf_now_ns() + GOODBYE_NS;

    pthread_mutex_lock(&session->lock);
    while (target->n_unanswered > 0 && vmf_session_wait_locked(session, deadline))
        ;
    pthread_mutex_unlock(&session->lock);
}

/* ---- the loop -------------------------------------------------------------------------------------------------------------- */

/* One thing that happened; what is 0 did not. */
typedef struct {
    VmfTargetMessage *message;
    VmfTargetQuestion *question;
    bool cut, leave, resolve, run;
} Happened;

static bool take_locked(VmfTarget *target, bool cut_known, Happened *happened)
{
    VmfSession *session = target->session;

    *happened = (Happened){.message = g_queue_pop_head(&target->messages)};
    if (happened->message)
        return true;
    happened->question = g_queue_pop_head(&target->questions);
    if (happened->question)
        return true;
    happened->cut = target->main_error && !cut_known;
    happened->leave = session->leaving || (vmf_session_is_cancelled(session) && session->statistics.status == VMF_STATUS_COMPLETED);
    happened->resolve = session->resolution.pending;
    happened->run = session->resolution.run;
    session->resolution.pending = false;
    return happened->cut || happened->leave || happened->resolve;
}

/* Waits until @deadline_ns. False: it has come. */
static bool await(VmfTarget *target, int64_t deadline_ns, bool cut_known, Happened *happened)
{
    VmfSession *session = target->session;
    bool late = false;

    pthread_mutex_lock(&session->lock);
    while (!take_locked(target, cut_known, happened) && !late)
        late = !vmf_session_wait_locked(session, deadline_ns);
    pthread_mutex_unlock(&session->lock);
    return !late;
}

static void answer(VmfTarget *target, VmfTargetQuestion *question)
{
    static const char *const points[] = {"target.answer.query", "target.answer.abort", "target.answer.inquire",
                                         "target.answer.confirm"};
    VmfSession *session = target->session;
    const char *point = points[question->question];
    VmfAnswer answer = VMF_ANSWER_NONE;

    if (vmf_session_due(session, point, NULL)) {
        answer = vmf_target_exchange_question(&target->exchange, question->question);
        if (!vmf_session_done(session, point, NULL))
            answer = VMF_ANSWER_NONE;
    }
    pthread_mutex_lock(&session->lock);
    question->answer = answer;
    question->done = true;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

/* Returns whether it was END of a guest that is this side's. */
static bool take_message(VmfTarget *target, const VmfTargetMessage *message)
{
    VmfTargetExchange *exchange = &target->exchange;

    switch (message->type) {
    case VMF_RECORD_RUN:
    case VMF_RECORD_QUERY:
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_RUN);
        return false;
    case VMF_RECORD_ABORT:
        vmf_target_exchange_feed(exchange, VMF_TARGET_EV_ABORT);
        return false;
    case VMF_RECORD_PING:
        vmf_u64_send(target->incoming->writer, VMF_RECORD_PONG, message->cookie, NULL);
        return false;
    default: /* END: ahead of the start it is the end of the channel, no more */
        if (exchange->state == VMF_TARGET_RUNNING)
            vmf_target_exchange_confirmed(exchange);
        else
            vmf_target_exchange_feed(exchange, VMF_TARGET_EV_LOST);
        return exchange->state == VMF_TARGET_RUNNING;
    }
}

/* Whether the source hears of it does not matter any more: the guest runs here. */
static void report(VmfTarget *target)
{
    const VmfGuestOps *ops = vmf_guest_ops(target->session->guest);
    VmfReport report = {.not_started = target->exchange.not_started};

    if (target->session->killed || !(target->incoming->features & VMF_FEATURE_REPORT) || !target->run)
        return;
    memcpy(report.token, target->token, sizeof(report.token));
    if (!report.not_started && ops->guest_gap)
        report.gap_known = ops->guest_gap(vmf_guest_opaque(target->session->guest), GAP_NS, &report.guest_gap_ns);
    pthread_mutex_lock(&target->session->lock);
    target->session->statistics.guest_gap_known = report.gap_known;
    target->session->statistics.guest_gap_ns = report.guest_gap_ns;
    pthread_mutex_unlock(&target->session->lock);
    vmf_report_send(target->incoming->writer, &report, NULL);
}

typedef struct {
    bool cut_known, reported, over;
    int64_t answering_until_ns; /* of a guest that is this side's */
} Progress;

static void take_cut(VmfTarget *target, Progress *progress)
{
    progress->cut_known = true;
    vmf_target_exchange_feed(&target->exchange, VMF_TARGET_EV_LOST);
    /* Where nobody can call again, or counts what we say, there is nobody to wait for. */
    bool asked = target->session->parameters.journal && vmf_listener_max_channels(target->session->listener) > 1;
    progress->over |= target->exchange.state == VMF_TARGET_RUNNING && !asked;
}

static void once(VmfTarget *target, Progress *progress)
{
    VmfTargetExchange *exchange = &target->exchange;
    bool ours = exchange->state == VMF_TARGET_RUNNING;
    Happened happened;

    if (ours && !progress->reported) {
        progress->reported = true;
        progress->answering_until_ns = vmf_now_ns() + (target->session->parameters.journal ? ANSWERING_NS : FAREWELL_NS);
        report(target);
    }
    if (!await(target, ours ? progress->answering_until_ns : vmf_target_exchange_due(exchange), progress->cut_known, &happened)) {
        progress->over |= ours;
        vmf_target_exchange_tick(exchange);
    } else if (happened.message) {
        progress->over |= take_message(target, happened.message);
        g_free(happened.message);
    } else if (happened.question) {
        progress->over |= happened.question->question == VMF_QUESTION_CONFIRM && ours;
        answer(target, happened.question);
    } else if (happened.cut) {
        take_cut(target, progress);
    } else if (happened.resolve) {
        vmf_target_exchange_resolve(exchange, happened.run);
    } else {
        progress->over |= happened.leave;
    }
    end_hold(target);
}

static bool fail_held(VmfTarget *target, GError **error)
{
    g_autofree char *hold = vmf_session_hold(target->session);

    g_set_error(error, VMF_ERROR, VMF_ERROR_HELD, "handover: %s", hold);
    return false;
}

bool vmf_target_hand_over(VmfTarget *target, const GError *why, GError **error)
{
    VmfTargetExchange *exchange = &target->exchange;
    Progress progress = {0};

    pthread_mutex_lock(&target->session->lock);
    memcpy(target->token, target->offer.token, sizeof(target->token));
    target->has_token = true;
    pthread_mutex_unlock(&target->session->lock);
    if (!why && !start_reader(target, error))
        return false;
    vmf_target_exchange_checked(exchange, why);
    while (!progress.over && exchange->state != VMF_TARGET_DEAD && !target->session->killed)
        once(target, &progress);
    say_goodbye(target);
    end_reader(target);
    if (exchange->state == VMF_TARGET_RUNNING)
        return true;
    if (vmf_target_exchange_is_held(exchange))
        return fail_held(target, error);
    if (exchange->why)
        g_propagate_error(error, g_error_copy(exchange->why));
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "source: took the guest back");
    return false;
}
