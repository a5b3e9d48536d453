/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Backups to a server that falls silent, in the middle or at the end: whoever cancels does not wait for it. */
#include "stream/test-storage-rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <vmferry/backup.h>

#include "block/disk.h"
#include "stream/clock.h"
#include "stream/test-nbd-server.h"

#define DISK_BYTES (8 * MIB)
#define FOR_EVER_NS (24 * 3600 * VMF_NS_PER_S)
#define SHORT_NS (VMF_NS_PER_S / 5)

typedef struct {
    char *directory;
    VmfDisk *disk;
    VmfTestNbdServer *server;
    uint16_t silent_from; /* type of the first command that is not answered */
    atomic_bool silent;
} Rig;

static bool answer(void *opaque, const VmfTestNbdCommand *command)
{
    Rig *rig = opaque;
    uint8_t more[4096];

    if (command->type != rig->silent_from) {
        vmf_test_nbd_tell_done(command);
        return true;
    }
    atomic_store(&rig->silent, true);
    while (recv(command->fd, more, sizeof(more), 0) > 0)
        continue;
    return false;
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    assert_null(error);
}

static void write_all(VmfDisk *disk)
{
    g_autofree uint8_t *data = g_malloc(DISK_BYTES);
    struct iovec iov = {memset(data, 7, DISK_BYTES), DISK_BYTES};
    VmfDiskRequest request = {
        .operation = VMF_DISK_WRITE, .length = DISK_BYTES, .iov = &iov, .n_iov = 1, .done = on_done};

    vmf_disk_submit(disk, &request);
    vmf_disk_drain(disk);
}

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);
    VmfBitmapOptions bitmap = {.size = sizeof(bitmap), .name = "daily", .granularity_bytes = 65536};

    rig->directory = directory_new(g_get_tmp_dir());
    g_autofree char *uri = uri_at(rig->directory, "disk");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = DISK_BYTES};
    rig->disk = vmf_disk_open("root", &options, NULL);
    assert_true(rig->disk && vmf_disk_acquire(rig->disk, NULL) && vmf_disk_add_bitmap(rig->disk, &bitmap, NULL));
    write_all(rig->disk);
    rig->silent_from = VMF_TEST_NBD_WRITE;
    rig->server = vmf_test_nbd_server_new_writable(DISK_BYTES, answer, rig);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_test_nbd_server_free(rig->server);
    vmf_disk_free(rig->disk);
    directory_remove(rig->directory);
    g_free(rig);
    return 0;
}

static VmfBackup *begin(const Rig *rig, int64_t silence_ns)
{
    VmfBackupOptions options = {.size = sizeof(options),
                                .target = vmf_test_nbd_server_uri(rig->server),
                                .bitmap = "daily",
                                .full = true,
                                .silence_ns = silence_ns};
    g_autoptr(GError) error = NULL;
    VmfBackup *backup = vmf_backup_begin(rig->disk, &options, &error);

    if (!backup)
        fail_msg("%s", error->message);
    return backup;
}

static void await_silence(Rig *rig)
{
    while (!atomic_load(&rig->silent))
        g_usleep(1000);
}

static void assert_ended(Rig *rig, VmfBackup *backup, VmfErrorCode code)
{
    uint64_t offset, length;
    GError *error = NULL;

    assert_false(vmf_backup_wait(backup, &error));
    assert_error(error, code);
    vmf_backup_free(backup);
    assert_true(vmf_disk_next_dirty(rig->disk, "daily", 0, &offset, &length, NULL));
    assert_true(offset == 0 && length == DISK_BYTES);
}

static void test_cancelled_in_the_middle(void **state)
{
    Rig *rig = *state;
    VmfBackup *backup = begin(rig, FOR_EVER_NS);

    await_silence(rig);
    vmf_backup_cancel(backup);
    assert_ended(rig, backup, VMF_ERROR_CANCELLED);
    write_all(rig->disk);
}

static void test_cancelled_at_the_end(void **state)
{
    Rig *rig = *state;

    rig->silent_from = VMF_TEST_NBD_FLUSH;
    VmfBackup *backup = begin(rig, FOR_EVER_NS);
    await_silence(rig);
    vmf_backup_cancel(backup);
    assert_ended(rig, backup, VMF_ERROR_CANCELLED);
}

static void test_released_disk(void **state)
{
    Rig *rig = *state;
    VmfBackup *backup = begin(rig, FOR_EVER_NS);

    await_silence(rig);
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_ended(rig, backup, VMF_ERROR_CANCELLED);
    assert_true(vmf_disk_acquire(rig->disk, NULL));
}

/* As a machine does that quits. */
static void test_freed(void **state)
{
    Rig *rig = *state;
    VmfBackup *backup = begin(rig, FOR_EVER_NS);

    await_silence(rig);
    vmf_backup_free(backup);
}

static void test_given_up_by_itself(void **state)
{
    Rig *rig = *state;

    assert_ended(rig, begin(rig, SHORT_NS), VMF_ERROR_IO);
    assert_true(atomic_load(&rig->silent));
}

static void test_server_that_answers(void **state)
{
    Rig *rig = *state;
    uint64_t offset, length;

    rig->silent_from = VMF_TEST_NBD_STATUS;
    VmfBackup *backup = begin(rig, 0);
    g_autoptr(GError) error = NULL;
    assert_good(vmf_backup_wait(backup, &error), error);
    vmf_backup_free(backup);
    assert_true(vmf_disk_next_dirty(rig->disk, "daily", 0, &offset, &length, NULL) && length == 0);
}

typedef struct {
    Rig *rig;
    char *uri;
    VmfFlag cancelled;
    GError *error;
} Beginning;

static void *begin_main(void *opaque)
{
    Beginning *beginning = opaque;
    VmfBackupOptions options = {
        .size = sizeof(options), .target = beginning->uri, .bitmap = "daily", .full = true, .cancelled = &beginning->cancelled};

    assert_null(vmf_backup_begin(beginning->rig->disk, &options, &beginning->error));
    return NULL;
}

/* The server takes the connection, and that is all. The guest's writes do not wait for it. */
static void test_cancelled_at_the_beginning(void **state)
{
    Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "silent", NULL), *uri = g_strconcat("nbd:unix:", path, NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    Beginning beginning = {.rig = rig, .uri = uri};
    pthread_t thread;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, begin_main, &beginning), 0);
    int connection = accept(fd, NULL, NULL);
    write_all(rig->disk);
    atomic_store(&beginning.cancelled, true);
    pthread_join(thread, NULL);
    assert_error(beginning.error, VMF_ERROR_CANCELLED);
    close(connection);
    close(fd);
    write_all(rig->disk);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_cancelled_at_the_beginning),
        rig_test(test_cancelled_in_the_middle), rig_test(test_cancelled_at_the_end), rig_test(test_released_disk), rig_test(test_freed),
        rig_test(test_given_up_by_itself),      rig_test(test_server_that_answers),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
