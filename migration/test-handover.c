/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who owns the guest. The tables of docs/handover.rst are read from the document (its path is the argument) and
 * compared with the code, both ways. Then every sequence of events is walked, on each side alone and on both together
 * over a link that can break at any moment.
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

static const char *document_path;

/* ---- the document ---------------------------------------------------------------------------------------------- */

#define BIT(event) (1u << (event))
#define ON(side, event) BIT(VMF_##side##_EV_##event)

/* What the document calls the events, and what it says happens. */
typedef struct {
    const char *words;
    unsigned value;
} Phrase;

static const Phrase source_events[] = {
    {"stop succeeded", ON(SOURCE, STOP)},
    {"SWITCHOVER sent", ON(SOURCE, OFFER)},
    {"any failure, cancel, cut", ON(SOURCE, LOST) | ON(SOURCE, CANCEL)},
    {"READY with equal sums", ON(SOURCE, READY_GOOD)},
    {"READY with other sums", ON(SOURCE, READY_BAD)},
    {"REFUSED", ON(SOURCE, REFUSED)},
    {"cut, deadline, cancel", ON(SOURCE, LOST) | ON(SOURCE, CANCEL)},
    {"RUNNING", ON(SOURCE, RUNNING)},
    {"NEVER", ON(SOURCE, NEVER)},
    {"cut, deadline", ON(SOURCE, LOST)},
    {"cancel", ON(SOURCE, CANCEL)},
    {NULL, 0},
};

static const Phrase source_actions[] = {
    {"STOPPED", VMF_SOURCE_DO_NOTHING},
    {"OFFERED", VMF_SOURCE_DO_SEND_SWITCHOVER},
    {"BACK: the guest never stopped", VMF_SOURCE_DO_NOTHING},
    {"BACK: guest goes on at the source", VMF_SOURCE_DO_TAKE_BACK},
    {"BACK", VMF_SOURCE_DO_TAKE_BACK},
    {"BACK, after ABORT", VMF_SOURCE_DO_ABORT_AND_TAKE_BACK},
    {"COMMITTING: RUN is sent", VMF_SOURCE_DO_SEND_RUN},
    {"COMMITTING: too late", VMF_SOURCE_DO_NOTHING},
    {"GONE: the guest is the target's", VMF_SOURCE_DO_RELEASE},
    {"HELD: exit code 4", VMF_SOURCE_DO_HOLD},
    {NULL, 0},
};

static const Phrase target_events[] = {
    {"SWITCHOVER, all checks pass", ON(TARGET, GOOD)},
    {"SWITCHOVER, a check fails", ON(TARGET, BAD)},
    {"ABORT, cut, any error", ON(TARGET, ABORT) | ON(TARGET, LOST)},
    {"RUN", ON(TARGET, RUN)},
    {"RUN, guest cannot be started", ON(TARGET, RUN_BAD)},
    {"ABORT", ON(TARGET, ABORT)},
    {"cut", ON(TARGET, LOST)},
    {NULL, 0},
};

static const Phrase target_actions[] = {
    {"READY: READY is sent", VMF_TARGET_DO_SEND_READY},
    {"DEAD: REFUSED is sent", VMF_TARGET_DO_SEND_REFUSED},
    {"DEAD: memory is released", VMF_TARGET_DO_DISCARD},
    {"DEAD", VMF_TARGET_DO_DISCARD},
    {"RUNNING: guest started, RUNNING is sent", VMF_TARGET_DO_START},
    {"RUNNING: the source may go", VMF_TARGET_DO_NOTHING},
    {"DEAD: NEVER is sent", VMF_TARGET_DO_SEND_NEVER},
    {"HOLD", VMF_TARGET_DO_HOLD},
    {NULL, 0},
};

/* One side, so that both tables are read by the same code. */
typedef struct {
    const Phrase *events, *actions;
    unsigned n_states, n_events, refuse;
    const char *(*name)(unsigned state);
    unsigned (*step)(unsigned *state, unsigned event);
} SideOfDocument;

static const char *source_name(unsigned state)
{
    return vmf_source_state_name(state);
}

static unsigned source_step(unsigned *state, unsigned event)
{
    VmfSourceState at = *state;
    unsigned action = vmf_handover_source_step(&at, event);

    *state = at;
    return action;
}

static const char *target_name(unsigned state)
{
    return vmf_target_state_name(state);
}

static unsigned target_step(unsigned *state, unsigned event)
{
    VmfTargetState at = *state;
    unsigned action = vmf_handover_target_step(&at, event);

    *state = at;
    return action;
}

