/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/disk.h"
#include "stream/storage-fault.h"

#define DISK_BYTES (8ull * MIB)

typedef struct {
    char *directory;
} Rig;

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->directory = directory_new(g_get_tmp_dir());
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    directory_remove(rig->directory);
    g_free(rig);
    return 0;
}

static VmfDisk *try_open(const Rig *rig, VmfDiskOptions options, GError **error)
{
    g_autofree char *uri = uri_at(rig->directory, "disk");

    options.size = sizeof(options);
    options.uri = uri;
    return vmf_disk_open("root", &options, error);
}

static VmfDisk *open_disk(const Rig *rig, VmfDiskOptions options)
{
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = try_open(rig, options, &error);

    if (!disk)
        fail_msg("%s", error->message);
    return disk;
}

static VmfDisk *new_disk(const Rig *rig)
{
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = open_disk(rig, (VmfDiskOptions){.create_bytes = DISK_BYTES});

    if (!vmf_disk_acquire(disk, &error))
        fail_msg("%s", error->message);
    return disk;
}

/* ---- one request at a time --------------------------------------------------------------------------------------- */

typedef struct {
    VmfDiskRequest request;
    struct iovec iov;
    bool ended, failed;
    int code;
} Work;

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Work *work = request->opaque;

    work->failed = error != NULL;
    work->code = error ? error->code : 0;
    work->ended = true;
}

/* 0, or the code of its error. */
static int run(VmfDisk *disk, VmfDiskOperation operation, uint64_t offset, void *data, uint64_t length)
{
    Work work = {.iov = {data, length}, .code = -1};

    work.request =
        (VmfDiskRequest){.operation = operation, .offset = offset, .length = length, .done = on_done, .opaque = &work};
    if (data) {
        work.request.iov = &work.iov;
        work.request.n_iov = 1;
    }
    vmf_disk_submit(disk, &work.request);
    vmf_disk_drain(disk);
    assert_true(work.ended);
    return work.failed ? work.code : 0;
}

static void assert_content(VmfDisk *disk, uint64_t offset, uint64_t length, uint32_t version)
{
    g_autofree uint8_t *data = g_malloc(length + 1);

    assert_int_equal(run(disk, VMF_DISK_READ, offset, data + 1, length), 0); /* at an odd address: through a copy */
    assert_pattern(data + 1, offset, length, version);
}

