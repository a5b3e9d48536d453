/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/simulation/choices.h"

#include <glib.h>
#include <string.h>

/* splitmix64: every seed is as good as any other, so that they can be counted. */
static uint64_t next(Choices *choices)
{
    uint64_t z = choices->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint32_t next_shot(Choices *choices)
{
    uint64_t bits = next(choices);

    return 1 + (uint32_t)((bits >> 8) & ((4u << (bits % 5)) - 1));
}

static void measure(Choices *choices, unsigned group)
{
    static const uint32_t levels[4] = {300, 1200, 4000, 12000};
    uint64_t bits = next(choices);

    choices->rates[group] = choices->shots[group] = 0;
    if (bits % 16 < 5)
        choices->shots[group] = next_shot(choices);
    else if (bits % 16 < 8)
        choices->rates[group] = levels[(bits >> 8) % 4];
}

static bool happens(Choices *choices, Group group)
{
    if (choices->shots[group] == 0)
        return (next(choices) & 0xffff) < choices->rates[group];
    if (--choices->shots[group] > 0)
        return false;
    if (next(choices) & 1)
        choices->shots[group] = next_shot(choices);
    return true;
}

void choices_from_seed(Choices *choices, uint64_t seed)
{
    choices->random = seed;
    choices->generated = true;
    choices->given = NULL;
    choices->forced = NULL;
    choices->n_made = 0;
    for (unsigned i = 0; i < N_GROUPS; i++)
        measure(choices, i);
}

void choices_from_values(Choices *choices, const uint16_t *values, unsigned n_values)
{
    choices->generated = false;
    choices->given = values;
    choices->n_given = n_values;
    choices->forced = NULL;
    choices->n_made = 0;
}

void choices_from_labels(Choices *choices, const Forced *forced)
{
    choices_from_values(choices, NULL, 0);
    choices->forced = forced;
}

static unsigned forced_value(const Choices *choices, const char *label)
{
    unsigned nth = 1;

    for (unsigned i = 0; i < choices->n_made; i++)
        nth += strcmp(choices->made[i].label, label) == 0;
    for (const Forced *forced = choices->forced; forced && forced->label; forced++)
        if (forced->nth == nth && strcmp(forced->label, label) == 0)
            return forced->value;
    return 0;
}

static unsigned settle(Choices *choices, const char *label, unsigned value, unsigned n)
{
    unsigned at = choices->n_made;

    if (at == CHOICES_MAX)
        return 0;
    if (!choices->generated) {
        value = at < choices->n_given ? choices->given[at] : forced_value(choices, label);
        value = MIN(value, n - 1);
    }
    choices->made[at] = (Choice){label, (uint16_t)value};
    choices->n_made++;
    return value;
}

bool chance(Choices *choices, Group group, const char *label)
{
    return settle(choices, label, choices->generated && happens(choices, group), 2);
}

unsigned pick(Choices *choices, const char *label, unsigned n)
{
    return settle(choices, label, choices->generated ? (unsigned)((next(choices) >> 32) * n >> 32) : 0, n);
}

/* Zeros, in pieces that halve; then values that are only smaller. */
static bool shrink_once(uint16_t *values, unsigned n, bool (*fails)(void *, const uint16_t *, unsigned), void *opaque)
{
    g_autofree uint16_t *before = g_memdup2(values, n * sizeof(*values));
    bool smaller = false;

    for (unsigned piece = MAX(n / 2, 1);; piece /= 2) {
        for (unsigned at = 0; at < n; at += piece) {
            unsigned length = MIN(piece, n - at), set = 0;
            for (unsigned i = at; i < at + length; i++)
                set += values[i] != 0;
            if (set == 0)
                continue;
            memcpy(before, values, n * sizeof(*values));
            memset(values + at, 0, length * sizeof(*values));
            if (fails(opaque, values, n))
                smaller = true;
            else
                memcpy(values, before, n * sizeof(*values));
        }
        if (piece <= 1)
            break;
    }
    for (unsigned at = 0; at < n; at++)
        for (uint16_t less = 1; less < values[at] && less <= 16; less++) {
            uint16_t was = values[at];
            values[at] = less;
            if (fails(opaque, values, n)) {
                smaller = true;
                break;
            }
            values[at] = was;
        }
    return smaller;
}

/* Without one choice, all later ones move up: what undoes a decision and the decisions that only followed from it. */
static bool drop_once(uint16_t *values, unsigned *n, bool (*fails)(void *, const uint16_t *, unsigned), void *opaque)
{
    bool smaller = false;

    for (unsigned at = *n; at-- > 0;) {
        g_autofree uint16_t *less = g_memdup2(values, *n * sizeof(*values));
        memmove(less + at, less + at + 1, (*n - at - 1) * sizeof(*less));
        bool set = false;
        for (unsigned i = at; i < *n; i++)
            set |= values[i] != 0;
        if (!set || !fails(opaque, less, *n - 1))
            continue;
        memcpy(values, less, --*n * sizeof(*values));
        smaller = true;
    }
    return smaller;
}

unsigned choices_shrink(uint16_t *values, unsigned n_values, bool (*fails)(void *, const uint16_t *, unsigned), void *opaque)
{
    for (unsigned round = 0; round < 8; round++) {
        bool smaller = shrink_once(values, n_values, fails, opaque);
        while (n_values > 0 && values[n_values - 1] == 0)
            n_values--;
        smaller |= drop_once(values, &n_values, fails, opaque);
        if (!smaller)
            break;
    }
    return n_values;
}
