/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps go along with a guest that writes its disk, shared or copied, and miss no write of it on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <string.h>
#include <vmferry/bitmap-mover.h>

#include "machine/machine-private.h"
#include "tests/disk-world.h"

#define MIB (1ull << 20)
#define MILLISECOND 100000ull
#define DISK_BYTES (8 * MIB)
#define SET_BYTES (2 * MIB) /* that the guest writes */
#define BLOCK 4096u
#define MOVES 20

static VmfMachine *new_machine(const Rig *rig, const char *file, bool incoming)
{
    g_autofree char *uri = uri_of(rig, file);
    VmfMachineDiskConfig disk = {.name = "root", .uri = uri, .create_bytes = DISK_BYTES, .incoming = incoming};
    VmfMachineConfig config = {
        .name = "guest",
        .memory_bytes = 4 * MIB,
        .dirty_bytes_per_second = 20 * MIB,
        .set_bytes = MIB,
        .disks = &disk,
        .n_disks = 1,
        .disk_bytes_per_second = 16 * MIB,
        .disk_set_bytes = SET_BYTES,
        .seed = 11,
        .unpaced = true,
    };
    g_autoptr(GError) error = NULL;
    VmfMachine *machine = vmf_machine_new(&config, &error);

    if (!machine)
        g_error("%s", error->message);
    return machine;
}

static VmfDisk *disk_of(VmfMachine *machine)
{
    return vmf_machine_disk(machine, "root");
}

static void add(VmfMachine *machine, const char *name, uint32_t granularity, bool persistent, bool disabled)
{
    VmfBitmapOptions options = {.size = sizeof(options),
                                .name = name,
                                .granularity_bytes = granularity,
                                .persistent = persistent,
                                .disabled = disabled};
    g_autoptr(GError) error = NULL;

    if (!vmf_disk_add_bitmap(disk_of(machine), &options, &error))
        fail_msg("%s", error->message);
}

static void set_map(VmfMachine *machine, const VmfBitmapNode *nodes, unsigned n)
{
    VmfBitmapMap map = {.size = sizeof(map), .nodes = nodes, .n_nodes = n};
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_set_bitmap_map(machine, &map, &error))
        fail_msg("%s", error->message);
}

static VmfBitmapInfo bitmap_of(VmfMachine *machine, const char *name)
{
    VmfBitmapInfo infos[8];
    unsigned n;

    for (unsigned i = 0; i < G_N_ELEMENTS(infos); i++)
        infos[i].size = sizeof(infos[i]);
    n = vmf_disk_list_bitmaps(disk_of(machine), infos, G_N_ELEMENTS(infos));
    for (unsigned i = 0; i < n; i++)
        if (strcmp(infos[i].name, name) == 0)
            return infos[i];
    return (VmfBitmapInfo){0};
}

/* Every block that is not as it was in @before (NULL: zeros) is dirty. The guest stands. */
static void assert_superset(const Rig *rig, VmfMachine *machine, const char *file, const char *bitmap,
                            const char *before)
{
    static const char zeros[BLOCK];
    g_autofree char *content = content_of(rig, file, DISK_BYTES);
    uint64_t offset, length;
    unsigned n = 0;

    for (uint64_t at = 0; at < DISK_BYTES; at += BLOCK) {
        if (memcmp(content + at, before ? before + at : zeros, BLOCK) == 0)
            continue;
        n++;
        if (!vmf_disk_next_dirty(disk_of(machine), bitmap, at, &offset, &length, NULL) || length == 0 || offset != at)
            fail_msg("%s: block %u was written and is clean", bitmap, (unsigned)(at / BLOCK));
    }
    assert_true(n > 10);
}

/* To its end; NULL: it was done, otherwise the source's word. @handed: NULL, or what is to be looked at. */
static char *move_watched(VmfMachine *from, VmfMachine *to, bool copied, Handed *handed)
{
    VmfTrip trip;
    char *problem = NULL;

    vmf_trip_init(&trip);
    /* Whatever else this host does. */
    trip.source_parameters.switchover_timeout_ns = trip.source_parameters.downtime_limit_ns = 60 * UINT64_C(1000000000);
    if (copied)
        trip.source_parameters.copy_disks = "root";
    if (handed)
        watch_handover(&trip, handed);
    assert_true(vmf_machine_start(from, NULL));
    if (!vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to)))
        problem = g_strdup_printf("%s; %s", trip.source_error ? trip.source_error->message : "",
                                  trip.target_error ? trip.target_error->message : "");
    vmf_trip_clear(&trip);
    return problem;
}

