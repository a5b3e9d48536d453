/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What people do, and the tools in their hands. They err in nothing: who is called fenced is dead, a copy is given up only for one
 * that is seen to run, a host whose guest went elsewhere for good does not boot it. When they do it, and how often, is chance.
 */
#include "tests/simulation/world.h"

#include <string.h>

#define SETTLE_ROUNDS 8
#define SETTLE_NS (20 * VMF_NS_PER_S)

static bool source_waits(const World *world)
{
    return world->processes[SOURCE].alive && world->processes[SOURCE].copy && vmf_source_exchange_is_held(&world->source);
}

static bool target_holds(const World *world)
{
    return world->processes[TARGET].alive && vmf_target_exchange_is_held(&world->target);
}

static void source_resolve(World *world, bool run, bool fenced)
{
    SAY(world, "person", "source: resolve --%s%s", run ? "run" : "discard", fenced ? " --fenced" : "");
    world->fenced_word |= fenced;
    world->aborted |= run && !fenced;
    vmf_source_exchange_resolve(&world->source, run, fenced);
    source_after(world);
}

static void target_resolve(World *world, bool run)
{
    SAY(world, "person", "target: resolve --%s", run ? "run --fenced" : "discard");
    world->source_fenced |= run && !world->processes[SOURCE].alive;
    world->person_ran_target |= run && !world->processes[SOURCE].alive;
    vmf_target_exchange_resolve(&world->target, run);
    target_after(world);
}

static bool peer_is_dead(const World *world);

/* ---- tools at the source's host ----------------------------------------------------------------------------------- */

static bool tool_begin(World *world, Who who)
{
    Process *tool = &world->processes[who];

    tool->alive = true;
    return open_journal(tool);
}

static void tool_end(World *world, Who who)
{
    if (world->processes[who].alive)
        exit_process(&world->processes[who]);
}

/* vmferry resolve after the source's process has died: asks, and writes the outcome down. */
static void resolve_offline(World *world)
{
    static const uint8_t unknown[16];
    Process *tool = &world->processes[TOOL];
    VmfJournalEntry entry;
    VmfAnswer answer = VMF_ANSWER_NONE;

    if (world->processes[SOURCE].alive || world->processes[BOOTED].alive || world->source_fenced || target_holds(world))
        return;
    SAY(world, "person", "resolve at the source's host, whose process is dead");
    if (!tool_begin(world, TOOL) || !vmf_journal_find_offer(tool->journal, "guest", &entry, NULL) ||
        entry.state != VMF_JOURNAL_OFFERED) {
        tool_end(world, TOOL);
        return;
    }
    if (memcmp(entry.peer_id, unknown, sizeof(unknown)) != 0 && (world->healed || !world->broken_open)) {
        world->aborted = true;
        answer = host_answers(world, VMF_QUESTION_ABORT, TARGET);
    }
    bool dead = peer_is_dead(world) && answer != VMF_ANSWER_NEVER && answer != VMF_ANSWER_RUNNING;
    world->fenced_word |= dead;
    if (answer == VMF_ANSWER_NEVER || dead)
        vmf_journal_set(tool->journal, true, entry.token, VMF_JOURNAL_BACK, NULL, NULL);
    else if (answer == VMF_ANSWER_RUNNING)
        world->gone_written |= vmf_journal_set(tool->journal, true, entry.token, VMF_JOURNAL_GONE, NULL, NULL);
    if (tool->alive && world->gone_written)
        host_answers(world, VMF_QUESTION_CONFIRM, TARGET);
    tool_end(world, TOOL);
}

/* What the journal says of the guest, to a tool that is open. */
static VmfJournalState offer_state(World *world, Who who, VmfJournalEntry *entry)
{
    if (!vmf_journal_find_offer(world->processes[who].journal, "guest", entry, NULL))
        return VMF_JOURNAL_OFFERED; /* nobody may guess */
    world->gone_written |= entry->state == VMF_JOURNAL_GONE;
    return entry->state;
}

void people_boot(World *world)
{
    Process *booted = &world->processes[BOOTED];
    VmfJournalEntry entry;

    if (world->processes[SOURCE].alive || booted->alive || world->source_fenced || world->gone_written)
        return;
    bool may = tool_begin(world, BOOTED) && offer_state(world, BOOTED, &entry) != VMF_JOURNAL_OFFERED && !world->gone_written &&
               storage_take(booted);
    SAY(world, "booted", "run NAME: %s", may ? "it may" : "refused");
    if (may && booted->alive)
        enter_guest(booted);
    else
        tool_end(world, BOOTED);
}

