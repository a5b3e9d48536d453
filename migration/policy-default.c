/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation: when to stop the guest.
 *
 * Everything is judged by one number, the forecast: how long the guest would stand still if it were stopped now. One
 * definition of gain serves throughout: a round gained when it shortened the forecast by at least 20 % and by at least
 * 1 ms.
 *
 * At or below the limit the stop could be taken. Going on makes it shorter for the guest and costs bytes, so it goes on
 * only while the last round gained, for at most EXTRA_ROUNDS rounds and 10 % of the first pass in extra bytes. Two
 * shortcuts: a round that has less than 1 ms of pages to send cannot gain, so it is not sent (an idle guest goes after
 * its first pass); and a guest that rose above the limit again after the stop was put off is stopped at the next
 * chance, without a second wager.
 *
 * Above the limit a round's gain is measured against the best forecast of the current degree of throttling, not against
 * the round before: a guest that writes in bursts would otherwise "gain" each other round for ever. After two rounds
 * without gain the guest is slowed. That bounds the rounds: each gain shortens the best by a fifth, so from a forecast
 * F there are at most log(F / limit) / log(1.25) gains in a degree (33 from half a minute to 20 ms), and at most two
 * rounds without one in each of at most nine degrees. A guest with a steady rate and working set, whose forecast never
 * rises, pays for the gains once and not for each degree.
 *
 * Not before it is known what the guest writes at the degree in force: a throttled guest runs and rests in turns, and
 * rounds that are shorter than those see one or the other. Such rounds do not count above.
 *
 * How much slower: 20 %, then 10 more each time, or at once as much as the figures say is needed to let the guest write
 * half of what the link carries, whichever is more. With a guest that writes d times what the link carries, throttled
 * so that each round is r times the last, the work it loses until the stop grows with (1 - r/d) / (1 - r), which for d
 * > 1 falls with r: hard and short is kinder than soft and long. For d < 1 it is the other way round, and there the
 * steps of 10 are what counts. The dirty rate that can be measured counts a page once a round, so the figure is a lower
 * bound of the throttling needed and the steps go on from it.
 *
 * When the guest is as slow as it may be and two more rounds gain nothing, this policy does not give up: it says so in
 * words with the figures, and goes on, throttled, until somebody cancels or changes a limit. The same if round trips
 * and device state alone are over the limit; then it does not throttle, because that cannot help, and waits between
 * rounds.
 */
#include "migration/ops.h"

#include <vmferry/session.h>

#define NS_PER_S UINT64_C(1000000000)
#define GAIN_NS UINT64_C(1000000)
#define GAIN_PERCENT 20
#define EXTRA_ROUNDS 8
#define EXTRA_PERCENT 10 /* of the bytes of the first pass */
#define ROUNDS_WITHOUT_GAIN 2
#define THROTTLE_FIRST 20 /* percent */
#define THROTTLE_STEP 10
#define THROTTLE_MOST 99
#define WAIT_NS (NS_PER_S / 10) /* between rounds that cannot help */

typedef struct {
    bool judged;               /* @best_ns holds a forecast */
    uint64_t best_ns;          /* shortest forecast since the degree of throttling changed */
    unsigned stale;            /* rounds in a row, above the limit, that gained nothing */
    unsigned asked;            /* percent of throttling that was asked for last */
    bool said;                 /* that it does not converge */
    unsigned extra;            /* rounds that were sent although the stop could have been taken */
    uint64_t extra_from_bytes; /* sent_bytes when the stop could first have been taken */
    bool lost_wager;           /* it was put off, and then could not be taken */
} DefaultPolicy;

/* ---- the forecast ------------------------------------------------------------------------------------------------ */

