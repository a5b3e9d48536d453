/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The live rounds: each owner sends what is pending, then the policy is asked whether to stop, to go on, or to slow the guest. */
#include "migration/source.h"

#include <vmferry/error.h>

#include "ram/dirty-sample.h"
#include "stream/clock.h"
#include "stream/trace.h"

#define IN_TOUCH_NS (1 * VMF_NS_PER_S)

#define STATE_NS_PER_OWNER 20000 /* reading, sending and loading one device's state: measured on the reference machine, rounded up */
#define SAMPLE_NS (20 * VMF_NS_PER_MS) /* two periods of a throttled vCPU */
#define SAMPLE_SHARE 20                /* of a round, at most one part in so many */

/* @percent: decided; it is in force unless nothing gets through. */
static void set_throttle(VmfSource *source, unsigned percent, bool eased)
{
    unsigned before = source->throttle_is_eased ? 0 : source->throttle_percent, now = eased ? 0 : percent;

    if (now != before)
        vmf_source_guest_ops(source)->throttle(vmf_guest_opaque(source->session->guest), now);
    source->throttle_percent = percent;
    source->throttle_is_eased = eased;
}

void vmf_source_ease(VmfSource *source, bool eased)
{
    if (!vmf_source_guest_ops(source)->throttle)
        return;
    pthread_mutex_lock(&source->throttle_lock);
    set_throttle(source, source->throttle_percent, eased);
    pthread_mutex_unlock(&source->throttle_lock);
}

void vmf_source_throttle(VmfSource *source, unsigned percent)
{
    percent = MIN(percent, source->session->parameters.throttle_maximum);
    if (percent == source->throttle_percent || !vmf_source_guest_ops(source)->throttle)
        return;
    pthread_mutex_lock(&source->throttle_lock);
    set_throttle(source, percent, source->throttle_is_eased);
    pthread_mutex_unlock(&source->throttle_lock);
    if (source->ram.save)
        vmf_dirty_rate_restart(&source->ram.save->dirty_rate);
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
    return !source->destination->begin_round || source->destination->begin_round(source, pending.precopy_bytes, error);
}

/* What is pending of those who are not sent ahead. */
static uint64_t pending_behind(VmfSource *source)
{
    VmfPending pending = {0};

    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (!owner->handlers->save_ahead && owner->handlers->pending_estimate)
            owner->handlers->pending_estimate(owner->opaque, &pending);
    }
    return pending.precopy_bytes;
}

static bool send_ahead(VmfSource *source, GError **error)
{
    uint64_t behind = pending_behind(source);

    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->handlers->save_ahead && !owner->handlers->save_ahead(owner->opaque, &owner->stream, behind, error))
            return false;
    }
    return vmf_session_fault(source->session, "source.ahead.sent", error);
}

static bool send_round(VmfSource *source, GError **error)
{
    int64_t start = vmf_now_ns();

    begin_round(source);
    if (!announce_round(source, error))
        return false;
    if (source->session->statistics.round == 1 && !send_ahead(source, error))
        return false;
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->handlers->save_iterate && !owner->handlers->save_iterate(owner->opaque, &owner->stream, error))
            return false;
    }
    end_round(source);
    source->round_ns = vmf_now_ns() - start;
    VMF_TRACE(round_end, source->session, source->session->statistics.round, source->round_ns);
    if (!vmf_session_fault(source->session, "source.round.sent", error))
        return false;
    return vmf_session_check_cancelled(source->session, error);
}

/* Nobody acknowledges what goes one way: what was taken is all there is to measure. */
uint64_t vmf_source_rate(const VmfSource *source)
{
    int64_t elapsed_ns = vmf_now_ns() - source->begun_ns;

    if (!source->format.one_way)
        return vmf_flight_rate(source->ram.save->flight);
    return elapsed_ns > 0 ? (uint64_t)((double)source->ram.save->payload_bytes * 1e9 / (double)elapsed_ns) : 0;
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
        .throttle_maximum = session->parameters.throttle_maximum,
    };

    if (save) {
        input.rate_bytes_per_second = vmf_source_rate(source);
        input.dirty_bytes_per_second = save->dirty_rate.bytes_per_second;
        input.dirty_is_settled = save->dirty_rate.settled;
        input.sent_bytes = save->payload_bytes;
        input.first_pass_bytes = save->first_pass_bytes;
    }
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

/* ---- throttling, measured ------------------------------------------------------------------------------------------------- */

