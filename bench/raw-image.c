/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this machine can do at all with a file of guest memory, by the shortest programs:
 *
 *   write   populated memory into a new file, made ready as an image is (full size, the places of data allocated
 * ahead): so many threads, each with so many direct writes of 2 MiB under way; sync and rename included. read    the
 * same file into memory of the same kind that nobody has touched. fault   threads that touch pages of such memory at
 * random; who takes the fault reads that page of the file and resolves it. With --prefetch a thread reads the file from
 * its start meanwhile and resolves what it has read.
 *
 * Three quarters of memory hold data, in every chunk of 2 MiB but each fourth; with --every one chunk in so many.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/common.h"

#define CHUNK BENCH_CHUNK
#define PAGES_MAX (1u << 20) /* pages touched at most */

typedef struct {
    char *size_text, *path;
    int threads, depth, touches, every;
    gboolean buffered, cold, prefetch;
    BenchKind kind;
} Options;

typedef struct {
    const Options *options;
    uint8_t *memory;
    uint64_t size;
    int fd;
    bool is_write;
    _Atomic uint64_t next; /* chunk */
} Job;

static bool holds_data(const Options *options, uint64_t chunk)
{
    return bench_holds_data(chunk, (unsigned)options->every);
}

static void print_result(uint64_t bytes, int64_t total_ns, int64_t cpu_ns)
{
    printf("{\"type\":\"result\",\"bytes\":%" PRIu64 ",\"total_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64 "}\n", bytes,
           total_ns, cpu_ns);
    fflush(stdout);
}

/* ---- write and read --------------------------------------------------------------------------------------------- */

static bool start_next(Job *job, struct io_uring *ring)
{
    uint64_t chunk;

    do
        chunk = atomic_fetch_add(&job->next, 1);
    while (chunk < job->size / CHUNK && !holds_data(job->options, chunk));
    if (chunk >= job->size / CHUNK)
        return false;
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    if (job->is_write)
        io_uring_prep_write(entry, job->fd, job->memory + chunk * CHUNK, CHUNK, chunk * CHUNK);
    else
        io_uring_prep_read(entry, job->fd, job->memory + chunk * CHUNK, CHUNK, chunk * CHUNK);
    io_uring_submit(ring);
    return true;
}

static void *transfer(void *opaque)
{
    Job *job = opaque;
    struct io_uring ring;
    struct io_uring_cqe *done;
    int under_way = 0;

    if (io_uring_queue_init((unsigned)job->options->depth, &ring, 0) < 0)
        bench_die("io_uring");
    while (under_way < job->options->depth && start_next(job, &ring))
        under_way++;
    while (under_way > 0) {
        if (io_uring_wait_cqe(&ring, &done) < 0 || done->res != (int)CHUNK) {
            errno = EIO;
            bench_die("transfer");
        }
        io_uring_cqe_seen(&ring, done);
        under_way -= !start_next(job, &ring);
    }
    io_uring_queue_exit(&ring);
    return NULL;
}

static void run_job(Job *job)
{
    pthread_t threads[64];

    for (int i = 0; i < job->options->threads; i++)
        if (pthread_create(&threads[i], NULL, transfer, job) != 0)
            bench_die("thread");
    for (int i = 0; i < job->options->threads; i++)
        pthread_join(threads[i], NULL);
}

static int open_file(const Options *options, const char *path, int flags)
{
    int fd = options->buffered ? -1 : open(path, flags | O_DIRECT | O_CLOEXEC, 0600);

    if (fd < 0)
        fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        bench_die(path);
    return fd;
}

/* The places of data, each stretch by one call. */
static void allocate(const Options *options, int fd, uint64_t n_chunks)
{
    for (uint64_t first = 0, end; first < n_chunks; first = end + 1) {
        for (end = first; end < n_chunks && holds_data(options, end);)
            end++;
        if (end > first)
            fallocate(fd, 0, (off_t)(first * CHUNK), (off_t)((end - first) * CHUNK));
    }
}

