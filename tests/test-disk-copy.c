/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest moves and its disks with it, as copies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/disk.h"
#include "block/receive.h"
#include "stream/storage-fault.h"
#include "tests/disk-door.h"
#include "tests/disk-world.h"

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define MILLISECOND 100000ull
#define DISK_BYTES (8 * MIB + 3 * 512) /* the last granule is short, the one before the last sector too */
#ifdef __SANITIZE_THREAD__ /* sees all threads in a few of them, and takes its time */
#define CUTS 4
#define TRIPS 6
#else
#define CUTS 12
#define TRIPS 20
#endif

static VmfMachine *source_of(const Rig *rig, const char *file)
{
    return machine(rig, (Disks){.files = {file}, .size = DISK_BYTES});
}

static void run_to(VmfMachine *m, uint64_t instruction)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_run_to(m, instruction, &error))
        fail_msg("%s", error->message);
}

static void trip_init(VmfTrip *trip)
{
    vmf_trip_init(trip);
    trip->source_parameters.switchover_timeout_ns = LONG_NS;
    trip->source_parameters.downtime_limit_ns = LONG_NS; /* storage may be slow to sync */
    trip->source_parameters.copy_disks = "all";
}

static void trip_done(VmfTrip *trip, VmfMachine *from, VmfMachine *to)
{
    if (!vmf_trip_run(trip, vmf_machine_guest(from), vmf_machine_guest(to)))
        fail_msg("%s%s; %s", trip->events, trip->source_error ? trip->source_error->message : "",
                 trip->target_error ? trip->target_error->message : "");
    assert_false(info_of(from).disks[0].acquired);
    assert_true(info_of(to).disks[0].locked);
}

/* ---- it arrives -------------------------------------------------------------------------------------------------- */

/* A run cut by live migrations, each at an instruction of its own and each into a new file, ends with the memory and
 * the disk of the uncut one. */
static void test_cut_run_ends_as_the_uncut(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) uncut = source_of(rig, "uncut");
    VmfMachine *at = source_of(rig, "cut0");
    g_autoptr(GRand) random = g_rand_new_with_seed(20261130);
    uint64_t instruction = 10 * MILLISECOND;
    uint8_t expected[16], found[16];

    for (unsigned cut = 0; cut < CUTS; cut++) {
        g_autofree char *here = g_strdup_printf("cut%u", cut), *there = g_strdup_printf("cut%u", cut + 1);
        VmfMachine *next = target_of(rig, there);
        VmfTrip trip;

        instruction += (uint64_t)g_rand_int_range(random, 1, 4) * MILLISECOND * 10 + (uint64_t)g_rand_int_range(random, 0, 30000);
        trip_init(&trip);
        trip.source_parameters.verify_disks = cut % 2;
        trip.listen_uri = cut % 3 == 0 ? "tcp:127.0.0.1:0" : NULL;
        assert_true(vmf_machine_stop_at(at, instruction, NULL));
        assert_true(vmf_machine_start(at, NULL));
        trip_done(&trip, at, next);
        assert_int_equal(trip.source.disk_total_bytes, DISK_BYTES);
        assert_int_equal(trip.source.disk_remaining_bytes, 0);
        assert_true(trip.source.disk_sent_bytes > 0 || cut == 0);
        assert_true(vmf_machine_stop(next, NULL));
        assert_int_equal(info_of(at).instructions, instruction);
        vmf_machine_free(at);
        at = next;
        instruction = info_of(at).instructions / MILLISECOND * MILLISECOND + MILLISECOND;
        vmf_trip_clear(&trip);
    }
    run_to(at, instruction + 500 * MILLISECOND);
    run_to(uncut, instruction + 500 * MILLISECOND);
    assert_int_equal(info_of(at).guest_errors, 0);
    assert_int_equal(info_of(at).disks[0].failures, 0);
    assert_true(vmf_machine_hash(uncut, expected, NULL) && vmf_machine_hash(at, found, NULL));
    assert_memory_equal(expected, found, sizeof(found));
    vmf_machine_free(at);
    g_autofree char *last = g_strdup_printf("cut%u", CUTS);
    assert_same_content(rig, "uncut", last, DISK_BYTES);
}

