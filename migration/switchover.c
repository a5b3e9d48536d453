/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The source's end of the handover: stop, last pages, state, offer, commit.
 *
 * Everything that may change who owns the guest goes through happened(), which steps the state machine and does what it says. A step
 * that fails on the way reports LOST and the table decides what that means here: the guest back, or a hold.
 */
#include "migration/source.h"

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"
#include "stream/trace.h"

#define RUNNING_NS (10 * VMF_NS_PER_S)
#define REPORT_NS (3 * VMF_NS_PER_S)
#define LAST_ACKS_NS (1 * VMF_NS_PER_S)
#define STUCK_BYTES (256u << 10)          /* more than this unsent on the main channel: the peer does not read, do not speak to it */
#define AUDIT_BYTES_PER_SECOND 200000000u /* slower than any host hashes: the deadline of an audit before RUN */

static uint64_t since(int64_t start_ns)
{
    return (uint64_t)(vmf_now_ns() - start_ns);
}

static void note_ns(VmfSource *source, size_t offset, uint64_t ns)
{
    VmfSession *session = source->session;

    pthread_mutex_lock(&session->lock);
    *(uint64_t *)((char *)&session->statistics + offset) = ns;
    pthread_mutex_unlock(&session->lock);
}
#define NOTE_NS(source, member, ns) note_ns(source, offsetof(VmfStatistics, member), ns)

/* ---- what the state machine asks for --------------------------------------------------------------------------------------- */

void vmf_source_tell_abort(VmfSource *source)
{
    if (source->session->killed || !source->return_path || vmf_channel_unsent_bytes(source->main.channel) > STUCK_BYTES)
        return;
    vmf_token_send(source->main.writer, VMF_RECORD_ABORT, source->token, NULL);
}

/* The guest goes on here, if it did. What remains to be said about a failure to start it is the first error's business. */
static void take_back(VmfSource *source)
{
    GError *error = NULL;

    if (source->session->killed)
        return;
    vmf_source_throttle(source, 0);
    if (source->was_running && !vmf_source_guest_ops(source)->start(vmf_guest_opaque(source->session->guest), &error)) {
        vmf_session_event(source->session, "guest.stopped", "the guest could not be started again: %s", error->message);
        g_error_free(error);
    }
}

static VmfSourceAction happened(VmfSource *source, VmfSourceEvent event)
{
    VmfSourceAction action = vmf_handover_source_step(&source->state, event);

    switch (action) {
    case VMF_SOURCE_DO_ABORT_AND_TAKE_BACK:
        vmf_source_tell_abort(source);
        take_back(source);
        break;
    case VMF_SOURCE_DO_TAKE_BACK:
        take_back(source);
        break;
    default:
        break;
    }
    return action;
}

/* ---- stop and last round --------------------------------------------------------------------------------------------------- */

static bool stop_guest(VmfSource *source, GError **error)
{
    const VmfGuestOps *ops = vmf_source_guest_ops(source);
    void *guest = vmf_guest_opaque(source->session->guest);

    source->was_running = ops->is_running(guest);
    source->stopped_ns = vmf_now_ns();
    if (!ops->stop(guest, error)) {
        g_prefix_error(error, "guest: stop: ");
        return false;
    }
    happened(source, VMF_SOURCE_EV_STOP);
    if (!vmf_session_fault(source->session, "source.stopped", error))
        return false;
    NOTE_NS(source, downtime_stop_ns, since(source->stopped_ns));
    /* What is left is downtime: no budget applies to it. */
    vmf_rate_limit_set(source->session->rate, 0);
    return true;
}

static bool complete_owner(VmfSource *source, VmfOwner *owner, GError **error)
{
    return (!owner->handlers->save_complete || owner->handlers->save_complete(owner->opaque, &owner->stream, error)) &&
           (!owner->has_section || vmf_save_stream_finish(&owner->stream, error));
}

