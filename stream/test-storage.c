/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every backend keeps the same promises: the same tests over each, direct and through the page cache, on a disk and in
 * memory. */
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    const char *name;
    const char *backend;
    bool buffered;
    bool in_memory; /* on tmpfs */
} Kind;

typedef struct {
    const Kind *kind;
    char *directory;
    VmfStorage *storage; /* "image", new, of 16 MiB */
    uint32_t unit;       /* the alignment, or 512 where there is none: what requests here are multiples of */
} Bench;

#define SIZE ((uint64_t)16 * MIB)

static int set_up(void **state)
{
    const Kind *kind = *state;
    Bench *bench = g_new0(Bench, 1);
    g_autoptr(GError) error = NULL;

    bench->kind = kind;
    bench->directory = directory_new(kind->in_memory ? "/dev/shm" : ".");
    bench->storage = storage_at(bench->directory, "image", VMF_STORAGE_CREATE, kind->backend, kind->buffered);
    assert_good(vmf_storage_set_size(bench->storage, SIZE, &error), error);
    assert_string_equal(vmf_storage_backend(bench->storage), kind->backend);
    bench->unit = MAX(vmf_storage_alignment(bench->storage), 512);
    *state = bench;
    return 0;
}

static int tear_down(void **state)
{
    Bench *bench = *state;

    vmf_storage_free(bench->storage);
    directory_remove(bench->directory);
    g_free(bench);
    return 0;
}

static VmfStorageQueue *queue_of(VmfStorage *storage, unsigned depth)
{
    g_autoptr(GError) error = NULL;
    VmfStorageQueue *queue = vmf_storage_queue_new(storage, depth, &error);

    assert_good(queue, error);
    return queue;
}

/* ---- what is written is read ------------------------------------------------------------------------------------ */

#define SLOT_BYTES (64 * KIB)
#define N_SLOTS (SIZE / SLOT_BYTES)

/* The slots in an order of their own, by seed. */
static void shuffle(unsigned order[N_SLOTS], uint32_t seed)
{
    GRand *rand = g_rand_new_with_seed(seed);

    for (unsigned i = 0; i < N_SLOTS; i++)
        order[i] = i;
    for (unsigned i = N_SLOTS - 1; i > 0; i--) {
        unsigned other = (unsigned)g_rand_int_range(rand, 0, (int)i + 1), keep = order[i];

        order[i] = order[other];
        order[other] = keep;
    }
    g_rand_free(rand);
}

/* A job that is free, waiting if need be. */
static Job *idle_job(Job **jobs, unsigned n, VmfStorageQueue *queue)
{
    for (;;) {
        for (unsigned i = 0; i < n; i++)
            if (!jobs[i]->pending)
                return jobs[i];
        vmf_storage_wait(queue, n - 1);
    }
}

static void check_and_clear(Job *job)
{
    if (job->error)
        fail_msg("%s", job->error->message);
    if (job->request.kind == VMF_REQUEST_READ && job->request.length == SLOT_BYTES)
        assert_pattern(job->data, job->request.offset, SLOT_BYTES, 1);
    job->request.length = 0;
}

static void pass(VmfStorage *storage, VmfRequestKind kind, unsigned depth, uint32_t seed, uint32_t unit)
{
    g_autoptr(VmfStorageQueue) queue = queue_of(storage, depth);
    unsigned order[N_SLOTS];
    Job *jobs[8];

    shuffle(order, seed);
    for (unsigned i = 0; i < 8; i++)
        jobs[i] = job_new(SLOT_BYTES);
    for (unsigned i = 0; i < N_SLOTS; i++) {
        Job *job = idle_job(jobs, 8, queue);
        uint64_t offset = (uint64_t)order[i] * SLOT_BYTES;

        check_and_clear(job);
        if (kind == VMF_REQUEST_WRITE)
            pattern_fill(job->data, offset, SLOT_BYTES, 1);
        job_submit(job, queue, kind, offset, SLOT_BYTES, 1 + i % 16, unit);
        assert_true(vmf_storage_under_way(queue) <= depth);
    }
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 8; i++) {
        check_and_clear(jobs[i]);
        job_free(jobs[i]);
    }
}

static void assert_file_holds_pattern(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL), *content = NULL;
    gsize length;

    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_int_equal(length, SIZE);
    assert_pattern(content, 0, length, 1);
}

