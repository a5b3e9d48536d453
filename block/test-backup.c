/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Backups of a disk that is written all the while. What is written says which write it was: each writer goes through
 * places of its own in an order that is known, so that whatever a backup holds can be compared with the disk as it was
 * after so many writes, and with nothing else.
 */
#include "stream/test-storage-rig.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vmferry/backup.h>

#include "block/disk-private.h"
#include "stream/storage-fault.h"

#define N_WRITERS 3u
#define N_PLACES 1024u /* of a writer */
#define PLACE 4096u
#define AREA ((uint64_t)N_PLACES * PLACE)
#define DISK_BYTES (N_WRITERS * AREA + 8 * MIB + 512) /* with a hole, and a short end */

static VmfDisk *open_disk(const char *directory)
{
    g_autofree char *uri = uri_at(directory, "disk");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = DISK_BYTES};
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = vmf_disk_open("root", &options, &error);

    if (!disk || !vmf_disk_acquire(disk, &error))
        fail_msg("%s", error->message);
    return disk;
}

/* ---- a guest ----------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfDisk *disk;
    unsigned index;
    pthread_t thread;
    atomic_bool stops;
    atomic_uint begun, ended; /* writes */
} Writer;

static unsigned place_of(unsigned write)
{
    return write * 619u % N_PLACES;
}

/* What is at a place after its write number @write; 0: nothing was. */
static void fill(uint64_t *data, unsigned index, unsigned write)
{
    for (unsigned i = 0; i < PLACE / 8; i++)
        data[i] = write ? (uint64_t)write << 32 | index << 16 | i : 0;
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    *(int *)request->opaque = error ? error->code : 0;
}

static int write_to(VmfDisk *disk, VmfDiskOperation operation, uint64_t offset, void *data, uint64_t length)
{
    struct iovec iov = {data, length};
    int code = -1;
    VmfDiskRequest request = {.operation = operation,
                              .offset = offset,
                              .length = length,
                              .iov = &iov,
                              .n_iov = operation == VMF_DISK_WRITE,
                              .done = on_done,
                              .opaque = &code};

    vmf_disk_submit(disk, &request);
    vmf_disk_drain(disk);
    return code;
}

static void *writer_main(void *opaque)
{
    Writer *writer = opaque;
    uint64_t data[PLACE / 8];

    while (!atomic_load(&writer->stops)) {
        unsigned write = atomic_fetch_add(&writer->begun, 1) + 1;

        fill(data, writer->index, write);
        assert_int_equal(
            write_to(writer->disk, VMF_DISK_WRITE, writer->index * AREA + place_of(write) * PLACE, data, PLACE), 0);
        atomic_store(&writer->ended, write);
    }
    return NULL;
}

typedef struct {
    char *directory;
    VmfDisk *disk;
    Writer writers[N_WRITERS];
    unsigned before[N_WRITERS]; /* writes that had ended when the latest backup was begun */
    unsigned after[N_WRITERS];  /* that had begun when it was */
} Rig;

static void start_writers(Rig *rig)
{
    for (unsigned i = 0; i < N_WRITERS; i++) {
        rig->writers[i].disk = rig->disk;
        rig->writers[i].index = i;
        atomic_store(&rig->writers[i].stops, false);
        assert_int_equal(pthread_create(&rig->writers[i].thread, NULL, writer_main, &rig->writers[i]), 0);
    }
}

static void stop_writers(Rig *rig)
{
    for (unsigned i = 0; i < N_WRITERS; i++)
        atomic_store(&rig->writers[i].stops, true);
    for (unsigned i = 0; i < N_WRITERS; i++)
        pthread_join(rig->writers[i].thread, NULL);
}

/* So many writes of each, from now on. */
static void let_write(Rig *rig, unsigned n)
{
    for (unsigned i = 0; i < N_WRITERS; i++)
        for (unsigned goal = atomic_load(&rig->writers[i].ended) + n; atomic_load(&rig->writers[i].ended) < goal;)
            g_usleep(200);
}

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->directory = directory_new(g_get_tmp_dir());
    rig->disk = open_disk(rig->directory);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_free(rig->disk);
    directory_remove(rig->directory);
    g_free(rig);
    return 0;
}

/* ---- backups ----------------------------------------------------------------------------------------------------- */

static void add_bitmap(VmfDisk *disk, const char *name, uint32_t granularity, bool persistent)
{
    VmfBitmapOptions options = {
        .size = sizeof(options), .name = name, .granularity_bytes = granularity, .persistent = persistent};
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_add_bitmap(disk, &options, &error), error);
}

