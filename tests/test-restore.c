/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Restoring images that were made from the format's page by other code (forge-image.c): a guest gets what the image has, or nothing and
 * the reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <string.h>

#include "tests/restore-rig.h"

/* ---- whole images ------------------------------------------------------------------------------------------------------- */

static void restore_everywhere(const ImageRoom *room, const ForgeImage *image, const char *name, unsigned threads)
{
    static const struct {
        VmfRamBackend backend;
        VmfRamFlags flags;
    } kinds[] = {{VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES}, {VMF_RAM_ANON, 0}, {VMF_RAM_MEMFD, 0}};
    g_autofree char *uri = image_uri(room, name);

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autoptr(Guest) guest = guest_new(kinds[i].backend, kinds[i].flags, FORGE_IMAGE_RAM_PAGES, false);
        g_auto(Trial) trial;
        trial_init(&trial, uri);
        trial.parameters.channels = threads;
        assert_restored(&trial, guest, image);
        assert_true(guest->running);
        assert_int_equal(guest->n_starts, 1);
        assert_int_equal(trial.statistics.pages_data, pages_of(image));
        assert_int_equal(trial.statistics.bytes_received, pages_of(image) * PAGE);
        assert_int_equal(trial.statistics.ram_remaining_bytes, 0);
        assert_int_not_equal(trial.statistics.total_ns, 0);
    }
}

static void test_whole(void **state)
{
    for (unsigned big = 0; big < 2; big++) {
        g_autoptr(ForgeImage) image = forge_image_new(big, 2 + 2 * big);
        image_write(*state, image, "whole.img");
        restore_everywhere(*state, image, "whole.img", 1 + 3 * big);
    }
}

static void test_layers(void **state)
{
    g_autoptr(ForgeImage) oldest = forge_image_new(false, 2);
    g_autoptr(ForgeImage) middle = forge_image_layer(oldest, "file:oldest.img", 3);
    g_autoptr(ForgeImage) youngest = forge_image_layer(middle, "file:nowhere.img", 4);
    g_autofree char *parent = image_uri(*state, "middle.img"), *uri = image_uri(*state, "youngest.img");
    const char *const parents[] = {parent, NULL};
    g_autoptr(Guest) guest = guest_new(VMF_RAM_MEMFD, 0, FORGE_IMAGE_RAM_PAGES, false);
    g_auto(Trial) trial;

    image_write(*state, oldest, "oldest.img");
    image_write(*state, middle, "middle.img");
    image_write(*state, youngest, "youngest.img");
    trial_init(&trial, uri);
    assert_refused(&trial, guest, "image.parent", "nowhere.img");
    trial.options.parents = parents;
    assert_restored(&trial, guest, youngest);
}

static void test_sections(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autoptr(Guest) guest = fitting_guest();
    g_autofree char *uri = image_uri(*state, "a.img");
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    trial_init(&trial, uri);
    trial.options.paused = true;
    assert_restored(&trial, guest, image);
    assert_string_equal(guest->sections[0].loaded->str, "state of the cpu, in two parts");
    assert_string_equal(guest->sections[1].loaded->str, "and of the timer");
    assert_int_equal(guest->n_starts, 0);
}

/* ---- images that do not fit, or are not right --------------------------------------------------------------------------- */

static void test_other_machine(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autoptr(Guest) guest = guest_new(VMF_RAM_ANON, 0, FORGE_IMAGE_RAM_PAGES + 1, true);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    vmf_guest_set_property(guest->guest, "cpu", "other");
    trial_init(&trial, uri);
    assert_refused(&trial, guest, "static.incompatible", "cpu: here other, there rv32; ram.size: block ram");
    assert_int_equal(g_strv_length(trial.incompatibilities), 2);
    assert_int_equal(*(uint8_t *)vmf_ram_block_host(vmf_guest_ram(guest->guest, 1)), 0x5a); /* nothing was touched */
}

static void test_damaged_page(void **state)
{
    static const VmfRamFlags kinds[] = {0, VMF_RAM_NO_HUGE_PAGES};
    g_autofree char *uri = image_uri(*state, "a.img");

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autoptr(ForgeImage) image = forge_image_new(false, 1);
        g_autoptr(Guest) guest = guest_new(VMF_RAM_ANON, kinds[i], FORGE_IMAGE_RAM_PAGES, true);
        g_auto(Trial) trial;
        image->file->data[image->blocks[0].pages + 7 * PAGE + 99] ^= 4;
        image_write(*state, image, "a.img");
        trial_init(&trial, uri);
        assert_refused(&trial, guest, "image.page", "RAM block ram, page 7: does not match its digest");
        assert_nothing(guest);
        assert_int_equal(guest->n_cleanups, 2);
    }
}

/* A writer that is wrong about the guest, all digests being right. */
static void test_lying_summary(void **state)
{
    g_autofree char *uri = image_uri(*state, "a.img");

    for (unsigned counts = 0; counts < 2; counts++) {
        g_autoptr(ForgeImage) image = forge_image_new(false, 1);
        g_autoptr(Guest) guest = fitting_guest();
        g_auto(Trial) trial;
        uint8_t *at = image->blocks[0].memory + (counts ? 45 * PAGE : 3 * PAGE) + 10;
        uint8_t before = *at;
        *at = (uint8_t)(before + 1);
        forge_image_records(image);
        *at = before;
        forge_image_assemble(image);
        forge_image_seal(image);
        image_write(*state, image, "a.img");
        trial_init(&trial, uri);
        assert_refused(&trial, guest, counts ? "ram.counts" : "ram.sum", "RAM block ram");
        assert_nothing(guest);
    }
}

