/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asking what became of a token: over a memory link, with somebody at the other end who follows a script. */
#include <vmferry/handover.h>

#include <pthread.h>
#include <string.h>

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "stream/channel.h"
#include "stream/clock.h"
#include "stream/header.h"
#include "stream/message.h"

#define SOON_NS (100 * VMF_NS_PER_MS)
#define LONG_NS (60 * VMF_NS_PER_S)

static const uint8_t TOKEN[16] = "fifteen letters", OTHER[16] = "another fifteen", ID[16] = "the directory's";
static const uint8_t ANYBODY[16];

/* What the other end does with the channel, once it has read the question. */
typedef enum {
    SAY,          /* ANSWER with the fields below */
    SAY_SLOWLY,   /* half of it, and then nothing */
    SAY_LATER,    /* an optional record of no known type, then the ANSWER */
    SAY_TWICE,    /* the same ANSWER after it: nobody reads it */
    SAY_RUNNING,  /* another record */
    SAY_UNKNOWN,  /* a record of no known type */
    SAY_GARBAGE,  /* octets that are no record */
    SAY_TOO_LONG, /* an ANSWER with more octets than its fields */
    SAY_CUT_SHORT,
    SAY_NOTHING, /* and wait */
    HANG_UP,
} Line;

typedef struct {
    Line line;
    VmfAnswerMessage answer;
    VmfQuestion expected;
    VmfListener *listener;
    bool asked_well;
} Script;

static void speak(const Script *script, VmfChannel *channel, VmfStreamFormat format)
{
    g_autoptr(VmfRecordWriter) writer = vmf_record_writer_new(channel, format);
    static const uint8_t body[48], noise[64] = "HTTP/1.1 400 Bad Request";
    VmfChannel *near, *far;
    uint8_t half[36];

    switch (script->line) {
    case SAY_LATER:
        vmf_record_write(writer, 0x80000077u, body, sizeof(body), NULL);
        vmf_answer_send(writer, &script->answer, NULL);
        break;
    case SAY_TWICE:
        vmf_answer_send(writer, &script->answer, NULL);
        /* fall through */
    case SAY:
        vmf_answer_send(writer, &script->answer, NULL);
        break;
    case SAY_SLOWLY:
    case SAY_CUT_SHORT: /* the first octets of what would have been a good answer */
        vmf_channel_memory_pair(0, &near, &far);
        VmfRecordWriter *aside = vmf_record_writer_new(near, format);
        vmf_answer_send(aside, &script->answer, NULL);
        vmf_channel_read_all(far, half, sizeof(half), NULL);
        vmf_channel_write_all(channel, half, sizeof(half), NULL);
        vmf_record_writer_free(aside);
        vmf_channel_free(near);
        vmf_channel_free(far);
        break;
    case SAY_RUNNING:
        vmf_token_send(writer, VMF_RECORD_RUNNING, TOKEN, NULL);
        break;
    case SAY_UNKNOWN:
        vmf_record_write(writer, 0x77, body, 40, NULL);
        break;
    case SAY_GARBAGE:
        vmf_channel_write_all(channel, noise, sizeof(noise), NULL);
        break;
    case SAY_TOO_LONG:
        vmf_record_write(writer, VMF_RECORD_ANSWER, body, sizeof(body), NULL);
        break;
    default:
        break;
    }
}

/* Reads the opening and the question as any target does, then follows the script. */
static void *answerer(void *opaque)
{
    Script *script = opaque;
    g_autoptr(VmfChannel) channel = vmf_listener_accept(script->listener, LONG_NS, NULL);
    uint8_t wire[VMF_PREAMBLE_SIZE], octet;
    VmfTokenPreamble preamble;
    VmfStreamFormat format;
    VmfQuestion question;
    VmfRecord record;

    if (!channel || !vmf_channel_read_all(channel, wire, sizeof(wire), NULL) ||
        vmf_opening_classify(wire) != VMF_OPENING_TOKEN || !vmf_token_preamble_decode(wire, &preamble, &format, NULL))
        return NULL;
    g_autoptr(VmfRecordReader) reader = vmf_record_reader_new(channel, format);
    script->asked_well = memcmp(preamble.token, TOKEN, sizeof(TOKEN)) == 0 && vmf_record_read(reader, &record, NULL) &&
                         vmf_question_decode(&record, TOKEN, &question, NULL) && question == script->expected;
    speak(script, channel, format);
    bool ended = script->line == HANG_UP || script->line == SAY_CUT_SHORT;
    while (!ended && vmf_channel_read_all_or_end(channel, &octet, 1, &ended, NULL)) /* until the asker goes */
        ;
    return NULL;
}

