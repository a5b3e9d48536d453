/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What must hold, always and at the end. */
#include "tests/simulation/world.h"

#include <string.h>

#include "migration/journal-entry.h"

static unsigned n_running(const World *world)
{
    unsigned n = 0;

    for (unsigned i = 0; i < N_PROCESSES; i++)
        n += world->processes[i].entered;
    return n;
}

void judge_step(World *world)
{
    const Process *processes = world->processes;

    if (n_running(world) > 1)
        violate(world, "two guests run");
    for (unsigned i = 0; i < N_PROCESSES; i++)
        if (processes[i].entered && world->has_storage && world->storage != i)
            violate(world, "a guest runs without its storage");
    if (world->has_storage && world->storage != NOBODY && !processes[world->storage].alive)
        violate(world, "the dead hold the storage");
    if (!processes[SOURCE].copy && !processes[TARGET].copy && !processes[ONWARD].copy && !world->lost)
        violate(world, "the guest is nowhere, and nobody was killed with it");
}

void judge_entry(Process *process)
{
    World *world = process->world;

    if (n_running(world) > 1)
        violate(world, "two guests run");
    if (world->has_storage && world->storage != process->who)
        violate(world, "a guest is started without its storage");
    if (process->who == SOURCE && world->target_ran && !world->fenced_word)
        violate(world, "the source's copy goes on although the guest has run at the target");
    if (process->who == TARGET && world->returned && !world->person_ran_target)
        violate(world, "the target starts its copy although the guest went on at the source");
    if (process->who == TARGET)
        world->target_ran = true;
    else
        world->returned = true;
}

/* NEVER is a promise, and one that a crash of the host must not break. */
void judge_never(World *world)
{
    char name[VMF_JOURNAL_NAME_SIZE];
    VmfJournalEntry entry = {.state = VMF_JOURNAL_NONE};
    uint64_t sequence;
    unsigned slot;
    size_t size = 0;

    vmf_journal_name_of(false, world->token, name);
    const uint8_t *content = disk_durable(&world->disks[HOST_TARGET], name, &size);
    if (!content || !vmf_journal_file_decode(content, size, &entry, &sequence, &slot, NULL) || entry.state != VMF_JOURNAL_REFUSED)
        violate(world, "NEVER is said without a durable refused(T)");
}

void judge_discard(Process *process)
{
    World *world = process->world;
    const Process *other = &world->processes[process->who == SOURCE ? TARGET : SOURCE];

    if (other->copy || world->processes[ONWARD].copy)
        return;
    bool source_had_it = (world->aborted || world->target.refused) && world->source_killed;
    bool target_had_it = world->target_ran || world->given_up;
    if (process->who == SOURCE ? target_had_it : source_had_it)
        world->lost = true; /* who had it by the protocol's word was killed with it */
    else
        violate(world, process->who == SOURCE ? "the source lets the only copy go" : "the target lets the only copy go");
}

void judge_kill(Process *process)
{
    World *world = process->world;
    const Process *target = &world->processes[TARGET], *onward = &world->processes[ONWARD];

    if (!process->copy)
        return;
    if (process->who == SOURCE) {
        world->source_killed = true;
        world->lost |= !onward->copy && (!target->copy || world->aborted);
    } else {
        world->lost |= !world->processes[SOURCE].copy;
    }
    SAY(world, "judge", world->lost ? "the only copy dies with it" : "there is another copy");
}

/* ---- at rest ------------------------------------------------------------------------------------------------------ */

static bool can_ask(const World *world)
{
    static const uint8_t nobody[sizeof(world->source.peer_id)];

    return world->source.reconnects && memcmp(world->source.peer_id, nobody, sizeof(nobody)) != 0;
}

/* Why a source that is still open may be so. */
static bool source_may_wait(const World *world)
{
    const VmfSourceExchange *exchange = &world->source;

    if (!vmf_source_exchange_is_held(exchange))
        return false;
    if (!can_ask(world) || (exchange->state == VMF_SOURCE_HELD && world->last_answer == VMF_ANSWER_STARTED))
        return true;
    /* The target's disk failed over the second copy of started(T), and it has stopped answering for itself. */
    return world->last_answer == VMF_ANSWER_HELD && world->deaf && world->target_ran && world->disk_failed;
}

static bool target_may_wait(const World *world)
{
    const Process *source = &world->processes[SOURCE];

    if (!vmf_target_exchange_is_held(&world->target))
        return false;
    return !source->alive || world->source.over || !can_ask(world);
}

void judge_quiet(World *world)
{
    VmfTargetState state = world->target.state;

    SAY(world, "judge", "all is well since %u s: what has settled?", 60);
    if (world->processes[SOURCE].alive && !world->source.over && !source_may_wait(world))
        violate(world, "the source does not come to an end");
    if (world->processes[TARGET].alive && state != VMF_TARGET_RUNNING && state != VMF_TARGET_DEAD && !target_may_wait(world))
        violate(world, "the target does not come to an end");
}

void judge_end(World *world)
{
    unsigned n = n_running(world);

    if (n == 0 && !world->lost)
        violate(world, "people did what they could, and no guest runs");
    else if (n == 0 && !world->source_fenced && !world->gone_written)
        violate(world, "the guest is lost, and its host does not boot it again");
    else if (world->processes[SOURCE].alive && vmf_source_exchange_is_held(&world->source))
        violate(world, "a person's word does not end the hold at the source");
    else if (world->processes[TARGET].alive && vmf_target_exchange_is_held(&world->target))
        violate(world, "a person's word does not end the hold at the target");
}