static void test_write_and_read_back(void **state)
{
    Bench *bench = *state;
    g_autoptr(GError) error = NULL;

    pass(bench->storage, VMF_REQUEST_WRITE, 4, 1, bench->unit);
    pass(bench->storage, VMF_REQUEST_READ, 8, 2, bench->unit);
    assert_good(vmf_storage_commit(bench->storage, &error), error);
    assert_file_holds_pattern(bench->directory, "image");
    g_clear_pointer(&bench->storage, vmf_storage_free);
    bench->storage =
        storage_at(bench->directory, "image", VMF_STORAGE_READ, bench->kind->backend, bench->kind->buffered);
    assert_int_equal(vmf_storage_size(bench->storage), SIZE);
    pass(bench->storage, VMF_REQUEST_READ, 1, 3, bench->unit);
}

static void test_scattered(void **state)
{
    Bench *bench = *state;

    check_scattered(bench->storage, bench->unit);
}

typedef struct {
    VmfStorageQueue *queue;
    atomic_bool over;
} Waker;

static void *waker_main(void *opaque)
{
    Waker *waker = opaque;

    while (!atomic_load(&waker->over))
        vmf_storage_wake(waker->queue);
    return NULL;
}

/* Whoever is woken all the time misses no end of a request, and whoever was woken once sleeps again. */
static void test_woken(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    Waker waker = {.queue = queue};
    pthread_t thread;
    Job *jobs[64];
    unsigned ended = 0;

    for (unsigned half = 0; half < 2; half++) {
        if (half == 0)
            pthread_create(&thread, NULL, waker_main, &waker);
        for (unsigned i = half * 32; i < half * 32 + 32; i++) {
            jobs[i] = job_new(4096);
            jobs[i]->ended = &ended;
            pattern_fill(jobs[i]->data, i * 4096, 4096, 1);
            job_submit(jobs[i], queue, VMF_REQUEST_WRITE, i * 4096, 4096, 1, bench->unit);
        }
        while (ended < half * 32 + 32)
            vmf_storage_wait_or_wake(queue);
        if (half == 0) {
            atomic_store(&waker.over, true);
            pthread_join(thread, NULL);
        }
    }
    for (unsigned i = 0; i < 64; i++) {
        assert_null(jobs[i]->error);
        job_free(jobs[i]);
    }
}

/* Requests that are begun together with others, and more of them than the queue is deep. */
static void test_many_small(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 64);
    Job *jobs[512];
    unsigned ended = 0;

    for (unsigned i = 0; i < 512; i++) {
        jobs[i] = job_new(4096);
        jobs[i]->ended = &ended;
        pattern_fill(jobs[i]->data, i * 4096, 4096, 1);
        job_submit(jobs[i], queue, VMF_REQUEST_WRITE, i * 4096, 4096, 1, bench->unit);
    }
    vmf_storage_wait(queue, 10);
    assert_true(ended >= 502 && ended + vmf_storage_under_way(queue) == 512);
    vmf_storage_wait(queue, 0);
    assert_int_equal(ended, 512);
    for (unsigned i = 0; i < 512; i++) {
        assert_null(jobs[i]->error);
        memset(jobs[i]->data, 0, 4096);
        job_submit(jobs[i], queue, VMF_REQUEST_READ, i * 4096, 4096, 2, bench->unit);
    }
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < 512; i++) {
        assert_null(jobs[i]->error);
        assert_pattern(jobs[i]->data, i * 4096, 4096, 1);
        job_free(jobs[i]);
    }
}

/* What is kept back to be begun with others is begun by a poll, too. */
static void test_poll(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 64);
    g_autoptr(Job) job = job_new(4096);

    vmf_storage_poll(queue);
    job_submit(job, queue, VMF_REQUEST_WRITE, 0, 4096, 1, 4096);
    assert_true(job->pending);
    while (job->pending)
        vmf_storage_poll(queue);
    assert_null(job->error);
    assert_int_equal(vmf_storage_under_way(queue), 0);
}

/* ---- done() submits again --------------------------------------------------------------------------------------- */

typedef struct {
    VmfStorageRequest request;
    struct iovec iov;
    VmfStorageQueue *queue;
    uint8_t *data;
    uint64_t offset; /* of each */
    uint64_t length;
    unsigned left;
    unsigned failed;
    bool *inside; /* a done(), of any chain */
} Chain;

