/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who owns the guest. The tables of docs/handover.rst are read from the document (its path is the argument) and
 * compared with the code, both ways. Then every sequence of events is walked on each side alone; test-handover-both.c
 * has both together.
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
    {"storage released", ON(SOURCE, OFFER)},
    {"any failure, cancel, cut", ON(SOURCE, LOST) | ON(SOURCE, CANCEL)},
    {"READY with equal sums", ON(SOURCE, READY_GOOD)},
    {"READY with other sums", ON(SOURCE, READY_BAD)},
    {"REFUSED", ON(SOURCE, REFUSED)},
    {"cut, deadline, cancel", ON(SOURCE, LOST) | ON(SOURCE, CANCEL)},
    {"RUNNING", ON(SOURCE, RUNNING)},
    {"NEVER", ON(SOURCE, NEVER)},
    {"STARTED", ON(SOURCE, STARTED)},
    {"cut, silence", ON(SOURCE, LOST)},
    {"deadline, no way to ask", ON(SOURCE, EXPIRED)},
    {"cancel", ON(SOURCE, CANCEL)},
    {"storage retaken", ON(SOURCE, STORAGE)},
    {"resolve: run, peer fenced", ON(SOURCE, RESOLVE_RUN)},
    {"resolve: discard", ON(SOURCE, RESOLVE_DISCARD)},
    {NULL, 0},
};

static const Phrase source_actions[] = {
    {"STOPPED", VMF_SOURCE_DO_NOTHING},
    {"BACK: the guest never stopped", VMF_SOURCE_DO_STAY},
    {"OFFERED: SWITCHOVER is sent", VMF_SOURCE_DO_SEND_SWITCHOVER},
    {"COMMITTING: RUN is sent", VMF_SOURCE_DO_SEND_RUN},
    {"COMMITTING: too late", VMF_SOURCE_DO_NOTHING},
    {"ASKING: QUERY is sent", VMF_SOURCE_DO_ASK},
    {"ASKING: still", VMF_SOURCE_DO_NOTHING},
    {"HELD: exit code 4", VMF_SOURCE_DO_HOLD},
    {"HELD: still", VMF_SOURCE_DO_NOTHING},
    {"RETURNING", VMF_SOURCE_DO_RETURN},
    {"RETURNING: ABORT is sent", VMF_SOURCE_DO_ABORT_AND_RETURN},
    {"RETURNING: still", VMF_SOURCE_DO_NOTHING},
    {"BACK: guest goes on at the source", VMF_SOURCE_DO_TAKE_BACK},
    {"GONE: the guest is the target's", VMF_SOURCE_DO_RELEASE},
    {"GONE: given up", VMF_SOURCE_DO_RELEASE},
    {NULL, 0},
};

static const Phrase target_events[] = {
    {"SWITCHOVER, all is well", ON(TARGET, GOOD)},
    {"SWITCHOVER, something is not", ON(TARGET, BAD)},
    {"cut, any error", ON(TARGET, LOST)},
    {"RUN", ON(TARGET, RUN)},
    {"started(T) is durable", ON(TARGET, DURABLE)},
    {"refused(T) is durable instead", ON(TARGET, REFUSED)},
    {"neither can be written", ON(TARGET, UNSURE)},
    {"ABORT", ON(TARGET, ABORT)},
    {"cut, silence", ON(TARGET, LOST)},
    {"resolve: run, peer fenced", ON(TARGET, RESOLVE_RUN)},
    {"resolve: discard", ON(TARGET, RESOLVE_DISCARD)},
    {NULL, 0},
};

