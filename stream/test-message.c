/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bodies: each message as it is written is read back the same in both byte orders; then every truncation and every changed
 * octet. */
#include "stream/message.h"

#include "stream/test-link.h"

#define BLOCKS 3

/* Reads the one record that was written, as the peer would. */
static VmfRecord read_back(Link *link, uint32_t type)
{
    VmfRecord record = {0};
    GError *error = NULL;

    assert_true(vmf_record_flush(link->writer, NULL));
    if (!vmf_record_read(link->reader, &record, &error))
        fail_msg("%s", error->message);
    assert_int_equal(record.type, type);
    return record;
}

#define FOR_BOTH_ORDERS(link)                                                                                                  \
    for (unsigned swap = 0; swap < 2; swap++)                                                                                  \
        for (Link link = link_new(swap); link.writer; link_free(&link), link.writer = NULL)

/* ---- decoders in one shape -------------------------------------------------------------------------------------------------
 */

static bool try_verdict(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfVerdict out;
    bool good = vmf_verdict_decode(record, swap, &out, error);

    if (good)
        vmf_verdict_clear(&out);
    return good;
}

static bool try_page_channels(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfPageChannels out;
    return vmf_page_channels_decode(record, swap, &out, error);
}

static bool try_hint(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfHint out;
    return vmf_hint_decode(record, swap, &out, error);
}

static bool try_ack(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    g_autoptr(GArray) entries = NULL;
    VmfAck out;

    bool good = vmf_ack_decode(record, swap, &out, &entries, error);
    assert_true(good == (entries != NULL));
    if (good)
        assert_int_equal(entries->len, out.n_entries);
    return good;
}

static bool try_u64(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    uint64_t out;
    return vmf_u64_decode(record, swap, &out, error);
}

/* Any length from the header on is a section. */
static bool try_section(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfSection out;
    bool good = vmf_section_decode(record, swap, &out, error);

    if (good)
        assert_int_equal(out.length, record->checked - VMF_SECTION_META_SIZE);
    return good;
}

static bool try_switchover(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfSwitchover out;
    bool good = vmf_switchover_decode(record, swap, BLOCKS, &out, error);

    if (good)
        vmf_switchover_clear(&out);
    return good;
}

static bool try_ready(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfReady out;
    bool good = vmf_ready_decode(record, swap, BLOCKS, &out, error);

    if (good)
        vmf_ready_clear(&out);
    return good;
}

static bool try_token(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    uint8_t token[VMF_TOKEN_SIZE];
    return vmf_token_decode(record, token, error);
}

static bool try_complaint(const VmfRecord *record, bool swap, void *with_token, GError **error)
{
    g_autofree char *id = NULL, *text = NULL;
    uint8_t token[VMF_TOKEN_SIZE];

    return vmf_complaint_decode(record, swap, with_token ? token : NULL, &id, &text, error);
}

static bool try_report(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfReport out;
    return vmf_report_decode(record, swap, &out, error);
}

static bool try_target_host(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    g_autofree char *name = NULL;
    return vmf_target_host_decode(record, swap, &name, error);
}

static bool try_target_state(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    uint8_t id[16];
    return vmf_target_state_decode(record, id, error);
}

static bool try_question(const VmfRecord *record, bool swap, void *token, GError **error)
{
    VmfQuestion question;
    return vmf_question_decode(record, token, &question, error);
}

static bool try_answer(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfAnswerMessage out;
    bool good = vmf_answer_decode(record, swap, &out, error);

    assert_true(!good || out.answer != VMF_ANSWER_NONE);
    return good;
}

static bool try_empty(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    return vmf_empty_check(record, error);
}

static void try_all(TryDecode decode, const VmfRecord *record, bool swap, void *opaque)
{
    g_autofree uint8_t *body = g_memdup2(record->body, record->checked);

    try_everything(decode, record->type, body, record->checked, swap, opaque);
}

/* ---- tests -----------------------------------------------------------------------------------------------------------------
 */

