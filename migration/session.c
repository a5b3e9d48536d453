/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/session.h"

#include <vmferry/error.h>

#include "migration/ops.h"
#include "migration/parameters.h"
#include "stream/channel.h"
#include "stream/clock.h"
#include "stream/trace.h"

#define HANDSHAKE_NS (10 * VMF_NS_PER_S)
#define SILENCE_NS (60 * VMF_NS_PER_S)

VmfSession *vmf_session_new(VmfGuest *guest, const VmfParameters *parameters, const VmfSessionOps *ops, void *opaque)
{
    VmfSession *session = g_new0(VmfSession, 1);
    pthread_condattr_t attributes;

    session->guest = guest;
    session->operation = "migration";
    if (vmf_parameters_copy(&session->parameters, parameters, &session->parameters_error)) {
        session->host_name = g_strdup(session->parameters.host_name);
        session->machine = g_strdup(session->parameters.machine);
        session->peer = g_strdup(session->parameters.peer);
        session->copy_disks = g_strdup(session->parameters.copy_disks);
        session->parameters.host_name = session->host_name;
        session->parameters.machine = session->machine;
        session->parameters.peer = session->peer;
        session->parameters.copy_disks = session->copy_disks;
        session->incremental_bitmap = g_strdup(session->parameters.incremental_bitmap);
        session->parameters.incremental_bitmap = session->incremental_bitmap;
    }
    if (ops)
        vmf_ops_copy(&session->ops, sizeof(session->ops), ops, sizeof(size_t));
    session->opaque = opaque;
    session->handshake_ns = HANDSHAKE_NS;
    session->silence_ns = SILENCE_NS;
    session->max_bandwidth = session->parameters.max_bandwidth;
    session->downtime_limit_ns = session->parameters.downtime_limit_ns;
    session->rate = vmf_rate_limit_new(session->parameters.max_bandwidth);
    session->channels = g_ptr_array_new();
    session->statistics.page_size = 4096;
    pthread_mutex_init(&session->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&session->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    return session;
}

VmfSession *vmf_session_new_source(VmfGuest *guest, VmfConnector *connector, const VmfParameters *parameters,
                                   const VmfSessionOps *ops, void *opaque)
{
    VmfSession *session = vmf_session_new(guest, parameters, ops, opaque);

    session->is_source = true;
    session->connector = connector;
    return session;
}

VmfSession *vmf_session_new_target(VmfGuest *guest, VmfListener *listener, const VmfParameters *parameters,
                                   const VmfSessionOps *ops, void *opaque)
{
    VmfSession *session = vmf_session_new(guest, parameters, ops, opaque);

    session->listener = listener;
    return session;
}

void vmf_session_free(VmfSession *session)
{
    if (!session)
        return;
    if (session->free_own)
        session->free_own(session->own);
    vmf_rate_limit_unref(session->rate);
    g_ptr_array_unref(session->channels);
    g_strfreev(session->incompatibilities);
    g_clear_error(&session->expiry);
    g_free(session->peer_host_name);
    g_clear_error(&session->parameters_error);
    g_free(session->host_name);
    g_free(session->machine);
    g_free(session->peer);
    g_free(session->copy_disks);
    g_free(session->incremental_bitmap);
    g_free(session->hold);
    pthread_cond_destroy(&session->changed);
    pthread_mutex_destroy(&session->lock);
    g_free(session);
}

/* ---- status ---------------------------------------------------------------------------------------------------------------- */

static VmfOutcome outcome_of(VmfStatus status, VmfOutcome outcome)
{
    if (outcome != VMF_OUTCOME_NONE)
        return outcome;
    switch (status) {
    case VMF_STATUS_COMPLETED:
        return VMF_OUTCOME_COMPLETED;
    case VMF_STATUS_FAILED:
        return VMF_OUTCOME_FAILED;
    case VMF_STATUS_CANCELLED:
        return VMF_OUTCOME_CANCELLED;
    default:
        return VMF_OUTCOME_NONE;
    }
}

void vmf_session_set_status(VmfSession *session, VmfStatus status)
{
    pthread_mutex_lock(&session->lock);
    g_assert(vmf_status_may(session->statistics.status, status));
    VMF_TRACE(session_status, session, session->is_source, vmf_status_word(session->statistics.status), vmf_status_word(status));
    session->statistics.status = status;
    session->statistics.outcome = outcome_of(status, session->statistics.outcome);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    if (session->ops.status_changed)
        session->ops.status_changed(session->opaque, status);
}

VmfStatus vmf_session_status(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    VmfStatus status = session->statistics.status;
    pthread_mutex_unlock(&session->lock);
    return status;
}

void vmf_session_event(VmfSession *session, const char *id, const char *format, ...)
{
    va_list arguments;

    if (!session->ops.event)
        return;
    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    session->ops.event(session->opaque, id, text);
}

void vmf_session_get_statistics(VmfSession *session, VmfStatistics *out)
{
    size_t size = out->size;

    pthread_mutex_lock(&session->lock);
    if (session->gather)
        session->gather(session->gather_opaque, &session->statistics);
    memcpy(out, &session->statistics, MIN(size, sizeof(*out)));
    pthread_mutex_unlock(&session->lock);
    out->size = size;
}

char **vmf_session_incompatibilities(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    char **texts = session->incompatibilities ? g_strdupv(session->incompatibilities) : g_new0(char *, 1);
    pthread_mutex_unlock(&session->lock);
    return texts;
}

char *vmf_session_peer_host_name(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    char *name = g_strdup(session->peer_host_name);
    pthread_mutex_unlock(&session->lock);
    return name;
}

void vmf_session_set_peer_host_name(VmfSession *session, char *name)
{
    pthread_mutex_lock(&session->lock);
    g_free(session->peer_host_name);
    session->peer_host_name = name;
    pthread_mutex_unlock(&session->lock);
}

void vmf_session_set_incompatibilities(VmfSession *session, char **texts)
{
    pthread_mutex_lock(&session->lock);
    g_strfreev(session->incompatibilities);
    session->incompatibilities = g_strdupv(texts);
    pthread_mutex_unlock(&session->lock);
}

/* ---- from outside ---------------------------------------------------------------------------------------------------------- */

bool vmf_session_is_cancelled(VmfSession *session)
{
    return atomic_load(&session->cancelled);
}

static bool check_cancelled_locked(VmfSession *session, GError **error)
{
    if (session->expiry)
        g_propagate_error(error, g_error_copy(session->expiry));
    else if (vmf_session_is_cancelled(session))
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: cancelled", session->operation);
    else
        return true;
    return false;
}

bool vmf_session_check_cancelled(VmfSession *session, GError **error)
{
    pthread_mutex_lock(&session->lock);
    bool goes_on = check_cancelled_locked(session, error);
    pthread_mutex_unlock(&session->lock);
    return goes_on;
}

bool vmf_session_begin_offer(VmfSession *session, GError **error)
{
    pthread_mutex_lock(&session->lock);
    bool goes_on = check_cancelled_locked(session, error);
    if (goes_on)
        atomic_store(&session->offer, VMF_OFFER_LEAVING);
    pthread_mutex_unlock(&session->lock);
    return goes_on;
}

void vmf_session_end_offer(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    atomic_store(&session->offer, VMF_OFFER_LEFT);
    pthread_mutex_unlock(&session->lock);
}

bool vmf_session_wait_locked(VmfSession *session, int64_t deadline_ns)
{
    struct timespec until = {deadline_ns / VMF_NS_PER_S, deadline_ns % VMF_NS_PER_S};

    return pthread_cond_timedwait(&session->changed, &session->lock, &until) == 0;
}

/*
 * Before the offer there is nothing to tell the target that a closed channel does not say, so everything that waits is woken by
 * shutting the channels down. Once the offer has left the session's thread answers itself: it has to send ABORT, or to wait for the
 * target's word. In between a cancel leaves the main channel alone, so that ABORT can follow; only where that write does not come to
 * its end is it shut, and ABORT then needs a channel of its own.
 */
void vmf_session_wake(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    VmfOffer offer = atomic_load(&session->offer);
    for (guint i = 0; i < session->channels->len && offer != VMF_OFFER_LEFT; i++)
        vmf_channel_shutdown(g_ptr_array_index(session->channels, i));
    pthread_mutex_unlock(&session->lock);
    if (session->connector && offer == VMF_OFFER_NONE)
        vmf_connector_shutdown(session->connector);
}

void vmf_session_cancel(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    atomic_store(&session->cancelled, true);
    session->leaving |= session->hold != NULL;
    for (guint i = 0; i < session->channels->len && atomic_load(&session->offer) == VMF_OFFER_NONE; i++)
        if (g_ptr_array_index(session->channels, i) != session->spared)
            vmf_channel_shutdown(g_ptr_array_index(session->channels, i));
    vmf_rate_limit_set(session->rate, 0); /* what is still to be said does not wait behind pages that go nowhere */
    bool connecting = session->connector && session->statistics.status <= VMF_STATUS_SETUP;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    if (connecting)
        vmf_connector_shutdown(session->connector);
    if (session->listener)
        vmf_listener_shutdown(session->listener);
}

char *vmf_session_hold(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    char *hold = g_strdup(session->hold);
    pthread_mutex_unlock(&session->lock);
    return hold;
}

void vmf_session_set_hold(VmfSession *session, const char *why)
{
    pthread_mutex_lock(&session->lock);
    g_free(session->hold);
    session->hold = g_strdup(why);
    session->statistics.outcome = why ? VMF_OUTCOME_HELD : VMF_OUTCOME_NONE;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

bool vmf_session_resolve(VmfSession *session, bool run, bool fenced, GError **error)
{
    pthread_mutex_lock(&session->lock);
    bool held = session->hold != NULL, is_restore = session->run != NULL, asks_nobody = !session->is_source && run && !fenced;
    if (held && is_restore && run) {
        pthread_mutex_unlock(&session->lock);
        g_set_error(error, VMF_ERROR, VMF_ERROR_HELD, "restore: resolve: a part of its memory cannot be had: it can only be given up");
        return false;
    }
    if (held && !asks_nobody) {
        session->resolution.pending = true;
        session->resolution.run = run;
        session->resolution.fenced = fenced;
        pthread_cond_broadcast(&session->changed);
    }
    pthread_mutex_unlock(&session->lock);
    if (!held)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "migration: resolve: nothing is held here");
    else if (asks_nobody)
        g_set_error(error, VMF_ERROR, VMF_ERROR_HELD, "migration: resolve: a target cannot ask the source; say that it is fenced");
    return held && !asks_nobody;
}

bool vmf_session_continue(VmfSession *session, GError **error)
{
    pthread_mutex_lock(&session->lock);
    bool waiting = session->statistics.status == VMF_STATUS_PRE_SWITCHOVER;
    session->may_continue |= waiting;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    if (!waiting)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "migration: continue: it does not wait before the switchover");
    return waiting;
}