/* A guest that writes all the while: at each handover both files are the same, and the guest finds nothing wrong. Two
 * disks, of which one is odd. */
static void test_many_trips(void **state)
{
    const Rig *rig = *state;
    g_autoptr(GError) why = NULL;

    if (strcmp(rig->backend, "kvm") == 0 && !vmf_kvm_works(&why)) {
        print_message("kvm: %s\n", why->message);
        g_clear_error(&why); /* skip() does not return */
        skip();
    }
    VmfMachine *at = machine(rig, (Disks){.files = {"root0", "data0"}, .size = DISK_BYTES});
    assert_true(vmf_machine_start(at, NULL));
    for (unsigned trip_number = 0; trip_number < TRIPS; trip_number++) {
        g_autofree char *root = g_strdup_printf("root%u", trip_number), *root_next = g_strdup_printf("root%u", trip_number + 1);
        g_autofree char *data = g_strdup_printf("data%u", trip_number), *data_next = g_strdup_printf("data%u", trip_number + 1);
        VmfMachine *next = machine(rig, (Disks){.files = {root_next, data_next}, .incoming = true});
        Handed handed = {rig, {root, data}, {root_next, data_next}, DISK_BYTES, 0, 0};
        VmfTrip trip;

        wait_for_writes(at, 20);
        trip_init(&trip);
        trip.source_parameters.minimum_rounds = trip_number % 3;
        watch_handover(&trip, &handed);
        trip_done(&trip, at, next);
        assert_handed_whole(&handed);
        assert_true(vmf_machine_is_running(next));
        vmf_machine_free(at);
        at = next;
        vmf_trip_clear(&trip);
    }
    wait_for_writes(at, 100);
    assert_int_equal(info_of(at).disks[0].failures, 0);
    vmf_machine_free(at);
}

static void test_sectors_of_4096(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here"}, .size = 2 * MIB + 4096, .sector_bytes = 4096});
    g_autoptr(VmfMachine) target = machine(rig, (Disks){.files = {"there"}, .incoming = true, .sector_bytes = 4096});
    VmfTrip trip;

    trip_init(&trip);
    trip.is_over_fd = true;
    run_to(source, 200 * MILLISECOND);
    trip_done(&trip, source, target);
    assert_same_content(rig, "here", "there", 2 * MIB + 4096);
    vmf_trip_clear(&trip);
}

/* What was never allocated, and what was given back, costs nothing at either end. */
static void test_holes_stay_holes(void **state)
{
    const Rig *rig = *state;
    uint64_t size = 4096 * MIB;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here"}, .size = size, .bytes_per_second = MIB});
    g_autoptr(VmfMachine) target = target_of(rig, "there");
    g_autofree char *path = path_of(rig, "there");
    GStatBuf status;
    VmfTrip trip;

    trip_init(&trip);
    run_to(source, 100 * MILLISECOND);
    trip_done(&trip, source, target);
    assert_int_equal(trip.source.disk_total_bytes, size);
    assert_true(trip.source.disk_sent_bytes <= 16 * MIB);
    assert_int_equal(g_stat(path, &status), 0);
    assert_int_equal(status.st_size, size);
    assert_true((uint64_t)status.st_blocks * 512 <= 16 * MIB);
    vmf_trip_clear(&trip);
}

/* One is copied, the other one is on storage that both reach. */
static void test_one_copied_one_shared(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here", "shared"}, .size = DISK_BYTES});
    g_autoptr(VmfMachine) target = NULL;
    VmfTrip trip;

    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 50);
    target = machine(rig, (Disks){.files = {"there", "shared"}, .incoming = true});
    trip_init(&trip);
    trip.source_parameters.copy_disks = "root";
    trip_done(&trip, source, target);
    assert_int_equal(trip.source.disk_total_bytes, DISK_BYTES);
    assert_true(info_of(target).disks[1].locked && !info_of(source).disks[1].acquired);
    wait_for_writes(target, 50);
    vmf_trip_clear(&trip);
}

/* ---- it does not ------------------------------------------------------------------------------------------------- */

