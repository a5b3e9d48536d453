/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/tee.h"

#include <pthread.h>
#include <unistd.h>

#include "stream/test-storage-rig.h"

#define DISK_BYTES (8ull * MIB)
#define SECTOR 512u

typedef struct {
    char *directory;
    VmfDisk *disk;
    VmfDiskDirty *dirty;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_begun, n_told, n_failed; /* under the lock */
} Rig;

typedef struct {
    VmfDiskRequest request;
    struct iovec iov;
    uint8_t *data;
} Write;

static void on_begun(void *opaque)
{
    Rig *rig = opaque;

    pthread_mutex_lock(&rig->lock);
    rig->n_begun++;
    pthread_cond_broadcast(&rig->changed);
    pthread_mutex_unlock(&rig->lock);
}

static void on_told(VmfDiskRequest *request, const GError *error)
{
    Rig *rig = request->opaque;

    pthread_mutex_lock(&rig->lock);
    rig->n_told++;
    rig->n_failed += error != NULL;
    pthread_cond_broadcast(&rig->changed);
    pthread_mutex_unlock(&rig->lock);
}

static void wait_until(Rig *rig, const unsigned *what, unsigned is)
{
    pthread_mutex_lock(&rig->lock);
    while (*what < is)
        pthread_cond_wait(&rig->changed, &rig->lock);
    assert_int_equal(*what, is);
    pthread_mutex_unlock(&rig->lock);
}

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->directory = directory_new(g_get_tmp_dir());
    g_autofree char *uri = uri_at(rig->directory, "disk");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = DISK_BYTES};
    pthread_mutex_init(&rig->lock, NULL);
    pthread_cond_init(&rig->changed, NULL);
    rig->disk = vmf_disk_open("root", &options, NULL);
    assert_true(vmf_disk_acquire(rig->disk, NULL));
    rig->dirty = vmf_disk_dirty_new(DISK_BYTES, NULL);
    vmf_disk_track(rig->disk, rig->dirty);
    assert_true(vmf_disk_tee_begin(rig->disk, rig->dirty, on_begun, rig));
    assert_false(vmf_disk_tee_begin(rig->disk, rig->dirty, on_begun, rig));
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_tee_end(rig->disk);
    vmf_disk_untrack(rig->disk, rig->dirty);
    vmf_disk_free(rig->disk);
    vmf_disk_dirty_free(rig->dirty);
    directory_remove(rig->directory);
    pthread_cond_destroy(&rig->changed);
    pthread_mutex_destroy(&rig->lock);
    g_free(rig);
    return 0;
}

static Write *submit(Rig *rig, uint64_t offset, uint64_t length, uint32_t version)
{
    Write *write = g_new0(Write, 1);

    write->data = g_malloc(length);
    pattern_fill(write->data, offset, length, version);
    write->iov = (struct iovec){write->data, length};
    write->request = (VmfDiskRequest){.operation = VMF_DISK_WRITE, .offset = offset, .length = length,
                                      .iov = &write->iov, .n_iov = 1, .done = on_told, .opaque = rig};
    vmf_disk_submit(rig->disk, &write->request);
    return write;
}

static void write_free(Write *write)
{
    g_free(write->data);
    g_free(write);
}

/* So many wait for the other end, or for a place. */
static void wait_for_waiting(Rig *rig, uint64_t n)
{
    VmfTeeInfo info;

    do {
        g_usleep(100);
        vmf_disk_tee_get_info(rig->disk, &info);
    } while (info.n_waiting != n);
}

/* Sends the next one as a piece of that number. */
static void send_next(Rig *rig, uint64_t number)
{
    VmfTeeChange change;

    assert_true(vmf_disk_tee_take(rig->disk, &change));
    vmf_disk_tee_number(rig->disk, change.op, number, 1);
    vmf_disk_tee_sent(rig->disk, change.op);
}

static void test_told_when_it_is_at_both_ends(void **state)
{
    Rig *rig = *state;
    Write *write = submit(rig, 4096, 4096, 1);
    VmfTeeChange change, none;
    VmfTeeInfo info;

    wait_until(rig, &rig->n_begun, 1);
    wait_for_waiting(rig, 1); /* it has landed here */
    assert_int_equal(rig->n_told, 0);
    assert_true(vmf_disk_tee_take(rig->disk, &change));
    assert_false(vmf_disk_tee_take(rig->disk, &none));
    assert_int_equal(change.offset, 4096);
    assert_int_equal(change.length, 4096);
    assert_pattern(change.data, 4096, 4096, 1);
    assert_ptr_not_equal(change.data, write->data);
    vmf_disk_tee_number(rig->disk, change.op, 7, 2);
    vmf_disk_tee_sent(rig->disk, change.op);
    assert_false(vmf_disk_tee_arrived(rig->disk, 9));
    assert_true(vmf_disk_tee_arrived(rig->disk, 8));
    assert_int_equal(rig->n_told, 0); /* half of it */
    assert_true(vmf_disk_tee_arrived(rig->disk, 7));
    wait_until(rig, &rig->n_told, 1);
    assert_false(vmf_disk_tee_arrived(rig->disk, 7));
    vmf_disk_tee_get_info(rig->disk, &info);
    assert_true(info.on && info.n_waiting == 0 && info.n_arrived == 2 && info.n_ended == 1);
    assert_int_equal(vmf_disk_dirty_count(rig->dirty), 0); /* it need not be sent again */
    write_free(write);
}