void vmf_session_set_max_bandwidth(VmfSession *session, uint64_t bytes_per_second)
{
    atomic_store(&session->max_bandwidth, bytes_per_second);
    if (vmf_session_status(session) != VMF_STATUS_DEVICE)
        vmf_rate_limit_set(session->rate, bytes_per_second);
}

void vmf_session_set_downtime_limit(VmfSession *session, uint64_t downtime_limit_ns)
{
    atomic_store(&session->downtime_limit_ns, downtime_limit_ns);
    pthread_mutex_lock(&session->lock);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

/* ---- channels -------------------------------------------------------------------------------------------------------------- */

void vmf_session_add_channel(VmfSession *session, VmfChannel *channel)
{
    pthread_mutex_lock(&session->lock);
    g_ptr_array_add(session->channels, channel);
    if (vmf_session_is_cancelled(session))
        vmf_channel_shutdown(channel);
    pthread_mutex_unlock(&session->lock);
}

void vmf_session_remove_channel(VmfSession *session, VmfChannel *channel)
{
    pthread_mutex_lock(&session->lock);
    g_ptr_array_remove_fast(session->channels, channel);
    pthread_mutex_unlock(&session->lock);
}

void vmf_session_shutdown_channels(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    for (guint i = 0; i < session->channels->len; i++)
        vmf_channel_shutdown(g_ptr_array_index(session->channels, i));
    pthread_mutex_unlock(&session->lock);
}

bool vmf_session_fault(VmfSession *session, const char *point, GError **error)
{
    if (session->killed) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL, "fault point: killed");
        return false;
    }
    if (!session->parameters.fault || !session->parameters.fault(session->parameters.fault_opaque, point))
        return true;
    VMF_TRACE(fault_point, session, point);
    session->killed = true;
    vmf_session_shutdown_channels(session);
    g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL, "fault point %s", point);
    return false;
}

static bool around(VmfSession *session, const char *name, const char *when, GError **error)
{
    if (!session->parameters.fault)
        return true;
    g_autofree char *point = g_strdup_printf("%s.%s", name, when);
    return vmf_session_fault(session, point, error);
}

bool vmf_session_due(VmfSession *session, const char *name, GError **error)
{
    return around(session, name, "due", error);
}

bool vmf_session_done(VmfSession *session, const char *name, GError **error)
{
    return around(session, name, "done", error);
}
