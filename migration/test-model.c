/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Holds docs/handover.pml, the model for spin, to the code.
 *
 * The model takes both tables from docs/handover-tables.pml, which is printed here out of vmf_source_table and
 * vmf_target_table; the file in the tree has to be the same. What the model does for each action of the tables is
 * compared, callback by callback, with what the exchange calls for it.
 *
 * usage: test-model DIRECTORY-OF-DOCS, or test-model --print > docs/handover-tables.pml
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "migration/exchange.h"
#include "stream/wire.h"

static const char *directory;

/* ---- what is done for each action ------------------------------------------------------------------------------- */

/* What an exchange called, in the order of it; what can fail does where @fails has the call's bit. */
typedef struct {
    GString *calls;
    unsigned n_calls, fails;
} Recorder;

static bool called(Recorder *recorder, const char *call)
{
    g_string_append_printf(recorder->calls, "%s%s", recorder->calls->len ? ", " : "", call);
    return !(recorder->fails >> recorder->n_calls++ & 1);
}

static bool called_with(Recorder *recorder, const char *call, const char *with)
{
    g_autofree char *upper = g_ascii_strup(with, -1), *text = g_strdup_printf("%s %s", call, upper);

    return called(recorder, text);
}

static int64_t no_time(void *opaque)
{
    return 0;
}

static bool source_journal(void *opaque, VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    return called_with(opaque, "writes", vmf_journal_state_name(state));
}

static bool target_journal(void *opaque, VmfJournalState state, GError **error)
{
    return called_with(opaque, "writes", vmf_journal_state_name(state));
}

static bool storage(void *opaque, bool take, GError **error)
{
    return called(opaque, take ? "locks" : "unlocks");
}

static bool start(void *opaque, GError **error)
{
    called(opaque, "runs");
    return true;
}

static bool source_send(void *opaque, uint32_t type, GError **error)
{
    return called_with(opaque, "says", vmf_record_name(type));
}

static bool target_send(void *opaque, uint32_t type, const GError *why, GError **error)
{
    return called_with(opaque, "says", vmf_record_name(type));
}

static void ask(void *opaque, VmfQuestion question)
{
    called(opaque, question == VMF_QUESTION_QUERY ? "asks QUERY" : "asks ABORT");
}

static void discard(void *opaque)
{
}

static void tell(void *opaque, const char *id, const char *text)
{
}

static const VmfSourceExchangeOps source_ops = {no_time, source_journal, storage, start, source_send, ask, tell};
static const VmfTargetExchangeOps target_ops = {no_time, target_journal, storage, start, target_send, discard, tell};

static void feed_source(Recorder *recorder, unsigned from, unsigned event, unsigned *end)
{
    VmfSourceExchange exchange;

    vmf_source_exchange_init(&exchange, &source_ops, recorder, true, 10);
    exchange.state = from;
    exchange.journaled = true;
    exchange.peer_id[0] = 1;
    exchange.released = from != VMF_SOURCE_PRECOPY && event != VMF_SOURCE_EV_STORAGE;
    vmf_source_exchange_feed(&exchange, event);
    *end = exchange.state;
}

static void feed_target(Recorder *recorder, unsigned from, unsigned event, unsigned *end)
{
    VmfTargetExchange exchange;

    vmf_target_exchange_init(&exchange, &target_ops, recorder);
    exchange.state = from;
    exchange.begun = exchange.taken = from != VMF_TARGET_LOADING || event == VMF_TARGET_EV_BAD;
    vmf_target_exchange_feed(&exchange, event);
    *end = exchange.state;
    vmf_target_exchange_clear(&exchange);
}

/* ---- the tables as the model reads them ------------------------------------------------------------------------- */

static const char *const source_actions[] = {"NOTHING", "STAY",   "SEND_SWITCHOVER",  "SEND_RUN",
                                             "ASK",     "RETURN", "ABORT_AND_RETURN", "TAKE_BACK",
                                             "RELEASE", "HOLD",   "REFUSE_EVENT"};
static_assert(G_N_ELEMENTS(source_actions) == VMF_SOURCE_DO_REFUSE_EVENT + 1, "source actions");
static const char *const target_actions[] = {"NOTHING", "SEND_READY",   "SEND_REFUSED", "WRITE_STARTED",
                                             "START",   "SEND_RUNNING", "SEND_NEVER",   "REFUSE",
                                             "DISCARD", "HOLD",         "REFUSE_EVENT"};
