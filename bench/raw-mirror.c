/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this machine can do at all with a write that has to be at both ends, by the shortest program: the load of latency.h, each write
 * given to a local file and sent over a socket to another process at once, which writes it to a file of its own and says so; direct, both.
 *
 * Of each write it is told how long the local one took, how long the other until it was answered, and the larger of the two.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "bench/common.h"
#include "bench/latency.h"

#define DEPTH_MAX 256
#define WARM_UP_NS (BENCH_NS_PER_S / 2)

typedef struct {
    uint64_t offset;
    uint32_t slot, reserved;
} Head;

typedef struct {
    int64_t begun_ns;
    int left; /* ends that have not got it; 0: free */
} Slot;

static uint8_t *buffers; /* of BENCH_WRITE_BYTES, by slot */

static int open_direct(const char *path)
{
    int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);

    if (fd < 0)
        bench_die(path);
    return fd;
}

static void begin_write(struct io_uring *ring, int file, uint64_t offset, uint32_t slot)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);

    io_uring_prep_write(entry, file, buffers + (size_t)slot * BENCH_WRITE_BYTES, BENCH_WRITE_BYTES, offset);
    io_uring_sqe_set_data64(entry, slot);
    io_uring_submit(ring);
}

static bool take_ended(struct io_uring *ring, uint32_t *slot)
{
    struct io_uring_cqe *done;

    if (io_uring_peek_cqe(ring, &done) < 0)
        return false;
    if (done->res != (int)BENCH_WRITE_BYTES)
        bench_die("write");
    *slot = (uint32_t)io_uring_cqe_get_data64(done);
    io_uring_cqe_seen(ring, done);
    return true;
}

/* False: there is no whole one, for now or (*@over) for ever. */
static bool receive(int fd, struct iovec *iov, int n, int length, bool *over)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)n};
    int there = 0;

    if (ioctl(fd, FIONREAD, &there) < 0)
        bench_die("socket");
    *over = there == 0 && recv(fd, &there, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
    return there >= length && recvmsg(fd, &message, 0) == length;
}

/* ---- the other end ---------------------------------------------------------------------------------------------------------- */

static int be_remote(int fd, const char *path)
{
    int file = open_direct(path);
    struct io_uring ring;
    bool over = false;

    if (io_uring_queue_init(DEPTH_MAX, &ring, 0) < 0)
        bench_die("io_uring");
    while (!over) {
        struct pollfd polled[] = {{.fd = fd, .events = POLLIN}, {.fd = ring.ring_fd, .events = POLLIN}};
        static uint8_t data[BENCH_WRITE_BYTES];
        Head head;
        uint32_t slot;

        if (poll(polled, 2, -1) < 0)
            bench_die("poll");
        while (take_ended(&ring, &slot))
            if (write(fd, &slot, sizeof(slot)) != sizeof(slot))
                return 0;
        while (receive(fd, (struct iovec[]){{&head, sizeof(head)}, {data, sizeof(data)}}, 2, sizeof(head) + sizeof(data), &over)) {
            memcpy(buffers + (size_t)head.slot * BENCH_WRITE_BYTES, data, sizeof(data));
            begin_write(&ring, file, head.offset, head.slot);
        }
    }
    return 0;
}

/* ---- this end --------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int fd, file;
    uint64_t size;
    unsigned depth;
    struct io_uring ring;
    BenchSchedule schedule;
    BenchLatency local, remote, both;
    Slot slots[DEPTH_MAX];
} Mirror;

static void end_one(Mirror *mirror, uint32_t number, BenchLatency *end)
{
    Slot *slot = &mirror->slots[number];
    int64_t now_ns = bench_now_ns();

    bench_latency_add(end, slot->begun_ns, now_ns);
    if (--slot->left == 0)
        bench_latency_add(&mirror->both, slot->begun_ns, now_ns);
}

static void take_all_ended(Mirror *mirror)
{
    uint32_t slot;
    bool over;

    while (take_ended(&mirror->ring, &slot))
        end_one(mirror, slot, &mirror->local);
    while (receive(mirror->fd, &(struct iovec){&slot, sizeof(slot)}, 1, sizeof(slot), &over))
        end_one(mirror, slot, &mirror->remote);
}

static void begin_one(Mirror *mirror, uint32_t number)
{
    uint64_t offset = bench_write_place(mirror->size, mirror->schedule.n);
    Head head = {.offset = offset, .slot = number};
    struct iovec iov[] = {{&head, sizeof(head)}, {buffers + (size_t)number * BENCH_WRITE_BYTES, BENCH_WRITE_BYTES}};

    mirror->slots[number] = (Slot){.begun_ns = bench_now_ns(), .left = 2};
    bench_schedule_take(&mirror->schedule, mirror->slots[number].begun_ns);
    if (writev(mirror->fd, iov, 2) != (ssize_t)(sizeof(head) + BENCH_WRITE_BYTES))
        bench_die("socket");
    begin_write(&mirror->ring, mirror->file, offset, number);
}

/* Begins what is due, as far as there is room. Returns when the next one is, or -1: it waits for others. */
static int64_t begin_all_due(Mirror *mirror)
{
    while (bench_schedule_due_ns(&mirror->schedule) <= bench_now_ns()) {
        uint32_t number = 0;
        while (number < mirror->depth && mirror->slots[number].left > 0)
            number++;
        if (number == mirror->depth)
            return -1;
        begin_one(mirror, number);
    }
    return bench_schedule_due_ns(&mirror->schedule);
}