static void write_file(const Options *options, uint64_t size)
{
    g_autofree char *partial = g_strconcat(options->path, ".partial", NULL);
    Job job = {.options = options, .memory = bench_map(size, options->kind), .size = size, .is_write = true};

    for (uint64_t chunk = 0; chunk < size / CHUNK; chunk++)
        if (holds_data(options, chunk))
            bench_fill_random(job.memory + chunk * CHUNK, CHUNK, chunk);
    unlink(partial);
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns(), begun_ns = bench_now_ns();
    job.fd = open_file(options, partial, O_RDWR | O_CREAT | O_EXCL);
    if (ftruncate(job.fd, (off_t)size) < 0)
        bench_die("size");
    allocate(options, job.fd, size / CHUNK);
    run_job(&job);
    if (fdatasync(job.fd) < 0 || rename(partial, options->path) < 0)
        bench_die("sync");
    print_result(bench_data_bytes(size, (unsigned)options->every), bench_now_ns() - begun_ns, bench_cpu_ns() - cpu_ns);
}

static void read_file(const Options *options, uint64_t size)
{
    Job job = {.options = options, .memory = bench_map(size, options->kind), .size = size};

    job.fd = open_file(options, options->path, O_RDONLY);
    if (options->cold)
        posix_fadvise(job.fd, 0, 0, POSIX_FADV_DONTNEED);
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns(), begun_ns = bench_now_ns();
    run_job(&job);
    print_result(bench_data_bytes(size, (unsigned)options->every), bench_now_ns() - begun_ns, bench_cpu_ns() - cpu_ns);
}

/* ---- fault ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const Options *options;
    uint8_t *memory;
    uint64_t size;
    int fd, uffd;
    _Atomic bool over;
    uint64_t n_taken;
    int64_t *taken_ns; /* by fault: read from the descriptor until it is resolved */
} Faults;

static bool place(const Faults *faults, uint64_t offset, const uint8_t *from, uint64_t length)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)faults->memory + offset, .src = (uintptr_t)from, .len = length};

    return ioctl(faults->uffd, UFFDIO_COPY, &copy) == 0;
}

static void *handle(void *opaque)
{
    Faults *faults = opaque;
    uint8_t *page = bench_map(CHUNK, (BenchKind){0});
    struct pollfd wait = {.fd = faults->uffd, .events = POLLIN};
    struct uffd_msg message;

    while (!atomic_load(&faults->over)) {
        if (poll(&wait, 1, 10) <= 0 || read(faults->uffd, &message, sizeof(message)) != sizeof(message))
            continue;
        int64_t begun_ns = bench_now_ns();
        uint64_t offset = (message.arg.pagefault.address & ~(uint64_t)(BENCH_PAGE - 1)) - (uintptr_t)faults->memory;
        if (pread(faults->fd, page, BENCH_PAGE, (off_t)offset) != BENCH_PAGE)
            bench_die("read");
        if (!place(faults, offset, page, BENCH_PAGE)) {
            struct uffdio_range range = {(uintptr_t)faults->memory + offset, BENCH_PAGE};
            ioctl(faults->uffd, UFFDIO_WAKE, &range);
        }
        if (faults->n_taken < PAGES_MAX)
            faults->taken_ns[faults->n_taken++] = bench_now_ns() - begun_ns;
    }
    return NULL;
}

static void *prefetch(void *opaque)
{
    Faults *faults = opaque;
    uint8_t *piece = bench_map(CHUNK, (BenchKind){0});

    for (uint64_t offset = 0; offset < faults->size && !atomic_load(&faults->over); offset += CHUNK) {
        if (!holds_data(faults->options, offset / CHUNK) || pread(faults->fd, piece, CHUNK, (off_t)offset) != CHUNK)
            continue;
        if (!place(faults, offset, piece, CHUNK))
            for (uint64_t at = 0; at < CHUNK; at += BENCH_PAGE)
                place(faults, offset + at, piece + at, BENCH_PAGE);
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* Touches pages with data in an order by a hash, each a thing apart. */
static uint64_t touch(const Faults *faults, int64_t *first_ns)
{
    uint64_t sum = 0;

    for (int n = 0; n < faults->options->touches; n++) {
        uint64_t offset = bench_data_page(faults->size, (unsigned)faults->options->every, BENCH_TOUCH_SEED, (uint64_t)n);
        sum += *(volatile uint64_t *)(faults->memory + offset);
        if (n == 0)
            *first_ns = bench_now_ns();
    }
    return sum;
}

static void watch(Faults *faults)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)faults->memory, faults->size},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};

    faults->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (faults->uffd < 0 || ioctl(faults->uffd, UFFDIO_API, &api) < 0 ||
        ioctl(faults->uffd, UFFDIO_REGISTER, &range) < 0)
        bench_die("userfaultfd");
}