void people_hear(World *world)
{
    if (!world->healed && chance(&world->choices, PEOPLE, "a person hears of a hold"))
        later(world, delay(world, "a person takes long"), EVENT_PERSON, 0, 0, 0);
}

void people_prune(World *world)
{
    Process *outsider = &world->processes[OUTSIDER];

    VmfJournalEntry entry;

    if (!world->processes[TOOL].alive && tool_begin(world, TOOL)) {
        /* Whoever prunes knows from then on what he no longer finds there. */
        bool may = offer_state(world, TOOL, &entry) != VMF_JOURNAL_OFFERED;
        if (may && world->processes[TOOL].alive)
            vmf_journal_prune(world->processes[TOOL].journal, 0);
    }
    tool_end(world, TOOL);
    if (outsider->alive && open_journal(outsider))
        vmf_journal_prune(outsider->journal, 0);
    SAY(world, "person", "the journals are pruned");
}

void people_hand_on(World *world)
{
    Process *target = &world->processes[TARGET], *onward = &world->processes[ONWARD];

    if (!target->alive || !target->entered)
        return;
    SAY(world, "person", "hands the guest on, from the target to a third host");
    *onward = *target;
    onward->who = ONWARD;
    onward->host = HOST_OTHER;
    onward->journal = NULL;
    link_close(target);
    exit_process(target);
    if (world->has_storage)
        world->storage = ONWARD;
}

/* Nothing of T is left that could run, wherever. */
static bool peer_is_dead(const World *world)
{
    return !world->processes[TARGET].alive && !world->processes[ONWARD].alive;
}

/* The source's guest stands still, and nothing but the target's word lets it go on. */
static bool source_cannot_go_on(const World *world)
{
    return source_waits(world) && world->source.state == VMF_SOURCE_HELD;
}

/* ---- at any time -------------------------------------------------------------------------------------------------- */

void people_act(World *world)
{
    const Process *source = &world->processes[SOURCE], *target = &world->processes[TARGET];

    switch (pick(&world->choices, "what a person does", 8)) {
    case 0:
        if (source_waits(world))
            source_resolve(world, true, false);
        break;
    case 1:
        if (source_waits(world) && peer_is_dead(world))
            source_resolve(world, true, true);
        break;
    case 2:
        if (source_waits(world) && (target->entered || world->processes[ONWARD].entered))
            source_resolve(world, false, false);
        break;
    case 3:
        if (target_holds(world) && ((!source->alive && !world->processes[BOOTED].alive) || source_cannot_go_on(world)))
            target_resolve(world, true);
        break;
    case 4:
        if (target_holds(world) && source->alive && source->copy)
            target_resolve(world, false);
        break;
    case 5:
        resolve_offline(world);
        break;
    case 6:
        people_boot(world);
        break;
    case 7:
        kill_process(&world->processes[pick(&world->choices, "quit: source, target", 2) ? TARGET : SOURCE], false);
        break;
    }
}

/* ---- at the end --------------------------------------------------------------------------------------------------- */

static bool anybody_runs(const World *world)
{
    for (unsigned i = 0; i < N_PROCESSES; i++)
        if (world->processes[i].entered)
            return true;
    return false;
}

/* The guest runs. What is left are entries: old ones go, an offer without outcome gets one, and no host takes that for a licence. */
static bool clean_up(World *world)
{
    people_prune(world);
    resolve_offline(world);
    people_boot(world);
    return false;
}

/* One thing to do. False: there is none. */
static bool settle_once(World *world)
{
    Process *target = &world->processes[TARGET];

    if (anybody_runs(world)) {
        if (source_waits(world) && (target->entered || world->processes[ONWARD].entered))
            source_resolve(world, false, false);
        else if (target_holds(world))
            target_resolve(world, false);
        else
            return clean_up(world);
    } else if (source_waits(world) && target_holds(world)) {
        if (world->aborted || !pick(&world->choices, "of two that are held the target's", 2)) {
            target_resolve(world, false);
        } else {
            world->given_up = true;
            source_resolve(world, false, false);
        }
    } else if (source_waits(world)) {
        if (target->alive)
            kill_process(target, false);
        source_resolve(world, true, true);
    } else if (target_holds(world)) {
        target_resolve(world, true);
    } else {
        resolve_offline(world);
        people_boot(world);
        return false;
    }
    return true;
}

void people_settle(World *world)
{
    SAY(world, "person", "comes to settle it");
    for (unsigned i = 0; i < SETTLE_ROUNDS && settle_once(world) && !world->violation; i++) {
        judge_step(world);
        int64_t end_ns = world->now_ns + SETTLE_NS;
        run_until(world, end_ns);
        world->now_ns = end_ns;
    }
    judge_step(world);
}
