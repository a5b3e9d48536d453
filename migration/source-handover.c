/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The source's exchange (exchange-source.c) over real things: this session's channels, guest, journal and clock.
 *
 * The session's thread waits for whatever comes first (a message of the target, the end of the main channel, a cancel, a person's word, the
 * exchange's next deadline), tells the exchange, and does what that calls back for. Each step that touches the world has a fault point on
 * either side.
 */
#include "migration/source.h"

#include <string.h>

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"

#define RUNNING_NS (10 * VMF_NS_PER_S)
#define LAST_ACKS_NS (1 * VMF_NS_PER_S)
#define ASK_NS (400 * VMF_NS_PER_MS)
#define KEEP_ENTRIES 64
#define STUCK_BYTES (256u << 10)          /* more than this unsent on the main channel: the peer does not read, do not speak to it */
#define SLOW_NS (1 * VMF_NS_PER_S)        /* for so long it may read nothing */
#define AUDIT_BYTES_PER_SECOND 200000000u /* slower than any host hashes: the deadline of an audit before RUN */

static uint64_t since(int64_t start_ns)
{
    return (uint64_t)(vmf_now_ns() - start_ns);
}

/* ---- what the exchange asks for -------------------------------------------------------------------------------------------- */

static int64_t now_ns(void *opaque)
{
    return vmf_now_ns();
}

static bool begin_entry(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;
    g_autofree char *host = vmf_session_peer_host_name(session);
    VmfJournalEntry entry = {.is_source = true, .state = VMF_JOURNAL_OFFERED};

    memcpy(entry.token, source->token, sizeof(entry.token));
    memcpy(entry.peer_id, source->exchange.peer_id, sizeof(entry.peer_id));
    vmf_guest_uuid(session->guest, entry.uuid);
    g_strlcpy(entry.machine, session->machine ? session->machine : "", sizeof(entry.machine));
    g_strlcpy(entry.peer, session->peer ? session->peer : "", sizeof(entry.peer));
    g_strlcpy(entry.peer_host, host ? host : "", sizeof(entry.peer_host));
    return vmf_journal_begin(session->parameters.journal, &entry, error);
}

static bool write_journal(VmfSource *source, VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    VmfJournal *journal = source->session->parameters.journal;

    if (!journal)
        return true;
    if (state == VMF_JOURNAL_OFFERED && !source->has_entry)
        return source->has_entry = begin_entry(source, error);
    if (!source->has_entry || !vmf_journal_set(journal, true, source->token, state, peer_id, error))
        return !source->has_entry;
    if (state != VMF_JOURNAL_OFFERED) {
        vmf_journal_release(journal, true, source->token);
        vmf_journal_prune(journal, KEEP_ENTRIES);
    }
    return true;
}

static bool journal(void *opaque, VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    VmfSource *source = opaque;
    g_autofree char *point = g_strdup_printf("source.journal.%s", vmf_journal_state_name(state));

    return vmf_session_due(source->session, point, error) && write_journal(source, state, peer_id, error) &&
           vmf_session_done(source->session, point, error);
}

static bool storage(void *opaque, bool take, GError **error)
{
    VmfSource *source = opaque;
    const VmfGuestOps *ops = vmf_source_guest_ops(source);
    const char *point = take ? "source.storage.acquire" : "source.storage.release";
    bool (*change)(void *, GError **) = take ? ops->storage_acquire : ops->storage_release;

    return vmf_session_due(source->session, point, error) &&
           (!change || change(vmf_guest_opaque(source->session->guest), error)) && vmf_session_done(source->session, point, error);
}

/* The guest goes on here, if it did. */
static bool start(void *opaque, GError **error)
{
    VmfSource *source = opaque;

    if (source->session->killed)
        return false;
    vmf_source_throttle(source, 0);
    return !source->was_running ||
           (vmf_session_due(source->session, "source.guest.start", error) &&
            vmf_source_guest_ops(source)->start(vmf_guest_opaque(source->session->guest), error) &&
            vmf_session_done(source->session, "source.guest.start", error));
}

static bool is_stuck(const VmfSource *source)
{
    return !source->return_path || vmf_channel_unsent_bytes(source->main.channel) > STUCK_BYTES;
}

/*
 * Where ABORT has no other way it waits for a target that is only slow, which would hold the guest without it: as long as that reads,
 * and no longer than the guest may stand.
 */
