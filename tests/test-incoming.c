/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who else calls while a guest arrives: other sources, strangers, page channels of other sessions. They are sent away, and the
 * migration goes on. What goes wrong on a page channel that was taken ends the session, and the source is told on the main channel.
 */
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "stream/channel.h"
#include "tests/forge.h"

static const VmfStreamFormat format = {.version = 3};

/* Up to and with PAGE_CHANNELS. */
static ForgeSource *begin(ForgeTarget *target, unsigned n_pages)
{
    ForgeSource *source = forge_source_new(target, format);

    source->n_pages = n_pages;
    for (ForgeStep step = FORGE_IMAGE; step <= FORGE_PAGE_CHANNELS; step++)
        assert_true(forge_step(source, step));
    return source;
}

static void join(ForgeSource *source, ForgeTarget *target, unsigned channel)
{
    VmfPreamble preamble = forge_preamble(channel);

    assert_true(forge_join(source, target, &preamble));
}

static void finish_well(ForgeSource *source, ForgeTarget *target)
{
    for (ForgeStep step = FORGE_ROUND; step < FORGE_STEPS; step++)
        assert_true(forge_step(source, step));
    forge_target_finish(target, false);
    if (!target->done)
        fail_msg("%s", target->error->message);
    assert_true(target->guest.running);
    forge_source_free(source);
    forge_target_free(target);
}

static void expect_event(ForgeTarget *target, unsigned n, const char *id)
{
    g_autofree char *wanted = g_strdup_printf(" %s: ", id);

    forge_target_await_events(target, n);
    pthread_mutex_lock(&target->lock);
    g_auto(GStrv) lines = g_strsplit(target->events->str, "\n", -1);
    if (!strstr(lines[n - 1], wanted))
        fail_msg("wanted%s, is %s", wanted, lines[n - 1]);
    pthread_mutex_unlock(&target->lock);
}

static void test_page_channels(void **state)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = begin(target, 2);

    join(source, target, 1);
    join(source, target, 0);
    finish_well(source, target);
}

/* A quick source's page channel may be there before its announcement has been read. */
typedef struct {
    ForgeSource *source;
    ForgeTarget *target;
} Early;

static void *join_early(void *opaque)
{
    Early *early = opaque;
    VmfPreamble preamble = forge_preamble(0);

    return GINT_TO_POINTER(forge_join(early->source, early->target, &preamble));
}

static void test_a_page_channel_that_comes_early(void **state)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = forge_source_new(target, format);
    Early early = {source, target};
    void *joined;
    pthread_t thread;

    source->n_pages = 1;
    for (ForgeStep step = FORGE_IMAGE; step < FORGE_PAGE_CHANNELS; step++)
        assert_true(forge_step(source, step));
    pthread_create(&thread, NULL, join_early, &early);
    g_usleep(20000);
    assert_true(forge_step(source, FORGE_PAGE_CHANNELS));
    pthread_join(thread, &joined);
    assert_true(GPOINTER_TO_INT(joined));
    finish_well(source, target);
}

static void turned_away(ForgeSource *source, ForgeTarget *target, VmfPreamble preamble, unsigned n)
{
    assert_false(forge_join(source, target, &preamble));
    expect_event(target, n, "channel.handshake");
}

static void test_page_channels_of_others(void **state)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = begin(target, 2);
    VmfPreamble other_session = forge_preamble(0), other_epoch = forge_preamble(0);

    other_session.session[15] ^= 1;
    other_epoch.epoch = 2;
    turned_away(source, target, other_session, 1);
    turned_away(source, target, other_epoch, 2);
    turned_away(source, target, forge_preamble(2), 3);
    turned_away(source, target, forge_preamble(65535), 4);
    join(source, target, 0);
    turned_away(source, target, forge_preamble(0), 5);
    join(source, target, 1);
    turned_away(source, target, forge_preamble(1), 6);
    finish_well(source, target);
}

static void test_a_page_channel_of_nothing(void **state)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = forge_source_new(target, format);

    turned_away(source, target, forge_preamble(0), 1);
    for (ForgeStep step = FORGE_IMAGE; step <= FORGE_PAGE_CHANNELS; step++)
        assert_true(forge_step(source, step));
    turned_away(source, target, forge_preamble(0), 2); /* pages are to travel on the main channel */
    finish_well(source, target);
}

static void call_with(ForgeTarget *target, const void *octets, size_t length)
{
    VmfChannel *channel = forge_open(target);
    uint8_t octet;
    bool ended = false;

    assert_true(vmf_channel_write_all(channel, octets, length, NULL));
    while (!ended && vmf_channel_read_all_or_end(channel, &octet, 1, &ended, NULL))
        ;
    vmf_channel_free(channel);
}

static void test_others_while_a_guest_arrives(void **state)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = begin(target, 0);

    call_with(target, "GET / HTTP/1.1\r\n\r\n", 18);
    expect_event(target, 1, "stream.magic");
    call_with(target, "VMFPAGES\0\0\0\4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 48);
    expect_event(target, 2, "stream.version");
    ForgeSource *second = forge_source_new(target, format);
    assert_false(forge_all(second));
    assert_string_equal(second->told, "target.busy: here a migration is under way");
    expect_event(target, 3, "state");
    forge_source_free(second);
    finish_well(source, target);
}

