/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Two disks are given one file of bitmaps: who comes second is refused, and nothing of the first one's is lost. */
#include "stream/test-storage-rig.h"

#include <string.h>
#include <unistd.h>

#include <vmferry/backup.h>

#include "block/disk-private.h"
#include "block/receive.h"

#define DISK_BYTES (8u * MIB)

typedef struct {
    char *directory, *bitmaps;
    VmfDisk *disk; /* the first, acquired */
} Rig;

static VmfDisk *open_disk(const Rig *rig, const char *name, bool incoming)
{
    g_autofree char *uri = uri_at(rig->directory, name);
    VmfDiskOptions options = {.size = sizeof(options),
                              .uri = uri,
                              .create_bytes = incoming ? 0 : DISK_BYTES,
                              .incoming = incoming,
                              .bitmaps = rig->bitmaps};
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = vmf_disk_open(name, &options, &error);

    if (!disk)
        fail_msg("%s", error->message);
    return disk;
}

static void acquire(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_acquire(disk, &error), error);
}

static bool try_add(VmfDisk *disk, const char *name, bool persistent, GError **error)
{
    VmfBitmapOptions options = {.size = sizeof(options), .name = name, .granularity_bytes = 512, .persistent = persistent};

    return vmf_disk_add_bitmap(disk, &options, error);
}

static void add(VmfDisk *disk, const char *name, bool persistent)
{
    g_autoptr(GError) error = NULL;

    assert_good(try_add(disk, name, persistent, &error), error);
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    assert_null(error);
}

static void write_at(VmfDisk *disk, uint64_t offset)
{
    char data[512] = "x";
    struct iovec iov = {data, sizeof(data)};
    VmfDiskRequest request = {
        .operation = VMF_DISK_WRITE, .offset = offset, .length = sizeof(data), .iov = &iov, .n_iov = 1, .done = on_done};

    vmf_disk_submit(disk, &request);
    vmf_disk_drain(disk);
}

static void assert_locked(const Rig *rig, GError *error)
{
    assert_non_null(error);
    if (!strstr(error->message, rig->bitmaps) || !strstr(error->message, "another uses it"))
        fail_msg("%s", error->message);
    assert_error(error, VMF_ERROR_LOCKED);
}

static void cannot_be_acquired(const Rig *rig, VmfDisk *disk)
{
    GError *error = NULL;

    assert_false(vmf_disk_acquire(disk, &error));
    assert_locked(rig, error);
}

static void cannot_have(const Rig *rig, VmfDisk *disk, const char *name)
{
    GError *error = NULL;

    assert_false(try_add(disk, name, true, &error));
    assert_locked(rig, error);
}

/* What the first one records is in the file, and sound. */
static void assert_stored(const Rig *rig, const char *name)
{
    static uint64_t next;
    uint64_t at = next++ * 8192 % DISK_BYTES, offset, length;

    write_at(rig->disk, at);
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    g_autofree char *problem = vmf_disk_bitmaps_problem(rig->disk);
    assert_null(problem);
    assert_true(vmf_disk_next_dirty(rig->disk, name, at, &offset, &length, NULL) && length > 0 && offset == at);
}

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->directory = directory_new(g_get_tmp_dir());
    rig->bitmaps = g_build_filename(rig->directory, "bitmaps", NULL);
    rig->disk = open_disk(rig, "first", false);
    acquire(rig->disk);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_free(rig->disk);
    directory_remove(rig->directory);
    g_free(rig->bitmaps);
    g_free(rig);
    return 0;
}

static void make_file(const Rig *rig, const char *name)
{
    g_autofree char *path = g_build_filename(rig->directory, name, NULL);

    assert_true(g_file_set_contents(path, "", 0, NULL));
    assert_int_equal(truncate(path, DISK_BYTES), 0);
}

/* As it was made, as it was read, and written anew. */
static void test_file_in_use(void **state)
{
    const Rig *rig = *state;

    make_file(rig, "second");
    g_autoptr(VmfDisk) second = open_disk(rig, "second", false);
    add(rig->disk, "b", true);
    for (unsigned i = 0; i < 3; i++) {
        cannot_be_acquired(rig, second);
        assert_stored(rig, "b");
        if (i == 1)
            add(rig->disk, "c", true);
    }
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(second); /* nobody uses it any more */
    cannot_be_acquired(rig, rig->disk);
    assert_true(vmf_disk_release(second, NULL));
    acquire(rig->disk);
}

/* A disk that is made anew sets aside what is there: not this. */
static void test_disk_that_is_made(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "second", NULL);
    g_autoptr(VmfDisk) second = open_disk(rig, "second", false);

    add(rig->disk, "b", true);
    cannot_be_acquired(rig, second);
    assert_int_equal(access(path, F_OK), -1);
    assert_stored(rig, "b");
}

/* Both have none, until one has. */
static void test_file_that_was_made_since(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) second = open_disk(rig, "second", false);

    acquire(second);
    add(rig->disk, "b", true);
    for (unsigned i = 0; i < 2; i++) {
        cannot_have(rig, second, "theirs");
        add(second, i ? "more" : "fleeting", false);
        write_at(second, 0);
        assert_stored(rig, "b");
    }
    assert_true(vmf_disk_remove_bitmap(rig->disk, "b", NULL)); /* and with the last one its file */
    add(second, "theirs", true);
    cannot_have(rig, rig->disk, "b");
}

/* The same of a copy, which had them in memory until it took its place. */
static void test_copy_that_takes_its_place(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) copy = open_disk(rig, "copy", true);
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_receive_begin(copy, DISK_BYTES, VMF_RECEIVE_ANEW, &error), error);
    acquire(copy);
    add(copy, "theirs", true);
    add(rig->disk, "b", true);
    assert_false(vmf_disk_receive_commit(copy, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_LOCKED) && strstr(error->message, "another uses it"));
    assert_stored(rig, "b");
    vmf_disk_receive_end(copy, VMF_RECEIVE_DROPPED);
    assert_stored(rig, "b");
}

static void test_backup_onto_it(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) second = open_disk(rig, "second", false);
    g_autofree char *target = g_strconcat("file:", rig->bitmaps, NULL);
    VmfBackupOptions options = {.size = sizeof(options), .target = target, .force = true};
    GError *error = NULL, *own = NULL;

    acquire(second);
    add(rig->disk, "b", true);
    assert_null(vmf_backup_begin(second, &options, &error));
    assert_locked(rig, error);
    assert_null(vmf_backup_begin(rig->disk, &options, &own)); /* nor that of the disk itself */
    assert_locked(rig, own);
    assert_stored(rig, "b");
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_file_in_use),
        rig_test(test_disk_that_is_made),
        rig_test(test_file_that_was_made_since),
        rig_test(test_copy_that_takes_its_place),
        rig_test(test_backup_onto_it),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