static VmfBackup *try_begin(Rig *rig, VmfBackupOptions options, GError **error)
{
    g_autofree char *target = uri_at(rig->directory, "backup");

    options.size = sizeof(options);
    options.target = options.target ? options.target : target;
    for (unsigned i = 0; i < N_WRITERS; i++)
        rig->before[i] = atomic_load(&rig->writers[i].ended);
    VmfBackup *backup = vmf_backup_begin(rig->disk, &options, error);
    for (unsigned i = 0; i < N_WRITERS; i++)
        rig->after[i] = atomic_load(&rig->writers[i].begun);
    return backup;
}

static VmfBackup *begin(Rig *rig, VmfBackupOptions options)
{
    g_autoptr(GError) error = NULL;
    VmfBackup *backup = try_begin(rig, options, &error);

    if (!backup)
        fail_msg("%s", error->message);
    return backup;
}

static void assert_done(VmfBackup *backup)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_backup_wait(backup, &error), error);
    vmf_backup_free(backup);
}

static char *read_file(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    char *content = NULL;
    gsize size;

    assert_true(g_file_get_contents(path, &content, &size, NULL));
    assert_int_equal(size, DISK_BYTES);
    return content;
}

/* The area of a writer is as it was after some number of its writes, and that number is of the backup's moment. */
static void check_area(const Rig *rig, const char *content, unsigned index)
{
    uint64_t expected[PLACE / 8];
    g_autofree unsigned *latest = g_new0(unsigned, N_PLACES);
    unsigned moment = 0;

    for (unsigned place = 0; place < N_PLACES; place++) {
        uint64_t first;
        memcpy(&first, content + index * AREA + place * PLACE, 8);
        moment = MAX(moment, (unsigned)(first >> 32));
    }
    if (moment < rig->before[index] || moment > rig->after[index])
        fail_msg("writer %u: the backup has write %u, its moment was from %u to %u", index, moment, rig->before[index],
                 rig->after[index]);
    for (unsigned write = 1; write <= moment; write++)
        latest[place_of(write)] = write;
    for (unsigned place = 0; place < N_PLACES; place++) {
        fill(expected, index, latest[place]);
        assert_memory_equal(content + index * AREA + place * PLACE, expected, PLACE);
    }
}

static void check_backup(const Rig *rig)
{
    g_autofree char *content = read_file(rig->directory, "backup");

    for (unsigned i = 0; i < N_WRITERS; i++)
        check_area(rig, content, i);
}

/* Behind the areas: nothing but a bit that is kept brings this to the backup. */
static void write_once(Rig *rig, unsigned round)
{
    uint64_t data[PLACE / 8];

    fill(data, 9, round);
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, N_WRITERS * AREA + (uint64_t)round * MIB / 2, data, PLACE), 0);
}

static void assert_written_once(const Rig *rig, unsigned round)
{
    g_autofree char *content = read_file(rig->directory, "backup");
    uint64_t data[PLACE / 8];

    fill(data, 9, round);
    assert_memory_equal(content + N_WRITERS * AREA + (uint64_t)round * MIB / 2, data, PLACE);
}

static bool exists(const Rig *rig, const char *name)
{
    g_autofree char *path = g_build_filename(rig->directory, name, NULL);

    return access(path, F_OK) == 0;
}

static void test_full_backup_shows_one_moment(void **state)
{
    Rig *rig = *state;

    start_writers(rig);
    let_write(rig, 500);
    for (unsigned round = 0; round < 5; round++) {
        assert_done(begin(rig, (VmfBackupOptions){.buffered = round % 2}));
        check_backup(rig);
    }
    stop_writers(rig);
}

static uint64_t dirty_bytes(VmfDisk *disk, const char *name)
{
    uint64_t offset, length, sum = 0;

    for (uint64_t at = 0; vmf_disk_next_dirty(disk, name, at, &offset, &length, NULL) && length > 0;
         at = offset + length)
        sum += length;
    return sum;
}

