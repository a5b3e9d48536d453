/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The default policy, without a guest: first the forecast, then stories of a few rounds told in forecasts, then a model
 * of a guest that is run to its end over a grid of dirty rates, working sets, links and limits.
 */
#include <vmferry/session.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#define MS UINT64_C(1000000)
#define MB UINT64_C(1000000)
#define GB (1000 * MB)

/* ---- the forecast ------------------------------------------------------------------------------------------------ */

static void test_forecast(void **state)
{
    VmfPolicyInput in = {.size = sizeof(in), .pending_bytes = 10 * MB, .rate_bytes_per_second = GB};

    assert_int_equal(vmf_policy_forecast_ns(&in), 10 * MS);
    in.rtt_ns = 2 * MS;
    assert_int_equal(vmf_policy_forecast_ns(&in), 13 * MS);
    in.state_ns = 5 * MS;
    in.journal_ns = 7;
    assert_int_equal(vmf_policy_forecast_ns(&in), 18 * MS + 7);
    in.stop_bytes = 4 * MB; /* is part of what is pending */
    assert_int_equal(vmf_policy_forecast_ns(&in), 18 * MS + 7);
}

static void test_forecast_at_the_edges(void **state)
{
    VmfPolicyInput in = {.size = sizeof(in)};

    assert_int_equal(vmf_policy_forecast_ns(&in), 0);
    in.pending_bytes = 1;
    assert_true(vmf_policy_forecast_ns(&in) == UINT64_MAX);
    in.rate_bytes_per_second = 1;
    assert_int_equal(vmf_policy_forecast_ns(&in), 1000 * MS);
    in.pending_bytes = UINT64_MAX;
    assert_true(vmf_policy_forecast_ns(&in) == UINT64_MAX);
    in.rate_bytes_per_second = UINT64_MAX;
    assert_int_equal(vmf_policy_forecast_ns(&in), 1000 * MS);
    in.rtt_ns = UINT64_MAX;
    assert_true(vmf_policy_forecast_ns(&in) == UINT64_MAX);
    in.rtt_ns = 0;
    in.state_ns = in.journal_ns = UINT64_MAX - 5;
    assert_true(vmf_policy_forecast_ns(&in) == UINT64_MAX);
}

/* ---- stories ----------------------------------------------------------------------------------------------------- */

/* What is pending after a round, in ms of the link; what is expected then. */
typedef struct {
    double pending_ms;
    VmfDecision decision;
    unsigned throttle_percent;
    const char *reason; /* part of it; NULL: nothing is said */
} Step;

typedef struct {
    void *policy;
    VmfPolicyInput in;
} Talk;

static void talk_begin(Talk *talk, uint64_t limit_ms)
{
    memset(talk, 0, sizeof(*talk));
    talk->policy = vmf_policy_default.create();
    talk->in = (VmfPolicyInput){.size = sizeof(VmfPolicyInput),
                                .rate_bytes_per_second = GB,
                                .dirty_bytes_per_second = GB / 10,
                                .dirty_is_settled = true,
                                .sent_bytes = 100 * GB,
                                .first_pass_bytes = 100 * GB,
                                .downtime_limit_ns = limit_ms * MS,
                                .can_throttle = true};
}

static VmfPolicyOutput talk_next(Talk *talk, double pending_ms)
{
    VmfPolicyOutput out;

    talk->in.round++;
    talk->in.pending_bytes = pending_ms * (double)MB;
    talk->in.forecast_ns = vmf_policy_forecast_ns(&talk->in);
    memset(&out, 0, sizeof(out));
    out.size = sizeof(out);
    vmf_policy_default.decide(talk->policy, &talk->in, &out);
    talk->in.throttle_percent = out.throttle_percent;
    talk->in.sent_bytes += talk->in.pending_bytes;
    return out;
}

static void talk_end(Talk *talk)
{
    vmf_policy_default.destroy(talk->policy);
}

static void tell(Talk *talk, const Step *steps, size_t n_steps)
{
    for (size_t i = 0; i < n_steps; i++) {
        VmfPolicyOutput out = talk_next(talk, steps[i].pending_ms);

        if (out.decision != steps[i].decision || out.throttle_percent != steps[i].throttle_percent)
            fail_msg("step %zu: decision %d, throttle %u %%, '%s'", i, out.decision, out.throttle_percent, out.reason);
        if (steps[i].reason ? !strstr(out.reason, steps[i].reason) : out.reason[0] != '\0')
            fail_msg("step %zu: '%s'", i, out.reason);
    }
}

