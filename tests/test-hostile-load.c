/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stream that goes wrong after it was accepted: the session ends with one error and its id, the source is told, the guest's memory is
 * given back, and the guest does not run. Once READY was sent, what is wrong is a hold: the source may have decided already.
 */
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "stream/channel.h"
#include "stream/header.h"
#include "tests/forge.h"

#define UNKNOWN 0x33u
#define V2 (1u << 2)
#define V3 (1u << 3)
#define BOTH (V2 | V3)

/* ---- faults ---------------------------------------------------------------------------------------------------------------- */

/* A record that would be right after those of FORGE_PAGES, for the tests to spoil. */
static VmfWirePages good_meta(const ForgeSource *s)
{
    return (VmfWirePages){.sequence = s->sequence, .epoch = 1, .n_data = 1, .data = {1}};
}

static void u32_record(ForgeSource *s, uint32_t type, const uint32_t *words, unsigned n)
{
    VmfPack pack = {g_byte_array_new(), s->format.swap};

    for (unsigned i = 0; i < n; i++)
        vmf_pack_u32(&pack, words[i]);
    forge_record(s, type, pack.bytes->data, pack.bytes->len);
    g_byte_array_unref(pack.bytes);
}

static void section(ForgeSource *s, uint32_t id, uint32_t flags, uint32_t part, const char *content)
{
    VmfSection message = {id, flags, part, (const uint8_t *)content, (uint32_t)strlen(content)};

    vmf_section_queue(s->writer, &message, s->device_sum, NULL);
    vmf_record_flush(s->writer, NULL);
}

static void page_channels(ForgeSource *s, uint32_t count, uint32_t epoch)
{
    VmfPageChannels message = {.session = "forged session.", .count = count, .epoch = epoch};

    vmf_page_channels_queue(s->writer, &message, NULL);
    vmf_record_flush(s->writer, NULL);
}

#define PAGES(name, ...) FORGE_PLANT(name, VmfWirePages m = good_meta(s); unsigned n = 1; __VA_ARGS__; forge_pages(s, &m, n))

FORGE_PLANT(unknown, forge_record(s, UNKNOWN, "what?", 5))
FORGE_PLANT(unknown_optional, forge_record(s, UNKNOWN | VMF_RECORD_OPTIONAL, "what?", 5))
FORGE_PLANT(unknown_with_payload, forge_header(s, UNKNOWN | VMF_RECORD_OPTIONAL, 10001, 3);
            g_autofree char *zeros = g_malloc0(10008); forge_octets(s, zeros, 10008))
FORGE_PLANT(oversized, forge_header(s, VMF_RECORD_SECTION, VMF_RECORD_BODY_MAX + 1, VMF_RECORD_BODY_MAX + 1))
FORGE_PLANT(wrong_crc, forge_header(s, VMF_RECORD_SECTION, 8, 8); forge_octets(s, "\0\0\0\1\0\0\0", 8))
FORGE_PLANT(padding, forge_header(s, UNKNOWN | VMF_RECORD_OPTIONAL, 1, 1); forge_octets(s, "\0\0\0\0\0\0\0\1", 8))
FORGE_PLANT(truncated, forge_header(s, VMF_RECORD_SECTION, 4096, 4096); forge_octets(s, "some of it", 10); forge_close(s))
FORGE_PLANT(hang_up, forge_close(s))
FORGE_PLANT(an_answer, forge_record(s, VMF_RECORD_ACK, "", 0))
FORGE_PLANT(late_property, forge_record(s, VMF_RECORD_PROPERTIES, "\0\0\0\0\0\0\0", 8))
FORGE_PLANT(late_end, forge_record(s, VMF_RECORD_STATIC_DATA_END, NULL, 0))
FORGE_PLANT(a_run, forge_record(s, VMF_RECORD_RUN, s->switchover.token, 16))
FORGE_PLANT(an_abort, forge_record(s, VMF_RECORD_ABORT, s->switchover.token, 16))
FORGE_PLANT(an_end, forge_record(s, VMF_RECORD_END, NULL, 0))
FORGE_PLANT(a_preflight, forge_record(s, VMF_RECORD_PREFLIGHT, NULL, 0))
FORGE_PLANT(nothing, (void)s)

FORGE_PLANT(channels_twice, page_channels(s, 0, 1))
FORGE_PLANT(channels_65, page_channels(s, 65, 1))
FORGE_PLANT(channels_epoch, page_channels(s, 0, 2))
FORGE_PLANT(channels_short, forge_record(s, VMF_RECORD_PAGE_CHANNELS, "short", 5))

