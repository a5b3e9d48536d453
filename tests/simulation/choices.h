/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every decision of the simulated world, in the order in which it was made. Zero is always the tame one (no fault, no delay),
 * so a schedule that is made smaller is one with more zeros, and what is left of it names what it takes.
 *
 * Three sources: a seed; a list of values by position (replay, and shrinking); a list of labels (a schedule that a person can read and
 * that outlives changes of the world: "the second 'cut' is 1").
 */
#ifndef SIMULATION_CHOICES_H
#define SIMULATION_CHOICES_H

#include <stdbool.h>
#include <stdint.h>

#define CHOICES_MAX 4096 /* beyond it all are tame */

/*
 * What can go wrong, in groups. Each schedule has its own measure of each: never, now and then, often, or exactly once or twice at a place
 * of its own, since a fault at the one right place is what most mistakes need, and many at others hide them.
 */
typedef enum { CRASHES, DISKS, STORAGE, DELAYS, CUTS, ASKS, PEOPLE, ODDITIES, N_GROUPS } Group;

typedef struct {
    const char *label; /* a literal */
    uint16_t value;
} Choice;

/* The @nth (from 1) choice of that label. */
typedef struct {
    const char *label;
    unsigned nth;
    uint16_t value;
} Forced;

typedef struct {
    uint64_t random;
    bool generated; /* from the seed; otherwise from one of the two lists */
    const uint16_t *given;
    unsigned n_given;
    const Forced *forced; /* ends with a NULL label */
    uint32_t rates[N_GROUPS]; /* of 65536 */
    uint32_t shots[N_GROUPS]; /* how many more chances of the group go by until one happens; 0: none will */
    unsigned n_made;
    Choice made[CHOICES_MAX];
} Choices;

void choices_from_seed(Choices *choices, uint64_t seed);
void choices_from_values(Choices *choices, const uint16_t *values, unsigned n_values);
void choices_from_labels(Choices *choices, const Forced *forced);

/* Whether it happens, at the rate of its group. */
bool chance(Choices *choices, Group group, const char *label);
/* 0 … n - 1, each as likely. */
unsigned pick(Choices *choices, const char *label, unsigned n);

/* Makes the list @values smaller as long as @fails says that the schedule still fails in the same way. Returns its length. */
unsigned choices_shrink(uint16_t *values, unsigned n_values, bool (*fails)(void *opaque, const uint16_t *values, unsigned n_values),
                        void *opaque);

#endif