static void test_verdict(void **state)
{
    FOR_BOTH_ORDERS (link) {
        char *texts[] = {"ram.size: block ram: here 1, there 2", "x", NULL};
        VmfVerdict in = {.features = UINT64_C(0x1122334455667788), .page_channels = 64, .texts = texts}, out;
        assert_true(vmf_verdict_send(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_VERDICT);
        assert_true(vmf_verdict_decode(&record, swap, &out, NULL));
        assert_false(out.accepted);
        assert_true(out.features == in.features && out.page_channels == 64);
        assert_string_equal(out.texts[0], texts[0]);
        assert_string_equal(out.texts[1], "x");
        assert_null(out.texts[2]);
        vmf_verdict_clear(&out);
        try_all(try_verdict, &record, swap, NULL);

        in = (VmfVerdict){.accepted = true};
        assert_true(vmf_verdict_send(link.writer, &in, NULL));
        record = read_back(&link, VMF_RECORD_VERDICT);
        assert_true(vmf_verdict_decode(&record, swap, &out, NULL));
        assert_true(out.accepted && !out.texts[0]);
        vmf_verdict_clear(&out);
    }
}

/* Whatever stands in a text, the peer can read the verdict. */
static void test_verdict_of_any_text(void **state)
{
    g_autofree char *long_text = g_strnfill(5000, 'x'), *broken = g_strnfill(3000, '\xff'), *wide = g_malloc0(3001);
    char *texts[] = {long_text, broken, wide, "a\nb\x7f", "", "cut \xe2\x82", NULL};

    for (unsigned i = 0; i < 1000; i++)
        memcpy(wide + i * 3, "\xe2\x82\xac", 3);
    for (unsigned shift = 0; shift < 4; shift++) { /* so that a bound falls at each octet of a character */
        VmfVerdict in = {.texts = texts}, out;
        Link link = link_new(false);
        GError *error = NULL;
        texts[2] = wide + shift;
        assert_true(vmf_verdict_send(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_VERDICT);
        if (!vmf_verdict_decode(&record, false, &out, &error))
            fail_msg("shift %u: %s", shift, error->message);
        assert_int_equal(g_strv_length(out.texts), 6);
        vmf_verdict_clear(&out);
        link_free(&link);
    }
}

static void test_verdict_is_bounded(void **state)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    Link link = link_new(false);
    VmfVerdict out;

    for (unsigned i = 0; i < 300; i++)
        g_ptr_array_add(texts, (char *)"text");
    g_ptr_array_add(texts, NULL);
    VmfVerdict in = {.texts = (char **)texts->pdata};
    assert_true(vmf_verdict_send(link.writer, &in, NULL));
    VmfRecord record = read_back(&link, VMF_RECORD_VERDICT);
    assert_true(vmf_verdict_decode(&record, false, &out, NULL));
    assert_int_equal(g_strv_length(out.texts), VMF_VERDICT_TEXTS_MAX);
    vmf_verdict_clear(&out);
    link_free(&link);
}

static void test_page_channels(void **state)
{
    FOR_BOTH_ORDERS (link) {
        VmfPageChannels in = {.session = "fifteen letters", .count = 64, .epoch = 0x01020304}, out;
        assert_true(vmf_page_channels_queue(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_PAGE_CHANNELS);
        assert_true(vmf_page_channels_decode(&record, swap, &out, NULL));
        assert_memory_equal(&out, &in, sizeof(in));
        try_all(try_page_channels, &record, swap, NULL);
        in.count = 65;
        assert_true(vmf_page_channels_queue(link.writer, &in, NULL));
        record = read_back(&link, VMF_RECORD_PAGE_CHANNELS);
        assert_false(vmf_page_channels_decode(&record, swap, &out, NULL));
    }
}

static void test_hint(void **state)
{
    FOR_BOTH_ORDERS (link) {
        VmfHint in = {.block = 7, .chunk = UINT64_C(0x0102030405060708), .data = {1, 2, 3, 4, 5, 6, 7, UINT64_MAX}}, out = {0};
        assert_true(vmf_hint_queue(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_HINT);
        assert_true(vmf_hint_decode(&record, swap, &out, NULL));
        assert_true(out.block == in.block && out.chunk == in.chunk);
        assert_memory_equal(out.data, in.data, sizeof(in.data));
        try_all(try_hint, &record, swap, NULL);
    }
}

static void test_ack(void **state)
{
    FOR_BOTH_ORDERS (link) {
        VmfAckEntry entries[] = {{1, 2, 3}, {4, UINT64_MAX, UINT64_C(0x0102030405060708)}};
        VmfAck in = {1, 63, UINT64_C(0x1112131415161718), 2}, out = {0};
        g_autoptr(GArray) got = NULL;
        assert_true(vmf_ack_send(link.writer, &in, entries, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_ACK);
        assert_true(vmf_ack_decode(&record, swap, &out, &got, NULL));
        assert_true(out.epoch == in.epoch && out.channel == in.channel && out.sequence == in.sequence && out.n_entries == in.n_entries);
        for (unsigned i = 0; i < 2; i++) {
            const VmfAckEntry *entry = &g_array_index(got, VmfAckEntry, i);
            assert_true(entry->block == entries[i].block && entry->chunk == entries[i].chunk && entry->sum == entries[i].sum);
        }
        try_all(try_ack, &record, swap, NULL);
    }
}

static void test_ack_is_bounded(void **state)
{
    size_t length = 24 + 24 * (size_t)(VMF_ACK_ENTRIES_MAX + 1);
    g_autofree uint8_t *body = g_malloc0(length);
    uint32_t count = VMF_ACK_ENTRIES_MAX;

    memcpy(body + 16, &count, 4);
    assert_true(try_once(try_ack, VMF_RECORD_ACK, body, length - 24, false, NULL));
    count++;
    memcpy(body + 16, &count, 4);
    assert_false(try_once(try_ack, VMF_RECORD_ACK, body, length, false, NULL));
}

static void test_numbers(void **state)
{
    FOR_BOTH_ORDERS (link) {
        uint64_t out = 0;
        assert_true(vmf_u64_send(link.writer, VMF_RECORD_PING, UINT64_C(0x0102030405060708), NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_PING);
        assert_true(vmf_u64_decode(&record, swap, &out, NULL));
        assert_true(out == UINT64_C(0x0102030405060708));
        try_all(try_u64, &record, swap, NULL);

        assert_true(vmf_round_queue(link.writer, 3, UINT64_C(0x0102030405060708), NULL));
        record = read_back(&link, VMF_RECORD_ROUND);
        assert_int_equal(record.length, 16);
    }
}

static void test_section(void **state)
{
    static const char content[] = "nineteen characters";
    XXH3_state_t *sum = XXH3_createState();

    XXH3_64bits_reset(sum);
    FOR_BOTH_ORDERS (link) {
        VmfSection in = {5, VMF_SECTION_LAST, 2, (const uint8_t *)content, 19}, out;
        assert_true(vmf_section_queue(link.writer, &in, sum, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_SECTION);
        assert_true(vmf_section_decode(&record, swap, &out, NULL));
        assert_true(out.id == 5 && out.flags == VMF_SECTION_LAST && out.part == 2 && out.length == 19);
        assert_memory_equal(out.content, content, 19);
        for (size_t n = 0; n < record.checked; n++)
            assert_true(try_once(try_section, record.type, record.body, n, swap, NULL) == (n >= VMF_SECTION_META_SIZE));
        uint8_t body[35];
        memcpy(body, record.body, sizeof(body));
        for (size_t at = 0; at < sizeof(body); at++)
            for (unsigned bit = 0; bit < 8; bit++) {
                body[at] ^= 1u << bit;
                bool good = try_once(try_section, record.type, body, sizeof(body), swap, NULL);
                assert_false(good && at >= 12 && at < 16); /* reserved */
                body[at] ^= 1u << bit;
            }
    }
    XXH3_freeState(sum);
}

static void test_section_rules(void **state)
{
    size_t length = VMF_SECTION_META_SIZE + VMF_SECTION_CONTENT_MAX + 1;
    g_autofree uint32_t *body = g_malloc0(length + 8);

    body[1] = VMF_SECTION_FIRST;
    assert_true(try_once(try_section, VMF_RECORD_SECTION, (uint8_t *)body, length - 1, false, NULL));
    assert_false(try_once(try_section, VMF_RECORD_SECTION, (uint8_t *)body, length, false, NULL));
    body[2] = 1; /* first, and not part 0 */
    assert_false(try_once(try_section, VMF_RECORD_SECTION, (uint8_t *)body, 32, false, NULL));
    body[1] = 0;
    assert_true(try_once(try_section, VMF_RECORD_SECTION, (uint8_t *)body, 32, false, NULL));
    body[2] = 0; /* part 0, and not first */
    assert_false(try_once(try_section, VMF_RECORD_SECTION, (uint8_t *)body, 32, false, NULL));
    body[1] = VMF_SECTION_FIRST | 4;
    assert_false(try_once(try_section, VMF_RECORD_SECTION, (uint8_t *)body, 32, false, NULL));
}

static void test_switchover(void **state)
{
    FOR_BOTH_ORDERS (link) {
        VmfBlockSummary blocks[BLOCKS] = {{1, 2, 3, 4}, {5, 6, 7, UINT64_MAX}, {0, 0, 0, 0}};
        VmfSwitchover in = {.token = "fifteen letters",
                            .flags = 3,
                            .static_sum = UINT64_C(0x0102030405060708),
                            .device_sum = 9,
                            .n_blocks = BLOCKS,
                            .blocks = blocks},
                      out;
        assert_true(vmf_switchover_send(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_SWITCHOVER);
        assert_true(vmf_switchover_decode(&record, swap, BLOCKS, &out, NULL));
        assert_memory_equal(out.token, in.token, 16);
        assert_true(out.flags == 3 && out.static_sum == in.static_sum && out.device_sum == 9 && out.n_blocks == BLOCKS);
        assert_memory_equal(out.blocks, blocks, sizeof(blocks));
        vmf_switchover_clear(&out);
        assert_false(vmf_switchover_decode(&record, swap, BLOCKS - 1, &out, NULL));
        assert_false(vmf_switchover_decode(&record, swap, BLOCKS + 1, &out, NULL));
        assert_null(out.blocks);
        try_all(try_switchover, &record, swap, NULL);
    }
}

static void test_ready(void **state)
{
    FOR_BOTH_ORDERS (link) {
        uint64_t sums[BLOCKS] = {1, UINT64_MAX, UINT64_C(0x0102030405060708)};
        VmfReady in = {.token = "fifteen letters",
                       .state_directory = "another fifteen",
                       .flags = 1,
                       .static_sum = 2,
                       .device_sum = UINT64_C(0x0102030405060708),
                       .n_blocks = BLOCKS,
                       .sums = sums},
                 out;
        assert_true(vmf_ready_send(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_READY);
        assert_true(vmf_ready_decode(&record, swap, BLOCKS, &out, NULL));
        assert_memory_equal(out.token, in.token, 16);
        assert_memory_equal(out.state_directory, in.state_directory, 16);
        assert_true(out.flags == 1 && out.static_sum == 2 && out.device_sum == in.device_sum);
        assert_memory_equal(out.sums, sums, sizeof(sums));
        vmf_ready_clear(&out);
        assert_false(vmf_ready_decode(&record, swap, BLOCKS + 1, &out, NULL));
        assert_null(out.sums);
        try_all(try_ready, &record, swap, NULL);
    }
}

static void test_token(void **state)
{
    FOR_BOTH_ORDERS (link) {
        uint8_t token[VMF_TOKEN_SIZE] = "fifteen letters", out[VMF_TOKEN_SIZE];
        assert_true(vmf_token_send(link.writer, VMF_RECORD_RUN, token, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_RUN);
        assert_true(vmf_token_decode(&record, out, NULL));
        assert_memory_equal(out, token, sizeof(token));
        try_all(try_token, &record, swap, NULL);
    }
}

static void complaint(Link *link, bool swap, const uint8_t *token, const char *message)
{
    uint32_t type = token ? VMF_RECORD_REFUSED : VMF_RECORD_FAILED;
    g_autoptr(GError) why = g_error_new_literal(VMF_ERROR, VMF_ERROR_RAM_SUM, message);
    g_autofree char *id = NULL, *text = NULL;
    uint8_t out[VMF_TOKEN_SIZE];

    assert_true(vmf_complaint_send(link->writer, type, token, why, NULL));
    VmfRecord record = read_back(link, type);
    assert_true(vmf_complaint_decode(&record, swap, token ? out : NULL, &id, &text, NULL));
    assert_string_equal(id, "ram.sum");
    assert_true(strlen(text) > 0 || !*message);
    if (token)
        assert_memory_equal(out, token, sizeof(out));
    if (strlen(message) < 100)
        try_all(try_complaint, &record, swap, (void *)token);
}

static void test_complaints(void **state)
{
    g_autofree char *long_text = g_strnfill(100000, '\xfe');
    static const uint8_t token[VMF_TOKEN_SIZE] = "fifteen letters";

    FOR_BOTH_ORDERS (link) {
        complaint(&link, swap, token, "sum differs");
        complaint(&link, swap, NULL, "sum differs");
        complaint(&link, swap, NULL, "two\nlines, a tab\tand \xc3");
        complaint(&link, swap, NULL, "");
        complaint(&link, swap, token, long_text);
    }
}

static void test_report(void **state)
{
    FOR_BOTH_ORDERS (link) {
        VmfReport in = {.token = "fifteen letters", .gap_known = true, .guest_gap_ns = UINT64_C(0x0102030405060708)}, out;
        assert_true(vmf_report_send(link.writer, &in, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_REPORT);
        assert_true(vmf_report_decode(&record, swap, &out, NULL));
        assert_memory_equal(out.token, in.token, 16);
        assert_true(out.gap_known && !out.not_started && out.guest_gap_ns == in.guest_gap_ns);
        try_all(try_report, &record, swap, NULL);
        in.gap_known = false;
        in.not_started = true;
        assert_true(vmf_report_send(link.writer, &in, NULL));
        record = read_back(&link, VMF_RECORD_REPORT);
        assert_true(vmf_report_decode(&record, swap, &out, NULL));
        assert_true(!out.gap_known && out.not_started);
    }
}

static void test_target_host(void **state)
{
    FOR_BOTH_ORDERS (link) {
        g_autofree char *name = NULL;
        assert_true(vmf_target_host_send(link.writer, "host-b.example", NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_TARGET_HOST);
        assert_true(vmf_target_host_decode(&record, swap, &name, NULL));
        assert_string_equal(name, "host-b.example");
        try_all(try_target_host, &record, swap, NULL);
    }
}

static void test_target_state(void **state)
{
    FOR_BOTH_ORDERS (link) {
        uint8_t id[16] = "fifteen letters", out[16], zeros[16] = {0};
        assert_true(vmf_target_state_send(link.writer, id, NULL));
        VmfRecord record = read_back(&link, VMF_RECORD_TARGET_STATE);
        assert_true(vmf_target_state_decode(&record, out, NULL));
        assert_memory_equal(out, id, sizeof(id));
        try_all(try_target_state, &record, swap, NULL);
        assert_true(vmf_target_state_send(link.writer, zeros, NULL));
        record = read_back(&link, VMF_RECORD_TARGET_STATE);
        assert_false(try_once(try_target_state, record.type, record.body, record.length, swap, NULL));
    }
}

static void test_questions(void **state)
{
    static const uint32_t types[] = {VMF_RECORD_QUERY, VMF_RECORD_ABORT, VMF_RECORD_INQUIRE};

    FOR_BOTH_ORDERS (link) {
        for (VmfQuestion question = VMF_QUESTION_QUERY; question <= VMF_QUESTION_INQUIRE; question++) {
            uint8_t token[VMF_TOKEN_SIZE] = "fifteen letters", other[VMF_TOKEN_SIZE] = "another fifteen";
            VmfQuestion out;
            assert_true(vmf_question_send(link.writer, question, token, NULL));
            VmfRecord record = read_back(&link, types[question]);
            assert_true(vmf_question_decode(&record, token, &out, NULL));
            assert_int_equal(out, question);
            try_all(try_question, &record, swap, token);
            g_autoptr(GError) error = NULL;
            assert_false(vmf_question_decode(&record, other, &out, &error));
            assert_error(error, VMF_ERROR_RECORD_BODY);
            record.type = VMF_RECORD_RUN;
            assert_false(vmf_question_decode(&record, token, &out, &error));
            assert_error(error, VMF_ERROR_RECORD_ORDER);
        }
    }
}

static void test_answers(void **state)
{
    FOR_BOTH_ORDERS (link) {
        for (unsigned answer = 0; answer <= VMF_ANSWER_N; answer++) {
            VmfAnswerMessage in = {.token = "fifteen letters", .state_directory = "another fifteen", .answer = answer}, out;
            assert_true(vmf_answer_send(link.writer, &in, NULL));
            VmfRecord record = read_back(&link, VMF_RECORD_ANSWER);
            assert_int_equal(record.length, 40);
            bool known = answer != VMF_ANSWER_NONE && answer != VMF_ANSWER_N;
            assert_int_equal(vmf_answer_decode(&record, swap, &out, NULL), known);
            if (!known)
                continue;
            assert_int_equal(out.answer, answer);
            assert_memory_equal(out.token, in.token, sizeof(in.token));
            assert_memory_equal(out.state_directory, in.state_directory, sizeof(in.state_directory));
            try_all(try_answer, &record, swap, NULL);
        }
    }
}

static void test_empty(void **state)
{
    assert_true(try_once(try_empty, VMF_RECORD_END, NULL, 0, false, NULL));
    assert_false(try_once(try_empty, VMF_RECORD_END, (const uint8_t *)"\0", 1, false, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdict),
        cmocka_unit_test(test_verdict_of_any_text),
        cmocka_unit_test(test_verdict_is_bounded),
        cmocka_unit_test(test_page_channels),
        cmocka_unit_test(test_hint),
        cmocka_unit_test(test_ack),
        cmocka_unit_test(test_ack_is_bounded),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_section),
        cmocka_unit_test(test_section_rules),
        cmocka_unit_test(test_switchover),
        cmocka_unit_test(test_ready),
        cmocka_unit_test(test_token),
        cmocka_unit_test(test_complaints),
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_target_host),
        cmocka_unit_test(test_target_state),
        cmocka_unit_test(test_questions),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