/* The guest stays, with its disk, and the error says @what. */
static void refused(const Rig *rig, VmfTrip *trip, VmfMachine *source, VmfMachine *target, const char *what)
{
    bool was_running = vmf_machine_is_running(source);

    assert_false(vmf_trip_run(trip, vmf_machine_guest(source), vmf_machine_guest(target)));
    assert_non_null(trip->source_error);
    if (!strstr(trip->source_error->message, what))
        fail_msg("expected '%s': %s", what, trip->source_error->message);
    assert_int_equal(vmf_machine_is_running(source), was_running);
    assert_true(info_of(source).disks[0].locked);
    assert_false(info_of(target).disks[0].acquired);
    if (was_running)
        wait_for_writes(source, 50);
    vmf_trip_clear(trip);
}

static void write_file(const Rig *rig, const char *file, const char *data, gssize length, uint64_t size)
{
    g_autofree char *path = path_of(rig, file);

    assert_true(g_file_set_contents(path, data, length, NULL));
    if (size > 0)
        assert_int_equal(truncate(path, (off_t)size), 0);
}

static void test_smaller_target_is_refused(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = NULL;
    VmfTrip trip;

    write_file(rig, "there", "kept", 4, DISK_BYTES - 512);
    target = target_of(rig, "there");
    assert_true(vmf_machine_start(source, NULL));
    trip_init(&trip);
    refused(rig, &trip, source, target, "disk.place");
    g_autofree char *content = content_of(rig, "there", DISK_BYTES - 512);
    assert_memory_equal(content, "kept", 4);
    assert_false(exists(rig, "there.partial"));
}

/* Their copies would be one file. */
static void test_two_disks_in_one_place_are_refused(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here", "here-too"}, .size = DISK_BYTES});
    g_autofree char *path = path_of(rig, "there"), *other = path_of(rig, "there-too");
    g_autoptr(VmfMachine) target = NULL;
    VmfTrip trip;

    write_file(rig, "there", "", 0, DISK_BYTES);
    assert_int_equal(link(path, other), 0);
    target = machine(rig, (Disks){.files = {"there", "there-too"}, .incoming = true});
    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 50);
    trip_init(&trip);
    refused(rig, &trip, source, target, "disk.place: data: here in the place of root");
}

static void test_target_in_use_is_refused(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), owner = source_of(rig, "there"), target = NULL;
    VmfTrip trip;

    assert_true(vmf_machine_hold_storage(owner, NULL));
    target = target_of(rig, "there");
    assert_true(vmf_machine_start(source, NULL));
    trip_init(&trip);
    refused(rig, &trip, source, target, "another uses it");
}

/* Two machines wait for a copy in one place: the second one finds the first at work. */
static void test_copy_under_way_is_in_use(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = path_of(rig, "there"), *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .incoming = true};
    g_autoptr(VmfDisk) one = vmf_disk_open("one", &options, NULL), two = vmf_disk_open("two", &options, NULL);
    g_autoptr(GError) error = NULL;

    assert_true(one && two);
    assert_int_equal(vmf_disk_size(one), 0);
    assert_false(vmf_disk_acquire(one, NULL));
    assert_true(vmf_disk_receive_begin(one, MIB, VMF_RECEIVE_ANEW, NULL));
    assert_false(vmf_disk_receive_begin(two, MIB, VMF_RECEIVE_ANEW, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_LOCKED));
    vmf_disk_receive_end(one, VMF_RECEIVE_DROPPED);
    assert_true(vmf_disk_receive_begin(two, MIB, VMF_RECEIVE_ANEW, NULL));
    vmf_disk_receive_end(two, VMF_RECEIVE_DROPPED);
}

/* A disk that somebody has is replaced whole or not at all, and comes back if the guest does not stay. */
static void test_what_is_replaced_comes_back(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = path_of(rig, "there"), *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .incoming = true};
    g_autoptr(VmfDisk) disk = NULL;

    write_file(rig, "there", "kept", 4, MIB);
    disk = vmf_disk_open("disk", &options, NULL);
    for (unsigned end = 0; end < 2; end++) {
        assert_true(vmf_disk_receive_begin(disk, MIB, VMF_RECEIVE_ANEW, NULL));
        assert_true(vmf_disk_receive_is_new(disk) && exists(rig, "there.partial"));
        g_autofree char *before = content_of(rig, "there", MIB);
        assert_memory_equal(before, "kept", 4);
        assert_true(vmf_disk_receive_commit(disk, NULL));
        g_autofree char *committed = content_of(rig, "there", MIB);
        assert_memory_equal(committed, "\0\0\0\0", 4);
        vmf_disk_receive_end(disk, end == 0 ? VMF_RECEIVE_DROPPED : VMF_RECEIVE_KEPT);
        g_autofree char *after = content_of(rig, "there", MIB);
        assert_memory_equal(after, end == 0 ? "kept" : "\0\0\0\0", 4);
        assert_int_equal(exists(rig, "there.partial"), end == 0);
    }
}