/* Full, then what was written since, again and again; some are cancelled, and the next one has what they had. */
static void chain(Rig *rig, uint32_t granularity, bool persistent)
{
    add_bitmap(rig->disk, "daily", granularity, persistent);
    start_writers(rig);
    let_write(rig, 300);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "daily", .full = true}));
    check_backup(rig);
    for (unsigned round = 0; round < 12; round++) {
        write_once(rig, round);
        VmfBackup *backup =
            begin(rig, (VmfBackupOptions){.bitmap = "daily", .bytes_per_second = round % 3 == 2 ? 256 * KIB : 0});
        if (round % 3 != 2) {
            assert_done(backup);
            check_backup(rig);
            continue;
        }
        let_write(rig, 20);
        vmf_backup_cancel(backup);
        g_autoptr(GError) error = NULL;
        assert_false(vmf_backup_wait(backup, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
        vmf_backup_free(backup);
    }
    stop_writers(rig);
    assert_true(dirty_bytes(rig->disk, "daily") > 0);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "daily"}));
    check_backup(rig);
    for (unsigned round = 0; round < 12; round++)
        assert_written_once(rig, round);
    assert_int_equal(dirty_bytes(rig->disk, "daily"), 0);
}

static void test_chain(void **state)
{
    chain(*state, 4096, false);
}

static void test_chain_of_a_persistent_bitmap(void **state)
{
    chain(*state, MIB, true);
}

/* Slow as it is, a write of the guest waits for the part that it writes and not for the rest. */
static void test_guest_goes_first(void **state)
{
    Rig *rig = *state;
    VmfBackupProgress progress = {.size = sizeof(progress)};
    uint64_t data[PLACE / 8];

    fill(data, 0, 1);
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 0, data, PLACE), 0);
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 2 * AREA, data, PLACE), 0);
    VmfBackup *backup = begin(rig, (VmfBackupOptions){.bytes_per_second = 1});
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 2 * AREA, data, PLACE), 0);
    assert_int_equal(write_to(rig->disk, VMF_DISK_DISCARD, 2 * AREA, NULL, PLACE), 0);
    vmf_backup_get_progress(backup, &progress);
    assert_in_range(progress.early_bytes, 65536, 4 * 65536);
    assert_false(progress.ended);
    vmf_backup_free(backup);
    assert_false(exists(rig, "backup") || exists(rig, "backup.partial"));
}

static void test_holes_cost_nothing(void **state)
{
    Rig *rig = *state;
    VmfBackupProgress progress = {.size = sizeof(progress)};
    g_autofree uint8_t *data = g_malloc(MIB);
    g_autofree char *path = g_build_filename(rig->directory, "backup", NULL);
    struct stat status;

    memset(data, 7, MIB);
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 3 * MIB, data, MIB), 0);
    VmfBackup *backup = begin(rig, (VmfBackupOptions){.bitmap = NULL});
    assert_true(vmf_backup_wait(backup, NULL));
    vmf_backup_get_progress(backup, &progress);
    vmf_backup_free(backup);
    assert_true(progress.written_bytes <= 2 * MIB);
    assert_true(progress.total_bytes >= DISK_BYTES && progress.done_bytes == progress.total_bytes);
    assert_int_equal(stat(path, &status), 0);
    assert_true(status.st_size == (off_t)DISK_BYTES && status.st_blocks * 512 <= (off_t)(2 * MIB));
    /* Onto a base that has something there, a hole is zeros. */
    add_bitmap(rig->disk, "b", 65536, false);
    assert_int_equal(write_to(rig->disk, VMF_DISK_DISCARD, 3 * MIB, NULL, MIB), 0);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "b"}));
    g_autofree char *content = read_file(rig->directory, "backup");
    assert_zeros(content, DISK_BYTES);
}

/* ---- what goes wrong --------------------------------------------------------------------------------------------- */

static void test_released_disk_ends_its_backup(void **state)
{
    Rig *rig = *state;
    g_autoptr(GError) error = NULL;

    add_bitmap(rig->disk, "kept", 65536, true);
    start_writers(rig);
    let_write(rig, 50);
    stop_writers(rig);
    uint64_t before = dirty_bytes(rig->disk, "kept");
    VmfBackup *backup = begin(rig, (VmfBackupOptions){.bitmap = "kept", .full = true, .bytes_per_second = 1});
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_false(vmf_backup_wait(backup, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    assert_true(vmf_disk_acquire(rig->disk, NULL));
    vmf_backup_free(backup);
    assert_int_equal(dirty_bytes(rig->disk, "kept"), before);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "kept", .full = true}));
    check_backup(rig);
}

static VmfStorage *put_fault(VmfStorage *storage, void *opaque, GError **error)
{
    return vmf_storage_fault_new(storage, opaque, 1, error);
}

