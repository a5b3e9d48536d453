/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks on servers that fall silent: whoever gives such a disk up does not wait for them. */
#include "stream/test-storage-rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "block/disk.h"
#include "block/receive.h"
#include "stream/test-nbd-server.h"

#define DISK_BYTES (1 * MIB)

typedef struct {
    VmfDisk *disk;
    VmfTestNbdServer *server;
    atomic_bool silent;
    uint8_t data[4096];
    struct iovec iov;
    VmfDiskRequest request;
    atomic_int code; /* of its end */
} Rig;

/* From the first command on. */
static bool answer(void *opaque, const VmfTestNbdCommand *command)
{
    Rig *rig = opaque;
    uint8_t more[4096];

    atomic_store(&rig->silent, true);
    while (recv(command->fd, more, sizeof(more), 0) > 0)
        continue;
    return false;
}

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->server = vmf_test_nbd_server_new_writable(DISK_BYTES, answer, rig);
    VmfDiskOptions options = {
        .size = sizeof(options), .uri = vmf_test_nbd_server_uri(rig->server), .no_lock = true, .incoming = true};
    g_autoptr(GError) error = NULL;
    rig->disk = vmf_disk_open("root", &options, &error);
    assert_good(rig->disk, error);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_free(rig->disk);
    vmf_test_nbd_server_free(rig->server);
    g_free(rig);
    return 0;
}

static void give_up_once_silent(Rig *rig)
{
    while (!atomic_load(&rig->silent))
        g_usleep(1000);
    vmf_disk_give_up(rig->disk);
}

static void *receive_main(void *opaque)
{
    Rig *rig = opaque;
    GError *error = NULL;

    assert_false(vmf_disk_receive_begin(rig->disk, DISK_BYTES, VMF_RECEIVE_ANEW, &error));
    assert_error(error, VMF_ERROR_CANCELLED);
    return NULL;
}

/* A copy is to arrive, and what is there already is looked at. */
static void test_place_of_a_copy(void **state)
{
    Rig *rig = *state;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, receive_main, rig), 0);
    give_up_once_silent(rig);
    pthread_join(thread, NULL);
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Rig *rig = request->opaque;

    atomic_store(&rig->code, error ? (int)error->code : 0);
}

static void begin_write(Rig *rig)
{
    rig->iov = (struct iovec){rig->data, sizeof(rig->data)};
    rig->request = (VmfDiskRequest){
        .operation = VMF_DISK_WRITE, .length = sizeof(rig->data), .iov = &rig->iov, .n_iov = 1, .done = on_done, .opaque = rig};
    assert_true(vmf_disk_acquire(rig->disk, NULL));
    vmf_disk_submit(rig->disk, &rig->request);
}

static void test_request_under_way(void **state)
{
    Rig *rig = *state;

    begin_write(rig);
    give_up_once_silent(rig);
    vmf_disk_drain(rig->disk);
    assert_int_equal(atomic_load(&rig->code), VMF_ERROR_CANCELLED);
}

/* As by a machine that ends while its guest is taken back. */
static void test_acquired_once_more(void **state)
{
    Rig *rig = *state;

    vmf_disk_give_up(rig->disk);
    begin_write(rig);
    vmf_disk_drain(rig->disk);
    assert_int_equal(atomic_load(&rig->code), VMF_ERROR_CANCELLED);
}

/* As by a machine that ends. */
static void test_freed(void **state)
{
    Rig *rig = *state;

    begin_write(rig);
    give_up_once_silent(rig);
    g_clear_pointer(&rig->disk, vmf_disk_free);
    assert_int_equal(atomic_load(&rig->code), VMF_ERROR_CANCELLED);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_place_of_a_copy),
        rig_test(test_request_under_way),
        rig_test(test_acquired_once_more),
        rig_test(test_freed),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