static const SideOfDocument source_side = {
    source_events, source_actions, VMF_SOURCE_N, VMF_SOURCE_EV_N, VMF_SOURCE_DO_REFUSE_EVENT, source_name, source_step};
static const SideOfDocument target_side = {
    target_events, target_actions, VMF_TARGET_N, VMF_TARGET_EV_N, VMF_TARGET_DO_REFUSE_EVENT, target_name, target_step};

static unsigned meaning_of(const Phrase *phrases, const char *words)
{
    for (; phrases->words; phrases++)
        if (strcmp(phrases->words, words) == 0)
            return phrases->value;
    fail_msg("docs/handover.rst: the test does not know what '%s' means", words);
    return 0;
}

static unsigned state_of(const SideOfDocument *side, const char *cell)
{
    g_autofree char *word = g_ascii_strdown(cell, (gssize)strcspn(cell, ":, "));

    for (unsigned state = 0; state < side->n_states; state++)
        if (strcmp(side->name(state), word) == 0)
            return state;
    fail_msg("docs/handover.rst: no state '%s'", word);
    return 0;
}

/* The columns of a simple table stand where its rules have their signs. */
static char **cells_of(const char *rule, const char *line)
{
    GPtrArray *cells = g_ptr_array_new();
    size_t length = strlen(line);

    while (*rule) {
        size_t width = strspn(rule, "="), gap = strspn(rule + width, " ");
        size_t n = rule[width + gap] ? MIN(width, length) : length;
        g_ptr_array_add(cells, g_strstrip(g_strndup(line, n)));
        line += MIN(width + gap, length);
        length -= MIN(width + gap, length);
        rule += width + gap;
    }
    g_ptr_array_add(cells, NULL);
    return (char **)g_ptr_array_free(cells, false);
}

/* The rows of table @index whose header begins with "state": one array of three cells each. */
static GPtrArray *read_table(unsigned index)
{
    GPtrArray *rows = g_ptr_array_new_with_free_func((GDestroyNotify)g_strfreev);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(document_path, &text, NULL, NULL))
        fail_msg("%s: cannot be read", document_path);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (unsigned i = 1; lines[i]; i++) {
        if (!g_str_has_prefix(lines[i], "state ") || !g_str_has_prefix(lines[i - 1], "===") || index-- > 0)
            continue;
        const char *rule = lines[i - 1];
        for (i += 2; lines[i] && !g_str_has_prefix(lines[i], "==="); i++)
            g_ptr_array_add(rows, cells_of(rule, lines[i]));
        return rows;
    }
    fail_msg("docs/handover.rst: has no such table");
    return NULL;
}

/* Every row is in the code; every cell of the code is in some row. */
static void compare(const SideOfDocument *side, unsigned table)
{
    g_autoptr(GPtrArray) rows = read_table(table);
    g_autofree bool *said = g_new0(bool, side->n_states * side->n_events);

    assert_true(rows->len >= side->n_events);
    for (guint i = 0; i < rows->len; i++) {
        char **row = g_ptr_array_index(rows, i);
        unsigned from = state_of(side, row[0]), events = meaning_of(side->events, row[1]);
        for (unsigned event = 0; event < side->n_events; event++) {
            unsigned state = from;
            if (!(events & BIT(event)))
                continue;
            if (said[from * side->n_events + event])
                fail_msg("docs/handover.rst: '%s' on '%s' twice", row[0], row[1]);
            said[from * side->n_events + event] = true;
            unsigned action = side->step(&state, event);
            if (state != state_of(side, row[2]) || action != meaning_of(side->actions, row[2]))
                fail_msg("docs/handover.rst: '%s' on '%s' is '%s'; the code goes to %s, action %u", row[0], row[1],
                         row[2], side->name(state), action);
        }
    }
    for (unsigned from = 0; from < side->n_states; from++)
        for (unsigned event = 0; event < side->n_events; event++) {
            unsigned state = from;
            bool refused = side->step(&state, event) == side->refuse;
            if (refused == said[from * side->n_events + event])
                fail_msg("state %s, event %u: not in the tables of docs/handover.rst", side->name(from), event);
            if (refused)
                assert_int_equal(state, from);
        }
}

static void the_source_does_what_the_document_says(void **state)
{
    compare(&source_side, 0);
}

static void the_target_does_what_the_document_says(void **state)
{
    compare(&target_side, 1);
}

