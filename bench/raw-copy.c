/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this machine can do at all with a disk that is copied, by the shortest program: a file is copied into a new one, so many direct
 * requests of 1 MiB under way, each read and then written; only what is allocated; synced at the end.
 *
 * The new file has its full size from the start, and nothing else is made ready.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/common.h"

#define PIECE (1u << 20)

typedef struct {
    uint8_t *buffer;
    uint64_t offset;
    unsigned length;
    bool is_write;
} Request;

typedef struct {
    int from, to;
    uint64_t size, next; /* where to look for the next piece */
    uint64_t extent_end, bytes;
    uint64_t rate; /* bytes a second; 0: no limit */
    int64_t begun_ns;
    struct io_uring ring;
} Copy;

static int open_direct(const char *path, int flags)
{
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);

    if (fd < 0)
        fd = open(path, flags | O_CLOEXEC, 0600); /* tmpfs of old */
    if (fd < 0)
        bench_die(path);
    return fd;
}

/* The next piece of what is allocated; false at the end. */
static bool next_piece(Copy *copy, Request *request)
{
    if (copy->next >= copy->extent_end) {
        off_t data = lseek(copy->from, (off_t)copy->next, SEEK_DATA);
        if (data < 0)
            return false;
        copy->next = (uint64_t)data;
        copy->extent_end = (uint64_t)lseek(copy->from, data, SEEK_HOLE);
    }
    request->offset = copy->next;
    request->length = (unsigned)MIN(PIECE, copy->extent_end - copy->next);
    request->is_write = false;
    copy->next += request->length;
    return true;
}

/* No faster than the rate. */
static void keep_to_rate(const Copy *copy)
{
    if (copy->rate == 0)
        return;
    int64_t due_ns = copy->begun_ns + (int64_t)((double)copy->bytes / (double)copy->rate * 1e9), left_ns = due_ns - bench_now_ns();
    if (left_ns > 0)
        usleep((useconds_t)(left_ns / 1000));
}

static void submit(Copy *copy, Request *request)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&copy->ring);

    if (request->is_write)
        io_uring_prep_write(entry, copy->to, request->buffer, request->length, request->offset);
    else
        io_uring_prep_read(entry, copy->from, request->buffer, request->length, request->offset);
    io_uring_sqe_set_data(entry, request);
    io_uring_submit(&copy->ring);
}

static bool start_next(Copy *copy, Request *request)
{
    if (!next_piece(copy, request))
        return false;
    keep_to_rate(copy);
    submit(copy, request);
    return true;
}

static Request *wait_for_one(Copy *copy)
{
    struct io_uring_cqe *done;

    if (io_uring_wait_cqe(&copy->ring, &done) < 0)
        bench_die("io_uring");
    Request *request = io_uring_cqe_get_data(done);
    if (done->res != (int)request->length) {
        errno = done->res < 0 ? -done->res : EIO;
        bench_die(request->is_write ? "write" : "read");
    }
    io_uring_cqe_seen(&copy->ring, done);
    return request;
}

static void copy_all(Copy *copy, Request *requests, int depth)
{
    int under_way = 0;

    while (under_way < depth && start_next(copy, &requests[under_way]))
        under_way++;
    while (under_way > 0) {
        Request *request = wait_for_one(copy);
        if (!request->is_write) {
            request->is_write = true;
            submit(copy, request);
            continue;
        }
        copy->bytes += request->length;
        under_way -= !start_next(copy, request);
    }
}

int main(int argc, char **argv)
{
    static char *rate_text;
    static int depth = 16;
    const GOptionEntry entries[] = {{"depth", 0, 0, G_OPTION_ARG_INT, &depth, "Requests under way (16)", "N"},
                                    {"rate", 0, 0, G_OPTION_ARG_STRING, &rate_text, "Bytes a second (no limit)", "SIZE"},
                                    G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new("FROM TO");
    g_autoptr(GError) error = NULL;
    struct stat info;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 3 || depth < 1 || depth > 256) {
        fprintf(stderr, "raw-copy: %s\n", error ? error->message : "see --help");
        return 2;
    }
    Copy copy = {.from = open_direct(argv[1], O_RDONLY), .rate = rate_text ? bench_parse_size(rate_text) : 0};
    g_autofree Request *requests = g_new0(Request, depth);
    uint8_t *buffers = bench_map((uint64_t)depth * PIECE, (BenchKind){0});

    for (int i = 0; i < depth; i++)
        requests[i].buffer = buffers + (size_t)i * PIECE;
    memset(buffers, 1, (size_t)depth * PIECE);
    if (fstat(copy.from, &info) < 0 || io_uring_queue_init((unsigned)depth, &copy.ring, 0) < 0)
        bench_die("set-up");
    copy.size = (uint64_t)info.st_size;
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns();
    copy.begun_ns = bench_now_ns();
    copy.to = open_direct(argv[2], O_RDWR | O_CREAT | O_EXCL);
    if (ftruncate(copy.to, (off_t)copy.size) < 0)
        bench_die("size");
    copy_all(&copy, requests, depth);
    if (fdatasync(copy.to) < 0)
        bench_die("sync");
    printf("{\"type\":\"result\",\"bytes\":%" PRIu64 ",\"total_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64 "}\n", copy.bytes,
           bench_now_ns() - copy.begun_ns, bench_cpu_ns() - cpu_ns);
    return 0;
}
