/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Storage on NBD servers: nbdkit, whose filters make servers of any kind, and QEMU's. What is not installed is skipped,
 * and said. */
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE ((uint64_t)16 * MIB)

typedef struct {
    char *directory;
    char *uri;
    pid_t pid;
} Server;

/* ---- servers ---------------------------------------------------------------------------------------------------- */

static bool is_installed(const char *program)
{
    g_autofree char *path = g_find_program_in_path(program);

    return path != NULL;
}

static bool answers(const char *uri)
{
    VmfStorageOptions options = {.mode = VMF_STORAGE_READ};
    g_autoptr(VmfStorage) storage = vmf_storage_open(uri, &options, NULL);

    return storage != NULL;
}

/* A test that fails leaves no server behind. */
static void die_with_parent(void *unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static pid_t run(const char *line)
{
    g_auto(GStrv) argv = g_strsplit(line, " ", -1);
    g_autoptr(GError) error = NULL;
    pid_t pid;

    assert_good(g_spawn_async(NULL, argv, NULL,
                              G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDERR_TO_DEV_NULL,
                              die_with_parent, NULL, &pid, &error),
                error);
    return pid;
}

/* Runs @command, in which %s stands for the socket, and waits until it answers. */
static Server *server_new(const char *command)
{
    Server *server = g_new0(Server, 1);
    g_autofree char *socket = NULL, *line = NULL;
    g_autofree char *program = g_strndup(command, strcspn(command, " "));

    if (!is_installed(program)) {
        g_free(server);
        printf("skipped: %s is not installed\n", program);
        skip();
    }
    server->directory = directory_new("/tmp");
    socket = g_build_filename(server->directory, "socket", NULL);
    server->uri = g_strconcat("nbd:unix:", socket, NULL);
    line = g_strdup_printf(command, socket);
    server->pid = run(line);
    while (!answers(server->uri)) {
        assert_int_equal(waitpid(server->pid, NULL, WNOHANG), 0);
        g_usleep(10000);
    }
    return server;
}

static void server_free(Server *server)
{
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    directory_remove(server->directory);
    g_free(server->uri);
    g_free(server);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Server, server_free)

static VmfStorage *open_at(const Server *server, VmfStorageMode mode)
{
    VmfStorageOptions options = {.mode = mode};
    g_autoptr(GError) error = NULL;
    VmfStorage *storage = vmf_storage_open(server->uri, &options, &error);

    assert_good(storage, error);
    assert_string_equal(vmf_storage_backend(storage), "nbd");
    return storage;
}

static VmfStorageQueue *queue_of(VmfStorage *storage, unsigned depth)
{
    g_autoptr(GError) error = NULL;
    VmfStorageQueue *queue = vmf_storage_queue_new(storage, depth, &error);

    assert_good(queue, error);
    return queue;
}

/* ---- what is written is read, by one or more threads ------------------------------------------------------------ */

typedef struct {
    VmfStorage *storage;
    uint64_t from, to;
    char *failed; /* what went wrong: cmocka's assertions are the main thread's */
} Range;

static void note_failure(Range *range, Job *job, bool same)
{
    if (!range->failed && (job->error || !same))
        range->failed = g_strdup(job->error ? job->error->message : "what was read is not what was written");
}

static bool holds_pattern(const Job *job, uint64_t offset, size_t length)
{
    g_autofree uint8_t *expected = g_malloc(length);

    pattern_fill(expected, offset, length, 1);
    return memcmp(job->data, expected, length) == 0;
}

#define STEP (64 * KIB)

static void range_pass(Range *range, VmfStorageQueue *queue, VmfRequestKind kind, Job **jobs)
{
    for (uint64_t at = range->from; at < range->to; at += 4 * STEP) {
        for (unsigned i = 0; i < 4; i++) {
            if (kind == VMF_REQUEST_WRITE)
                pattern_fill(jobs[i]->data, at + i * STEP, STEP, 1);
            job_submit(jobs[i], queue, kind, at + i * STEP, STEP, 1 + i * 5, 512);
        }
        vmf_storage_wait(queue, 0);
        for (unsigned i = 0; i < 4; i++)
            note_failure(range, jobs[i], kind == VMF_REQUEST_WRITE || holds_pattern(jobs[i], at + i * STEP, STEP));
    }
}

static void *write_and_read(void *opaque)
{
    Range *range = opaque;
    VmfStorageQueue *queue = queue_of(range->storage, 3);
    Job *jobs[4];

    for (unsigned i = 0; i < 4; i++)
        jobs[i] = job_new(STEP);
    range_pass(range, queue, VMF_REQUEST_WRITE, jobs);
    range_pass(range, queue, VMF_REQUEST_READ, jobs);
    for (unsigned i = 0; i < 4; i++)
        job_free(jobs[i]);
    vmf_storage_queue_free(queue);
    return NULL;
}

static void exercise(VmfStorage *storage, unsigned n_threads)
{
    pthread_t threads[4];
    Range ranges[4];
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *all = g_malloc(SIZE);

    for (unsigned i = 0; i < n_threads; i++) {
        ranges[i] = (Range){storage, i * SIZE / n_threads, (i + 1) * SIZE / n_threads, NULL};
        assert_int_equal(pthread_create(&threads[i], NULL, write_and_read, &ranges[i]), 0);
    }
    for (unsigned i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        if (ranges[i].failed)
            fail_msg("%s", ranges[i].failed);
    }
    assert_good(vmf_storage_flush(storage, &error), error);
    assert_good(vmf_storage_read(storage, 0, all, SIZE, &error), error);
    assert_pattern(all, 0, SIZE, 1);
}

static void test_nbdkit(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -U %s memory 16M");
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_CREATE);
    g_autoptr(GError) error = NULL;

    assert_true(vmf_storage_is_in_place(storage));
    assert_true(vmf_storage_wants_stable_writes(storage));
    assert_int_equal(vmf_storage_size(storage), SIZE);
    assert_int_equal(vmf_storage_alignment(storage), 1);
    exercise(storage, 4);
    check_scattered(storage, 1000);
    assert_good(vmf_storage_set_size(storage, SIZE, &error), error);
    assert_good(vmf_storage_set_size(storage, 4096, &error), error);
    assert_int_equal(vmf_storage_size(storage), SIZE);
    assert_good(vmf_storage_preallocate(storage, 0, SIZE, &error), error);
    assert_good(vmf_storage_commit(storage, &error), error);
    assert_false(vmf_storage_set_size(storage, SIZE + 1, &error));
    assert_error(error, VMF_ERROR_NO_SPACE);
}

