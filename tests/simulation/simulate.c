/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* scripts/simulate: campaigns as long as one likes, and one seed again. */
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/simulation/campaign.h"
#include "tests/simulation/coverage.h"

static int run(World *world, const Plant *plant, uint64_t seed, uint64_t n_schedules)
{
    Campaign campaign = campaign_run(world, plant, seed, n_schedules);

    if (campaign.violation)
        campaign_print(world, plant, campaign.failed_at, stdout);
    printf("%" PRIu64 " schedules from seed %" PRIu64 " in %.1f s (%.0f a second): %s\n", campaign.n_schedules, seed, campaign.seconds,
           (double)campaign.n_schedules / campaign.seconds, campaign.violation ? campaign.violation : "nothing was violated");
    coverage_report(stdout);
    return campaign.violation ? 1 : 0;
}

static void list_plants(void)
{
    for (unsigned i = 0; i < n_plants; i++)
        printf("%-22s %s\n", plants[i].name, plants[i].what);
}

int main(int argc, char **argv)
{
    int64_t n_schedules = 10000000, seed = 1, replay = -1;
    g_autofree char *name = NULL;
    gboolean list = false;
    GOptionEntry options[] = {
        {"schedules", 0, 0, G_OPTION_ARG_INT64, &n_schedules, "how many (10000000)", "N"},
        {"seed", 0, 0, G_OPTION_ARG_INT64, &seed, "the first one (1); the others count up from it", "S"},
        {"replay", 0, 0, G_OPTION_ARG_INT64, &replay, "run this seed alone, made smaller if it fails, and print what happens", "SEED"},
        {"plant", 0, 0, G_OPTION_ARG_STRING, &name, "with a fault in the handover, which has to be found", "NAME"},
        {"list-plants", 0, 0, G_OPTION_ARG_NONE, &list, "the faults that can be planted", NULL},
        {NULL},
    };
    g_autoptr(GOptionContext) context = g_option_context_new("- the handover in a simulated world (docs/handover.rst)");
    g_autoptr(GError) error = NULL;

    g_option_context_add_main_entries(context, options, NULL);
    const Plant *plant = &no_plant;
    if (!g_option_context_parse(context, &argc, &argv, &error) || (name && !(plant = plant_named(name)))) {
        fprintf(stderr, "simulate: %s\n", error ? error->message : "there is no such plant; see --list-plants");
        return 2;
    }
    if (list) {
        list_plants();
        return 0;
    }
    World *world = world_new();
    int status = 0;
    if (replay >= 0)
        campaign_print(world, plant, (uint64_t)replay, stdout);
    else
        status = run(world, plant, (uint64_t)seed, (uint64_t)n_schedules);
    world_free(world);
    return status;
}
