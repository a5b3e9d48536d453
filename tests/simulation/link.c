/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What lies between the hosts: one main channel, ordered in each direction, and a channel of its own for each question. */
#include "tests/simulation/world.h"

#include <string.h>

#include "stream/wire.h"

#define ASK_TIMEOUT_NS (400 * VMF_NS_PER_MS)
#define TRAVEL_NS VMF_NS_PER_MS

static const char *const questions[] = {"QUERY", "ABORT", "INQUIRE", "CONFIRM"};
static const char *const answers[VMF_ANSWER_N] = {"nothing", "RUNNING", "STARTED", "NEVER", "HELD", "UNKNOWN"};

static const char *message_name(uint32_t type)
{
    switch (type) {
#define NAME(value, number, name)                                                                                               \
    case value:                                                                                                                 \
        return name;
        VMF_RECORDS(NAME)
#undef NAME
    default:
        return "?";
    }
}

/* The last one is "when all is well again". */
int64_t delay(World *world, const char *label)
{
    static const int64_t delays_ms[] = {20, 300, 1100, 2400, 5000, 15000, 35000};

    if (world->healed || !chance(&world->choices, DELAYS, label))
        return TRAVEL_NS;
    unsigned which = pick(&world->choices, "how long", G_N_ELEMENTS(delays_ms) + 1);
    if (which < G_N_ELEMENTS(delays_ms))
        return delays_ms[which] * VMF_NS_PER_MS;
    return MAX(world->heal_ns - world->now_ns, 0) + 5 * TRAVEL_NS;
}

/* ---- the main channel --------------------------------------------------------------------------------------------- */

static int64_t arrival(World *world, Lane *lane, const char *label)
{
    int64_t at_ns = MAX(world->now_ns + delay(world, label), lane->last_ns);

    lane->last_ns = at_ns;
    return at_ns - world->now_ns;
}

static void end_lane(World *world, Lane *lane, EventKind kind, const char *label)
{
    if (lane->ended)
        return;
    lane->ended = true;
    later(world, arrival(world, lane, label), kind, 0, 0, 0);
}

static void lose_rest(World *world, Lane *lane, const char *label)
{
    if (!world->healed && chance(&world->choices, CUTS, label))
        lane->dropped_from = MIN(lane->dropped_from, lane->sent - MIN(lane->sent, 1 + pick(&world->choices, "how many messages", 3)));
    lane->dropped_from = MIN(lane->dropped_from, lane->sent);
}

void link_cut(World *world)
{
    if (world->cut)
        return;
    world->cut = true;
    SAY(world, "link", "the main channel breaks");
    lose_rest(world, &world->to_source, "messages to the source are lost");
    lose_rest(world, &world->to_target, "messages to the target are lost");
    if (!world->healed && chance(&world->choices, CUTS, "the hosts cannot reach each other any more"))
        world->broken_open = true;
    end_lane(world, &world->to_source, EVENT_END_AT_SOURCE, "the source learns late of the cut");
    end_lane(world, &world->to_target, EVENT_END_AT_TARGET, "the target learns late of the cut");
}

void link_close(Process *from)
{
    World *world = from->world;

    if (from->who == SOURCE)
        end_lane(world, &world->to_target, EVENT_END_AT_TARGET, "the target learns late of the end");
    else
        end_lane(world, &world->to_source, EVENT_END_AT_SOURCE, "the source learns late of the end");
}

bool link_send(Process *from, uint32_t type, bool good)
{
    World *world = from->world;
    bool to_target = from->who == SOURCE;
    Lane *lane = to_target ? &world->to_target : &world->to_source;

    if (fault(world, CUTS, "the link breaks as a message is sent"))
        link_cut(world);
    if (lane->ended) {
        SAY(world, to_target ? "source" : "target", "sends %s, and it cannot leave", message_name(type));
        return !world->cut || !pick(&world->choices, "a send into a broken link fails", 2);
    }
    int64_t after_ns = arrival(world, lane, "a message takes long");
    SAY(world, to_target ? "source" : "target", "sends %s", message_name(type));
    later(world, after_ns, to_target ? EVENT_TO_TARGET : EVENT_TO_SOURCE, type, good, lane->sent++);
    /* A send that fails, of a message that left. */
    if (fault(world, CUTS, "a send fails although the message left")) {
        link_cut(world);
        return false;
    }
    return true;
}

bool link_arrives(World *world, const Lane *lane, const Event *event)
{
    bool arrives = event->n < lane->dropped_from;

    if (!arrives)
        SAY(world, "link", "%s is lost", message_name(event->a));
    return arrives;
}

/* ---- questions ---------------------------------------------------------------------------------------------------- */

static Who address_of(World *world)
{
    if (fault(world, ODDITIES, "another machine has the address"))
        return STRANGER;
    bool target_hears = world->processes[TARGET].alive && !world->deaf;
    if (target_hears && !(world->processes[OUTSIDER].alive && fault(world, ASKS, "another process answers")))
        return TARGET;
    return OUTSIDER;
}