static bool abort_may_go(const VmfSource *source)
{
    int64_t now = vmf_now_ns(), end = source->exchange.reconnects ? now : vmf_source_stop_deadline(source), quiet_ns = now + SLOW_NS;
    uint64_t least = G_MAXUINT64;

    for (; is_stuck(source) && source->return_path && now < MIN(end, quiet_ns); now = vmf_now_ns()) {
        uint64_t unsent = vmf_channel_unsent_bytes(source->main.channel);
        quiet_ns = unsent < least ? now + SLOW_NS : quiet_ns;
        least = MIN(unsent, least);
        g_usleep(1000);
    }
    return !is_stuck(source);
}

void vmf_source_tell_abort(VmfSource *source)
{
    if (!source->session->killed && !is_stuck(source))
        vmf_token_send(source->main.writer, VMF_RECORD_ABORT, source->token, NULL);
}

static bool send_one(VmfSource *source, uint32_t type, GError **error)
{
    switch (type) {
    case VMF_RECORD_SWITCHOVER:
        source->offered_ns = vmf_now_ns();
        vmf_return_path_offer(source->return_path);
        if (!vmf_session_begin_offer(source->session, error) || !vmf_source_send_switchover(source, &source->offer, error))
            return false;
        vmf_session_end_offer(source->session);
        return true;
    case VMF_RECORD_RUN:
        source->run_ns = vmf_now_ns();
        return vmf_token_send(source->main.writer, type, source->token, error);
    default:
        return abort_may_go(source) && vmf_token_send(source->main.writer, type, source->token, error);
    }
}

static bool send_record(void *opaque, uint32_t type, GError **error)
{
    VmfSource *source = opaque;
    const char *point = type == VMF_RECORD_SWITCHOVER ? "source.send.switchover"
                        : type == VMF_RECORD_RUN      ? "source.send.run"
                                                      : "source.send.abort";
    GError *why = NULL;

    bool sent = vmf_session_due(source->session, point, &why) && send_one(source, type, &why) &&
                vmf_session_done(source->session, point, &why);
    if (why && !source->why)
        source->why = g_steal_pointer(&why);
    g_clear_error(&why);
    return sent;
}

/* Asked by the session's loop once the exchange has returned. */
static void ask(void *opaque, VmfQuestion question)
{
    VmfSource *source = opaque;

    source->question_due = true;
    source->question = question;
}

static void tell(void *opaque, const char *id, const char *text)
{
    VmfSource *source = opaque;

    if (source->session->killed)
        return;
    if (vmf_source_exchange_is_held(&source->exchange))
        vmf_session_set_hold(source->session, text);
    vmf_session_event(source->session, id, "%s", text);
}

static const VmfSourceExchangeOps exchange_ops = {
    .now_ns = now_ns,
    .journal = journal,
    .storage = storage,
    .start = start,
    .send = send_record,
    .ask = ask,
    .tell = tell,
};

void vmf_source_handover_init(VmfSource *source)
{
    bool reconnects = source->session->connector && vmf_connector_max_channels(source->session->connector) > 1;

    vmf_source_exchange_init(&source->exchange, &exchange_ops, source, reconnects,
                             RUNNING_NS + (int64_t)source->session->parameters.switchover_timeout_ns);
}

void vmf_source_handover_clear(VmfSource *source)
{
    vmf_switchover_clear(&source->offer);
    g_clear_error(&source->why);
}

bool vmf_source_promise(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;
    uint8_t peer_id[sizeof(session->peer_state)];

    pthread_mutex_lock(&session->lock);
    memcpy(peer_id, session->peer_state, sizeof(peer_id));
    pthread_mutex_unlock(&session->lock);
    return vmf_source_exchange_prepare(&source->exchange, peer_id, error);
}

/* ---- messages -------------------------------------------------------------------------------------------------------------- */

void vmf_source_fill_switchover(const VmfSource *source, VmfSwitchover *message)
{
    bool audit = source->features & VMF_FEATURE_AUDIT_BEFORE;

    memcpy(message->token, source->token, sizeof(message->token));
    message->flags = (source->was_running ? VMF_SWITCHOVER_RUN : 0) | (audit ? VMF_SWITCHOVER_AUDIT : 0);
    message->static_sum = source->static_sum;
    message->device_sum = XXH3_64bits_digest(source->device_sum);
}