/* A server whose connections need not agree: all queues share one, in any number of threads. */
static void test_one_connection(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -U %s --filter=multi-conn --filter=delay memory 16M "
                                          "multi-conn-mode=disable delay-write=1ms");
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_MODIFY);

    exercise(storage, 4);
}

/* ---- zeros and extents ------------------------------------------------------------------------------------------ */

static void assert_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind kind,
                          uint64_t extent_length)
{
    g_autoptr(GError) error = NULL;
    VmfExtentKind found;
    uint64_t found_length;

    assert_good(vmf_storage_extent(storage, offset, length, &found, &found_length, &error), error);
    assert_int_equal(found, kind);
    assert_int_equal(found_length, extent_length);
}

static void zero_the_middle(VmfStorage *storage, bool fua)
{
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 4);
    g_autoptr(Job) job = job_new(MIB);

    pattern_fill(job->data, 0, MIB, 1);
    assert_null(job_run(job, queue, VMF_REQUEST_WRITE, 0, MIB));
    job_submit(job, queue, VMF_REQUEST_FLUSH, 0, 0, 1, 1);
    vmf_storage_wait(queue, 0);
    assert_null(job->error);
    job->request.kind = VMF_REQUEST_ZERO;
    job->request.fua = fua;
    job->request.offset = 256 * KIB;
    job->request.length = 512 * KIB;
    job->pending = true;
    vmf_storage_submit(queue, &job->request);
    vmf_storage_wait(queue, 0);
    assert_null(job->error);
    assert_null(job_run(job, queue, VMF_REQUEST_READ, 0, MIB));
    assert_pattern(job->data, 0, 256 * KIB, 1);
    assert_zeros(job->data + 256 * KIB, 512 * KIB);
    assert_pattern(job->data + 768 * KIB, 768 * KIB, 256 * KIB, 1);
}