/* Above the limit, where it is to be decided whether to throttle and seen what that does, and where it costs little. */
static bool is_worth_a_sample(const VmfSource *source, const VmfPolicyInput *input)
{
    const VmfGuestOps *ops = vmf_source_guest_ops(source);

    return source->ram.save && input->can_throttle && input->forecast_ns > input->downtime_limit_ns &&
           source->round_ns >= SAMPLE_SHARE * SAMPLE_NS && ops->is_running(vmf_guest_opaque(source->session->guest));
}

static bool sample_dirty_rate(VmfSource *source, GError **error)
{
    g_autoptr(VmfDirtySample) sample = vmf_dirty_sample_begin(source->ram.save);
    int64_t deadline = vmf_now_ns() + SAMPLE_NS;

    if (!sample)
        return true;
    pthread_mutex_lock(&source->session->lock);
    while (!vmf_session_is_cancelled(source->session) && vmf_now_ns() < deadline)
        vmf_session_wait_locked(source->session, deadline);
    pthread_mutex_unlock(&source->session->lock);
    return vmf_session_check_cancelled(source->session, error) && vmf_dirty_sample_end(sample, error);
}

/* Once it has been measured at a new degree. */
static void tell_effect(VmfSource *source, const VmfPolicyInput *input)
{
    VmfSession *session = source->session;
    VmfStatistics *statistics = &session->statistics;
    VmfThrottleStep step = {source->throttle_percent, source->dirty_before_throttle, input->dirty_bytes_per_second};

    if (!source->throttle_is_new || !input->dirty_is_settled)
        return;
    source->throttle_is_new = false;
    pthread_mutex_lock(&session->lock);
    if (statistics->n_throttle_steps == VMF_THROTTLE_STEPS_MAX) {
        statistics->n_throttle_steps--;
        memmove(statistics->throttle_steps, statistics->throttle_steps + 1, sizeof(step) * (VMF_THROTTLE_STEPS_MAX - 1));
    }
    statistics->throttle_steps[statistics->n_throttle_steps++] = step;
    pthread_mutex_unlock(&session->lock);
    vmf_session_event(session, "converge.throttle", "throttled by %u %% the guest writes %.1f MB/s, before that it wrote %.1f MB/s",
                      step.percent, (double)step.dirty_after_bytes_per_second / 1e6, (double)step.dirty_before_bytes_per_second / 1e6);
}

static void throttle_as_decided(VmfSource *source, unsigned percent, uint64_t dirty_bytes_per_second)
{
    unsigned before = source->throttle_percent;

    vmf_source_throttle(source, percent);
    if (source->throttle_percent <= before)
        return;
    source->throttle_is_new = true;
    source->dirty_before_throttle = dirty_bytes_per_second;
}

/* ---- rounds ---------------------------------------------------------------------------------------------------------------- */

static void note_decision(VmfSession *session, const VmfPolicyInput *input, const VmfPolicyOutput *output)
{
    pthread_mutex_lock(&session->lock);
    session->statistics.expected_downtime_ns = input->forecast_ns == UINT64_MAX ? 0 : input->forecast_ns;
    if (output->reason[0])
        g_strlcpy(session->statistics.converge_reason, output->reason, sizeof(session->statistics.converge_reason));
    pthread_mutex_unlock(&session->lock);
    if (output->reason[0])
        vmf_session_event(session, "converge", "%s", output->reason);
}

/* What the policy is told. *@pending is as of now. */
static bool measure(VmfSource *source, VmfPending *pending, VmfPolicyInput *input, GError **error)
{
    if (!vmf_source_pending(source, true, pending, error))
        return false;
    *input = policy_input(source, pending);
    if (is_worth_a_sample(source, input)) {
        if (!sample_dirty_rate(source, error) || !vmf_source_pending(source, false, pending, error))
            return false;
        *input = policy_input(source, pending);
    }
    tell_effect(source, input);
    return true;
}

/* The log audit's last look takes a while, in which the guest writes: then a round follows. */
static bool look_once_more(VmfSource *source, bool *stop, GError **error)
{
    const VmfGuestOps *ops = vmf_source_guest_ops(source);
    bool looked;

    if (!source->ram.save || !ops->is_running(vmf_guest_opaque(source->session->guest)))
        return true;
    if (!vmf_ram_save_last_look(source->ram.save, &looked, error))
        return false;
    *stop = !looked;
    return true;
}

