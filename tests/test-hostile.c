/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A target and its peers: each row plants one fault in a good stream. What comes ahead of an accepted static data leaves the target
 * waiting: one session survives all of those rows, one after the other, and then takes a good guest. What comes later is in
 * test-hostile-load.c.
 */
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "stream/channel.h"
#include "stream/crc32c.h"
#include "tests/forge.h"

#define UNKNOWN 0x33u
#define UNKNOWN_STATIC 0x11u
#define V2 (1u << 2)
#define V3 (1u << 3)
#define BOTH (V2 | V3)

static void nothing(ForgeSource *s)
{
}

/* ---- ahead of the answer: the target goes on waiting ----------------------------------------------------------------------- */

static void image_of(ForgeSource *s, size_t at, uint8_t value, bool seal)
{
    uint8_t wire[VMF_IMAGE_HEADER_SIZE];

    vmf_image_header_encode(&s->format, wire);
    wire[at] ^= value;
    uint32_t crc = GUINT32_TO_BE(vmf_crc32c(0, wire, 20));
    if (seal)
        memcpy(wire + 20, &crc, 4);
    forge_octets(s, wire, sizeof(wire));
}

static void image_version(ForgeSource *s, uint32_t version)
{
    VmfStreamFormat format = s->format;
    uint8_t wire[VMF_IMAGE_HEADER_SIZE];

    format.version = version;
    vmf_image_header_encode(&format, wire);
    forge_octets(s, wire, sizeof(wire));
}

static void machine_of(ForgeSource *s, size_t at, uint8_t value)
{
    uint8_t wire[VMF_MACHINE_HEADER_SIZE];

    vmf_machine_header_encode(&s->data->machine, s->format.swap, wire);
    wire[at] ^= value;
    forge_octets(s, wire, sizeof(wire));
}

#define BLOCK_OF(source, n) (&g_array_index((source)->data->blocks, VmfStaticBlock, n))
#define BLOCK(n) BLOCK_OF(s, n)
#define SECTION(n) (&g_array_index(s->data->sections, VmfStaticSection, n))

static void rename_to(char **name, const char *to)
{
    g_free(*name);
    *name = g_strdup(to);
}

FORGE_PLANT(http, forge_octets(s, "GET / HTTP/1.1\r\nHost: here\r\n\r\n", 30))
FORGE_PLANT(zeros, uint8_t octets[4096] = {0}; forge_octets(s, octets, sizeof(octets)))
FORGE_PLANT(seven_octets, forge_octets(s, "\xff\xff\xff\xff\xff\xff\xff", 7); forge_close(s))
FORGE_PLANT(hang_up, forge_close(s))
FORGE_PLANT(version_1, image_version(s, 1))
FORGE_PLANT(version_4, image_version(s, 4))
FORGE_PLANT(version_max, image_version(s, UINT32_MAX))
FORGE_PLANT(image_id, image_of(s, 8, 1, true))
FORGE_PLANT(image_crc, image_of(s, 21, 1, false))
FORGE_PLANT(image_option, image_of(s, 17, 4, true))
FORGE_PLANT(image_reserved, image_of(s, 19, 1, true))
FORGE_PLANT(half_an_image, forge_octets(s, "\xff\xff\xff\xff\xff\xff\xff\xffVMFY\0\0", 14); forge_close(s))
FORGE_PLANT(machine_crc, machine_of(s, 40, 1))
FORGE_PLANT(architecture, g_strlcpy(s->data->machine.architecture, "other", 32))
FORGE_PLANT(other_uuid, s->data->machine.uuid[3] ^= 1)
FORGE_PLANT(page_size, s->data->machine.page_size = 16384)
FORGE_PLANT(half_a_machine, forge_octets(s, "forged", 6); forge_close(s))

