/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Both tables of the handover together, over a link that may break at any moment, with questions and answers that may
 * be lost, with either process killed at any moment: every world that can be reached is visited, and what must hold in
 * each is checked. Then tables with one planted mistake are searched the same way: each mistake must be found, or the
 * search proves nothing.
 *
 * Journal, storage and questions are the few lines that exchange-source.c, exchange-target.c and answer.c add to the
 * tables.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <glib.h>

#include "migration/handover.h"

typedef enum { NONE, SWITCHOVER, RUN, ABORT, QUERY, READY, REFUSED, RUNNING, NEVER, STARTED } Message;

typedef enum { NOBODY, SOURCE, TARGET } Owner;

typedef enum { NO_ENTRY, IS_READY, IS_STARTED, IS_REFUSED } Entry;

/* A world is its own key: bytes only. On the main channel at most two messages travel in a direction. */
typedef struct {
    uint8_t source, target;       /* states */
    uint8_t source_up, target_up; /* the processes live */
    uint8_t entry;                /* of the target's journal */
    uint8_t lock;                 /* an Owner: who has the storage */
    uint8_t link;                 /* up: the main channel */
    uint8_t must_fit;             /* more than its queues take cannot be under way */
    uint8_t to_target[2], to_source[2];
    uint8_t question, answer; /* on a channel of their own, one at a time */
    uint8_t ran_there;        /* the guest has run at the target */
    uint8_t damaged;          /* somebody found a sum wrong */
    uint8_t fenced;           /* a person had this copy run, and said that the peer's process is dead, and it was */
    uint8_t given_up;         /* a person said that this copy may go */
    uint8_t died_with_source; /* the source was killed ahead of the target's promise, or having asked for the guest */
} World;

typedef struct {
    const VmfSourceTable *source_table;
    const VmfTargetTable *target_table;
    bool has_storage, tells;
    bool reads_settled; /* other processes do not see what the target has not settled */
    GHashTable *seen;   /* World as bytes -> the one that led to it */
    GQueue waiting;
    GBytes *from;       /* the world that is expanded */
    const char *broken; /* what did not hold */
    GBytes *broken_in;
    bool started, went_back, held_on_both, told_started;
} Search;

/* ---- what must hold --------------------------------------------------------------------------------------------- */

static bool source_runs(const World *world)
{
    return world->source_up && (world->source == VMF_SOURCE_PRECOPY || world->source == VMF_SOURCE_BACK);
}

static bool target_runs(const World *world)
{
    return world->target_up && world->target == VMF_TARGET_RUNNING;
}

static bool has_copy(const World *world)
{
    bool at_target = world->target == VMF_TARGET_READY || world->target == VMF_TARGET_HOLD ||
                     world->target == VMF_TARGET_STARTING || world->target == VMF_TARGET_RUNNING;

    return (world->source_up && world->source != VMF_SOURCE_GONE) || (world->target_up && at_target);
}

/* A guest that is nowhere died with the process that owned it, or with both. */
static bool has_reason(const World *world)
{
    return world->died_with_source || world->given_up ||
           (!world->target_up && (world->ran_there || !world->source_up)) ||
           (!world->target_up && world->entry == IS_STARTED);
}

static const char *what_is_broken(const Search *search, const World *world)
{
    bool says_never = world->answer == NEVER || world->to_source[0] == NEVER || world->to_source[1] == NEVER;

    if (source_runs(world) && target_runs(world))
        return "runs twice";
    if (source_runs(world) && world->ran_there && !world->fenced)
        return "an older copy runs";
    if (target_runs(world) && world->damaged && !world->fenced)
        return "a damaged copy runs";
    if (search->has_storage &&
        ((source_runs(world) && world->lock != SOURCE) || (target_runs(world) && world->lock != TARGET)))
        return "runs without its storage";
    if (says_never && world->entry != IS_REFUSED)
        return "NEVER without refused";
    if (world->source_up && world->source == VMF_SOURCE_GONE && world->entry != IS_STARTED && !world->given_up)
        return "gone, and never started there";
    if (!has_copy(world) && !has_reason(world))
        return "lost";
    return NULL;
}

