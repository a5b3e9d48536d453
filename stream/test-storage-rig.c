/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/test-storage-rig.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

Job *job_new(size_t capacity)
{
    Job *job = g_new0(Job, 1);
    void *data = NULL;

    assert_int_equal(posix_memalign(&data, 4096, MAX(capacity, 1)), 0);
    memset(data, 0xee, capacity);
    job->data = data;
    job->capacity = capacity;
    return job;
}

void job_free(Job *job)
{
    if (!job)
        return;
    assert_false(job->pending);
    g_clear_error(&job->error);
    free(job->data);
    g_free(job);
}

static void job_done(VmfStorageRequest *request, GError *error)
{
    Job *job = request->opaque;

    assert_true(job->pending);
    job->pending = false;
    job->error = error;
    if (job->ended)
        ++*job->ended;
}

static unsigned cut(Job *job, uint64_t length, unsigned n_pieces, uint32_t alignment)
{
    uint64_t each = MAX(length / n_pieces / alignment * alignment, MIN(alignment, length)), at = 0;
    unsigned n = 0;

    while (at < length) {
        uint64_t now = n + 1 == n_pieces ? length - at : MIN(each, length - at);

        job->pieces[n++] = (struct iovec){job->data + at, now};
        at += now;
    }
    return n;
}

void job_submit(Job *job, VmfStorageQueue *queue, VmfRequestKind kind, uint64_t offset, uint64_t length,
                unsigned n_pieces, uint32_t alignment)
{
    assert_false(job->pending);
    assert_true(n_pieces >= 1 && n_pieces <= G_N_ELEMENTS(job->pieces));
    g_clear_error(&job->error);
    /* What the backend keeps need not be initialised. */
    memset(&job->request, 0xaa, sizeof(job->request));
    job->request.kind = kind;
    job->request.fua = false;
    job->request.offset = offset;
    job->request.length = length;
    job->request.iov = job->pieces;
    job->request.n_iov = 0;
    job->request.done = job_done;
    job->request.opaque = job;
    if (kind == VMF_REQUEST_READ || kind == VMF_REQUEST_WRITE) {
        assert_true(length <= job->capacity);
        job->request.n_iov = cut(job, length, n_pieces, alignment);
    }
    job->pending = true;
    vmf_storage_submit(queue, &job->request);
}

GError *job_run(Job *job, VmfStorageQueue *queue, VmfRequestKind kind, uint64_t offset, uint64_t length)
{
    job_submit(job, queue, kind, offset, length, 1, 1);
    vmf_storage_wait(queue, 0);
    assert_false(job->pending);
    return job->error;
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

static void run_scattered(Job *job, VmfStorageQueue *queue, VmfRequestKind kind, uint32_t unit)
{
    job_submit(job, queue, VMF_REQUEST_FLUSH, 0, 0, 1, 1); /* for its done() */
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 16; i++)
        job->pieces[i] = (struct iovec){job->data + (15 - i) * 2 * unit, unit};
    job->request.kind = kind;
    job->request.length = 16 * unit;
    job->request.iov = job->pieces;
    job->request.n_iov = 16;
    job->pending = true;
    vmf_storage_submit(queue, &job->request);
    vmf_storage_wait(queue, 0);
    assert_null(job->error);
}

void check_scattered(VmfStorage *storage, uint32_t unit)
{
    g_autoptr(VmfStorageQueue) queue = vmf_storage_queue_new(storage, 2, NULL);
    g_autoptr(Job) scattered = job_new(32 * unit), plain = job_new(16 * unit);

    for (unsigned i = 0; i < 16; i++)
        pattern_fill(scattered->data + (15 - i) * 2 * unit, i * unit, unit, 5);
    run_scattered(scattered, queue, VMF_REQUEST_WRITE, unit);
    assert_null(job_run(plain, queue, VMF_REQUEST_READ, 0, 16 * unit));
    assert_pattern(plain->data, 0, 16 * unit, 5);
    memset(scattered->data, 0, 32 * unit);
    run_scattered(scattered, queue, VMF_REQUEST_READ, unit);
    for (unsigned i = 0; i < 16; i++) {
        assert_pattern(scattered->data + (15 - i) * 2 * unit, i * unit, unit, 5);
        assert_zeros(scattered->data + ((15 - i) * 2 + 1) * unit, unit);
    }
}

/* ---- patterns --------------------------------------------------------------------------------------------------- */

static uint64_t pattern_at(uint64_t offset, uint32_t version)
{
    return (offset + 1) * UINT64_C(0x9E3779B97F4A7C15) ^ (uint64_t)version << 32;
}

void pattern_fill(void *data, uint64_t offset, size_t length, uint32_t version)
{
    for (size_t at = 0; at < length; at += 8) {
        uint64_t word = pattern_at(offset + at, version);

        memcpy((char *)data + at, &word, 8);
    }
}

void assert_pattern(const void *data, uint64_t offset, size_t length, uint32_t version)
{
    for (size_t at = 0; at < length; at += 8) {
        uint64_t word;

        memcpy(&word, (const char *)data + at, 8);
        if (word != pattern_at(offset + at, version))
            fail_msg("offset %#" G_GINT64_MODIFIER "x does not hold version %u", offset + at, version);
    }
}

void assert_zeros(const void *data, size_t length)
{
    for (size_t at = 0; at < length; at++)
        if (((const uint8_t *)data)[at] != 0)
            fail_msg("byte %zu is not zero", at);
}

/* ---- places ----------------------------------------------------------------------------------------------------- */

char *directory_new(const char *parent)
{
    char *directory = g_build_filename(parent, "vmferry-storage-XXXXXX", NULL);

    assert_non_null(g_mkdtemp(directory));
    return directory;
}

void directory_remove(char *directory)
{
    GDir *dir = g_dir_open(directory, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(directory, name, NULL);

        if (unlink(path) < 0)
            rmdir(path);
    }
    if (dir)
        g_dir_close(dir);
    assert_int_equal(rmdir(directory), 0);
    g_free(directory);
}

char *uri_at(const char *directory, const char *name)
{
    return g_strconcat("file:", directory, "/", name, NULL);
}

VmfStorage *storage_at(const char *directory, const char *name, VmfStorageMode mode, const char *backend, bool buffered)
{
    VmfStorageOptions options = {.mode = mode, .backend = backend, .buffered = buffered};
    g_autofree char *uri = uri_at(directory, name);
    g_autoptr(GError) error = NULL;
    VmfStorage *storage = vmf_storage_open(uri, &options, &error);

    assert_good(storage, error);
    return storage;
}