/* ---- one side alone -------------------------------------------------------------------------------------------- */

#define LENGTH 8

typedef struct {
    unsigned events[LENGTH];
    unsigned n_events;
    unsigned n_walked;
} Walk;

static int place_of(const Walk *walk, unsigned event)
{
    for (unsigned i = 0; i < walk->n_events; i++)
        if (walk->events[i] == event)
            return (int)i;
    return -1;
}

static void check_source_history(const Walk *walk, VmfSourceState before, VmfSourceState now, VmfSourceEvent event,
                                 VmfSourceAction action)
{
    int ready = place_of(walk, VMF_SOURCE_EV_READY_GOOD), running = place_of(walk, VMF_SOURCE_EV_RUNNING);

    assert_true(before != VMF_SOURCE_GONE && before != VMF_SOURCE_BACK && before != VMF_SOURCE_HELD);
    if (now == VMF_SOURCE_GONE)
        assert_true(ready >= 0 && running > ready);
    if (before == VMF_SOURCE_COMMITTING && now == VMF_SOURCE_BACK)
        assert_int_equal(event, VMF_SOURCE_EV_NEVER);
    if (before == VMF_SOURCE_COMMITTING)
        assert_true(now == VMF_SOURCE_COMMITTING || now == VMF_SOURCE_GONE || now == VMF_SOURCE_BACK ||
                    now == VMF_SOURCE_HELD);
    assert_int_equal(action == VMF_SOURCE_DO_RELEASE, now == VMF_SOURCE_GONE);
    assert_int_equal(action == VMF_SOURCE_DO_HOLD, now == VMF_SOURCE_HELD);
    assert_int_equal(action == VMF_SOURCE_DO_SEND_RUN, event == VMF_SOURCE_EV_READY_GOOD);
    bool taken_back = action == VMF_SOURCE_DO_TAKE_BACK || action == VMF_SOURCE_DO_ABORT_AND_TAKE_BACK;
    assert_int_equal(taken_back, now == VMF_SOURCE_BACK && before != VMF_SOURCE_PRECOPY);
    /* Who may have been told of the offer is told of its end, unless he said it himself. */
    if (before == VMF_SOURCE_OFFERED && now == VMF_SOURCE_BACK && event != VMF_SOURCE_EV_REFUSED)
        assert_int_equal(action, VMF_SOURCE_DO_ABORT_AND_TAKE_BACK);
}

/* An event that is refused changes nothing, so a sequence with it is one of the shorter sequences: it is walked there.
 */
static void walk_source(Walk *walk, VmfSourceState at)
{
    walk->n_walked++;
    for (unsigned event = 0; walk->n_events < LENGTH && event < VMF_SOURCE_EV_N; event++) {
        VmfSourceState next = at;
        VmfSourceAction action = vmf_handover_source_step(&next, event);
        if (action == VMF_SOURCE_DO_REFUSE_EVENT) {
            assert_int_equal(next, at);
            continue;
        }
        walk->events[walk->n_events++] = event;
        check_source_history(walk, at, next, event, action);
        walk_source(walk, next);
        walk->n_events--;
    }
}

static void no_sequence_of_events_loses_the_source(void **state)
{
    Walk walk = {.n_events = 0};

    walk_source(&walk, VMF_SOURCE_PRECOPY);
    assert_true(walk.n_walked > 20);
}

static void check_target_history(const Walk *walk, VmfTargetState before, VmfTargetState now, VmfTargetEvent event,
                                 VmfTargetAction action)
{
    bool promised = place_of(walk, VMF_TARGET_EV_GOOD) >= 0;

    assert_int_not_equal(before, VMF_TARGET_DEAD);
    if (before == VMF_TARGET_RUNNING)
        assert_int_equal(now, VMF_TARGET_RUNNING);
    if (promised && event == VMF_TARGET_EV_LOST)
        assert_int_not_equal(now, VMF_TARGET_DEAD);
    if (promised && now == VMF_TARGET_DEAD)
        assert_true(event == VMF_TARGET_EV_ABORT || event == VMF_TARGET_EV_RUN_BAD);
    if (now == VMF_TARGET_RUNNING)
        assert_true(promised && place_of(walk, VMF_TARGET_EV_RUN) > place_of(walk, VMF_TARGET_EV_GOOD));
    assert_int_equal(action == VMF_TARGET_DO_START, before != VMF_TARGET_RUNNING && now == VMF_TARGET_RUNNING);
    assert_int_equal(action == VMF_TARGET_DO_SEND_NEVER, event == VMF_TARGET_EV_RUN_BAD);
    assert_int_equal(action == VMF_TARGET_DO_HOLD, now == VMF_TARGET_HOLD);
}