static const Phrase target_actions[] = {
    {"READY: READY is sent", VMF_TARGET_DO_SEND_READY},
    {"DEAD: REFUSED is sent", VMF_TARGET_DO_SEND_REFUSED},
    {"DEAD: memory is released", VMF_TARGET_DO_DISCARD},
    {"DEAD: refused(T) is written, NEVER is sent", VMF_TARGET_DO_REFUSE},
    {"DEAD: NEVER is sent", VMF_TARGET_DO_SEND_NEVER},
    {"STARTING: started(T) is written", VMF_TARGET_DO_WRITE_STARTED},
    {"HOLD", VMF_TARGET_DO_HOLD},
    {"HOLD: still", VMF_TARGET_DO_NOTHING},
    {"RUNNING: guest started, RUNNING is sent", VMF_TARGET_DO_START},
    {"RUNNING: RUNNING is sent again", VMF_TARGET_DO_SEND_RUNNING},
    {"RUNNING: the source may go", VMF_TARGET_DO_NOTHING},
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
    unsigned action = vmf_handover_source_step(&vmf_source_table, &at, event);

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
    unsigned action = vmf_handover_target_step(&vmf_target_table, &at, event);

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

static void check_source_actions(VmfSourceState before, VmfSourceState now, VmfSourceEvent event,
                                 VmfSourceAction action)
{
    bool goes_back = action == VMF_SOURCE_DO_RETURN || action == VMF_SOURCE_DO_ABORT_AND_RETURN;

    assert_int_equal(action == VMF_SOURCE_DO_RELEASE, now == VMF_SOURCE_GONE);
    assert_int_equal(action == VMF_SOURCE_DO_HOLD, before != VMF_SOURCE_HELD && now == VMF_SOURCE_HELD);
    assert_int_equal(action == VMF_SOURCE_DO_SEND_RUN, event == VMF_SOURCE_EV_READY_GOOD);
    assert_int_equal(action == VMF_SOURCE_DO_STAY, before == VMF_SOURCE_PRECOPY && now == VMF_SOURCE_BACK);
    assert_int_equal(action == VMF_SOURCE_DO_TAKE_BACK, before == VMF_SOURCE_RETURNING && now == VMF_SOURCE_BACK);
    assert_int_equal(goes_back, before != VMF_SOURCE_RETURNING && now == VMF_SOURCE_RETURNING);
    /* Who may have been told of the offer is told of its end, unless he said it himself. */
    if (before == VMF_SOURCE_OFFERED && now == VMF_SOURCE_RETURNING && event != VMF_SOURCE_EV_REFUSED)
        assert_int_equal(action, VMF_SOURCE_DO_ABORT_AND_RETURN);
}

static void check_source_history(const Walk *walk, VmfSourceState before, VmfSourceState now, VmfSourceEvent event,
                                 VmfSourceAction action)
{
    bool committed = place_of(walk, VMF_SOURCE_EV_READY_GOOD) >= 0,
         discarded = place_of(walk, VMF_SOURCE_EV_RESOLVE_DISCARD) >= 0;
    bool told = place_of(walk, VMF_SOURCE_EV_NEVER) >= 0 || place_of(walk, VMF_SOURCE_EV_RESOLVE_RUN) >= 0;

    check_source_actions(before, now, event, action);
    assert_true(before != VMF_SOURCE_GONE && before != VMF_SOURCE_BACK);
    assert_true(now != VMF_SOURCE_PRECOPY);
    /* Given away only to a target that says it runs there, or at a person's word. */
    if (now == VMF_SOURCE_GONE)
        assert_true(event == VMF_SOURCE_EV_RUNNING || discarded);
    /* Once RUN may have left, only the target's promise, or a person's, brings the guest back. */
    if (committed && (now == VMF_SOURCE_RETURNING || now == VMF_SOURCE_BACK))
        assert_true(told);
    /* The guest runs without its storage only where it was never stopped. */
    if (now == VMF_SOURCE_BACK && before != VMF_SOURCE_PRECOPY)
        assert_int_equal(event, VMF_SOURCE_EV_STORAGE);
}

/* An event that is refused changes nothing, so a sequence with it is one of the shorter sequences: it is walked there.
 */
static void walk_source(Walk *walk, VmfSourceState at)
{
    walk->n_walked++;
    for (unsigned event = 0; walk->n_events < LENGTH && event < VMF_SOURCE_EV_N; event++) {
        VmfSourceState next = at;
        VmfSourceAction action = vmf_handover_source_step(&vmf_source_table, &next, event);
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
    assert_true(walk.n_walked > 1000);
}

static void check_target_history(const Walk *walk, VmfTargetState before, VmfTargetState now, VmfTargetEvent event,
                                 VmfTargetAction action)
{
    bool promised = place_of(walk, VMF_TARGET_EV_GOOD) >= 0;
    bool decided = place_of(walk, VMF_TARGET_EV_RUN) >= 0 || place_of(walk, VMF_TARGET_EV_RESOLVE_RUN) >= 0;

    assert_int_not_equal(before, VMF_TARGET_DEAD);
    assert_int_not_equal(now, VMF_TARGET_LOADING);
    if (before == VMF_TARGET_RUNNING)
        assert_int_equal(now, VMF_TARGET_RUNNING);
    /* What was promised with READY ends at somebody's word, or because the journal says so, never because nobody
     * speaks. */
    if (promised && now == VMF_TARGET_DEAD)
        assert_true(event == VMF_TARGET_EV_ABORT || event == VMF_TARGET_EV_REFUSED ||
                    event == VMF_TARGET_EV_RESOLVE_DISCARD);
    if (now == VMF_TARGET_STARTING || now == VMF_TARGET_RUNNING)
        assert_true(promised && decided);
    /* Not an instruction ahead of the durable entry; not a NEVER ahead of the other. */
    assert_int_equal(action == VMF_TARGET_DO_START, event == VMF_TARGET_EV_DURABLE);
    assert_int_equal(action == VMF_TARGET_DO_START, before != VMF_TARGET_RUNNING && now == VMF_TARGET_RUNNING);
    assert_int_equal(action == VMF_TARGET_DO_SEND_NEVER, event == VMF_TARGET_EV_REFUSED);
    assert_int_equal(action == VMF_TARGET_DO_REFUSE,
                     promised && now == VMF_TARGET_DEAD && event != VMF_TARGET_EV_REFUSED);
    assert_int_equal(action == VMF_TARGET_DO_WRITE_STARTED, now == VMF_TARGET_STARTING);
    assert_int_equal(action == VMF_TARGET_DO_HOLD, before != VMF_TARGET_HOLD && now == VMF_TARGET_HOLD);
}

static void walk_target(Walk *walk, VmfTargetState at)
{
    walk->n_walked++;
    for (unsigned event = 0; walk->n_events < LENGTH && event < VMF_TARGET_EV_N; event++) {
        VmfTargetState next = at;
        VmfTargetAction action = vmf_handover_target_step(&vmf_target_table, &next, event);
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
    assert_true(walk.n_walked > 100);
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
        cmocka_unit_test(states_have_names_of_their_own),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s HANDOVER.RST\n", argv[0]);
        return 2;
    }
    document_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
