/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this machine can do at all, by the shortest programs:
 *
 *   send   two processes; populated memory goes over as many TCP streams, a thread each, into memory of the same kind that nobody has
 *          touched; large writes and reads, nothing else. The time is until the receiver has said of every stream that it is complete.
 *   scan   as many threads look for a word that is not zero in populated memory.
 *   warm   touches memory and gives it back, so that the host has it at hand when the next program touches it first.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/common.h"

#define STREAMS_MAX 64

typedef struct {
    int fd;
    uint8_t *memory;
    uint64_t size;
    uint64_t piece; /* bytes a call */
    uint64_t found; /* of a scan */
} Stream;

typedef struct {
    int n_streams;
    char *size_text, *piece_text;
    BenchKind kind;
} Options;

static void run_threads(Stream *streams, int n, void *(*body)(void *))
{
    pthread_t threads[STREAMS_MAX];

    for (int i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, body, &streams[i]) != 0)
            bench_die("thread");
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

/* Each stream has one contiguous part. */
static void divide(Stream *streams, int n, uint8_t *memory, uint64_t size, uint64_t piece)
{
    for (int i = 0; i < n; i++) {
        streams[i].memory = memory + size / (unsigned)n * (unsigned)i;
        streams[i].size = size / (unsigned)n;
        streams[i].piece = piece;
    }
}

static void print_result(uint64_t bytes, int64_t total_ns, int64_t cpu_ns)
{
    printf("{\"type\":\"result\",\"bytes\":%" PRIu64 ",\"total_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64 "}\n", bytes, total_ns, cpu_ns);
    fflush(stdout);
}

/* ---- send ---------------------------------------------------------------------------------------------------------------------- */

static void *send_stream(void *opaque)
{
    Stream *stream = opaque;
    uint8_t done;

    for (uint64_t at = 0; at < stream->size;) {
        ssize_t n = send(stream->fd, stream->memory + at, MIN(stream->piece, stream->size - at), MSG_NOSIGNAL);
        if (n <= 0)
            bench_die("send");
        at += (uint64_t)n;
    }
    if (recv(stream->fd, &done, 1, 0) != 1)
        bench_die("receiver");
    return NULL;
}

static void *receive_stream(void *opaque)
{
    Stream *stream = opaque;

    for (uint64_t at = 0; at < stream->size;) {
        ssize_t n = recv(stream->fd, stream->memory + at, MIN(stream->piece, stream->size - at), MSG_WAITALL);
        if (n <= 0)
            bench_die("receive");
        at += (uint64_t)n;
    }
    if (send(stream->fd, "", 1, MSG_NOSIGNAL) != 1)
        bench_die("receive");
    return NULL;
}

static int listen_anywhere(struct sockaddr_in *address)
{
    socklen_t length = sizeof(*address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || bind(fd, (struct sockaddr *)address, length) < 0 || listen(fd, STREAMS_MAX) < 0 ||
        getsockname(fd, (struct sockaddr *)address, &length) < 0)
        bench_die("listen");
    return fd;
}

static int connect_to(const struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
        bench_die("connect");
    return fd;
}

/* The receiving process: tells its CPU time by @report. */
static void receive_all(const Options *options, uint64_t size, uint64_t piece, int listener, int report)
{
    Stream streams[STREAMS_MAX] = {0};

    divide(streams, options->n_streams, bench_map(size, options->kind), size, piece);
    for (int i = 0; i < options->n_streams; i++) {
        streams[i].fd = accept(listener, NULL, NULL);
        if (streams[i].fd < 0)
            bench_die("accept");
    }
    int64_t cpu_ns = bench_cpu_ns();
    run_threads(streams, options->n_streams, receive_stream);
    cpu_ns = bench_cpu_ns() - cpu_ns;
    if (write(report, &cpu_ns, sizeof(cpu_ns)) != sizeof(cpu_ns))
        bench_die("report");
    exit(0);
}

