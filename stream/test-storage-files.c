/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files as storage: names and how they are taken, what is refused, sizes that are no multiples, disks that fill up,
 * devices. */
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stream/io-memory.h"

static int set_up(void **state)
{
    *state = directory_new(".");
    return 0;
}

static int tear_down(void **state)
{
    directory_remove(*state);
    return 0;
}

static char *path_at(const char *directory, const char *name)
{
    return g_build_filename(directory, name, NULL);
}

static bool exists(const char *directory, const char *name)
{
    g_autofree char *path = path_at(directory, name);

    return access(path, F_OK) == 0;
}

static void put(const char *directory, const char *name, const char *text)
{
    g_autofree char *path = path_at(directory, name);

    assert_true(g_file_set_contents(path, text, -1, NULL));
}

static void assert_holds(const char *directory, const char *name, const char *text)
{
    g_autofree char *path = path_at(directory, name), *content = NULL;

    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    assert_string_equal(content, text);
}

static VmfStorage *open_at(const char *directory, const char *name, VmfStorageMode mode, GError **error)
{
    VmfStorageOptions options = {.mode = mode};
    g_autofree char *uri = uri_at(directory, name);

    return vmf_storage_open(uri, &options, error);
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

static void test_commit(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfStorage) storage = NULL;
    g_autofree char *path = path_at(*state, "image");
    struct stat st;

    put(*state, "image", "the former one");
    storage = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true);
    assert_false(vmf_storage_is_in_place(storage));
    assert_int_equal(vmf_storage_size(storage), 0);
    assert_good(vmf_storage_set_size(storage, 7, &error), error);
    assert_good(vmf_storage_write(storage, 0, "the new", 7, &error), error);
    assert_holds(*state, "image", "the former one");
    assert_holds(*state, "image.partial", "the new");
    assert_good(vmf_storage_commit(storage, &error), error);
    assert_holds(*state, "image", "the new");
    assert_false(exists(*state, "image.partial"));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_good(vmf_storage_commit(storage, &error), error);
    g_clear_pointer(&storage, vmf_storage_free);
    assert_holds(*state, "image", "the new");
}

static void test_abort(void **state)
{
    VmfStorage *storage;

    put(*state, "image", "the former one");
    storage = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true);
    assert_true(exists(*state, "image.partial"));
    vmf_storage_free(storage);
    assert_false(exists(*state, "image.partial"));
    assert_holds(*state, "image", "the former one");
}

/* What a writer that was killed left behind is taken over, and nothing of it stays. */
static void test_leftover(void **state)
{
    g_autoptr(GError) error = NULL;
    VmfStorage *storage;

    put(*state, "image.partial", "a longer leftover");
    storage = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true);
    assert_int_equal(vmf_storage_size(storage), 0);
    assert_good(vmf_storage_set_size(storage, 3, &error), error);
    assert_good(vmf_storage_write(storage, 0, "new", 3, &error), error);
    assert_good(vmf_storage_commit(storage, &error), error);
    vmf_storage_free(storage);
    assert_holds(*state, "image", "new");
}

static void test_two_writers(void **state)
{
    g_autoptr(VmfStorage) first = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true);
    g_autoptr(VmfStorage) second = NULL;
    g_autoptr(GError) error = NULL;

    assert_null(open_at(*state, "image", VMF_STORAGE_CREATE, &error));
    assert_non_null(strstr(error->message, "somebody else is writing it"));
    assert_error(error, VMF_ERROR_IO);
    g_clear_pointer(&first, vmf_storage_free);
    second = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true);
}

/* A link stays one; what it points to is replaced. */
static void test_link(void **state)
{
    g_autofree char *link = path_at(*state, "link");
    g_autoptr(GError) error = NULL;
    VmfStorage *storage;
    struct stat st;

    put(*state, "image", "old");
    assert_int_equal(symlink("image", link), 0);
    storage = storage_at(*state, "link", VMF_STORAGE_CREATE, NULL, true);
    assert_true(exists(*state, "image.partial"));
    assert_good(vmf_storage_commit(storage, &error), error);
    vmf_storage_free(storage);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_holds(*state, "image", "");
}