static uint64_t add_saturating(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static uint64_t send_ns(uint64_t bytes, uint64_t bytes_per_second)
{
    unsigned __int128 ns;

    if (bytes == 0)
        return 0;
    if (bytes_per_second == 0)
        return UINT64_MAX;
    ns = (unsigned __int128)bytes * NS_PER_S / bytes_per_second;
    return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

/* What no round can shorten. */
static uint64_t fixed_ns(const VmfPolicyInput *in)
{
    uint64_t ns = add_saturating(in->rtt_ns, in->rtt_ns / 2);

    ns = add_saturating(ns, in->state_ns);
    return add_saturating(ns, in->journal_ns);
}

uint64_t vmf_policy_forecast_ns(const VmfPolicyInput *input)
{
    return add_saturating(send_ns(input->pending_bytes, input->rate_bytes_per_second), fixed_ns(input));
}

/* What a round would send. */
static uint64_t round_bytes(const VmfPolicyInput *in)
{
    return in->pending_bytes > in->stop_bytes ? in->pending_bytes - in->stop_bytes : 0;
}

static bool gained(uint64_t before_ns, uint64_t now_ns)
{
    uint64_t less_ns = before_ns > now_ns ? before_ns - now_ns : 0;

    return less_ns >= GAIN_NS && less_ns >= before_ns / 100 * GAIN_PERCENT;
}

/* ---- below the limit --------------------------------------------------------------------------------------------- */

static bool extra_bytes_left(const DefaultPolicy *policy, const VmfPolicyInput *in)
{
    uint64_t spent = in->sent_bytes > policy->extra_from_bytes ? in->sent_bytes - policy->extra_from_bytes : 0;

    return add_saturating(spent, round_bytes(in)) <= in->first_pass_bytes / 100 * EXTRA_PERCENT;
}

static bool worth_another_round(DefaultPolicy *policy, const VmfPolicyInput *in, bool last_gained)
{
    if (policy->extra == 0)
        policy->extra_from_bytes = in->sent_bytes;
    return last_gained && !policy->lost_wager && policy->extra < EXTRA_ROUNDS && extra_bytes_left(policy, in) &&
           send_ns(round_bytes(in), in->rate_bytes_per_second) >= GAIN_NS;
}

static void decide_below(DefaultPolicy *policy, const VmfPolicyInput *in, bool last_gained, VmfPolicyOutput *out)
{
    policy->stale = 0;
    policy->said = false;
    if (worth_another_round(policy, in, last_gained))
        policy->extra++;
    else
        out->decision = VMF_DECIDE_SWITCHOVER;
}

/* ---- above it ---------------------------------------------------------------------------------------------------- */

static void say_cannot_help(DefaultPolicy *policy, const VmfPolicyInput *in, uint64_t least_ns, VmfPolicyOutput *out)
{
    out->wait_ns = WAIT_NS;
    if (policy->said)
        return;
    policy->said = true;
    g_snprintf(out->reason, sizeof(out->reason),
               "device state and round trips alone take %.1f ms, the downtime limit is %.1f ms: no round can help; "
               "raise the limit or cancel",
               least_ns / 1e6, in->downtime_limit_ns / 1e6);
}

static void say_no_convergence(DefaultPolicy *policy, const VmfPolicyInput *in, VmfPolicyOutput *out)
{
    char most[16];

    if (policy->said)
        return;
    policy->said = true;
    g_snprintf(most, sizeof(most), " %u %%,", in->throttle_percent);
    g_snprintf(out->reason, sizeof(out->reason),
               "will not converge, because the guest writes %.1f MB/s%s%s and the link carries %.1f MB/s: a stop takes %.0f ms, the "
               "limit is %.0f ms; cancel it or raise a limit",
               in->dirty_bytes_per_second / 1e6, in->can_throttle ? ", throttled by the most allowed," : ", cannot be throttled",
               in->can_throttle ? most : "", in->rate_bytes_per_second / 1e6, in->forecast_ns / 1e6,
               in->downtime_limit_ns / 1e6);
}

/* The percentage at which the guest writes half of what the link carries, by what it wrote at the one in force. */
static unsigned throttle_by_rate(const VmfPolicyInput *in)
{
    double now_share = (100 - MIN(in->throttle_percent, THROTTLE_MOST)) / 100.0;
    double share;

    if (in->dirty_bytes_per_second == 0)
        return 0;
    share = now_share * 0.5 * (double)in->rate_bytes_per_second / (double)in->dirty_bytes_per_second;
    return share >= 1 ? 0 : (unsigned)(100 - share * 100);
}

/* What to ask for next; what is in force when there is no more to have. */
static unsigned next_throttle(const DefaultPolicy *policy, const VmfPolicyInput *in)
{
    unsigned now = MIN(in->throttle_percent, THROTTLE_MOST);
    unsigned most = in->throttle_maximum ? MIN(in->throttle_maximum, THROTTLE_MOST) : THROTTLE_MOST;
    unsigned step = now == 0 ? THROTTLE_FIRST : now + THROTTLE_STEP;

    if (!in->can_throttle || now < policy->asked)
        return now; /* less in force than was asked for: that is the most the session allows */
    return MIN(MAX(step, throttle_by_rate(in)), most);
}

static void slow_down(DefaultPolicy *policy, const VmfPolicyInput *in, VmfPolicyOutput *out)
{
    unsigned next = next_throttle(policy, in);

    if (next <= in->throttle_percent) {
        say_no_convergence(policy, in, out);
        return;
    }
    policy->asked = next;
    policy->stale = 0;
    policy->best_ns = in->forecast_ns; /* what the new degree can do is measured from here */
    out->throttle_percent = next;
    g_snprintf(out->reason, sizeof(out->reason),
               "does not converge yet: the guest writes %.1f MB/s, the link carries %.1f MB/s: the guest is throttled by %u %%",
               in->dirty_bytes_per_second / 1e6, in->rate_bytes_per_second / 1e6, next);
}

static void decide_above(DefaultPolicy *policy, const VmfPolicyInput *in, bool last_gained, bool first,
                         VmfPolicyOutput *out)
{
    uint64_t least_ns = add_saturating(fixed_ns(in), send_ns(in->stop_bytes, in->rate_bytes_per_second));

    if (policy->extra > 0)
        policy->lost_wager = true;
    if (least_ns > in->downtime_limit_ns) {
        policy->stale = 0;
        say_cannot_help(policy, in, least_ns, out);
        return;
    }
    if (last_gained) {
        policy->stale = 0;
        policy->said = false;
    } else if (!first) {
        policy->stale++;
    }
    if (policy->stale >= ROUNDS_WITHOUT_GAIN && in->dirty_is_settled)
        slow_down(policy, in, out);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static void decide(void *opaque, const VmfPolicyInput *in, VmfPolicyOutput *out)
{
    DefaultPolicy *policy = opaque;
    bool first = !policy->judged;
    bool last_gained = first || gained(policy->best_ns, in->forecast_ns);

    out->decision = VMF_DECIDE_ROUND;
    out->throttle_percent = in->throttle_percent;
    if (in->forecast_ns == UINT64_MAX)
        return; /* nothing acknowledged lately: nothing to judge by */
    if (first || in->forecast_ns < policy->best_ns)
        policy->best_ns = in->forecast_ns;
    policy->judged = true;
    if (in->forecast_ns <= in->downtime_limit_ns)
        decide_below(policy, in, last_gained, out);
    else
        decide_above(policy, in, last_gained, first, out);
}

static void *create(void)
{
    return g_new0(DefaultPolicy, 1);
}

static void destroy(void *opaque)
{
    g_free(opaque);
}

const VmfPolicyOps vmf_policy_default = {
    .size = sizeof(VmfPolicyOps),
    .name = "default",
    .create = create,
    .destroy = destroy,
    .decide = decide,
};
