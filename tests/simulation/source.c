/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The source's process: what migration/source.c and switchover.c are in the real one. */
#include "tests/simulation/world.h"

#include <string.h>

#include "stream/wire.h"

#define READY_NS (2300 * VMF_NS_PER_MS)
#define RUNNING_NS (12 * VMF_NS_PER_S)

static Process *process_of(void *opaque)
{
    return &((World *)opaque)->processes[SOURCE];
}

static int64_t source_now(void *opaque)
{
    return ((World *)opaque)->now_ns;
}

static bool failed(GError **error, const char *what)
{
    g_set_error_literal(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, what);
    return false;
}

static bool write_entry(World *world, Process *self, VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    if (self->begun || state != VMF_JOURNAL_OFFERED) {
        bool done = self->begun && vmf_journal_set(self->journal, true, world->token, state, peer_id, error);
        if (done && self->alive && state != VMF_JOURNAL_OFFERED)
            vmf_journal_release(self->journal, true, world->token);
        return done;
    }
    VmfJournalEntry entry = {.is_source = true, .state = state, .machine = "guest", .peer = "tcp:target:4444"};
    memcpy(entry.token, world->token, sizeof(entry.token));
    memcpy(entry.peer_id, peer_id, sizeof(entry.peer_id));
    self->begun = vmf_journal_begin(self->journal, &entry, error);
    return self->begun;
}

static bool source_journal(void *opaque, VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the source dies before a journal entry"))
        return failed(error, "dead");
    world->sync_lies = world->plant->unsynced == state;
    bool done = write_entry(world, self, state, peer_id, error);
    world->sync_lies = false;
    world->gone_written |= done && self->alive && state == VMF_JOURNAL_GONE;
    SAY(world, "source", "journal: %s: %s", vmf_journal_state_name(state), done ? "durable" : "failed");
    return point(self, "the source dies after a journal entry") && done;
}

static bool source_storage(void *opaque, bool take, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the source dies before a storage call"))
        return failed(error, "dead");
    bool done = !fault(world, STORAGE, take ? "the source cannot take its storage" : "the source cannot release its storage");
    if (take && world->plant->no_retake)
        done = true;
    else if (take)
        done = done && storage_take(self);
    else if (done || pick(&world->choices, "it is released all the same", 2))
        storage_drop(self);
    SAY(world, "source", "storage: %s: %s", take ? "take" : "release", done ? "done" : "failed");
    return point(self, "the source dies after a storage call") && done;
}

static bool source_start(void *opaque, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the source dies before the guest goes on"))
        return failed(error, "dead");
    bool done = !fault(world, ODDITIES, "the guest cannot be started again");
    enter_guest(self); /* a guest that cannot be started now is started by "cont" at any moment */
    return point(self, "the source dies after the guest goes on") && done;
}

static bool source_send(void *opaque, uint32_t type, GError **error)
{
    World *world = opaque;
    Process *self = process_of(world);

    if (!point(self, "the source dies before a message"))
        return failed(error, "dead");
    world->aborted |= type == VMF_RECORD_ABORT;
    bool sent = link_send(self, type, true);
    return point(self, "the source dies after a message") && sent;
}

static void source_ask(void *opaque, VmfQuestion question)
{
    World *world = opaque;

    if (!point(process_of(world), "the source dies before a question"))
        return;
    if (world->question_open)
        violate(world, "two questions at a time");
    world->aborted |= question == VMF_QUESTION_ABORT;
    link_ask(world, question);
}

static void source_tell(void *opaque, const char *id, const char *text)
{
    World *world = opaque;

    if (!process_of(world)->alive)
        return;
    SAY(world, "source", "says %s: %s", id, text);
    people_hear(world);
}

static const VmfSourceExchangeOps ops = {source_now, source_journal, source_storage, source_start, source_send, source_ask, source_tell};

/* ---- what happens to it ------------------------------------------------------------------------------------------- */

void source_after(World *world)
{
    Process *self = &world->processes[SOURCE];

    if (!self->alive)
        return;
    if (world->source.state == VMF_SOURCE_BACK && !world->to_target.ended)
        link_close(self);
    if (world->source.state != VMF_SOURCE_GONE || world->source_ended)
        return;
    world->source_ended = true;
    self->copy = false;
    judge_discard(self);
    if (world->source.may_end || world->plant->end_unwritten) {
        if (!world->source.main_lost && link_send(self, VMF_RECORD_END, true))
            ;
        else if (world->source.reconnects)
            link_confirm(world);
    }
    if (!self->alive)
        return;
    link_close(self);
    exit_process(self);
}