static void test_unreadable_disk_fails_the_backup_alone(void **state)
{
    Rig *rig = *state;
    VmfStorageFault bad = {
        .kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_READ), .offset = AREA, .length = 512};
    uint64_t data[PLACE / 8];
    g_autoptr(GError) error = NULL;

    assert_true(vmf_disk_release(rig->disk, NULL));
    vmf_disk_set_wrap(rig->disk, put_fault, &bad);
    assert_true(vmf_disk_acquire(rig->disk, NULL));
    add_bitmap(rig->disk, "b", 65536, true);
    fill(data, 1, 1);
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, AREA, data, PLACE), 0);
    uint64_t before = dirty_bytes(rig->disk, "b");
    VmfBackup *backup = begin(rig, (VmfBackupOptions){.bitmap = "b", .full = true, .bytes_per_second = 1});
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, AREA, data, PLACE), 0); /* it waits for the read that fails */
    assert_false(vmf_backup_wait(backup, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    vmf_backup_free(backup);
    assert_int_equal(dirty_bytes(rig->disk, "b"), before);
    assert_false(exists(rig, "backup"));
}

static void test_targets_that_cannot_be(void **state)
{
    Rig *rig = *state;
    g_autofree char *itself = uri_at(rig->directory, "disk"), *small = uri_at(rig->directory, "small");
    g_autofree char *path = g_build_filename(rig->directory, "small", NULL);
    GError *error = NULL;

    add_bitmap(rig->disk, "b", 65536, false);
    assert_null(try_begin(rig, (VmfBackupOptions){.target = itself}, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = "b", .target = itself}, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = "none"}, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = "b"}, &error)); /* there is no base */
    assert_error(error, VMF_ERROR_DISK_BASE);
    assert_true(g_file_set_contents(path, "x", 1, NULL));
    assert_int_equal(truncate(path, DISK_BYTES - 512), 0);
    assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = "b", .target = small}, &error));
    assert_error(error, VMF_ERROR_DISK_BASE);
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    VmfDiskOptions options = {.size = sizeof(options), .uri = small};
    g_autoptr(VmfDisk) user = vmf_disk_open("user", &options, NULL);
    assert_true(vmf_disk_acquire(user, NULL));
    assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = "b", .target = small}, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    start_writers(rig);
    let_write(rig, 50);
    stop_writers(rig);
    VmfBackup *backup = begin(rig, (VmfBackupOptions){.bytes_per_second = 1});
    assert_null(
        try_begin(rig, (VmfBackupOptions){.bitmap = "b", .full = true, .target = small}, &error)); /* one at a time */
    assert_error(error, VMF_ERROR_STATE);
    vmf_backup_free(backup);
    assert_true(vmf_disk_clear_bitmap(rig->disk, "b", NULL)); /* nobody has it */
}

static void put_base(const Rig *rig, const char *content, gssize length)
{
    g_autofree char *path = g_build_filename(rig->directory, "base", NULL);

    assert_true(g_file_set_contents(path, content, length, NULL));
}

static void assert_no_base(Rig *rig, const char *what)
{
    g_autofree char *base = uri_at(rig->directory, "base"), *path = g_build_filename(rig->directory, "base", NULL);
    g_autofree char *before = NULL, *after = NULL;
    GError *error = NULL;
    gsize length, length_after;

    assert_true(g_file_get_contents(path, &before, &length, NULL));
    assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = "daily", .target = base}, &error));
    if (!error || !strstr(error->message, what))
        fail_msg("expected '%s': %s", what, error ? error->message : "nothing");
    assert_error(error, VMF_ERROR_DISK_BASE);
    assert_true(g_file_get_contents(path, &after, &length_after, NULL));
    assert_true(length_after == length && memcmp(before, after, length) == 0);
}