PAGES(pages_good_block, m.block = FORGE_BLOCKS)
PAGES(pages_block_max, m.block = UINT32_MAX)
PAGES(pages_chunk, m.chunk = 2)
PAGES(pages_chunk_max, m.chunk = UINT64_MAX)
PAGES(pages_chunk_wraps, m.chunk = UINT64_C(1) << 55) /* times 512 pages of 4096 octets it is 0 again */
PAGES(pages_beyond, m.chunk = 1; m.data[0] = 1u << 3)
PAGES(pages_zero_beyond, m.chunk = 1; m.zero[7] = UINT64_C(1) << 63)
PAGES(pages_count_more, m.n_data = 2)
PAGES(pages_count_less, m.n_data = 0)
PAGES(pages_payload_less, m.n_data = 2; m.data[0] = 3)
PAGES(pages_payload_more, n = 2)
PAGES(pages_both, m.zero[0] = 1)
PAGES(pages_none, m.data[0] = 0; m.n_data = 0; n = 0)
PAGES(pages_too_many, m.data[0] = m.data[1] = UINT64_MAX; m.data[2] = 1; m.n_data = n = 129)
PAGES(pages_flags, m.flags = 2)
PAGES(pages_skip, m.sequence++)
PAGES(pages_again, m.sequence--)
PAGES(pages_epoch, m.epoch = 2)
PAGES(pages_good, m.flags = 0)
FORGE_PLANT(pages_truncated, forge_header(s, VMF_RECORD_PAGES, 160 + 4096, 160); forge_octets(s, "half", 4); forge_close(s))
FORGE_PLANT(pages_cut_in_payload, VmfWirePages m = good_meta(s); m.n_data = 128; m.data[0] = m.data[1] = UINT64_MAX;
            g_autofree char *half = g_malloc0(100000); struct iovec iov = {half, 100000};
            vmf_record_write_pages(s->writer, &m, &iov, 1, 128u * FORGE_PAGE, NULL); forge_close(s))

FORGE_PLANT(hint_block, VmfHint hint = {.block = FORGE_BLOCKS, .data = {1}}; vmf_hint_queue(s->writer, &hint, NULL))
FORGE_PLANT(hint_chunk, VmfHint hint = {.chunk = UINT64_MAX, .data = {1}}; vmf_hint_queue(s->writer, &hint, NULL))
FORGE_PLANT(hint_beyond, VmfHint hint = {.chunk = 1, .data = {0, 1}}; vmf_hint_queue(s->writer, &hint, NULL))
FORGE_PLANT(hint_short, forge_record(s, VMF_RECORD_HINT, "short", 5))

FORGE_PLANT(section_id, section(s, 2, 1, 0, "x"))
FORGE_PLANT(section_id_max, section(s, UINT32_MAX, 1, 0, "x"))
FORGE_PLANT(section_part, section(s, 0, 0, 1, "x"))
FORGE_PLANT(section_repeated, section(s, 0, 1, 0, "x"); section(s, 0, 1, 0, "x"))
FORGE_PLANT(section_more, section(s, 1, 0, 1, "x"))
FORGE_PLANT(section_half, section(s, 0, 1, 0, "x"); section(s, 1, 3, 0, "x"))
FORGE_PLANT(section_flags, section(s, 0, 5, 0, "x"))
FORGE_PLANT(section_refused, section(s, 0, 3, 0, "!"))
FORGE_PLANT(section_short, forge_record(s, VMF_RECORD_SECTION, "short", 5))
FORGE_PLANT(round_long, const uint32_t words[6] = {1}; u32_record(s, VMF_RECORD_ROUND, words, 6))
FORGE_PLANT(ping_short, forge_record(s, VMF_RECORD_PING, "short", 5))

FORGE_PLANT(mark_more, vmf_u64_send(s->writer, VMF_RECORD_END_MARK, s->sequence + 1, NULL))
FORGE_PLANT(mark_less, vmf_u64_send(s->writer, VMF_RECORD_END_MARK, s->sequence - 1, NULL))
FORGE_PLANT(mark_again, vmf_u64_send(s->writer, VMF_RECORD_END_MARK, s->sequence, NULL))