static bool send_the_rest(VmfSource *source, GError **error)
{
    int64_t start = vmf_now_ns(), begun_ns = start;
    VmfPending pending;

    if (!vmf_source_pending(source, true, &pending, error))
        return false;
    VMF_TRACE(round_begin, source->session, source->session->statistics.round + 1, pending.precopy_bytes + pending.stop_bytes);
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->handlers->quiesce && !owner->handlers->quiesce(owner->opaque, error))
            return false;
    }
    for (guint i = 0; i < source->owners->len; i++) {
        if (!complete_owner(source, vmf_owner(source->owners, i), error))
            return false;
        if (i == 0) { /* RAM, if there is any */
            NOTE_NS(source, downtime_ram_ns, since(start));
            start = vmf_now_ns();
        }
    }
    NOTE_NS(source, downtime_state_ns, since(start));
    pthread_mutex_lock(&source->session->lock);
    source->session->statistics.round++;
    pthread_mutex_unlock(&source->session->lock);
    VMF_TRACE(round_end, source->session, source->session->statistics.round, vmf_now_ns() - begun_ns);
    return vmf_session_check_cancelled(source->session, error);
}

/* ---- offer ----------------------------------------------------------------------------------------------------------------- */

static bool send_switchover(VmfSource *source, VmfSwitchover *message, GError **error)
{
    bool audit = source->features & VMF_FEATURE_AUDIT_BEFORE;

    memcpy(message->token, source->token, sizeof(message->token));
    message->flags = (source->was_running ? VMF_SWITCHOVER_RUN : 0) | (audit ? VMF_SWITCHOVER_AUDIT : 0);
    message->static_sum = source->static_sum;
    message->device_sum = XXH3_64bits_digest(source->device_sum);
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

static VmfRecord record_of(const VmfReturnMessage *message)
{
    uint32_t length = (uint32_t)g_bytes_get_size(message->body);

    return (VmfRecord){.type = message->type, .body = g_bytes_get_data(message->body, NULL), .length = length, .checked = length};
}

static bool check_token(const VmfSource *source, uint32_t type, const uint8_t token[VMF_TOKEN_SIZE], GError **error)
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
    if (!check_token(source, VMF_RECORD_READY, ready->token, error))
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

static bool check_ready(VmfSource *source, const VmfSwitchover *offer, const VmfReturnMessage *message, GError **error)
{
    VmfRecord record = record_of(message);
    VmfReady ready;

    if (!vmf_ready_decode(&record, source->format.swap, offer->n_blocks, &ready, error))
        return false;
    bool same = compare_ready(source, offer, &ready, error);
    vmf_ready_clear(&ready);
    return same;
}

/* REFUSED or NEVER, in words. False: it is not of this migration, or cannot be read. Sets the error either way. */
static bool complain(VmfSource *source, const VmfReturnMessage *message, GError **error)
{
    VmfRecord record = record_of(message);
    g_autofree char *id = NULL, *text = NULL;
    uint8_t token[VMF_TOKEN_SIZE];

    if (!vmf_complaint_decode(&record, source->format.swap, token, &id, &text, error) ||
        !check_token(source, message->type, token, error))
        return false;
    g_set_error(error, VMF_ERROR, VMF_ERROR_REFUSED, "target: %s: %s: %s", vmf_record_name(message->type), id, text);
    return true;
}

static bool audit_here(VmfSource *source, bool *different, GError **error)
{
    VmfVerifyResult result = {0};
    g_autofree char *text = NULL;
    int64_t start = vmf_now_ns();

    *different = false;
    if (!source->ram.save)
        return true;
    if (!vmf_ram_save_audit(source->ram.save, &result, &text, NULL, error))
        return false;
    *different = result.pages_different > 0;
    pthread_mutex_lock(&source->session->lock);
    source->session->statistics.audit_pages_different = (unsigned)MIN(result.pages_different, G_MAXUINT);
    source->session->statistics.audit_ns = since(start);
    pthread_mutex_unlock(&source->session->lock);
    if (text)
        vmf_session_event(source->session, "audit.different", "%s", text);
    return true;
}

/* Both ends hash at the same time; the source's finding counts like a bad READY. */
static bool audit_before(VmfSource *source, GError **error)
{
    bool different;

    if (!(source->features & VMF_FEATURE_AUDIT_BEFORE))
        return true;
    if (!audit_here(source, &different, error))
        return false;
    if (different)
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_AUDIT, "audit at the source: memory differs from what was sent");
    return !different;
}

static int64_t ready_deadline(const VmfSource *source)
{
    int64_t deadline = vmf_source_stop_deadline(source);

    if (source->features & VMF_FEATURE_AUDIT_BEFORE)
        deadline += (int64_t)(source->session->statistics.ram_total_bytes * (uint64_t)VMF_NS_PER_S / AUDIT_BYTES_PER_SECOND);
    return deadline;
}