static void visit(Search *search, const World *world)
{
    g_autoptr(GBytes) key = g_bytes_new(world, sizeof(*world));

    search->started |= world->source == VMF_SOURCE_GONE && target_runs(world);
    search->went_back |= world->source == VMF_SOURCE_BACK && source_runs(world) && world->target == VMF_TARGET_DEAD;
    search->held_on_both |= world->source == VMF_SOURCE_HELD && world->target == VMF_TARGET_HOLD;
    search->told_started |= world->source == VMF_SOURCE_HELD && world->answer == STARTED;
    if (g_hash_table_contains(search->seen, key))
        return;
    g_hash_table_insert(search->seen, g_bytes_ref(key), search->from);
    g_queue_push_tail(&search->waiting, g_bytes_ref(key));
    if (!search->broken && (search->broken = what_is_broken(search, world)))
        search->broken_in = key;
}

/* How it came to the broken world, shortest first: the search goes by breadth. */
static void tell_story(const Search *search, GBytes *key)
{
    static const char *const messages[] = {"-",     "SWITCHOVER", "RUN",     "ABORT", "QUERY",
                                           "READY", "REFUSED",    "RUNNING", "NEVER", "STARTED"};
    static const char *const entries[] = {"-", "ready", "started", "refused"}, *const owners[] = {"-", "source",
                                                                                                  "target"};

    if (!key)
        return;
    tell_story(search, g_hash_table_lookup(search->seen, key));
    const World *world = g_bytes_get_data(key, NULL);
    print_message("%s%s %s%s entry=%s lock=%s %s >%s,%s <%s,%s ?%s !%s\n", vmf_source_state_name(world->source),
                  world->source_up ? "" : "(dead)", vmf_target_state_name(world->target),
                  world->target_up ? "" : "(dead)", entries[world->entry], owners[world->lock],
                  world->link ? "link" : "cut", messages[world->to_target[0]], messages[world->to_target[1]],
                  messages[world->to_source[0]], messages[world->to_source[1]], messages[world->question],
                  messages[world->answer]);
}

/* ---- what the exchange adds to the tables ----------------------------------------------------------------------- */

/* What is said again before it was heard is heard once. */
static void send(const World *world, uint8_t queue[2], Message message)
{
    unsigned last = queue[1] != NONE;

    if (!world->link || queue[last] == message)
        return;
    /* With the tables as they are there is room; with a mistake in them, what is too much is lost. */
    if (queue[1] == NONE)
        queue[queue[0] != NONE] = message;
    else
        assert_false(world->must_fit);
}

static Message receive(uint8_t queue[2])
{
    Message message = queue[0];

    queue[0] = queue[1];
    queue[1] = NONE;
    return message;
}

static void source_event(const Search *search, World *world, VmfSourceEvent event)
{
    VmfSourceState state = world->source;
    VmfSourceAction action = vmf_handover_source_step(search->source_table, &state, event);

    world->source = state;
    if (action == VMF_SOURCE_DO_SEND_SWITCHOVER)
        send(world, world->to_target, SWITCHOVER);
    if (action == VMF_SOURCE_DO_SEND_RUN)
        send(world, world->to_target, RUN);
    if (action == VMF_SOURCE_DO_ABORT_AND_RETURN)
        send(world, world->to_target, ABORT);
}

static void let_storage_go(World *world, Owner who)
{
    if (world->lock == who)
        world->lock = NOBODY;
}

static void target_event(const Search *search, World *world, VmfTargetEvent event)
{
    static const Message says[] = {
        [VMF_TARGET_DO_SEND_READY] = READY,     [VMF_TARGET_DO_SEND_REFUSED] = REFUSED, [VMF_TARGET_DO_START] = RUNNING,
        [VMF_TARGET_DO_SEND_RUNNING] = RUNNING, [VMF_TARGET_DO_SEND_NEVER] = NEVER,     [VMF_TARGET_DO_REFUSE] = NEVER,
        [VMF_TARGET_DO_REFUSE_EVENT] = NONE,
    };
    VmfTargetState state = world->target;
    VmfTargetAction action = vmf_handover_target_step(search->target_table, &state, event);

    world->target = state;
    world->ran_there |= action == VMF_TARGET_DO_START;
    if (action == VMF_TARGET_DO_REFUSE)
        world->entry = IS_REFUSED;
    if (state == VMF_TARGET_DEAD)
        let_storage_go(world, TARGET);
    if (says[action])
        send(world, world->to_source, says[action]);
}