FORGE_PLANT(unknown_static, forge_record(s, UNKNOWN_STATIC, "what?", 5))
FORGE_PLANT(unknown_record, forge_record(s, UNKNOWN, "what?", 5))
FORGE_PLANT(oversized, forge_header(s, VMF_RECORD_PROPERTIES, VMF_RECORD_BODY_MAX + 1, VMF_RECORD_BODY_MAX + 1))
FORGE_PLANT(huge, forge_header(s, VMF_RECORD_PROPERTIES, UINT32_MAX, UINT32_MAX))
FORGE_PLANT(partly_checked, forge_header(s, VMF_RECORD_PROPERTIES, 8, 0); forge_octets(s, "\0\0\0\0\0\0\0", 8))
FORGE_PLANT(wrong_crc, forge_header(s, VMF_RECORD_PROPERTIES, 8, 8); forge_octets(s, "\0\0\0\1\0\0\0", 8))
FORGE_PLANT(truncated, forge_header(s, VMF_RECORD_PROPERTIES, 4096, 4096); forge_close(s))
FORGE_PLANT(page_channels, forge_step(s, FORGE_PAGE_CHANNELS))
FORGE_PLANT(early_page, VmfWirePages meta = {.n_data = 1, .epoch = 1, .data = {1}}; forge_pages(s, &meta, 1))
FORGE_PLANT(early_run, forge_record(s, VMF_RECORD_RUN, s->switchover.token, 16))
FORGE_PLANT(early_section, forge_record(s, VMF_RECORD_SECTION, "\0\0\0\0\3\0\0\0\0\0\0\0\0\0\0", 16))
FORGE_PLANT(an_answer, forge_record(s, VMF_RECORD_READY, "", 0))
FORGE_PLANT(features_again, forge_step(s, FORGE_FEATURES))
FORGE_PLANT(static_again, forge_step(s, FORGE_STATIC))
FORGE_PLANT(static_end, forge_record(s, VMF_RECORD_STATIC_DATA_END, NULL, 0))
FORGE_PLANT(fat_static_end, forge_record(s, VMF_RECORD_STATIC_DATA_END, "x", 1))
FORGE_PLANT(late_property, forge_record(s, VMF_RECORD_PROPERTIES, "\0\0\0\0\0\0\0", 8))
FORGE_PLANT(late_unknown_static, forge_record(s, UNKNOWN_STATIC, "", 0))
FORGE_PLANT(v2_features, forge_record(s, VMF_RECORD_FEATURES, "\2\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24))

FORGE_PLANT(block_size, BLOCK(0)->size += FORGE_PAGE)
FORGE_PLANT(block_smaller, BLOCK(1)->size -= FORGE_PAGE)
FORGE_PLANT(block_address, BLOCK(0)->guest_address += FORGE_PAGE)
FORGE_PLANT(block_flags, BLOCK(1)->flags = 0)
FORGE_PLANT(block_name, rename_to(&BLOCK(0)->name, "mar"))
FORGE_PLANT(block_less, g_array_set_size(s->data->blocks, 1))
FORGE_PLANT(block_none, g_array_set_size(s->data->blocks, 0))
FORGE_PLANT(block_more, VmfStaticBlock more = {.name = (char *)"more", .size = FORGE_PAGE, .page_size = FORGE_PAGE};
      vmf_static_data_add_block(s->data, &more))
FORGE_PLANT(block_order, VmfStaticBlock first = *BLOCK(0); *BLOCK(0) = *BLOCK(1); *BLOCK(1) = first)
FORGE_PLANT(block_twice, rename_to(&BLOCK(1)->name, "ram"))
FORGE_PLANT(block_huge, BLOCK(0)->size = VMF_BLOCK_SIZE_MAX + FORGE_PAGE)
FORGE_PLANT(block_odd, BLOCK(0)->size += 1)
FORGE_PLANT(property_value, rename_to(&g_array_index(s->data->properties, VmfStaticProperty, 0).value, "other"))
FORGE_PLANT(property_more, vmf_static_data_add_property(s->data, "more", "x"))
FORGE_PLANT(property_less, g_array_set_size(s->data->properties, 0))
FORGE_PLANT(property_twice, vmf_static_data_add_property(s->data, "cpu", "forged-1"))
FORGE_PLANT(section_version, SECTION(0)->version = 4)
FORGE_PLANT(section_instance, SECTION(1)->instance = 8)
FORGE_PLANT(section_less, g_array_set_size(s->data->sections, 1))
FORGE_PLANT(section_more, vmf_static_data_add_section(s->data, "another", 0, 1))
FORGE_PLANT(section_ram, vmf_static_data_add_section(s->data, "ram", 0, 1))
FORGE_PLANT(section_twice, vmf_static_data_add_section(s->data, "state", 0, 3))
FORGE_PLANT(feature_required, s->data->features_required |= 1u << 20; s->data->features_offered |= 1u << 20)
FORGE_PLANT(feature_contradiction, s->data->features_required = VMF_FEATURE_REPORT)
FORGE_PLANT(channels_65, s->data->page_channels = 65)

/* A version 2 stream may go on as it likes ahead of the end of static data. */
static const ForgeRow waiting_rows[] = {
    {"http", BOTH, FORGE_INSTEAD, FORGE_IMAGE, http, "stream.magic"},
    {"zeros", BOTH, FORGE_INSTEAD, FORGE_IMAGE, zeros, "stream.magic"},
    {"seven octets", V3, FORGE_INSTEAD, FORGE_IMAGE, seven_octets, "channel.cut"},
    {"hangs up", V3, FORGE_BEFORE, FORGE_IMAGE, hang_up, "channel.cut"},
    {"version 1", V3, FORGE_INSTEAD, FORGE_IMAGE, version_1, "stream.version"},
    {"version 4", V3, FORGE_INSTEAD, FORGE_IMAGE, version_4, "stream.version"},
    {"version ~0", V3, FORGE_INSTEAD, FORGE_IMAGE, version_max, "stream.version"},
    {"image: id", BOTH, FORGE_INSTEAD, FORGE_IMAGE, image_id, "stream.magic"},
    {"image: CRC", BOTH, FORGE_INSTEAD, FORGE_IMAGE, image_crc, "stream.crc"},
    {"image: option", BOTH, FORGE_INSTEAD, FORGE_IMAGE, image_option, "stream.record-body"},
    {"image: reserved", BOTH, FORGE_INSTEAD, FORGE_IMAGE, image_reserved, "stream.record-body"},
    {"image: half", V3, FORGE_INSTEAD, FORGE_IMAGE, half_an_image, "channel.cut"},
    {"machine: CRC", BOTH, FORGE_INSTEAD, FORGE_MACHINE, machine_crc, "stream.crc"},
    {"machine: architecture", BOTH, FORGE_BEFORE, FORGE_MACHINE, architecture, "static.incompatible"},
    {"machine: UUID", BOTH, FORGE_BEFORE, FORGE_MACHINE, other_uuid, "static.incompatible"},
    {"machine: page size", BOTH, FORGE_BEFORE, FORGE_MACHINE, page_size, "stream.record-body"},
    {"machine: half", V3, FORGE_INSTEAD, FORGE_MACHINE, half_a_machine, "channel.cut"},

    {"unknown static record", BOTH, FORGE_BEFORE, FORGE_STATIC, unknown_static, "stream.record-unknown"},
    {"unknown record", BOTH, FORGE_BEFORE, FORGE_STATIC, unknown_record, "stream.record-unknown"},
    {"oversized record", BOTH, FORGE_BEFORE, FORGE_STATIC, oversized, "stream.record-length"},
    {"record of 4 GiB", BOTH, FORGE_BEFORE, FORGE_STATIC, huge, "stream.record-length"},
    {"record checked in part", BOTH, FORGE_BEFORE, FORGE_STATIC, partly_checked, "stream.record-length"},
    {"wrong CRC", BOTH, FORGE_BEFORE, FORGE_STATIC, wrong_crc, "stream.crc"},
    {"truncated record", BOTH, FORGE_AFTER, FORGE_MACHINE, truncated, "channel.cut"},
    {"hangs up in static data", BOTH, FORGE_AFTER, FORGE_STATIC, hang_up, "channel.cut"},
    {"no end: PAGE_CHANNELS", V3, FORGE_INSTEAD, FORGE_STATIC_END, page_channels, "static.missing-end"},
    {"no end: page", V3, FORGE_INSTEAD, FORGE_STATIC_END, early_page, "static.missing-end"},
    {"no end: section", V3, FORGE_INSTEAD, FORGE_STATIC_END, early_section, "static.missing-end"},
    {"no end: RUN", V3, FORGE_INSTEAD, FORGE_STATIC_END, early_run, "static.missing-end"},
    {"RUN in static data", V2, FORGE_AFTER, FORGE_MACHINE, early_run, "stream.record-order"},
    {"an answer in static data", V2, FORGE_AFTER, FORGE_MACHINE, an_answer, "stream.record-order"},
    {"FEATURES twice", V3, FORGE_AFTER, FORGE_FEATURES, features_again, "static.duplicate"},
    {"FEATURES in version 2", V2, FORGE_AFTER, FORGE_STATIC, v2_features, "stream.record-order"},
    {"all static data twice", BOTH, FORGE_AFTER, FORGE_STATIC, static_again, "static.duplicate"},
    {"end that is not empty", V3, FORGE_INSTEAD, FORGE_STATIC_END, fat_static_end, "stream.record-body"},
    {"end twice", V3, FORGE_AFTER, FORGE_STATIC_END, static_end, "static.double-end"},
    {"late property", V3, FORGE_AFTER, FORGE_STATIC_END, late_property, "static.late"},
    {"late unknown static record", V3, FORGE_AFTER, FORGE_STATIC_END, late_unknown_static, "static.late"},
    {"no SECTIONS", BOTH, FORGE_INSTEAD, FORGE_STATIC, nothing, "stream.record-order"},
    {"no FEATURES", V3, FORGE_INSTEAD, FORGE_FEATURES, nothing, "stream.record-order"},

    {"RAM: larger", BOTH, FORGE_BEFORE, FORGE_STATIC, block_size, "static.incompatible"},
    {"RAM: smaller", BOTH, FORGE_BEFORE, FORGE_STATIC, block_smaller, "static.incompatible"},
    {"RAM: address", BOTH, FORGE_BEFORE, FORGE_STATIC, block_address, "static.incompatible"},
    {"RAM: flags", BOTH, FORGE_BEFORE, FORGE_STATIC, block_flags, "static.incompatible"},
    {"RAM: name", BOTH, FORGE_BEFORE, FORGE_STATIC, block_name, "static.incompatible"},
    {"RAM: a block less", BOTH, FORGE_BEFORE, FORGE_STATIC, block_less, "static.incompatible"},
    {"RAM: no block", BOTH, FORGE_BEFORE, FORGE_STATIC, block_none, "static.incompatible"},
    {"RAM: a block more", BOTH, FORGE_BEFORE, FORGE_STATIC, block_more, "static.incompatible"},
    {"RAM: order", BOTH, FORGE_BEFORE, FORGE_STATIC, block_order, "static.incompatible"},
    {"RAM: a name twice", BOTH, FORGE_BEFORE, FORGE_STATIC, block_twice, "static.duplicate"},
    {"RAM: too large", BOTH, FORGE_BEFORE, FORGE_STATIC, block_huge, "stream.record-body"},
    {"RAM: odd size", BOTH, FORGE_BEFORE, FORGE_STATIC, block_odd, "stream.record-body"},
    {"property: value", BOTH, FORGE_BEFORE, FORGE_STATIC, property_value, "static.incompatible"},
    {"property: one more", BOTH, FORGE_BEFORE, FORGE_STATIC, property_more, "static.incompatible"},
    {"property: one less", BOTH, FORGE_BEFORE, FORGE_STATIC, property_less, "static.incompatible"},
    {"property: a key twice", BOTH, FORGE_BEFORE, FORGE_STATIC, property_twice, "static.duplicate"},
    {"section: version", BOTH, FORGE_BEFORE, FORGE_STATIC, section_version, "static.incompatible"},
    {"section: instance", BOTH, FORGE_BEFORE, FORGE_STATIC, section_instance, "static.incompatible"},
    {"section: one less", BOTH, FORGE_BEFORE, FORGE_STATIC, section_less, "static.incompatible"},
    {"section: one more", BOTH, FORGE_BEFORE, FORGE_STATIC, section_more, "static.incompatible"},
    {"section: ram", BOTH, FORGE_BEFORE, FORGE_STATIC, section_ram, "static.incompatible"},
    {"section: twice", BOTH, FORGE_BEFORE, FORGE_STATIC, section_twice, "static.duplicate"},
    {"feature that is required", V3, FORGE_BEFORE, FORGE_FEATURES, feature_required, "static.incompatible"},
    {"feature required, not offered", V3, FORGE_BEFORE, FORGE_FEATURES, feature_contradiction, "stream.record-body"},
    {"too many page channels", V3, FORGE_BEFORE, FORGE_FEATURES, channels_65, "stream.record-body"},
};

/* The event of the row's caller: the target refuses one at a time. */
static void expect_event(ForgeTarget *target, unsigned n, const char *id, const char *what)
{
    forge_target_await_events(target, n);
    pthread_mutex_lock(&target->lock);
    g_auto(GStrv) lines = g_strsplit(target->events->str, "\n", -1);
    g_autofree char *wanted = g_strdup_printf(" %s: ", id);
    assert_int_equal(target->n_events, n);
    if (!strstr(lines[n - 1], wanted))
        fail_msg("%s: wanted%s, is %s", what, wanted, lines[n - 1]);
    pthread_mutex_unlock(&target->lock);
}

static void expect_arrival(ForgeTarget *target, VmfStreamFormat format)
{
    ForgeSource *source = forge_source_new(target, format);

    assert_true(forge_all(source));
    forge_target_finish(target, false);
    if (!target->done)
        fail_msg("%s", target->error->message);
    assert_true(target->guest.running);
    assert_int_equal(target->statistics.outcome, VMF_OUTCOME_COMPLETED);
    forge_source_free(source);
}

static void test_good_streams(void **state)
{
    for (unsigned version = 2; version <= 3; version++)
        for (unsigned swap = 0; swap < 2; swap++) {
            ForgeTarget *target = forge_target_new();
            expect_arrival(target, (VmfStreamFormat){.version = version, .swap = swap});
            forge_target_free(target);
        }
}

static void test_what_leaves_it_waiting(void **state)
{
    for (unsigned swap = 0; swap < 2; swap++) {
        ForgeTarget *target = forge_target_new();
        unsigned n = 0;
        for (unsigned version = 2; version <= 3; version++)
            for (size_t i = 0; i < G_N_ELEMENTS(waiting_rows); i++) {
                const ForgeRow *row = &waiting_rows[i];
                if (!(row->versions & 1u << version))
                    continue;
                ForgeSource *source = forge_source_new(target, (VmfStreamFormat){.version = version, .swap = swap});
                forge_play(source, row);
                forge_close(source);
                expect_event(target, ++n, row->id, row->name);
                forge_source_free(source);
            }
        assert_false(target->guest.running);
        assert_int_equal(target->guest.setups, 0);
        expect_arrival(target, (VmfStreamFormat){.version = 3, .swap = swap});
        forge_target_free(target);
    }
}

/* ---- where static data ends in version 2 ----------------------------------------------------------------------------------- */

static ForgeSource *source_of_version_2(ForgeTarget *target)
{
    ForgeSource *source = forge_source_new(target, (VmfStreamFormat){.version = 2});

    for (ForgeStep step = FORGE_IMAGE; step <= FORGE_STATIC_END; step++)
        assert_true(forge_step(source, step));
    return source;
}

/* The target takes this caller, and fails: had static data not ended, it would have gone on waiting. */
static void expect_inferred_and_failed(void (*plant)(ForgeSource *s), const char *id)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = source_of_version_2(target);

    plant(source);
    forge_drain(source);
    forge_target_finish(target, false);
    assert_false(target->done);
    assert_string_equal(vmf_error_id(target->error), id);
    assert_int_equal(target->guest.setups, 2); /* the two handlers of the guest */
    assert_int_equal(target->guest.cleanups, 2);
    assert_int_equal(target->n_events, 0);
    forge_source_free(source);
    forge_target_free(target);
}

FORGE_PLANT(switchover, forge_step(s, FORGE_SWITCHOVER))
FORGE_PLANT(end, forge_step(s, FORGE_END))

static void test_inferred_at_each_type(void **state)
{
    expect_inferred_and_failed(early_page, "stream.record-order"); /* ahead of PAGE_CHANNELS */
    expect_inferred_and_failed(switchover, "stream.record-order");
    expect_inferred_and_failed(end, "channel.cut");
}

static void test_inferred_at_a_section(void **state)
{
    static const ForgeStep steps[] = {FORGE_STATE, FORGE_PAGE_CHANNELS, FORGE_PAGES, FORGE_END_MARK, FORGE_SWITCHOVER,
                                      FORGE_READY, FORGE_RUN,           FORGE_RUNNING, FORGE_END};
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = source_of_version_2(target);

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++)
        assert_true(forge_step(source, steps[i]));
    forge_target_finish(target, false);
    assert_true(target->done && target->guest.running);
    forge_source_free(source);
    forge_target_free(target);
}