static_assert(G_N_ELEMENTS(target_actions) == VMF_TARGET_DO_REFUSE_EVENT + 1, "target actions");

typedef struct {
    const char *name; /* "SOURCE" */
    const char *variable;
    unsigned n_states, n_events, n_actions;
    const char *(*state_name)(unsigned state);
    const char *(*event_name)(unsigned event);
    const char *const *actions;
    unsigned (*step)(unsigned *state, unsigned event);
    void (*feed)(Recorder *recorder, unsigned from, unsigned event, unsigned *end);
} Side;

static const char *source_state(unsigned state)
{
    return vmf_source_state_name(state);
}

static const char *source_event(unsigned event)
{
    return vmf_source_event_name(event);
}

static unsigned source_step(unsigned *state, unsigned event)
{
    VmfSourceState at = *state;
    unsigned action = vmf_handover_source_step(&vmf_source_table, &at, event);

    *state = at;
    return action;
}

static const char *target_state(unsigned state)
{
    return vmf_target_state_name(state);
}

static const char *target_event(unsigned event)
{
    return vmf_target_event_name(event);
}

static unsigned target_step(unsigned *state, unsigned event)
{
    VmfTargetState at = *state;
    unsigned action = vmf_handover_target_step(&vmf_target_table, &at, event);

    *state = at;
    return action;
}

static const Side sides[] = {
    {"SOURCE", "source", VMF_SOURCE_N, VMF_SOURCE_EV_N, G_N_ELEMENTS(source_actions), source_state, source_event,
     source_actions, source_step, feed_source},
    {"TARGET", "target", VMF_TARGET_N, VMF_TARGET_EV_N, G_N_ELEMENTS(target_actions), target_state, target_event,
     target_actions, target_step, feed_target},
};

/* "ready-good" -> "READY_GOOD" */
static char *as_symbol(const char *name)
{
    return g_strdelimit(g_ascii_strup(name, -1), "-", '_');
}

static void print_names(GString *text, const Side *side, const char *what, const char *infix,
                        const char *(*name)(unsigned), unsigned n)
{
    g_string_append_printf(text, "mtype:%s_%s = {", side->variable, what);
    for (unsigned i = 0; i < n; i++) {
        g_autofree char *symbol = as_symbol(name(i));
        g_string_append_printf(text, "%s%s_%s%s", i % 6 ? ", " : i ? ",\n    " : "\n    ", side->name, infix, symbol);
    }
    g_string_append(text, "\n}\n");
}

static void print_actions(GString *text, const Side *side)
{
    g_string_append_printf(text, "mtype:%s_action = {", side->variable);
    for (unsigned i = 0; i < side->n_actions; i++)
        g_string_append_printf(text, "%s%s_DO_%s",
                               i % 6 ? ", "
                               : i   ? ",\n    "
                                     : "\n    ",
                               side->name, side->actions[i]);
    g_string_append(text, "\n}\n");
}

static void print_row(GString *text, const Side *side, unsigned from, unsigned event)
{
    unsigned state = from, action = side->step(&state, event);
    g_autofree char *here = as_symbol(side->state_name(from)), *next = as_symbol(side->state_name(state));
    g_autofree char *on = as_symbol(side->event_name(event));

    if (strcmp(side->actions[action], "REFUSE_EVENT") == 0)
        return;
    g_string_append_printf(text, "    :: %s == %s_%-10s && event == %s_EV_%-15s -> %s = %s_%s", side->variable,
                           side->name, here, side->name, on, side->variable, side->name, next);
    g_string_append_printf(text, "; action = %s_DO_%s\n", side->name, side->actions[action]);
}

static void print_side(GString *text, const Side *side)
{
    g_string_append_printf(text, "\n/* ---- %s ---- */\n\n", side->variable);
    print_names(text, side, "state", "", side->state_name, side->n_states);
    print_names(text, side, "event", "EV_", side->event_name, side->n_events);
    print_actions(text, side);
    g_string_append_printf(text, "\ninline %s_step(event, action)\n{\n    if\n", side->variable);
    for (unsigned from = 0; from < side->n_states; from++)
        for (unsigned event = 0; event < side->n_events; event++)
            print_row(text, side, from, event);
    g_string_append_printf(text, "    :: else -> action = %s_DO_REFUSE_EVENT\n    fi\n}\n", side->name);
}