static void after_source(Search *search, World world, VmfSourceEvent event)
{
    source_event(search, &world, event);
    visit(search, &world);
}

static void after_target(Search *search, World world, VmfTargetEvent event)
{
    target_event(search, &world, event);
    visit(search, &world);
}

/* ---- what can happen: messages ---------------------------------------------------------------------------------- */

static void switchover_arrives(Search *search, World world)
{
    World other = world;

    after_target(search, world, VMF_TARGET_EV_BAD);
    other.damaged = true;
    after_target(search, other, VMF_TARGET_EV_BAD);
    if (world.target != VMF_TARGET_LOADING || world.entry != NO_ENTRY || (search->has_storage && world.lock != NOBODY))
        return;
    world.lock = search->has_storage ? TARGET : world.lock;
    world.entry = IS_READY;
    after_target(search, world, VMF_TARGET_EV_GOOD);
}

static void deliver_to_target(Search *search, World world)
{
    Message message = receive(world.to_target);

    if (message == SWITCHOVER)
        switchover_arrives(search, world);
    else if (message == RUN)
        after_target(search, world, VMF_TARGET_EV_RUN);
    else if (message == ABORT)
        after_target(search, world, VMF_TARGET_EV_ABORT);
}

static void ready_arrives(Search *search, World world)
{
    after_source(search, world, VMF_SOURCE_EV_READY_GOOD);
    world.damaged |= world.source == VMF_SOURCE_OFFERED;
    after_source(search, world, VMF_SOURCE_EV_READY_BAD);
}

static void hear(Search *search, const World *world, Message message)
{
    if (message == READY)
        ready_arrives(search, *world);
    else if (message == REFUSED)
        after_source(search, *world, VMF_SOURCE_EV_REFUSED);
    else if (message == RUNNING)
        after_source(search, *world, VMF_SOURCE_EV_RUNNING);
    else if (message == NEVER)
        after_source(search, *world, VMF_SOURCE_EV_NEVER);
    else if (message == STARTED)
        after_source(search, *world, VMF_SOURCE_EV_STARTED);
}

static void deliver_to_source(Search *search, World world)
{
    Message message = receive(world.to_source);

    hear(search, &world, message);
}

/* The journal takes an entry, or another, or none; a write that failed may be durable all the same, which the next one
 * hides or a crash shows. */
static void target_writes(Search *search, const World *world)
{
    World next = *world;

    if (world->target != VMF_TARGET_STARTING)
        return;
    /* The guest goes back to a source that may be dead by now: two faults, and the refusal is written down. */
    next.entry = IS_REFUSED;
    next.died_with_source |= !world->source_up;
    after_target(search, next, VMF_TARGET_EV_REFUSED);
    next = *world;
    after_target(search, *world, VMF_TARGET_EV_UNSURE);
    next.entry = IS_STARTED;
    after_target(search, next, VMF_TARGET_EV_UNSURE);
    after_target(search, next, VMF_TARGET_EV_DURABLE);
}

/* ---- what can happen: questions --------------------------------------------------------------------------------- */

static void put_question(Search *search, World world, Message question)
{
    if (world.question || world.answer)
        return;
    world.question = question;
    visit(search, &world);
}

/* In HELD a person may have the target asked to let go. After ABORT it may be repeated by a guest that goes on. */
static void source_asks(Search *search, const World *world)
{
    if (world->source == VMF_SOURCE_ASKING || world->source == VMF_SOURCE_HELD)
        put_question(search, *world, QUERY);
    if (world->source == VMF_SOURCE_HELD || world->source == VMF_SOURCE_RETURNING || world->source == VMF_SOURCE_BACK)
        put_question(search, *world, ABORT);
}

static void give_answer(Search *search, World world, Message answer)
{
    world.question = NONE;
    world.answer = answer;
    visit(search, &world);
}