/* Requests are cut to what the server takes, and asked for in its units. */
static void test_small_commands(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -U %s --filter=blocksize-policy --filter=nozero memory 16M "
                                          "blocksize-minimum=512 blocksize-preferred=4K blocksize-maximum=24K "
                                          "blocksize-error-policy=error");
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_MODIFY);
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 2);
    g_autoptr(Job) job = job_new(MIB);

    assert_int_equal(vmf_storage_alignment(storage), 512);
    exercise(storage, 2);
    assert_non_null(job_run(job, queue, VMF_REQUEST_READ, 8, 512));
    assert_error(job->error, VMF_ERROR_IO);
    job_submit(job, queue, VMF_REQUEST_READ, 512, MIB, 16, 512);
    vmf_storage_wait(queue, 0);
    assert_null(job->error);
    assert_pattern(job->data, 512, MIB, 1);
    check_scattered(storage, 4096);
    zero_the_middle(storage, true);
}

static void test_zeros(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -U %s memory 16M");
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_MODIFY);

    assert_extent(storage, 0, SIZE, VMF_EXTENT_ZERO, SIZE);
    zero_the_middle(storage, true);
    assert_extent(storage, 0, SIZE, VMF_EXTENT_DATA, 256 * KIB);
    assert_extent(storage, 1000, 5000, VMF_EXTENT_DATA, 5000);
    assert_extent(storage, 256 * KIB, SIZE - 256 * KIB, VMF_EXTENT_ZERO, 512 * KIB);
    assert_extent(storage, 300 * KIB, 64 * KIB, VMF_EXTENT_ZERO, 64 * KIB);
    assert_extent(storage, MIB, SIZE - MIB, VMF_EXTENT_ZERO, SIZE - MIB);
}

/* A server that can do nothing but read and write. */
static void test_plain_server(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -U %s --filter=nozero --filter=noextents --filter=fua "
                                          "memory 16M");
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_MODIFY);

    zero_the_middle(storage, false);
    zero_the_middle(storage, true);
    assert_extent(storage, 0, SIZE, VMF_EXTENT_DATA, SIZE);
}

/* ---- trouble ---------------------------------------------------------------------------------------------------- */

static void test_errors(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -U %s --filter=error memory 16M error-pread=EIO "
                                          "error-pread-rate=100%% error-pwrite=ENOSPC error-pwrite-rate=50%%");
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_MODIFY);
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 8);
    g_autoptr(GError) error = NULL;
    Job *jobs[64];
    unsigned full = 0;

    for (unsigned i = 0; i < 64; i++) {
        jobs[i] = job_new(4096);
        job_submit(jobs[i], queue, VMF_REQUEST_WRITE, i * 4096, 4096, 1, 1);
    }
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 64; i++) {
        full += jobs[i]->error != NULL;
        if (jobs[i]->error)
            assert_error(jobs[i]->error, VMF_ERROR_NO_SPACE);
    }
    assert_true(full > 0 && full < 64);
    for (unsigned i = 0; i < 64; i++)
        job_submit(jobs[i], queue, VMF_REQUEST_READ, i * 4096, 4096, 2, 1);
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 64; i++) {
        assert_error(jobs[i]->error, VMF_ERROR_IO);
        job_free(jobs[i]);
    }
    assert_false(vmf_storage_read(storage, 0, &full, 4, &error));
    assert_error(error, VMF_ERROR_IO);
}

