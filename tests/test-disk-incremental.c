/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest moves, and its disk with it, to where a base of the disk lies: what a bitmap has is sent, the rest compared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <vmferry/backup.h>
#include <vmferry/save.h>

#include "block/disk.h"
#include "stream/storage-fault.h"
#include "tests/disk-world.h"

#define MIB (1ull << 20)
#define MILLISECOND 100000ull
#define DISK_BYTES (12 * MIB + 3 * 512) /* the last granule is short */
#define SET_BYTES (4 * MIB)             /* at the beginning: what the guest writes */
#define HOLE_BEGIN (8 * MIB + 512)      /* of what it does not write */
#define HOLE_END (10 * MIB + 512)
#define TRIPS 12

static void write_at(const Rig *rig, const char *file, off_t offset, const void *data, size_t length)
{
    g_autofree char *path = path_of(rig, file);
    FILE *stream = fopen(path, g_file_test(path, G_FILE_TEST_EXISTS) ? "r+e" : "we");

    assert_non_null(stream);
    assert_int_equal(fseeko(stream, offset, SEEK_SET), 0);
    assert_int_equal(fwrite(data, 1, length, stream), length);
    assert_int_equal(fclose(stream), 0);
}

/* Data everywhere but in a hole that is not made of whole granules. */
static void make_disk(const Rig *rig, const char *file)
{
    g_autofree uint8_t *data = g_malloc(DISK_BYTES);
    g_autofree char *path = path_of(rig, file);
    g_autoptr(GRand) random = g_rand_new_with_seed(7);

    for (uint64_t i = 0; i < DISK_BYTES; i++)
        data[i] = i % 64 ? (uint8_t)(i / 64) : (uint8_t)g_rand_int(random);
    write_at(rig, file, 0, data, HOLE_BEGIN);
    write_at(rig, file, HOLE_END, data + HOLE_END, DISK_BYTES - HOLE_END);
    assert_int_equal(truncate(path, DISK_BYTES), 0);
}

static VmfMachine *source_of(const Rig *rig, const char *file)
{
    make_disk(rig, file);
    return machine(rig, (Disks){.files = {file}, .bytes_per_second = 32 * MIB});
}

static VmfDisk *disk_of(VmfMachine *m)
{
    return m->disks[0].disk;
}

static void add_bitmap(VmfMachine *m, const char *name, uint32_t granularity)
{
    VmfBitmapOptions options = {.size = sizeof(options), .name = name, .granularity_bytes = granularity};
    g_autoptr(GError) error = NULL;

    if (!vmf_disk_add_bitmap(disk_of(m), &options, &error))
        fail_msg("%s", error->message);
}

static uint64_t dirty_bytes(VmfMachine *m, const char *name)
{
    VmfBitmapInfo infos[4] = {{.size = sizeof(infos[0])}, {.size = sizeof(infos[0])}, {.size = sizeof(infos[0])},
                              {.size = sizeof(infos[0])}};
    unsigned n = vmf_disk_list_bitmaps(disk_of(m), infos, G_N_ELEMENTS(infos));

    for (unsigned i = 0; i < n; i++)
        if (strcmp(infos[i].name, name) == 0)
            return infos[i].dirty_bytes;
    fail_msg("no bitmap %s", name);
    return 0;
}

/* All of the disk as it is at this moment, from which on the bitmap "base" records what differs. The guest runs on. */
static void make_base(const Rig *rig, VmfMachine *m, const char *file, uint32_t granularity)
{
    g_autofree char *path = path_of(rig, file), *uri = g_strconcat("file:", path, NULL);
    VmfBackupOptions options = {.size = sizeof(options), .target = uri, .bitmap = "base", .full = true};
    g_autoptr(VmfBackup) backup = NULL;
    g_autoptr(GError) error = NULL;

    add_bitmap(m, "base", granularity);
    backup = vmf_backup_begin(disk_of(m), &options, &error);
    if (!backup || !vmf_backup_wait(backup, &error))
        fail_msg("%s", error->message);
}