static void preflight(ForgeTarget *target, VmfStreamFormat format, bool fits)
{
    ForgeSource *source = forge_source_new(target, format);

    if (!fits)
        BLOCK_OF(source, 0)->size += FORGE_PAGE;
    for (ForgeStep step = FORGE_IMAGE; step <= FORGE_STATIC_END; step++)
        assert_true(forge_step(source, step));
    forge_record(source, VMF_RECORD_PREFLIGHT, NULL, 0);
    forge_step(source, FORGE_END);
    assert_true(forge_await_verdict(source) == fits);
    assert_string_equal(source->told, fits ? "" : "ram.size: block ram: here 2109440, there 2113536");
    forge_source_free(source);
}

static void test_preflight(void **state)
{
    ForgeTarget *target = forge_target_new();
    unsigned n = 0;

    for (unsigned version = 2; version <= 3; version++) {
        preflight(target, (VmfStreamFormat){.version = version}, true);
        forge_target_await_events(target, ++n);
        preflight(target, (VmfStreamFormat){.version = version}, false);
        expect_event(target, ++n, "static.incompatible", "preflight");
    }
    assert_int_equal(target->guest.setups, 0); /* nothing was reserved */
    expect_arrival(target, (VmfStreamFormat){.version = 2});
    forge_target_free(target);
}