/* They hold connections open and say nothing; there is always room for one more. */
static void test_a_crowd(void **state)
{
    ForgeTarget *target = forge_target_new();
    g_autoptr(GPtrArray) crowd = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_channel_free);

    for (unsigned i = 0; i < 160; i++) {
        VmfChannel *channel = forge_open(target);
        assert_true(vmf_channel_write_all(channel, "\xff\xff\xff", i % 4, NULL));
        g_ptr_array_add(crowd, channel);
    }
    ForgeSource *source = begin(target, 1);
    join(source, target, 0);
    finish_well(source, target);
}

/* ---- faults on a page channel ---------------------------------------------------------------------------------------------- */

FORGE_PLANT(unknown, vmf_record_write(s->page_writer[0], 0x33, "what?", 5, NULL))
FORGE_PLANT(a_section, vmf_record_write(s->page_writer[0], VMF_RECORD_SECTION, "\0\0\0\0\3\0\0\0\0\0\0\0\0\0\0", 16, NULL))
FORGE_PLANT(an_end, vmf_record_write(s->page_writer[0], VMF_RECORD_END, NULL, 0, NULL))
FORGE_PLANT(range, VmfWirePages m = {.block = 9, .sequence = s->sequence, .epoch = 1, .n_data = 1, .data = {1}}; forge_pages(s, &m, 1))
FORGE_PLANT(sequence, VmfWirePages m = {.sequence = 77, .epoch = 1, .n_data = 1, .data = {1}}; forge_pages(s, &m, 1))
FORGE_PLANT(wrong_crc, const uint32_t header[4] = {VMF_RECORD_HINT, 0, 0, 1}; vmf_record_write_raw(s->page_writer[0], header, 16, NULL))
FORGE_PLANT(hang_up, vmf_channel_shutdown(s->page[0]))
FORGE_PLANT(count, vmf_u64_send(s->page_writer[0], VMF_RECORD_END_MARK, 77, NULL))
FORGE_PLANT(page_on_main, VmfWirePages m = {.epoch = 1, .n_data = 0, .zero = {1}};
            vmf_record_write_pages(s->writer, &m, NULL, 0, 0, NULL); vmf_record_flush(s->writer, NULL))

static const ForgeRow rows[] = {
    {"unknown record", 0, FORGE_AFTER, FORGE_PAGES, unknown, "stream.record-unknown"},
    {"SECTION", 0, FORGE_AFTER, FORGE_PAGES, a_section, "stream.record-order"},
    {"END", 0, FORGE_AFTER, FORGE_PAGES, an_end, "stream.record-order"},
    {"range", 0, FORGE_AFTER, FORGE_PAGES, range, "ram.range"},
    {"sequence", 0, FORGE_AFTER, FORGE_PAGES, sequence, "stream.record-order"},
    {"CRC", 0, FORGE_AFTER, FORGE_PAGES, wrong_crc, "stream.crc"},
    {"hangs up", 0, FORGE_AFTER, FORGE_PAGES, hang_up, "channel.cut"},
    {"hangs up at once", 0, FORGE_BEFORE, FORGE_PAGES, hang_up, "channel.cut"},
    {"END_MARK", 0, FORGE_INSTEAD, FORGE_END_MARK, count, "ram.counts"},
    {"page on the main channel", 0, FORGE_AFTER, FORGE_ROUND, page_on_main, "stream.record-order"},
};

/* FAILED may overtake what was asked for: it is looked for until the target closes. */
static void play(const ForgeRow *row)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = begin(target, 2);
    bool on_main = row->plant == page_on_main, good = true;

    join(source, target, 0);
    join(source, target, 1);
    for (ForgeStep step = FORGE_ROUND; good && step <= FORGE_READY; step++) {
        if (step == row->step && row->when != FORGE_AFTER)
            row->plant(source);
        if (step != row->step || row->when != FORGE_INSTEAD)
            good = forge_step(source, step);
        if (step == row->step && row->when == FORGE_AFTER)
            row->plant(source);
    }
    assert_false(good);
    if (!*source->told)
        forge_drain(source);
    forge_close(source);
    forge_target_finish(target, false);
    assert_false(target->done || target->guest.running);
    if (strcmp(vmf_error_id(target->error), row->id) != 0)
        fail_msg("%s: wanted %s, is %s", row->name, row->id, target->error->message);
    assert_true(g_str_has_prefix(target->error->message, "page channel 0: ") != on_main);
    assert_string_equal(source->told, row->id);
    assert_true(forge_target_is_empty(target));
    forge_source_free(source);
    forge_target_free(target);
}

static void test_faults_on_page_channels(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        play(&rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_channels),
        cmocka_unit_test(test_a_page_channel_that_comes_early),
        cmocka_unit_test(test_page_channels_of_others),
        cmocka_unit_test(test_a_page_channel_of_nothing),
        cmocka_unit_test(test_others_while_a_guest_arrives),
        cmocka_unit_test(test_a_crowd),
        cmocka_unit_test(test_faults_on_page_channels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