static void test_filesystem_is_refused_unless_forced(void **state)
{
#ifndef HAVE_BLKID
    print_message("built without libblkid\n");
    skip();
#endif
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = NULL, forced = NULL;
    g_autofree char *block = g_malloc0(4096);
    VmfTrip trip;

    memcpy(block + 4086, "SWAPSPACE2", 10); /* what is told most easily of all that libblkid knows */
    block[1024] = 1;
    block[1028] = 100;
    write_file(rig, "there", block, 4096, DISK_BYTES);
    target = target_of(rig, "there");
    assert_true(vmf_machine_start(source, NULL));
    trip_init(&trip);
    refused(rig, &trip, source, target, "swap");
    forced = machine(rig, (Disks){.files = {"there"}, .incoming = true, .overwrite = true});
    trip_init(&trip);
    trip_done(&trip, source, forced);
    vmf_trip_clear(&trip);
}

static void test_disk_that_is_not_there(void **state)
{
    static const char *const wrong[] = {"root,nothing", "root,all", "all,root", "root,none", "none,root", "all,all", "root,root", "root,"};
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = target_of(rig, "there");
    VmfTrip trip;

    assert_true(vmf_machine_start(source, NULL));
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        trip_init(&trip);
        trip.source_parameters.copy_disks = wrong[i];
        assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)));
        assert_true(g_error_matches(trip.source_error, VMF_ERROR, VMF_ERROR_USAGE));
        vmf_trip_clear(&trip);
    }
    /* It is not copied, and not where the target could share it. */
    trip_init(&trip);
    trip.source_parameters.copy_disks = NULL;
    refused(rig, &trip, source, target, "disk.size");
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

static VmfStorage *put_fault(VmfStorage *storage, void *opaque, GError **error)
{
    return vmf_storage_fault_new(storage, opaque, 1, error);
}

/* @on_target: the disk that it is put into. The guest never hears of it. */
static void fails(const Rig *rig, bool on_target, VmfStorageFault fault, const char *what)
{
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = target_of(rig, "there");
    VmfTrip trip;

    vmf_disk_set_wrap((on_target ? target : source)->disks[0].disk, put_fault, &fault);
    if (on_target) {
        assert_true(vmf_machine_start(source, NULL));
        wait_for_writes(source, 100);
    } else {
        run_to(source, 100 * MILLISECOND);
    }
    trip_init(&trip);
    refused(rig, &trip, source, target, what);
    assert_int_equal(info_of(source).disks[0].failures > 0, !on_target);
    assert_false(exists(rig, "there"));
    assert_true(exists(rig, "there.partial"));
}

static void test_full_target(void **state)
{
    fails(*state, true, (VmfStorageFault){.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = MIB}, "storage.full");
}

static void test_bad_block_of_the_target(void **state)
{
    fails(*state, true, (VmfStorageFault){.kind = VMF_STORAGE_FAULT_ERROR, .offset = 0, .length = MIB}, "io");
}

static void test_target_that_cannot_sync(void **state)
{
    fails(*state, true,
          (VmfStorageFault){.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH)}, "io");
}

/* The source's disk has an error where the guest does not look: it cannot be moved, and lives. */
static void test_bad_block_of_the_source(void **state)
{
    VmfStorageFault fault = {.kind = VMF_STORAGE_FAULT_ERROR,
                             .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_READ),
                             .offset = 0,
                             .length = DISK_BYTES,
                             .times = 1};
    const Rig *rig = *state;
    g_autofree char *path = path_of(rig, "here"), *zeros = g_malloc0(DISK_BYTES);
    g_autoptr(VmfMachine) source = NULL, target = target_of(rig, "there");
    VmfTrip trip;

    zeros[0] = 1;
    assert_true(g_file_set_contents(path, zeros, DISK_BYTES, NULL));
    source = source_of(rig, "here");
    vmf_disk_set_wrap(source->disks[0].disk, put_fault, &fault);
    assert_true(vmf_machine_hold_storage(source, NULL));
    trip_init(&trip);
    refused(rig, &trip, source, target, "Input/output error");
    assert_true(exists(rig, "there.partial") && !exists(rig, "there"));
}