static void trip_init(VmfTrip *trip)
{
    vmf_trip_init(trip);
    trip->source_parameters.switchover_timeout_ns = LONG_NS;
    trip->source_parameters.downtime_limit_ns = LONG_NS / 10;
    trip->source_parameters.copy_disks = "all";
    trip->source_parameters.incremental_bitmap = "base";
}

static void trip_done(VmfTrip *trip, VmfMachine *from, VmfMachine *to)
{
    if (!vmf_trip_run(trip, vmf_machine_guest(from), vmf_machine_guest(to)))
        fail_msg("%s%s; %s", trip->events, trip->source_error ? trip->source_error->message : "",
                 trip->target_error ? trip->target_error->message : "");
    assert_false(info_of(from).disks[0].acquired);
    assert_true(info_of(to).disks[0].locked);
    assert_true(trip->source.disk_base_bytes > 0 && trip->source.disk_base_bytes < DISK_BYTES);
    assert_int_equal(trip->source.disk_base_bytes, trip->target.disk_base_bytes);
}

/* The guest stays, with its disk, and the error has this code. */
static void refused(VmfTrip *trip, VmfMachine *source, VmfMachine *target, VmfErrorCode code, const char *what)
{
    bool was_running = vmf_machine_is_running(source);

    assert_false(vmf_trip_run(trip, vmf_machine_guest(source), vmf_machine_guest(target)));
    assert_non_null(trip->source_error);
    if (!strstr(trip->source_error->message, what) ||
        (code && !g_error_matches(trip->source_error, VMF_ERROR, (int)code)))
        fail_msg("expected '%s': %s", what, trip->source_error->message);
    assert_int_equal(vmf_machine_is_running(source), was_running);
    assert_true(info_of(source).disks[0].locked);
    assert_false(info_of(target).disks[0].acquired);
    if (was_running)
        wait_for_writes(source, 20);
    vmf_trip_clear(trip);
}

/* ---- it arrives -------------------------------------------------------------------------------------------------- */

/* Of what the two files differ in, the bitmap has all. */
static void assert_superset(const Rig *rig, VmfMachine *m, const char *disk, const char *base)
{
    g_autofree char *here = content_of(rig, disk, DISK_BYTES), *there = content_of(rig, base, DISK_BYTES);
    uint64_t offset = 0, length = 0;

    for (uint64_t at = 0; at < DISK_BYTES; at += 512) {
        if (memcmp(here + at, there + at, 512) == 0)
            continue;
        if (at >= offset + length)
            assert_true(vmf_disk_next_dirty(disk_of(m), "base", at, &offset, &length, NULL));
        assert_true(length > 0 && at >= offset && at < offset + length);
    }
}

/* A guest that writes all the while; each time a backup is the base, and the guest has written since. */
static void test_many_trips(void **state)
{
    static const uint32_t granularities[] = {512, 4096, 65536, 1 << 20};
    const Rig *rig = *state;
    g_autoptr(GError) why = NULL;

    if (strcmp(rig->backend, "kvm") == 0 && !vmf_kvm_works(&why)) {
        print_message("kvm: %s\n", why->message);
        g_clear_error(&why); /* skip() does not return */
        skip();
    }
    VmfMachine *at = source_of(rig, "disk0");
    assert_true(vmf_machine_start(at, NULL));
    for (unsigned number = 0; number < TRIPS; number++) {
        g_autofree char *here = g_strdup_printf("disk%u", number), *there = g_strdup_printf("disk%u", number + 1);
        VmfTrip trip;

        make_base(rig, at, there, granularities[number % 4]);
        wait_for_writes(at, 20);
        VmfMachine *next = target_of(rig, there);
        trip_init(&trip);
        trip.source_parameters.minimum_rounds = number % 3;
        trip.source_parameters.verify_disks = number % 2;
        trip.source_parameters.mirror_disks = number % 5 == 4;
        trip.listen_uri = number % 3 == 0 ? "tcp:127.0.0.1:0" : NULL;
        /* It arrives paused, so that the target's disk is looked at as it was handed over. */
        if (number % 2 == 0) {
            assert_true(vmf_machine_stop(at, NULL));
            assert_superset(rig, at, here, there);
        }
        trip_done(&trip, at, next);
        assert_true(trip.source.disk_base_bytes >= DISK_BYTES - SET_BYTES - (1 << 20));
        assert_false(exists(rig, "disk1.partial"));
        if (number % 2 == 0) {
            assert_same_content(rig, here, there, DISK_BYTES);
            assert_true(vmf_machine_start(next, NULL));
        }
        vmf_machine_free(at);
        at = next;
        vmf_trip_clear(&trip);
    }
    wait_for_writes(at, 100);
    vmf_machine_free(at);
}