/* What is written is the right value plus what stands here. */
FORGE_PLANT(count_data, s->switchover.blocks[0].data++)
FORGE_PLANT(count_zero, s->switchover.blocks[0].zero++; s->switchover.blocks[0].data--)
FORGE_PLANT(count_hole, s->switchover.blocks[0].hole++)
FORGE_PLANT(count_wraps, s->switchover.blocks[0].hole -= 1; s->switchover.blocks[0].zero += UINT64_MAX)
FORGE_PLANT(sum_ram, s->switchover.blocks[0].sum++)
FORGE_PLANT(sum_rom, s->switchover.blocks[1].sum ^= UINT64_C(1) << 63)
FORGE_PLANT(sum_static, s->switchover.static_sum++)
FORGE_PLANT(sum_device, s->switchover.device_sum++)
FORGE_PLANT(flags_unknown, s->switchover.flags |= 4)
FORGE_PLANT(blocks_less, s->switchover.n_blocks = 1)
FORGE_PLANT(switchover_short, forge_record(s, VMF_RECORD_SWITCHOVER, "short", 5))

/* Versions 2 and 3 are the same from here on; a few rows in version 2 show it. */
static const ForgeRow failing_rows[] = {
    {"unknown record", BOTH, FORGE_BEFORE, FORGE_ROUND, unknown, "stream.record-unknown"},
    {"oversized record", V3, FORGE_BEFORE, FORGE_ROUND, oversized, "stream.record-length"},
    {"wrong CRC", BOTH, FORGE_BEFORE, FORGE_ROUND, wrong_crc, "stream.crc"},
    {"padding", V3, FORGE_BEFORE, FORGE_ROUND, padding, "stream.record-body"},
    {"truncated record", V3, FORGE_BEFORE, FORGE_ROUND, truncated, "channel.cut"},
    {"cut ahead of pages", BOTH, FORGE_BEFORE, FORGE_PAGES, hang_up, "channel.cut"},
    {"cut ahead of SWITCHOVER", BOTH, FORGE_BEFORE, FORGE_SWITCHOVER, hang_up, "channel.cut"},
    {"an answer", V3, FORGE_BEFORE, FORGE_ROUND, an_answer, "stream.record-order"},
    {"late static data", BOTH, FORGE_BEFORE, FORGE_ROUND, late_property, "static.late"},
    {"late end of static data", BOTH, FORGE_BEFORE, FORGE_ROUND, late_end, "static.double-end"},
    {"RUN ahead of SWITCHOVER", V3, FORGE_BEFORE, FORGE_SWITCHOVER, a_run, "stream.record-order"},
    {"ABORT ahead of SWITCHOVER", V3, FORGE_BEFORE, FORGE_SWITCHOVER, an_abort, "cancelled"},
    {"END ahead of SWITCHOVER", V3, FORGE_BEFORE, FORGE_SWITCHOVER, an_end, "channel.cut"},
    {"PREFLIGHT after pages", V3, FORGE_BEFORE, FORGE_SWITCHOVER, a_preflight, "stream.record-order"},

    {"no PAGE_CHANNELS", V3, FORGE_INSTEAD, FORGE_PAGE_CHANNELS, nothing, "stream.record-order"},
    {"PAGE_CHANNELS twice", BOTH, FORGE_AFTER, FORGE_PAGE_CHANNELS, channels_twice, "stream.record-order"},
    {"65 page channels", V3, FORGE_INSTEAD, FORGE_PAGE_CHANNELS, channels_65, "stream.record-body"},
    {"another epoch", V3, FORGE_INSTEAD, FORGE_PAGE_CHANNELS, channels_epoch, "stream.record-body"},
    {"short PAGE_CHANNELS", V3, FORGE_INSTEAD, FORGE_PAGE_CHANNELS, channels_short, "stream.record-body"},

    {"block", BOTH, FORGE_AFTER, FORGE_PAGES, pages_good_block, "ram.range"},
    {"block ~0", V3, FORGE_AFTER, FORGE_PAGES, pages_block_max, "ram.range"},
    {"chunk", V3, FORGE_AFTER, FORGE_PAGES, pages_chunk, "ram.range"},
    {"chunk ~0", V3, FORGE_AFTER, FORGE_PAGES, pages_chunk_max, "ram.range"},
    {"chunk that wraps", V3, FORGE_AFTER, FORGE_PAGES, pages_chunk_wraps, "ram.range"},
    {"page beyond the block", V3, FORGE_AFTER, FORGE_PAGES, pages_beyond, "ram.range"},
    {"zero page beyond the block", V3, FORGE_AFTER, FORGE_PAGES, pages_zero_beyond, "ram.range"},
    {"more pages than bits", V3, FORGE_AFTER, FORGE_PAGES, pages_count_more, "stream.record-body"},
    {"fewer pages than bits", V3, FORGE_AFTER, FORGE_PAGES, pages_count_less, "stream.record-body"},
    {"less payload", V3, FORGE_AFTER, FORGE_PAGES, pages_payload_less, "stream.record-body"},
    {"more payload", V3, FORGE_AFTER, FORGE_PAGES, pages_payload_more, "stream.record-body"},
    {"data and zero", V3, FORGE_AFTER, FORGE_PAGES, pages_both, "ram.range"},
    {"no page", V3, FORGE_AFTER, FORGE_PAGES, pages_none, "ram.range"},
    {"129 pages", V3, FORGE_AFTER, FORGE_PAGES, pages_too_many, "stream.record-body"},
    {"flags of PAGES", V3, FORGE_AFTER, FORGE_PAGES, pages_flags, "stream.record-body"},
    {"a record is missing", BOTH, FORGE_AFTER, FORGE_PAGES, pages_skip, "stream.record-order"},
    {"a record twice", V3, FORGE_AFTER, FORGE_PAGES, pages_again, "stream.record-order"},
    {"epoch of PAGES", V3, FORGE_AFTER, FORGE_PAGES, pages_epoch, "stream.record-order"},
    {"PAGES truncated", V3, FORGE_AFTER, FORGE_PAGES, pages_truncated, "channel.cut"},
    {"payload truncated", V3, FORGE_AFTER, FORGE_PAGES, pages_cut_in_payload, "channel.cut"},
    {"PAGES after END_MARK", BOTH, FORGE_AFTER, FORGE_END_MARK, pages_good, "stream.record-order"},

    {"hint: block", V3, FORGE_BEFORE, FORGE_PAGES, hint_block, "ram.range"},
    {"hint: chunk", V3, FORGE_BEFORE, FORGE_PAGES, hint_chunk, "ram.range"},
    {"hint: page", V3, FORGE_BEFORE, FORGE_PAGES, hint_beyond, "ram.range"},
    {"hint: short", V3, FORGE_BEFORE, FORGE_PAGES, hint_short, "stream.record-body"},

    {"section: id", BOTH, FORGE_BEFORE, FORGE_STATE, section_id, "section"},
    {"section: id ~0", V3, FORGE_BEFORE, FORGE_STATE, section_id_max, "section"},
    {"section: part", V3, FORGE_BEFORE, FORGE_STATE, section_part, "section"},
    {"section: repeated", V3, FORGE_BEFORE, FORGE_STATE, section_repeated, "section"},
    {"section: after its last", V3, FORGE_AFTER, FORGE_STATE, section_more, "section"},
    {"section: not complete", V3, FORGE_INSTEAD, FORGE_STATE, section_half, "section"},
    {"section: none", BOTH, FORGE_INSTEAD, FORGE_STATE, nothing, "section"},
    {"section: flags", V3, FORGE_BEFORE, FORGE_STATE, section_flags, "stream.record-body"},
    {"section: refused", V3, FORGE_BEFORE, FORGE_STATE, section_refused, "device-state"},
    {"section: short", V3, FORGE_BEFORE, FORGE_STATE, section_short, "stream.record-body"},
    {"ROUND: long", V3, FORGE_BEFORE, FORGE_STATE, round_long, "stream.record-body"},
    {"PING: short", V3, FORGE_BEFORE, FORGE_STATE, ping_short, "stream.record-body"},

    {"END_MARK: more", BOTH, FORGE_INSTEAD, FORGE_END_MARK, mark_more, "ram.counts"},
    {"END_MARK: less", V3, FORGE_INSTEAD, FORGE_END_MARK, mark_less, "ram.counts"},
    {"END_MARK: twice", V3, FORGE_AFTER, FORGE_END_MARK, mark_again, "stream.record-order"},
    {"END_MARK: none", V3, FORGE_INSTEAD, FORGE_END_MARK, nothing, "stream.record-order"},

    {"counts: data", BOTH, FORGE_BEFORE, FORGE_SWITCHOVER, count_data, "ram.counts"},
    {"counts: zero", V3, FORGE_BEFORE, FORGE_SWITCHOVER, count_zero, "ram.counts"},
    {"counts: holes", V3, FORGE_BEFORE, FORGE_SWITCHOVER, count_hole, "ram.counts"},
    {"counts that wrap", V3, FORGE_BEFORE, FORGE_SWITCHOVER, count_wraps, "ram.counts"},
    {"sum of RAM", BOTH, FORGE_BEFORE, FORGE_SWITCHOVER, sum_ram, "ram.sum"},
    {"sum of ROM", V3, FORGE_BEFORE, FORGE_SWITCHOVER, sum_rom, "ram.sum"},
    {"sum of static data", BOTH, FORGE_BEFORE, FORGE_SWITCHOVER, sum_static, "static.sum"},
    {"sum of device state", BOTH, FORGE_BEFORE, FORGE_SWITCHOVER, sum_device, "device-state.sum"},
    {"flags of SWITCHOVER", V3, FORGE_BEFORE, FORGE_SWITCHOVER, flags_unknown, "stream.record-body"},
    {"blocks of SWITCHOVER", V3, FORGE_BEFORE, FORGE_SWITCHOVER, blocks_less, "stream.record-body"},
    {"SWITCHOVER: short", V3, FORGE_INSTEAD, FORGE_SWITCHOVER, switchover_short, "stream.record-body"},
};