static void chain_submit(Chain *chain);

static void chain_done(VmfStorageRequest *request, GError *error)
{
    Chain *chain = request->opaque;

    assert_false(*chain->inside); /* it would recurse as deep as the chains are long */
    *chain->inside = true;
    chain->failed += error != NULL;
    g_clear_error(&error);
    if (chain->left > 0)
        chain_submit(chain);
    *chain->inside = false;
}

static void chain_submit(Chain *chain)
{
    chain->left--;
    chain->iov = (struct iovec){chain->data, chain->length};
    chain->request = (VmfStorageRequest){.kind = VMF_REQUEST_WRITE,
                                         .offset = chain->offset,
                                         .length = chain->length,
                                         .iov = &chain->iov,
                                         .n_iov = 1,
                                         .done = chain_done,
                                         .opaque = chain};
    vmf_storage_submit(chain->queue, &chain->request);
}

static void run_chains(Bench *bench, unsigned n_chains, unsigned depth, uint64_t offset, uint64_t length,
                       unsigned links, unsigned failed)
{
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, depth);
    g_autoptr(Job) buffer = job_new(4096);
    g_autofree Chain *chains = g_new0(Chain, n_chains);
    bool inside = false;

    for (unsigned i = 0; i < n_chains; i++) {
        chains[i] = (Chain){
            .queue = queue, .data = buffer->data, .offset = offset, .length = length, .left = links, .inside = &inside};
        chain_submit(&chains[i]);
    }
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < n_chains; i++) {
        assert_int_equal(chains[i].left, 0);
        assert_int_equal(chains[i].failed, failed);
    }
}

static void test_done_submits(void **state)
{
    run_chains(*state, 1, 1, 0, 4096, 50, 0);
    run_chains(*state, 9, 2, 0, 4096, 20, 0);           /* done() itself finds the queue full */
    run_chains(*state, 3, 2, SIZE, 4096, 20000, 20000); /* refused at once */
    run_chains(*state, 3, 2, SIZE, 0, 20000, 0);        /* nothing to do */
}

typedef struct {
    Chain chains[16]; /* the first one's done() submits all others, which the queue has no room for */
} Flood;

static void flood_done(VmfStorageRequest *request, GError *error)
{
    Flood *flood = request->opaque;

    assert_null(error);
    *flood->chains[0].inside = true;
    for (unsigned i = 1; i < G_N_ELEMENTS(flood->chains); i++)
        chain_submit(&flood->chains[i]);
    *flood->chains[0].inside = false;
}

static void test_done_submits_many(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 2);
    g_autoptr(Job) buffer = job_new(4096);
    bool inside = false;
    Flood flood;

    for (unsigned i = 0; i < G_N_ELEMENTS(flood.chains); i++)
        flood.chains[i] = (Chain){
            .queue = queue, .data = buffer->data, .offset = i * 4096, .length = 4096, .left = 1, .inside = &inside};
    chain_submit(&flood.chains[0]);
    flood.chains[0].request.done = flood_done;
    flood.chains[0].request.opaque = &flood;
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(flood.chains); i++)
        assert_true(flood.chains[i].left == 0 && flood.chains[i].failed == 0);
}

/* ---- refused ---------------------------------------------------------------------------------------------------- */

static void assert_refused(Bench *bench, VmfStorageQueue *queue, Job *job, VmfRequestKind kind, uint64_t offset,
                           uint64_t length, const char *words)
{
    g_autofree char *name = uri_at(bench->directory, "image");

    job_submit(job, queue, kind, offset, length, 1, 1);
    assert_true(job->pending); /* not from within its own submit */
    vmf_storage_wait(queue, 0);
    assert_non_null(job->error);
    assert_true(g_str_has_prefix(job->error->message, name));
    if (!strstr(job->error->message, words))
        fail_msg("%s", job->error->message);
    assert_error(job->error, VMF_ERROR_IO);
}