/* A guest that stood still since the backup: nothing is sent, and the base is the disk without a change of its name. */
static void test_nothing_is_dirty(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = NULL;
    VmfTrip trip;

    assert_true(vmf_machine_run_to(source, 100 * MILLISECOND, NULL));
    make_base(rig, source, "there", 4096);
    assert_int_equal(dirty_bytes(source, "base"), 0);
    target = target_of(rig, "there");
    trip_init(&trip);
    if (!vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)))
        fail_msg("%s", trip.source_error->message);
    assert_int_equal(trip.source.disk_base_bytes, DISK_BYTES);
    assert_int_equal(trip.source.disk_sent_bytes + trip.source.disk_zero_bytes, 0);
    assert_same_content(rig, "here", "there", DISK_BYTES);
    assert_true(vmf_machine_start(target, NULL));
    wait_for_writes(target, 50);
    vmf_trip_clear(&trip);
}

/* A base that is another's only where the bitmap says that it is written over. */
static void test_base_that_differs_where_it_is_dirty(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = NULL;
    uint64_t offset, length;
    VmfTrip trip;

    assert_true(vmf_machine_run_to(source, 100 * MILLISECOND, NULL));
    make_base(rig, source, "there", 65536);
    assert_true(vmf_machine_run_to(source, 200 * MILLISECOND, NULL));
    assert_true(vmf_disk_next_dirty(disk_of(source), "base", 0, &offset, &length, NULL) && length > 0);
    write_at(rig, "there", (off_t)offset + 7, "other", 5);
    target = target_of(rig, "there");
    trip_init(&trip);
    trip.source_parameters.verify_disks = true;
    trip_done(&trip, source, target);
    assert_same_content(rig, "here", "there", DISK_BYTES);
    vmf_trip_clear(&trip);
}

static VmfStorage *put_fault(VmfStorage *storage, void *opaque, GError **error)
{
    return vmf_storage_fault_new(storage, opaque, 1, error);
}

/* Somebody who writes where nothing was written since the base was made, one request after the other. */
typedef struct {
    VmfDisk *disk;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool under_way, quit;
    unsigned n_failed;
} Hammer;

static void hammered(VmfDiskRequest *request, const GError *error)
{
    Hammer *hammer = request->opaque;

    pthread_mutex_lock(&hammer->lock);
    hammer->under_way = false;
    hammer->n_failed += error != NULL;
    pthread_cond_signal(&hammer->ended);
    pthread_mutex_unlock(&hammer->lock);
}

static void *hammer_main(void *opaque)
{
    Hammer *hammer = opaque;
    g_autoptr(GRand) random = g_rand_new_with_seed(5);
    void *data = NULL;

    if (posix_memalign(&data, 4096, VMF_DISK_GRANULE_BYTES) != 0)
        g_error("out of memory");
    struct iovec iov = {data, VMF_DISK_GRANULE_BYTES};
    VmfDiskRequest request = {.operation = VMF_DISK_WRITE, .length = iov.iov_len, .iov = &iov, .n_iov = 1,
                              .done = hammered, .opaque = hammer};
    pthread_mutex_lock(&hammer->lock);
    while (!hammer->quit) {
        hammer->under_way = true;
        pthread_mutex_unlock(&hammer->lock);
        memset(data, (int)g_rand_int(random), VMF_DISK_GRANULE_BYTES);
        request.offset = SET_BYTES + MIB + (uint64_t)g_rand_int_range(random, 0, 6 * MIB / 512) * 512;
        vmf_disk_submit(hammer->disk, &request);
        pthread_mutex_lock(&hammer->lock);
        while (hammer->under_way)
            pthread_cond_wait(&hammer->ended, &hammer->lock);
    }
    pthread_mutex_unlock(&hammer->lock);
    free(data);
    return NULL;
}