/* ---- after READY ----------------------------------------------------------------------------------------------------------- */

FORGE_PLANT(run_other, forge_record(s, VMF_RECORD_RUN, "another's token.", 16))
FORGE_PLANT(run_short, forge_record(s, VMF_RECORD_RUN, "short", 5))
FORGE_PLANT(abort_other, forge_record(s, VMF_RECORD_ABORT, "another's token.", 16))
FORGE_PLANT(switchover_again, forge_step(s, FORGE_SWITCHOVER))

static const ForgeRow holding_rows[] = {
    {"cut", BOTH, FORGE_BEFORE, FORGE_RUN, hang_up, "handover.held"},
    {"garbage", V3, FORGE_BEFORE, FORGE_RUN, oversized, "handover.held"},
    {"unknown record", V3, FORGE_BEFORE, FORGE_RUN, unknown, "handover.held"},
    {"wrong CRC", V3, FORGE_BEFORE, FORGE_RUN, wrong_crc, "handover.held"},
    {"pages", V3, FORGE_BEFORE, FORGE_RUN, pages_good, "handover.held"},
    {"SWITCHOVER again", V3, FORGE_BEFORE, FORGE_RUN, switchover_again, "handover.held"},
    {"END", V3, FORGE_BEFORE, FORGE_RUN, an_end, "handover.held"},
    {"RUN of another token", BOTH, FORGE_INSTEAD, FORGE_RUN, run_other, "handover.held"},
    {"RUN: short", V3, FORGE_INSTEAD, FORGE_RUN, run_short, "handover.held"},
    {"ABORT of another token", V3, FORGE_INSTEAD, FORGE_RUN, abort_other, "handover.held"},
};
static const ForgeRow abort_row = {"ABORT", V3, FORGE_INSTEAD, FORGE_RUN, an_abort, "cancelled"};