/* Content and holes of its disk, all but what was written since; then it is brought up to date. */
static void test_base_of_another(void **state)
{
    Rig *rig = *state;
    g_autofree char *base = uri_at(rig->directory, "base"), *zeros = g_malloc0(DISK_BYTES), *content = NULL;
    uint64_t data[PLACE / 8];

    add_bitmap(rig->disk, "daily", 4096, true);
    start_writers(rig);
    let_write(rig, 2 * N_PLACES);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "daily", .full = true}));
    stop_writers(rig);
    fill(data, 1, 7);
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 8 * MIB, data, PLACE), 0);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "daily"}));
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 8 * MIB + 65536, data, PLACE), 0);
    content = read_file(rig->directory, "backup");
    put_base(rig, zeros, DISK_BYTES);
    assert_no_base(rig, "it differs at offset ");
    memset(zeros, 1, DISK_BYTES - AREA * N_WRITERS); /* all but what is a hole of the disk is right */
    memcpy(content + AREA * N_WRITERS, zeros, DISK_BYTES - AREA * N_WRITERS);
    put_base(rig, content, DISK_BYTES);
    assert_no_base(rig, "it differs at offset ");
    memset(content + AREA * N_WRITERS, 0, DISK_BYTES - AREA * N_WRITERS);
    content[5] ^= 1; /* the first of them is always looked at */
    put_base(rig, content, DISK_BYTES);
    assert_no_base(rig, "it differs at offset 5,");
    content[5] ^= 1;
    put_base(rig, content, DISK_BYTES - 512);
    assert_no_base(rig, "it is no base of this disk");
    memset(content + 8 * MIB + 65536, 9, 65536); /* what is dirty may be anything */
    put_base(rig, content, DISK_BYTES);
    assert_int_equal(dirty_bytes(rig->disk, "daily"), 4096);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "daily", .target = base}));
    assert_int_equal(dirty_bytes(rig->disk, "daily"), 0);
    g_autofree char *disk = read_file(rig->directory, "disk"), *copy = read_file(rig->directory, "base");
    assert_memory_equal(disk, copy, DISK_BYTES);
}

/* What it has is not all that was written: nothing is known of the rest. */
static void test_base_of_a_bitmap_that_does_not_record(void **state)
{
    Rig *rig = *state;
    uint64_t data[PLACE / 8];

    fill(data, 1, 7);
    add_bitmap(rig->disk, "b", 4096, false);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "b", .full = true}));
    assert_true(vmf_disk_enable_bitmap(rig->disk, "b", false, NULL));
    assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 0, data, PLACE), 0);
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = "b"}));
}

/* A file that is there under the target's name is replaced, but only where it is nobody's disk, and it stays nobody's. */
static void test_full_onto_a_disk_in_use(void **state)
{
    Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "backup", NULL), *uri = uri_at(rig->directory, "backup");
    VmfDiskOptions writer = {.size = sizeof(writer), .uri = uri}, reader = {.size = sizeof(reader), .uri = uri, .read_only = true};
    GError *error = NULL;
    struct stat before, after;

    assert_true(g_file_set_contents(path, "x", 1, NULL));
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    assert_int_equal(stat(path, &before), 0);
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(VmfDisk) user = vmf_disk_open("user", i ? &reader : &writer, NULL);
        assert_true(vmf_disk_acquire(user, NULL));
        assert_null(try_begin(rig, (VmfBackupOptions){.bitmap = NULL}, &error));
        assert_error(error, VMF_ERROR_LOCKED);
        assert_null(try_begin(rig, (VmfBackupOptions){.force = true}, &error));
        assert_error(error, VMF_ERROR_LOCKED);
        assert_false(exists(rig, "backup.partial"));
        assert_int_equal(stat(path, &after), 0);
        assert_true(before.st_ino == after.st_ino && after.st_size == (off_t)DISK_BYTES);
    }
    start_writers(rig);
    let_write(rig, 50);
    stop_writers(rig);
    VmfBackup *backup = begin(rig, (VmfBackupOptions){.bytes_per_second = 1});
    g_autoptr(VmfDisk) user = vmf_disk_open("user", &writer, NULL);
    assert_false(vmf_disk_acquire(user, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    vmf_backup_free(backup);
    assert_true(vmf_disk_acquire(user, NULL) && vmf_disk_release(user, NULL));
    assert_done(begin(rig, (VmfBackupOptions){.bitmap = NULL}));
    check_backup(rig);
}

static bool acquire_there(VmfDisk **user, const char *uri)
{
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = MIB};

    *user = vmf_disk_open("user", &options, NULL);
    return vmf_disk_acquire(*user, NULL);
}