#define FAILURES 3 /* of the first so many calls each fails or does not */

/* What the exchange calls for one row of the table, in all ways that there are. */
static void print_effects(GString *text, const Side *side, unsigned from, unsigned event)
{
    g_autofree char *here = as_symbol(side->state_name(from)), *on = as_symbol(side->event_name(event));
    g_autoptr(GPtrArray) said = g_ptr_array_new_with_free_func(g_free);

    for (unsigned fails = 0; fails < 1u << FAILURES; fails++) {
        g_autoptr(GString) calls = g_string_new(NULL);
        Recorder recorder = {.calls = calls, .fails = fails};
        unsigned end;
        side->feed(&recorder, from, event, &end);
        g_autofree char *to = as_symbol(side->state_name(end));
        g_string_append_printf(calls, "%s-> %s", calls->len ? " " : "", to);
        if (recorder.n_calls == 0 || g_ptr_array_find_with_equal_func(said, calls->str, g_str_equal, NULL))
            continue;
        g_ptr_array_add(said, g_strdup(calls->str));
        g_string_append_printf(text, " * %s, %s: %s\n", here, on, calls->str);
    }
}

static void print_all_effects(GString *text, const Side *side)
{
    g_string_append_printf(text,
                           "\n/*\n * What the %s's exchange calls for a row, when all of it succeeds, and when the "
                           "last call or calls fail:\n *\n",
                           side->variable);
    for (unsigned from = 0; from < side->n_states; from++)
        for (unsigned event = 0; event < side->n_events; event++) {
            unsigned state = from;
            if (strcmp(side->actions[side->step(&state, event)], "REFUSE_EVENT") != 0)
                print_effects(text, side, from, event);
        }
    g_string_append(text, " */\n");
}