static void test_no_image(void **state)
{
    g_autoptr(Guest) guest = fitting_guest();
    g_autofree char *uri = image_uri(*state, "none.img");
    g_auto(Trial) trial;

    trial_init(&trial, uri);
    assert_refused(&trial, guest, "io", "none.img");
    trial.options.uri = NULL;
    assert_refused(&trial, guest, "usage", "uri");
    trial.options.uri = uri;
    trial.options.size = sizeof(size_t);
    assert_refused(&trial, guest, "usage", "size");
}

/* ---- disks -------------------------------------------------------------------------------------------------------------- */

static void test_disks(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest(), diskless = guest_new(VMF_RAM_ANON, 0, FORGE_IMAGE_RAM_PAGES, false);
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    trial_init(&trial, uri);
    assert_refused(&trial, diskless, "image.disk", "disk hda: here is none");
    g_free(guest->disk_mark);
    guest->disk_mark = g_strdup("later");
    assert_refused(&trial, guest, "image.disk", "disk hda: it has changed since: mark: here later, in the image");
    assert_int_equal(*(uint8_t *)vmf_ram_block_host(vmf_guest_ram(guest->guest, 1)), 0x5a); /* nothing was touched */
    g_free(guest->disk_identity);
    guest->disk_identity = g_strdup("uuid2");
    assert_refused(&trial, guest, "image.disk", "disk hda: identity: here uuid2, in the image uuid1");
    trial.options.force_stale_disks = true;
    guest->n_cleanups = 0;
    assert_restored(&trial, guest, image);
    assert_string_equal(guest->events->str, "disk.stale: disk hda: identity: here uuid2, in the image uuid1\n");
}

static void test_disk_of_which_the_image_says_nothing(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    assert_true(vmf_guest_add_disk(guest->guest, "hdb", &guest_disk_ops, guest, NULL));
    image_write(*state, image, "a.img");
    trial_init(&trial, uri);
    assert_refused(&trial, guest, "image.disk", "disk hdb: the image says nothing of it");
}

/* Its former owner writes to it until the lock changes hands. */
static void test_disk_that_changes_meanwhile(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    guest->next_mark = g_strdup("written");
    trial_init(&trial, uri);
    assert_refused(&trial, guest, "image.disk", "disk hda: it has changed since");
    assert_nothing(guest);
}

static void test_contained_disk(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    g_byte_array_set_size(image->disks, 0);
    forge_image_fields(image->disks, false, FORGE_DISK, "IIQHHHHSSS", 1, 0, UINT64_C(1) << 30, 3, 5, 4, 0, "hda", "uuid1", "mark");
    forge_image_rebuild(image);
    image_write(*state, image, "a.img");
    trial_init(&trial, uri);
    trial.options.force_stale_disks = true;
    assert_refused(&trial, guest, "unsupported", "its content is said to be in the image");
}

static void test_lock_that_another_has(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    guest->may_lock = false;
    trial_init(&trial, uri);
    assert_refused(&trial, guest, "guest", "another has it");
    assert_nothing(guest);
}

/* ---- ends --------------------------------------------------------------------------------------------------------------- */

static bool cancel_at_begin(void *opaque, const char *point)
{
    Trial *trial = opaque;

    if (strcmp(point, "restore.accepted") == 0)
        vmf_session_cancel(trial->session);
    return false;
}

static void test_cancel(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");

    image_write(*state, image, "a.img");
    for (unsigned early = 0; early < 2; early++) {
        g_autoptr(Guest) guest = fitting_guest();
        g_autoptr(GError) error = NULL;
        g_auto(Trial) trial;
        trial_init(&trial, uri);
        trial.cancelled = early;
        trial.parameters.fault = early ? NULL : cancel_at_begin;
        assert_false(trial_run(&trial, guest, &error));
        image_assert_id(error, "cancelled", "");
        assert_int_equal(trial.statistics.outcome, VMF_OUTCOME_CANCELLED);
        assert_nothing(guest);
    }
}

static bool killed_at(void *opaque, const char *point)
{
    Trial *trial = opaque;

    return strcmp(point, trial->parameters.machine) == 0;
}

static void test_faults(void **state)
{
    static const char *const points[] = {"restore.accepted", "restore.loaded", "restore.start"};
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");

    image_write(*state, image, "a.img");
    for (size_t i = 0; i < G_N_ELEMENTS(points); i++) {
        g_autoptr(Guest) guest = fitting_guest();
        g_auto(Trial) trial;
        trial_init(&trial, uri);
        trial.parameters.machine = points[i];
        trial.parameters.fault = killed_at;
        assert_refused(&trial, guest, "internal", points[i]);
        assert_nothing(guest);
    }
}

static void test_machine_of_image(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *path = image_path(*state, "a.img"), *other = image_path(*state, "b");
    VmfRestoreOptions options = {.size = sizeof(options), .uri = uri};
    uint8_t uuid[16];

    image_write(*state, image, "a.img");
    assert_true(vmf_image_is_at(path));
    assert_false(vmf_image_is_at(other));
    g_autoptr(VmfImageMachine) machine = vmf_image_machine_read(&options, NULL);
    assert_non_null(machine);
    assert_string_equal(vmf_image_machine_architecture(machine), "rv32");
    assert_string_equal(vmf_image_machine_property(machine, "cpu"), "rv32");
    assert_null(vmf_image_machine_property(machine, "memory.size"));
    vmf_image_machine_uuid(machine, uuid);
    assert_memory_equal(uuid, "0123456789abcdef", 16);
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test_setup_teardown(test_whole, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_layers, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_sections, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_other_machine, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_damaged_page, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_lying_summary, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_no_image, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_disks, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_disk_of_which_the_image_says_nothing, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_disk_that_changes_meanwhile, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_contained_disk, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_lock_that_another_has, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_cancel, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_faults, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_machine_of_image, image_enter, image_leave),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