/* What takes the target's name while a backup is under way is looked at as if it had been there. */
static void test_target_that_comes_in_between(void **state)
{
    Rig *rig = *state;
    g_autofree uint8_t *data = g_malloc0(DISK_BYTES);
    g_autofree char *path = g_build_filename(rig->directory, "backup", NULL), *uri = uri_at(rig->directory, "backup");
    struct stat status;

    memset(data, 7, DISK_BYTES);
    for (unsigned round = 0; round < 3; round++) {
        g_autoptr(VmfDisk) user = NULL;
        GError *error = NULL;

        assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 0, data, DISK_BYTES), 0);
        if (round == 1)
            assert_true(g_file_set_contents(path, "x", 1, NULL));
        VmfBackup *backup = begin(rig, (VmfBackupOptions){.bytes_per_second = 1});
        if (round == 1)
            assert_int_equal(unlink(path), 0);
        if (round < 2)
            assert_true(acquire_there(&user, uri));
        else
            assert_true(g_file_set_contents(path, "x", 1, NULL));
        assert_int_equal(write_to(rig->disk, VMF_DISK_WRITE, 0, data, DISK_BYTES), 0); /* all is copied ahead of it */
        assert_true(vmf_backup_wait(backup, &error) == (round == 2));
        vmf_backup_free(backup);
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(status.st_size, round < 2 ? MIB : DISK_BYTES);
        assert_false(exists(rig, "backup.partial"));
        if (round < 2)
            assert_error(error, VMF_ERROR_LOCKED);
        assert_int_equal(unlink(path), 0);
    }
}

/* ---- killed in between ------------------------------------------------------------------------------------------- */

static void clean(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->bitmaps->admin);
    assert_true(vmf_bitmaps_clean(disk->bitmaps, NULL));
    pthread_mutex_unlock(&disk->bitmaps->admin);
}

/* Writes and backs up until it is killed. @said gets an octet when the chain has a base. */
static void child_works(const char *directory, int said, unsigned round)
{
    Rig rig = {.directory = (char *)directory, .disk = open_disk(directory)};
    VmfBackup *backup;

    for (unsigned i = 0; i < N_WRITERS; i++)
        atomic_store(&rig.writers[i].begun, round * 1000000u);
    if (round == 0) {
        add_bitmap(rig.disk, "daily", 65536, true);
        assert_done(begin(&rig, (VmfBackupOptions){.bitmap = "daily", .full = true}));
    }
    start_writers(&rig);
    for (unsigned n = 0;; n++) {
        if (n == 0)
            write_once(&rig, round % 16);
        backup = begin(&rig, (VmfBackupOptions){.bitmap = "daily", .bytes_per_second = 64 * MIB});
        clean(rig.disk); /* now only the file's bits speak for what was written once */
        if (n == 0)
            (void)!write(said, "x", 1);
        vmf_backup_wait(backup, NULL);
        vmf_backup_free(backup);
    }
}

static int child_checks(const char *directory)
{
    Rig rig = {.directory = (char *)directory, .disk = open_disk(directory)};
    g_autofree char *disk = NULL, *copy = NULL;

    assert_done(begin(&rig, (VmfBackupOptions){.bitmap = "daily"}));
    vmf_disk_free(rig.disk);
    disk = read_file(directory, "disk");
    copy = read_file(directory, "backup");
    return memcmp(disk, copy, DISK_BYTES) == 0 ? 0 : 3;
}

static void kill_one(const char *directory, unsigned round, unsigned after_us)
{
    int ends[2], status;
    char c;

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        child_works(directory, ends[1], round);
        _exit(1);
    }
    assert_int_equal(read(ends[0], &c, 1), 1);
    g_usleep(after_us);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(ends[0]);
    close(ends[1]);
    pid = fork();
    if (pid == 0)
        _exit(child_checks(directory));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("round %u, killed after %u us: %d", round, after_us, status);
}

/* After each kill one more incremental backup makes base and disk equal, though nobody knows where the last one was. */
static void test_killed_in_between(void **state)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(5);
    char *directory = directory_new(g_get_tmp_dir());

    for (unsigned round = 0; round < 20; round++)
        kill_one(directory, round, (unsigned)g_rand_int_range(random, 0, 80000));
    directory_remove(directory);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        cmocka_unit_test(test_killed_in_between), /* forks: while there are no threads */
        rig_test(test_full_backup_shows_one_moment),
        rig_test(test_chain),
        rig_test(test_chain_of_a_persistent_bitmap),
        rig_test(test_guest_goes_first),
        rig_test(test_holes_cost_nothing),
        rig_test(test_released_disk_ends_its_backup),
        rig_test(test_unreadable_disk_fails_the_backup_alone),
        rig_test(test_targets_that_cannot_be),
        rig_test(test_base_of_another),
        rig_test(test_base_of_a_bitmap_that_does_not_record),
        rig_test(test_full_onto_a_disk_in_use),
        rig_test(test_target_that_comes_in_between),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
