/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Backups of a disk whose own storage says nothing any more: the moment, in which no change is under way there, does not come. */
#include "stream/test-storage-rig.h"

#include <pthread.h>
#include <stdatomic.h>

#include <vmferry/backup.h>

#include "block/disk-private.h"
#include "tests/disk-door.h"

#define DISK_BYTES (1 * MIB)
#define PLACE 4096u

typedef struct {
    uint8_t data[PLACE];
    struct iovec iov;
    VmfDiskRequest request;
    atomic_bool ended;
} Write;

typedef struct {
    char *directory, *target;
    VmfDisk *disk;
    Door door;
    Write under_way, held; /* of a guest */
    bool onto_base;
    VmfFlag cancelled;
    pthread_t thread;
    VmfBackup *backup;
    GError *error;
} Rig;

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);
    VmfBitmapOptions bitmap = {.size = sizeof(bitmap), .name = "daily", .granularity_bytes = 65536};

    rig->directory = directory_new(g_get_tmp_dir());
    rig->target = uri_at(rig->directory, "backup");
    pthread_mutex_init(&rig->door.lock, NULL);
    pthread_cond_init(&rig->door.opened, NULL);
    g_autofree char *uri = uri_at(rig->directory, "disk");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = DISK_BYTES};
    rig->disk = vmf_disk_open("root", &options, NULL);
    assert_non_null(rig->disk);
    vmf_disk_set_wrap(rig->disk, put_door, &rig->door);
    assert_true(vmf_disk_acquire(rig->disk, NULL) && vmf_disk_add_bitmap(rig->disk, &bitmap, NULL));
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_free(rig->disk);
    pthread_cond_destroy(&rig->door.opened);
    pthread_mutex_destroy(&rig->door.lock);
    directory_remove(rig->directory);
    g_free(rig->target);
    g_free(rig);
    return 0;
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    assert_null(error);
    atomic_store(&((Write *)request->opaque)->ended, true);
}

static void begin_write(Rig *rig, Write *write, uint64_t offset)
{
    write->iov = (struct iovec){memset(write->data, 7, PLACE), PLACE};
    write->request = (VmfDiskRequest){.operation = VMF_DISK_WRITE,
                                      .offset = offset,
                                      .length = PLACE,
                                      .iov = &write->iov,
                                      .n_iov = 1,
                                      .done = on_done,
                                      .opaque = write};
    vmf_disk_submit(rig->disk, &write->request);
}

static void *begin_main(void *opaque)
{
    Rig *rig = opaque;
    VmfBackupOptions options = {
        .size = sizeof(options), .target = rig->target, .bitmap = "daily", .full = !rig->onto_base, .cancelled = &rig->cancelled};

    rig->backup = vmf_backup_begin(rig->disk, &options, &rig->error);
    return NULL;
}

static void await(VmfDisk *disk, bool (*come)(const VmfDisk *disk))
{
    for (bool has_come = false; !has_come; g_usleep(1000)) {
        pthread_mutex_lock(&disk->lock);
        has_come = come(disk);
        pthread_mutex_unlock(&disk->lock);
    }
}

static bool has_gate(const VmfDisk *disk)
{
    return disk->gate;
}

static bool holds_one(const VmfDisk *disk)
{
    return disk->held;
}

static bool has_a_request(const VmfDisk *disk)
{
    return disk->under_way > 0;
}

static bool has_both_in_storage(const VmfDisk *disk)
{
    return !disk->held && disk->changing == 2;
}

/* A write does not end, a backup waits for it in a thread of its own, and another write for the backup. */
static void begin_behind_a_write(Rig *rig)
{
    open_door(&rig->door, VMF_REQUEST_WRITE);
    begin_write(rig, &rig->under_way, 0);
    await_shut(&rig->door);
    assert_int_equal(pthread_create(&rig->thread, NULL, begin_main, rig), 0);
    await(rig->disk, has_gate);
    begin_write(rig, &rig->held, PLACE);
    await(rig->disk, holds_one);
}

static void assert_written(Rig *rig)
{
    open_door(&rig->door, 0);
    vmf_disk_drain(rig->disk);
    assert_true(atomic_load(&rig->under_way.ended) && atomic_load(&rig->held.ended));
}

static void test_given_up(void **state)
{
    Rig *rig = *state;
    uint64_t offset, length;

    begin_behind_a_write(rig);
    atomic_store(&rig->cancelled, true);
    pthread_join(rig->thread, NULL);
    assert_null(rig->backup);
    assert_error(rig->error, VMF_ERROR_CANCELLED);
    await(rig->disk, has_both_in_storage); /* which says nothing still */
    assert_false(has_gate(rig->disk));
    g_autofree char *partial = g_build_filename(rig->directory, "backup.partial", NULL);
    assert_false(g_file_test(partial, G_FILE_TEST_EXISTS));
    assert_written(rig);
    assert_true(vmf_disk_next_dirty(rig->disk, "daily", 0, &offset, &length, NULL));
    assert_true(offset == 0 && length == 65536);
}

/* After one that was given up, too. */
static void test_begins_once_it_can(void **state)
{
    Rig *rig = *state;

    test_given_up(state);
    atomic_store(&rig->cancelled, false);
    begin_behind_a_write(rig);
    assert_written(rig);
    pthread_join(rig->thread, NULL);
    assert_non_null(rig->backup);
    assert_good(vmf_backup_wait(rig->backup, &rig->error), rig->error);
    vmf_backup_free(rig->backup);
}

static void shut_door(Door *door)
{
    pthread_mutex_lock(&door->lock);
    door->shut = true;
    pthread_mutex_unlock(&door->lock);
}

/* What it asked of the disk's storage, to compare it with the base, ends when it does. */
static void test_given_up_while_it_looks_at_the_base(void **state)
{
    Rig *rig = *state;

    begin_main(rig);
    assert_good(rig->backup && vmf_backup_wait(rig->backup, &rig->error), rig->error);
    vmf_backup_free(rig->backup);
    shut_door(&rig->door);
    rig->onto_base = true;
    assert_int_equal(pthread_create(&rig->thread, NULL, begin_main, rig), 0);
    await(rig->disk, has_a_request);
    assert_false(has_gate(rig->disk));
    atomic_store(&rig->cancelled, true);
    pthread_join(rig->thread, NULL);
    assert_null(rig->backup);
    assert_error(rig->error, VMF_ERROR_CANCELLED);
    open_door(&rig->door, 0);
    vmf_disk_drain(rig->disk);
    atomic_store(&rig->cancelled, false);
    begin_main(rig);
    assert_good(rig->backup && vmf_backup_wait(rig->backup, &rig->error), rig->error);
    vmf_backup_free(rig->backup);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_given_up),
        rig_test(test_begins_once_it_can),
        rig_test(test_given_up_while_it_looks_at_the_base),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