static void test_modify(void **state)
{
    g_autoptr(GError) error = NULL;
    VmfStorage *storage;

    put(*state, "image", "0123456789");
    storage = storage_at(*state, "image", VMF_STORAGE_MODIFY, NULL, true);
    assert_true(vmf_storage_is_in_place(storage));
    assert_int_equal(vmf_storage_size(storage), 10);
    assert_good(vmf_storage_write(storage, 2, "xyz", 3, &error), error);
    assert_good(vmf_storage_commit(storage, &error), error);
    vmf_storage_free(storage);
    assert_holds(*state, "image", "01xyz56789");
    assert_null(open_at(*state, "none", VMF_STORAGE_MODIFY, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(exists(*state, "none"));
}

static void test_read_only(void **state)
{
    g_autoptr(VmfStorage) storage = NULL;
    g_autoptr(VmfStorageQueue) queue = NULL;
    g_autoptr(Job) job = job_new(8);
    g_autoptr(GError) error = NULL;

    put(*state, "image", "01234567");
    storage = storage_at(*state, "image", VMF_STORAGE_READ, NULL, true);
    assert_false(vmf_storage_is_in_place(storage));
    assert_false(vmf_storage_write(storage, 0, "x", 1, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(vmf_storage_set_size(storage, 1, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(vmf_storage_preallocate(storage, 0, 1, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_true(vmf_storage_flush(storage, &error));
    assert_true(vmf_storage_commit(storage, &error));
    queue = vmf_storage_queue_new(storage, 1, &error);
    assert_non_null(job_run(job, queue, VMF_REQUEST_WRITE, 0, 8));
    assert_non_null(strstr(job->error->message, "reading only"));
    assert_error(job->error, VMF_ERROR_IO);
    assert_non_null(job_run(job, queue, VMF_REQUEST_ZERO, 0, 8));
    assert_null(job_run(job, queue, VMF_REQUEST_READ, 0, 8));
    assert_memory_equal(job->data, "01234567", 8);
    assert_holds(*state, "image", "01234567");
}

/* ---- what is no storage ----------------------------------------------------------------------------------------- */

static void assert_unusable(const char *uri, const char *words)
{
    for (VmfStorageMode mode = VMF_STORAGE_READ; mode <= VMF_STORAGE_MODIFY; mode++) {
        VmfStorageOptions options = {.mode = mode};
        g_autoptr(GError) error = NULL;

        assert_null(vmf_storage_open(uri, &options, &error));
        assert_non_null(error);
        if (!strstr(error->message, words))
            fail_msg("%s", error->message);
        assert_error(error, VMF_ERROR_IO);
    }
}

static void test_not_opened(void **state)
{
    g_autofree char *fifo = path_at(*state, "fifo"), *fifo_uri = uri_at(*state, "fifo"), *here = uri_at(*state, ".");

    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_unusable(fifo_uri, "it is a fifo");
    assert_unusable(here, "it is a directory");
    assert_unusable("file:/dev/full", "no file or block device");
}

/* Nor does a fifo where the new file is to be written hang anybody. */
static void test_fifo_in_the_way(void **state)
{
    g_autofree char *fifo = path_at(*state, "image.partial");
    g_autoptr(GError) error = NULL;

    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_null(open_at(*state, "image", VMF_STORAGE_CREATE, &error));
    assert_error(error, VMF_ERROR_IO);
}

/* A leftover is written over; one that has another name as well is somebody's file. */
static void test_partial_of_two_names(void **state)
{
    g_autofree char *partial = path_at(*state, "image.partial"), *other = path_at(*state, "other");
    g_autoptr(GError) error = NULL;

    put(*state, "other", "precious");
    assert_int_equal(link(other, partial), 0);
    assert_null(open_at(*state, "image", VMF_STORAGE_CREATE, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_holds(*state, "other", "precious");
}

static void test_bad_options(void **state)
{
    VmfStorageOptions options = {.mode = VMF_STORAGE_CREATE, .backend = "abacus"};
    g_autofree char *uri = uri_at(*state, "image");
    g_autoptr(GError) error = NULL;

    assert_null(vmf_storage_open(uri, &options, &error));
    assert_error(error, VMF_ERROR_UNSUPPORTED);
    assert_false(exists(*state, "image.partial"));
    assert_null(vmf_storage_open("tcp:localhost:1", &options, &error));
    assert_error(error, VMF_ERROR_URI);
    assert_null(vmf_storage_open("file:", &options, &error));
    assert_error(error, VMF_ERROR_URI);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* Direct I/O on a file whose size is no multiple of anything, from and into memory that is not aligned. */
static void test_unaligned(void **state)
{
    const size_t size = 2 * MIB + 4096 + 1234;
    g_autofree char *data = g_malloc(size + 1), *again = g_malloc(size + 1);
    g_autoptr(VmfStorage) storage = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, false);
    g_autoptr(GError) error = NULL;
    uint32_t alignment = vmf_storage_alignment(storage);
    size_t whole = size / 4096 * 4096;

    for (size_t i = 0; i <= size; i++)
        data[i] = (char)(i * 31 ^ i >> 9);
    assert_good(vmf_storage_set_size(storage, size, &error), error);
    assert_good(vmf_storage_write(storage, 0, data + 1, whole, &error), error);
    assert_good(vmf_storage_read(storage, 0, again + 1, size, &error), error);
    assert_memory_equal(again + 1, data + 1, whole);
    assert_zeros(again + 1 + whole, size - whole);
    assert_good(vmf_storage_read(storage, whole, again, size - whole, &error), error);
    if (alignment > 1) {
        assert_false(vmf_storage_read(storage, 0, again, 100, &error));
        assert_error(error, VMF_ERROR_IO);
        assert_false(vmf_storage_read(storage, 8, again, 4096, &error));
        assert_error(error, VMF_ERROR_IO);
        assert_false(vmf_storage_write(storage, whole, again, size - whole, &error));
        assert_error(error, VMF_ERROR_IO);
    }
    assert_false(vmf_storage_read(storage, 0, again, size + 1, &error));
    assert_error(error, VMF_ERROR_IO);
}

static void test_alignment(void **state)
{
    g_autoptr(VmfStorage) direct = storage_at(*state, "direct", VMF_STORAGE_CREATE, NULL, false);
    g_autoptr(VmfStorage) buffered = storage_at(*state, "buffered", VMF_STORAGE_CREATE, NULL, true);
    uint32_t alignment = vmf_storage_alignment(direct);

    assert_int_equal(vmf_storage_alignment(buffered), 1);
    assert_false(vmf_storage_wants_stable_writes(buffered));
    assert_true(alignment == 1 || (alignment >= 512 && alignment <= 4096 && (alignment & (alignment - 1)) == 0));
    assert_string_not_equal(vmf_storage_backend(buffered), "libaio");
}

static void test_set_size(void **state)
{
    g_autoptr(VmfStorage) storage = storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true);
    g_autoptr(GError) error = NULL;
    char byte;

    assert_false(vmf_storage_write(storage, 0, "x", 1, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_good(vmf_storage_set_size(storage, 1000, &error), error);
    assert_good(vmf_storage_write(storage, 999, "x", 1, &error), error);
    assert_good(vmf_storage_set_size(storage, 999, &error), error);
    assert_int_equal(vmf_storage_size(storage), 999);
    assert_false(vmf_storage_read(storage, 999, &byte, 1, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_good(vmf_storage_set_size(storage, 1000, &error), error);
    assert_good(vmf_storage_read(storage, 999, &byte, 1, &error), error);
    assert_int_equal(byte, 0);
    assert_false(vmf_storage_set_size(storage, UINT64_MAX, &error));
    assert_error(error, VMF_ERROR_IO);
}

/* ---- short transfers -------------------------------------------------------------------------------------------- */

/* Any way of cutting a transfer short leads to its end, each byte once, with an alignment kept. */
static void test_short_transfers(void **state)
{
    VmfStorage storage = {.name = (char *)"test", .alignment = 512};
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);

    for (unsigned run = 0; run < 2000; run++) {
        struct iovec pieces[5];
        VmfStorageRequest request = {.kind = VMF_REQUEST_WRITE, .iov = pieces, .n_iov = 5};
        GError *error = NULL;
        uint64_t at = 0;

        for (unsigned i = 0; i < 5; i++) {
            pieces[i] =
                (struct iovec){(char *)(uintptr_t)(4096 + request.length), 512 * (size_t)g_rand_int_range(rand, 0, 8)};
            request.length += pieces[i].iov_len;
        }
        if (request.length == 0)
            continue;
        vmf_storage_request_begin(&request);
        for (bool ended = false; !ended;) {
            int64_t result = g_rand_int_range(rand, 512, (int)(request.length - at) + 1024);

            ended =
                vmf_storage_request_attempted(&storage, &request, MIN(result, (int64_t)(request.length - at)), &error);
            at = request.progress;
            assert_null(error);
            assert_true(ended == (at == request.length) && at % 512 == 0);
            if (!ended)
                assert_int_equal((uintptr_t)request.left->iov_base, 4096 + at);
        }
    }
}

static void test_attempts(void **state)
{
    VmfStorage storage = {.name = (char *)"test", .alignment = 512};
    char data[1024];
    struct iovec piece = {data, 1024};
    VmfStorageRequest request = {.kind = VMF_REQUEST_WRITE, .iov = &piece, .n_iov = 1, .length = 1024};
    GError *error = NULL;

    vmf_storage_request_begin(&request);
    assert_false(vmf_storage_request_attempted(&storage, &request, -EINTR, &error));
    assert_false(vmf_storage_request_attempted(&storage, &request, -EAGAIN, &error));
    assert_true(vmf_storage_request_attempted(&storage, &request, 100, &error)); /* less than can be gone on from */
    assert_error(error, VMF_ERROR_IO);
    assert_true(vmf_storage_request_attempted(&storage, &request, 0, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_true(vmf_storage_request_attempted(&storage, &request, -ENOSPC, &error));
    assert_error(error, VMF_ERROR_NO_SPACE);
    assert_true(vmf_storage_request_attempted(&storage, &request, -EDQUOT, &error));
    assert_error(error, VMF_ERROR_NO_SPACE);
    assert_true(vmf_storage_request_attempted(&storage, &request, -EIO, &error));
    assert_error(error, VMF_ERROR_IO);
    for (unsigned i = 0; !vmf_storage_request_attempted(&storage, &request, -EINTR, &error); i++)
        assert_true(i < 10000);
    assert_error(error, VMF_ERROR_IO);
}

/* ---- a disk that is full ---------------------------------------------------------------------------------------- */

static bool mount_small(const char *directory, const char *options)
{
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("none", directory, "tmpfs", 0, options) == 0;
}

static void fill_up(const char *directory, const char *backend)
{
    g_autoptr(VmfStorage) storage = storage_at(directory, "image", VMF_STORAGE_CREATE, backend, true);
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfStorageQueue) queue = vmf_storage_queue_new(storage, 4, &error);
    Job *jobs[16];
    unsigned full = 0;

    assert_good(vmf_storage_set_size(storage, 16 * MIB, &error), error);
    assert_false(vmf_storage_preallocate(storage, 0, 16 * MIB, &error));
    assert_error(error, VMF_ERROR_NO_SPACE);
    for (unsigned i = 0; i < 16; i++) {
        jobs[i] = job_new(MIB);
        job_submit(jobs[i], queue, VMF_REQUEST_WRITE, i * MIB, MIB, 1, 1);
    }
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 16; i++) {
        full += jobs[i]->error != NULL;
        if (jobs[i]->error)
            assert_error(jobs[i]->error, VMF_ERROR_NO_SPACE);
        job_free(jobs[i]);
    }
    assert_true(full >= 8 && full < 16);
}

/* In a process of its own, which takes its mount with it. */
static void test_full(void **state)
{
    static const char *const backends[] = {"threads", "libaio", "io_uring"};
    VmfStorageOptions options = {.mode = VMF_STORAGE_CREATE, .buffered = true};
    g_autofree char *probe_uri = uri_at(*state, "probe");
    int status;
    pid_t child;

    if (geteuid() != 0) {
        printf("skipped: only root can mount a small filesystem\n");
        skip();
    }
    for (size_t i = 0; i < G_N_ELEMENTS(backends); i++) {
        options.backend = backends[i];
        g_autoptr(VmfStorage) probe = vmf_storage_open(probe_uri, &options, NULL);
        if (!probe) {
            printf("skipped: %s does not work here\n", backends[i]);
            continue;
        }
        child = fork();
        if (child == 0) {
            if (!mount_small(*state, "size=8m"))
                _exit(77);
            fill_up(*state, backends[i]);
            _exit(umount(*state) == 0 ? 0 : 1); /* nobody has the file open any more */
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
            printf("skipped: no mount of our own\n");
            continue;
        }
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void test_memory(void **state)
{
    static const size_t sizes[] = {1, 4096, 5000, (2u << 20) - 1, 2u << 20, (3u << 20) + 1};

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        uint8_t *memory = vmf_io_memory_new(sizes[i]);

        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % (sizes[i] < 2u << 20 ? 4096 : 2u << 20), 0);
        memset(memory, 0xa5, sizes[i]);
        free(memory);
    }
    assert_null(vmf_io_memory_new(0));
    assert_null(vmf_io_memory_new(SIZE_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_commit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_abort, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_leftover, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_two_writers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_link, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_modify, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_only, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_not_opened, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_fifo_in_the_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_partial_of_two_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_options, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unaligned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_alignment, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_set_size, set_up, tear_down),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_short_transfers),
        cmocka_unit_test(test_attempts),
        cmocka_unit_test_setup_teardown(test_full, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("storage-files", tests, NULL, NULL);
}
