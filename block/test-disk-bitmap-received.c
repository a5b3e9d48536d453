/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A copy takes the place of a disk whose bitmaps are there: they say nothing of the copy, and come back with the disk. */
#include "stream/test-storage-rig.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/disk-private.h"
#include "block/receive.h"

#define DISK_BYTES (8u * MIB)

typedef struct {
    char *directory, *path, *bitmaps, *replaced;
    char *crashed; /* a file of bitmaps as a crash leaves it */
    gsize length;
    VmfDisk *disk; /* a copy may come in its place */
} Rig;

static VmfDisk *open_disk(const char *path, bool incoming)
{
    g_autofree char *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {
        .size = sizeof(options), .uri = uri, .create_bytes = incoming ? 0 : DISK_BYTES, .incoming = incoming};
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = vmf_disk_open("root", &options, &error);

    if (!disk)
        fail_msg("%s", error->message);
    return disk;
}

static void acquire(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_acquire(disk, &error), error);
}

static void add(VmfDisk *disk, const char *name)
{
    VmfBitmapOptions options = {.size = sizeof(options), .name = name, .persistent = true};
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_add_bitmap(disk, &options, &error), error);
}

static bool has(VmfDisk *disk, const char *name)
{
    VmfBitmapInfo info = {.size = sizeof(info)};

    return vmf_disk_list_bitmaps(disk, &info, 1) == 1 && strcmp(info.name, name) == 0;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* The machine that had the disk was killed: its bitmap says that all is as it was. */
static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);
    VmfDisk *disk;

    rig->directory = directory_new(g_get_tmp_dir());
    rig->path = g_build_filename(rig->directory, "disk", NULL);
    rig->bitmaps = g_strconcat(rig->path, ".bitmaps", NULL);
    rig->replaced = g_strconcat(rig->bitmaps, ".replaced", NULL);
    disk = open_disk(rig->path, false);
    acquire(disk);
    add(disk, "daily");
    assert_true(g_file_get_contents(rig->bitmaps, &rig->crashed, &rig->length, NULL));
    vmf_disk_free(disk);
    assert_true(g_file_set_contents(rig->bitmaps, rig->crashed, (gssize)rig->length, NULL));
    rig->disk = open_disk(rig->path, true);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_free(rig->disk);
    directory_remove(rig->directory);
    g_free(rig->crashed);
    g_free(rig->replaced);
    g_free(rig->bitmaps);
    g_free(rig->path);
    g_free(rig);
    return 0;
}

static void receive(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_receive_begin(disk, DISK_BYTES, VMF_RECEIVE_ANEW, &error), error);
}

static void commit(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_receive_commit(disk, &error), error);
}

static void assert_as_crashed(const Rig *rig, const char *path)
{
    g_autofree char *content = NULL;
    gsize length;

    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_int_equal(length, rig->length);
    assert_memory_equal(content, rig->crashed, length);
}

/* ---- the place is taken ------------------------------------------------------------------------------------------ */

static void test_copy_has_none_of_them(void **state)
{
    const Rig *rig = *state;

    receive(rig->disk);
    assert_as_crashed(rig, rig->bitmaps);
    commit(rig->disk);
    acquire(rig->disk);
    assert_false(has(rig->disk, "daily"));
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_KEPT);
    assert_false(exists(rig->bitmaps) || exists(rig->replaced));
}

/* Nobody knows whose the guest is; the next one that looks finds the copy. */
static void test_copy_that_is_left_has_none_of_them(void **state)
{
    Rig *rig = *state;

    receive(rig->disk);
    commit(rig->disk);
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_LEFT);
    assert_false(exists(rig->bitmaps));
    assert_as_crashed(rig, rig->replaced);
}

static void test_copy_by_a_link_has_none_of_them(void **state)
{
    const Rig *rig = *state;
    g_autofree char *link_path = g_build_filename(rig->directory, "link", NULL);

    assert_int_equal(symlink(rig->path, link_path), 0);
    g_autoptr(VmfDisk) disk = open_disk(link_path, true);
    receive(disk);
    commit(disk);
    vmf_disk_receive_end(disk, VMF_RECEIVE_KEPT);
    assert_true(vmf_disk_release(disk, NULL));
    assert_false(exists(rig->bitmaps) || exists(rig->replaced));
}

/* A file that is made anew is no copy, and has nothing of the one that was removed either. */
static void test_disk_that_is_made_has_none_of_them(void **state)
{
    const Rig *rig = *state;

    assert_int_equal(unlink(rig->path), 0);
    g_autoptr(VmfDisk) disk = open_disk(rig->path, false);
    assert_as_crashed(rig, rig->bitmaps);
    acquire(disk);
    assert_false(has(disk, "daily"));
    assert_false(exists(rig->bitmaps) || exists(rig->replaced));
}

/* What was named by mistake is not to be lost. */
static void test_other_files_stay(void **state)
{
    const Rig *rig = *state;

    assert_true(g_file_set_contents(rig->bitmaps, "a letter", 8, NULL));
    receive(rig->disk);
    commit(rig->disk);
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_KEPT);
    assert_true(exists(rig->bitmaps));
}

/* ---- and given back ---------------------------------------------------------------------------------------------- */

/* The copy had bitmaps of its own by then. */
static void test_they_come_back_with_their_disk(void **state)
{
    const Rig *rig = *state;

    receive(rig->disk);
    commit(rig->disk);
    acquire(rig->disk);
    add(rig->disk, "new");
    assert_true(exists(rig->bitmaps));
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_DROPPED);
    assert_as_crashed(rig, rig->bitmaps);
    assert_false(exists(rig->replaced));
    g_autoptr(VmfDisk) disk = open_disk(rig->path, false);
    acquire(disk);
    assert_true(has(disk, "daily"));
}

static void test_nothing_is_left_of_a_copy_that_goes(void **state)
{
    const Rig *rig = *state;

    assert_int_equal(unlink(rig->bitmaps), 0);
    receive(rig->disk);
    commit(rig->disk);
    acquire(rig->disk);
    add(rig->disk, "new");
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_DROPPED);
    assert_true(exists(rig->path));
    assert_false(exists(rig->bitmaps));
}

/* ---- a disk that is used while it comes -------------------------------------------------------------------------- */

/* Its bitmaps are in memory until it has its name. */
static void test_early_bitmaps_wait_for_the_name(void **state)
{
    const Rig *rig = *state;

    receive(rig->disk);
    acquire(rig->disk);
    assert_false(has(rig->disk, "daily"));
    add(rig->disk, "new");
    assert_as_crashed(rig, rig->bitmaps);
    commit(rig->disk);
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_KEPT);
    assert_true(has(rig->disk, "new") && exists(rig->bitmaps));
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_true(has(rig->disk, "new"));
}

static void test_early_bitmaps_go_with_their_disk(void **state)
{
    const Rig *rig = *state;

    receive(rig->disk);
    acquire(rig->disk);
    add(rig->disk, "new");
    vmf_disk_receive_end(rig->disk, VMF_RECEIVE_DROPPED);
    assert_as_crashed(rig, rig->bitmaps);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_copy_has_none_of_them),
        rig_test(test_copy_that_is_left_has_none_of_them),
        rig_test(test_copy_by_a_link_has_none_of_them),
        rig_test(test_disk_that_is_made_has_none_of_them),
        rig_test(test_other_files_stay),
        rig_test(test_they_come_back_with_their_disk),
        rig_test(test_nothing_is_left_of_a_copy_that_goes),
        rig_test(test_early_bitmaps_wait_for_the_name),
        rig_test(test_early_bitmaps_go_with_their_disk),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