void source_begin(World *world)
{
    static const uint8_t unknown[16];
    Process *self = &world->processes[SOURCE];

    self->entered = self->copy = true;
    world->storage = world->has_storage ? SOURCE : NOBODY;
    bool can_ask = !chance(&world->choices, ODDITIES, "a link that cannot be opened again");
    world->has_peer_id = !pick(&world->choices, "only READY names the target's directory", 2);
    vmf_source_exchange_init(&world->source, &ops, world, can_ask, RUNNING_NS);
    world->source.table = (const VmfSourceTable *)&world->source_table;
    if (!vmf_source_exchange_prepare(&world->source, world->has_peer_id ? world->target_id : unknown, NULL))
        vmf_source_exchange_feed(&world->source, VMF_SOURCE_EV_LOST);
    source_after(world);
    later(world, 10 * VMF_NS_PER_MS, EVENT_STOP, 0, 0, 0);
}

static void stop_guest(World *world)
{
    Process *self = &world->processes[SOURCE];

    if (world->source.state != VMF_SOURCE_PRECOPY)
        return;
    if (fault(world, ODDITIES, "the guest cannot be stopped")) {
        vmf_source_exchange_feed(&world->source, VMF_SOURCE_EV_LOST);
        return;
    }
    self->entered = false;
    SAY(world, "source", "the guest is stopped");
    vmf_source_exchange_feed(&world->source, VMF_SOURCE_EV_STOP);
    later(world, delay(world, "the last pages take long"), EVENT_OFFER, 0, 0, 0);
}

static void hear(World *world, const Event *event)
{
    VmfSourceExchange *exchange = &world->source;

    if (exchange->main_lost || exchange->over || !link_arrives(world, &world->to_source, event))
        return;
    switch (exchange->state) {
    case VMF_SOURCE_OFFERED:
        if (event->a == VMF_RECORD_READY && event->b)
            vmf_source_exchange_ready(exchange, world->target_id, NULL);
        else
            vmf_source_exchange_feed(exchange, event->a == VMF_RECORD_READY     ? VMF_SOURCE_EV_READY_BAD
                                               : event->a == VMF_RECORD_REFUSED ? VMF_SOURCE_EV_REFUSED
                                                                                : VMF_SOURCE_EV_LOST);
        break;
    case VMF_SOURCE_COMMITTING:
    case VMF_SOURCE_ASKING:
    case VMF_SOURCE_HELD:
        if (event->a == VMF_RECORD_RUNNING || event->a == VMF_RECORD_NEVER)
            vmf_source_exchange_feed(exchange, event->a == VMF_RECORD_RUNNING ? VMF_SOURCE_EV_RUNNING : VMF_SOURCE_EV_NEVER);
        else
            vmf_source_exchange_lose_main(exchange);
        break;
    default:
        break; /* the answer to an offer that has ended */
    }
}

static void learn(World *world, const Event *event)
{
    VmfAnswer answer = event->a;
    uint8_t from[16];

    if (event->n != world->ask_number || !world->question_open)
        return;
    world->question_open = false;
    memset(from, 0x77, sizeof(from));
    bool counts = answer == VMF_ANSWER_NONE || world->plant->any_directory ||
                  memcmp(event->b == HOST_TARGET ? world->target_id : from, world->source.peer_id, sizeof(from)) == 0;
    if (!counts)
        answer = VMF_ANSWER_NONE;
    if (answer == VMF_ANSWER_STARTED && world->plant->started_is_never)
        answer = VMF_ANSWER_NEVER;
    if (answer != VMF_ANSWER_NONE)
        world->last_answer = answer;
    vmf_source_exchange_answer(&world->source, answer);
}

void source_event(World *world, const Event *event)
{
    if (!world->processes[SOURCE].alive)
        return;
    switch (event->kind) {
    case EVENT_STOP:
        stop_guest(world);
        break;
    case EVENT_OFFER:
        if (world->source.state == VMF_SOURCE_STOPPED)
            vmf_source_exchange_offer(&world->source, world->now_ns + READY_NS, NULL);
        break;
    case EVENT_TO_SOURCE:
        hear(world, event);
        break;
    case EVENT_END_AT_SOURCE:
        if (!world->source.main_lost && !world->source.over) {
            SAY(world, "source", "sees the end of the main channel");
            vmf_source_exchange_lose_main(&world->source);
        }
        break;
    case EVENT_ANSWER:
        learn(world, event);
        break;
    case EVENT_CANCEL:
        SAY(world, "source", "is told to cancel");
        vmf_source_exchange_feed(&world->source, VMF_SOURCE_EV_CANCEL);
        break;
    default:
        break;
    }
    source_after(world);
}