static void test_requests(void **state)
{
    g_autoptr(VmfDisk) disk = new_disk(*state);
    g_autofree uint8_t *data = g_malloc0(MIB);
    VmfDiskInfo info = {.size = sizeof(info)};

    pattern_fill(data, 512, MIB, 1);
    assert_int_equal(run(disk, VMF_DISK_WRITE, 512, data, MIB), 0);
    assert_content(disk, 512, MIB, 1);
    assert_int_equal(run(disk, VMF_DISK_ZERO, 65536, NULL, 65536), 0);
    assert_int_equal(run(disk, VMF_DISK_DISCARD, 262144, NULL, 4096), 0);
    assert_int_equal(run(disk, VMF_DISK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(run(disk, VMF_DISK_READ, 65536, data, 65536), 0);
    assert_zeros(data, 65536);
    assert_int_equal(run(disk, VMF_DISK_READ, 262144, data, 4096), 0);
    assert_zeros(data, 4096);
    assert_content(disk, 131072, 131072, 1);
    vmf_disk_get_info(disk, &info);
    assert_int_equal(info.size_bytes, DISK_BYTES);
    assert_int_equal(info.writes, 1);
    assert_int_equal(info.written_bytes, MIB);
    assert_int_equal(info.zeroes, 2);
    assert_int_equal(info.flushes, 1);
    assert_int_equal(info.failures, 0);
    assert_true(info.acquired && info.locked);
}

static void test_what_does_not_fit_fails_alone(void **state)
{
    g_autoptr(VmfDisk) disk = new_disk(*state);
    uint8_t data[4096] = {0};
    static const struct {
        VmfDiskOperation operation;
        uint64_t offset, length;
    } bad[] = {
        {VMF_DISK_WRITE, DISK_BYTES - 512, 1024},
        {VMF_DISK_READ, DISK_BYTES, 512},
        {VMF_DISK_READ, 1, 512},
        {VMF_DISK_WRITE, 0, 100},
        {VMF_DISK_ZERO, ~0ull - 511, 1024},
        {VMF_DISK_FLUSH + 1, 0, 512},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        assert_int_equal(run(disk, bad[i].operation, bad[i].offset, data, bad[i].length), VMF_ERROR_IO);
    assert_int_equal(run(disk, VMF_DISK_WRITE, DISK_BYTES - 512, data, 512), 0);
    assert_true(vmf_disk_release(disk, NULL));
    assert_int_equal(run(disk, VMF_DISK_WRITE, 0, data, 512), VMF_ERROR_STATE);
    assert_true(vmf_disk_acquire(disk, NULL));
    assert_int_equal(run(disk, VMF_DISK_WRITE, 0, data, 512), 0);
}

static void test_opening(void **state)
{
    const Rig *rig = *state;
    GError *error = NULL;

    assert_null(try_open(rig, (VmfDiskOptions){.sector_bytes = 512}, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_null(try_open(rig, (VmfDiskOptions){.create_bytes = 1000}, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_null(try_open(rig, (VmfDiskOptions){.create_bytes = 4096, .sector_bytes = 1024}, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_null(try_open(rig, (VmfDiskOptions){.create_bytes = 4096, .read_only = true}, &error));
    assert_error(error, VMF_ERROR_USAGE);
    vmf_disk_free(new_disk(rig));
    assert_null(try_open(rig, (VmfDiskOptions){.create_bytes = DISK_BYTES + 512}, &error));
    assert_error(error, VMF_ERROR_IO);
    g_autoptr(VmfDisk) disk = open_disk(rig, (VmfDiskOptions){.read_only = true});
    uint8_t data[512] = {0};
    assert_true(vmf_disk_acquire(disk, &error));
    assert_int_equal(run(disk, VMF_DISK_READ, 0, data, 512), 0);
    assert_int_equal(run(disk, VMF_DISK_WRITE, 0, data, 512), VMF_ERROR_IO);
    assert_int_equal(run(disk, VMF_DISK_DISCARD, 0, NULL, 512), VMF_ERROR_IO);
}

/* A file that was made shorter or longer while another host had it is not the disk that the guest knows. */
static void test_size_that_changed_is_refused(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) disk = new_disk(rig);
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL);
    GError *error = NULL;

    assert_true(vmf_disk_release(disk, NULL));
    assert_int_equal(truncate(path, DISK_BYTES - 4096), 0);
    assert_false(vmf_disk_acquire(disk, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    assert_true(vmf_disk_acquire(disk, &error));
}

/* ---- whose it is ------------------------------------------------------------------------------------------------- */

static void test_never_two_writers(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) one = new_disk(rig);
    g_autoptr(VmfDisk) two = open_disk(rig, (VmfDiskOptions){.size = 0});
    g_autoptr(VmfDisk) reader = open_disk(rig, (VmfDiskOptions){.read_only = true});
    g_autoptr(VmfDisk) other_reader = open_disk(rig, (VmfDiskOptions){.read_only = true});
    GError *error = NULL;

    assert_false(vmf_disk_acquire(two, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    assert_false(vmf_disk_acquire(reader, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    assert_true(vmf_disk_release(one, NULL));
    assert_true(vmf_disk_acquire(reader, &error));
    assert_true(vmf_disk_acquire(other_reader, &error));
    assert_false(vmf_disk_acquire(one, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    assert_true(vmf_disk_release(reader, NULL) && vmf_disk_release(other_reader, NULL));
    assert_true(vmf_disk_acquire(two, &error));
    assert_false(vmf_disk_acquire(one, &error));
    assert_error(error, VMF_ERROR_LOCKED);
}

/* Locks what QEMU locks of an image that it writes, and lets others write too: only the octet that says "writes". */
static void test_writer_that_shares_is_seen(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL);
    struct flock writes = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
    struct flock no_writer = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1};
    GError *error = NULL;

    vmf_disk_free(new_disk(rig));
    g_autoptr(VmfDisk) reader = open_disk(rig, (VmfDiskOptions){.read_only = true});
    g_autoptr(VmfDisk) writer = open_disk(rig, (VmfDiskOptions){.read_only = false});
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &writes), 0);
    assert_false(vmf_disk_acquire(reader, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    assert_false(vmf_disk_acquire(writer, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    /* A reader that wants no writer beside it. */
    writes.l_type = F_UNLCK;
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &writes), 0);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &no_writer), 0);
    assert_false(vmf_disk_acquire(writer, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    assert_true(vmf_disk_acquire(reader, &error));
    close(fd);
}

/* Acquires in a process of its own, writes there, says so, and waits for its end. */
static pid_t fork_owner(const Rig *rig, int *said)
{
    int ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        g_autoptr(VmfDisk) disk = open_disk(rig, (VmfDiskOptions){.size = 0});
        uint8_t data[4096];
        pattern_fill(data, 0, sizeof(data), 9);
        char ok = vmf_disk_acquire(disk, NULL) && run(disk, VMF_DISK_WRITE, 0, data, sizeof(data)) == 0;
        (void)!write(ends[1], &ok, 1);
        pause();
        _exit(1);
    }
    close(ends[1]);
    *said = ends[0];
    return pid;
}

static void test_lock_ends_with_the_process(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL);
    GError *error = NULL;
    char ok = 0;
    int said;

    assert_true(g_file_set_contents(path, "", 0, NULL));
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    pid_t pid = fork_owner(rig, &said); /* before there are threads here */
    assert_int_equal(read(said, &ok, 1), 1);
    assert_true(ok);
    g_autoptr(VmfDisk) disk = open_disk(rig, (VmfDiskOptions){.size = 0});
    assert_false(vmf_disk_acquire(disk, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_true(vmf_disk_acquire(disk, &error));
    assert_content(disk, 0, 4096, 9);
    close(said);
}

/* ---- many threads, and a log of what they write ------------------------------------------------------------------ */

enum { N_WRITERS = 4, N_STEPS = 300, N_SLOTS = 4 };

typedef struct {
    VmfDisk *disk;
    VmfDiskDirty *logged; /* what was written, by the writers' own word */
    uint32_t seed;
    unsigned n_ended;
    pthread_mutex_t lock;
    pthread_cond_t ended;
} Writer;

typedef struct {
    VmfDiskRequest request;
    struct iovec iov;
    Writer *writer;
    bool busy;
    uint8_t *data;
} Slot;

static void slot_done(VmfDiskRequest *request, const GError *error)
{
    Slot *slot = request->opaque;

    assert_null(error);
    if (request->operation != VMF_DISK_READ && request->operation != VMF_DISK_FLUSH)
        vmf_disk_dirty_mark(slot->writer->logged, request->offset, request->length);
    pthread_mutex_lock(&slot->writer->lock);
    slot->busy = false;
    slot->writer->n_ended++;
    pthread_cond_signal(&slot->writer->ended);
    pthread_mutex_unlock(&slot->writer->lock);
}

static Slot *free_slot(Writer *writer, Slot *slots)
{
    Slot *found = NULL;

    pthread_mutex_lock(&writer->lock);
    while (!found) {
        for (unsigned i = 0; i < N_SLOTS && !found; i++)
            found = slots[i].busy ? NULL : &slots[i];
        if (!found)
            pthread_cond_wait(&writer->ended, &writer->lock);
    }
    found->busy = true;
    pthread_mutex_unlock(&writer->lock);
    return found;
}

static void *writer_main(void *opaque)
{
    static const VmfDiskOperation operations[] = {VMF_DISK_WRITE, VMF_DISK_WRITE,   VMF_DISK_READ,
                                                  VMF_DISK_ZERO,  VMF_DISK_DISCARD, VMF_DISK_FLUSH};
    Writer *writer = opaque;
    g_autoptr(GRand) random = g_rand_new_with_seed(writer->seed);
    Slot slots[N_SLOTS] = {0};

    for (unsigned i = 0; i < N_SLOTS; i++)
        slots[i] = (Slot){.writer = writer, .data = g_malloc(65536)};
    for (unsigned step = 0; step < N_STEPS; step++) {
        Slot *slot = free_slot(writer, slots);
        uint64_t length = 512ull * (uint64_t)g_rand_int_range(random, 1, 129);
        uint64_t offset = 512ull * (uint64_t)g_rand_int_range(random, 0, (gint32)((DISK_BYTES - length) / 512));
        VmfDiskOperation operation = operations[g_rand_int_range(random, 0, G_N_ELEMENTS(operations))];
        pattern_fill(slot->data, offset, length, writer->seed);
        slot->iov = (struct iovec){slot->data, length};
        slot->request = (VmfDiskRequest){.operation = operation,
                                         .fua = operation == VMF_DISK_WRITE && step % 8 == 0,
                                         .offset = offset,
                                         .length = length,
                                         .iov = &slot->iov,
                                         .n_iov = 1,
                                         .done = slot_done,
                                         .opaque = slot};
        vmf_disk_submit(writer->disk, &slot->request);
    }
    vmf_disk_drain(writer->disk);
    for (unsigned i = 0; i < N_SLOTS; i++)
        g_free(slots[i].data);
    return NULL;
}

static void start_writers(Writer *writers, pthread_t *threads, VmfDisk *disk, VmfDiskDirty *logged)
{
    for (unsigned i = 0; i < N_WRITERS; i++) {
        writers[i] = (Writer){.disk = disk, .logged = logged, .seed = 100 + i};
        pthread_mutex_init(&writers[i].lock, NULL);
        pthread_cond_init(&writers[i].ended, NULL);
        assert_int_equal(pthread_create(&threads[i], NULL, writer_main, &writers[i]), 0);
    }
}

/* Reads a range of a disk around its back. */
static void copy_granules(const char *path, uint8_t *copy, uint64_t first, uint64_t n)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    for (uint64_t at = first * VMF_DISK_GRANULE_BYTES; at < (first + n) * VMF_DISK_GRANULE_BYTES;
         at += VMF_DISK_GRANULE_BYTES)
        assert_int_equal(pread(fd, copy + at, VMF_DISK_GRANULE_BYTES, (off_t)at), VMF_DISK_GRANULE_BYTES);
    close(fd);
}

/*
 * Every write that the writers know of is in what the disk tells a tracker that came while they were at work; and a
 * copy that follows the tracker, as a migration does, ends as the disk did.
 */
static void test_trackers_miss_no_write(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) disk = new_disk(rig);
    g_autoptr(VmfDiskDirty) logged = vmf_disk_dirty_new(DISK_BYTES, NULL);
    g_autoptr(VmfDiskDirty) seen = vmf_disk_dirty_new(DISK_BYTES, NULL);
    g_autoptr(VmfDiskDirty) taken = vmf_disk_dirty_new(DISK_BYTES, NULL);
    g_autofree uint8_t *copy = g_malloc(DISK_BYTES);
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL), *content = NULL;
    Writer writers[N_WRITERS];
    pthread_t threads[N_WRITERS];
    gsize length;

    vmf_disk_track(disk, seen);
    start_writers(writers, threads, disk, logged);
    vmf_disk_track(disk, taken);
    copy_granules(path, copy, 0, DISK_BYTES / VMF_DISK_GRANULE_BYTES);
    for (unsigned round = 0; round < 20; round++)
        for (uint64_t first, n, at = 0; (n = vmf_disk_dirty_take(taken, at, 16, &first)); at = first + n)
            copy_granules(path, copy, first, n);
    for (unsigned i = 0; i < N_WRITERS; i++)
        pthread_join(threads[i], NULL);
    vmf_disk_drain(disk);
    for (uint64_t first, n, at = 0; (n = vmf_disk_dirty_take(taken, at, 16, &first)); at = first + n)
        copy_granules(path, copy, first, n);
    vmf_disk_untrack(disk, seen);
    vmf_disk_untrack(disk, taken);
    assert_true(vmf_disk_dirty_count(logged) > 0);
    for (uint64_t granule = 0; granule < vmf_disk_dirty_granules(logged); granule++)
        assert_true(!vmf_disk_dirty_is_set(logged, granule) || vmf_disk_dirty_is_set(seen, granule));
    assert_true(vmf_disk_release(disk, NULL));
    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_memory_equal(content, copy, DISK_BYTES);
}

static void hold_thread(VmfDiskRequest *request, const GError *error)
{
    pthread_mutex_t *gate = request->opaque;

    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
}

/* A bit that was taken while the write was still to come is there again when it has come. */
static void test_write_is_marked_again_at_its_end(void **state)
{
    g_autoptr(VmfDisk) disk = new_disk(*state);
    g_autoptr(VmfDiskDirty) dirty = vmf_disk_dirty_new(DISK_BYTES, NULL);
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    VmfDiskRequest holder = {.operation = VMF_DISK_FLUSH, .done = hold_thread, .opaque = &gate};
    uint8_t data[512] = {0};
    Work work = {.iov = {data, sizeof(data)}};
    uint64_t first;

    work.request = (VmfDiskRequest){.operation = VMF_DISK_WRITE, .offset = 3 * 65536, .length = sizeof(data), .iov = &work.iov, .n_iov = 1,
                                    .done = on_done, .opaque = &work};
    vmf_disk_track(disk, dirty);
    pthread_mutex_lock(&gate);
    vmf_disk_submit(disk, &holder);
    vmf_disk_submit(disk, &work.request);
    assert_int_equal(vmf_disk_dirty_take(dirty, 0, 100, &first), 1);
    assert_int_equal(first, 3);
    pthread_mutex_unlock(&gate);
    vmf_disk_drain(disk);
    assert_true(work.ended && vmf_disk_dirty_is_set(dirty, 3));
    vmf_disk_untrack(disk, dirty);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

/* Storage whose first request ends when a second one has come. */
typedef struct {
    VmfStorageQueue base;
    pthread_mutex_t lock;
    pthread_cond_t woken;
} GateQueue;

typedef struct {
    VmfStorage base;
    VmfStorage *below;
} GateStorage;

static void gate_reap(VmfStorageQueue *base, bool wait)
{
    GateQueue *queue = (GateQueue *)base;

    pthread_mutex_lock(&queue->lock);
    while (wait && base->busy < 2 && !vmf_storage_is_woken(base))
        pthread_cond_wait(&queue->woken, &queue->lock);
    pthread_mutex_unlock(&queue->lock);
    while (base->busy == 2 || (base->busy > 0 && base->ended.n > 0))
        vmf_storage_request_ended(base, vmf_request_list_pop(&base->staged), NULL);
}

static void gate_wake(VmfStorageQueue *base)
{
    GateQueue *queue = (GateQueue *)base;

    pthread_mutex_lock(&queue->lock);
    pthread_cond_broadcast(&queue->woken);
    pthread_mutex_unlock(&queue->lock);
}

static void gate_issue(VmfStorageQueue *base)
{
}

static void gate_queue_free(VmfStorageQueue *base)
{
}

static VmfStorageQueue *gate_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    static const VmfStorageQueueOps ops = {
        .issue = gate_issue, .reap = gate_reap, .wake = gate_wake, .free = gate_queue_free};
    GateQueue *queue = g_new0(GateQueue, 1);

    queue->base.ops = &ops;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->woken, NULL);
    return &queue->base;
}

static bool gate_flush(VmfStorage *storage, GError **error)
{
    return true;
}

static void gate_free(VmfStorage *storage)
{
    vmf_storage_free(((GateStorage *)storage)->below);
}

static VmfStorage *put_gate(VmfStorage *storage, void *opaque, GError **error)
{
    static const VmfStorageOps ops = {.free = gate_free, .flush = gate_flush, .queue_new = gate_queue_new};
    GateStorage *gate = g_new0(GateStorage, 1);

    gate->base = (VmfStorage){.ops = &ops,
                              .name = g_strdup("gate"),
                              .backend = "gate",
                              .mode = VMF_STORAGE_MODIFY,
                              .size = vmf_storage_size(storage),
                              .alignment = 512};
    gate->below = storage;
    return &gate->base;
}

/* A request is given to the storage at once, whatever is under way there and however long that takes. */
static void test_no_request_waits_for_another(void **state)
{
    g_autoptr(VmfDisk) disk = open_disk(*state, (VmfDiskOptions){.create_bytes = DISK_BYTES});
    g_autofree uint8_t *data = g_malloc0(8192);
    Work work[2] = {0};

    vmf_disk_set_wrap(disk, put_gate, NULL);
    assert_true(vmf_disk_acquire(disk, NULL));
    for (unsigned i = 0; i < 2; i++) {
        work[i].iov = (struct iovec){data, 4096};
        work[i].request = (VmfDiskRequest){.operation = VMF_DISK_READ, .offset = i * 4096, .length = 4096,
                                           .iov = &work[i].iov, .n_iov = 1, .done = on_done, .opaque = &work[i]};
        vmf_disk_submit(disk, &work[i].request);
        g_usleep(20000); /* for the thread to get to where it waits */
    }
    vmf_disk_drain(disk);
    assert_true(work[0].ended && !work[0].failed && work[1].ended && !work[1].failed);
}

/* ---- latency ---------------------------------------------------------------------------------------------------- */

static void assert_one_write_is(VmfDisk *disk, bool late)
{
    g_autofree uint8_t *data = g_malloc0(4096);
    uint64_t n, n_late;

    assert_int_equal(run(disk, VMF_DISK_WRITE, 0, data, 4096), 0);
    assert_int_equal(run(disk, VMF_DISK_READ, 0, data, 4096), 0);
    vmf_disk_take_latency(disk, &n, &n_late);
    assert_int_equal(n, 1);
    assert_int_equal(n_late, late);
}

/* Storage may be slow by itself. */
static void test_what_a_copy_cannot_have_delayed_is_not_late(void **state)
{
    g_autoptr(VmfDisk) disk = open_disk(*state, (VmfDiskOptions){.create_bytes = DISK_BYTES});
    _Atomic int64_t copied_ns = INT64_MAX;
    uint64_t n, n_late;

    assert_true(vmf_disk_acquire(disk, NULL));
    vmf_disk_watch_latency(disk, 1, &copied_ns);
    assert_one_write_is(disk, true);
    copied_ns = 0;
    assert_one_write_is(disk, false);
    vmf_disk_watch_latency(disk, 1, NULL);
    assert_one_write_is(disk, true);
    vmf_disk_watch_latency(disk, UINT64_C(3600000000000), NULL);
    assert_one_write_is(disk, false);
    vmf_disk_watch_latency(disk, 0, NULL);
    assert_int_equal(run(disk, VMF_DISK_DISCARD, 0, NULL, 4096), 0);
    vmf_disk_take_latency(disk, &n, &n_late);
    assert_int_equal(n + n_late, 0);
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

static VmfStorage *put_fault(VmfStorage *storage, void *opaque, GError **error)
{
    return vmf_storage_fault_new(storage, opaque, 1, error);
}

static VmfDisk *faulty_disk(const Rig *rig, VmfStorageFault *fault)
{
    VmfDisk *disk = open_disk(rig, (VmfDiskOptions){.create_bytes = DISK_BYTES});

    vmf_disk_set_wrap(disk, put_fault, fault);
    assert_true(vmf_disk_acquire(disk, NULL));
    return disk;
}

static void test_errors_are_of_their_request(void **state)
{
    VmfStorageFault bad_block = {.kind = VMF_STORAGE_FAULT_ERROR, .offset = 65536, .length = 512};
    g_autoptr(VmfDisk) disk = faulty_disk(*state, &bad_block);
    g_autoptr(VmfDiskDirty) dirty = vmf_disk_dirty_new(DISK_BYTES, NULL);
    g_autofree uint8_t *data = g_malloc0(4096);
    VmfDiskInfo info = {.size = sizeof(info)};

    vmf_disk_track(disk, dirty);
    assert_int_equal(run(disk, VMF_DISK_WRITE, 65536, data, 4096), VMF_ERROR_IO);
    assert_int_equal(run(disk, VMF_DISK_READ, 65536, data, 4096), VMF_ERROR_IO);
    assert_int_equal(run(disk, VMF_DISK_WRITE, 131072, data, 4096), 0);
    /* Nobody knows what a write that failed has left. */
    assert_true(vmf_disk_dirty_is_set(dirty, 1) && vmf_disk_dirty_is_set(dirty, 2));
    vmf_disk_untrack(disk, dirty);
    vmf_disk_get_info(disk, &info);
    assert_int_equal(info.failures, 2);
}

static void test_full_storage(void **state)
{
    VmfStorageFault full = {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = 65536};
    g_autoptr(VmfDisk) disk = faulty_disk(*state, &full);
    g_autofree uint8_t *data = g_malloc0(65536);

    assert_int_equal(run(disk, VMF_DISK_WRITE, 0, data, 65536), 0);
    assert_int_equal(run(disk, VMF_DISK_WRITE, 65536, data, 512), VMF_ERROR_NO_SPACE);
    assert_int_equal(run(disk, VMF_DISK_READ, 0, data, 65536), 0);
}

/* What could not be flushed is not another host's yet. */
static void test_release_that_cannot_flush_keeps_the_disk(void **state)
{
    const Rig *rig = *state;
    VmfStorageFault once = {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH), .times = 1};
    g_autoptr(VmfDisk) disk = faulty_disk(rig, &once);
    g_autoptr(VmfDisk) other = open_disk(rig, (VmfDiskOptions){.size = 0});
    g_autofree uint8_t *data = g_malloc0(4096);
    GError *error = NULL;

    assert_false(vmf_disk_release(disk, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_false(vmf_disk_acquire(other, &error));
    assert_error(error, VMF_ERROR_LOCKED);
    assert_int_equal(run(disk, VMF_DISK_WRITE, 0, data, 4096), 0);
    assert_true(vmf_disk_release(disk, &error));
    assert_true(vmf_disk_acquire(other, &error));
}

/* ---- what images know of it -------------------------------------------------------------------------------------- */

static char *mark_of(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;
    char *mark = vmf_disk_guest_ops.mark(disk, &error);

    if (!mark)
        fail_msg("%s", error->message);
    return mark;
}

static void test_mark_changes_with_any_write(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDisk) disk = new_disk(rig);
    g_autoptr(VmfDisk) again = open_disk(rig, (VmfDiskOptions){.size = 0});
    g_autofree char *identity = vmf_disk_guest_ops.identity(disk, NULL),
                    *same = vmf_disk_guest_ops.identity(again, NULL);
    uint8_t data[512] = {0};

    assert_string_equal(identity, same);
    assert_int_equal(vmf_disk_guest_ops.size_bytes(disk), DISK_BYTES);
    for (unsigned i = 0; i < 8; i++) {
        g_autofree char *before = mark_of(disk);
        assert_true(vmf_disk_release(disk, NULL) && vmf_disk_acquire(disk, NULL));
        g_autofree char *unwritten = mark_of(again);
        assert_string_equal(before, unwritten);
        /* At once: within one step of the filesystem's clock, if it were up to the clock. */
        assert_int_equal(run(disk, i % 2 ? VMF_DISK_ZERO : VMF_DISK_WRITE, 0, i % 2 ? NULL : data, 512), 0);
        g_autofree char *after = mark_of(again);
        assert_string_not_equal(before, after);
    }
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_requests),
        rig_test(test_what_does_not_fit_fails_alone),
        rig_test(test_opening),
        rig_test(test_size_that_changed_is_refused),
        rig_test(test_never_two_writers),
        rig_test(test_writer_that_shares_is_seen),
        rig_test(test_lock_ends_with_the_process),
        rig_test(test_trackers_miss_no_write),
        rig_test(test_write_is_marked_again_at_its_end),
        rig_test(test_no_request_waits_for_another),
        rig_test(test_what_a_copy_cannot_have_delayed_is_not_late),
        rig_test(test_errors_are_of_their_request),
        rig_test(test_full_storage),
        rig_test(test_release_that_cannot_flush_keeps_the_disk),
        rig_test(test_mark_changes_with_any_write),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
