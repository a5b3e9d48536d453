/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Planned faults happen where they were planned, and nowhere else. */
#include "stream/storage-fault.h"
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <string.h>

#define SIZE ((uint64_t)1 * MIB)

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

/* In place, so that what is there after a crash can be looked at. */
static VmfStorage *faulty(const char *directory, const VmfStorageFault *faults, size_t n)
{
    g_autofree char *path = g_build_filename(directory, "image", NULL);
    g_autofree char *former = g_malloc(SIZE);
    g_autoptr(GError) error = NULL;
    VmfStorage *storage;

    pattern_fill(former, 0, SIZE, 0);
    assert_true(g_file_set_contents(path, former, SIZE, NULL));
    storage = storage_at(directory, "image", VMF_STORAGE_MODIFY, NULL, true);
    storage = vmf_storage_fault_new(storage, faults, n, &error);
    assert_good(storage, error);
    return storage;
}

static VmfStorageQueue *queue_of(VmfStorage *storage, unsigned depth)
{
    g_autoptr(GError) error = NULL;
    VmfStorageQueue *queue = vmf_storage_queue_new(storage, depth, &error);

    assert_good(queue, error);
    return queue;
}

static GError *write_version(Job *job, VmfStorageQueue *queue, uint64_t offset, uint64_t length, uint32_t version)
{
    pattern_fill(job->data, offset, length, version);
    return job_run(job, queue, VMF_REQUEST_WRITE, offset, length);
}

/* What the file itself holds. */
static void assert_below(const char *directory, uint64_t offset, uint64_t length, uint32_t version)
{
    g_autofree char *path = g_build_filename(directory, "image", NULL), *content = NULL;

    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    assert_pattern(content + offset, offset, length, version);
}

/* Which version each 512 bytes hold, "0101…". */
static char *versions_below(const char *directory, uint64_t offset, uint64_t length)
{
    g_autofree char *path = g_build_filename(directory, "image", NULL), *content = NULL;
    GString *versions = g_string_new(NULL);

    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    for (uint64_t at = offset; at < offset + length; at += 512) {
        char expected[512];
        unsigned version;

        for (version = 0; version < 9; version++) {
            pattern_fill(expected, at, 512, version);
            if (memcmp(content + at, expected, 512) == 0)
                break;
        }
        assert_true(version < 9);
        g_string_append_c(versions, (char)('0' + version));
    }
    return g_string_free(versions, FALSE);
}