static char *move(VmfMachine *from, VmfMachine *to, bool copied)
{
    return move_watched(from, to, copied, NULL);
}

static void work_on(VmfMachine *machine)
{
    VmfMachineInfo before, now;

    vmf_machine_get_info(machine, &before);
    do {
        g_usleep(1000);
        vmf_machine_get_info(machine, &now);
    } while (now.disks[0].writes < before.disks[0].writes + 20);
}

static void go_round(const Rig *rig, bool copied)
{
    VmfMachine *at = new_machine(rig, "disk-0", false);

    assert_true(vmf_machine_hold_storage(at, NULL));
    add(at, "fine", BLOCK, false, false);
    add(at, "saved", 65536, true, false);
    add(at, "off", 512, false, true);
    assert_true(vmf_disk_set_bitmap(disk_of(at), "off", &(VmfBitmapExtent){7 * MIB, 1024}, 1, NULL));
    for (unsigned i = 1; i <= MOVES; i++) {
        g_autofree char *file = g_strdup_printf("disk-%u", copied ? i : 0);
        VmfMachine *next = new_machine(rig, file, copied);
        g_autofree char *before_file = g_strdup_printf("disk-%u", copied ? i - 1 : 0);
        g_autofree char *before = content_of(rig, before_file, DISK_BYTES);
        Handed handed = {rig, {before_file}, {file}, DISK_BYTES, 0, 0};
        set_map(at, NULL, 0);
        assert_true(vmf_disk_clear_bitmap(disk_of(at), "fine", NULL)); /* so that what it has is of this move */
        g_autofree char *problem = move_watched(at, next, copied, copied ? &handed : NULL);
        if (problem)
            fail_msg("%s", problem);
        if (copied)
            assert_handed_whole(&handed);
        work_on(next);
        assert_true(vmf_machine_stop(next, NULL));
        vmf_machine_free(at);
        at = next;
        assert_superset(rig, at, file, "fine", before);
        assert_superset(rig, at, file, "saved", NULL);
        VmfBitmapInfo fine = bitmap_of(at, "fine"), saved = bitmap_of(at, "saved"), off = bitmap_of(at, "off");
        assert_true(fine.recording && !fine.persistent && fine.granularity_bytes == BLOCK &&
                    fine.dirty_bytes <= SET_BYTES);
        assert_true(saved.recording && saved.persistent && saved.granularity_bytes == 65536 && !saved.inconsistent);
        assert_true(!off.recording && off.dirty_bytes == 1024);
    }
    VmfMachineInfo info;
    vmf_machine_get_info(at, &info);
    assert_int_equal(info.guest_errors, 0);
    vmf_machine_free(at);
}

static void test_20_moves_over_a_shared_disk(void **state)
{
    go_round(*state, false);
}

static void test_20_moves_with_a_copied_disk(void **state)
{
    go_round(*state, true);
}

/* To another place, and back to the first: what was left there when the guest went is of former times. */
static void test_there_and_back(void **state)
{
    const Rig *rig = *state;
    VmfMachine *at = new_machine(rig, "disk-0", false);

    assert_true(vmf_machine_hold_storage(at, NULL));
    add(at, "saved", 65536, true, false);
    for (unsigned i = 1; i <= 4; i++) {
        g_autofree char *file = g_strdup_printf("disk-%u", i % 2), *before_file = g_strdup_printf("disk-%u", (i - 1) % 2);
        g_autofree char *before = content_of(rig, before_file, DISK_BYTES);
        VmfMachine *next = new_machine(rig, file, true);
        set_map(at, NULL, 0);
        assert_true(vmf_disk_clear_bitmap(disk_of(at), "saved", NULL));
        g_autofree char *problem = move(at, next, true);
        if (problem)
            fail_msg("%s", problem);
        vmf_machine_free(at);
        at = next;
        work_on(at);
        assert_true(vmf_machine_stop(at, NULL));
        assert_string_equal(bitmap_of(at, "saved").problem, "");
        assert_superset(rig, at, file, "saved", before);
        assert_true(bitmap_of(at, "saved").dirty_bytes <= SET_BYTES);
    }
    vmf_machine_free(at);
}