void link_ask(World *world, VmfQuestion question)
{
    Choices *choices = &world->choices;
    unsigned number = ++world->ask_number;

    world->question_open = true;
    SAY(world, "source", "asks %s", questions[question]);
    bool reaches = !(world->broken_open && !world->healed) && !fault(world, ASKS, "nobody can be asked");
    later(world, reaches ? ASK_TIMEOUT_NS : TRAVEL_NS, EVENT_ANSWER, VMF_ANSWER_NONE, HOST_TARGET, number);
    if (!reaches)
        return;
    later(world, delay(world, "a question takes long"), EVENT_QUESTION, question, address_of(world), number);
    if (!world->healed && chance(choices, ASKS, "a question comes twice"))
        later(world, delay(world, "the second one takes long"), EVENT_QUESTION, question, address_of(world), number);
}

/* A target that loads has not read the token yet, and one whose session has ended knows it no more: their word comes from the journal. */
static bool target_knows(World *world)
{
    VmfTargetState state = world->target.state;

    return (state != VMF_TARGET_LOADING && state != VMF_TARGET_DEAD) || fault(world, ODDITIES, "its exchange answers at any time");
}

/* Said once, and nobody waits for the answer. */
void link_confirm(World *world)
{
    SAY(world, "source", "asks CONFIRM");
    if ((world->broken_open && !world->healed) || fault(world, ASKS, "nobody can be asked"))
        return;
    later(world, delay(world, "a question takes long"), EVENT_QUESTION, VMF_QUESTION_CONFIRM, address_of(world), 0);
}

VmfAnswer host_answers(World *world, VmfQuestion question, Who who)
{
    Process *process = &world->processes[who];
    VmfAnswer answer = VMF_ANSWER_NONE;

    if (who == TARGET && (!process->alive || world->deaf))
        process = &world->processes[who = OUTSIDER];
    if (who == STRANGER)
        process->alive = true;
    if (!process->alive)
        return VMF_ANSWER_NONE;
    if (who == TARGET && target_knows(world)) {
        answer = vmf_target_exchange_question(&world->target, question);
        target_after(world);
        world->deaf |= question == VMF_QUESTION_CONFIRM && world->target.state == VMF_TARGET_RUNNING;
    } else if (open_journal(process)) {
        VmfJournalEntry entry;
        bool forgotten = world->plant->forget_abort && question == VMF_QUESTION_ABORT &&
                         vmf_journal_read(process->journal, false, world->token, &entry, NULL, NULL) && entry.state == VMF_JOURNAL_NONE;
        answer = forgotten ? VMF_ANSWER_NEVER : vmf_journal_answer(process->journal, question, world->token, NULL);
    }
    if (!process->alive)
        return VMF_ANSWER_NONE;
    SAY(world, who == TARGET ? "target" : who == OUTSIDER ? "outsider" : "stranger", "to %s: %s", questions[question], answers[answer]);
    if (answer == VMF_ANSWER_NEVER && who != STRANGER)
        judge_never(world);
    return answer;
}

void link_question(World *world, const Event *event)
{
    VmfAnswer answer = host_answers(world, event->a, event->b);

    if (answer == VMF_ANSWER_NONE || fault(world, ASKS, "an answer is lost"))
        return;
    later(world, delay(world, "an answer takes long"), EVENT_ANSWER, answer, event->b == STRANGER ? HOST_OTHER : HOST_TARGET, event->n);
}

/* The first event of these kinds that is under way; -1: none. */
static int first_of(const World *world, unsigned kinds)
{
    int best = -1;

    for (unsigned i = 0; i < world->n_events; i++) {
        const Event *x = &world->events[i], *y = &world->events[MAX(best, 0)];
        if (!(kinds & 1u << x->kind))
            continue;
        if (best < 0 || x->at_ns < y->at_ns || (x->at_ns == y->at_ns && x->order < y->order))
            best = (int)i;
    }
    return best;
}

void somebody_else_asks(Process *busy)
{
    World *world = busy->world;
    bool to_outsider = busy->who == TARGET;

    if (world->healed || world->in_between || (busy->who != TARGET && busy->who != OUTSIDER) ||
        !world->processes[to_outsider ? OUTSIDER : TARGET].alive)
        return;
    int at = first_of(world, to_outsider ? 1u << EVENT_QUESTION : 1u << EVENT_TO_TARGET | 1u << EVENT_LOADED);
    if (at < 0 || !fault(world, ODDITIES, "in the middle of it, another process"))
        return;
    Event event = world->events[at];
    world->events[at] = world->events[--world->n_events];
    world->in_between = true;
    if (to_outsider) {
        event.b = event.b == TARGET ? OUTSIDER : event.b;
        link_question(world, &event);
    } else {
        target_event(world, &event);
    }
    world->in_between = false;
}