/* Requests at a server that answers after a minute, if ever. */
static VmfStorageQueue *hanging_requests(VmfStorage *storage, Job **jobs)
{
    VmfStorageQueue *queue = queue_of(storage, 4);

    for (unsigned i = 0; i < 4; i++) {
        jobs[i] = job_new(STEP);
        job_submit(jobs[i], queue, VMF_REQUEST_READ, i * STEP, STEP, 1, 1);
    }
    vmf_storage_poll(queue);
    assert_int_equal(vmf_storage_under_way(queue), 4);
    return queue;
}

static void assert_all_failed(VmfStorageQueue *queue, Job **jobs, VmfErrorCode code)
{
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_error(jobs[i]->error, code);
        job_free(jobs[i]);
    }
}

#define HANGS "nbdkit -f -U %s --filter=delay memory 16M delay-read=60"

static void test_server_dies(void **state)
{
    g_autoptr(Server) server = server_new(HANGS);
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_READ);
    g_autoptr(GError) error = NULL;
    g_autoptr(Job) late = job_new(512);
    VmfExtentKind kind;
    uint64_t length;
    Job *jobs[4];
    VmfStorageQueue *queue = hanging_requests(storage, jobs);

    kill(server->pid, SIGKILL);
    assert_all_failed(queue, jobs, VMF_ERROR_IO);
    assert_non_null(job_run(late, queue, VMF_REQUEST_READ, 0, 512));
    assert_error(late->error, VMF_ERROR_IO);
    assert_false(vmf_storage_read(storage, 0, jobs, 8, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(vmf_storage_extent(storage, 0, 512, &kind, &length, &error));
    assert_error(error, VMF_ERROR_IO);
    vmf_storage_queue_free(queue);
}

static void *shut_down(void *opaque)
{
    g_usleep(50000); /* the other thread waits by now, or will: it makes no difference to the outcome */
    vmf_storage_shutdown(opaque);
    return NULL;
}

static void test_shutdown(void **state)
{
    g_autoptr(Server) server = server_new(HANGS);
    g_autoptr(VmfStorage) storage = open_at(server, VMF_STORAGE_READ);
    g_autoptr(GError) error = NULL;
    Job *jobs[4];
    VmfStorageQueue *queue = hanging_requests(storage, jobs);
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, shut_down, storage), 0);
    assert_all_failed(queue, jobs, VMF_ERROR_CANCELLED);
    pthread_join(thread, NULL);
    assert_false(vmf_storage_read(storage, 0, jobs, 8, &error));
    assert_error(error, VMF_ERROR_CANCELLED);
    vmf_storage_queue_free(queue);
}

static void *cancel(void *opaque)
{
    g_usleep(50000);
    atomic_store((_Atomic bool *)opaque, true);
    return NULL;
}

/* A socket on which nobody ever says anything, and the URI of an export there. */
static int silent_socket(const char *directory, char **uri)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_snprintf(address.sun_path, sizeof(address.sun_path), "%s/silent", directory);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 1), 0);
    *uri = g_strconcat("nbd:unix:", address.sun_path, NULL);
    return fd;
}

static void test_opening_is_cancelled(void **state)
{
    _Atomic bool cancelled = false;
    VmfStorageOptions options = {.mode = VMF_STORAGE_READ, .cancelled = &cancelled};
    g_autofree char *directory = directory_new("/tmp"), *uri = NULL;
    g_autoptr(GError) error = NULL;
    int fd = silent_socket(directory, &uri);
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, cancel, &cancelled), 0);
    assert_null(vmf_storage_open(uri, &options, &error));
    assert_error(error, VMF_ERROR_CANCELLED);
    pthread_join(thread, NULL);
    close(fd);
    directory_remove(g_steal_pointer(&directory));
}

