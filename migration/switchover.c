/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The source from the stop to the end: last pages and state, the handover (source-handover.c), and what is left to do once the guest
 * is the target's. A step that fails ahead of the offer reports LOST, and the exchange brings the guest back.
 */
#include "migration/source.h"

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"
#include "stream/trace.h"

#define REPORT_NS (3 * VMF_NS_PER_S)
#define CONFIRM_NS (1 * VMF_NS_PER_S)

void vmf_source_note_ns(VmfSource *source, size_t offset, uint64_t ns)
{
    VmfSession *session = source->session;

    pthread_mutex_lock(&session->lock);
    *(uint64_t *)((char *)&session->statistics + offset) = ns;
    pthread_mutex_unlock(&session->lock);
}

static uint64_t since(int64_t start_ns)
{
    return (uint64_t)(vmf_now_ns() - start_ns);
}

/* ---- stop and last round --------------------------------------------------------------------------------------------------- */

bool vmf_source_stop_guest(VmfSource *source, GError **error)
{
    const VmfGuestOps *ops = vmf_source_guest_ops(source);
    void *guest = vmf_guest_opaque(source->session->guest);

    if (source->stopped_ns != 0)
        return true;
    source->was_running = ops->is_running(guest);
    source->stopped_ns = vmf_now_ns();
    if (!ops->stop(guest, error)) {
        g_prefix_error(error, "guest: stop: ");
        return false;
    }
    vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_STOP);
    if (!vmf_session_fault(source->session, "source.stopped", error))
        return false;
    VMF_NOTE_NS(source, downtime_stop_ns, since(source->stopped_ns));
    return true;
}

static bool complete_owner(VmfSource *source, VmfOwner *owner, GError **error)
{
    return (!owner->handlers->save_complete || owner->handlers->save_complete(owner->opaque, &owner->stream, error)) &&
           (!owner->has_section || vmf_save_stream_finish(&owner->stream, error));
}

bool vmf_source_send_the_rest(VmfSource *source, GError **error)
{
    int64_t start = vmf_now_ns(), begun_ns = start;
    VmfPending pending;

    /* What is left is downtime: no budget applies to it. */
    vmf_rate_limit_set(source->session->rate, 0);
    if (source->destination->last_pass)
        source->destination->last_pass(source);
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
        if (vmf_owner(source->owners, i)->downtime) {
            vmf_source_note_ns(source, vmf_owner(source->owners, i)->downtime, since(start));
            start = vmf_now_ns();
        }
    }
    VMF_NOTE_NS(source, downtime_state_ns, since(start));
    pthread_mutex_lock(&source->session->lock);
    source->session->statistics.round++;
    pthread_mutex_unlock(&source->session->lock);
    VMF_TRACE(round_end, source->session, source->session->statistics.round, vmf_now_ns() - begun_ns);
    return vmf_session_check_cancelled(source->session, error);
}

/* ---- afterwards ------------------------------------------------------------------------------------------------------------ */

void vmf_source_set_verified(VmfSource *source, VmfVerified verified)
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
    VmfRecord record = vmf_return_message_record(&message);
    if (message.type == VMF_RECORD_REPORT && vmf_report_decode(&record, source->format.swap, &report, NULL) &&
        vmf_source_check_token(source, message.type, report.token, NULL)) {
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
    g_autofree char *difference = NULL;
    GError *error = NULL;

    switch (source->session->parameters.audit) {
    case VMF_AUDIT_BEFORE:
        vmf_source_set_verified(source, source->features & VMF_FEATURE_AUDIT_BEFORE ? VMF_VERIFIED_FULL : VMF_VERIFIED_TRANSPORT);
        return;
    case VMF_AUDIT_OFF:
        vmf_source_set_verified(source, VMF_VERIFIED_TRANSPORT);
        return;
    default:
        break;
    }
    if (!vmf_source_audit(source, NULL, &difference, &error)) {
        vmf_session_event(source->session, "audit.failed", "%s", error->message);
        g_error_free(error);
        vmf_source_set_verified(source, VMF_VERIFIED_TRANSPORT);
        return;
    }
    vmf_source_set_verified(source, difference ? VMF_VERIFIED_FAILED : VMF_VERIFIED_FULL);
}

/* A save: nobody answers, so there is no exchange; the guest stays stopped here. */
static bool finish_one_way(VmfSource *source, GError **error)
{
    VmfSwitchover message = {0};

    bool sent = vmf_source_send_switchover(source, &message, error) &&
                vmf_record_write(source->main.writer, VMF_RECORD_END, NULL, 0, error) && vmf_source_claim(source, error) &&
                vmf_channel_finish(source->main.channel, error);
    vmf_switchover_clear(&message);
    if (!sent) {
        vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_LOST);
        return false;
    }
    VMF_NOTE_NS(source, total_ns, since(source->begun_ns));
    source->features &= ~VMF_FEATURE_AUDIT_BEFORE;
    audit_after(source);
    /* Nobody has read it yet: what was found here is that the log was sound, or that it was not. */
    if (source->session->statistics.verified != VMF_VERIFIED_FAILED)
        vmf_source_set_verified(source, VMF_VERIFIED_NOT_APPLICABLE);
    return true;
}

/* The target keeps what it knows of the token until it hears this, so it is said ahead of an audit that takes its time. */
static void say_end(VmfSource *source)
{
    VmfSession *session = source->session;

    if (!source->exchange.may_end || !vmf_session_due(session, "source.send.end", NULL))
        return;
    if (!source->exchange.main_lost)
        take_report(source);
    bool said = !source->exchange.main_lost && vmf_record_write(source->main.writer, VMF_RECORD_END, NULL, 0, NULL);
    if (!said && source->exchange.reconnects) {
        vmf_handover_ask(session->connector, VMF_QUESTION_CONFIRM, source->token, source->exchange.peer_id, CONFIRM_NS, NULL);
    }
    vmf_session_done(source->session, "source.send.end", NULL);
}

bool vmf_source_finish_stream(VmfSource *source, GError **error)
{
    if (source->format.one_way)
        return finish_one_way(source, error);
    if (!vmf_source_hand_over(source, error))
        return false;
    say_end(source);
    audit_after(source);
    return true;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

bool vmf_source_fail_stopped(VmfSource *source)
{
    bool cancelled = vmf_session_is_cancelled(source->session);

    vmf_source_exchange_feed(&source->exchange, cancelled ? VMF_SOURCE_EV_CANCEL : VMF_SOURCE_EV_LOST);
    return false;
}

bool vmf_source_switchover(VmfSource *source, GError **error)
{
    if (!source->format.one_way && !vmf_source_promise(source, error))
        return vmf_source_fail_stopped(source);
    vmf_session_set_status(source->session, VMF_STATUS_DEVICE);
    if (!vmf_source_stop_guest(source, error) || !vmf_source_send_the_rest(source, error))
        return vmf_source_fail_stopped(source);
    return source->destination->finish(source, error);
}