bool vmf_source_send_switchover(VmfSource *source, VmfSwitchover *message, GError **error)
{
    vmf_source_fill_switchover(source, message);
    vmf_ram_source_summarize(&source->ram, message);
    return vmf_switchover_send(source->main.writer, message, error);
}

/* Which chunk a failed comparison was about: the last acknowledgements know. */
static void name_damage(VmfSource *source, GError **error)
{
    if (!source->ram.save)
        return;
    vmf_flight_drain(source->ram.save->flight, LAST_ACKS_NS);
    g_autofree char *name = vmf_ram_save_name_suspect(source->ram.save);
    if (name)
        g_prefix_error(error, "%s: ", name);
}

bool vmf_source_check_token(const VmfSource *source, uint32_t type, const uint8_t token[VMF_TOKEN_SIZE], GError **error)
{
    if (memcmp(token, source->token, VMF_TOKEN_SIZE) == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "target: record %s: of another token", vmf_record_name(type));
    return false;
}

static bool differs(VmfErrorCode code, const char *what, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "target: READY: %s", what);
    return false;
}

static bool compare_ready(const VmfSource *source, const VmfSwitchover *offer, const VmfReady *ready, GError **error)
{
    if (!vmf_source_check_token(source, VMF_RECORD_READY, ready->token, error))
        return false;
    if (ready->static_sum != offer->static_sum)
        return differs(VMF_ERROR_STATIC_SUM, "the sum of the static data differs", error);
    if (ready->device_sum != offer->device_sum)
        return differs(VMF_ERROR_DEVICE_SUM, "the sum of the device state differs", error);
    for (uint32_t b = 0; b < offer->n_blocks; b++)
        if (ready->sums[b] != offer->blocks[b].sum)
            return differs(VMF_ERROR_RAM_SUM, "the sum of a RAM block differs", error);
    if (offer->flags & VMF_SWITCHOVER_AUDIT && !(ready->flags & VMF_READY_AUDITED))
        return differs(VMF_ERROR_RAM_AUDIT, "memory was not hashed afresh", error);
    return true;
}

/* What has records of its own has been answered. */
static bool is_proven(VmfSource *source, GError **error)
{
    for (guint i = 0; i < source->owners->len; i++) {
        const VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->records && owner->records->proven && !owner->records->proven(owner->opaque, error))
            return false;
    }
    return true;
}

static bool check_ready(VmfSource *source, const VmfReturnMessage *message, uint8_t peer_id[16], GError **error)
{
    VmfRecord record = vmf_return_message_record(message);
    VmfReady ready;

    if (!vmf_ready_decode(&record, source->format.swap, source->offer.n_blocks, &ready, error))
        return false;
    bool same = compare_ready(source, &source->offer, &ready, error) && is_proven(source, error);
    memcpy(peer_id, ready.state_directory, sizeof(ready.state_directory));
    vmf_ready_clear(&ready);
    return same;
}

/* REFUSED or NEVER, in words. False: it is not of this migration, or cannot be read. Sets the error either way. */
static bool complain(VmfSource *source, const VmfReturnMessage *message, GError **error)
{
    VmfRecord record = vmf_return_message_record(message);
    g_autofree char *id = NULL, *text = NULL;
    uint8_t token[VMF_TOKEN_SIZE];

    if (!vmf_complaint_decode(&record, source->format.swap, token, &id, &text, error) ||
        !vmf_source_check_token(source, message->type, token, error))
        return false;
    g_set_error(error, VMF_ERROR, VMF_ERROR_REFUSED, "target: %s: %s: %s", vmf_record_name(message->type), id, text);
    return true;
}

bool vmf_source_audit(VmfSource *source, const _Atomic bool *cancel, char **difference, GError **error)
{
    VmfVerifyResult result = {0};
    int64_t start = vmf_now_ns();

    *difference = NULL;
    if (!source->ram.save)
        return true;
    if (!vmf_ram_save_audit(source->ram.save, &result, difference, cancel, error))
        return false;
    pthread_mutex_lock(&source->session->lock);
    source->session->statistics.audit_pages_different = (unsigned)MIN(result.pages_different, G_MAXUINT);
    source->session->statistics.audit_ns = since(start);
    pthread_mutex_unlock(&source->session->lock);
    if (*difference)
        vmf_session_event(source->session, "audit.different", "%s", *difference);
    return true;
}