/* A write that comes while its place is looked at is sent, whichever of its two states was read: on storage that carries
 * out the one ahead of the other as often as not. */
static void test_writes_while_the_base_is_compared(void **state)
{
    const Rig *rig = *state;

    for (unsigned number = 0; number < 4; number++) {
        g_autofree char *here = g_strdup_printf("here%u", number), *there = g_strdup_printf("there%u", number);
        g_autoptr(VmfMachine) source = source_of(rig, here), target = NULL;
        Hammer hammer = {disk_of(source), .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
        VmfTrip trip;

        VmfStorageFault reorder = {.kind = VMF_STORAGE_FAULT_REORDER, .seed = number};

        vmf_disk_set_wrap(disk_of(source), put_fault, &reorder);
        assert_true(vmf_machine_run_to(source, 50 * MILLISECOND, NULL));
        make_base(rig, source, there, 65536);
        target = target_of(rig, there);
        trip_init(&trip);
        trip.source_parameters.pause_before_switchover = true;
        assert_int_equal(pthread_create(&hammer.thread, NULL, hammer_main, &hammer), 0);
        VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(source), vmf_machine_guest(target));
        VmfStatistics statistics = {.size = sizeof(statistics)};
        while (statistics.status < VMF_STATUS_PRE_SWITCHOVER) {
            g_usleep(1000);
            vmf_session_get_statistics(vmf_trip_source(running), &statistics);
        }
        pthread_mutex_lock(&hammer.lock);
        hammer.quit = true;
        pthread_mutex_unlock(&hammer.lock);
        pthread_join(hammer.thread, NULL);
        vmf_session_continue(vmf_trip_source(running), NULL);
        if (!vmf_trip_finish(running))
            fail_msg("%s%s", trip.events, trip.source_error ? trip.source_error->message : "");
        assert_int_equal(hammer.n_failed, 0);
        assert_same_content(rig, here, there, DISK_BYTES);
        vmf_trip_clear(&trip);
    }
}

/* ---- it does not ------------------------------------------------------------------------------------------------- */

/* A running guest with its base "there", from which it differs. */
static VmfMachine *with_base(const Rig *rig)
{
    VmfMachine *source = source_of(rig, "here");

    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 20);
    make_base(rig, source, "there", 65536);
    wait_for_writes(source, 20);
    return source;
}

static void arrives_after_all(const Rig *rig, VmfMachine *source, VmfMachine *target)
{
    VmfTrip trip;

    trip_init(&trip);
    trip.source_parameters.verify_disks = true;
    trip_done(&trip, source, target);
    wait_for_writes(target, 50);
    assert_true(exists(rig, "there") && !exists(rig, "there.partial"));
    vmf_trip_clear(&trip);
}

/* One octet: in data, in the hole, in the last granule. The base is what it was, and is the base once it is right. */
static void test_wrong_base(void **state)
{
    static const off_t places[] = {5 * MIB + 4711, 9 * MIB, DISK_BYTES - 1};
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig);
    g_autofree char *right = content_of(rig, "there", DISK_BYTES);
    VmfTrip trip;

    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        char wrong = (char)(right[places[i]] + 1);
        g_autofree char *where = g_strdup_printf("differs at offset %" G_GINT64_FORMAT ",",
                                                 (gint64)(places[i] / VMF_DISK_GRANULE_BYTES * VMF_DISK_GRANULE_BYTES));
        write_at(rig, "there", places[i], &wrong, 1);
        g_autofree char *before = content_of(rig, "there", DISK_BYTES);
        g_autoptr(VmfMachine) target = target_of(rig, "there");
        trip_init(&trip);
        refused(&trip, source, target, 0, where);
        g_autofree char *after = content_of(rig, "there", DISK_BYTES);
        assert_memory_equal(before, after, DISK_BYTES);
        assert_false(exists(rig, "there.partial"));
        write_at(rig, "there", places[i], &right[places[i]], 1);
    }
    g_autoptr(VmfMachine) target = target_of(rig, "there");
    arrives_after_all(rig, source, target);
}

