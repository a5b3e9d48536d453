/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the engine writes of dirty bitmaps is what docs/bitmap-format.rst and docs/stream-format.rst say: a guest writes its disk, moves
 * into a recorded stream, and leaves a file of bitmaps in use and released; the independent readers (arguments: scripts/verify-stream,
 * scripts/verify-bitmaps) agree with each, and find in it what the engine says is dirty.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <vmferry/bitmap-mover.h>

#include "block/bitmap-set.h"
#include "tests/record-filter.h"
#include "tests/world.h"

#define MIB (1ull << 20)
#define DISK_BYTES (9 * MIB + 4096)
#define N_BITMAPS 3

static const char *verify_stream, *verify_bitmaps;
static char *directory;

static int set_up(void **state)
{
    directory = g_dir_make_tmp("vmferry-XXXXXX", NULL);
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

static char *path_of(const char *name)
{
    return g_build_filename(directory, name, NULL);
}

static VmfMachine *new_machine(bool incoming)
{
    g_autofree char *path = path_of("disk"), *uri = g_strconcat("file:", path, NULL);
    VmfMachineDiskConfig disk = {.name = "root", .uri = uri, .create_bytes = DISK_BYTES, .incoming = incoming};
    VmfMachineConfig config = {
        .name = "guest",
        .memory_bytes = 4 * MIB,
        .disks = &disk,
        .n_disks = 1,
        .disk_bytes_per_second = 16 * MIB,
        .disk_set_bytes = 8 * MIB,
        .seed = 5,
        .unpaced = true,
    };
    g_autoptr(GError) error = NULL;
    VmfMachine *machine = vmf_machine_new(&config, &error);

    if (!machine)
        g_error("%s", error->message);
    return machine;
}

static void add(VmfMachine *machine, const char *name, uint32_t granularity, bool persistent, bool disabled)
{
    VmfBitmapOptions options = {.size = sizeof(options),
                                .name = name,
                                .granularity_bytes = granularity,
                                .persistent = persistent,
                                .disabled = disabled};

    assert_true(vmf_disk_add_bitmap(vmf_machine_disk(machine, "root"), &options, NULL));
}

/* A guest that has written its disk, and stands. */
static VmfMachine *used_machine(void)
{
    VmfMachine *machine = new_machine(false);
    VmfMachineInfo info;

    assert_true(vmf_machine_hold_storage(machine, NULL));
    add(machine, "fine", 512, true, false);
    add(machine, "wöchentlich", 65536, true, false);
    add(machine, "off", MIB, true, true);
    assert_true(vmf_disk_set_bitmap(vmf_machine_disk(machine, "root"), "off", &(VmfBitmapExtent){8 * MIB, 1}, 1, NULL));
    assert_true(vmf_machine_start(machine, NULL));
    do {
        g_usleep(1000);
        vmf_machine_get_info(machine, &info);
    } while (info.disks[0].writes < 100);
    assert_true(vmf_machine_stop(machine, NULL));
    return machine;
}

static void list(VmfMachine *machine, VmfBitmapInfo infos[N_BITMAPS])
{
    for (unsigned i = 0; i < N_BITMAPS; i++)
        infos[i].size = sizeof(infos[i]);
    assert_int_equal(vmf_disk_list_bitmaps(vmf_machine_disk(machine, "root"), infos, N_BITMAPS), N_BITMAPS);
    assert_true(infos[0].dirty_bytes > 0 && infos[0].dirty_bytes <= infos[1].dirty_bytes && infos[2].dirty_bytes == MIB);
}

/* ---- readers ----------------------------------------------------------------------------------------------------- */

/* What the reader says, whose exit code has to be @expected. NULL ends the arguments. */
static char *read_with(int expected, const char *reader, ...)
{
    g_autoptr(GPtrArray) arguments = g_ptr_array_new();
    g_autofree char *err = NULL;
    char *out = NULL;
    int status = 0;
    va_list list;

    g_ptr_array_add(arguments, (char *)reader);
    va_start(list, reader);
    for (char *argument; (argument = va_arg(list, char *));)
        g_ptr_array_add(arguments, argument);
    va_end(list);
    g_ptr_array_add(arguments, NULL);
    assert_true(g_spawn_sync(NULL, (char **)arguments->pdata, NULL, G_SPAWN_DEFAULT, NULL, NULL, &out, &err, &status, NULL));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != expected)
        fail_msg("status %d where exit code %d was expected:\n%s%s", status, expected, out, err);
    return out;
}

static uint64_t figure_behind(const char *said, const char *key)
{
    const char *at = said ? strstr(said, key) : NULL;

    if (!at)
        fail_msg("no %s in %s", key, said ? said : "nothing");
    return g_ascii_strtoull(at + strlen(key), NULL, 10);
}

