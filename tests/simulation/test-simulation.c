/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handover in a simulated world (docs/handover.rst, "How it is held to this"). Many schedules violate nothing; every cell
 * of both tables is walked through; each planted fault is found early. The argument says how many schedules (100000).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/simulation/campaign.h"
#include "tests/simulation/coverage.h"

#define SCHEDULES 100000
#define FOUND_WITHIN 10000

static uint64_t n_schedules = SCHEDULES;
static World *world;

/*
 * One cell takes what chance brings together in few of a hundred thousand schedules: the target's host goes down once started(T) is
 * durable, a person calls it dead, the storage is not free at once, and the host is there again to answer the ABORT.
 */
static const Forced started_while_returning[] = {
    {"until when things go wrong", 1, 1},
    {"a person looks after it", 1, 1},
    {"when (ms)", 1, 5000},
    {"crash after disk sync", 3, 1},
    {"killed, or its host goes down", 1, 1},
    {"what a person does", 1, 1},
    {"the source cannot take its storage", 1, 1},
    {NULL},
};

static void test_nothing_is_violated(void **unused)
{
    coverage_clear();
    Campaign campaign = campaign_run(world, &no_plant, 1, n_schedules);
    const char *violation = campaign_story(world, &no_plant, started_while_returning, NULL);
    if (campaign.violation)
        campaign_print(world, &no_plant, campaign.failed_at, stdout);
    unsigned missing = coverage_report(stdout);
    printf("%u schedules in %.1f s\n", (unsigned)campaign.n_schedules, campaign.seconds);
    assert_null(campaign.violation);
    assert_null(violation);
    if (n_schedules >= SCHEDULES)
        assert_int_equal(missing, 0);
}

static void test_planted_faults_are_found(void **unused)
{
    unsigned n_missed = 0;

    for (unsigned i = 0; i < n_plants; i++) {
        Campaign campaign = campaign_run(world, &plants[i], 1, FOUND_WITHIN);
        printf("%-22s %s %5u: %s\n", plants[i].name, campaign.violation ? "found by schedule" : "NOT FOUND in      ",
               (unsigned)campaign.n_schedules, campaign.violation ? campaign.violation : plants[i].what);
        n_missed += !campaign.violation;
    }
    assert_int_equal(n_missed, 0);
}

static char *printed(const Plant *plant, uint64_t seed)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    campaign_print(world, plant, seed, out);
    fclose(out);
    return text;
}

/* The same seed gives the same story, and a smaller one that fails in the same way, which labels alone bring about again. */
static void test_a_failure_is_replayed(void **unused)
{
    const Plant *plant = plant_named("back-after-run");
    Campaign campaign = campaign_run(world, plant, 1, FOUND_WITHIN);

    assert_non_null(campaign.violation);
    char *once = printed(plant, campaign.failed_at), *again = printed(plant, campaign.failed_at);
    assert_string_equal(once, again);
    assert_non_null(strstr(once, campaign.violation));
    Forced forced[64] = {{0}};
    unsigned n = 0;
    for (unsigned i = 0; i < world->choices.n_made; i++) {
        const Choice *made = &world->choices.made[i];
        unsigned nth = 1;
        for (unsigned j = 0; j < i; j++)
            nth += strcmp(world->choices.made[j].label, made->label) == 0;
        if (made->value != 0 && n + 1 < G_N_ELEMENTS(forced))
            forced[n++] = (Forced){made->label, nth, made->value};
    }
    assert_true(n > 0 && n < 10);
    const char *violation = campaign_story(world, plant, forced, NULL);
    assert_non_null(violation);
    assert_string_equal(violation, campaign.violation);
    free(once);
    free(again);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_violated),
        cmocka_unit_test(test_planted_faults_are_found),
        cmocka_unit_test(test_a_failure_is_replayed),
    };

    if (argc > 1)
        n_schedules = strtoull(argv[1], NULL, 10);
    world = world_new();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    world_free(world);
    return failed;
}