static void mirror_until(Mirror *mirror, int64_t end_ns)
{
    while (bench_now_ns() < end_ns) {
        struct pollfd polled[] = {{.fd = mirror->fd, .events = POLLIN}, {.fd = mirror->ring.ring_fd, .events = POLLIN}};
        int64_t due_ns = begin_all_due(mirror), wait_ns = MAX(due_ns - bench_now_ns(), 0);
        struct timespec wait = {.tv_nsec = MIN(wait_ns, BENCH_NS_PER_S / 10)};

        if (ppoll(polled, 2, due_ns < 0 ? NULL : &wait, NULL) < 0)
            bench_die("poll");
        take_all_ended(mirror);
    }
}

static int64_t cpu_of_both_ns(pid_t other)
{
    struct timespec now = {0};
    clockid_t clock;

    if (clock_getcpuclockid(other, &clock) != 0 || clock_gettime(clock, &now) < 0)
        bench_die("clock");
    return bench_cpu_ns() + now.tv_sec * BENCH_NS_PER_S + now.tv_nsec;
}

static void run(Mirror *mirror, pid_t other, unsigned per_second, unsigned seconds)
{
    struct stat info;

    if (fstat(mirror->file, &info) < 0 || io_uring_queue_init(DEPTH_MAX, &mirror->ring, 0) < 0)
        bench_die("set-up");
    mirror->size = (uint64_t)info.st_size;
    bench_latency_init(&mirror->local);
    bench_latency_init(&mirror->remote);
    bench_latency_init(&mirror->both);
    bench_wait_for_start();
    bench_schedule_init(&mirror->schedule, per_second);
    mirror_until(mirror, bench_now_ns() + WARM_UP_NS);
    int64_t from_ns = bench_now_ns(), cpu_ns = cpu_of_both_ns(other);
    mirror_until(mirror, from_ns + seconds * BENCH_NS_PER_S);
    int64_t to_ns = bench_now_ns();
    printf("{\"type\":\"result\",\"live_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64 ",", to_ns - from_ns, cpu_of_both_ns(other) - cpu_ns);
    bench_latency_print("local", &mirror->local, from_ns, to_ns);
    printf(",");
    bench_latency_print("remote", &mirror->remote, from_ns, to_ns);
    printf(",");
    bench_latency_print("latency", &mirror->both, from_ns, to_ns);
    printf("}\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static int per_second = 1000, depth = 8, seconds = 5;
    static Mirror mirror;
    const GOptionEntry entries[] = {{"rate", 0, 0, G_OPTION_ARG_INT, &per_second, "Writes a second (1000)", "N"},
                                    {"depth", 0, 0, G_OPTION_ARG_INT, &depth, "Writes under way, at most (8)", "N"},
                                    {"seconds", 0, 0, G_OPTION_ARG_INT, &seconds, "What is measured (5)", "N"},
                                    G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new("LOCAL REMOTE");
    g_autoptr(GError) error = NULL;
    int pair[2];

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 3 || depth < 1 || depth > DEPTH_MAX || per_second < 1) {
        fprintf(stderr, "raw-mirror: %s\n", error ? error->message : "see --help");
        return 2;
    }
    buffers = bench_map((uint64_t)DEPTH_MAX * BENCH_WRITE_BYTES, (BenchKind){0});
    bench_fill_random(buffers, (uint64_t)DEPTH_MAX * BENCH_WRITE_BYTES, 1);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        bench_die("socket");
    pid_t other = fork();
    if (other < 0)
        bench_die("fork");
    close(pair[other != 0]);
    if (other == 0)
        return be_remote(pair[1], argv[2]);
    mirror.fd = pair[0];
    mirror.file = open_direct(argv[1]);
    mirror.depth = (unsigned)depth;
    run(&mirror, other, (unsigned)per_second, (unsigned)seconds);
    return 0;
}