#define STORY(limit_ms, change, ...)                                                                                   \
    do {                                                                                                               \
        static const Step steps[] = {__VA_ARGS__};                                                                     \
        Talk talk;                                                                                                     \
        talk_begin(&talk, limit_ms);                                                                                   \
        change;                                                                                                        \
        tell(&talk, steps, G_N_ELEMENTS(steps));                                                                       \
        talk_end(&talk);                                                                                               \
    } while (0)

#define ROUND VMF_DECIDE_ROUND
#define STOP VMF_DECIDE_SWITCHOVER

static void test_idle_guest_goes_after_its_first_pass(void **state)
{
    STORY(20, , {0, STOP, 0, NULL});
    STORY(20, talk.in.rtt_ns = 5 * MS, {0, STOP, 0, NULL});
    STORY(20, , {0.9, STOP, 0, NULL}); /* a few pages: less than a round could gain */
    STORY(20, talk.in.rate_bytes_per_second = 0, {0, STOP, 0, NULL});
    STORY(20, talk.in.stop_bytes = 15 * MB, {15, STOP, 0, NULL}); /* nothing of it could be sent before */
}

static void test_converging_guest(void **state)
{
    /* below the limit it goes on while that pays, and not for a round that could not gain a millisecond */
    STORY(20, , {400, ROUND, 0, NULL}, {100, ROUND, 0, NULL}, {25, ROUND, 0, NULL}, {6, ROUND, 0, NULL},
          {1.5, ROUND, 0, NULL}, {0.4, STOP, 0, NULL});
    /* the first round below that gains less than a fifth is the last */
    STORY(20, , {400, ROUND, 0, NULL}, {19, ROUND, 0, NULL}, {16, STOP, 0, NULL});
    /* a fifth that is less than a millisecond does not count */
    STORY(20, , {400, ROUND, 0, NULL}, {3, ROUND, 0, NULL}, {2.1, STOP, 0, NULL});
    /* it starts below */
    STORY(20, , {18, ROUND, 0, NULL}, {17, STOP, 0, NULL});
}

static void test_extra_rounds_are_bounded(void **state)
{
    STORY(1000, , {900, ROUND, 0, NULL}, {700, ROUND, 0, NULL}, {550, ROUND, 0, NULL}, {430, ROUND, 0, NULL},
          {340, ROUND, 0, NULL}, {270, ROUND, 0, NULL}, {210, ROUND, 0, NULL}, {160, ROUND, 0, NULL},
          {120, STOP, 0, NULL});
    /* the next round would bring the extra bytes to more than a tenth of the first pass */
    STORY(1000, talk.in.first_pass_bytes = 20 * GB, {900, ROUND, 0, NULL}, {700, ROUND, 0, NULL}, {550, STOP, 0, NULL});
    STORY(1000, talk.in.first_pass_bytes = 0, {900, STOP, 0, NULL});
}

static void test_a_lost_wager_is_not_repeated(void **state)
{
    STORY(20, , {100, ROUND, 0, NULL}, {18, ROUND, 0, NULL}, {50, ROUND, 0, NULL}, {9, STOP, 0, NULL});
}

static void test_throttling_above_the_limit(void **state)
{
    /* two rounds without gain, then 20 %; two more, then 30 */
    STORY(20, , {400, ROUND, 0, NULL}, {390, ROUND, 0, NULL}, {395, ROUND, 20, "throttled by 20 %"},
          {380, ROUND, 20, NULL}, {370, ROUND, 30, "throttled by 30 %"}, {250, ROUND, 30, NULL}, {240, ROUND, 30, NULL},
          {100, ROUND, 30, NULL}, {18, ROUND, 30, NULL}, {3, ROUND, 30, NULL}, {2.9, STOP, 30, NULL});
    /* a quiet moment is no measure for what comes after a new degree */
    STORY(20, , {400, ROUND, 0, NULL}, {100, ROUND, 0, NULL}, {400, ROUND, 0, NULL}, {400, ROUND, 20, "throttled"},
          {250, ROUND, 20, NULL}, {190, ROUND, 20, NULL}, {140, ROUND, 20, NULL});
    /* a guest that works in bursts gains nothing by its ups and downs */
    STORY(20, , {400, ROUND, 0, NULL}, {800, ROUND, 0, NULL}, {400, ROUND, 20, "throttled"});
}