static VmfSourceEvent await_ready(VmfSource *source, const VmfSwitchover *offer, GError **error)
{
    VmfReturnMessage message = {0};
    VmfSourceEvent event = VMF_SOURCE_EV_LOST;

    if (!audit_before(source, error))
        return VMF_SOURCE_EV_READY_BAD;
    if (!vmf_return_path_next(source->return_path, ready_deadline(source), true, &message, error)) {
        if (g_error_matches(*error, VMF_ERROR, VMF_ERROR_TIMEOUT))
            (*error)->code = VMF_ERROR_SWITCHOVER_TIMEOUT;
        return g_error_matches(*error, VMF_ERROR, VMF_ERROR_CANCELLED) ? VMF_SOURCE_EV_CANCEL : VMF_SOURCE_EV_LOST;
    }
    if (message.type == VMF_RECORD_READY) {
        event = check_ready(source, offer, &message, error) ? VMF_SOURCE_EV_READY_GOOD : VMF_SOURCE_EV_READY_BAD;
    } else if (message.type == VMF_RECORD_REFUSED) {
        event = complain(source, &message, error) ? VMF_SOURCE_EV_REFUSED : VMF_SOURCE_EV_LOST;
    } else {
        vmf_record_set_order_error(error, message.type, "ahead of READY");
    }
    vmf_return_message_clear(&message);
    if (event == VMF_SOURCE_EV_REFUSED || event == VMF_SOURCE_EV_READY_BAD)
        name_damage(source, error);
    return event;
}

static bool offer(VmfSource *source, GError **error)
{
    VmfSwitchover message = {0};
    int64_t start = vmf_now_ns();

    happened(source, VMF_SOURCE_EV_OFFER);
    vmf_return_path_offer(source->return_path);
    bool sent = vmf_session_fault(source->session, "source.switchover.due", error) && send_switchover(source, &message, error) &&
                vmf_session_fault(source->session, "source.switchover.sent", error);
    atomic_store(&source->session->offered, sent);
    VmfSourceEvent event = sent ? await_ready(source, &message, error) : VMF_SOURCE_EV_LOST;
    NOTE_NS(source, downtime_ready_ns, since(start));
    vmf_switchover_clear(&message);
    return happened(source, event) == VMF_SOURCE_DO_SEND_RUN;
}

/* ---- commit ---------------------------------------------------------------------------------------------------------------- */

/* Only RUNNING and NEVER of this migration's token are answers; all else leaves it open who has the guest. */
static VmfSourceEvent await_running(VmfSource *source, GError **error)
{
    VmfReturnMessage message = {0};
    uint8_t token[VMF_TOKEN_SIZE];
    VmfSourceEvent event = VMF_SOURCE_EV_LOST;
    int64_t deadline = vmf_now_ns() + RUNNING_NS + (int64_t)source->session->parameters.switchover_timeout_ns;

    if (!vmf_return_path_next(source->return_path, deadline, false, &message, error))
        return event;
    VmfRecord record = record_of(&message);
    if (message.type == VMF_RECORD_RUNNING) {
        if (vmf_token_decode(&record, token, error) && check_token(source, message.type, token, error))
            event = VMF_SOURCE_EV_RUNNING;
    } else if (message.type == VMF_RECORD_NEVER) {
        event = complain(source, &message, error) ? VMF_SOURCE_EV_NEVER : VMF_SOURCE_EV_LOST;
    } else {
        vmf_record_set_order_error(error, message.type, "ahead of RUNNING");
    }
    vmf_return_message_clear(&message);
    return event;
}

static bool hold(VmfSource *source, GError **error)
{
    g_prefix_error(error, "handover: RUN was sent and not answered, the guest may run at the target: ");
    if (*error) {
        (*error)->domain = VMF_ERROR;
        (*error)->code = VMF_ERROR_HELD;
    }
    return false;
}