static char *tables(void)
{
    GString *text = g_string_new("/* SPDX-License-Identifier: LGPL-2.1-or-later */\n");

    g_string_append(text, "/*\n * The two tables of migration/handover.c, printed by migration/test-model.c (--print), "
                          "which compares this file with them.\n"
                          " * Included by handover.pml.\n */\n");
    for (size_t i = 0; i < G_N_ELEMENTS(sides); i++) {
        print_side(text, &sides[i]);
        print_all_effects(text, &sides[i]);
    }
    return g_string_free(text, false);
}
static void the_model_has_the_tables_of_the_code(void **state)
{
    g_autofree char *path = g_build_filename(directory, "handover-tables.pml", NULL), *text = NULL,
                    *expected = tables();

    assert_true(g_file_get_contents(path, &text, NULL, NULL));
    if (strcmp(text, expected) != 0)
        fail_msg("%s: is not what the code says: test-model --print prints it anew; then look at what handover.pml "
                 "does for it",
                 path);
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

static char *model(void)
{
    g_autofree char *path = g_build_filename(directory, "handover.pml", NULL);
    char *text = NULL;

    assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return text;
}

/* The words of "mtype:@type = { ... }". */
static char **words_of(const char *type)
{
    g_autofree char *text = model(), *head = g_strdup_printf("mtype:%s = { ", type);
    g_auto(GStrv) parts = g_strsplit(text, head, 2);

    if (!parts[1])
        fail_msg("docs/handover.pml: has no '%s'", head);
    g_auto(GStrv) list = g_strsplit(parts[1], " }", 2);
    return g_strsplit(list[0], ", ", -1);
}

static bool is_record(const char *name)
{
    static const char *const names[] = {
#define X(code, number, text) text,
        VMF_RECORDS(X)
#undef X
    };

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

/* Every message is a record of the stream, and every record that a table's action sends, or that moves a table, is a
 * message. */
static void the_messages_are_the_records_of_the_stream(void **state)
{
    static const char *const needed[] = {"SWITCHOVER", "READY", "REFUSED", "RUN", "RUNNING", "NEVER", "ABORT", "END"};
    g_auto(GStrv) words = words_of("a_message");

    for (char **word = words; *word; word++)
        if (!is_record(*word))
            fail_msg("docs/handover.pml: %s is no record", *word);
    for (size_t i = 0; i < G_N_ELEMENTS(needed); i++)
        assert_true(g_strv_contains((const char *const *)words, needed[i]));
}

/* HELD, UNKNOWN and no answer change nothing at the source: the others are all there. */
static void the_answers_are_those_that_settle(void **state)
{
    g_auto(GStrv) words = words_of("an_answer");
    unsigned n_settling = 0;

    for (VmfAnswer answer = 0; answer < VMF_ANSWER_N; answer++) {
        g_autofree char *name = g_ascii_strup(vmf_answer_name(answer), -1), *word = g_strconcat("SAYS_", name, NULL);
        VmfSourceExchange exchange = {.table = &vmf_source_table, .state = VMF_SOURCE_ASKING, .asked = true};
        bool settles = answer == VMF_ANSWER_RUNNING || answer == VMF_ANSWER_STARTED || answer == VMF_ANSWER_NEVER;
        if (!settles) {
            vmf_source_exchange_answer(&exchange, answer);
            assert_int_equal(exchange.state, VMF_SOURCE_ASKING);
            assert_false(exchange.asked);
        }
        assert_int_equal(settles, g_strv_contains((const char *const *)words, word));
        n_settling += settles;
    }
    assert_int_equal(n_settling, g_strv_length(words));
}

/* Each state of the target's and the source's entry is in the model, and no other. */
static void the_entries_are_those_of_the_journal(void **state)
{
    g_auto(GStrv) words = words_of("an_entry");

    assert_int_equal(g_strv_length(words), VMF_JOURNAL_N);
    assert_true(g_strv_contains((const char *const *)words, "NO_ENTRY"));
    for (VmfJournalState entry = VMF_JOURNAL_NONE + 1; entry < VMF_JOURNAL_N; entry++) {
        g_autofree char *name = g_ascii_strup(vmf_journal_state_name(entry), -1),
                        *word = g_strconcat("IS_", name, NULL);
        assert_true(g_strv_contains((const char *const *)words, word));
    }
}

/* ---- what the model came on, in the code ------------------------------------------------------------------------ */

/* END without gone(T), then a crash: the target has forgotten T, says NEVER, and the machine is run anew beside the
 * guest. */
static void end_waits_for_gone(void **state)
{
    for (unsigned fails = 0; fails < 2; fails++) {
        g_autoptr(GString) calls = g_string_new(NULL);
        Recorder recorder = {.calls = calls, .fails = fails};
        VmfSourceExchange exchange;
        vmf_source_exchange_init(&exchange, &source_ops, &recorder, true, 10);
        exchange.state = VMF_SOURCE_COMMITTING;
        exchange.journaled = true;
        assert_false(exchange.may_end);
        vmf_source_exchange_feed(&exchange, VMF_SOURCE_EV_RUNNING);
        assert_int_equal(exchange.state, VMF_SOURCE_GONE);
        assert_int_equal(exchange.may_end, fails == 0);
    }
}

/* A person who has nothing to resolve changes nothing, also not what will be asked. */
static void what_is_not_held_is_not_resolved(void **state)
{
    g_autoptr(GString) calls = g_string_new(NULL);
    Recorder recorder = {.calls = calls};
    VmfSourceExchange exchange;

    vmf_source_exchange_init(&exchange, &source_ops, &recorder, true, 10);
    exchange.state = VMF_SOURCE_COMMITTING;
    assert_false(vmf_source_exchange_resolve(&exchange, true, false));
    assert_int_equal(exchange.question, VMF_QUESTION_QUERY);
    exchange.state = VMF_SOURCE_HELD;
    assert_true(vmf_source_exchange_resolve(&exchange, true, false));
    assert_int_equal(exchange.question, VMF_QUESTION_ABORT);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_model_has_the_tables_of_the_code),
        cmocka_unit_test(the_messages_are_the_records_of_the_stream),
        cmocka_unit_test(the_answers_are_those_that_settle),
        cmocka_unit_test(the_entries_are_those_of_the_journal),
        cmocka_unit_test(end_waits_for_gone),
        cmocka_unit_test(what_is_not_held_is_not_resolved),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s DIRECTORY-OF-DOCS | --print\n", argv[0]);
        return 2;
    }
    if (strcmp(argv[1], "--print") == 0) {
        g_autofree char *text = tables();
        fputs(text, stdout);
        return 0;
    }
    directory = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