static VmfAnswer ask(Script *script, VmfQuestion question, const uint8_t *id, int64_t timeout_ns, GError **error)
{
    VmfConnector *connector;
    pthread_t thread;

    script->expected = question;
    vmf_memory_link_new(0, &connector, &script->listener);
    assert_int_equal(pthread_create(&thread, NULL, answerer, script), 0);
    VmfAnswer answer = vmf_handover_ask(connector, question, TOKEN, id, timeout_ns, error);
    pthread_join(thread, NULL);
    vmf_connector_free(connector);
    vmf_listener_free(script->listener);
    assert_true(script->asked_well);
    assert_true((answer == VMF_ANSWER_NONE) == (error && *error));
    return answer;
}

static Script script_of(Line line, VmfAnswer answer)
{
    Script script = {.line = line, .answer.answer = answer};

    memcpy(script.answer.token, TOKEN, sizeof(TOKEN));
    memcpy(script.answer.state_directory, ID, sizeof(ID));
    return script;
}

static Line line_for(VmfQuestion question)
{
    static const Line lines[] = {SAY, SAY_TWICE, SAY_LATER};
    return lines[question];
}

static void test_answers(void **state)
{
    for (VmfQuestion question = VMF_QUESTION_QUERY; question <= VMF_QUESTION_INQUIRE; question++)
        for (VmfAnswer answer = VMF_ANSWER_NONE + 1; answer < VMF_ANSWER_N; answer++) {
            g_autoptr(GError) error = NULL;
            Script script = script_of(line_for(question), answer);
            if (answer == VMF_ANSWER_UNKNOWN && question != VMF_QUESTION_INQUIRE)
                continue;
            assert_int_equal(ask(&script, question, ID, LONG_NS, &error), answer);
        }
}

/* Whose word does not count: no answer, and the error says whose it was. */
static void refused(Script *script, VmfQuestion question, const uint8_t *id, int wanted)
{
    g_autoptr(GError) error = NULL;

    assert_int_equal(ask(script, question, id, LONG_NS, &error), VMF_ANSWER_NONE);
    if (!g_error_matches(error, VMF_ERROR, wanted))
        fail_msg("%s: %s", vmf_error_id(error), error->message);
}

static void test_whose_word_counts(void **state)
{
    g_autoptr(GError) error = NULL;

    for (VmfQuestion question = VMF_QUESTION_QUERY; question <= VMF_QUESTION_INQUIRE; question++) {
        Script script = script_of(SAY, VMF_ANSWER_NEVER);
        memcpy(script.answer.state_directory, OTHER, sizeof(OTHER));
        refused(&script, question, ID, VMF_ERROR_PEER);
        memset(script.answer.state_directory, 0, 16); /* keeps no journal */
        refused(&script, question, ID, VMF_ERROR_PEER);
        script = script_of(SAY, VMF_ANSWER_NEVER);
        memcpy(script.answer.token, OTHER, sizeof(OTHER));
        refused(&script, question, ID, VMF_ERROR_RECORD_BODY);
    }
    /* An offer that named nobody: what anybody says is good to know, and decides nothing. */
    for (unsigned zeros = 0; zeros < 2; zeros++) {
        Script script = script_of(SAY, VMF_ANSWER_NEVER);
        if (zeros)
            memset(script.answer.state_directory, 0, 16);
        refused(&script, VMF_QUESTION_QUERY, ANYBODY, VMF_ERROR_PEER);
        refused(&script, VMF_QUESTION_ABORT, ANYBODY, VMF_ERROR_PEER);
        assert_int_equal(ask(&script, VMF_QUESTION_INQUIRE, ANYBODY, LONG_NS, &error), VMF_ANSWER_NEVER);
    }
}