/* Whatever comes once the guest runs changes nothing, and what is optional never does. */
static const ForgeRow harmless_rows[] = {
    {"unknown optional", BOTH, FORGE_BEFORE, FORGE_ROUND, unknown_optional, NULL},
    {"unknown optional with a payload", BOTH, FORGE_BEFORE, FORGE_STATE, unknown_with_payload, NULL},
    {"unknown optional ahead of RUN", V3, FORGE_BEFORE, FORGE_RUN, unknown_optional, NULL},
    {"unknown optional ahead of PAGE_CHANNELS", V3, FORGE_BEFORE, FORGE_PAGE_CHANNELS, unknown_with_payload, NULL},
    {"cut ahead of END", V3, FORGE_BEFORE, FORGE_END, hang_up, NULL},
    {"garbage ahead of END", V3, FORGE_BEFORE, FORGE_END, oversized, NULL},
    {"ABORT ahead of END", V3, FORGE_BEFORE, FORGE_END, an_abort, NULL},
    {"RUN again", V3, FORGE_BEFORE, FORGE_END, a_run, NULL},
};

/* ---- what is expected ------------------------------------------------------------------------------------------------------ */

typedef void (*Expect)(const ForgeRow *row, ForgeTarget *target, const ForgeSource *source);

static void play_rows(const ForgeRow *rows, size_t n, Expect expect)
{
    for (size_t i = 0; i < n; i++)
        for (unsigned version = 2; version <= 3; version++)
            for (unsigned swap = 0; swap < (version == 3 ? 2 : 1) && rows[i].versions & 1u << version; swap++) {
                ForgeTarget *target = forge_target_new();
                ForgeSource *source = forge_source_new(target, (VmfStreamFormat){.version = version, .swap = swap});
                forge_play(source, &rows[i]);
                forge_close(source);
                forge_target_finish(target, false);
                expect(&rows[i], target, source);
                assert_int_equal(target->guest.setups, 2);
                assert_int_equal(target->guest.cleanups, 2);
                forge_source_free(source);
                forge_target_free(target);
            }
}