/* What goes to one place goes in one order on both ways. */
static void test_one_waits_for_the_other(void **state)
{
    Rig *rig = *state;
    Write *first = submit(rig, 0, 8192, 1), *second = submit(rig, 4096, 8192, 2), *other = submit(rig, MIB, SECTOR, 3);
    VmfTeeChange change;

    wait_until(rig, &rig->n_begun, 2); /* first and other */
    wait_for_waiting(rig, 3);
    send_next(rig, 0);
    send_next(rig, 1);
    assert_false(vmf_disk_tee_take(rig->disk, &change));
    assert_true(vmf_disk_tee_arrived(rig->disk, 1));
    wait_until(rig, &rig->n_told, 1);
    assert_false(vmf_disk_tee_take(rig->disk, &change));
    assert_true(vmf_disk_tee_arrived(rig->disk, 0));
    wait_until(rig, &rig->n_begun, 3);
    send_next(rig, 2);
    assert_true(vmf_disk_tee_arrived(rig->disk, 2));
    wait_until(rig, &rig->n_told, 3);
    vmf_disk_drain(rig->disk);
    write_free(first);
    write_free(second);
    write_free(other);
}

typedef struct {
    Rig *rig;
    _Atomic bool may_return, returned;
} Excluder;

static void *exclude(void *opaque)
{
    Excluder *excluder = opaque;

    vmf_disk_tee_exclude(excluder->rig->disk, 0, 65536);
    assert_true(excluder->may_return);
    excluder->returned = true;
    return NULL;
}

/* A place is free when all that began there was sent; then nothing begins there. */
static void test_a_place_is_kept(void **state)
{
    Rig *rig = *state;
    Excluder excluder = {.rig = rig};
    Write *before = submit(rig, 0, 4096, 1);
    pthread_t thread;
    VmfTeeChange change;

    wait_until(rig, &rig->n_begun, 1);
    wait_for_waiting(rig, 1);
    assert_int_equal(pthread_create(&thread, NULL, exclude, &excluder), 0);
    assert_true(vmf_disk_tee_take(rig->disk, &change));
    vmf_disk_tee_number(rig->disk, change.op, 0, 1);
    g_usleep(20000); /* it would be a bug's time, and costs nothing when it is too short */
    excluder.may_return = true;
    vmf_disk_tee_sent(rig->disk, change.op);
    pthread_join(thread, NULL);
    assert_true(excluder.returned);
    Write *held = submit(rig, 61440, 8192, 2), *beside = submit(rig, 65536, 4096, 3);
    wait_until(rig, &rig->n_begun, 2); /* beside */
    assert_true(vmf_disk_tee_arrived(rig->disk, 0));
    wait_until(rig, &rig->n_told, 1);
    send_next(rig, 1);
    assert_true(vmf_disk_tee_arrived(rig->disk, 1));
    wait_until(rig, &rig->n_told, 2);
    assert_int_equal(rig->n_begun, 2);
    vmf_disk_tee_include(rig->disk, 0, 65536);
    wait_until(rig, &rig->n_begun, 3);
    send_next(rig, 2);
    assert_true(vmf_disk_tee_arrived(rig->disk, 2));
    wait_until(rig, &rig->n_told, 3);
    write_free(before);
    write_free(held);
    write_free(beside);
}

/* Whatever was under way is told of, and is to be sent again. */
static void test_its_end_lets_go(void **state)
{
    Rig *rig = *state;
    Write *taken = submit(rig, 0, 4096, 1), *waiting = submit(rig, MIB, 4096, 2), *held;
    VmfTeeChange change;

    wait_until(rig, &rig->n_begun, 2);
    vmf_disk_tee_exclude(rig->disk, 4 * MIB, 65536);
    held = submit(rig, 4 * MIB, 4096, 3);
    wait_for_waiting(rig, 3);
    assert_true(vmf_disk_tee_take(rig->disk, &change));
    vmf_disk_tee_number(rig->disk, change.op, 0, 1);
    vmf_disk_tee_end(rig->disk);
    wait_until(rig, &rig->n_told, 3);
    assert_int_equal(rig->n_failed, 0);
    assert_pattern(change.data, 0, 4096, 1); /* who sends has it still */
    vmf_disk_tee_sent(rig->disk, change.op);
    assert_false(vmf_disk_tee_arrived(rig->disk, 0));
    assert_false(vmf_disk_tee_take(rig->disk, &change));
    vmf_disk_drain(rig->disk);
    assert_int_equal(vmf_disk_dirty_count(rig->dirty), 3);
    write_free(taken);
    write_free(waiting);
    write_free(held);
}