static void refuse_bitmap(VmfMachine *source, VmfMachine *target, const char *bitmap, VmfErrorCode code, const char *what)
{
    VmfTrip trip;

    trip_init(&trip);
    trip.source_parameters.incremental_bitmap = bitmap;
    refused(&trip, source, target, code, what);
}

static void test_bitmaps_that_cannot_say(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig), target = target_of(rig, "there");
    g_autofree char *path = path_of(rig, "slow"), *uri = g_strconcat("file:", path, NULL);
    VmfBackupOptions slow = {.size = sizeof(slow), .target = uri, .bitmap = "base", .full = true, .bytes_per_second = 1};
    VmfTrip trip;

    refuse_bitmap(source, target, "nobodys", VMF_ERROR_USAGE, "nobodys");
    add_bitmap(source, "disabled", 0);
    assert_true(vmf_disk_enable_bitmap(disk_of(source), "disabled", false, NULL));
    refuse_bitmap(source, target, "disabled", VMF_ERROR_STATE, "it is disabled");
    /* Its bits are the backup's meanwhile. */
    VmfBackup *backup = vmf_backup_begin(disk_of(source), &slow, NULL);
    assert_non_null(backup);
    refuse_bitmap(source, target, "base", VMF_ERROR_STATE, "a backup uses it");
    vmf_backup_free(backup);
    trip_init(&trip);
    trip.source_parameters.copy_disks = "none";
    assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)));
    assert_true(g_error_matches(trip.source_error, VMF_ERROR, VMF_ERROR_USAGE));
    vmf_trip_clear(&trip);
    arrives_after_all(rig, source, target);
}

/* A bitmap that began later than the base was made does not have what was written in between: the digests do. */
static void test_bitmap_that_began_too_late(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig), target = target_of(rig, "there");

    assert_true(vmf_machine_stop(source, NULL));
    add_bitmap(source, "late", 0);
    refuse_bitmap(source, target, "late", 0, "its base differs");
    assert_true(vmf_machine_start(source, NULL));
    arrives_after_all(rig, source, target);
}

static void test_inconsistent_bitmap(void **state)
{
    const Rig *rig = *state;
    VmfBitmapOptions options = {.size = sizeof(options), .name = "kept", .persistent = true};
    g_autoptr(VmfMachine) source = source_of(rig, "here"), target = NULL;

    make_disk(rig, "there");
    target = target_of(rig, "there");
    assert_true(vmf_machine_hold_storage(source, NULL));
    assert_true(vmf_disk_add_bitmap(disk_of(source), &options, NULL));
    assert_true(vmf_disk_release(disk_of(source), NULL));
    g_usleep(20000); /* a step of the filesystem's clock */
    write_at(rig, "here", 100, "somebody else", 13);
    assert_true(vmf_machine_hold_storage(source, NULL));
    refuse_bitmap(source, target, "kept", VMF_ERROR_BITMAP, "inconsistent");
}

static void test_bases_that_are_none(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig);
    g_autoptr(VmfMachine) missing = target_of(rig, "nothing"), large = NULL, small = NULL, used = NULL;
    g_autofree char *path = path_of(rig, "large"), *small_path = path_of(rig, "small");
    g_autoptr(VmfMachine) owner = machine(rig, (Disks){.files = {"there"}});
    VmfTrip trip;

    trip_init(&trip);
    refused(&trip, source, missing, VMF_ERROR_INCOMPATIBLE, "there is no base");
    make_disk(rig, "large");
    make_disk(rig, "small");
    assert_int_equal(truncate(path, DISK_BYTES + 512) | truncate(small_path, DISK_BYTES - 512), 0);
    large = target_of(rig, "large");
    small = target_of(rig, "small");
    trip_init(&trip);
    refused(&trip, source, large, VMF_ERROR_INCOMPATIBLE, "the base has");
    trip_init(&trip);
    refused(&trip, source, small, VMF_ERROR_INCOMPATIBLE, "the base has");
    assert_true(vmf_machine_hold_storage(owner, NULL));
    used = target_of(rig, "there");
    trip_init(&trip);
    refused(&trip, source, used, VMF_ERROR_INCOMPATIBLE, "another uses it");
}

