/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/simulation/world.h"

#include <stdio.h>
#include <string.h>

#define QUIET_NS (60 * VMF_NS_PER_S) /* what can settle does so in this time */
#define STEPS_MAX 5000

static const char *const process_names[N_PROCESSES] = {"source", "target", "outsider", "stranger", "tool", "onward", "booted"};
static const Host homes[N_PROCESSES] = {HOST_SOURCE, HOST_TARGET, HOST_TARGET, HOST_OTHER, HOST_SOURCE, HOST_OTHER, HOST_SOURCE};

void say(World *world, const char *who, const char *format, ...)
{
    va_list arguments;

    g_string_append_printf(world->trace, "%11.6f  %-8s  ", (double)world->now_ns / 1e9, who);
    va_start(arguments, format);
    g_string_append_vprintf(world->trace, format, arguments);
    va_end(arguments);
    g_string_append_c(world->trace, '\n');
}

void violate(World *world, const char *what)
{
    if (world->violation)
        return;
    world->violation = what;
    SAY(world, "VIOLATION", "%s", what);
}

/* ---- events ------------------------------------------------------------------------------------------------------- */

void later(World *world, int64_t delay_ns, EventKind kind, unsigned a, unsigned b, unsigned n)
{
    if (world->n_events == EVENTS_MAX) {
        violate(world, "the world has too many events");
        return;
    }
    world->events[world->n_events++] = (Event){world->now_ns + delay_ns, world->order++, kind, a, b, n};
}

static unsigned earliest(const World *world)
{
    unsigned best = 0;

    for (unsigned i = 1; i < world->n_events; i++) {
        const Event *x = &world->events[i], *y = &world->events[best];
        if (x->at_ns < y->at_ns || (x->at_ns == y->at_ns && x->order < y->order))
            best = i;
    }
    return best;
}

static void handle(World *world, const Event *event)
{
    switch (event->kind) {
    case EVENT_STOP:
    case EVENT_OFFER:
    case EVENT_TO_SOURCE:
    case EVENT_END_AT_SOURCE:
    case EVENT_ANSWER:
    case EVENT_CANCEL:
        source_event(world, event);
        break;
    case EVENT_TO_TARGET:
    case EVENT_END_AT_TARGET:
    case EVENT_LOADED:
    case EVENT_TARGET_EXIT:
        target_event(world, event);
        break;
    case EVENT_QUESTION:
        link_question(world, event);
        break;
    case EVENT_KILL:
        kill_process(&world->processes[event->a], event->b);
        break;
    case EVENT_CUT:
        link_cut(world);
        break;
    case EVENT_PERSON:
        people_act(world);
        break;
    case EVENT_BOOT:
        people_boot(world);
        break;
    case EVENT_OUTSIDER_UP:
        if (!world->processes[OUTSIDER].alive) {
            world->processes[OUTSIDER].alive = true;
            open_journal(&world->processes[OUTSIDER]);
        }
        break;
    case EVENT_DEAF:
        world->deaf = true;
        break;
    case EVENT_PRUNE:
        people_prune(world);
        break;
    case EVENT_HAND_ON:
        people_hand_on(world);
        break;
    }
}

static void tick(World *world)
{
    if (world->processes[SOURCE].alive && vmf_source_exchange_due(&world->source) <= world->now_ns) {
        vmf_source_exchange_tick(&world->source);
        source_after(world);
    }
    if (world->processes[TARGET].alive && vmf_target_exchange_due(&world->target) <= world->now_ns) {
        vmf_target_exchange_tick(&world->target);
        target_after(world);
    }
}

static int64_t next_due(const World *world)
{
    int64_t due = VMF_EXCHANGE_NEVER;

    if (world->processes[SOURCE].alive)
        due = MIN(due, vmf_source_exchange_due(&world->source));
    if (world->processes[TARGET].alive)
        due = MIN(due, vmf_target_exchange_due(&world->target));
    return due;
}

/* No call of the journal is under way. */
static void bury_dead(World *world)
{
    while (world->n_graves > 0)
        vmf_journal_free(world->graveyard[--world->n_graves]);
}