static void test_throttling_by_what_the_figures_say(void **state)
{
    /* four times the link: half of the link is an eighth of what it writes */
    STORY(20, talk.in.dirty_bytes_per_second = 4 * GB, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL},
          {400, ROUND, 87, "the guest writes 4000.0 MB/s, the link carries 1000.0 MB/s"}, {400, ROUND, 87, NULL},
          {400, ROUND, 98, "throttled by 98 %"}, {400, ROUND, 98, NULL}, {400, ROUND, 99, "99 %"},
          {400, ROUND, 99, NULL}, {400, ROUND, 99, "will not converge"}, {400, ROUND, 99, NULL});
}

/* Rounds shorter than the turns of a throttled guest say nothing about what it writes. */
static void test_what_is_not_known_yet_is_waited_for(void **state)
{
    STORY(20, talk.in.dirty_is_settled = false, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL},
          {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL});
    STORY(20, talk.in.dirty_is_settled = false, {400, ROUND, 0, NULL}, {100, ROUND, 0, NULL}, {10, ROUND, 0, NULL}, {9.9, STOP, 0, NULL});
}

static void test_no_convergence_is_said_once_with_the_reason(void **state)
{
    STORY(20, talk.in.can_throttle = false, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL},
          {400, ROUND, 0,
           "will not converge, because the guest writes 100.0 MB/s, cannot be throttled and the link carries 1000.0 MB/s: a stop takes "},
          {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL}, {100, ROUND, 0, NULL}, {100, ROUND, 0, NULL},
          {100, ROUND, 0, "will not converge"}, {0, STOP, 0, NULL});
}

/* The session has cut what was asked for: that was the most. */
static void test_throttle_maximum(void **state)
{
    Talk talk;

    talk_begin(&talk, 20);
    for (unsigned i = 0; i < 5; i++) {
        VmfPolicyOutput out = talk_next(&talk, 400);

        assert_int_equal(out.decision, ROUND);
        talk.in.throttle_percent = MIN(out.throttle_percent, 15);
        assert_int_equal(out.throttle_percent, i < 2 ? 0 : i == 2 ? 20 : 15);
        if (i == 4)
            assert_non_null(strstr(out.reason, "throttled by the most allowed, 15 %, and the link carries"));
    }
    talk_end(&talk);
}

static void test_what_no_round_can_help(void **state)
{
    Talk talk;

    talk_begin(&talk, 20);
    talk.in.state_ns = 35 * MS;
    for (unsigned i = 0; i < 10; i++) {
        VmfPolicyOutput out = talk_next(&talk, 0);

        assert_int_equal(out.decision, ROUND);
        assert_int_equal(out.throttle_percent, 0);
        assert_true(out.wait_ns >= MS);
        if (i == 0)
            assert_non_null(strstr(out.reason, "take 35.0 ms, the downtime limit is 20.0 ms: no round can help"));
        else
            assert_string_equal(out.reason, "");
    }
    talk.in.downtime_limit_ns = 40 * MS;
    assert_int_equal(talk_next(&talk, 0).decision, STOP);
    talk_end(&talk);
}

/* A link that carries nothing says nothing about the guest. */
static void test_silent_link(void **state)
{
    STORY(20, talk.in.rate_bytes_per_second = 0, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL},
          {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL}, {400, ROUND, 0, NULL});
}

static void test_extreme_input(void **state)
{
    static const uint64_t values[] = {0, 1, GB, UINT64_MAX - 1, UINT64_MAX};
    Talk talk;

    talk_begin(&talk, 20);
    for (unsigned i = 0; i < 5 * 5 * 5 * 5 * 5; i++) {
        VmfPolicyOutput out = {.size = sizeof(out)};

        talk.in.pending_bytes = values[i % 5];
        talk.in.stop_bytes = values[i / 5 % 5];
        talk.in.rate_bytes_per_second = values[i / 25 % 5];
        talk.in.dirty_bytes_per_second = values[i / 125 % 5];
        talk.in.sent_bytes = talk.in.first_pass_bytes = talk.in.rtt_ns = values[i / 625 % 5];
        talk.in.forecast_ns = vmf_policy_forecast_ns(&talk.in);
        vmf_policy_default.decide(talk.policy, &talk.in, &out);
        assert_true(out.throttle_percent <= 99);
        assert_true(out.decision == ROUND || talk.in.forecast_ns <= talk.in.downtime_limit_ns);
        talk.in.throttle_percent = out.throttle_percent;
    }
    talk_end(&talk);
}