static void test_without_a_map_they_stay(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) from = new_machine(rig, "disk", false), to = new_machine(rig, "disk", false);

    add(from, "stays", BLOCK, false, false);
    g_autofree char *problem = move(from, to, false);
    assert_null(problem);
    assert_true(vmf_machine_stop(to, NULL));
    assert_int_equal(bitmap_of(to, "stays").granularity_bytes, 0);
    assert_int_equal(bitmap_of(from, "stays").granularity_bytes, BLOCK);
}

static void test_aliases_and_transforms(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) from = new_machine(rig, "disk-a", false), to = new_machine(rig, "disk-b", true);
    const VmfBitmapAlias out[] = {{"one", "alias-1", VMF_BITMAP_PERSISTENCE_ON},
                                  {"two", "alias-2", VMF_BITMAP_PERSISTENCE_KEEP}};
    const VmfBitmapAlias in[] = {{"eins", "alias-1", VMF_BITMAP_PERSISTENCE_KEEP},
                                 {"zwei", "alias-2", VMF_BITMAP_PERSISTENCE_OFF}};
    const VmfBitmapNode out_node = {"root", "system disk", out, 2}, in_node = {"root", "system disk", in, 2};

    assert_true(vmf_machine_hold_storage(from, NULL));
    add(from, "one", BLOCK, false, false);
    add(from, "two", BLOCK, true, false);
    add(from, "three", BLOCK, false, false);
    set_map(from, &out_node, 1);
    set_map(to, &in_node, 1);
    g_autofree char *problem = move(from, to, true);
    if (problem)
        fail_msg("%s", problem);
    work_on(to);
    assert_true(vmf_machine_stop(to, NULL));
    assert_superset(rig, to, "disk-b", "eins", NULL);
    assert_superset(rig, to, "disk-b", "zwei", NULL);
    assert_true(bitmap_of(to, "eins").persistent && !bitmap_of(to, "zwei").persistent);
    assert_int_equal(bitmap_of(to, "three").granularity_bytes, 0);
}

/* One clear error, and the guest goes on at the source, with its bitmaps. */
static void test_unknown_alias_fails(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) from = new_machine(rig, "disk", false), to = new_machine(rig, "disk", false);
    const VmfBitmapAlias in[] = {{"mine", "another", VMF_BITMAP_PERSISTENCE_KEEP}};
    const VmfBitmapNode unknown_bitmap = {"root", NULL, in, 1}, unknown_node = {"root", "elsewhere", NULL, 0};
    const VmfBitmapNode *nodes[] = {&unknown_bitmap, &unknown_node};

    assert_true(vmf_machine_hold_storage(from, NULL));
    add(from, "lost", BLOCK, false, false);
    set_map(from, NULL, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(nodes); i++) {
        g_autoptr(VmfMachine) target = new_machine(rig, "disk", false);
        set_map(target, nodes[i], 1);
        g_autofree char *problem = move(from, target, false);
        assert_non_null(problem);
        assert_non_null(strstr(problem, "bitmap 'lost'"));
        assert_true(vmf_machine_is_running(from));
        work_on(from);
    }
    VmfBitmapMap skips = {.size = sizeof(skips), .nodes = &unknown_node, .n_nodes = 1, .skip_unknown = true};
    assert_true(vmf_machine_set_bitmap_map(to, &skips, NULL));
    assert_true(vmf_machine_stop(from, NULL));
    assert_superset(rig, from, "disk", "lost", NULL);
    g_autofree char *problem = move(from, to, false);
    assert_null(problem);
}