/*
 * By a process that has only the journal: another one beside the target, or one after it. While the target lives and
 * its write is under way, or failed and may be on the disk all the same, the entry cannot be read (vmf_journal_read).
 */
static void answer_by_journal(Search *search, World world)
{
    bool unsettled = world.entry == IS_STARTED && world.target_up && world.target != VMF_TARGET_RUNNING;

    if (unsettled && search->reads_settled)
        give_answer(search, world, NONE);
    else if (world.entry == IS_STARTED)
        give_answer(search, world, world.target_up ? RUNNING : STARTED);
    else if (world.entry == IS_READY && world.target_up)
        give_answer(search, world, NONE);
    else {
        world.entry = IS_REFUSED;
        give_answer(search, world, NEVER);
    }
}

static void answer_by_target(Search *search, World world)
{
    if (world.question == ABORT)
        target_event(search, &world, VMF_TARGET_EV_ABORT);
    else if (world.target != VMF_TARGET_LOADING)
        target_event(search, &world, VMF_TARGET_EV_RUN);
    if (world.target == VMF_TARGET_RUNNING) {
        give_answer(search, world, RUNNING);
    } else if (world.target == VMF_TARGET_DEAD) {
        world.entry = IS_REFUSED;
        give_answer(search, world, NEVER);
    } else {
        give_answer(search, world, NONE);
    }
}

static void ask(Search *search, const World *world)
{
    World lost = *world;

    lost.question = lost.answer = NONE;
    if (world->answer) {
        visit(search, &lost);
        hear(search, &lost, world->answer);
    } else if (world->question) {
        visit(search, &lost);
        answer_by_journal(search, *world);
        if (world->target_up && world->target != VMF_TARGET_STARTING)
            answer_by_target(search, *world);
    } else {
        source_asks(search, world);
    }
}

/* ---- what can happen: faults and people ------------------------------------------------------------------------- */

/* What is under way is lost; each side notices in its own time, or never. */
static void cut(Search *search, World world)
{
    world.link = false;
    memset(world.to_target, NONE, sizeof(world.to_target));
    memset(world.to_source, NONE, sizeof(world.to_source));
    visit(search, &world);
}

/* What the source has sent may still arrive. */
static void kill_source(Search *search, World world)
{
    bool promised = world.target_up && world.target != VMF_TARGET_LOADING && world.target != VMF_TARGET_DEAD;

    bool takes_back =
        world.source == VMF_SOURCE_RETURNING || world.source == VMF_SOURCE_BACK || world.question == ABORT;

    world.died_with_source = !promised || takes_back;
    world.source_up = false;
    world.answer = NONE;
    memset(world.to_source, NONE, sizeof(world.to_source));
    let_storage_go(&world, SOURCE);
    visit(search, &world);
}

static void kill_target(Search *search, World world)
{
    world.target_up = false;
    memset(world.to_target, NONE, sizeof(world.to_target));
    let_storage_go(&world, TARGET);
    visit(search, &world);
}

/* A person who says that the peer is fenced is right about it. */
static void people(Search *search, World world)
{
    World fenced = world, given_up = world;

    fenced.fenced = given_up.given_up = true;
    if (world.target_up && world.target == VMF_TARGET_HOLD) {
        after_target(search, given_up, VMF_TARGET_EV_RESOLVE_DISCARD);
        if (!world.source_up)
            after_target(search, fenced, VMF_TARGET_EV_RESOLVE_RUN);
    }
    if (world.source_up && (world.source == VMF_SOURCE_HELD || world.source == VMF_SOURCE_RETURNING)) {
        after_source(search, given_up, VMF_SOURCE_EV_RESOLVE_DISCARD);
        if (!world.target_up && world.source == VMF_SOURCE_HELD)
            after_source(search, fenced, VMF_SOURCE_EV_RESOLVE_RUN);
    }
}