static void test_error_at(void **state)
{
    const VmfStorageFault faults[] = {
        {.kind = VMF_STORAGE_FAULT_ERROR, .offset = 8192, .length = 4096},
        {.kind = VMF_STORAGE_FAULT_ERROR,
         .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE),
         .offset = 65536,
         .length = 1,
         .err = ENOSPC,
         .times = 2},
        {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH), .times = 1},
    };
    g_autoptr(VmfStorage) storage = faulty(*state, faults, G_N_ELEMENTS(faults));
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 4);
    g_autoptr(Job) job = job_new(8192);
    g_autoptr(GError) error = NULL;

    assert_null(write_version(job, queue, 0, 8192, 1));
    assert_null(write_version(job, queue, 12288, 8192, 1));
    assert_non_null(write_version(job, queue, 4096, 8192, 1));
    assert_error(job->error, VMF_ERROR_IO);
    assert_non_null(job_run(job, queue, VMF_REQUEST_READ, 8192, 512));
    assert_non_null(job_run(job, queue, VMF_REQUEST_ZERO, 12280, 16));
    assert_false(vmf_storage_read(storage, 12287, job->data, 1, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_below(*state, 8192, 4096, 0);

    assert_non_null(write_version(job, queue, 65536, 512, 1));
    assert_error(job->error, VMF_ERROR_NO_SPACE);
    assert_non_null(write_version(job, queue, 65536, 512, 1));
    assert_null(write_version(job, queue, 65536, 512, 1));
    assert_false(vmf_storage_flush(storage, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_good(vmf_storage_flush(storage, &error), error);
}

static void test_full(void **state)
{
    const VmfStorageFault full = {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = 6144};
    g_autoptr(VmfStorage) storage = faulty(*state, &full, 1);
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 4);
    g_autoptr(Job) job = job_new(8192);

    assert_null(write_version(job, queue, 0, 4096, 1));
    assert_non_null(write_version(job, queue, 4096, 4096, 1));
    assert_error(job->error, VMF_ERROR_NO_SPACE);
    assert_non_null(write_version(job, queue, 0, 512, 2));
    assert_error(job->error, VMF_ERROR_NO_SPACE);
    assert_null(job_run(job, queue, VMF_REQUEST_READ, 0, 4096));
    assert_below(*state, 0, 6144, 1);
    assert_below(*state, 6144, 4096, 0);
}

/* ---- order ------------------------------------------------------------------------------------------------------ */

/* Writes versions 1 and 2 to one place, both under way. Returns which is there in the end. */
static uint32_t race(VmfStorageQueue *queue, uint64_t offset, unsigned *ended_first)
{
    g_autoptr(Job) first = job_new(512), second = job_new(512), look = job_new(512);
    uint64_t word, other;

    pattern_fill(first->data, offset, 512, 1);
    pattern_fill(second->data, offset, 512, 2);
    job_submit(first, queue, VMF_REQUEST_WRITE, offset, 512, 1, 512);
    job_submit(second, queue, VMF_REQUEST_WRITE, offset, 512, 1, 512);
    vmf_storage_wait(queue, 1);
    *ended_first += !first->pending;
    vmf_storage_wait(queue, 0);
    assert_null(first->error);
    assert_null(second->error);
    assert_null(job_run(look, queue, VMF_REQUEST_READ, offset, 512));
    memcpy(&word, look->data, 8);
    memcpy(&other, first->data, 8);
    assert_pattern(look->data, offset, 512, word == other ? 1 : 2);
    return word == other ? 1 : 2;
}

static unsigned stale_ones(const char *directory, const VmfStorageFault *faults, size_t n, unsigned *ended_first)
{
    g_autoptr(VmfStorage) storage = faulty(directory, faults, n);
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 8);
    unsigned stale = 0;

    *ended_first = 0;
    for (uint64_t i = 0; i < 200; i++)
        stale += race(queue, i * 512, ended_first) == 1;
    return stale;
}

static void test_order(void **state)
{
    const VmfStorageFault reorder = {.kind = VMF_STORAGE_FAULT_REORDER, .seed = 3};
    unsigned ended_first, again, stale;

    assert_int_equal(stale_ones(*state, NULL, 0, &ended_first), 0);
    assert_int_equal(ended_first, 200);
    stale = stale_ones(*state, &reorder, 1, &ended_first);
    assert_true(stale > 50 && stale < 150);
    assert_int_equal(ended_first, 200 - stale); /* executed late, not only told late */
    assert_int_equal(stale_ones(*state, &reorder, 1, &again), stale);
}

static void test_poll_gets_there(void **state)
{
    const VmfStorageFault reorder = {.kind = VMF_STORAGE_FAULT_REORDER, .seed = 3};
    g_autoptr(VmfStorage) storage = faulty(*state, &reorder, 1);
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 8);
    g_autoptr(Job) job = job_new(512);

    job_submit(job, queue, VMF_REQUEST_READ, 0, 512, 1, 512);
    while (job->pending)
        vmf_storage_poll(queue);
    assert_null(job->error);
    assert_pattern(job->data, 0, 512, 0);
}

/* ---- crashes ---------------------------------------------------------------------------------------------------- */

