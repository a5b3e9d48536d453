/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The golden streams are loaded for ever: each version in each byte order, into a guest of that layout, and what arrives is what
 * tests/golden/README.rst says. They were written by the independent writer, so this is also where the two understandings of the format
 * meet. Then each of them is damaged in every place: it fails with one clear error, and nothing of it is left.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <vmferry/block.h>

#include "tests/golden-guest.h"

static const char *const names[] = {"v2-le.vmf", "v2-be.vmf", "v3-le.vmf", "v3-be.vmf"};

/* ---- loading --------------------------------------------------------------------------------------------------------------- */

static bool load(Golden *golden, const char *path, VmfStatistics *statistics, GError **error)
{
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autoptr(VmfListener) listener = vmf_listener_new(uri, 0, NULL);
    VmfParameters parameters;

    assert_non_null(listener);
    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session = vmf_session_new_target(golden->guest, listener, &parameters, NULL, NULL);
    bool done = vmf_session_run(session, error);
    statistics->size = sizeof(*statistics);
    vmf_session_get_statistics(session, statistics);
    return done;
}

static void load_golden(const char *name, const VmfDeviceState *state)
{
    g_autofree char *path = g_build_filename(GOLDEN_DIRECTORY, name, NULL);
    Golden *golden = golden_new(state);
    VmfStatistics statistics;
    GError *error = NULL;

    if (!load(golden, path, &statistics, &error))
        fail_msg("%s: %s", name, error->message);
    golden_check_memory(golden, false);
    golden_check_state(golden, state->subsections != NULL, false);
    assert_false(golden->running); /* its switchover says paused */
    assert_int_equal(statistics.outcome, VMF_OUTCOME_COMPLETED);
    assert_int_equal(statistics.verified, VMF_VERIFIED_TRANSPORT);
    assert_int_equal(golden->missing, name[1] == '2' ? VMF_MISSING_STATIC_END | VMF_MISSING_FEATURES : 0);
    golden_free(golden);
}

static void test_load(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        load_golden(names[i], &golden_counter_state);
}

static void test_load_where_the_subsection_is_not_known(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        load_golden(names[i], &golden_plain_counter_state);
}

/* ---- with a disk ----------------------------------------------------------------------------------------------------------- */

#define GRANULE 65536u
#define DISK_BYTES (5 * GRANULE + 512)

static VmfDisk *add_disk(Golden *golden, const char *directory, const char *name, uint64_t size)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", directory, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = size, .incoming = true};
    VmfDisk *disk = vmf_disk_open(name, &options, NULL);

    assert_non_null(disk);
    assert_true(vmf_guest_add_disk(golden->guest, name, &vmf_disk_guest_ops, disk, NULL));
    return disk;
}

/* Page n of the granule is the golden page seed + n. */
static void expect_granule(const char *octets, unsigned granule, unsigned seed, size_t length)
{
    uint8_t page[GOLDEN_PAGE];

    for (size_t at = 0; at < length; at += GOLDEN_PAGE) {
        golden_make_page(page, seed + (unsigned)(at / GOLDEN_PAGE));
        if (seed == 0)
            memset(page, 0, sizeof(page));
        assert_memory_equal(octets + granule * (size_t)GRANULE + at, page, MIN(length - at, GOLDEN_PAGE));
    }
}

static void load_disk(const char *name, const char *directory)
{
    static const unsigned seeds[] = {1, 0, 0, 5, 3};
    g_autofree char *path = g_build_filename(GOLDEN_DIRECTORY, name, NULL), *octets = NULL;
    g_autofree char *file = g_build_filename(directory, "disk0", NULL);
    Golden *golden = golden_new(&golden_counter_state);
    VmfDisk *copied = add_disk(golden, directory, "disk0", 0), *shared = add_disk(golden, directory, "disk1", 1 << 20);
    VmfStatistics statistics;
    GError *error = NULL;
    gsize length;

    if (!load(golden, path, &statistics, &error))
        fail_msg("%s: %s", name, error->message);
    golden_check_memory(golden, false);
    golden_check_state(golden, true, false);
    assert_int_equal(statistics.disk_total_bytes, DISK_BYTES);
    golden_free(golden);
    vmf_disk_free(copied);
    vmf_disk_free(shared);
    assert_true(g_file_get_contents(file, &octets, &length, NULL));
    assert_int_equal(length, DISK_BYTES);
    for (unsigned granule = 0; granule < G_N_ELEMENTS(seeds); granule++)
        expect_granule(octets, granule, seeds[granule], GRANULE);
    expect_granule(octets, 5, 4, 512);
    unlink(file);
}

