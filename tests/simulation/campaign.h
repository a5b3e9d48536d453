/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Many schedules, and what is done with one that fails: it is run again, made smaller, and printed. */
#ifndef SIMULATION_CAMPAIGN_H
#define SIMULATION_CAMPAIGN_H

#include <stdio.h>

#include "tests/simulation/world.h"

typedef struct {
    uint64_t n_schedules; /* that were run */
    uint64_t failed_at;   /* the seed that failed; its number in the campaign is n_schedules */
    const char *violation; /* NULL: none failed */
    double seconds;
} Campaign;

/* Seeds @first, @first + 1, … until one fails. */
Campaign campaign_run(World *world, const Plant *plant, uint64_t first, uint64_t n_schedules);
/* Runs @seed again, makes it smaller where it fails, and prints what is left of it as a story and as choices. */
void campaign_print(World *world, const Plant *plant, uint64_t seed, FILE *out);
/* A schedule by labels. Returns what it violates; @story (may be NULL) gets its trace, to be freed. */
const char *campaign_story(World *world, const Plant *plant, const Forced *forced, char **story);

#endif