static void walk_target(Walk *walk, VmfTargetState at)
{
    walk->n_walked++;
    for (unsigned event = 0; walk->n_events < LENGTH && event < VMF_TARGET_EV_N; event++) {
        VmfTargetState next = at;
        VmfTargetAction action = vmf_handover_target_step(&next, event);
        if (action == VMF_TARGET_DO_REFUSE_EVENT) {
            assert_int_equal(next, at);
            continue;
        }
        walk->events[walk->n_events++] = event;
        check_target_history(walk, at, next, event, action);
        walk_target(walk, next);
        walk->n_events--;
    }
}

static void no_sequence_of_events_loses_the_target(void **state)
{
    Walk walk = {.n_events = 0};

    walk_target(&walk, VMF_TARGET_LOADING);
    assert_true(walk.n_walked > 10);
}

/* ---- both sides ------------------------------------------------------------------------------------------------ */

typedef enum { NONE, SWITCHOVER, RUN, ABORT, READY, REFUSED, RUNNING, NEVER, N_MESSAGES } Message;

/* At most two messages travel in a direction: SWITCHOVER or RUN, and an ABORT behind it. */
typedef struct {
    uint8_t source, target;
    uint8_t to_target[2], to_source[2];
    uint8_t link; /* up */
} Joint;

typedef struct {
    GHashTable *seen; /* of Joint as bytes */
    GQueue waiting;
    bool started, went_back, held; /* some world got there */
} World;

static void send(uint8_t queue[2], Message message)
{
    assert_int_equal(queue[1], NONE);
    queue[queue[0] != NONE] = message;
}

static Message receive(uint8_t queue[2])
{
    Message message = queue[0];

    queue[0] = queue[1];
    queue[1] = NONE;
    return message;
}

static void source_event(Joint *world, VmfSourceEvent event)
{
    static const Message says[] = {[VMF_SOURCE_DO_SEND_SWITCHOVER] = SWITCHOVER,
                                   [VMF_SOURCE_DO_SEND_RUN] = RUN,
                                   [VMF_SOURCE_DO_ABORT_AND_TAKE_BACK] = ABORT,
                                   [VMF_SOURCE_DO_REFUSE_EVENT] = NONE};
    VmfSourceState state = world->source;
    Message message = says[vmf_handover_source_step(&state, event)];

    world->source = state;
    if (message && world->link)
        send(world->to_target, message);
}

static void target_event(Joint *world, VmfTargetEvent event)
{
    static const Message says[] = {[VMF_TARGET_DO_SEND_READY] = READY,
                                   [VMF_TARGET_DO_SEND_REFUSED] = REFUSED,
                                   [VMF_TARGET_DO_START] = RUNNING,
                                   [VMF_TARGET_DO_SEND_NEVER] = NEVER,
                                   [VMF_TARGET_DO_REFUSE_EVENT] = NONE};
    VmfTargetState state = world->target;
    Message message = says[vmf_handover_target_step(&state, event)];

    world->target = state;
    if (message && world->link)
        send(world->to_source, message);
}

static bool source_runs(const Joint *world)
{
    return world->source == VMF_SOURCE_PRECOPY || world->source == VMF_SOURCE_BACK;
}

static bool is_settled(const Joint *world)
{
    return world->source >= VMF_SOURCE_GONE && !world->to_target[0] && !world->to_source[0];
}

static void visit(World *all, const Joint *world)
{
    g_autoptr(GBytes) key = g_bytes_new(world, sizeof(*world));

    /* Nobody runs twice. */
    assert_false(source_runs(world) && world->target == VMF_TARGET_RUNNING);
    /* Nobody is lost: where it ends, one side runs, or the source holds what the target may have. */
    if (is_settled(world))
        assert_true(source_runs(world) || world->target == VMF_TARGET_RUNNING || world->source == VMF_SOURCE_HELD);
    all->started |= is_settled(world) && world->source == VMF_SOURCE_GONE && world->target == VMF_TARGET_RUNNING;
    all->went_back |= is_settled(world) && world->source == VMF_SOURCE_BACK && world->target == VMF_TARGET_DEAD;
    all->held |= world->source == VMF_SOURCE_HELD && world->target == VMF_TARGET_HOLD;
    if (g_hash_table_contains(all->seen, key))
        return;
    g_hash_table_add(all->seen, g_bytes_ref(key));
    g_queue_push_tail(&all->waiting, g_bytes_ref(key));
}