static void test_crash(void **state)
{
    const VmfStorageFault crash = {.kind = VMF_STORAGE_FAULT_CRASH, .after_operations = 2, .after_bytes = 1024};
    g_autoptr(VmfStorage) storage = faulty(*state, &crash, 1);
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, 4);
    g_autoptr(Job) job = job_new(4096);
    g_autoptr(GError) error = NULL;

    assert_null(write_version(job, queue, 0, 4096, 1));
    assert_null(job_run(job, queue, VMF_REQUEST_READ, 0, 4096)); /* no operation */
    assert_good(vmf_storage_flush(storage, &error), error);
    assert_false(vmf_storage_fault_has_crashed(storage));
    assert_int_equal(vmf_storage_fault_operations(storage), 2);
    assert_non_null(write_version(job, queue, 4096, 4096, 1));
    assert_true(vmf_storage_fault_has_crashed(storage));
    assert_non_null(write_version(job, queue, 0, 4096, 2));
    assert_non_null(job_run(job, queue, VMF_REQUEST_READ, 0, 4096));
    assert_false(vmf_storage_flush(storage, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(vmf_storage_set_size(storage, 0, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_below(*state, 0, 5120, 1);
    assert_below(*state, 5120, 4096, 0);
}

/* A new file whose writer crashes at any point is never there under its name, unless commit had said so. */
static void test_crash_before_commit(void **state)
{
    g_autofree char *path = g_build_filename(*state, "image", NULL);

    for (unsigned after = 0;; after++) {
        const VmfStorageFault crash = {.kind = VMF_STORAGE_FAULT_CRASH, .after_operations = after};
        g_autofree char *content = NULL;
        VmfStorage *storage;
        bool good, crashed;

        assert_true(g_file_set_contents(path, "former", -1, NULL));
        storage = vmf_storage_fault_new(storage_at(*state, "image", VMF_STORAGE_CREATE, NULL, true), &crash, 1, NULL);
        good = vmf_storage_set_size(storage, 3, NULL) && vmf_storage_write(storage, 0, "new", 3, NULL) &&
               vmf_storage_commit(storage, NULL);
        crashed = vmf_storage_fault_has_crashed(storage);
        vmf_storage_free(storage);
        assert_true(good == !crashed);
        assert_true(g_file_get_contents(path, &content, NULL, NULL));
        assert_string_equal(content, good ? "new" : "former");
        if (!crashed) {
            assert_int_equal(after, 4); /* set_size, write, flush, name */
            return;
        }
    }
}

/* Two writes that were flushed are there; of eight that were not, some are, some are not, some are torn; reads saw all.
 */
static void test_lose_unflushed(void **state)
{
    g_autoptr(GHashTable) outcomes = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(Job) job = job_new(4096);

    for (uint32_t seed = 0; seed < 20; seed++) {
        const VmfStorageFault crash = {
            .kind = VMF_STORAGE_FAULT_CRASH, .after_operations = 11, .lose_unflushed = true, .seed = seed};
        g_autoptr(VmfStorage) storage = faulty(*state, &crash, 1);
        g_autoptr(VmfStorageQueue) queue = queue_of(storage, 4);
        g_autoptr(GError) error = NULL;

        assert_null(write_version(job, queue, 0, 4096, 1));
        assert_null(write_version(job, queue, 4096, 4096, 1));
        assert_good(vmf_storage_flush(storage, &error), error);
        assert_below(*state, 0, 8192, 1);
        for (unsigned i = 0; i < 8; i++)
            assert_null(write_version(job, queue, 8192 + i * 4096, 4096, 2));
        assert_null(job_run(job, queue, VMF_REQUEST_READ, 12288, 4096));
        assert_pattern(job->data, 12288, 4096, 2);
        assert_below(*state, 8192, 8 * 4096, 0);
        assert_false(vmf_storage_flush(storage, &error));
        assert_error(error, VMF_ERROR_IO);
        assert_below(*state, 0, 8192, 1);
        g_hash_table_add(outcomes, versions_below(*state, 8192, 8 * 4096));
    }
    assert_true(g_hash_table_size(outcomes) > 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_error_at, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_poll_gets_there, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_crash, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_crash_before_commit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lose_unflushed, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("storage-fault", tests, NULL, NULL);
}
