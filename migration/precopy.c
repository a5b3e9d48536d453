/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The live rounds: each owner sends what is pending, then the policy is asked whether to stop, to go on, or to slow the guest. */
#include "migration/source.h"

#include <vmferry/error.h>

#include "stream/clock.h"
#include "stream/trace.h"

#define STATE_NS_PER_OWNER 20000 /* reading, sending and loading one device's state: measured on the reference machine, rounded up */

void vmf_source_throttle(VmfSource *source, unsigned percent)
{
    percent = MIN(percent, source->session->parameters.throttle_maximum);
    if (percent == source->throttle_percent || !vmf_source_guest_ops(source)->throttle)
        return;
    vmf_source_guest_ops(source)->throttle(vmf_guest_opaque(source->session->guest), percent);
    source->throttle_percent = percent;
}

bool vmf_source_pending(VmfSource *source, bool exact, VmfPending *pending, GError **error)
{
    *pending = (VmfPending){0};
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (exact && owner->handlers->pending_exact) {
            if (!owner->handlers->pending_exact(owner->opaque, pending, error))
                return false;
        } else if (owner->handlers->pending_estimate) {
            owner->handlers->pending_estimate(owner->opaque, pending);
        }
    }
    pending->state_ns += STATE_NS_PER_OWNER * source->owners->len;
    return true;
}

static void begin_round(VmfSource *source)
{
    pthread_mutex_lock(&source->session->lock);
    source->session->statistics.round++;
    pthread_mutex_unlock(&source->session->lock);
}

static void end_round(VmfSource *source)
{
    VmfSession *session = source->session;
    const VmfRamSave *save = source->ram.save;

    pthread_mutex_lock(&session->lock);
    if (save && session->statistics.round > 1 && save->pages_resent > source->sent_before_round)
        session->statistics.live_rounds_resent++;
    source->sent_before_round = save ? save->pages_resent : 0;
    pthread_mutex_unlock(&session->lock);
}

static bool announce_round(VmfSource *source, GError **error)
{
    VmfPending pending;

    if (!vmf_source_pending(source, false, &pending, error))
        return false;
    VMF_TRACE(round_begin, source->session, source->session->statistics.round, pending.precopy_bytes);
    return vmf_round_queue(source->main.writer, source->session->statistics.round, pending.precopy_bytes, error) &&
           (source->format.one_way || vmf_u64_send(source->main.writer, VMF_RECORD_PING, (uint64_t)vmf_now_ns(), error));
}

static bool send_round(VmfSource *source, GError **error)
{
    int64_t start = vmf_now_ns();

    begin_round(source);
    if (!announce_round(source, error))
        return false;
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->handlers->save_iterate && !owner->handlers->save_iterate(owner->opaque, &owner->stream, error))
            return false;
    }
    end_round(source);
    VMF_TRACE(round_end, source->session, source->session->statistics.round, vmf_now_ns() - start);
    if (!vmf_session_fault(source->session, "source.round.sent", error))
        return false;
    return vmf_session_check_cancelled(source->session, error);
}

static VmfPolicyInput policy_input(VmfSource *source, const VmfPending *pending)
{
    const VmfSession *session = source->session;
    const VmfRamSave *save = source->ram.save;
    VmfPolicyInput input = {
        .size = sizeof(input),
        .round = session->statistics.round,
        .elapsed_ns = (uint64_t)(vmf_now_ns() - source->begun_ns),
        .pending_bytes = pending->precopy_bytes + pending->stop_bytes,
        .stop_bytes = pending->stop_bytes,
        .rtt_ns = source->return_path ? vmf_return_path_rtt_ns(source->return_path) : 0,
        .state_ns = pending->state_ns,
        .downtime_limit_ns = session->downtime_limit_ns,
        .throttle_percent = source->throttle_percent,
        .can_throttle = vmf_source_guest_ops(source)->throttle != NULL && session->parameters.throttle_maximum > 0,
    };

    if (save) {
        input.rate_bytes_per_second = vmf_flight_rate(save->flight);
        input.dirty_bytes_per_second = save->dirty_bytes_per_second;
        input.sent_bytes = save->payload_bytes;
        input.first_pass_bytes = save->first_pass_bytes;
    }
    /* Nobody acknowledges a one-way stream: what the channel took is all there is to measure. */
    if (source->format.one_way && input.elapsed_ns > 0)
        input.rate_bytes_per_second = (uint64_t)((double)input.sent_bytes * 1e9 / (double)input.elapsed_ns);
    input.forecast_ns = vmf_policy_forecast_ns(&input);
    return input;
}

