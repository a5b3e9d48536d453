/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Would this guest fit? Each thing that two guests can differ in is named, with both sides' word for it, and nothing
 * else is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "migration/compatibility.h"

#define MIB (UINT64_C(1) << 20)

typedef struct {
    VmfGuest *guest;
    GArray *owners;
    VmfStaticData *data;
} Side;

static bool yes(void *opaque, GError **error)
{
    return true;
}

static bool running(void *opaque)
{
    return true;
}

static const VmfGuestOps ops = {.size = sizeof(VmfGuestOps), .stop = yes, .start = yes, .is_running = running};
static const VmfSaveHandlers handlers = {.size = sizeof(VmfSaveHandlers)};
static const VmfField no_fields[] = {VMF_FIELD_END};
static const VmfDeviceState timer = {
    .size = sizeof(VmfDeviceState), .name = "timer", .version = 5, .minimum_version = 3, .fields = no_fields};
static int ram_owner; /* stands for RAM */

static void add_ram(Side *side, const char *name, uint64_t size, VmfRamFlags flags, uint64_t address)
{
    VmfRamBlock *block = vmf_ram_block_new(name, size, VMF_RAM_ANON, flags, address, NULL);

    assert_true(vmf_guest_add_ram(side->guest, block, NULL, NULL));
}

/* What both sides of each story have, before one of them is changed. */
static Side begin_side(const char *architecture, uint8_t uuid)
{
    const uint8_t bytes[16] = {uuid, 0x22, 0x33};
    static const uint8_t zeros[16];
    Side side = {.guest = vmf_guest_new(architecture, uuid ? bytes : zeros, &ops, NULL)};

    return side;
}

static void end_side(Side *side)
{
    side->owners = vmf_owners_new(side->guest, &handlers, &ram_owner, false);
    side->data = vmf_static_data_of(side->guest, side->owners);
    side->data->have_properties = true;
}

static Side usual_side(void)
{
    Side side = begin_side("rv32", 0x11);

    vmf_guest_set_property(side.guest, "cpu.model", "x1");
    add_ram(&side, "ram", 4 * MIB, 0, 0x80000000u);
    add_ram(&side, "rom", 1 * MIB, VMF_RAM_ROM, 0x1000);
    assert_true(vmf_guest_add_device(side.guest, &timer, 0, &ram_owner, NULL));
    assert_true(vmf_guest_add_handlers(side.guest, "disk", 1, 2, &handlers, NULL, NULL));
    return side;
}

static void clear_side(Side *side)
{
    vmf_static_data_free(side->data);
    vmf_owners_free(side->owners);
    vmf_guest_free(side->guest);
}

/* The texts, joined by lines. */
static char *difference(Side *here, Side *there)
{
    g_auto(GStrv) texts = vmf_compatibility_check(there->data, here->data, here->owners, here->guest);

    return g_strjoinv("\n", texts);
}

static void expect(Side *here, Side *there, const char *expected)
{
    g_autofree char *found = difference(here, there);

    assert_string_equal(found, expected);
    clear_side(here);
    clear_side(there);
}

/* ---- stories --------------------------------------------------------------------------------------------------- */

static void equal_guests_fit(void **state)
{
    Side here = usual_side(), there = usual_side();

    end_side(&here);
    end_side(&there);
    expect(&here, &there, "");
}

static void the_static_data_says_what_the_guest_is(void **state)
{
    Side side = usual_side();

    end_side(&side);
    const VmfStaticData *data = side.data;
    assert_string_equal(data->machine.architecture, "rv32");
    assert_int_equal(data->machine.page_size, 4096);
    assert_int_equal(data->machine.uuid[1], 0x22);
    assert_int_equal(data->blocks->len, 2);
    const VmfStaticBlock *rom = &g_array_index(data->blocks, VmfStaticBlock, 1);
    assert_string_equal(rom->name, "rom");
    assert_int_equal(rom->flags, VMF_BLOCK_FLAG_ROM);
    assert_int_equal(rom->size, MIB);
    assert_int_equal(rom->guest_address, 0x1000);
    /* RAM travels in records of its own, so it is an owner and has no section. */
    assert_int_equal(side.owners->len, 3);
    assert_int_equal(data->sections->len, 2);
    static const struct {
        const char *name;
        uint32_t instance, version;
    } expected[] = {{"timer", 0, 5}, {"disk", 1, 2}};
    for (unsigned i = 0; i < 2; i++) {
        const VmfStaticSection *section = &g_array_index(data->sections, VmfStaticSection, i);
        assert_string_equal(section->name, expected[i].name);
        assert_int_equal(section->instance, expected[i].instance);
        assert_int_equal(section->version, expected[i].version);
    }
    clear_side(&side);
}

