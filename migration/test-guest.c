/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest as the embedder builds it: what is kept, what is refused at once, and what every session will refuse. */
#include "migration/guest.h"
#include "migration/ops.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

static const uint8_t uuid[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static bool yes(void *opaque, GError **error)
{
    return true;
}

static bool running(void *opaque)
{
    return true;
}

static void throttle(void *opaque, unsigned percent)
{
}

static void log_stop(void *opaque)
{
}

static bool log_harvest(void *opaque, unsigned block,
                        void (*report)(void *report_opaque, uint64_t first_word, const uint64_t *words, size_t n_words),
                        void *report_opaque, GError **error)
{
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
}

static const VmfGuestOps ops = {
    .size = sizeof(ops), .stop = yes, .start = yes, .is_running = running, .throttle = throttle};
static const VmfDirtyLogOps dirty_log = {.size = sizeof(dirty_log),
                                         .name = "test",
                                         .start = yes,
                                         .stop = log_stop,
                                         .harvest = log_harvest,
                                         .clear = log_clear};
static const VmfSaveHandlers handlers = {.size = sizeof(handlers), .save_prepare = yes};
static const VmfField no_fields[] = {VMF_FIELD_END};
static const VmfDeviceState timer = {
    .size = sizeof(timer), .name = "timer", .version = 3, .minimum_version = 1, .fields = no_fields};

static VmfGuest *new_guest(void)
{
    return vmf_guest_new("rv32", uuid, &ops, (void *)&ops);
}

static VmfRamBlock *new_block(const char *name)
{
    VmfRamBlock *block = vmf_ram_block_new(name, 4096, VMF_RAM_ANON, 0, 0, NULL);

    assert_non_null(block);
    return block;
}

static void assert_fault(const VmfGuest *guest, const char *words)
{
    g_autoptr(GError) error = NULL;

    assert_false(vmf_guest_check(guest, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    if (!strstr(error->message, words))
        fail_msg("expected '%s', got '%s'", words, error->message);
}

static void test_identity(void **state)
{
    static const uint8_t other[16] = {1};
    g_autoptr(VmfGuest) guest = new_guest();
    uint8_t found[16];

    assert_string_equal(vmf_guest_architecture(guest), "rv32");
    vmf_guest_uuid(guest, found);
    assert_memory_equal(found, uuid, 16);
    vmf_guest_adopt_uuid(guest, other); /* it has one */
    vmf_guest_uuid(guest, found);
    assert_memory_equal(found, uuid, 16);
    assert_ptr_equal(vmf_guest_opaque(guest), &ops);
    assert_ptr_equal(vmf_guest_ops(guest)->throttle, throttle);
    assert_null(vmf_guest_dirty_log(guest));
    assert_int_equal(vmf_guest_n_ram(guest), 0);
    assert_int_equal(vmf_guest_n_properties(guest), 0);
    assert_int_equal(vmf_guest_n_entries(guest), 0);
    assert_true(vmf_guest_check(guest, NULL));
}

/* An embedder of an older release has a shorter table: what lies behind it is not called. */
static void test_older_tables(void **state)
{
    VmfGuestOps older = ops;
    g_autoptr(VmfGuest) guest = NULL;
    g_autoptr(VmfGuest) too_old = NULL;

    older.size = VMF_SIZE_UP_TO(VmfGuestOps, is_running);
    guest = vmf_guest_new("rv32", uuid, &older, NULL);
    assert_true(vmf_guest_check(guest, NULL));
    assert_null(vmf_guest_ops(guest)->throttle);
    assert_int_equal(vmf_guest_ops(guest)->size, sizeof(VmfGuestOps));
    assert_false(VMF_OPS_HAS(&older, throttle));
    assert_true(VMF_OPS_HAS(&older, is_running));

    older.size = VMF_SIZE_UP_TO(VmfGuestOps, start);
    too_old = vmf_guest_new("rv32", uuid, &older, NULL);
    assert_fault(too_old, "is_running are required");
}

/* And one of a later release a longer one. */
static void test_newer_tables(void **state)
{
    struct {
        VmfGuestOps known;
        void *later;
    } newer = {.known = ops, .later = &newer};
    g_autoptr(VmfGuest) guest = NULL;

    newer.known.size = sizeof(newer);
    guest = vmf_guest_new("rv32", uuid, &newer.known, NULL);
    assert_true(vmf_guest_check(guest, NULL));
    assert_ptr_equal(vmf_guest_ops(guest)->throttle, throttle);
    assert_int_equal(vmf_guest_ops(guest)->size, sizeof(VmfGuestOps));
}

static void test_faults_of_identity(void **state)
{
    VmfGuestOps incomplete = ops;
    g_autoptr(VmfGuest) nameless = vmf_guest_new("", uuid, &ops, NULL);
    g_autoptr(VmfGuest) long_name = vmf_guest_new("an-architecture-of-thirty-two-by", uuid, &ops, NULL);
    g_autoptr(VmfGuest) no_start = NULL;

    incomplete.start = NULL;
    no_start = vmf_guest_new("rv32", uuid, &incomplete, NULL);
    assert_fault(nameless, "architecture");
    assert_fault(long_name, "architecture");
    assert_fault(no_start, "start");
    vmf_guest_set_property(no_start, "", "the first fault stays");
    assert_fault(no_start, "start");
}

static void test_dirty_log(void **state)
{
    VmfDirtyLogOps incomplete = dirty_log;
    g_autoptr(VmfGuest) guest = new_guest();

    vmf_guest_set_dirty_log(guest, &dirty_log, (void *)uuid);
    assert_true(vmf_guest_check(guest, NULL));
    assert_string_equal(vmf_guest_dirty_log(guest)->name, "test");
    assert_ptr_equal(vmf_guest_dirty_log_opaque(guest), uuid);

    incomplete.clear = NULL;
    incomplete.name = NULL;
    vmf_guest_set_dirty_log(guest, &incomplete, NULL);
    assert_fault(guest, "dirty log");
    assert_non_null(vmf_guest_dirty_log(guest)->name);
}

static void test_properties(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();

    vmf_guest_set_property(guest, "cpu.model", "a");
    vmf_guest_set_property(guest, "memory.size", "4194304");
    vmf_guest_set_property(guest, "cpu.model", "b");
    vmf_guest_set_property(guest, "empty", "");
    assert_int_equal(vmf_guest_n_properties(guest), 3);
    assert_string_equal(vmf_guest_property(guest, 0)->key, "cpu.model");
    assert_string_equal(vmf_guest_property(guest, 0)->value, "b");
    assert_string_equal(vmf_guest_property(guest, 1)->key, "memory.size");
    assert_string_equal(vmf_guest_property_value(guest, "empty"), "");
    assert_null(vmf_guest_property_value(guest, "cpu"));
    assert_true(vmf_guest_check(guest, NULL));
}

static void test_faults_of_properties(void **state)
{
    g_autofree char *long_key = g_strnfill(VMF_PROPERTY_KEY_MAX + 1, 'k');
    g_autofree char *long_value = g_strnfill(VMF_PROPERTY_VALUE_MAX + 1, 'v');
    const struct {
        const char *key, *value, *words;
    } cases[] = {{"", "x", "key"},
                 {long_key, "x", "key"},
                 {"\xff", "x", "key"},
                 {"k", long_value, "value"},
                 {"k", "\xff", "value"},
                 {"k\n", "x", "key"},
                 {"k", "\x1b[2J", "value"},
                 {"k", "\x7f", "value"}};

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmfGuest) guest = new_guest();

        vmf_guest_set_property(guest, long_key + 1, long_value + 1);
        assert_true(vmf_guest_check(guest, NULL));
        vmf_guest_set_property(guest, cases[i].key, cases[i].value);
        assert_fault(guest, cases[i].words);
        assert_int_equal(vmf_guest_n_properties(guest), 1);
    }
}

static void test_too_many_properties(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();

    for (unsigned i = 0; i < VMF_PROPERTIES_MAX; i++) {
        g_autofree char *key = g_strdup_printf("key-%u", i);

        vmf_guest_set_property(guest, key, "");
    }
    vmf_guest_set_property(guest, "key-7", "known ones can still be set");
    assert_true(vmf_guest_check(guest, NULL));
    vmf_guest_set_property(guest, "one-more", "");
    assert_fault(guest, "256");
}

static void test_ram(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();
    g_autoptr(VmfRamBlock) twin = new_block("rom");
    g_autoptr(GError) error = NULL;
    unsigned index = 99;

    assert_true(vmf_guest_add_ram(guest, new_block("main"), NULL, NULL));
    assert_true(vmf_guest_add_ram(guest, new_block("rom"), &index, NULL));
    assert_int_equal(index, 1);
    assert_int_equal(vmf_guest_n_ram(guest), 2);
    assert_string_equal(vmf_ram_block_name(vmf_guest_ram(guest, 0)), "main");
    assert_false(vmf_guest_add_ram(guest, twin, &index, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    assert_int_equal(vmf_guest_n_ram(guest), 2);
}

static void test_too_many_blocks(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();
    g_autoptr(VmfRamBlock) one_more = new_block("one-more");

    for (unsigned i = 0; i < VMF_RAM_BLOCKS_MAX; i++) {
        g_autofree char *name = g_strdup_printf("block-%u", i);

        assert_true(vmf_guest_add_ram(guest, new_block(name), NULL, NULL));
    }
    assert_false(vmf_guest_add_ram(guest, one_more, NULL, NULL));
}

static void test_entries_in_order(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();
    VmfDeviceState local = timer;
    int device, owner;

    assert_true(vmf_guest_add_handlers(guest, "disk", 4, 2, &handlers, &owner, NULL));
    assert_true(vmf_guest_add_device(guest, &local, 0, &device, NULL));
    assert_true(vmf_guest_add_device(guest, &local, 1, NULL, NULL));
    memset(&local, 0, sizeof(local)); /* the description was copied */

    assert_int_equal(vmf_guest_n_entries(guest), 3);
    assert_string_equal(vmf_guest_entry(guest, 0)->name, "disk");
    assert_int_equal(vmf_guest_entry(guest, 0)->instance, 4);
    assert_int_equal(vmf_guest_entry(guest, 0)->version, 2);
    assert_ptr_equal(vmf_guest_entry(guest, 0)->opaque, &owner);
    assert_ptr_equal(vmf_guest_entry(guest, 0)->handlers->save_prepare, yes);
    assert_null(vmf_guest_entry(guest, 0)->state);
    assert_string_equal(vmf_guest_entry(guest, 1)->name, "timer");
    assert_int_equal(vmf_guest_entry(guest, 1)->version, 3);
    assert_ptr_equal(vmf_guest_entry(guest, 1)->device, &device);
    assert_int_equal(vmf_guest_entry(guest, 1)->state->version, 3);
    assert_null(vmf_guest_entry(guest, 1)->handlers);
    assert_ptr_equal(vmf_guest_find_entry(guest, "timer", 1), vmf_guest_entry(guest, 2));
    assert_null(vmf_guest_find_entry(guest, "timer", 2));
}

static void assert_not_added(VmfGuest *guest, const char *name, uint32_t instance, const char *words)
{
    g_autoptr(GError) error = NULL;
    unsigned before = vmf_guest_n_entries(guest);

    assert_false(vmf_guest_add_handlers(guest, name, instance, 1, &handlers, NULL, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    if (!strstr(error->message, words))
        fail_msg("expected '%s', got '%s'", words, error->message);
    assert_int_equal(vmf_guest_n_entries(guest), before);
}

static void test_refused_entries(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();
    g_autofree char *long_name = g_strnfill(VMF_SECTION_NAME_MAX + 1, 'n');
    VmfDeviceState broken = timer;

    assert_true(vmf_guest_add_device(guest, &timer, 0, NULL, NULL));
    assert_not_added(guest, "timer", 0, "taken");
    assert_not_added(guest, "", 0, "1 to 63");
    assert_not_added(guest, long_name, 0, "1 to 63");
    assert_not_added(guest, "ti\tmer", 0, "printable");
    assert_not_added(guest, VMF_SECTION_RAM, 7, "memory");
    assert_true(vmf_guest_add_handlers(guest, long_name + 1, 0, 1, &handlers, NULL, NULL));
    assert_false(vmf_guest_add_device(guest, &timer, 0, NULL, NULL));
    broken.minimum_version = 4;
    assert_false(vmf_guest_add_device(guest, &broken, 1, NULL, NULL));
}

static void test_too_many_entries(void **state)
{
    g_autoptr(VmfGuest) guest = new_guest();

    for (unsigned i = 0; i < VMF_SECTIONS_MAX - 1; i++)
        assert_true(vmf_guest_add_device(guest, &timer, i, NULL, NULL));
    assert_not_added(guest, "one-more", 0, "1024");
}

static uint64_t disk_size(void *opaque)
{
    return 4096;
}

static char *disk_text(void *opaque, GError **error)
{
    return g_strdup(opaque);
}

static void assert_no_disk(VmfGuest *guest, const char *name, const VmfDiskOps *disk_ops, const char *words)
{
    unsigned n = vmf_guest_n_disks(guest);
    g_autoptr(GError) error = NULL;

    assert_false(vmf_guest_add_disk(guest, name, disk_ops, NULL, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    assert_non_null(strstr(error->message, words));
    assert_int_equal(vmf_guest_n_disks(guest), n);
}

static void test_disks(void **state)
{
    const VmfDiskOps whole = {.size = sizeof(whole), .size_bytes = disk_size, .identity = disk_text, .mark = disk_text};
    VmfDiskOps broken = whole;
    g_autoptr(VmfGuest) guest = new_guest();
    g_autofree char *long_name = g_strnfill(VMF_DISK_NAME_MAX + 1, 'd');
    char name[] = "root";

    assert_true(vmf_guest_add_disk(guest, name, &whole, "one", NULL));
    name[0] = 'b';
    assert_true(vmf_guest_add_disk(guest, name, &whole, "two", NULL));
    assert_int_equal(vmf_guest_n_disks(guest), 2);
    assert_string_equal(vmf_guest_disk(guest, 0)->name, "root");
    assert_string_equal(vmf_guest_find_disk(guest, "boot")->opaque, "two");
    assert_null(vmf_guest_find_disk(guest, "data"));

    assert_no_disk(guest, "root", &whole, "taken");
    assert_no_disk(guest, "", &whole, "1 to 63");
    assert_no_disk(guest, "all", &whole, "all and none");
    assert_no_disk(guest, "none", &whole, "all and none");
    assert_no_disk(guest, long_name, &whole, "1 to 63");
    broken.mark = NULL;
    assert_no_disk(guest, "data", &broken, "required");
    broken = whole;
    broken.size = offsetof(VmfDiskOps, mark);
    assert_no_disk(guest, "data", &broken, "required");
    while (vmf_guest_n_disks(guest) < VMF_DISKS_MAX) {
        g_autofree char *more = g_strdup_printf("disk%u", vmf_guest_n_disks(guest));
        assert_true(vmf_guest_add_disk(guest, more, &whole, "more", NULL));
    }
    assert_no_disk(guest, "data", &whole, "256");
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_older_tables),
        cmocka_unit_test(test_newer_tables),
        cmocka_unit_test(test_faults_of_identity),
        cmocka_unit_test(test_dirty_log),
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_faults_of_properties),
        cmocka_unit_test(test_too_many_properties),
        cmocka_unit_test(test_ram),
        cmocka_unit_test(test_too_many_blocks),
        cmocka_unit_test(test_entries_in_order),
        cmocka_unit_test(test_refused_entries),
        cmocka_unit_test(test_too_many_entries),
        cmocka_unit_test(test_disks),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
