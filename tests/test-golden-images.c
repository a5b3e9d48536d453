/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The golden images are restored for ever: whole, as a layer over another, with disks, in each octet order, into a
 * guest of that layout, and what arrives is what tests/golden/README.rst says. They were written by the independent
 * writer.
 */
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/golden-guest.h"

static const char *const names[] = {
    "held-v2-le.img",  "held-v2-be.img",
    "image-v1-le.img", "image-v1-be.img", "disks-v1-le.img", "disks-v1-be.img", "layer-v1-le.img", "layer-v1-be.img",
};

/* ---- unpacking ------------------------------------------------------------- */

static void unpack(const char *folder, const char *name)
{
    g_autofree char *command = g_strdup_printf("gzip -dc '%s/%s.gz' > '%s/%s'", GOLDEN_DIRECTORY, name, folder, name);

    assert_int_equal(system(command), 0);
}

static int enter(void **state)
{
    char *folder = g_dir_make_tmp("vmf-golden-XXXXXX", NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        unpack(folder, names[i]);
    *state = folder;
    return 0;
}

static int leave(void **state)
{
    char *folder = *state;

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(folder, names[i], NULL);
        g_unlink(path);
    }
    g_rmdir(folder);
    g_free(folder);
    return 0;
}

/* ---- restoring ------------------------------------------------------------- */

static bool restore(Golden *golden, const char *folder, const char *name, bool force, GError **error)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", folder, name);
    VmfRestoreOptions options = {.size = sizeof(options), .uri = uri, .buffered = true, .force_stale_disks = force};
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session = vmf_session_new_restore(golden->guest, &options, &parameters, NULL, NULL);
    bool done = vmf_session_run(session, error);
    VmfStatistics statistics = {.size = sizeof(statistics)};
    vmf_session_get_statistics(session, &statistics);
    assert_int_equal(statistics.outcome, done ? VMF_OUTCOME_COMPLETED : VMF_OUTCOME_FAILED);
    return done;
}

#define DISK_BYTES (5 * 65536 + 512)
#define SHARED_BYTES (1u << 20)

/* disk1 is shared: it is there, though it is not the one that the image knows. */
static VmfDisk *add_disk(Golden *golden, const char *folder, const char *name, bool incoming)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", folder, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .sector_bytes = 512, .buffered = true};

    options.incoming = incoming;
    options.create_bytes = incoming ? 0 : SHARED_BYTES;
    VmfDisk *disk = vmf_disk_open(name, &options, NULL);
    assert_non_null(disk);
    if (!incoming)
        assert_true(vmf_disk_acquire(disk, NULL) && vmf_disk_release(disk, NULL));
    assert_true(vmf_guest_add_disk(golden->guest, name, &vmf_disk_guest_ops, disk, NULL));
    return disk;
}

/* What tests/golden/README.rst says of it; and it goes, for the next one to arrive. */
static void check_disk(VmfDisk *disk, const char *folder)
{
    static const unsigned pages[][2] = {{0, 11}, {17, 12}, {DISK_BYTES / GOLDEN_PAGE, 13}};
    g_autofree char *path = g_build_filename(folder, "disk0", NULL), *shared = g_build_filename(folder, "disk1", NULL);
    g_autofree uint8_t *expected = g_malloc0(DISK_BYTES + GOLDEN_PAGE);
    g_autofree char *content = NULL;
    size_t length;

    for (size_t i = 0; i < G_N_ELEMENTS(pages); i++)
        golden_make_page(&expected[(size_t)pages[i][0] * GOLDEN_PAGE], pages[i][1]);
    assert_true(vmf_disk_release(disk, NULL));
    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_int_equal(length, DISK_BYTES);
    assert_memory_equal(content, expected, length);
    g_unlink(path);
    g_unlink(shared);
}

static void restore_golden(const char *folder, const char *name, const VmfDeviceState *device)
{
    bool layer = g_str_has_prefix(name, "layer"), held = g_str_has_prefix(name, "held");
    Golden *golden = golden_new(device);
    VmfDisk *own = held ? add_disk(golden, folder, "disk0", true) : NULL;
    VmfDisk *shared = held ? add_disk(golden, folder, "disk1", false) : NULL;
    GError *error = NULL;

    if (!restore(golden, folder, name, held || g_str_has_prefix(name, "disks"), &error))
        fail_msg("%s: %s", name, error->message);
    golden_check_memory(golden, layer);
    golden_check_state(golden, device->subsections != NULL, layer);
    assert_false(golden->running); /* it was saved paused */
    assert_int_equal(golden->missing, 0);
    golden_free(golden);
    if (held)
        check_disk(own, folder);
    vmf_disk_free(own);
    vmf_disk_free(shared);
}

static void each_is_restored(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        restore_golden(*state, names[i], &golden_counter_state);
        restore_golden(*state, names[i], &golden_plain_counter_state);
    }
}

static void an_image_of_disks_that_are_not_here_is_refused(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) error = NULL;
        if (!g_str_has_prefix(names[i], "disks"))
            continue;
        Golden *golden = golden_new(&golden_counter_state);
        assert_false(restore(golden, *state, names[i], false, &error));
        assert_string_equal(vmf_error_id(error), "image.disk");
        golden_free(golden);
    }
}

static void a_layer_without_its_parent_is_refused(void **state)
{
    g_autofree char *parent = g_build_filename(*state, "image-v1-be.img", NULL);
    g_autoptr(GError) error = NULL;
    Golden *golden = golden_new(&golden_counter_state);

    g_unlink(parent);
    assert_false(restore(golden, *state, "layer-v1-be.img", false, &error));
    assert_string_equal(vmf_error_id(error), "image.parent");
    golden_free(golden);
    unpack(*state, "image-v1-be.img");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_is_restored),
        cmocka_unit_test(an_image_of_disks_that_are_not_here_is_refused),
        cmocka_unit_test(a_layer_without_its_parent_is_refused),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