/* ---- a model of a guest ------------------------------------------------------------------------------------------ */

/*
 * A guest writes pages at a steady rate, evenly over its working set: after a time t the share 1 - exp(-rate * t / set)
 * of the set is dirty. A round sends what was dirty when it began. Throttling scales the rate.
 */
typedef struct {
    double dirty; /* bytes a second */
    double set;   /* bytes */
    double link;  /* bytes a second */
    double limit_ms;
    double fixed_ms;
    unsigned throttle_maximum; /* 0: cannot be throttled */
} Model;

typedef struct {
    unsigned rounds;
    unsigned throttle_percent;
    bool switched_over;
    bool said_no_convergence;
    double forecast_ms;
    double first_forecast_ms;
} Ending;

#define MODEL_RAM 16e9
#define MODEL_ROUNDS_MAX 400

static double model_round(const Model *model, double pending, unsigned throttle_percent, VmfPolicyInput *in)
{
    double seconds = pending / model->link;
    double dirty = model->set * -expm1(-model->dirty * (100 - throttle_percent) / 100 * seconds / model->set);

    in->round++;
    in->sent_bytes += pending;
    in->elapsed_ns += seconds * 1e9;
    in->dirty_bytes_per_second = seconds > 0 ? dirty / seconds : 0;
    in->pending_bytes = dirty;
    in->forecast_ns = vmf_policy_forecast_ns(in);
    return dirty;
}

static Ending model_run(const Model *model)
{
    void *policy = vmf_policy_default.create();
    VmfPolicyInput in = {.size = sizeof(in),
                         .rate_bytes_per_second = model->link,
                         .first_pass_bytes = MODEL_RAM,
                         .state_ns = model->fixed_ms * 1e6,
                         .dirty_is_settled = true,
                         .downtime_limit_ns = model->limit_ms * 1e6,
                         .can_throttle = model->throttle_maximum > 0};
    double pending = MODEL_RAM;
    Ending end = {0};

    while (!end.switched_over && !end.said_no_convergence && in.round < MODEL_ROUNDS_MAX) {
        VmfPolicyOutput out = {.size = sizeof(out)};

        pending = model_round(model, pending, in.throttle_percent, &in);
        if (in.round == 1)
            end.first_forecast_ms = in.forecast_ns / 1e6;
        vmf_policy_default.decide(policy, &in, &out);
        in.throttle_percent = MIN(out.throttle_percent, model->throttle_maximum);
        end.switched_over = out.decision == VMF_DECIDE_SWITCHOVER;
        end.said_no_convergence = strstr(out.reason, "will not converge") || strstr(out.reason, "no round can help");
    }
    end.rounds = in.round;
    end.throttle_percent = in.throttle_percent;
    end.forecast_ms = in.forecast_ns / 1e6;
    vmf_policy_default.destroy(policy);
    return end;
}

/* The bound that policy-default.c states for a steady guest: gains, two rounds a degree, extra rounds, and the first
 * pass. */
static unsigned stated_rounds(const Model *model, const Ending *end)
{
    double gains = fmax(0, log(end->first_forecast_ms / model->limit_ms) / log(1.25));
    unsigned degrees = model->throttle_maximum == 0 ? 1 : 10;

    return ceil(gains) + 2 * degrees + 8 + 1 + 1;
}

/* What a guest comes to when it is slowed by the most: the share x of its set with x = 1 - exp(-r x). */
static double last_forecast_ms(const Model *model)
{
    double ratio = model->dirty * (100 - model->throttle_maximum) / 100 / model->link;
    double share = 1;

    for (unsigned i = 0; i < 10000; i++)
        share = -expm1(-ratio * share);
    return share * model->set / model->link * 1000 + model->fixed_ms;
}