/* Both ends hash at the same time; the source's finding counts like a bad READY. */
static void audit_before(VmfSource *source)
{
    g_autofree char *difference = NULL;

    if (source->exchange.state != VMF_SOURCE_OFFERED || !(source->features & VMF_FEATURE_AUDIT_BEFORE))
        return;
    if (vmf_source_audit(source, &source->session->cancelled, &difference, &source->why) && !difference)
        return;
    if (g_error_matches(source->why, VMF_ERROR, VMF_ERROR_CANCELLED)) { /* follow() takes the offer back */
        g_clear_error(&source->why);
        return;
    }
    if (difference)
        g_set_error(&source->why, VMF_ERROR, VMF_ERROR_RAM_AUDIT, "audit at the source: memory differs from what was sent: %s", difference);
    vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_READY_BAD);
}

static int64_t ready_deadline(const VmfSource *source)
{
    int64_t deadline = vmf_source_stop_deadline(source);

    if (source->features & VMF_FEATURE_AUDIT_BEFORE)
        deadline += (int64_t)(source->session->statistics.ram_total_bytes * (uint64_t)VMF_NS_PER_S / AUDIT_BYTES_PER_SECOND);
    return deadline;
}

/* The answer to the offer. */
static void take_offer_answer(VmfSource *source, const VmfReturnMessage *message)
{
    VmfSourceExchange *exchange = &source->exchange;
    uint8_t peer_id[sizeof(exchange->peer_id)];

    VMF_NOTE_NS(source, downtime_ready_ns, since(source->offered_ns));
    if (message->type == VMF_RECORD_READY) {
        if (check_ready(source, message, peer_id, &source->why))
            vmf_source_exchange_ready(exchange, peer_id, &source->why);
        else
            vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_READY_BAD);
    } else if (message->type == VMF_RECORD_REFUSED) {
        bool of_this = complain(source, message, &source->why);
        vmf_source_exchange_feed(exchange, of_this ? VMF_SOURCE_EV_REFUSED : VMF_SOURCE_EV_LOST);
    } else {
        vmf_record_set_order_error(&source->why, message->type, "ahead of READY");
        vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_LOST);
    }
    if (source->why && !source->session->killed)
        name_damage(source, &source->why);
}

/* Only RUNNING and NEVER of this migration's token are answers; a target that says anything else is no more believed. */
static void take_run_answer(VmfSource *source, const VmfReturnMessage *message)
{
    uint8_t token[VMF_TOKEN_SIZE];
    VmfRecord record = vmf_return_message_record(message);
    GError *why = NULL;

    if (message->type == VMF_RECORD_RUNNING && vmf_token_decode(&record, token, &why) &&
        vmf_source_check_token(source, message->type, token, &why)) {
        vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_RUNNING);
        return;
    }
    if (message->type == VMF_RECORD_NEVER && complain(source, message, &why)) {
        vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_NEVER);
    } else {
        if (!why)
            vmf_record_set_order_error(&why, message->type, "ahead of RUNNING");
        vmf_source_exchange_lose_main(&source->exchange);
    }
    g_clear_error(&source->why);
    source->why = why;
}

static void take_message(VmfSource *source, const VmfReturnMessage *message)
{
    switch (source->exchange.state) {
    case VMF_SOURCE_OFFERED:
        take_offer_answer(source, message);
        break;
    case VMF_SOURCE_COMMITTING:
    case VMF_SOURCE_ASKING:
    case VMF_SOURCE_HELD:
        take_run_answer(source, message);
        break;
    default:
        break; /* the answer to an offer that has ended */
    }
}

/* ---- the loop -------------------------------------------------------------------------------------------------------------- */

static void ask_now(VmfSource *source)
{
    static const char *const points[] = {"source.ask.query", "source.ask.abort", "source.ask.inquire",
                                         "source.ask.confirm"};
    VmfSession *session = source->session;
    const char *point = points[source->question];
    VmfAnswer answer = VMF_ANSWER_NONE;

    source->question_due = false;
    if (vmf_session_due(session, point, NULL)) {
        answer = vmf_handover_ask(session->connector, source->question, source->token, source->exchange.peer_id, ASK_NS, NULL);
        if (vmf_session_done(session, point, NULL))
            vmf_source_exchange_answer(&source->exchange, answer);
    }
    if (answer == VMF_ANSWER_NEVER && !source->why)
        g_set_error(&source->why, VMF_ERROR, VMF_ERROR_REFUSED, "target: NEVER: it will not run this guest");
}