/* Nothing of it is compared, for all is dirty: then what it holds speaks for it, or against it. */
static void test_unproven_filesystem_is_refused_unless_forced(void **state)
{
#ifndef HAVE_BLKID
    print_message("built without libblkid\n");
    skip();
#endif
    const Rig *rig = *state;
    VmfBitmapExtent whole = {0, DISK_BYTES};
    g_autoptr(VmfMachine) source = with_base(rig), target = NULL, forced = NULL;
    VmfTrip trip;

    assert_true(vmf_disk_set_bitmap(disk_of(source), "base", &whole, 1, NULL));
    write_at(rig, "there", 4086, "SWAPSPACE2", 10); /* what is told most easily of all that libblkid knows */
    write_at(rig, "there", 1024, "\1\0\0\0\144\0\0\0", 8);
    target = target_of(rig, "there");
    g_autofree char *before = content_of(rig, "there", DISK_BYTES);
    trip_init(&trip);
    refused(&trip, source, target, 0, "swap");
    g_autofree char *after = content_of(rig, "there", DISK_BYTES);
    assert_memory_equal(before, after, DISK_BYTES);
    assert_false(exists(rig, "there.partial"));
    forced = machine(rig, (Disks){.files = {"there"}, .incoming = true, .overwrite = true});
    trip_init(&trip);
    if (!vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(forced)))
        fail_msg("%s", trip.source_error->message);
    vmf_trip_clear(&trip);
}

static bool die_at(void *opaque, const char *point)
{
    return strcmp(opaque, point) == 0;
}

/* What the first attempt has brought does not speak against the second, of which nothing is compared either. */
static void test_filesystem_of_a_failed_copy(void **state)
{
#ifndef HAVE_BLKID
    print_message("built without libblkid\n");
    skip();
#endif
    const Rig *rig = *state;
    VmfBitmapExtent whole = {0, DISK_BYTES};
    g_autoptr(VmfMachine) source = with_base(rig), target = NULL, next = NULL;
    VmfTrip trip;

    assert_true(vmf_machine_stop(source, NULL));
    assert_true(vmf_disk_set_bitmap(disk_of(source), "base", &whole, 1, NULL));
    write_at(rig, "here", 4086, "SWAPSPACE2", 10);
    write_at(rig, "here", 1024, "\1\0\0\0\144\0\0\0", 8);
    target = target_of(rig, "there");
    trip_init(&trip);
    trip.target_parameters.fault = die_at;
    trip.target_parameters.fault_opaque = "target.loaded";
    assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(target)));
    vmf_trip_clear(&trip);
    assert_true(exists(rig, "there.partial") && !exists(rig, "there"));
    next = target_of(rig, "there");
    trip_init(&trip);
    if (!vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(next)))
        fail_msg("%s", trip.source_error->message);
    assert_same_content(rig, "here", "there", DISK_BYTES);
    vmf_trip_clear(&trip);
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

/* What is left is no disk, by its name, and the base of the next attempt. */
static void test_failed_copy_is_still_a_base(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig), target = target_of(rig, "there"), next = NULL;
    VmfStorageFault fault = {.kind = VMF_STORAGE_FAULT_ERROR,
                             .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE),
                             .offset = 0,
                             .length = SET_BYTES};
    VmfTrip trip;

    for (unsigned i = 0; i < 3; i++) {
        g_autoptr(VmfMachine) broken = target_of(rig, "there");
        vmf_disk_set_wrap(disk_of(broken), put_fault, &fault);
        trip_init(&trip);
        refused(&trip, source, broken, 0, "disk root");
        assert_true(exists(rig, "there.partial") && !exists(rig, "there"));
    }
    next = target_of(rig, "there");
    arrives_after_all(rig, source, next);
}