static VmfMachine *pair_at_target(const Rig *rig)
{
    return machine(rig, (Disks){.files = {"there", "there-too"}, .incoming = true});
}

static bool is_taken(const Rig *rig, const char *file)
{
    g_autoptr(VmfMachine) other = machine(rig, (Disks){.files = {file}});

    return !vmf_machine_hold_storage(other, NULL);
}

/* Nothing of either is at the target, under a name that says so, and the source has both. */
static void pair_refused(const Rig *rig, VmfTrip *trip, VmfMachine *source, VmfMachine *target, const char *what)
{
    refused(rig, trip, source, target, what);
    assert_true(info_of(source).disks[1].locked && is_taken(rig, "here") && is_taken(rig, "here-too"));
    assert_false(info_of(target).disks[1].acquired);
    assert_int_equal(info_of(source).disks[1].failures, 0);
    assert_true(exists(rig, "there.partial") && exists(rig, "there-too.partial"));
}

static void pair_arrives(const Rig *rig, VmfMachine *source)
{
    g_autoptr(VmfMachine) target = pair_at_target(rig);
    Handed handed = {rig, {"here", "here-too"}, {"there", "there-too"}, DISK_BYTES, 0, 0};
    VmfTrip trip;

    trip_init(&trip);
    watch_handover(&trip, &handed);
    trip_done(&trip, source, target);
    assert_handed_whole(&handed);
    assert_true(info_of(target).disks[1].locked && !info_of(source).disks[1].acquired);
    assert_false(exists(rig, "there.partial") || exists(rig, "there-too.partial"));
    wait_for_writes(target, 50);
    vmf_trip_clear(&trip);
}

/* In the bulk, and when all of it is to be durable; of each of the two. */
static void test_one_of_two_fails(void **state)
{
    static VmfStorageFault faults[] = {
        {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = MIB},
        {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH)},
    };
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here", "here-too"}, .size = DISK_BYTES});
    VmfTrip trip;

    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 100);
    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(faults); i++) {
        g_autoptr(VmfMachine) target = pair_at_target(rig);
        vmf_disk_set_wrap(target->disks[i % 2].disk, put_fault, &faults[i / 2]);
        trip_init(&trip);
        pair_refused(rig, &trip, source, target, i % 2 ? "disk data" : "disk root");
        assert_false(exists(rig, "there") || exists(rig, "there-too"));
    }
    pair_arrives(rig, source);
}

typedef struct {
    const Rig *rig;
    const char *file;
} Squatter;

/* All has come, and nothing has its name yet. */
static bool take_the_place(void *opaque, const char *point)
{
    const Squatter *squatter = opaque;
    g_autofree char *path = path_of(squatter->rig, squatter->file);

    if (strcmp(point, "target.loaded") == 0)
        g_file_set_contents(path, "kept", 4, NULL);
    return false;
}

/* Somebody puts a file where one of two copies belongs, when both are whole: the other one, which may have its name by
 * then, loses it again. */
static void test_place_of_one_of_two_is_taken_meanwhile(void **state)
{
    static const char *const files[] = {"there", "there-too"};
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here", "here-too"}, .size = DISK_BYTES});

    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 100);
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autoptr(VmfMachine) target = pair_at_target(rig);
        g_autofree char *path = path_of(rig, files[i]);
        Squatter squatter = {rig, files[i]};
        VmfTrip trip;
        trip_init(&trip);
        trip.target_parameters.fault = take_the_place;
        trip.target_parameters.fault_opaque = &squatter;
        pair_refused(rig, &trip, source, target, "disk.place");
        g_autofree char *kept = content_of(rig, files[i], 4);
        assert_memory_equal(kept, "kept", 4);
        assert_false(exists(rig, files[!i]));
        assert_int_equal(g_unlink(path), 0);
    }
    pair_arrives(rig, source);
}