static void test_refused(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    g_autoptr(Job) job = job_new(8192);

    assert_refused(bench, queue, job, VMF_REQUEST_READ, SIZE, 4096, "past the end");
    assert_refused(bench, queue, job, VMF_REQUEST_WRITE, SIZE - 4096, 8192, "past the end");
    assert_refused(bench, queue, job, VMF_REQUEST_WRITE, UINT64_MAX - 4095, 8192, "past the end");
    assert_refused(bench, queue, job, VMF_REQUEST_ZERO, SIZE, 4096, "past the end");
    assert_refused(bench, queue, job, VMF_REQUEST_ZERO, 4096, UINT64_MAX, "past the end");
    if (vmf_storage_alignment(bench->storage) > 1) {
        assert_refused(bench, queue, job, VMF_REQUEST_READ, 8, 4096, "not aligned");
        assert_refused(bench, queue, job, VMF_REQUEST_WRITE, 0, 4104, "not aligned");
        assert_refused(bench, queue, job, VMF_REQUEST_ZERO, 0, 4104, "not aligned");
        job->data += 8;
        assert_refused(bench, queue, job, VMF_REQUEST_READ, 0, 4096, "piece is not aligned");
        job->data -= 8;
    }
    assert_null(job_run(job, queue, VMF_REQUEST_READ, SIZE - 4096, 4096));
    assert_null(job_run(job, queue, VMF_REQUEST_READ, SIZE, 0));
}

static void refused_pieces(VmfStorageQueue *queue, unsigned n_iov, uint64_t length, struct iovec *iov, Job *job)
{
    job_submit(job, queue, VMF_REQUEST_FLUSH, 0, 0, 1, 1); /* for its done() */
    vmf_storage_wait(queue, 0);
    job->request.kind = VMF_REQUEST_READ;
    job->request.length = length;
    job->request.iov = iov;
    job->request.n_iov = n_iov;
    job->pending = true;
    vmf_storage_submit(queue, &job->request);
    vmf_storage_wait(queue, 0);
    assert_error(job->error, VMF_ERROR_IO);
}

static void test_refused_pieces(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    g_autoptr(Job) job = job_new(4096);
    struct iovec iov[VMF_REQUEST_IOV_MAX + 1];

    for (unsigned i = 0; i < G_N_ELEMENTS(iov); i++)
        iov[i] = (struct iovec){job->data, 4096};
    refused_pieces(queue, 0, 4096, iov, job);
    refused_pieces(queue, 2, 4096, iov, job);
    refused_pieces(queue, VMF_REQUEST_IOV_MAX + 1, (VMF_REQUEST_IOV_MAX + 1) * 4096, iov, job);
    iov[0].iov_len = SIZE_MAX - 4095; /* with the next one this is 0 again, and more */
    refused_pieces(queue, 3, 4096, iov, job);
}