void run_until(World *world, int64_t end_ns)
{
    while (!world->violation) {
        unsigned at = world->n_events > 0 ? earliest(world) : 0;
        int64_t event_ns = world->n_events > 0 ? world->events[at].at_ns : VMF_EXCHANGE_NEVER, due_ns = next_due(world);
        int64_t next_ns = MAX(MIN(event_ns, due_ns), world->now_ns);
        if (MIN(event_ns, due_ns) == VMF_EXCHANGE_NEVER || next_ns > end_ns)
            return;
        if (++world->n_steps > STEPS_MAX) {
            violate(world, "the world does not come to rest");
            return;
        }
        world->now_ns = next_ns;
        world->healed |= next_ns >= world->heal_ns;
        if (due_ns < event_ns) {
            tick(world);
        } else {
            Event event = world->events[at];
            world->events[at] = world->events[--world->n_events];
            handle(world, &event);
        }
        bury_dead(world);
        judge_step(world);
    }
}

/* ---- faults ------------------------------------------------------------------------------------------------------- */

bool fault(World *world, Group group, const char *label)
{
    if (world->healed || !chance(&world->choices, group, label))
        return false;
    SAY(world, "world", "%s", label);
    return true;
}

bool point(Process *process, const char *label)
{
    World *world = process->world;

    if (!process->alive)
        return false;
    if (world->healed || !chance(&world->choices, CRASHES, label))
        return true;
    SAY(world, process_names[process->who], "%s", label);
    kill_process(process, pick(&world->choices, "killed, or its host goes down", 2));
    return false;
}

/* ---- processes ---------------------------------------------------------------------------------------------------- */

bool open_journal(Process *process)
{
    if (!process->journal)
        process->journal = vmf_journal_open_on(&simulated_files, process, process_names[process->who], NULL);
    return process->journal && process->alive;
}

/* Its journal may be in the middle of a call. */
static void bury(Process *process)
{
    World *world = process->world;

    disk_close_all(disk_of(process), process);
    if (process->journal) {
        if (world->n_graves == G_N_ELEMENTS(world->graveyard))
            violate(world, "the world has too many dead");
        else
            world->graveyard[world->n_graves++] = process->journal;
    }
    if (world->storage == process->who)
        world->storage = NOBODY;
    process->journal = NULL;
    process->alive = process->entered = process->copy = process->begun = false;
}

void exit_process(Process *process)
{
    VmfJournal *journal = process->journal;

    SAY(process->world, process_names[process->who], "ends");
    process->journal = NULL;
    bury(process);
    vmf_journal_free(journal);
}

static void kill_one(Process *process)
{
    World *world = process->world;

    if (!process->alive)
        return;
    if (process->who == SOURCE || process->who == TARGET) {
        judge_kill(process);
        link_close(process);
    }
    bury(process);
    /* Somebody, or something, starts what belongs there. */
    if (process->who == SOURCE)
        later(world, delay(world, "time until the guest is booted again"), EVENT_BOOT, 0, 0, 0);
    if (process->host == HOST_TARGET)
        later(world, delay(world, "time until the next run --incoming"), EVENT_OUTSIDER_UP, 0, 0, 0);
}

void kill_process(Process *process, bool host_goes_down)
{
    World *world = process->world;

    SAY(world, process_names[process->who], "%s", host_goes_down ? "its host goes down" : process->alive ? "is killed" : "is dead already");
    for (unsigned i = 0; i < N_PROCESSES; i++)
        if (&world->processes[i] == process || (host_goes_down && homes[i] == process->host))
            kill_one(&world->processes[i]);
    if (host_goes_down)
        disk_crash(process, &world->disks[process->host]);
}

bool storage_take(Process *process)
{
    World *world = process->world;

    if (!process->alive || (world->has_storage && world->storage != NOBODY && world->storage != process->who))
        return false;
    world->storage = process->who;
    return true;
}

void storage_drop(Process *process)
{
    if (process->world->storage == process->who)
        process->world->storage = NOBODY;
}

void enter_guest(Process *process)
{
    SAY(process->world, process_names[process->who], "the guest runs here");
    process->entered = true;
    judge_entry(process);
}

/* ---- a schedule --------------------------------------------------------------------------------------------------- */