/* The target dies with its copy at each point from which the guest may still go on here; then it does, and a new copy
 * arrives. */
static bool die_at(void *opaque, const char *point)
{
    return strcmp(opaque, point) == 0;
}

static void test_target_dies(void **state)
{
    static const char *const points[] = {"target.accepted",
                                         "target.loaded",
                                         "target.arrived",
                                         "target.storage.acquire.due",
                                         "target.storage.acquire.done",
                                         "target.send.ready.due"};
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here");
    VmfTrip trip;

    assert_true(vmf_machine_start(source, NULL));
    for (unsigned i = 0; i < G_N_ELEMENTS(points); i++) {
        g_autoptr(VmfMachine) target = target_of(rig, "there");
        trip_init(&trip);
        trip.target_parameters.fault = die_at;
        trip.target_parameters.fault_opaque = (void *)points[i];
        assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)));
        assert_true(vmf_machine_is_running(source) && info_of(source).disks[0].locked);
        wait_for_writes(source, 20);
        vmf_trip_clear(&trip);
    }
    g_autoptr(VmfMachine) target = target_of(rig, "there");
    trip_init(&trip);
    trip_done(&trip, source, target);
    wait_for_writes(target, 50);
    assert_false(exists(rig, "there.partial"));
    vmf_trip_clear(&trip);
}

/* The copy is whole and has its name when it turns out that the guest cannot have its other disk: the name goes again.
 */
static void test_guest_that_goes_back_takes_the_name_away(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here", "shared"}, .size = DISK_BYTES});
    g_autoptr(VmfMachine) owner = source_of(rig, "other"), target = NULL;
    VmfTrip trip;

    assert_true(vmf_machine_hold_storage(owner, NULL));
    write_file(rig, "there", "kept", 4, DISK_BYTES);
    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 20);
    target = machine(rig, (Disks){.files = {"there", "other"}, .incoming = true});
    trip_init(&trip);
    trip.source_parameters.copy_disks = "root";
    refused(rig, &trip, source, target, "another uses it");
    g_autofree char *back = content_of(rig, "there", DISK_BYTES), *copy = content_of(rig, "there.partial", DISK_BYTES);
    assert_memory_equal(back, "kept", 4);
    assert_memory_not_equal(back, copy, DISK_BYTES);
}

/* ---- mirrored ---------------------------------------------------------------------------------------------------- */

/* Once it waits there. */
static void go_on(VmfTripRunning *running)
{
    for (unsigned n = 0; n < 3000 && !vmf_session_continue(vmf_trip_source(running), NULL); n++)
        g_usleep(10000);
}

/* A guest that stands has been told of all of its writes. The owner's start is refused once the session has stopped it.
 */
static void compare_stopped(const Rig *rig, VmfMachine *at, unsigned number)
{
    g_autofree char *here = g_strdup_printf("disk%u", number), *there = g_strdup_printf("disk%u.partial", number + 1);

    wait_for_writes(at, 10);
    assert_true(vmf_machine_stop(at, NULL));
    assert_same_content(rig, here, there, DISK_BYTES);
    vmf_machine_start(at, NULL);
}

