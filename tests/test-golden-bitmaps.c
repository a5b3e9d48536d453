/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The golden bitmaps (tests/golden/README.rst) are read for ever: files of them in use and released, by a disk that is acquired, and
 * streams of either byte order that bring some along. The independent writer wrote them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/bitmap-mover.h>
#include <vmferry/block.h>

#include "tests/golden-guest.h"

#define MIB (1u << 20)
#define FILE_DISK_BYTES (24 * (uint64_t)MIB + 512)
#define COPIED_DISK_BYTES (5 * 65536u + 512)
#define RUNS_MAX 4

typedef struct {
    const char *name;
    uint32_t granularity_bytes;
    bool recording, persistent, inconsistent;
    VmfBitmapExtent runs[RUNS_MAX]; /* rising; length 0: no more */
} Expected;

static char *directory;

static int set_up(void **state)
{
    directory = g_dir_make_tmp("vmf-golden-XXXXXX", NULL);
    return directory ? 0 : -1;
}

static int tear_down(void **state)
{
    g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);

    for (const char *name; (name = g_dir_read_name(dir));) {
        g_autofree char *path = g_build_filename(directory, name, NULL);
        g_unlink(path);
    }
    g_rmdir(directory);
    g_free(directory);
    return 0;
}

static void check_bitmap(VmfDisk *disk, const Expected *expected, const VmfBitmapInfo *info)
{
    uint64_t from = 0, offset, length;

    assert_string_equal(info->name, expected->name);
    assert_int_equal(info->granularity_bytes, expected->granularity_bytes);
    assert_int_equal(info->recording, expected->recording);
    assert_int_equal(info->persistent, expected->persistent);
    assert_int_equal(info->inconsistent, expected->inconsistent);
    for (unsigned i = 0; !expected->inconsistent && i <= RUNS_MAX; i++, from = offset + length) {
        assert_true(vmf_disk_next_dirty(disk, info->name, from, &offset, &length, NULL));
        assert_int_equal(length, i < RUNS_MAX ? expected->runs[i].length : 0);
        if (length == 0)
            break;
        assert_int_equal(offset, expected->runs[i].offset);
    }
}

static void check_bitmaps(VmfDisk *disk, const Expected *expected, unsigned n)
{
    VmfBitmapInfo infos[8];

    for (unsigned i = 0; i < G_N_ELEMENTS(infos); i++)
        infos[i].size = sizeof(infos[i]);
    assert_int_equal(vmf_disk_list_bitmaps(disk, infos, G_N_ELEMENTS(infos)), n);
    for (unsigned i = 0; i < n; i++)
        check_bitmap(disk, &expected[i], &infos[i]);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static void copy_golden(const char *name, const char *to)
{
    g_autofree char *path = g_build_filename(GOLDEN_DIRECTORY, name, NULL), *octets = NULL;
    gsize length;

    assert_true(g_file_get_contents(path, &octets, &length, NULL));
    assert_true(g_file_set_contents(to, octets, (gssize)length, NULL));
}

/* The disk as it was when its bitmaps were stored: all of it zeros, and changed when the file says. */
static void make_disk(const char *path, int64_t mtime_ns)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {mtime_ns / 1000000000, mtime_ns % 1000000000}};
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, FILE_DISK_BYTES), 0);
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
}

static void check_file(const char *name, int64_t mtime_ns, const Expected *expected)
{
    g_autofree char *path = g_build_filename(directory, "disk", NULL), *bitmaps = g_strconcat(path, ".bitmaps", NULL);
    g_autofree char *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .buffered = true};

    make_disk(path, mtime_ns);
    copy_golden(name, bitmaps);
    g_autoptr(VmfDisk) disk = vmf_disk_open("disk", &options, NULL);
    assert_non_null(disk);
    assert_true(vmf_disk_acquire(disk, NULL));
    assert_null(vmf_disk_bitmaps_problem(disk));
    check_bitmaps(disk, expected, 5);
    vmf_disk_release(disk, NULL);
}

#define MTIME_NS INT64_C(1700000000123456789)

static void test_released_file(void **state)
{
    static const Expected expected[] = {
        {"daily", 65536, true, true, false, {{0, 65536}, {60 * 65536, 8 * 65536}, {24 * MIB, 512}}},
        {"wöchentlich", 512, true, true, false, {{0, 3 * 512}, {3967 * 512, 2 * 512}, {24 * MIB, 512}}},
        {"stopped", MIB, false, true, false, {{3 * MIB, 4 * MIB}}},
        {"doubtful", 65536, true, true, true, {{0}}},
        {"coarse", 64 * MIB, true, true, false, {{0}}},
    };

    check_file("bitmaps-v1-released.bitmaps", MTIME_NS, expected);
}