static void send_all(const Options *options, uint64_t size, uint64_t piece)
{
    Stream streams[STREAMS_MAX] = {0};
    struct sockaddr_in address;
    int report[2], listener = listen_anywhere(&address);
    int64_t their_cpu_ns;

    if (pipe(report) < 0)
        bench_die("pipe");
    pid_t receiver = fork();
    if (receiver < 0)
        bench_die("fork");
    if (receiver == 0)
        receive_all(options, size, piece, listener, report[1]);
    divide(streams, options->n_streams, bench_map(size, options->kind), size, piece);
    bench_fill_random(streams[0].memory, size, 1);
    for (int i = 0; i < options->n_streams; i++)
        streams[i].fd = connect_to(&address);
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns(), begun_ns = bench_now_ns();
    run_threads(streams, options->n_streams, send_stream);
    int64_t total_ns = bench_now_ns() - begun_ns;
    cpu_ns = bench_cpu_ns() - cpu_ns;
    if (read(report[0], &their_cpu_ns, sizeof(their_cpu_ns)) != sizeof(their_cpu_ns))
        bench_die("receiver");
    print_result(size, total_ns, cpu_ns + their_cpu_ns);
    waitpid(receiver, NULL, 0);
}

/* ---- scan ---------------------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t any_bit(const uint64_t *words, size_t n)
{
    uint64_t any[32] = {0};

    for (size_t i = 0; i < n; i += 32)
        for (size_t k = 0; k < 32; k++)
            any[k] |= words[i + k];
    for (size_t k = 1; k < 32; k++)
        any[0] |= any[k];
    return any[0];
}

static void *scan_stream(void *opaque)
{
    Stream *stream = opaque;

    for (uint64_t at = 0; at < stream->size; at += BENCH_PAGE)
        stream->found += any_bit((const uint64_t *)(stream->memory + at), BENCH_PAGE / sizeof(uint64_t)) != 0;
    return NULL;
}

static void scan_all(const Options *options, uint64_t size)
{
    Stream streams[STREAMS_MAX] = {0};

    divide(streams, options->n_streams, bench_map(size, options->kind), size, 0);
    bench_fill_zero(streams[0].memory, size);
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns(), begun_ns = bench_now_ns();
    run_threads(streams, options->n_streams, scan_stream);
    int64_t total_ns = bench_now_ns() - begun_ns;
    for (int i = 0; i < options->n_streams; i++) {
        if (streams[i].found) {
            errno = EINVAL;
            bench_die("scan: found what was not there");
        }
    }
    print_result(size, total_ns, bench_cpu_ns() - cpu_ns);
}

int main(int argc, char **argv)
{
    static Options options = {.n_streams = 1, .size_text = "2G", .piece_text = "1M"};
    const GOptionEntry entries[] = {
        {"streams", 0, 0, G_OPTION_ARG_INT, &options.n_streams, "Streams or threads (1)", "N"},
        {"size", 0, 0, G_OPTION_ARG_STRING, &options.size_text, "How much memory (2G)", "SIZE"},
        {"piece", 0, 0, G_OPTION_ARG_STRING, &options.piece_text, "Bytes a system call (1M)", "SIZE"},
        {"huge", 0, 0, G_OPTION_ARG_NONE, &options.kind.huge, "Transparent huge pages", NULL},
        {"memfd", 0, 0, G_OPTION_ARG_NONE, &options.kind.memfd, "Memory of a memfd", NULL},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new("send|scan|warm");
    g_autoptr(GError) error = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 2 || options.n_streams < 1 ||
        options.n_streams > STREAMS_MAX) {
        fprintf(stderr, "raw-limit: %s\n", error ? error->message : "see --help");
        return 2;
    }
    uint64_t size = bench_parse_size(options.size_text), piece = bench_parse_size(options.piece_text);
    size -= size % ((unsigned)options.n_streams * BENCH_PAGE);
    if (strcmp(argv[1], "send") == 0)
        send_all(&options, size, piece);
    else if (strcmp(argv[1], "scan") == 0)
        scan_all(&options, size);
    else if (strcmp(argv[1], "warm") == 0)
        bench_fill_zero(bench_map(size, options.kind), size);
    else
        return 2;
    return 0;
}