static void test_depths(void **state)
{
    Bench *bench = *state;
    g_autoptr(GError) error = NULL;

    assert_null(vmf_storage_queue_new(bench->storage, 0, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_null(vmf_storage_queue_new(bench->storage, VMF_STORAGE_DEPTH_MAX + 1, &error));
    assert_error(error, VMF_ERROR_USAGE);
    vmf_storage_queue_free(queue_of(bench->storage, VMF_STORAGE_DEPTH_MAX));
}

/* ---- zeros, extents, space -------------------------------------------------------------------------------------- */

static uint64_t allocated_bytes(Bench *bench)
{
    g_autofree char *path = g_build_filename(bench->directory, "image.partial", NULL);
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void assert_extent(Bench *bench, uint64_t offset, uint64_t length, VmfExtentKind kind, uint64_t extent_length)
{
    g_autoptr(GError) error = NULL;
    VmfExtentKind found;
    uint64_t found_length;

    assert_good(vmf_storage_extent(bench->storage, offset, length, &found, &found_length, &error), error);
    assert_int_equal(found, kind);
    assert_int_equal(found_length, extent_length);
}

static void test_zero(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    g_autoptr(Job) job = job_new(4 * MIB);
    g_autoptr(GError) error = NULL;
    uint64_t before;

    pattern_fill(job->data, MIB, 4 * MIB, 1);
    assert_null(job_run(job, queue, VMF_REQUEST_WRITE, MIB, 4 * MIB));
    assert_good(vmf_storage_flush(bench->storage, &error), error);
    before = allocated_bytes(bench);
    assert_true(before >= 4 * MIB);

    assert_null(job_run(job, queue, VMF_REQUEST_ZERO, 2 * MIB, 2 * MIB));
    assert_true(allocated_bytes(bench) <= before - 2 * MIB);
    assert_null(job_run(job, queue, VMF_REQUEST_READ, MIB, 4 * MIB));
    assert_pattern(job->data, MIB, MIB, 1);
    assert_zeros(job->data + MIB, 2 * MIB);
    assert_pattern(job->data + 3 * MIB, 4 * MIB, MIB, 1);

    assert_extent(bench, 0, SIZE, VMF_EXTENT_ZERO, MIB);
    assert_extent(bench, MIB, SIZE - MIB, VMF_EXTENT_DATA, MIB);
    assert_extent(bench, MIB + 65536, 65536, VMF_EXTENT_DATA, 65536);
    assert_extent(bench, 2 * MIB, 65536, VMF_EXTENT_ZERO, 65536);
    assert_extent(bench, 2 * MIB + 4096, SIZE - 2 * MIB - 4096, VMF_EXTENT_ZERO, 2 * MIB - 4096);
    assert_extent(bench, 4 * MIB, SIZE - 4 * MIB, VMF_EXTENT_DATA, MIB);
    assert_extent(bench, 5 * MIB, SIZE - 5 * MIB, VMF_EXTENT_ZERO, SIZE - 5 * MIB);
    assert_extent(bench, SIZE, 0, VMF_EXTENT_DATA, 0);
}

static void test_extent_out_of_range(void **state)
{
    Bench *bench = *state;
    g_autoptr(GError) error = NULL;
    VmfExtentKind kind;
    uint64_t length;

    assert_false(vmf_storage_extent(bench->storage, SIZE, 1, &kind, &length, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(vmf_storage_extent(bench->storage, 4096, UINT64_MAX, &kind, &length, &error));
    assert_error(error, VMF_ERROR_IO);
}

static void test_preallocate(void **state)
{
    Bench *bench = *state;
    g_autoptr(GError) error = NULL;
    uint64_t before = allocated_bytes(bench);

    assert_good(vmf_storage_preallocate(bench->storage, 4 * MIB, 8 * MIB, &error), error);
    assert_true(allocated_bytes(bench) >= before + 8 * MIB);
    assert_int_equal(vmf_storage_size(bench->storage), SIZE);
    assert_false(vmf_storage_preallocate(bench->storage, SIZE, 4096, &error));
    assert_error(error, VMF_ERROR_IO);
}

/* ---- durable ---------------------------------------------------------------------------------------------------- */

static void test_flush_and_fua(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    g_autoptr(Job) job = job_new(8192), flush = job_new(0);
    g_autoptr(GError) error = NULL;
    struct iovec iov = {job->data, 8192};

    pattern_fill(job->data, 0, 8192, 1);
    assert_null(job_run(job, queue, VMF_REQUEST_WRITE, 0, 8192));
    assert_null(job_run(flush, queue, VMF_REQUEST_FLUSH, 0, 0));
    for (VmfRequestKind kind = VMF_REQUEST_WRITE; kind <= VMF_REQUEST_ZERO; kind++) {
        job->request.kind = kind;
        job->request.fua = true;
        job->request.offset = kind == VMF_REQUEST_WRITE ? 0 : 4096;
        job->request.length = kind == VMF_REQUEST_WRITE ? 8192 : 4096;
        job->request.iov = &iov;
        job->request.n_iov = 1;
        job->pending = true;
        vmf_storage_submit(queue, &job->request);
        vmf_storage_wait(queue, 0);
        assert_null(job->error);
    }
    assert_good(vmf_storage_flush(bench->storage, &error), error);
    assert_null(job_run(job, queue, VMF_REQUEST_READ, 0, 8192));
    assert_pattern(job->data, 0, 4096, 1);
    assert_zeros(job->data + 4096, 4096);
}

/* ---- trouble ---------------------------------------------------------------------------------------------------- */

/* Somebody made the file shorter: what is left is read, what is gone is an error and no loop. */
static void test_made_shorter(void **state)
{
    Bench *bench = *state;
    g_autofree char *path = g_build_filename(bench->directory, "image.partial", NULL);
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    g_autoptr(Job) job = job_new(MIB);

    assert_int_equal(truncate(path, 3 * MIB / 2 + 100), 0);
    assert_null(job_run(job, queue, VMF_REQUEST_READ, 0, MIB));
    assert_non_null(job_run(job, queue, VMF_REQUEST_READ, MIB, MIB));
    assert_non_null(strstr(job->error->message, "made shorter"));
    assert_error(job->error, VMF_ERROR_IO);
    assert_non_null(job_run(job, queue, VMF_REQUEST_READ, 8 * MIB, MIB));
    assert_error(job->error, VMF_ERROR_IO);
}

/* The size to which a process may write ends within the request: a short write, then an error. */
static void test_file_limit(void **state)
{
    Bench *bench = *state;
    g_autoptr(VmfStorageQueue) queue = queue_of(bench->storage, 4);
    g_autoptr(Job) job = job_new(MIB);
    struct rlimit before, limit;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = (struct rlimit){3 * MIB / 2, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    pattern_fill(job->data, MIB, MIB, 1);
    job_run(job, queue, VMF_REQUEST_WRITE, MIB, MIB);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    if (strcmp(bench->kind->backend, "io_uring") == 0 && !job->error)
        return; /* its workers are the kernel's, and some kernels do not limit them */
    assert_non_null(job->error);
    assert_non_null(strstr(job->error->message, "write: 1048576 bytes at offset 1048576"));
    assert_error(job->error, VMF_ERROR_IO);
}

/* ---- all over all ----------------------------------------------------------------------------------------------- */

static const Kind kinds[] = {
    {"threads, direct", "threads", false, false},     {"threads, buffered", "threads", true, false},
    {"threads, in memory", "threads", false, true},   {"libaio, direct", "libaio", false, false},
    {"libaio, buffered", "libaio", true, false},      {"libaio, in memory", "libaio", false, true},
    {"io_uring, direct", "io_uring", false, false},   {"io_uring, buffered", "io_uring", true, false},
    {"io_uring, in memory", "io_uring", false, true},
};

static const struct {
    const char *name;
    CMUnitTestFunction function;
} all[] = {
    {"write and read back", test_write_and_read_back},
    {"scattered", test_scattered},
    {"many small", test_many_small}, {"woken", test_woken},
    {"poll", test_poll},
    {"done() submits", test_done_submits},
    {"done() submits many", test_done_submits_many},
    {"refused", test_refused},
    {"refused pieces", test_refused_pieces},
    {"depths", test_depths},
    {"zero", test_zero},
    {"extent out of range", test_extent_out_of_range},
    {"preallocate", test_preallocate},
    {"flush and fua", test_flush_and_fua},
    {"made shorter", test_made_shorter},
    {"file limit", test_file_limit},
};

/* NULL: it can be tested here. */
static const char *why_not(const Kind *kind)
{
    VmfStorageOptions options = {.mode = VMF_STORAGE_CREATE, .backend = kind->backend, .buffered = kind->buffered};
    g_autoptr(VmfStorage) storage = NULL;
    g_autofree char *directory = NULL;
    const char *why = NULL;

    if (kind->in_memory && access("/dev/shm", W_OK) < 0)
        return "there is no /dev/shm to write to";
    directory = directory_new(kind->in_memory ? "/dev/shm" : ".");
    {
        g_autofree char *uri = uri_at(directory, "probe");

        storage = vmf_storage_open(uri, &options, NULL);
    }
    if (!storage)
        why = "the backend does not work here";
    else if (!kind->buffered && !kind->in_memory && vmf_storage_alignment(storage) == 1)
        why = "there is no direct I/O here";
    g_clear_pointer(&storage, vmf_storage_free);
    directory_remove(g_steal_pointer(&directory));
    return why;
}

int main(void)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    struct CMUnitTest tests[G_N_ELEMENTS(kinds) * G_N_ELEMENTS(all)];
    size_t n = 0;

    for (const Kind *kind = kinds; kind < kinds + G_N_ELEMENTS(kinds); kind++) {
        const char *why = why_not(kind);

        if (why)
            printf("skipped: %s: %s\n", kind->name, why);
        for (size_t i = 0; !why && i < G_N_ELEMENTS(all); i++) {
            g_ptr_array_add(names, g_strdup_printf("%s: %s", kind->name, all[i].name));
            tests[n++] = (struct CMUnitTest){g_ptr_array_index(names, names->len - 1), all[i].function, set_up,
                                             tear_down, (void *)kind};
        }
    }
    return _cmocka_run_group_tests("storage", tests, n, NULL, NULL);
}