/* Somebody wrote the disk since: what records says nothing any more. */
static void test_released_file_of_a_disk_that_was_changed(void **state)
{
    static const Expected expected[] = {
        {"daily", 65536, true, true, true, {{0}}},
        {"wöchentlich", 512, true, true, true, {{0}}},
        {"stopped", MIB, false, true, false, {{3 * MIB, 4 * MIB}}},
        {"doubtful", 65536, true, true, true, {{0}}},
        {"coarse", 64 * MIB, true, true, true, {{0}}},
    };

    check_file("bitmaps-v1-released.bitmaps", MTIME_NS + 1, expected);
}

/* Regions 1 and 6 have an intent: 4 to 8 MiB, and the last sector. */
static void test_file_in_use(void **state)
{
    static const Expected expected[] = {
        {"daily", 65536, true, true, false, {{0, 65536}, {60 * 65536, 68 * 65536}, {24 * MIB, 512}}},
        {"wöchentlich", 512, true, true, false, {{0, 3 * 512}, {3967 * 512, 2 * 512}, {4 * MIB, 4 * MIB}, {24 * MIB, 512}}},
        {"stopped", MIB, false, true, false, {{3 * MIB, 4 * MIB}}},
        {"doubtful", 65536, true, true, true, {{0}}},
        {"coarse", 64 * MIB, true, true, false, {{0, 24 * MIB + 512}}},
    };

    check_file("bitmaps-v1-in-use.bitmaps", 1, expected);
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

static VmfDisk *add_disk(Golden *golden, VmfBitmapMover *mover, const char *name, uint64_t size)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", directory, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = size, .incoming = true};
    VmfDisk *disk = vmf_disk_open(name, &options, NULL);

    assert_non_null(disk);
    assert_true(vmf_guest_add_disk(golden->guest, name, &vmf_disk_guest_ops, disk, NULL));
    vmf_bitmap_mover_add_disk(mover, disk);
    return disk;
}

static void load(Golden *golden, const char *name)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", GOLDEN_DIRECTORY, name);
    g_autoptr(VmfListener) listener = vmf_listener_new(uri, 0, NULL);
    g_autoptr(GError) error = NULL;
    VmfParameters parameters;

    assert_non_null(listener);
    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session = vmf_session_new_target(golden->guest, listener, &parameters, NULL, NULL);
    if (!vmf_session_run(session, &error))
        fail_msg("%s: %s", name, error->message);
}

static void check_stream(const char *name)
{
    static const Expected of_copied[] = {{"fine", 512, true, false, false, {{80 * 512, 4 * 512}, {640 * 512, 512}}}};
    static const Expected of_shared[] = {
        {"daily", 4096, true, true, false, {{0, 8192}, {255 * 4096, 4096}}},
        {"wöchentlich", 65536, false, false, true, {{0}}},
    };
    Golden *golden = golden_new(&golden_counter_state);
    VmfBitmapMover *mover = vmf_bitmap_mover_new();
    VmfDisk *copied = add_disk(golden, mover, "disk0", 0), *shared = add_disk(golden, mover, "disk1", MIB);

    golden->disks[0] = copied;
    golden->disks[1] = shared;
    assert_true(vmf_guest_add_handlers(golden->guest, "dirty-bitmaps", 0, 1, &vmf_bitmap_handlers, mover, NULL));
    load(golden, name);
    golden_check_memory(golden, false);
    golden_check_state(golden, true, false);
    assert_int_equal(vmf_disk_size(copied), COPIED_DISK_BYTES);
    check_bitmaps(copied, of_copied, G_N_ELEMENTS(of_copied));
    check_bitmaps(shared, of_shared, G_N_ELEMENTS(of_shared));
    golden_free(golden);
    vmf_bitmap_mover_free(mover);
    vmf_disk_free(copied);
    vmf_disk_free(shared);
}

static void test_little_endian_stream(void **state)
{
    check_stream("bitmaps-v3-le.vmf");
}

static void test_big_endian_stream(void **state)
{
    check_stream("bitmaps-v3-be.vmf");
}

#define golden_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        golden_test(test_released_file),
        golden_test(test_released_file_of_a_disk_that_was_changed),
        golden_test(test_file_in_use),
        golden_test(test_little_endian_stream),
        golden_test(test_big_endian_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