static void test_waiting_is_cancelled(void **state)
{
    g_autoptr(Server) server = server_new(HANGS);
    _Atomic bool cancelled = false;
    VmfStorageOptions options = {.mode = VMF_STORAGE_READ, .cancelled = &cancelled};
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfStorage) storage = vmf_storage_open(server->uri, &options, &error);
    Job *jobs[4];
    pthread_t thread;

    assert_good(storage, error);
    VmfStorageQueue *queue = hanging_requests(storage, jobs);
    assert_int_equal(pthread_create(&thread, NULL, cancel, &cancelled), 0);
    assert_all_failed(queue, jobs, VMF_ERROR_CANCELLED);
    pthread_join(thread, NULL);
    assert_false(vmf_storage_read(storage, 0, jobs, 8, &error));
    assert_error(error, VMF_ERROR_CANCELLED);
    vmf_storage_queue_free(queue);
}

static void test_refused(void **state)
{
    g_autoptr(Server) server = server_new("nbdkit -f -r -U %s memory 16M");
    VmfStorageOptions options = {.mode = VMF_STORAGE_MODIFY};
    g_autofree char *none = g_strconcat(server->uri, "x", NULL);
    g_autoptr(GError) error = NULL;
    VmfStorage *storage = open_at(server, VMF_STORAGE_READ);

    vmf_storage_free(storage);
    assert_null(vmf_storage_open(server->uri, &options, &error));
    assert_error(error, VMF_ERROR_UNSUPPORTED);
    assert_null(vmf_storage_open(none, &options, &error));
    assert_error(error, VMF_ERROR_CONNECT);
    assert_null(vmf_storage_open("nbd://192.0.2.1/disk", &options, &error));
    assert_error(error, VMF_ERROR_INSECURE);
}

/* ---- QEMU's server ---------------------------------------------------------------------------------------------- */

/* It takes one client at a time unless told otherwise: more than one connection would hang. */
static void test_qemu(void **state)
{
    g_autofree char *directory = directory_new("/tmp"), *disk = g_build_filename(directory, "disk", NULL);
    g_autofree char *command = g_strdup_printf("qemu-nbd -t -f raw -x a:b -k %%s %s", disk), *uri = NULL;
    VmfStorageOptions options = {.mode = VMF_STORAGE_MODIFY};
    g_autoptr(GError) error = NULL;

    if (!is_installed("qemu-nbd")) {
        directory_remove(g_steal_pointer(&directory));
        printf("skipped: qemu-nbd is not installed\n");
        skip();
    }
    assert_true(g_file_set_contents(disk, "", 0, NULL));
    assert_int_equal(truncate(disk, SIZE), 0);
    {
        g_autofree char *socket = g_build_filename(directory, "socket", NULL), *line = g_strdup_printf(command, socket);
        g_autoptr(VmfStorage) storage = NULL;
        pid_t pid;

        uri = g_strdup_printf("nbd+unix:///a%%3ab?socket=%s", socket);
        pid = run(line);
        while (!answers(uri)) {
            assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
            g_usleep(10000);
        }
        storage = vmf_storage_open(uri, &options, &error);
        assert_good(storage, error);
        assert_int_equal(vmf_storage_size(storage), SIZE);
        exercise(storage, 2);
        zero_the_middle(storage, true);
        assert_extent(storage, 256 * KIB, SIZE - 256 * KIB, VMF_EXTENT_ZERO, 512 * KIB);
        g_clear_pointer(&storage, vmf_storage_free);
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
    }
    directory_remove(g_steal_pointer(&directory));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nbdkit),         cmocka_unit_test(test_one_connection),
        cmocka_unit_test(test_small_commands), cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_plain_server),   cmocka_unit_test(test_errors),
        cmocka_unit_test(test_server_dies),    cmocka_unit_test(test_shutdown),
        cmocka_unit_test(test_opening_is_cancelled), cmocka_unit_test(test_waiting_is_cancelled),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_qemu),
    };
    int failed;

    if (!is_installed("nbdkit") && !is_installed("qemu-nbd")) {
        printf("skipped: neither nbdkit nor qemu-nbd is installed\n");
        return 77;
    }
    failed = cmocka_run_group_tests_name("storage-nbd", tests, NULL, NULL);
    return failed;
}