static void test_load_disk(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmf-golden-XXXXXX", NULL);
    g_autofree char *bitmaps = g_build_filename(directory, "disk0.bitmaps", NULL);

    load_disk("disk-v3-le.vmf", directory);
    load_disk("disk-v3-be.vmf", directory);
    unlink(bitmaps);
    rmdir(directory);
}

/* ---- damage ---------------------------------------------------------------------------------------------------------------- */

static bool is_zero(VmfRamBlock *block)
{
    const uint8_t *host = vmf_ram_block_host(block);

    for (uint64_t n = 0; n < vmf_ram_block_size(block); n++)
        if (host[n])
            return false;
    return true;
}

static void write_file(const char *path, const char *octets, size_t length)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_int_equal(fwrite(octets, 1, length, file), length);
    fclose(file);
}

/* The first version of a page that is sent again: what happens to it on the way makes no difference. */
static bool is_superseded(size_t at, const char *octets)
{
    uint8_t page[GOLDEN_PAGE];

    for (unsigned seed = 1; seed <= 2; seed++) {
        golden_make_page(page, seed);
        for (size_t start = at > GOLDEN_PAGE ? at - GOLDEN_PAGE : 0; start <= at; start++)
            if (memcmp(octets + start, page, GOLDEN_PAGE) == 0)
                return true;
    }
    return false;
}

/* A damaged stream does not load, says why, and leaves neither a guest nor its memory. */
static void expect_failure(Golden *golden, const char *path, size_t at)
{
    g_autoptr(GError) error = NULL;
    VmfStatistics statistics;

    golden->setups = golden->cleanups = 0;
    if (load(golden, path, &statistics, &error))
        fail_msg("loads, though octet %zu is wrong", at);
    assert_non_null(error);
    assert_true(error->domain == VMF_ERROR && strlen(error->message) > 10);
    assert_int_not_equal(error->code, VMF_ERROR_INTERNAL);
    assert_int_equal(statistics.outcome, VMF_OUTCOME_FAILED);
    assert_false(golden->running);
    assert_int_equal(golden->setups, golden->cleanups);
    if (golden->setups > 0)
        assert_true(is_zero(vmf_guest_ram(golden->guest, 0)) && is_zero(vmf_guest_ram(golden->guest, 1)));
    g_byte_array_set_size(golden->blob, 0);
}

/* Payload looks the same everywhere: a part of it is enough there. */
static bool looks_like_its_neighbours(const char *octets, size_t length, size_t at)
{
    static const char zeros[8];

    return at > 64 && at + 64 < length && at % 89 != 0 &&
           (memcmp(octets + at - at % 8, zeros, 8) == 0 || (uint8_t)octets[at + 1] == (uint8_t)(octets[at] + 1));
}

static void damage(const char *name, const char *scratch, size_t step)
{
    g_autofree char *path = g_build_filename(GOLDEN_DIRECTORY, name, NULL), *octets = NULL;
    Golden *golden = golden_new(&golden_counter_state);
    gsize length;

    assert_true(g_file_get_contents(path, &octets, &length, NULL));
    for (size_t at = step / 2; at < length; at += step) {
        if (looks_like_its_neighbours(octets, length, at) || (at + GOLDEN_PAGE < length && is_superseded(at, octets)))
            continue;
        octets[at] ^= 1 << at % 8;
        write_file(scratch, octets, length);
        octets[at] ^= 1 << at % 8;
        expect_failure(golden, scratch, at);
    }
    for (size_t at = 0; at < length; at += at < 700 ? step : step * 67) {
        write_file(scratch, octets, at);
        expect_failure(golden, scratch, at);
    }
    golden_free(golden);
}

/* The thread sanitizer has nothing to find in one thread that reads a file, and takes its time. */
#ifdef __SANITIZE_THREAD__
#define SPARSE 16
#else
#define SPARSE 1
#endif

static void test_damage(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmf-golden-XXXXXX", NULL), *scratch = g_build_filename(directory, "stream", NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        damage(names[i], scratch, SPARSE * (i == 1 || i == 2 ? 3 : 19)); /* one of each version and order thoroughly */
    unlink(scratch);
    rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load),
        cmocka_unit_test(test_load_where_the_subsection_is_not_known),
        cmocka_unit_test(test_load_disk),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