static void pause_between_rounds(VmfSource *source, uint64_t wait_ns)
{
    VmfSession *session = source->session;
    uint64_t limit = session->downtime_limit_ns;
    int64_t deadline = vmf_now_ns() + (int64_t)MIN(wait_ns, (uint64_t)VMF_NS_PER_S);

    pthread_mutex_lock(&session->lock);
    while (!vmf_session_is_cancelled(session) && session->downtime_limit_ns == limit && vmf_session_wait_locked(session, deadline))
        ;
    pthread_mutex_unlock(&session->lock);
}

/* Asks the policy. *@stop: it is time. */
static bool decide(VmfSource *source, void *policy, bool *stop, GError **error)
{
    VmfSession *session = source->session;
    VmfPending pending;
    VmfPolicyOutput output = {.size = sizeof(output), .throttle_percent = source->throttle_percent};

    if (!vmf_source_pending(source, true, &pending, error))
        return false;
    VmfPolicyInput input = policy_input(source, &pending);
    session->parameters.policy->decide(policy, &input, &output);
    VMF_TRACE(policy_decide, session, input.round, input.pending_bytes, input.rate_bytes_per_second, input.forecast_ns, output.decision);
    vmf_source_throttle(source, output.throttle_percent);
    pthread_mutex_lock(&session->lock);
    session->statistics.expected_downtime_ns = input.forecast_ns == UINT64_MAX ? 0 : input.forecast_ns;
    pthread_mutex_unlock(&session->lock);
    if (output.reason[0])
        vmf_session_event(session, "converge", "%s", output.reason);
    if (output.decision == VMF_DECIDE_GIVE_UP) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "precopy: policy %s gives up: %s", session->parameters.policy->name,
                    output.reason);
        return false;
    }
    *stop = output.decision == VMF_DECIDE_SWITCHOVER && session->statistics.round >= session->parameters.minimum_rounds;
    if (!*stop && output.wait_ns)
        pause_between_rounds(source, output.wait_ns);
    return vmf_session_check_cancelled(session, error);
}

static bool run_rounds(VmfSource *source, void *policy, GError **error)
{
    bool stop = false;

    while (!stop)
        if (!send_round(source, error) || !decide(source, policy, &stop, error))
            return false;
    return true;
}

/* While it waits it goes on sending, so that what is left stays small. */
static bool wait_for_continue(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;
    VmfPending pending;
    bool go = false;

    vmf_session_set_status(session, VMF_STATUS_PRE_SWITCHOVER);
    while (!go) {
        pthread_mutex_lock(&session->lock);
        if (!session->may_continue && !vmf_session_is_cancelled(session))
            vmf_session_wait_locked(session, vmf_now_ns() + 20 * VMF_NS_PER_MS);
        go = session->may_continue;
        pthread_mutex_unlock(&session->lock);
        if (!vmf_session_check_cancelled(session, error) || !vmf_source_pending(source, true, &pending, error) ||
            (!go && pending.precopy_bytes > 0 && !send_round(source, error)))
            return false;
    }
    return true;
}

static bool converge(VmfSource *source, GError **error)
{
    const VmfPolicyOps *ops = source->session->parameters.policy;
    void *policy = ops->create();
    bool done = run_rounds(source, policy, error);

    ops->destroy(policy);
    return done;
}

/* While somebody decides the guest is not kept slow for it; what that costs is made up for afterwards. */
bool vmf_source_precopy(VmfSource *source, GError **error)
{
    if (!converge(source, error))
        return false;
    if (!source->session->parameters.pause_before_switchover)
        return true;
    vmf_source_throttle(source, 0);
    return wait_for_continue(source, error) && converge(source, error);
}