/* In octets, as a reader says it in JSON. */
static uint64_t dirty_of(const char *said, const VmfBitmapInfo *info, const char *key)
{
    const char *escaped = strcmp(info->name, "wöchentlich") == 0 ? "w\\u00f6chentlich" : info->name;
    g_autofree char *name = g_strdup_printf("\"%s\"", escaped);
    const char *at = strstr(said, name);

    if (!at)
        fail_msg("no %s in %s", name, said);
    assert_int_equal(figure_behind(at, "\"granularity\": "), info->granularity_bytes);
    return figure_behind(at, key) * info->granularity_bytes;
}

/* ---- cases ------------------------------------------------------------------------------------------------------- */

static void check_released(const VmfBitmapInfo infos[N_BITMAPS])
{
    g_autofree char *disk = path_of("disk"), *file = path_of("disk.bitmaps");
    g_autofree char *said = read_with(0, verify_bitmaps, file, "--disk", disk, "--json", NULL);

    assert_non_null(strstr(said, "\"in_use\": false"));
    assert_int_equal(figure_behind(said, "\"regions_with_intent\": "), 0);
    for (unsigned i = 0; i < N_BITMAPS; i++)
        assert_int_equal(dirty_of(said, &infos[i], "\"dirty_granules\": "), infos[i].dirty_bytes);
}

static void test_file(void **state)
{
    VmfMachine *machine = used_machine();
    g_autofree char *file = path_of("disk.bitmaps"), *said = NULL, *damaged = NULL, *octets = NULL;
    VmfBitmapInfo infos[N_BITMAPS];
    gsize length;

    list(machine, infos);
    VmfBitmaps *set = vmf_disk_bitmap_set(vmf_machine_disk(machine, "root"));
    pthread_mutex_lock(&set->file); /* nobody writes it while it is read */
    said = read_with(0, verify_bitmaps, file, "--json", NULL);
    pthread_mutex_unlock(&set->file);
    assert_non_null(strstr(said, "\"in_use\": true"));
    for (unsigned i = 0; i < N_BITMAPS; i++) /* memory has more than the bits, never more than bits and intents */
        assert_true(dirty_of(said, &infos[i], "\"dirty_granules\": ") >= infos[i].dirty_bytes);
    vmf_machine_free(machine);
    check_released(infos);

    assert_true(g_file_get_contents(file, &octets, &length, NULL));
    octets[length - 600] ^= 4;
    assert_true(g_file_set_contents(file, octets, (gssize)length, NULL));
    damaged = read_with(1, verify_bitmaps, file, NULL);
    assert_non_null(strstr(damaged, ": bits: "));
}

static VmfChannel *record(VmfChannel *channel, unsigned index, void *opaque)
{
    g_autofree char *path = index == 0 ? path_of("stream") : NULL;

    return vmf_filter_record(channel, path, NULL);
}

/* The guest writes all the while; at the target it is stopped at once, so the stream has no more than the target. */
static void test_stream(void **state)
{
    VmfMachine *from = used_machine(), *to = new_machine(true);
    VmfBitmapMap map = {.size = sizeof(map)};
    g_autofree char *stream = path_of("stream"), *said = NULL;
    VmfBitmapInfo before[N_BITMAPS], after[N_BITMAPS];
    VmfTrip trip;

    list(from, before);
    assert_true(vmf_machine_set_bitmap_map(from, &map, NULL));
    assert_true(vmf_machine_start(from, NULL));
    vmf_trip_init(&trip);
    trip.source_parameters.channels = 1;
    trip.source_parameters.switchover_timeout_ns = 60 * UINT64_C(1000000000);
    trip.wrap_source = record;
    if (!vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to)))
        fail_msg("%s", trip.source_error->message);
    vmf_trip_clear(&trip);
    assert_true(vmf_machine_stop(to, NULL));
    list(to, after);
    said = read_with(0, verify_stream, stream, "--json", NULL);
    for (unsigned i = 0; i < N_BITMAPS; i++) {
        uint64_t sent = dirty_of(strstr(said, "\"bitmaps\""), &after[i], "\"dirty_granules\": ");
        assert_true(sent >= before[i].dirty_bytes && sent <= after[i].dirty_bytes);
    }
    vmf_machine_free(from);
    vmf_machine_free(to);
    check_released(after);
}

#define reader_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {reader_test(test_file), reader_test(test_stream)};

    if (argc != 3) {
        fprintf(stderr, "usage: %s VERIFY-STREAM VERIFY-BITMAPS\n", argv[0]);
        return 2;
    }
    verify_stream = argv[1];
    verify_bitmaps = argv[2];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