static void test_maps_are_one_to_one(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) machine = new_machine(rig, "disk", false);
    const VmfBitmapAlias twice[] = {{"a", "x", VMF_BITMAP_PERSISTENCE_KEEP}, {"b", "x", VMF_BITMAP_PERSISTENCE_KEEP}};
    const VmfBitmapAlias empty[] = {{"a", "", VMF_BITMAP_PERSISTENCE_KEEP}};
    const VmfBitmapNode bad[] = {
        {"none", NULL, NULL, 0}, {"root", NULL, twice, 2}, {"root", "", NULL, 0}, {"root", NULL, empty, 1}};

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        VmfBitmapMap map = {.size = sizeof(map), .nodes = &bad[i], .n_nodes = 1};
        g_autoptr(GError) error = NULL;
        assert_false(vmf_machine_set_bitmap_map(machine, &map, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    }
}

/* ---- what a peer may say ----------------------------------------------------------------------------------------- */

static void u32(GByteArray *bytes, uint32_t value)
{
    value = GUINT32_TO_LE(value);
    g_byte_array_append(bytes, (const uint8_t *)&value, 4);
}

static void u64(GByteArray *bytes, uint64_t value)
{
    value = GUINT64_TO_LE(value);
    g_byte_array_append(bytes, (const uint8_t *)&value, 8);
}

/* One bitmap of 128 granules, some bits, a state, an end. */
static GByteArray *good_section(void)
{
    GByteArray *bytes = g_byte_array_new();

    u32(bytes, 1), u32(bytes, 24 + 4 + 1);
    u32(bytes, 0), u32(bytes, 65536), u32(bytes, 1), u32(bytes, 4 | 1 << 16), u64(bytes, DISK_BYTES);
    g_byte_array_append(bytes, (const uint8_t *)"rootb", 5);
    u32(bytes, 2), u32(bytes, 16 + 62 * 8);
    u32(bytes, 0), u32(bytes, 0), u64(bytes, 0);
    for (unsigned i = 0; i < 62; i++)
        u64(bytes, i < 2 ? 0x5 : 0);
    u32(bytes, 3), u32(bytes, 8), u32(bytes, 0), u32(bytes, 1);
    u32(bytes, 4), u32(bytes, 8), u32(bytes, 1), u32(bytes, 0);
    return bytes;
}

static bool load(VmfBitmapMover *mover, const GByteArray *bytes, guint piece, GError **error)
{
    bool good = vmf_bitmap_handlers.load_setup(mover, error);

    for (guint at = 0; good && at < bytes->len; at += piece)
        good = vmf_bitmap_handlers.load_state(mover, 1, bytes->data + at, MIN(piece, bytes->len - at),
                                              at + piece >= bytes->len, error);
    return good;
}

static void test_hostile_sections(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) machine = new_machine(rig, "disk", false);
    VmfBitmapMover *mover = machine->bitmap_mover;
    g_autoptr(GByteArray) good = good_section();
    g_autoptr(GRand) random = g_rand_new_with_seed(4);

    for (guint piece = 1; piece < good->len; piece += 37)
        assert_true(load(mover, good, piece, NULL));
    assert_true(vmf_machine_hold_storage(machine, NULL));
    assert_int_equal(bitmap_of(machine, "b").dirty_bytes, 4 * 65536);
    for (guint length = 0; length < good->len; length++) { /* cut off */
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_autoptr(GError) error = NULL;
        g_byte_array_append(bytes, good->data, length);
        bool whole = length > 0 && load(mover, bytes, 1000, &error);
        assert_false(whole);
        assert_true(length == 0 || g_error_matches(error, VMF_ERROR, VMF_ERROR_SECTION));
    }
    for (unsigned i = 0; i < 5000; i++) {
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_autoptr(GError) error = NULL;
        g_byte_array_append(bytes, good->data, good->len);
        for (int n = g_rand_int_range(random, 1, 4); n > 0; n--)
            bytes->data[g_rand_int_range(random, 0, (gint32)bytes->len)] = (uint8_t)g_rand_int(random);
        if (!load(mover, bytes, 100, &error))
            assert_non_null(error);
        vmf_bitmap_handlers.load_cleanup(mover);
    }
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_20_moves_over_a_shared_disk),
        rig_test(test_20_moves_with_a_copied_disk),
        rig_test(test_there_and_back),
        rig_test(test_without_a_map_they_stay),
        rig_test(test_aliases_and_transforms),
        rig_test(test_unknown_alias_fails),
        rig_test(test_maps_are_one_to_one),
        rig_test(test_hostile_sections),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