static void another_machine_is_named(void **state)
{
    Side here = begin_side("rv32", 0x11), there = begin_side("x86_64", 0xaa);

    end_side(&here);
    end_side(&there);
    expect(&here, &there,
           "machine.architecture: here rv32, there x86_64\n"
           "machine.uuid: here 11223300-0000-0000-0000-000000000000, there aa223300-0000-0000-0000-000000000000");
}

static void a_guest_without_a_uuid_takes_any(void **state)
{
    Side here = begin_side("rv32", 0), there = begin_side("rv32", 0xaa);

    end_side(&here);
    end_side(&there);
    expect(&here, &there, "");
}

static void properties_are_compared_both_ways(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);

    vmf_guest_set_property(here.guest, "same", "1");
    vmf_guest_set_property(there.guest, "same", "1");
    vmf_guest_set_property(here.guest, "cpu", "a");
    vmf_guest_set_property(there.guest, "cpu", "b");
    vmf_guest_set_property(here.guest, "mine", "m");
    vmf_guest_set_property(there.guest, "yours", "y");
    end_side(&here);
    end_side(&there);
    expect(&here, &there, "cpu: here a, there b\nmine: here m, there nothing\nyours: here nothing, there y");
}

/* A version 2 stream need not carry them: then there is nothing to compare. */
static void properties_that_were_not_sent_are_not_missed(void **state)
{
    Side here = usual_side(), there = begin_side("rv32", 0x11);

    add_ram(&there, "ram", 4 * MIB, 0, 0x80000000u);
    add_ram(&there, "rom", 1 * MIB, VMF_RAM_ROM, 0x1000);
    assert_true(vmf_guest_add_device(there.guest, &timer, 0, &ram_owner, NULL));
    assert_true(vmf_guest_add_handlers(there.guest, "disk", 1, 2, &handlers, NULL, NULL));
    end_side(&here);
    end_side(&there);
    there.data->have_properties = false;
    expect(&here, &there, "");
}

static void every_field_of_a_block_is_compared(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);

    add_ram(&here, "ram", 4 * MIB, 0, 0x1000);
    add_ram(&there, "ram", 8 * MIB, VMF_RAM_ROM, 0x2000);
    end_side(&here);
    end_side(&there);
    expect(&here, &there,
           "ram.size: block ram: here 4194304, there 8388608\n"
           "ram.address: block ram: here 0x1000, there 0x2000\n"
           "ram.flags: block ram: here 0, there 1");
}

static void blocks_are_compared_in_order(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);

    add_ram(&here, "a", MIB, 0, 0);
    add_ram(&here, "b", MIB, 0, MIB);
    add_ram(&there, "b", MIB, 0, MIB);
    end_side(&here);
    end_side(&there);
    expect(&here, &there, "ram.blocks: here 2, there 1\nram.name: block 0: here a, there b");
}

/* How the host provides memory is its own affair. */
static void kinds_of_memory_are_not_compared(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);
    VmfRamBlock *block = vmf_ram_block_new("ram", MIB, VMF_RAM_MEMFD, 0, 0, NULL);

    add_ram(&here, "ram", MIB, VMF_RAM_NO_HUGE_PAGES, 0);
    assert_true(vmf_guest_add_ram(there.guest, block, NULL, NULL));
    end_side(&here);
    end_side(&there);
    expect(&here, &there, "");
}

static void sections_are_found_by_name_and_instance(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);

    assert_true(vmf_guest_add_handlers(here.guest, "disk", 0, 2, &handlers, NULL, NULL));
    assert_true(vmf_guest_add_handlers(here.guest, "net", 0, 1, &handlers, NULL, NULL));
    assert_true(vmf_guest_add_handlers(there.guest, "net", 0, 1, &handlers, NULL, NULL));
    assert_true(vmf_guest_add_handlers(there.guest, "disk", 7, 2, &handlers, NULL, NULL));
    end_side(&here);
    end_side(&there);
    expect(&here, &there,
           "section.missing: disk 7: here nothing, there version 2\n"
           "section.missing: disk 0: here version 2, there nothing");
}