/* Writes that the guest was told of are at both ends at every moment; and all is as without. */
static void test_mirrored(void **state)
{
    const Rig *rig = *state;
    VmfMachine *at = source_of(rig, "disk0");
    Door door = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, .delay_us = 20000};

    assert_true(vmf_machine_start(at, NULL));
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *next_file = g_strdup_printf("disk%u", i + 1);
        VmfMachine *next = target_of(rig, next_file);
        VmfTrip trip;
        VmfTripRunning *running;
        VmfStatistics statistics = {.size = sizeof(statistics)};

        /* So slow that a write which the guest was told of too early would be found missing. */
        vmf_disk_set_wrap(next->disks[0].disk, put_door, &door);
        wait_for_writes(at, 20);
        trip_init(&trip);
        trip.source_parameters.mirror_disks = trip.source_parameters.pause_before_switchover = true;
        trip.source_parameters.verify_disks = i == 1;
        trip.source_parameters.downtime_limit_ns = UINT64_C(2000000000);
        running = vmf_trip_start(&trip, vmf_machine_guest(at), vmf_machine_guest(next));
        for (unsigned n = 0;
             n < 3000 && statistics.disk_mirrored_writes < 50 && statistics.status < VMF_STATUS_COMPLETED; n++) {
            g_usleep(10000);
            vmf_session_get_statistics(vmf_trip_source(running), &statistics);
        }
        for (unsigned n = 0; n < 5 && vmf_machine_is_running(at); n++)
            compare_stopped(rig, at, i);
        go_on(running);
        if (!vmf_trip_finish(running))
            fail_msg("%s%s", trip.events, trip.source_error ? trip.source_error->message : "");
        assert_true(trip.source.disk_mirrored_writes >= 50);
        assert_non_null(strstr(trip.events, "disk.mirror:"));
        assert_null(strstr(trip.events, "disk.mirror-ended"));
        vmf_machine_free(at);
        at = next;
        vmf_trip_clear(&trip);
    }
    wait_for_writes(at, 100);
    assert_int_equal(info_of(at).disks[0].failures, 0);
    vmf_machine_free(at);
}

/* Beside a guest whose storage is busy with the copy that is slowed down, and it is the guest's again in the end. */
static void test_latency_goal_slows_the_copy(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = target_of(rig, "there");
    Door door = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, .delay_us = 5000};
    VmfStatistics statistics = {.size = sizeof(statistics)};
    VmfTripRunning *running;
    unsigned most = 0;
    VmfTrip trip;

    vmf_disk_set_wrap(source->disks[0].disk, put_door, &door);
    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 100);
    trip_init(&trip);
    trip.source_parameters.disk_latency_goal_ns = 1000000; /* which no write meets, so that it has to be slow */
    trip.source_parameters.downtime_limit_ns = UINT64_C(2000000000);
    running = vmf_trip_start(&trip, vmf_machine_guest(source), vmf_machine_guest(target));
    /* Without a goal, or were nobody late, half of the disk would not come one read at a time. */
    for (unsigned n = 0; n < 30000 && statistics.disk_sent_bytes < DISK_BYTES / 2; n++) {
        vmf_session_get_statistics(vmf_trip_source(running), &statistics);
        most = statistics.disk_sent_bytes > 0 ? MAX(most, statistics.disk_depth) : most;
        g_usleep(1000);
    }
    assert_true(vmf_machine_stop(source, NULL)); /* otherwise it may write faster than that for ever */
    if (!vmf_trip_finish(running))
        fail_msg("%s%s", trip.events, trip.source_error ? trip.source_error->message : "");
    assert_int_equal(most, 1);
    assert_int_equal(trip.source.disk_depth, 8);
    vmf_trip_clear(&trip);
    if (!vmf_machine_is_running(target)) /* it may have been on its way already */
        assert_same_content(rig, "here", "there", DISK_BYTES);
}

/* The guest is not slowed by what the target waits for. */
static void moves_when_it_opens(VmfMachine *source, VmfMachine *target, Door *door, VmfTrip *trip, VmfTripRunning *running)
{
    wait_for_writes(source, 500);
    open_door(door, 0);
    go_on(running);
    if (!vmf_trip_finish(running))
        fail_msg("%s%s", trip->events, trip->source_error ? trip->source_error->message : "");
    assert_non_null(strstr(trip->events, "disk.mirror-ended"));
    wait_for_writes(target, 100);
    assert_int_equal(info_of(source).disks[0].failures + info_of(target).disks[0].failures, 0);
}

/* Storage of the target's first disk stands still in the middle of it. */
static void mirror_stands_still(VmfMachine *source, VmfMachine *target, Door *door)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};
    VmfTripRunning *running;
    VmfTrip trip;

    vmf_disk_set_wrap(target->disks[0].disk, put_door, door);
    assert_true(vmf_machine_start(source, NULL));
    trip_init(&trip);
    trip.source_parameters.mirror_disks = true;
    trip.source_parameters.pause_before_switchover = true;
    running = vmf_trip_start(&trip, vmf_machine_guest(source), vmf_machine_guest(target));
    for (unsigned n = 0; n < 3000 && statistics.disk_mirrored_writes == 0; n++) {
        g_usleep(10000);
        vmf_session_get_statistics(vmf_trip_source(running), &statistics);
    }
    assert_true(statistics.disk_mirrored_writes > 0);
    pthread_mutex_lock(&door->lock);
    door->shut = true;
    pthread_mutex_unlock(&door->lock);
    moves_when_it_opens(source, target, door, &trip, running);
    vmf_trip_clear(&trip);
}

