/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/simulation/campaign.h"

#include <string.h>

Campaign campaign_run(World *world, const Plant *plant, uint64_t first, uint64_t n_schedules)
{
    Campaign campaign = {0};
    int64_t began_ns = vmf_now_ns();

    while (campaign.n_schedules < n_schedules && !campaign.violation) {
        campaign.failed_at = first + campaign.n_schedules++;
        choices_from_seed(&world->choices, campaign.failed_at);
        campaign.violation = world_run(world, plant);
    }
    campaign.seconds = (double)(vmf_now_ns() - began_ns) / 1e9;
    return campaign;
}

typedef struct {
    World *world;
    const Plant *plant;
    const char *violation;
} Again;

static bool fails_again(void *opaque, const uint16_t *values, unsigned n_values)
{
    Again *again = opaque;

    choices_from_values(&again->world->choices, values, n_values);
    const char *violation = world_run(again->world, again->plant);
    return violation && strcmp(violation, again->violation) == 0;
}

static void print_choices(const Choices *choices, FILE *out)
{
    for (unsigned i = 0; i < choices->n_made; i++) {
        unsigned nth = 1;
        for (unsigned j = 0; j < i; j++)
            nth += strcmp(choices->made[j].label, choices->made[i].label) == 0;
        if (choices->made[i].value != 0)
            fprintf(out, "    {\"%s\", %u, %u},\n", choices->made[i].label, nth, choices->made[i].value);
    }
}

void campaign_print(World *world, const Plant *plant, uint64_t seed, FILE *out)
{
    g_autofree uint16_t *values = g_new0(uint16_t, CHOICES_MAX);

    choices_from_seed(&world->choices, seed);
    Again again = {world, plant, world_run(world, plant)};
    unsigned n_values = world->choices.n_made, n_set = 0;
    for (unsigned i = 0; i < n_values; i++)
        n_set += (values[i] = world->choices.made[i].value) != 0;
    if (again.violation)
        n_values = choices_shrink(values, n_values, fails_again, &again);

    world->trace = g_string_new(NULL);
    choices_from_values(&world->choices, values, n_values);
    world_run(world, plant);
    fprintf(out, "seed %" G_GUINT64_FORMAT ": %s\n\n%s\n", seed, again.violation ? again.violation : "nothing is violated",
            world->trace->str);
    fprintf(out, "choices that are not tame (of %u before it was made smaller):\n", n_set);
    print_choices(&world->choices, out);
    g_string_free(world->trace, true);
    world->trace = NULL;
}

const char *campaign_story(World *world, const Plant *plant, const Forced *forced, char **story)
{
    world->trace = story ? g_string_new(NULL) : NULL;
    choices_from_labels(&world->choices, forced);
    const char *violation = world_run(world, plant);
    if (story)
        *story = g_string_free(world->trace, false);
    world->trace = NULL;
    return violation;
}