static void check_model(const Model *model)
{
    Ending end = model_run(model);
    bool fine = end.switched_over != end.said_no_convergence && end.rounds <= stated_rounds(model, &end);

    if (end.switched_over && end.forecast_ms > model->limit_ms)
        fine = false;
    if (end.switched_over && last_forecast_ms(model) > model->limit_ms * 1.001)
        fine = false;
    /* it may only say so when slowing is used up, or when it would not help */
    if (end.said_no_convergence && model->fixed_ms <= model->limit_ms &&
        end.throttle_percent != model->throttle_maximum)
        fine = false;
    /* a guest that loses a good fifth each round by itself is not slowed */
    if (model->dirty < 0.75 * model->link && model->fixed_ms == 0 && model->limit_ms >= 5 &&
        (end.throttle_percent != 0 || !end.switched_over))
        fine = false;
    if (!fine)
        fail_msg("dirty %g set %g link %g limit %g ms fixed %g ms maximum %u: %u rounds of %u, throttle %u, %s, "
                 "forecast %g ms",
                 model->dirty, model->set, model->link, model->limit_ms, model->fixed_ms, model->throttle_maximum,
                 end.rounds, stated_rounds(model, &end), end.throttle_percent,
                 end.switched_over ? "stopped" : "not stopped", end.forecast_ms);
}

static void test_model_grid(void **state)
{
    static const double dirties[] = {0, 4e3, 1e6, 5e7, 2e8, 7e8, 9e8, 1e9, 1.3e9, 4e9, 2e10, 1e12};
    static const double sets[] = {4e3, 1e6, 1e8, 1e9, 16e9};
    static const double links[] = {1e6, 1.2e7, 1.2e8, 1e9, 1e10};
    static const double limits[] = {2, 20, 300, 5000};
    static const double fixed[] = {0, 0.5, 10, 30};
    static const unsigned maxima[] = {0, 15, 50, 99};

    for (unsigned d = 0; d < G_N_ELEMENTS(dirties); d++)
        for (unsigned s = 0; s < G_N_ELEMENTS(sets); s++)
            for (unsigned l = 0; l < G_N_ELEMENTS(links); l++)
                for (unsigned m = 0; m < G_N_ELEMENTS(limits); m++)
                    for (unsigned f = 0; f < G_N_ELEMENTS(fixed); f++)
                        for (unsigned t = 0; t < G_N_ELEMENTS(maxima); t++)
                            check_model(&(Model){dirties[d], sets[s], links[l], limits[m], fixed[f], maxima[t]});
}

static void test_model_idle_guest(void **state)
{
    Ending end = model_run(&(Model){.dirty = 0, .set = 1e9, .link = 1e9, .limit_ms = 20, .throttle_maximum = 99});

    assert_true(end.switched_over);
    assert_int_equal(end.rounds, 1);
}

static void test_model_slow_link(void **state)
{
    /* 100 Mbit/s and a guest that writes 8 MB/s: slow, but it gets there by itself */
    Ending end = model_run(&(Model){.dirty = 8e6, .set = 1e9, .link = 12e6, .limit_ms = 300, .throttle_maximum = 99});

    assert_true(end.switched_over);
    assert_int_equal(end.throttle_percent, 0);
}

static void test_model_busy_guest_ends_by_throttling(void **state)
{
    Model model = {.dirty = 4e9, .set = 8e9, .link = 1e9, .limit_ms = 20, .throttle_maximum = 99};
    Ending end = model_run(&model);

    assert_true(end.switched_over);
    assert_true(end.throttle_percent >= 80);
    model.throttle_maximum = 0;
    end = model_run(&model);
    assert_true(end.said_no_convergence);
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test(test_forecast),
        cmocka_unit_test(test_forecast_at_the_edges),
        cmocka_unit_test(test_idle_guest_goes_after_its_first_pass),
        cmocka_unit_test(test_converging_guest),
        cmocka_unit_test(test_extra_rounds_are_bounded),
        cmocka_unit_test(test_a_lost_wager_is_not_repeated),
        cmocka_unit_test(test_throttling_above_the_limit),
        cmocka_unit_test(test_throttling_by_what_the_figures_say),
        cmocka_unit_test(test_what_is_not_known_yet_is_waited_for),
        cmocka_unit_test(test_no_convergence_is_said_once_with_the_reason),
        cmocka_unit_test(test_throttle_maximum),
        cmocka_unit_test(test_what_no_round_can_help),
        cmocka_unit_test(test_silent_link),
        cmocka_unit_test(test_extreme_input),
        cmocka_unit_test(test_model_grid),
        cmocka_unit_test(test_model_idle_guest),
        cmocka_unit_test(test_model_slow_link),
        cmocka_unit_test(test_model_busy_guest_ends_by_throttling),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