/* UNKNOWN says that the question changed nothing, so nobody may say it to one that does. */
static void test_unknown_is_for_inquiries(void **state)
{
    Script script = script_of(SAY, VMF_ANSWER_UNKNOWN);

    refused(&script, VMF_QUESTION_QUERY, ID, VMF_ERROR_RECORD_BODY);
    refused(&script, VMF_QUESTION_ABORT, ID, VMF_ERROR_RECORD_BODY);
}

static void test_nonsense(void **state)
{
    static const struct {
        Line line;
        int wanted;
    } rows[] = {
        {SAY_RUNNING, VMF_ERROR_RECORD_ORDER}, {SAY_UNKNOWN, VMF_ERROR_RECORD_UNKNOWN},
        {SAY_TOO_LONG, VMF_ERROR_RECORD_BODY}, {SAY_GARBAGE, VMF_ERROR_RECORD_LENGTH},
        {SAY_CUT_SHORT, VMF_ERROR_CUT},        {HANG_UP, VMF_ERROR_CUT},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        Script script = script_of(rows[i].line, VMF_ANSWER_NEVER);
        refused(&script, VMF_QUESTION_QUERY, ID, rows[i].wanted);
    }
    /* Answers that are no answers. */
    for (unsigned answer = 0; answer < 2; answer++) {
        Script script = script_of(SAY, answer ? VMF_ANSWER_N : VMF_ANSWER_NONE);
        refused(&script, VMF_QUESTION_INQUIRE, ID, VMF_ERROR_RECORD_BODY);
    }
}

/* Who says nothing, or too little, does not keep the asker. */
static void test_silence(void **state)
{
    static const Line lines[] = {SAY_NOTHING, SAY_SLOWLY};

    for (size_t i = 0; i < G_N_ELEMENTS(lines); i++) {
        g_autoptr(GError) error = NULL;
        Script script = script_of(lines[i], VMF_ANSWER_NEVER);
        assert_int_equal(ask(&script, VMF_QUESTION_QUERY, ID, SOON_NS, &error), VMF_ANSWER_NONE);
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    }
}

/* Nobody at all: a connection that fails, and one that was shut down while it was asked for. */
static void test_nobody(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfConnector) connector = vmf_connector_new("unix:/nowhere/at/all", 0, &error);

    assert_non_null(connector);
    assert_int_equal(vmf_handover_ask(connector, VMF_QUESTION_QUERY, TOKEN, ID, SOON_NS, &error), VMF_ANSWER_NONE);
    assert_non_null(error);
    g_clear_error(&error);
    vmf_connector_shutdown(connector);
    assert_int_equal(vmf_handover_ask(connector, VMF_QUESTION_QUERY, TOKEN, ID, SOON_NS, &error), VMF_ANSWER_NONE);
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
}

/* A connector without a way back cannot ask; it says so and does not wait. */
static void test_one_way(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfConnector) connector = vmf_connector_new("exec:cat", VMF_CONNECT_ONE_WAY, &error);

    assert_non_null(connector);
    assert_int_equal(vmf_handover_ask(connector, VMF_QUESTION_QUERY, TOKEN, ID, LONG_NS, &error), VMF_ANSWER_NONE);
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
}

static void test_names(void **state)
{
    static const char *const names[] = {"none", "running", "started", "never", "held", "unknown"};

    for (VmfAnswer answer = VMF_ANSWER_NONE; answer < VMF_ANSWER_N; answer++)
        assert_string_equal(vmf_answer_name(answer), names[answer]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_whose_word_counts),
        cmocka_unit_test(test_unknown_is_for_inquiries),
        cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_one_way),
        cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