static void expect_id(const ForgeRow *row, const ForgeTarget *target)
{
    if (target->done)
        fail_msg("%s: the guest arrived", row->name);
    if (strcmp(vmf_error_id(target->error), row->id) != 0)
        fail_msg("%s: wanted %s, is %s: %s", row->name, row->id, vmf_error_id(target->error), target->error->message);
    assert_false(target->guest.running);
}

static void expect_failure(const ForgeRow *row, ForgeTarget *target, const ForgeSource *source)
{
    bool aborted = strcmp(row->id, "cancelled") == 0, hung_up = strcmp(row->id, "channel.cut") == 0;

    expect_id(row, target);
    if (!forge_target_is_empty(target))
        fail_msg("%s: memory is left", row->name);
    assert_int_equal(target->statistics.outcome, aborted ? VMF_OUTCOME_CANCELLED : VMF_OUTCOME_FAILED);
    if (!hung_up && !aborted && strcmp(source->told, row->id) != 0)
        fail_msg("%s: the source was told '%s'", row->name, source->told);
}

static void expect_hold(const ForgeRow *row, ForgeTarget *target, const ForgeSource *source)
{
    expect_id(row, target);
    assert_false(forge_target_is_empty(target));
    assert_int_equal(target->statistics.outcome, VMF_OUTCOME_HELD);
    assert_int_equal(target->statistics.status, VMF_STATUS_DEVICE);
}

static void expect_arrival(const ForgeRow *row, ForgeTarget *target, const ForgeSource *source)
{
    if (!target->done)
        fail_msg("%s: %s", row->name, target->error->message);
    assert_true(target->guest.running);
    assert_int_equal(target->statistics.outcome, VMF_OUTCOME_COMPLETED);
}

static void test_failures(void **state)
{
    play_rows(failing_rows, G_N_ELEMENTS(failing_rows), expect_failure);
    play_rows(&abort_row, 1, expect_failure);
}

static void test_holds(void **state)
{
    play_rows(holding_rows, G_N_ELEMENTS(holding_rows), expect_hold);
}

static void test_harmless(void **state)
{
    play_rows(harmless_rows, G_N_ELEMENTS(harmless_rows), expect_arrival);
}

static void test_a_close_between_any_two_records(void **state)
{
    for (ForgeStep step = FORGE_ROUND; step < FORGE_STEPS; step++) {
        ForgeRow row = {"close", BOTH, FORGE_BEFORE, step, hang_up, NULL};
        if (step == FORGE_READY)
            continue; /* whether the target still reads SWITCHOVER then is open */
        row.id = step <= FORGE_SWITCHOVER ? "channel.cut" : step <= FORGE_RUN ? "handover.held" : NULL;
        play_rows(&row, 1, step <= FORGE_SWITCHOVER ? expect_failure : step <= FORGE_RUN ? expect_hold : expect_arrival);
    }
}

/* The guest cannot be started: the source hears NEVER, and may take it back. */
static void test_a_guest_that_does_not_start(void **state)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = forge_source_new(target, (VmfStreamFormat){.version = 3});

    target->guest.refuse_start = true;
    /* Once RUN is written down it is the target's, whole, and waits there for its owner. */
    assert_true(forge_all(source));
    forge_target_finish(target, false);
    assert_true(target->done);
    assert_false(target->guest.running);
    assert_false(forge_target_is_empty(target));
    assert_non_null(strstr(target->events->str, "guest.stopped"));
    forge_source_free(source);
    forge_target_free(target);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_holds),
        cmocka_unit_test(test_harmless),
        cmocka_unit_test(test_a_close_between_any_two_records),
        cmocka_unit_test(test_a_guest_that_does_not_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