FORGE_PLANT(what_ends_nothing, forge_record(s, UNKNOWN | VMF_RECORD_OPTIONAL, "later", 5); forge_step(s, FORGE_ROUND);
            forge_record(s, UNKNOWN_STATIC | VMF_RECORD_OPTIONAL, "", 0))

/* Static data that follows is still taken, so nothing of it was the end. */
static void test_what_never_ends_it(void **state)
{
    static const ForgeRow row = {"optional records", V2, FORGE_AFTER, FORGE_MACHINE, what_ends_nothing, NULL};
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = forge_source_new(target, (VmfStreamFormat){.version = 2});

    forge_play(source, &row);
    forge_target_finish(target, false);
    assert_true(target->done && target->guest.running);
    forge_source_free(source);
    forge_target_free(target);
}

static void explicit_end(void (*plant)(ForgeSource *s), const char *id)
{
    ForgeTarget *target = forge_target_new();
    ForgeSource *source = forge_source_new(target, (VmfStreamFormat){.version = 2});

    for (ForgeStep step = FORGE_IMAGE; step <= FORGE_FEATURES; step++)
        assert_true(forge_step(source, step));
    forge_record(source, VMF_RECORD_STATIC_DATA_END, NULL, 0);
    assert_true(forge_step(source, FORGE_STATIC_END)); /* for the sum */
    if (plant)
        plant(source);
    for (ForgeStep step = FORGE_PAGE_CHANNELS; !plant && step < FORGE_STEPS; step++)
        assert_true(forge_step(source, step));
    if (plant) {
        forge_drain(source);
        expect_event(target, 1, id, "explicit end");
    }
    forge_target_finish(target, plant);
    assert_true(target->done == !plant);
    forge_source_free(source);
    forge_target_free(target);
}

static void test_an_explicit_end_is_accepted(void **state)
{
    explicit_end(NULL, NULL);
    explicit_end(static_end, "static.double-end");
    explicit_end(late_property, "static.late");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_streams),
        cmocka_unit_test(test_what_leaves_it_waiting),
        cmocka_unit_test(test_inferred_at_each_type),
        cmocka_unit_test(test_inferred_at_a_section),
        cmocka_unit_test(test_preflight),
        cmocka_unit_test(test_what_never_ends_it),
        cmocka_unit_test(test_an_explicit_end_is_accepted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
