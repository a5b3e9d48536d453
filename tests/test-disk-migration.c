/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that works on a disk which both machines reach moves between them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <string.h>

#include "machine/machine-private.h"
#include "tests/disk-world.h"

#define MIB (1ull << 20)
#define MILLISECOND 100000ull
#define DISK_BYTES (8 * MIB)
#define CUTS 25

static VmfMachine *new_machine(const Rig *rig, const char *file)
{
    g_autoptr(GError) error = NULL;
    VmfMachine *machine = try_machine(rig, (Disks){.files = {file}, .size = DISK_BYTES}, &error);

    if (!machine)
        g_error("%s", error->message);
    return machine;
}

/* Requests that the guest, which stands, has begun and was not told of. */
static unsigned under_way(const VmfMachine *machine)
{
    unsigned n = 0;

    for (unsigned slot = 0; slot < GUEST_DISK_SLOTS; slot++)
        n += machine->disks[0].slots[slot].live.status == GUEST_DISK_BUSY;
    return n;
}

static void run_to(VmfMachine *machine, uint64_t instruction)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_run_to(machine, instruction, &error))
        fail_msg("%s", error->message);
}

/* From a machine that is to stop at exactly @instruction. */
static void move(VmfMachine *from, VmfMachine *to, uint64_t instruction)
{
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.switchover_timeout_ns = 60 * UINT64_C(1000000000); /* whatever else this host does */
    assert_true(vmf_machine_stop_at(from, instruction, NULL));
    assert_true(vmf_machine_start(from, NULL));
    if (!vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to)))
        fail_msg("%s%s; %s", trip.events, trip.source_error ? trip.source_error->message : "",
                 trip.target_error ? trip.target_error->message : "");
    assert_int_equal(info_of(from).instructions, instruction);
    assert_false(info_of(from).disks[0].acquired);
    assert_true(info_of(to).disks[0].locked);
    vmf_trip_clear(&trip);
}

/* A run cut by live migrations, each at an instruction of its own, ends with the memory and the disk of the uncut one.
 */
static void test_cut_run_ends_as_the_uncut(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) uncut = new_machine(rig, "uncut");
    VmfMachine *at = new_machine(rig, "cut");
    g_autoptr(GRand) random = g_rand_new_with_seed(20261130);
    uint64_t instruction = 10 * MILLISECOND;
    uint8_t expected[16], found[16];
    unsigned carried = 0;

    for (unsigned cut = 0; cut < CUTS; cut++) {
        VmfMachine *next = new_machine(rig, "cut");
        /* Just after a tick: that is when the guest begins requests. */
        instruction +=
            (uint64_t)g_rand_int_range(random, 1, 4) * MILLISECOND * 10 + (uint64_t)g_rand_int_range(random, 0, 30000);
        move(at, next, instruction);
        carried += under_way(at);
        assert_true(vmf_machine_stop(next, NULL));
        vmf_machine_free(at);
        at = next;
        instruction = info_of(at).instructions / MILLISECOND * MILLISECOND + MILLISECOND;
    }
    run_to(at, instruction + 500 * MILLISECOND);
    run_to(uncut, instruction + 500 * MILLISECOND);
    assert_int_equal(info_of(at).guest_errors, 0);
    assert_int_equal(info_of(at).disks[0].failures, 0);
    assert_true(carried > 0);
    assert_true(vmf_machine_hash(uncut, expected, NULL) && vmf_machine_hash(at, found, NULL));
    assert_memory_equal(expected, found, sizeof(found));
    assert_true(info_of(uncut).disks[0].writes > 500 && info_of(uncut).disks[0].flushes > 0 &&
                info_of(uncut).disks[0].zeroes > 0);
    vmf_machine_free(at);
    g_autofree char *here = content_of(rig, "uncut", DISK_BYTES), *there = content_of(rig, "cut", DISK_BYTES);
    assert_memory_equal(here, there, DISK_BYTES);
}

/* The guest finds what is not as it wrote it: on the disk itself, behind its back. */
static void test_guest_finds_a_damaged_disk(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) machine = new_machine(rig, "disk");
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL);
    uint8_t line[4] = {1, 2, 3, 4};

    run_to(machine, 200 * MILLISECOND);
    assert_int_equal(info_of(machine).guest_errors, 0);
    FILE *file = fopen(path, "r+");
    for (long block = 0; block < 1024; block += 3) {
        fseek(file, block * 4096 + 64 * (block % 64), SEEK_SET);
        assert_int_equal(fwrite(line, 1, sizeof(line), file), sizeof(line));
    }
    fclose(file);
    run_to(machine, 600 * MILLISECOND);
    assert_true(info_of(machine).guest_errors > 0);
}

/* The lock that the target cannot have. */
static void test_lock_that_another_has_is_refused(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL);
    g_autoptr(VmfMachine) source = new_machine(rig, "disk");
    g_autoptr(VmfMachine) target = NULL;
    VmfTrip trip;

    /* The target's name leads elsewhere: to a file of the same size that somebody writes. */
    g_autoptr(VmfMachine) owner = new_machine(rig, "other");
    assert_true(vmf_machine_hold_storage(owner, NULL));
    target = new_machine(rig, "other");
    vmf_trip_init(&trip);
    assert_true(vmf_machine_start(source, NULL));
    assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)));
    assert_true(g_error_matches(trip.source_error, VMF_ERROR, VMF_ERROR_REFUSED));
    assert_non_null(strstr(trip.source_error->message, "another uses it"));
    assert_true(vmf_machine_is_running(source));
    assert_true(info_of(source).disks[0].locked);
    assert_false(info_of(target).disks[0].acquired);
    vmf_trip_clear(&trip);
    uint64_t before = info_of(source).disks[0].writes;
    for (unsigned i = 0; i < 1000 && info_of(source).disks[0].writes == before; i++)
        g_usleep(10000);
    assert_true(info_of(source).disks[0].writes > before);
    assert_int_equal(info_of(source).guest_errors, 0);
}

static void test_two_owners_find_out_at_once(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) one = new_machine(rig, "disk"), two = new_machine(rig, "disk");
    g_autoptr(GError) error = NULL;

    assert_true(vmf_machine_start(one, NULL));
    assert_false(vmf_machine_start(two, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_LOCKED));
}

/* A disk of another size is another disk: said before a page moves. */
static void test_other_disk_is_refused_before_a_page_moves(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = new_machine(rig, "disk");
    g_autoptr(VmfMachine) target = try_machine(rig, (Disks){.files = {"other"}, .size = DISK_BYTES / 2}, NULL);
    VmfTrip trip;

    vmf_trip_init(&trip);
    assert_true(vmf_machine_start(source, NULL));
    assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)));
    assert_non_null(strstr(trip.source_error->message, "disk.size"));
    assert_true(vmf_machine_is_running(source));
    assert_int_equal(trip.source.pages_data, 0);
    vmf_trip_clear(&trip);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_cut_run_ends_as_the_uncut),
        rig_test(test_guest_finds_a_damaged_disk),
        rig_test(test_lock_that_another_has_is_refused),
        rig_test(test_two_owners_find_out_at_once),
        rig_test(test_other_disk_is_refused_before_a_page_moves),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