static void clear(World *world, const Plant *plant)
{
    world->plant = plant;
    memcpy(world->source_table, vmf_source_table, sizeof(vmf_source_table));
    memcpy(world->target_table, vmf_target_table, sizeof(vmf_target_table));
    if (plant->has_source_cell)
        world->source_table[plant->source_state][plant->source_event] = plant->source_cell;
    if (plant->has_target_cell)
        world->target_table[plant->target_state][plant->target_event] = plant->target_cell;
    size_t from = offsetof(World, now_ns), events = offsetof(World, events), disks = offsetof(World, disks);
    memset((char *)world + from, 0, events - from);
    for (unsigned i = 0; i < N_HOSTS; i++)
        disk_clear(&world->disks[i], i + 1);
    size_t rest = disks + sizeof(world->disks);
    memset((char *)world + rest, 0, sizeof(*world) - rest);
    world->to_source.dropped_from = world->to_target.dropped_from = UINT_MAX;
    for (unsigned i = 0; i < N_PROCESSES; i++)
        world->processes[i] = (Process){.world = world, .who = i, .host = homes[i], .alive = i == SOURCE || i == TARGET};
    memset(world->token, 0x5a, sizeof(world->token));
    world->storage = NOBODY;
}

/* What goes wrong by itself, at some time. */
static void sow(World *world)
{
    static const EventKind kinds[] = {EVENT_CUT, EVENT_CANCEL, EVENT_BOOT, EVENT_PRUNE, EVENT_OUTSIDER_UP};
    static const char *const labels[] = {"the link breaks", "cancel", "run NAME at the source", "the journals are pruned",
                                         "another run --incoming"};
    static const Group groups[] = {CUTS, PEOPLE, PEOPLE, ODDITIES, ODDITIES};
    Choices *choices = &world->choices;

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (chance(choices, groups[i], labels[i]))
            later(world, (int64_t)pick(choices, "when (ms)", 6000) * VMF_NS_PER_MS, kinds[i], 0, 0, 0);
    for (unsigned i = 0; i < 2; i++)
        if (chance(choices, CRASHES, i ? "the target is killed" : "the source is killed")) {
            unsigned host = pick(choices, "killed, or its host goes down", 2);
            later(world, (int64_t)pick(choices, "when (ms)", 20000) * VMF_NS_PER_MS, EVENT_KILL, i ? TARGET : SOURCE, host, 0);
        }
    for (unsigned i = 0; i < 4; i++)
        if (chance(choices, PEOPLE, "a person looks after it"))
            later(world, (int64_t)pick(choices, "when (ms)", 60000) * VMF_NS_PER_MS, EVENT_PERSON, 0, 0, 0);
}

const char *world_run(World *world, const Plant *plant)
{
    static const int64_t heals_s[4] = {5, 20, 40, 90};

    clear(world, plant);
    world->heal_ns = heals_s[pick(&world->choices, "until when things go wrong", 4)] * VMF_NS_PER_S;
    world->has_storage = !pick(&world->choices, "a guest without storage", 2);
    world->healed = true; /* a process that does not come up has no part in a handover */
    open_journal(&world->processes[TARGET]);
    open_journal(&world->processes[SOURCE]);
    world->healed = false;
    target_begin(world);
    source_begin(world);
    sow(world);
    judge_step(world);
    run_until(world, world->heal_ns);
    world->now_ns = MAX(world->now_ns, world->heal_ns);
    world->healed = true;
    if (!world->processes[OUTSIDER].alive)
        later(world, 0, EVENT_OUTSIDER_UP, 0, 0, 0);
    run_until(world, world->heal_ns + QUIET_NS);
    world->now_ns = world->heal_ns + QUIET_NS;
    if (!world->violation)
        judge_quiet(world);
    if (!world->violation)
        people_settle(world);
    if (!world->violation)
        judge_end(world);

    for (unsigned i = 0; i < N_PROCESSES; i++)
        vmf_journal_free(world->processes[i].journal);
    bury_dead(world);
    vmf_target_exchange_clear(&world->target);
    return world->violation;
}

World *world_new(void)
{
    return g_new0(World, 1);
}

void world_free(World *world)
{
    g_free(world);
}