/* The guest does not stand still, nothing fails, and it moves when the storage goes on. */
static void test_mirror_that_is_stuck_lets_go(void **state)
{
    const Rig *rig = *state;
    Door door = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, .shut = false}; /* outlives the target */
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = target_of(rig, "there");

    mirror_stands_still(source, target, &door);
}

/* Whether or not what goes to the other disk still arrives. */
static void test_mirror_of_one_disk_of_two_that_is_stuck_lets_go(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = machine(rig, (Disks){.files = {"here", "here-too"}, .size = DISK_BYTES});
    g_autoptr(VmfMachine) target = machine(rig, (Disks){.files = {"there", "there-too"}, .incoming = true});
    Door door = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, .shut = false};

    mirror_stands_still(source, target, &door);
}

/* It lets go before all is there, so the guest's writes never went to both ends. */
static void test_mirror_that_does_not_catch_up_says_nothing(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = target_of(rig, "there");
    Door door = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, .shuts_at = VMF_REQUEST_FLUSH};
    VmfTripRunning *running;
    VmfTrip trip;

    vmf_disk_set_wrap(target->disks[0].disk, put_door, &door);
    assert_true(vmf_machine_start(source, NULL));
    trip_init(&trip);
    trip.source_parameters.mirror_disks = trip.source_parameters.pause_before_switchover = true;
    running = vmf_trip_start(&trip, vmf_machine_guest(source), vmf_machine_guest(target));
    await_shut(&door); /* the bulk is there; the mirror is the next thing */
    wait_for_writes(source, 100);
    open_door(&door, VMF_REQUEST_WRITE);
    await_shut(&door);
    moves_when_it_opens(source, target, &door, &trip, running);
    assert_null(strstr(trip.events, "disk.mirror:"));
    vmf_trip_clear(&trip);
}

/* The target fails: the guest's writes do not. */
static void test_mirror_whose_target_fails(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = target_of(rig, "there");
    VmfStorageFault fault = {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = 12 * MIB};
    VmfTrip trip;

    vmf_disk_set_wrap(target->disks[0].disk, put_fault, &fault);
    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 100);
    trip_init(&trip);
    trip.source_parameters.mirror_disks = true;
    trip.source_parameters.pause_before_switchover = true;
    refused(rig, &trip, source, target, "storage.full");
    assert_int_equal(info_of(source).disks[0].failures, 0);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_cut_run_ends_as_the_uncut),
        rig_test(test_many_trips),
        cmocka_unit_test_prestate_setup_teardown(test_many_trips, set_up, tear_down, (void *)"kvm"),
        rig_test(test_sectors_of_4096),
        rig_test(test_holes_stay_holes),
        rig_test(test_one_copied_one_shared),
        rig_test(test_smaller_target_is_refused),
        rig_test(test_two_disks_in_one_place_are_refused),
        rig_test(test_target_in_use_is_refused),
        rig_test(test_copy_under_way_is_in_use),
        rig_test(test_what_is_replaced_comes_back),
        rig_test(test_filesystem_is_refused_unless_forced),
        rig_test(test_disk_that_is_not_there),
        rig_test(test_full_target),
        rig_test(test_bad_block_of_the_target),
        rig_test(test_target_that_cannot_sync),
        rig_test(test_bad_block_of_the_source),
        rig_test(test_one_of_two_fails),
        rig_test(test_place_of_one_of_two_is_taken_meanwhile),
        rig_test(test_target_dies),
        rig_test(test_mirrored),
        rig_test(test_latency_goal_slows_the_copy),
        rig_test(test_mirror_that_is_stuck_lets_go),
        rig_test(test_mirror_of_one_disk_of_two_that_is_stuck_lets_go),
        rig_test(test_mirror_that_does_not_catch_up_says_nothing),
        rig_test(test_mirror_whose_target_fails),
        rig_test(test_guest_that_goes_back_takes_the_name_away),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