static void after_source(World *all, Joint world, VmfSourceEvent event)
{
    source_event(&world, event);
    visit(all, &world);
}

static void after_target(World *all, Joint world, VmfTargetEvent event)
{
    target_event(&world, event);
    visit(all, &world);
}

static void deliver_to_target(World *all, Joint world)
{
    switch (receive(world.to_target)) {
    case SWITCHOVER:
        after_target(all, world, VMF_TARGET_EV_GOOD);
        after_target(all, world, VMF_TARGET_EV_BAD);
        break;
    case RUN:
        after_target(all, world, VMF_TARGET_EV_RUN);
        after_target(all, world, VMF_TARGET_EV_RUN_BAD);
        break;
    case ABORT:
        after_target(all, world, VMF_TARGET_EV_ABORT);
        break;
    default:
        break;
    }
}

static void deliver_to_source(World *all, Joint world)
{
    switch (receive(world.to_source)) {
    case READY:
        after_source(all, world, VMF_SOURCE_EV_READY_GOOD);
        after_source(all, world, VMF_SOURCE_EV_READY_BAD);
        break;
    case REFUSED:
        after_source(all, world, VMF_SOURCE_EV_REFUSED);
        break;
    case RUNNING:
        after_source(all, world, VMF_SOURCE_EV_RUNNING);
        break;
    case NEVER:
        after_source(all, world, VMF_SOURCE_EV_NEVER);
        break;
    default:
        break;
    }
}

/* What is under way is lost; each side notices in its own time, or never. */
static void cut(World *all, Joint world)
{
    world.link = false;
    memset(world.to_target, NONE, sizeof(world.to_target));
    memset(world.to_source, NONE, sizeof(world.to_source));
    visit(all, &world);
}

/* Everything that can happen in @world. A deadline passes at the source whether the link is up or not. */
static void expand(World *all, const Joint *world)
{
    after_source(all, *world, VMF_SOURCE_EV_STOP);
    if (world->source == VMF_SOURCE_STOPPED)
        after_source(all, *world, VMF_SOURCE_EV_OFFER);
    after_source(all, *world, VMF_SOURCE_EV_LOST);
    after_source(all, *world, VMF_SOURCE_EV_CANCEL);
    if (!world->link)
        after_target(all, *world, VMF_TARGET_EV_LOST);
    else
        cut(all, *world);
    deliver_to_target(all, *world);
    deliver_to_source(all, *world);
}

static void on_a_link_that_breaks_nobody_runs_twice(void **state)
{
    World all = {.seen = g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL)};
    Joint first = {.source = VMF_SOURCE_PRECOPY, .target = VMF_TARGET_LOADING, .link = true};

    g_queue_init(&all.waiting);
    visit(&all, &first);
    for (GBytes *next; (next = g_queue_pop_head(&all.waiting)); g_bytes_unref(next)) {
        Joint world;
        memcpy(&world, g_bytes_get_data(next, NULL), sizeof(world));
        expand(&all, &world);
    }
    assert_true(g_hash_table_size(all.seen) > 40);
    assert_true(all.started && all.went_back && all.held);
    g_hash_table_unref(all.seen);
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

static void states_have_names_of_their_own(void **state)
{
    const char *names[VMF_SOURCE_N + VMF_TARGET_N];

    for (unsigned i = 0; i < VMF_SOURCE_N; i++)
        names[i] = vmf_source_state_name(i);
    for (unsigned i = 0; i < VMF_TARGET_N; i++)
        names[VMF_SOURCE_N + i] = vmf_target_state_name(i);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        for (unsigned j = 0; j < i; j++)
            assert_string_not_equal(names[i], names[j]);
    assert_string_equal(vmf_source_state_name(VMF_SOURCE_COMMITTING), "committing");
    assert_string_equal(vmf_target_state_name(VMF_TARGET_HOLD), "hold");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_source_does_what_the_document_says),
        cmocka_unit_test(the_target_does_what_the_document_says),
        cmocka_unit_test(no_sequence_of_events_loses_the_source),
        cmocka_unit_test(no_sequence_of_events_loses_the_target),
        cmocka_unit_test(on_a_link_that_breaks_nobody_runs_twice),
        cmocka_unit_test(states_have_names_of_their_own),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s HANDOVER.RST\n", argv[0]);
        return 2;
    }
    document_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