static void cut(VmfSource *source, GError *failure)
{
    if (source->why)
        g_error_free(failure);
    else
        source->why = failure;
    vmf_source_exchange_lose_main(&source->exchange);
}

static void take_resolution(VmfSource *source)
{
    VmfSession *session = source->session;

    pthread_mutex_lock(&session->lock);
    bool run = session->resolution.run, fenced = session->resolution.fenced;
    session->resolution.pending = false;
    pthread_mutex_unlock(&session->lock);
    vmf_source_exchange_resolve(&source->exchange, run, fenced);
}

static void tick(VmfSource *source)
{
    bool offered = source->exchange.state == VMF_SOURCE_OFFERED;

    vmf_source_exchange_tick(&source->exchange);
    if (source->why)
        return;
    if (offered && source->exchange.late)
        g_set_error(&source->why, VMF_ERROR, VMF_ERROR_SWITCHOVER_TIMEOUT, "target: does not answer in time");
    else if (source->exchange.state == VMF_SOURCE_ASKING || source->exchange.state == VMF_SOURCE_HELD)
        g_set_error(&source->why, VMF_ERROR, VMF_ERROR_TIMEOUT, "target: does not answer in time");
}

static void end_hold(VmfSource *source)
{
    g_autofree char *hold = vmf_session_hold(source->session);

    if (hold && !vmf_source_exchange_is_held(&source->exchange))
        vmf_session_set_hold(source->session, NULL);
}

/* Until the exchange is over. False: left while the guest is held. */
static bool follow(VmfSource *source)
{
    VmfSourceExchange *exchange = &source->exchange;
    unsigned known = 0;

    while (!vmf_source_exchange_is_over(exchange) && !source->session->killed) {
        VmfReturnMessage message = {0};
        GError *failure = NULL;
        end_hold(source);
        if (source->question_due) {
            ask_now(source);
            continue;
        }
        VmfWakeReason reason =
            vmf_return_path_wait(source->return_path, vmf_source_exchange_due(exchange), known, &message, &failure);
        known |= reason == VMF_WAKE_CUT || reason == VMF_WAKE_CANCEL ? 1u << reason : 0;
        switch (reason) {
        case VMF_WAKE_MESSAGE:
            take_message(source, &message);
            break;
        case VMF_WAKE_CUT:
            cut(source, failure);
            break;
        case VMF_WAKE_CANCEL:
            if (exchange->state == VMF_SOURCE_OFFERED)
                g_set_error(&source->why, VMF_ERROR, VMF_ERROR_CANCELLED, "migration: cancelled");
            vmf_source_exchange_feed(exchange, VMF_SOURCE_EV_CANCEL);
            break;
        case VMF_WAKE_LEAVE:
            return false;
        case VMF_WAKE_RESOLVE:
            take_resolution(source);
            break;
        case VMF_WAKE_DUE:
            tick(source);
            break;
        }
        vmf_return_message_clear(&message);
    }
    end_hold(source);
    return true;
}

static bool fail_held(VmfSource *source, GError **error)
{
    g_autofree char *hold = vmf_session_hold(source->session);

    g_set_error(error, VMF_ERROR, VMF_ERROR_HELD, "handover: %s%s%s", hold, source->why ? ": " : "",
                source->why ? source->why->message : "");
    return false;
}

bool vmf_source_hand_over(VmfSource *source, GError **error)
{
    VmfSourceExchange *exchange = &source->exchange;

    vmf_source_exchange_offer(exchange, ready_deadline(source), &source->why);
    audit_before(source);
    bool stayed = follow(source);
    if (exchange->state == VMF_SOURCE_GONE && !source->session->killed) {
        VMF_NOTE_NS(source, downtime_run_ns, since(source->run_ns));
        VMF_NOTE_NS(source, downtime_ns, since(source->stopped_ns));
        VMF_NOTE_NS(source, total_ns, since(source->begun_ns));
        return true;
    }
    if (!stayed)
        return fail_held(source, error);
    if (source->why)
        g_propagate_error(error, g_steal_pointer(&source->why));
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "handover: the guest goes on here");
    return false;
}