static void source_goes_on(Search *search, World world)
{
    World without = world, with = world;

    after_source(search, world, VMF_SOURCE_EV_STOP);
    after_source(search, world, VMF_SOURCE_EV_LOST);
    after_source(search, world, VMF_SOURCE_EV_CANCEL);
    after_source(search, world, VMF_SOURCE_EV_EXPIRED);
    if (world.source == VMF_SOURCE_STOPPED) {
        let_storage_go(&without, SOURCE);
        after_source(search, without, VMF_SOURCE_EV_OFFER);
    }
    with.lock = SOURCE;
    if (world.source == VMF_SOURCE_RETURNING && world.lock != TARGET)
        after_source(search, with, VMF_SOURCE_EV_STORAGE);
}

/* Everything that can happen in @world. A deadline passes whether the link is up or not. */
static void expand(Search *search, const World *world)
{
    if (world->source_up) {
        source_goes_on(search, *world);
        deliver_to_source(search, *world);
        kill_source(search, *world);
    }
    if (world->target_up) {
        after_target(search, *world, VMF_TARGET_EV_LOST);
        deliver_to_target(search, *world);
        target_writes(search, world);
        kill_target(search, *world);
    }
    if (world->source_up || world->question)
        ask(search, world);
    if (world->link)
        cut(search, *world);
    people(search, *world);
}

/* ---- searches --------------------------------------------------------------------------------------------------- */

/* Returns how many worlds there are; up to the first that is broken. */
static unsigned search_all(Search *search)
{
    World first = {
        .source = VMF_SOURCE_PRECOPY, .target = VMF_TARGET_LOADING, .source_up = 1, .target_up = 1, .link = 1};

    first.must_fit = search->tells;
    first.lock = search->has_storage ? SOURCE : NOBODY;
    search->seen = g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL);
    g_queue_init(&search->waiting);
    visit(search, &first);
    for (GBytes *next; (next = g_queue_pop_head(&search->waiting)); g_bytes_unref(next)) {
        World world;
        memcpy(&world, g_bytes_get_data(next, NULL), sizeof(world));
        search->from = next;
        if (!search->broken)
            expand(search, &world);
    }
    unsigned n_worlds = g_hash_table_size(search->seen);
    if (search->broken && search->tells)
        tell_story(search, search->broken_in);
    g_hash_table_unref(search->seen);
    return n_worlds;
}

static void search_the_tables(bool has_storage)
{
    Search search = {.source_table = &vmf_source_table,
                     .target_table = &vmf_target_table,
                     .has_storage = has_storage,
                     .reads_settled = true};
    search.tells = true;
    unsigned n_worlds = search_all(&search);

    if (search.broken)
        fail_msg("%s", search.broken);
    print_message("%u worlds\n", n_worlds);
    assert_true(n_worlds > 1000);
    assert_true(search.started && search.went_back && search.held_on_both && search.told_started);
}

static void nobody_runs_twice_and_nobody_is_lost(void **state)
{
    search_the_tables(true);
}

static void nor_a_guest_without_storage(void **state)
{
    search_the_tables(false);
}

/* ---- planted mistakes ------------------------------------------------------------------------------------------- */

typedef struct {
    const char *what;
    VmfSourceState state;
    VmfSourceEvent event;
    VmfSourceCell cell;
    const char *found_as;
} SourceMistake;

#define AT(state, event) VMF_SOURCE_##state, VMF_SOURCE_EV_##event
#define GO(next, action)                                                                                               \
    {                                                                                                                  \
        VMF_SOURCE_##next, VMF_SOURCE_DO_##action                                                                      \
    }
static const SourceMistake source_mistakes[] = {
    {"takes back after RUN", AT(COMMITTING, LOST), GO(RETURNING, RETURN), "an older copy runs"},
    {"cancels after RUN", AT(COMMITTING, CANCEL), GO(RETURNING, RETURN), "an older copy runs"},
    {"takes back when nobody answers", AT(ASKING, EXPIRED), GO(RETURNING, RETURN), "an older copy runs"},
    {"takes STARTED for NEVER", AT(ASKING, STARTED), GO(RETURNING, RETURN), "an older copy runs"},
    {"takes STARTED for NEVER in the hold", AT(HELD, STARTED), GO(RETURNING, RETURN), "an older copy runs"},
    {"takes REFUSED for RUNNING", AT(OFFERED, REFUSED), GO(GONE, RELEASE), "gone, and never started there"},
    {"takes NEVER for RUNNING", AT(ASKING, NEVER), GO(GONE, RELEASE), "gone, and never started there"},
    {"gives away when it hears nothing", AT(COMMITTING, LOST), GO(GONE, RELEASE), "gone, and never started there"},
    {"commits whatever the sums", AT(OFFERED, READY_BAD), GO(COMMITTING, SEND_RUN), "a damaged copy runs"},
    {"goes back without its storage", AT(OFFERED, LOST), GO(BACK, TAKE_BACK), "runs without its storage"},
};
#undef AT
#undef GO