static void take_faults(const Options *options, uint64_t size)
{
    Faults faults = {.options = options, .memory = bench_map(size, options->kind), .size = size};
    pthread_t handler, reader;

    faults.taken_ns = g_new(int64_t, PAGES_MAX);
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns(), begun_ns = bench_now_ns(), first_ns = begun_ns;
    faults.fd = open_file(options, options->path, O_RDONLY);
    watch(&faults);
    if (pthread_create(&handler, NULL, handle, &faults) != 0 ||
        (options->prefetch && pthread_create(&reader, NULL, prefetch, &faults) != 0))
        bench_die("thread");
    uint64_t sum = touch(&faults, &first_ns);
    int64_t total_ns = bench_now_ns() - begun_ns;
    atomic_store(&faults.over, true);
    pthread_join(handler, NULL);
    if (options->prefetch)
        pthread_join(reader, NULL);
    qsort(faults.taken_ns, faults.n_taken, sizeof(*faults.taken_ns), compare);
    uint64_t n = faults.n_taken;
    printf("{\"type\":\"result\",\"faults\":%" PRIu64 ",\"fault_p50_ns\":%" PRId64 ",\"fault_p99_ns\":%" PRId64
           ",\"fault_max_ns\":%" PRId64 ",\"first_ns\":%" PRId64 ",\"total_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64
           ",\"sum\":%" PRIu64 "}\n",
           n, n ? faults.taken_ns[n / 2] : 0, n ? faults.taken_ns[n * 99 / 100] : 0, n ? faults.taken_ns[n - 1] : 0,
           first_ns - begun_ns, total_ns, bench_cpu_ns() - cpu_ns, sum);
}

int main(int argc, char **argv)
{
    static Options options = {.size_text = "4G", .threads = 1, .depth = 4, .touches = 20000};
    const GOptionEntry entries[] = {
        {"file", 0, 0, G_OPTION_ARG_STRING, &options.path, "The file", "PATH"},
        {"size", 0, 0, G_OPTION_ARG_STRING, &options.size_text, "How much memory (4G)", "SIZE"},
        {"threads", 0, 0, G_OPTION_ARG_INT, &options.threads, "Writers or readers (1)", "N"},
        {"depth", 0, 0, G_OPTION_ARG_INT, &options.depth, "Requests under way, each (4)", "N"},
        {"touches", 0, 0, G_OPTION_ARG_INT, &options.touches, "Pages touched (20000)", "N"},
        {"every", 0, 0, G_OPTION_ARG_INT, &options.every, "Data in each N-th chunk alone (0: in three of four)", "N"},
        {"buffered", 0, 0, G_OPTION_ARG_NONE, &options.buffered, "Through the page cache", NULL},
        {"cold", 0, 0, G_OPTION_ARG_NONE, &options.cold, "Nothing of the file in the page cache", NULL},
        {"prefetch", 0, 0, G_OPTION_ARG_NONE, &options.prefetch, "Read ahead meanwhile", NULL},
        {"huge", 0, 0, G_OPTION_ARG_NONE, &options.kind.huge, "Transparent huge pages", NULL},
        {"memfd", 0, 0, G_OPTION_ARG_NONE, &options.kind.memfd, "Memory of a memfd", NULL},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new("write|read|fault");
    g_autoptr(GError) error = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 2 || !options.path || options.threads < 1 ||
        options.threads > 64 || options.depth < 1 || options.depth > 64 || options.touches < 1 || options.every < 0) {
        fprintf(stderr, "raw-image: %s\n", error ? error->message : "see --help");
        return 2;
    }
    uint64_t size = bench_parse_size(options.size_text) / CHUNK * CHUNK;
    if (strcmp(argv[1], "write") == 0)
        write_file(&options, size);
    else if (strcmp(argv[1], "read") == 0)
        read_file(&options, size);
    else if (strcmp(argv[1], "fault") == 0)
        take_faults(&options, size);
    else
        return 2;
    return 0;
}
