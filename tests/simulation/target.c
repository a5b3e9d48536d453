/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The target's process: what migration/incoming.c and target.c are in the real one. */
#include "tests/simulation/world.h"

#include <string.h>

#include "stream/wire.h"

#define LISTEN_NS (60 * VMF_NS_PER_S)
#define HAND_ON_NS (50 * VMF_NS_PER_MS)

static Process *process_of(void *opaque)
{
    return &((World *)opaque)->processes[TARGET];
}

static int64_t target_now(void *opaque)
{
    return ((World *)opaque)->now_ns;
}

static bool failed(GError **error, const char *what)
{
    g_set_error_literal(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, what);
    return false;
}

static bool write_entry(World *world, Process *self, VmfJournalState state, GError **error)
{
    if (world->plant->unwritten == state)
        return true;
    if (self->begun) {
        bool done = vmf_journal_set(self->journal, false, world->token, state, NULL, error);
        if (done && self->alive && state == VMF_JOURNAL_REFUSED)
            vmf_journal_release(self->journal, false, world->token);
        return done;
    }
    VmfJournalEntry entry = {.is_source = false, .state = state, .machine = "guest"};
    memcpy(entry.token, world->token, sizeof(entry.token));
    self->begun = vmf_journal_begin(self->journal, &entry, error);
    return self->begun;
}

static bool target_journal(void *opaque, VmfJournalState state, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the target dies before a journal entry"))
        return failed(error, "dead");
    if (state == VMF_JOURNAL_STARTED && world->plant->enter_before_journal) {
        enter_guest(self);
        if (!point(self, "the target dies after the guest goes on"))
            return failed(error, "dead");
    }
    world->sync_lies = world->plant->unsynced == state;
    bool done = write_entry(world, self, state, error);
    world->sync_lies = false;
    SAY(world, "target", "journal: %s: %s", vmf_journal_state_name(state), done ? "durable" : "failed");
    if (state == VMF_JOURNAL_READY && done && self->alive) {
        self->copy = true;
        world->lost = false;
    }
    return point(self, "the target dies after a journal entry") && done;
}

static bool target_storage(void *opaque, bool take, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the target dies before a storage call"))
        return failed(error, "dead");
    bool done = !fault(world, STORAGE, take ? "the target cannot take the storage" : "the target cannot release the storage");
    if (take)
        done = done && storage_take(self);
    else if (done)
        storage_drop(self);
    SAY(world, "target", "storage: %s: %s", take ? "take" : "release", done ? "done" : "failed");
    if (!done)
        failed(error, "storage");
    return point(self, "the target dies after a storage call") && done;
}

static bool target_start(void *opaque, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the target dies before the first instruction"))
        return failed(error, "dead");
    bool done = !fault(world, ODDITIES, "the guest cannot be started here");
    enter_guest(self);
    if (!done)
        failed(error, "start");
    return point(self, "the target dies after the first instruction") && done;
}

static bool target_send(void *opaque, uint32_t type, const GError *why, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the target dies before a message"))
        return failed(error, "dead");
    if (type == VMF_RECORD_NEVER)
        judge_never(world);
    bool good = type != VMF_RECORD_READY || !fault(world, ODDITIES, "READY has other sums");
    bool sent = link_send(self, type, good);
    return point(self, "the target dies after a message") && sent;
}

static void target_discard(void *opaque)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the target dies before its memory is released"))
        return;
    SAY(world, "target", "its copy is released");
    if (self->copy) {
        self->copy = false;
        judge_discard(self);
    }
}

static void target_tell(void *opaque, const char *id, const char *text)
{
    World *world = opaque;

    if (!process_of(world)->alive)
        return;
    SAY(world, "target", "says %s: %s", id, text);
    people_hear(world);
}

static const VmfTargetExchangeOps ops = {target_now,  target_journal, target_storage, target_start,
                                         target_send, target_discard, target_tell};

/* ---- what happens to it ------------------------------------------------------------------------------------------- */

void target_after(World *world)
{
    Process *self = &world->processes[TARGET];
    VmfTargetState state = world->target.state;

    if (!self->alive)
        return;
    if (state == VMF_TARGET_DEAD && !world->target_over) {
        world->target_over = true;
        link_close(self);
        later(world, delay(world, "the target goes on answering"), EVENT_TARGET_EXIT, 0, 0, 0);
    }
    if (state == VMF_TARGET_RUNNING && !world->target_over) {
        world->target_over = true;
        later(world, LISTEN_NS, EVENT_DEAF, 0, 0, 0);
        if (!world->healed && chance(&world->choices, PEOPLE, "the guest is handed on"))
            later(world, HAND_ON_NS + delay(world, "until the guest is handed on"), EVENT_HAND_ON, 0, 0, 0);
    }
}

void target_begin(World *world)
{
    Process *self = &world->processes[TARGET];

    vmf_target_exchange_init(&world->target, &ops, world);
    world->target.table = (const VmfTargetTable *)&world->target_table;
    vmf_journal_id(self->journal, world->target_id);
}

static void hear(World *world, const Event *event)
{
    if (!link_arrives(world, &world->to_target, event))
        return;
    if (event->a == VMF_RECORD_SWITCHOVER)
        later(world, delay(world, "the check takes long"), EVENT_LOADED, 0, 0, 0);
    else if (event->a == VMF_RECORD_RUN)
        vmf_target_exchange_feed(&world->target, VMF_TARGET_EV_RUN);
    else if (event->a == VMF_RECORD_ABORT)
        vmf_target_exchange_feed(&world->target, VMF_TARGET_EV_ABORT);
    else if (event->a == VMF_RECORD_END && world->target.state == VMF_TARGET_RUNNING)
        vmf_target_exchange_confirmed(&world->target);
    else
        vmf_target_exchange_feed(&world->target, VMF_TARGET_EV_LOST);
    world->deaf |= event->a == VMF_RECORD_END;
}

static void checked(World *world)
{
    g_autoptr(GError) why = NULL;

    if (fault(world, ODDITIES, "the target finds its copy wrong"))
        failed(&why, "sums differ");
    vmf_target_exchange_checked(&world->target, why);
}

void target_event(World *world, const Event *event)
{
    if (!world->processes[TARGET].alive)
        return;
    switch (event->kind) {
    case EVENT_TO_TARGET:
        hear(world, event);
        break;
    case EVENT_END_AT_TARGET:
        SAY(world, "target", "sees the end of the main channel");
        vmf_target_exchange_feed(&world->target, VMF_TARGET_EV_LOST);
        break;
    case EVENT_LOADED:
        checked(world);
        break;
    case EVENT_TARGET_EXIT:
        exit_process(&world->processes[TARGET]);
        break;
    default:
        break;
    }
    target_after(world);
}