typedef struct {
    const char *what;
    VmfTargetState state;
    VmfTargetEvent event;
    VmfTargetCell cell;
    const char *found_as;
} TargetMistake;

#define AT(state, event) VMF_TARGET_##state, VMF_TARGET_EV_##event
#define GO(next, action)                                                                                               \
    {                                                                                                                  \
        VMF_TARGET_##next, VMF_TARGET_DO_##action                                                                      \
    }
static const TargetMistake target_mistakes[] = {
    {"discards after READY", AT(READY, LOST), GO(DEAD, DISCARD), "lost"},
    {"discards a held guest", AT(HOLD, LOST), GO(DEAD, DISCARD), "lost"},
    {"starts without durable", AT(READY, RUN), GO(RUNNING, START), "gone, and never started there"},
    {"starts a held guest without durable", AT(HOLD, RUN), GO(RUNNING, START), "gone, and never started there"},
    {"starts though neither could be written", AT(STARTING, UNSURE), GO(RUNNING, START),
     "gone, and never started there"},
    {"says NEVER though neither could be written", AT(STARTING, UNSURE), GO(DEAD, SEND_NEVER), "NEVER without refused"},
    {"says NEVER without refusing", AT(READY, ABORT), GO(DEAD, SEND_NEVER), "NEVER without refused"},
    {"kills what runs", AT(RUNNING, ABORT), GO(DEAD, REFUSE), "gone, and never started there"},
    {"is ready with what it knows to be wrong", AT(LOADING, BAD), GO(READY, SEND_READY), "runs without its storage"},
};
#undef AT
#undef GO

static void mistake_is_found(const char *what, const VmfSourceTable *source, const VmfTargetTable *target,
                             const char *found_as)
{
    Search search = {.source_table = source, .target_table = target, .has_storage = true, .reads_settled = true};

    search_all(&search);
    print_message("%-45s %s\n", what, search.broken ? search.broken : "NOT FOUND");
    if (g_strcmp0(search.broken, found_as) != 0)
        fail_msg("%s: '%s' was to be found", what, found_as);
}

static void each_mistake_of_a_source_is_found(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(source_mistakes); i++) {
        const SourceMistake *mistake = &source_mistakes[i];
        VmfSourceTable table;
        memcpy(table, vmf_source_table, sizeof(table));
        table[mistake->state][mistake->event] = mistake->cell;
        mistake_is_found(mistake->what, &table, &vmf_target_table, mistake->found_as);
    }
}

static void each_mistake_of_a_target_is_found(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(target_mistakes); i++) {
        const TargetMistake *mistake = &target_mistakes[i];
        VmfTargetTable table;
        memcpy(table, vmf_target_table, sizeof(table));
        table[mistake->state][mistake->event] = mistake->cell;
        mistake_is_found(mistake->what, &vmf_source_table, &table, mistake->found_as);
    }
}

/* The case that made it a rule: told RUNNING by another process, while the target cannot write and goes back to NEVER.
 */
static void an_entry_that_is_not_settled_is_no_answer(void **state)
{
    Search search = {.source_table = &vmf_source_table, .target_table = &vmf_target_table, .has_storage = true};

    search_all(&search);
    assert_string_equal(search.broken, "gone, and never started there");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_runs_twice_and_nobody_is_lost),
        cmocka_unit_test(nor_a_guest_without_storage),
        cmocka_unit_test(each_mistake_of_a_source_is_found),
        cmocka_unit_test(each_mistake_of_a_target_is_found),
        cmocka_unit_test(an_entry_that_is_not_settled_is_no_answer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