static bool commit(VmfSource *source, GError **error)
{
    int64_t start = vmf_now_ns();

    bool sent = vmf_session_fault(source->session, "source.run.due", error) &&
                vmf_token_send(source->main.writer, VMF_RECORD_RUN, source->token, error) &&
                vmf_session_fault(source->session, "source.run.sent", error);
    VmfSourceEvent event = sent ? await_running(source, error) : VMF_SOURCE_EV_LOST;
    switch (happened(source, event)) {
    case VMF_SOURCE_DO_RELEASE:
        NOTE_NS(source, downtime_run_ns, since(start));
        NOTE_NS(source, downtime_ns, since(source->stopped_ns));
        NOTE_NS(source, total_ns, since(source->begun_ns));
        return true;
    case VMF_SOURCE_DO_HOLD:
        return hold(source, error);
    default:
        return false;
    }
}

/* ---- afterwards ------------------------------------------------------------------------------------------------------------ */

static void set_verified(VmfSource *source, VmfVerified verified)
{
    pthread_mutex_lock(&source->session->lock);
    source->session->statistics.verified = verified;
    pthread_mutex_unlock(&source->session->lock);
}

/* The guest is gone: what cannot be read of the report any more is not worth an error. */
static void take_report(VmfSource *source)
{
    VmfReturnMessage message = {0};
    VmfReport report;

    if (!(source->features & VMF_FEATURE_REPORT) || !source->was_running ||
        !vmf_return_path_next(source->return_path, vmf_now_ns() + REPORT_NS, false, &message, NULL))
        return;
    VmfRecord record = record_of(&message);
    if (message.type == VMF_RECORD_REPORT && vmf_report_decode(&record, source->format.swap, &report, NULL) &&
        check_token(source, message.type, report.token, NULL)) {
        pthread_mutex_lock(&source->session->lock);
        source->session->statistics.guest_gap_known = report.gap_known;
        source->session->statistics.guest_gap_ns = report.guest_gap_ns;
        pthread_mutex_unlock(&source->session->lock);
    }
    vmf_return_message_clear(&message);
}

/* The target runs; the source's memory is frozen and can be hashed at leisure. */
static void audit_after(VmfSource *source)
{
    GError *error = NULL;
    bool different;

    switch (source->session->parameters.audit) {
    case VMF_AUDIT_BEFORE:
        set_verified(source, source->features & VMF_FEATURE_AUDIT_BEFORE ? VMF_VERIFIED_FULL : VMF_VERIFIED_TRANSPORT);
        return;
    case VMF_AUDIT_OFF:
        set_verified(source, VMF_VERIFIED_TRANSPORT);
        return;
    default:
        break;
    }
    if (!audit_here(source, &different, &error)) {
        vmf_session_event(source->session, "audit.failed", "%s", error->message);
        g_error_free(error);
        set_verified(source, VMF_VERIFIED_TRANSPORT);
        return;
    }
    set_verified(source, different ? VMF_VERIFIED_FAILED : VMF_VERIFIED_FULL);
}

/* A save: nobody answers, so there is no exchange; the guest stays stopped here. */
static bool finish_one_way(VmfSource *source, GError **error)
{
    VmfSwitchover message = {0};

    bool sent = send_switchover(source, &message, error) &&
                vmf_record_write(source->main.writer, VMF_RECORD_END, NULL, 0, error) &&
                vmf_channel_finish(source->main.channel, error);
    vmf_switchover_clear(&message);
    if (!sent) {
        happened(source, VMF_SOURCE_EV_LOST);
        return false;
    }
    NOTE_NS(source, total_ns, since(source->begun_ns));
    source->features &= ~VMF_FEATURE_AUDIT_BEFORE;
    audit_after(source);
    /* Nobody has read it yet: what was found here is that the log was sound, or that it was not. */
    if (source->session->statistics.verified != VMF_VERIFIED_FAILED)
        set_verified(source, VMF_VERIFIED_NOT_APPLICABLE);
    return true;
}

bool vmf_source_switchover(VmfSource *source, GError **error)
{
    vmf_session_set_status(source->session, VMF_STATUS_DEVICE);
    if (!stop_guest(source, error)) {
        happened(source, VMF_SOURCE_EV_LOST);
        return false;
    }
    if (!send_the_rest(source, error)) {
        happened(source, vmf_session_is_cancelled(source->session) ? VMF_SOURCE_EV_CANCEL : VMF_SOURCE_EV_LOST);
        return false;
    }
    if (source->format.one_way)
        return finish_one_way(source, error);
    if (!offer(source, error) || !commit(source, error))
        return false;
    audit_after(source);
    take_report(source);
    vmf_record_write(source->main.writer, VMF_RECORD_END, NULL, 0, NULL);
    return true;
}