/* It stands anyhow: how long the stop will take is nothing to wait for. */
static bool has_no_downtime_to_lose(const VmfSource *source, const VmfPending *pending)
{
    const VmfSession *session = source->session;

    return pending->precopy_bytes == 0 && session->statistics.round >= session->parameters.minimum_rounds &&
           !vmf_source_guest_ops(source)->is_running(vmf_guest_opaque(session->guest));
}

/* Asks the policy. *@stop: it is time. */
static bool decide(VmfSource *source, void *policy, bool *stop, GError **error)
{
    VmfSession *session = source->session;
    VmfPending pending;
    VmfPolicyOutput output = {.size = sizeof(output), .throttle_percent = source->throttle_percent};

    VmfPolicyInput input;

    if (!measure(source, &pending, &input, error))
        return false;
    *stop = has_no_downtime_to_lose(source, &pending);
    if (*stop)
        return vmf_session_check_cancelled(session, error);
    session->parameters.policy->decide(policy, &input, &output);
    VMF_TRACE(policy_decide, session, input.round, input.pending_bytes, input.rate_bytes_per_second, input.forecast_ns, output.decision);
    throttle_as_decided(source, output.throttle_percent, input.dirty_bytes_per_second);
    note_decision(session, &input, &output);
    if (output.decision == VMF_DECIDE_GIVE_UP) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "precopy: policy %s gives up: %s", session->parameters.policy->name,
                    output.reason);
        return false;
    }
    *stop = output.decision == VMF_DECIDE_SWITCHOVER && session->statistics.round >= session->parameters.minimum_rounds;
    if (*stop && !look_once_more(source, stop, error))
        return false;
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

/* A target gives up a source that says nothing for long. */
static bool stay_in_touch(VmfSource *source, int64_t *said_ns, GError **error)
{
    int64_t now = vmf_now_ns();

    if (source->format.one_way || now - *said_ns < IN_TOUCH_NS)
        return true;
    *said_ns = now;
    return vmf_u64_send(source->main.writer, VMF_RECORD_PING, (uint64_t)now, error);
}

/* While it waits it goes on sending, so that what is left stays small. */
static bool wait_until(VmfSource *source, bool (*may_go)(VmfSource *source, bool *go, GError **error), GError **error)
{
    VmfSession *session = source->session;
    int64_t said_ns = vmf_now_ns();
    VmfPending pending;
    bool go = false;

    for (;;) {
        if (!may_go(source, &go, error))
            return false;
        if (go)
            return true;
        pthread_mutex_lock(&session->lock);
        if (!session->may_continue && !vmf_session_is_cancelled(session))
            vmf_session_wait_locked(session, vmf_now_ns() + 20 * VMF_NS_PER_MS);
        pthread_mutex_unlock(&session->lock);
        if (!vmf_session_check_cancelled(session, error) || !vmf_source_pending(source, true, &pending, error) ||
            (pending.precopy_bytes > 0 && !send_round(source, error)) || !stay_in_touch(source, &said_ns, error))
            return false;
    }
}

static bool told_to_go_on(VmfSource *source, bool *go, GError **error)
{
    pthread_mutex_lock(&source->session->lock);
    *go = source->session->may_continue;
    pthread_mutex_unlock(&source->session->lock);
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

/* While it waits the guest is not kept slow for it; what that costs is made up for afterwards. */
static void let_go(VmfSource *source)
{
    vmf_source_throttle(source, 0);
    source->throttle_is_new = false;
}

static bool wait_for_disks(VmfSource *source, GError **error)
{
    bool whole;

    if (!vmf_source_disks_are_whole(source, &whole, error))
        return false;
    if (whole)
        return true;
    let_go(source);
    return wait_until(source, vmf_source_disks_are_whole, error) && converge(source, error);
}

/* The guest runs on meanwhile, and is brought close to its stop anew. */
static bool wait_for_continue(VmfSource *source, GError **error)
{
    let_go(source); /* ahead of the status: who sees that finds the guest at full speed */
    vmf_session_set_status(source->session, VMF_STATUS_PRE_SWITCHOVER);
    if (!wait_until(source, told_to_go_on, error))
        return false;
    vmf_session_set_status(source->session, VMF_STATUS_ACTIVE);
    return converge(source, error);
}

bool vmf_source_precopy(VmfSource *source, GError **error)
{
    return converge(source, error) && wait_for_disks(source, error) &&
           (!source->session->parameters.pause_before_switchover || wait_for_continue(source, error));
}