typedef struct {
    Rig *rig;
    bool sent, early; /* the disk's exclusion of the place came ahead of what was taken there */
    pthread_mutex_t lock;
} LateExcluder;

static void *exclude_late(void *opaque)
{
    LateExcluder *excluder = opaque;

    vmf_disk_tee_exclude(excluder->rig->disk, 0, 65536);
    pthread_mutex_lock(&excluder->lock);
    excluder->early = !excluder->sent;
    pthread_mutex_unlock(&excluder->lock);
    return NULL;
}

/* What was taken may be sent after the end. Who reads that place then would send what is newer ahead of it. */
static void test_a_place_is_kept_after_its_end(void **state)
{
    Rig *rig = *state;
    LateExcluder excluder = {.rig = rig, .lock = PTHREAD_MUTEX_INITIALIZER};
    Write *write = submit(rig, 4096, 4096, 1);
    pthread_t thread;
    VmfTeeChange change, again;

    wait_until(rig, &rig->n_begun, 1);
    assert_true(vmf_disk_tee_take(rig->disk, &change));
    vmf_disk_tee_number(rig->disk, change.op, 0, 1);
    vmf_disk_tee_end(rig->disk);
    wait_until(rig, &rig->n_told, 1);
    write_free(write);
    vmf_disk_tee_exclude(rig->disk, MIB, 65536); /* another place is free */
    assert_int_equal(pthread_create(&thread, NULL, exclude_late, &excluder), 0);
    g_usleep(20000); /* it would be a bug's time, and costs nothing when it is too short */
    pthread_mutex_lock(&excluder.lock);
    excluder.sent = true;
    pthread_mutex_unlock(&excluder.lock);
    vmf_disk_tee_sent(rig->disk, change.op);
    pthread_join(thread, NULL);
    assert_false(excluder.early);
    assert_false(vmf_disk_tee_take(rig->disk, &again));
    vmf_disk_tee_exclude(rig->disk, 0, 65536); /* nobody waits any more */
}

static void submit_nothing(Rig *rig, VmfDiskRequest *request, VmfDiskOperation operation, uint64_t offset)
{
    *request = (VmfDiskRequest){.operation = operation, .offset = offset, .done = on_told, .opaque = rig};
    vmf_disk_submit(rig->disk, request);
}

/* Nothing is at both ends already, also in the middle of what is not. */
static void test_nothing_ends_at_once(void **state)
{
    Rig *rig = *state;
    Write *write = submit(rig, 0, 8192, 1), *last;
    VmfDiskRequest zero, discard;
    VmfTeeChange change;

    wait_until(rig, &rig->n_begun, 1);
    submit_nothing(rig, &zero, VMF_DISK_ZERO, 4096);
    submit_nothing(rig, &discard, VMF_DISK_DISCARD, MIB);
    last = submit(rig, 2 * MIB, 4096, 2);
    wait_until(rig, &rig->n_begun, 2); /* the writes alone */
    wait_until(rig, &rig->n_told, 2);
    send_next(rig, 0);
    assert_true(vmf_disk_tee_take(rig->disk, &change));
    assert_true(change.offset == 2 * MIB && change.length == 4096);
    vmf_disk_tee_number(rig->disk, change.op, 1, 1);
    vmf_disk_tee_sent(rig->disk, change.op);
    assert_true(vmf_disk_tee_arrived(rig->disk, 0) && vmf_disk_tee_arrived(rig->disk, 1));
    wait_until(rig, &rig->n_told, 4);
    assert_int_equal(rig->n_failed, 0);
    vmf_disk_drain(rig->disk);
    write_free(write);
    write_free(last);
}

/* A disk that is released waits for nobody. */
static void test_release_ends_it(void **state)
{
    Rig *rig = *state;
    Write *write = submit(rig, 0, 4096, 1);
    VmfTeeInfo info;

    wait_until(rig, &rig->n_begun, 1);
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_int_equal(rig->n_told, 1);
    vmf_disk_tee_get_info(rig->disk, &info);
    assert_false(info.on);
    assert_true(vmf_disk_dirty_is_set(rig->dirty, 0));
    write_free(write);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_told_when_it_is_at_both_ends), rig_test(test_one_waits_for_the_other),
        rig_test(test_a_place_is_kept),              rig_test(test_its_end_lets_go),
        rig_test(test_a_place_is_kept_after_its_end), rig_test(test_nothing_ends_at_once),
        rig_test(test_release_ends_it),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