/* At each point from which the guest may still go on here; what is left is a base each time. */
static void test_target_dies(void **state)
{
    static const char *const points[] = {"target.accepted",
                                         "target.loaded",
                                         "target.arrived",
                                         "target.storage.acquire.due",
                                         "target.storage.acquire.done",
                                         "target.send.ready.due"};
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig), target = NULL;
    VmfTrip trip;

    for (unsigned i = 0; i < G_N_ELEMENTS(points); i++) {
        g_autoptr(VmfMachine) dead = target_of(rig, "there");
        trip_init(&trip);
        trip.target_parameters.fault = die_at;
        trip.target_parameters.fault_opaque = (void *)points[i];
        assert_false(vmf_trip_run(&trip, vmf_machine_guest(source), vmf_machine_guest(dead)));
        assert_true(vmf_machine_is_running(source) && info_of(source).disks[0].locked);
        assert_int_equal(exists(rig, "there") + exists(rig, "there.partial"), 1);
        wait_for_writes(source, 20);
        vmf_trip_clear(&trip);
    }
    target = target_of(rig, "there");
    arrives_after_all(rig, source, target);
}

/* The disk is whole and has its name when it turns out that the guest cannot have its other disk: the name goes again. */
static void test_guest_that_goes_back_takes_the_name_away(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = NULL, owner = source_of(rig, "other"), target = NULL, alone = NULL;
    VmfTrip trip;

    make_disk(rig, "here");
    make_disk(rig, "shared");
    source = machine(rig, (Disks){.files = {"here", "shared"}, .bytes_per_second = 32 * MIB});
    assert_true(vmf_machine_start(source, NULL));
    wait_for_writes(source, 20);
    make_base(rig, source, "there", 65536);
    wait_for_writes(source, 20);
    assert_true(vmf_machine_hold_storage(owner, NULL));
    target = machine(rig, (Disks){.files = {"there", "other"}, .incoming = true});
    trip_init(&trip);
    trip.source_parameters.copy_disks = "root";
    refused(&trip, source, target, 0, "another uses it");
    assert_true(exists(rig, "there.partial") && !exists(rig, "there"));
    alone = machine(rig, (Disks){.files = {"there", "shared"}, .incoming = true});
    trip_init(&trip);
    trip.source_parameters.copy_disks = "root";
    trip_done(&trip, source, alone);
    wait_for_writes(alone, 50);
    vmf_trip_clear(&trip);
}

/* An image has a parent, which is something else. */
static void test_images_have_no_base(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfMachine) source = with_base(rig);
    g_autofree char *path = path_of(rig, "image"), *uri = g_strconcat("file:", path, NULL);
    VmfSaveOptions options = {.size = sizeof(options), .uri = uri};
    g_autoptr(GError) error = NULL;
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.copy_disks = "all";
    parameters.incremental_bitmap = "base";
    g_autoptr(VmfSession) session =
        vmf_session_new_save(vmf_machine_guest(source), &options, &parameters, NULL, NULL);
    assert_false(vmf_session_run(session, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE) && !exists(rig, "image"));
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_many_trips),
        cmocka_unit_test_prestate_setup_teardown(test_many_trips, set_up, tear_down, (void *)"kvm"),
        rig_test(test_nothing_is_dirty),
        rig_test(test_base_that_differs_where_it_is_dirty),
        rig_test(test_writes_while_the_base_is_compared),
        rig_test(test_wrong_base),
        rig_test(test_bitmaps_that_cannot_say),
        rig_test(test_bitmap_that_began_too_late),
        rig_test(test_inconsistent_bitmap),
        rig_test(test_bases_that_are_none),
        rig_test(test_unproven_filesystem_is_refused_unless_forced),
        rig_test(test_filesystem_of_a_failed_copy),
        rig_test(test_failed_copy_is_still_a_base),
        rig_test(test_target_dies),
        rig_test(test_guest_that_goes_back_takes_the_name_away),
        rig_test(test_images_have_no_base),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