static void the_order_of_sections_is_the_streams_affair(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);

    assert_true(vmf_guest_add_handlers(here.guest, "disk", 0, 2, &handlers, NULL, NULL));
    assert_true(vmf_guest_add_handlers(here.guest, "net", 0, 4, &handlers, NULL, NULL));
    assert_true(vmf_guest_add_handlers(there.guest, "net", 0, 3, &handlers, NULL, NULL));
    assert_true(vmf_guest_add_handlers(there.guest, "disk", 0, 1, &handlers, NULL, NULL));
    end_side(&here);
    end_side(&there);
    g_autofree char *found = difference(&here, &there);
    assert_string_equal(found, "");
    assert_int_equal(vmf_owner(here.owners, 1)->stream_version, 1);
    assert_int_equal(vmf_owner(here.owners, 2)->stream_version, 3);
    clear_side(&here);
    clear_side(&there);
}

static void a_section_is_loaded_within_its_versions(void **state)
{
    for (uint32_t version = 1; version <= 7; version++) {
        VmfDeviceState other = timer;
        Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);
        other.version = version;
        other.minimum_version = 1;
        assert_true(vmf_guest_add_device(here.guest, &timer, 0, &ram_owner, NULL));
        assert_true(vmf_guest_add_device(there.guest, &other, 0, &ram_owner, NULL));
        end_side(&here);
        end_side(&there);
        g_autofree char *expected = g_strdup_printf("section.version: timer 0: here 3 to 5, there %u", version);
        expect(&here, &there, version >= 3 && version <= 5 ? "" : expected);
    }
}

static void a_required_feature_that_is_unknown_is_refused(void **state)
{
    Side here = usual_side(), there = usual_side();

    end_side(&here);
    end_side(&there);
    there.data->features_offered = there.data->features_required = VMF_FEATURE_ACKS | UINT64_C(1) << 40;
    g_autofree char *found = difference(&here, &there);
    assert_true(g_str_has_prefix(found, "static.feature: "));
    assert_non_null(strstr(found, "10000000001"));
    there.data->features_required = VMF_FEATURE_ACKS;
    expect(&here, &there, "");
}

static void no_more_is_named_than_a_verdict_holds(void **state)
{
    Side here = begin_side("rv32", 1), there = begin_side("rv32", 1);

    for (unsigned i = 0; i < VMF_PROPERTIES_MAX; i++) {
        g_autofree char *mine = g_strdup_printf("mine-%u", i), *yours = g_strdup_printf("yours-%u", i);
        vmf_guest_set_property(here.guest, mine, "1");
        vmf_guest_set_property(there.guest, yours, "1");
    }
    end_side(&here);
    end_side(&there);
    g_auto(GStrv) texts = vmf_compatibility_check(there.data, here.data, here.owners, here.guest);
    assert_int_equal(g_strv_length(texts), VMF_VERDICT_TEXTS_MAX);
    clear_side(&here);
    clear_side(&there);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_guests_fit),
        cmocka_unit_test(the_static_data_says_what_the_guest_is),
        cmocka_unit_test(another_machine_is_named),
        cmocka_unit_test(a_guest_without_a_uuid_takes_any),
        cmocka_unit_test(properties_are_compared_both_ways),
        cmocka_unit_test(properties_that_were_not_sent_are_not_missed),
        cmocka_unit_test(every_field_of_a_block_is_compared),
        cmocka_unit_test(blocks_are_compared_in_order),
        cmocka_unit_test(kinds_of_memory_are_not_compared),
        cmocka_unit_test(sections_are_found_by_name_and_instance),
        cmocka_unit_test(the_order_of_sections_is_the_streams_affair),
        cmocka_unit_test(a_section_is_loaded_within_its_versions),
        cmocka_unit_test(a_required_feature_that_is_unknown_is_refused),
        cmocka_unit_test(no_more_is_named_than_a_verdict_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
