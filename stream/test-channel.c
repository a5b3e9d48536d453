/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every kind of channel keeps the same promises: the same tests over each. */
#include "stream/channel-bytes.h"
#include "stream/channel-fd.h"
#include "stream/channel-wait.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MS INT64_C(1000000)
#define FOR_EVER INT64_C(-1)

typedef struct {
    VmfChannel *writer;
    VmfChannel *reader;
} Ends;

/* ---- the kinds -------------------------------------------------------------------------------------------------- */

static Ends memory_ends(void)
{
    Ends ends;

    vmf_channel_memory_pair(4096, &ends.writer, &ends.reader);
    return ends;
}

static VmfChannel *from_fd(int fd, bool one_way)
{
    g_autoptr(GError) error = NULL;
    VmfChannel *channel = vmf_channel_from_fd(fd, "test", one_way, &error);

    assert_null(error);
    return channel;
}

static Ends unix_ends(void)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    return (Ends){from_fd(fds[0], false), from_fd(fds[1], false)};
}

static void tcp_pair(int *writer, int *reader)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *writer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    assert_int_equal(connect(*writer, (struct sockaddr *)&address, length), 0);
    *reader = accept(listener, NULL, NULL);
    assert_true(*reader >= 0);
    close(listener);
}

static Ends tcp_ends(void)
{
    int writer, reader;

    tcp_pair(&writer, &reader);
    return (Ends){from_fd(writer, false), from_fd(reader, false)};
}

/* Somebody else's non-blocking socket. */
static Ends nonblocking_ends(void)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
    return (Ends){from_fd(fds[0], false), from_fd(fds[1], false)};
}

static Ends pipe_ends(void)
{
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    return (Ends){from_fd(fds[1], true), from_fd(fds[0], true)};
}

static Ends count_ends(void)
{
    Ends ends = memory_ends();

    return (Ends){vmf_filter_count(ends.writer), vmf_filter_count(ends.reader)};
}

static Ends fault_ends(void)
{
    Ends ends = memory_ends();

    return (Ends){vmf_filter_fault(ends.writer, NULL, 0), vmf_filter_fault(ends.reader, NULL, 0)};
}

static Ends rate_ends(void)
{
    g_autoptr(VmfRateLimit) limit = vmf_rate_limit_new(0);
    Ends ends = memory_ends();

    return (Ends){vmf_filter_rate(ends.writer, limit), ends.reader};
}

typedef struct {
    const char *name;
    Ends (*make)(void);
} Kind;

static const Kind kinds[] = {
    {"memory", memory_ends}, {"unix", unix_ends},   {"tcp", tcp_ends},     {"nonblocking", nonblocking_ends},
    {"pipe", pipe_ends},     {"count", count_ends}, {"fault", fault_ends}, {"rate", rate_ends},
};

static Ends make_ends(void **state)
{
    return ((const Kind *)*state)->make();
}

static void free_ends(Ends ends)
{
    vmf_channel_free(ends.writer);
    vmf_channel_free(ends.reader);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static uint8_t pattern(size_t i)
{
    return (i * 2654435761u) >> 13;
}

#define LONG_BYTES (3 * 1024 * 1024 + 17)
#define PIECES (IOV_MAX * 2 + 5)

/* Uneven pieces over the whole buffer, with empty ones first, last and in between. */
static void cut_into_pieces(struct iovec *iov, uint8_t *data)
{
    size_t at = 0;

    for (int i = 0; i < PIECES; i++) {
        size_t length = i % 7 == 0 ? 0 : (i * 37u) % 3000;

        if (i == PIECES - 2)
            length = LONG_BYTES - at;
        else if (i == PIECES - 1)
            length = 0;
        length = MIN(length, LONG_BYTES - at);
        iov[i] = (struct iovec){data + at, length};
        at += length;
    }
    assert_int_equal(at, LONG_BYTES);
}

static void *write_pieces(void *opaque)
{
    g_autofree uint8_t *data = g_malloc(LONG_BYTES);
    g_autofree struct iovec *iov = g_new0(struct iovec, PIECES);

    for (size_t i = 0; i < LONG_BYTES; i++)
        data[i] = pattern(i);
    cut_into_pieces(iov, data);
    return GINT_TO_POINTER(vmf_channel_writev_all(opaque, iov, PIECES, NULL));
}

/* ---- the promises ----------------------------------------------------------------------------------------------- */

static void long_vectors_arrive_whole(void **state)
{
    Ends ends = make_ends(state);
    g_autofree uint8_t *data = g_malloc0(LONG_BYTES);
    g_autofree struct iovec *iov = g_new0(struct iovec, PIECES);
    pthread_t writer;
    void *written;

    pthread_create(&writer, NULL, write_pieces, ends.writer);
    cut_into_pieces(iov, data);
    assert_true(vmf_channel_readv_all(ends.reader, iov, PIECES, NULL));
    pthread_join(writer, &written);
    assert_true(GPOINTER_TO_INT(written));
    for (size_t i = 0; i < LONG_BYTES; i++)
        if (data[i] != pattern(i))
            fail_msg("byte %zu differs", i);
    free_ends(ends);
}

static void end_of_stream_is_told_apart(void **state)
{
    Ends ends = make_ends(state);
    g_autoptr(GError) error = NULL;
    char buf[8];
    bool ended;

    assert_true(vmf_channel_write_all(ends.writer, "abcdef", 6, NULL));
    vmf_channel_free(ends.writer);
    assert_true(vmf_channel_read_all_or_end(ends.reader, buf, 4, &ended, NULL));
    assert_false(ended);
    assert_memory_equal(buf, "abcd", 4);

    assert_false(vmf_channel_read_all_or_end(ends.reader, buf, 4, &ended, &error));
    assert_false(ended);
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    assert_non_null(strstr(error->message, "2 of 4"));
    g_clear_error(&error);

    assert_int_equal(vmf_channel_wait_readable(ends.reader, FOR_EVER, NULL), 1);
    assert_true(vmf_channel_read_all_or_end(ends.reader, buf, 4, &ended, NULL));
    assert_true(ended);
    assert_false(vmf_channel_read_all(ends.reader, buf, 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    vmf_channel_free(ends.reader);
}

static void nothing_to_move_never_waits(void **state)
{
    Ends ends = make_ends(state);
    struct iovec empty[] = {{NULL, 0}, {NULL, 0}};
    bool ended;

    assert_true(vmf_channel_writev_all(ends.writer, empty, 2, NULL));
    assert_true(vmf_channel_readv_all(ends.reader, empty, 2, NULL));
    assert_true(vmf_channel_readv_all(ends.reader, NULL, 0, NULL));
    assert_true(vmf_channel_read_all_or_end(ends.reader, NULL, 0, &ended, NULL));
    assert_false(ended);
    free_ends(ends);
}

static void waiting_has_an_end(void **state)
{
    Ends ends = make_ends(state);
    int64_t before = vmf_now_ns();
    g_autoptr(GError) error = NULL;
    char buf[4];

    assert_int_equal(vmf_channel_wait_readable(ends.reader, 0, NULL), 0);
    assert_int_equal(vmf_channel_wait_readable(ends.reader, MS, NULL), 0);
    assert_true(vmf_now_ns() - before >= MS);
    assert_true(vmf_channel_write_all(ends.writer, "ab", 2, NULL));
    assert_int_equal(vmf_channel_wait_readable(ends.reader, FOR_EVER, NULL), 1);

    assert_false(vmf_channel_read_all_deadline(ends.reader, buf, 4, vmf_deadline_after(MS), &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    assert_non_null(strstr(error->message, "2 of 4"));
    free_ends(ends);
}

static void what_is_there_is_read_after_the_deadline_too(void **state)
{
    Ends ends = make_ends(state);
    char buf[2];

    assert_true(vmf_channel_write_all(ends.writer, "ab", 2, NULL));
    assert_int_equal(vmf_channel_wait_readable(ends.reader, FOR_EVER, NULL), 1);
    assert_true(vmf_channel_read_all_deadline(ends.reader, buf, 2, 0, NULL));
    assert_memory_equal(buf, "ab", 2);
    free_ends(ends);
}

static void *read_one(void *channel)
{
    bool ended = false;
    char buf;

    return GINT_TO_POINTER(vmf_channel_read_all_or_end(channel, &buf, 1, &ended, NULL) && ended);
}

static void shutdown_wakes_a_reader(void **state)
{
    Ends ends = make_ends(state);
    pthread_t reader;
    void *ended;

    pthread_create(&reader, NULL, read_one, ends.reader);
    g_usleep(2000); /* most likely it waits by now; right either way */
    vmf_channel_shutdown(ends.reader);
    pthread_join(reader, &ended);
    assert_true(GPOINTER_TO_INT(ended));
    free_ends(ends);
}

static void *wait_for_ever(void *channel)
{
    return GINT_TO_POINTER(vmf_channel_wait_readable(channel, FOR_EVER, NULL) == 1);
}

static void shutdown_wakes_who_waits_for_a_byte(void **state)
{
    Ends ends = make_ends(state);
    pthread_t reader;
    void *ended;

    pthread_create(&reader, NULL, wait_for_ever, ends.reader);
    g_usleep(2000);
    vmf_channel_shutdown(ends.reader);
    pthread_join(reader, &ended);
    assert_true(GPOINTER_TO_INT(ended));
    free_ends(ends);
}

static void *write_for_ever(void *channel)
{
    g_autofree char *data = g_malloc0(65536);
    GError *error = NULL;

    while (vmf_channel_write_all(channel, data, 65536, &error))
        continue;
    return error;
}

static void shutdown_wakes_a_writer(void **state)
{
    Ends ends = make_ends(state);
    g_autoptr(GError) error = NULL;
    pthread_t writer;
    void *result;

    pthread_create(&writer, NULL, write_for_ever, ends.writer);
    g_usleep(5000);
    vmf_channel_shutdown(ends.writer);
    pthread_join(writer, &result);
    error = result;
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    free_ends(ends);
}

static void shutdown_is_for_ever(void **state)
{
    Ends ends = make_ends(state);
    g_autoptr(GError) error = NULL;
    char buf;

    assert_true(vmf_channel_write_all(ends.writer, "abc", 3, NULL));
    assert_int_equal(vmf_channel_wait_readable(ends.reader, FOR_EVER, NULL), 1);
    vmf_channel_shutdown(ends.reader);
    vmf_channel_shutdown(ends.reader);
    assert_true(GPOINTER_TO_INT(read_one(ends.reader)));
    assert_true(GPOINTER_TO_INT(read_one(ends.reader)));
    assert_int_equal(vmf_channel_wait_readable(ends.reader, FOR_EVER, NULL), 1);
    assert_false(vmf_channel_read_all_deadline(ends.reader, &buf, 1, VMF_NEVER, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    g_clear_error(&error);

    vmf_channel_shutdown(ends.writer);
    assert_false(vmf_channel_write_all(ends.writer, "x", 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    free_ends(ends);
}

static void a_vanished_reader_is_an_error_not_a_signal(void **state)
{
    Ends ends = make_ends(state);
    g_autoptr(GError) error = NULL;
    sigset_t pending;

    signal(SIGPIPE, SIG_DFL);
    vmf_channel_free(ends.reader);
    error = write_for_ever(ends.writer);
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    sigpending(&pending);
    assert_false(sigismember(&pending, SIGPIPE));
    vmf_channel_free(ends.writer);
}

/* ---- particular kinds ------------------------------------------------------------------------------------------- */

static void both_directions_of_a_pair(void **state)
{
    VmfChannel *a, *b;
    char buf[3];

    vmf_channel_memory_pair(3, &a, &b);
    for (int i = 0; i < 10; i++) {
        assert_true(vmf_channel_write_all(a, "ab", 2, NULL));
        assert_true(vmf_channel_write_all(b, "xyz", 3, NULL));
        assert_true(vmf_channel_read_all(b, buf, 2, NULL));
        assert_memory_equal(buf, "ab", 2);
        assert_true(vmf_channel_read_all(a, buf, 3, NULL));
        assert_memory_equal(buf, "xyz", 3);
    }
    free_ends((Ends){a, b});
}

static void a_pipe_has_one_direction(void **state)
{
    Ends ends = pipe_ends();
    g_autoptr(GError) error = NULL;
    int fds[2];
    char buf;

    assert_true(vmf_channel_is_one_way(ends.reader));
    assert_false(vmf_channel_write_all(ends.reader, "x", 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    assert_false(vmf_channel_read_all(ends.writer, &buf, 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    free_ends(ends);

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_null(vmf_channel_from_fd(fds[0], "pipe", false, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    close(fds[1]);
}

/* A shell's standard output must not stay non-blocking for the programs that follow. */
static void flags_of_a_shared_pipe_come_back(void **state)
{
    g_autoptr(VmfChannel) channel = NULL;
    int fds[2], shared;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    shared = fcntl(fds[1], F_DUPFD_CLOEXEC, 3);
    channel = from_fd(fds[1], true);
    assert_true(fcntl(shared, F_GETFL) & O_NONBLOCK);
    g_clear_pointer(&channel, vmf_channel_free);
    assert_false(fcntl(shared, F_GETFL) & O_NONBLOCK);
    close(shared);
    close(fds[0]);
}

static void a_pending_sigpipe_of_others_stays(void **state)
{
    Ends ends = pipe_ends();
    sigset_t broken_pipe, before, pending;

    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &broken_pipe, &before);
    raise(SIGPIPE);
    vmf_channel_free(ends.reader);
    assert_false(vmf_channel_write_all(ends.writer, "x", 1, NULL));
    sigpending(&pending);
    assert_true(sigismember(&pending, SIGPIPE));
    assert_int_equal(sigtimedwait(&broken_pipe, NULL, &(struct timespec){0}), SIGPIPE);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    vmf_channel_free(ends.writer);
}

static void a_socket_tells_what_is_on_its_way(void **state)
{
    Ends ends = unix_ends();

    assert_int_equal(vmf_channel_unsent_bytes(ends.writer), 0);
    assert_true(vmf_channel_write_all(ends.writer, "abc", 3, NULL));
    assert_true(vmf_channel_unsent_bytes(ends.writer) > 0);
    free_ends(ends);
    ends = memory_ends();
    assert_true(vmf_channel_write_all(ends.writer, "abc", 3, NULL));
    assert_int_equal(vmf_channel_unsent_bytes(ends.writer), 0);
    free_ends(ends);
}

#define MUCH 400000

static void *read_much(void *channel)
{
    g_autofree uint8_t *data = g_malloc(MUCH);

    assert_true(vmf_channel_read_all(channel, data, MUCH, NULL));
    return NULL;
}

static int wakes_at(int fd)
{
    int bytes;
    socklen_t length = sizeof(bytes);

    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, &length), 0);
    return bytes;
}

/* Who waits for much is not woken by every piece of it, and for all the same by a single octet who waits for one. */
static void who_expects_much_still_hears_a_single_octet(void **state)
{
    g_autofree uint8_t *data = g_malloc0(MUCH);
    int writer, reader;
    pthread_t thread;

    tcp_pair(&writer, &reader);
    Ends ends = {from_fd(writer, false), from_fd(reader, false)};
    assert_int_equal(wakes_at(reader), 1);
    assert_int_equal(pthread_create(&thread, NULL, read_much, ends.reader), 0);
    while (wakes_at(reader) == 1)
        g_usleep(1000);
    assert_true(vmf_channel_write_all(ends.writer, data, MUCH, NULL));
    pthread_join(thread, NULL);
    assert_int_equal(vmf_channel_wait_readable(ends.reader, 0, NULL), 0);
    assert_true(vmf_channel_write_all(ends.writer, "x", 1, NULL));
    assert_int_equal(vmf_channel_wait_readable(ends.reader, FOR_EVER, NULL), 1);
    assert_true(vmf_channel_read_all(ends.reader, data, 1, NULL));
    free_ends(ends);
}

static void *miss_much(void *channel)
{
    g_autofree uint8_t *data = g_malloc(MUCH);
    g_autoptr(GError) error = NULL;

    assert_false(vmf_channel_read_all(channel, data, MUCH, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    return NULL;
}

/* The stream ends far short of what is expected. */
static void an_end_is_heard_by_who_expects_much(void **state)
{
    int writer, reader;
    pthread_t thread;

    tcp_pair(&writer, &reader);
    Ends ends = {from_fd(writer, false), from_fd(reader, false)};
    assert_int_equal(pthread_create(&thread, NULL, miss_much, ends.reader), 0);
    while (wakes_at(reader) == 1)
        g_usleep(1000);
    assert_true(vmf_channel_write_all(ends.writer, "few", 3, NULL));
    vmf_channel_free(ends.writer);
    pthread_join(thread, NULL);
    vmf_channel_free(ends.reader);
}

static void descriptors_that_are_no_channel(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_channel_from_fd(-1, "nothing", false, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    g_clear_error(&error);
    assert_null(vmf_channel_from_fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "datagrams", false, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
}

static void heads_of_vectors(void **state)
{
    const struct iovec iov[] = {{"abc", 3}, {NULL, 0}, {"de", 2}};
    struct iovec head[3];

    assert_int_equal(vmf_iov_length(iov, 3), 5);
    assert_int_equal(vmf_iov_head(head, iov, 3, 0), 0);
    assert_int_equal(vmf_iov_head(head, iov, 3, 2), 1);
    assert_int_equal(head[0].iov_len, 2);
    assert_int_equal(vmf_iov_head(head, iov, 3, 4), 3);
    assert_int_equal(head[2].iov_len, 1);
    assert_int_equal(vmf_iov_head(head, iov, 3, 100), 3);
    assert_int_equal(vmf_iov_length(head, 3), 5);
}

static void octets_in_memory_are_a_channel(void **state)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autoptr(VmfChannel) writer = vmf_channel_into_bytes(bytes, "test");
    char octets[8] = "";
    bool ended = false;

    assert_true(vmf_channel_write_all(writer, "abc", 3, NULL) && vmf_channel_write_all(writer, "defg", 4, NULL));
    assert_int_equal(bytes->len, 7);
    assert_false(vmf_channel_read_all(writer, octets, 1, NULL));

    g_autoptr(VmfChannel) reader = vmf_channel_of_bytes(bytes->data, bytes->len, "test");
    assert_true(vmf_channel_read_all(reader, octets, 5, NULL));
    assert_string_equal(octets, "abcde");
    assert_int_equal(vmf_channel_bytes_position(reader), 5);
    assert_false(vmf_channel_write_all(reader, "x", 1, NULL));
    assert_true(vmf_channel_read_all(reader, octets, 2, NULL));
    assert_true(vmf_channel_read_all_or_end(reader, octets, 1, &ended, NULL) && ended);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

#define OF_ALL(f)                                                                                                      \
    {                                                                                                                  \
#f, f                                                                                                          \
    }
static const struct {
    const char *name;
    CMUnitTestFunction function;
} promises[] = {
    OF_ALL(long_vectors_arrive_whole),
    OF_ALL(end_of_stream_is_told_apart),
    OF_ALL(nothing_to_move_never_waits),
    OF_ALL(waiting_has_an_end),
    OF_ALL(shutdown_wakes_a_reader),
    OF_ALL(shutdown_wakes_who_waits_for_a_byte),
    OF_ALL(shutdown_wakes_a_writer),
    OF_ALL(shutdown_is_for_ever),
    OF_ALL(what_is_there_is_read_after_the_deadline_too),
    OF_ALL(a_vanished_reader_is_an_error_not_a_signal),
};

static const struct CMUnitTest particular[] = {
    cmocka_unit_test(both_directions_of_a_pair),
    cmocka_unit_test(a_pipe_has_one_direction),
    cmocka_unit_test(flags_of_a_shared_pipe_come_back),
    cmocka_unit_test(a_pending_sigpipe_of_others_stays),
    cmocka_unit_test(a_socket_tells_what_is_on_its_way),
    cmocka_unit_test(who_expects_much_still_hears_a_single_octet),
    cmocka_unit_test(an_end_is_heard_by_who_expects_much),
    cmocka_unit_test(descriptors_that_are_no_channel),
    cmocka_unit_test(heads_of_vectors),
    cmocka_unit_test(octets_in_memory_are_a_channel),
};

int main(void)
{
    struct CMUnitTest tests[G_N_ELEMENTS(promises) * G_N_ELEMENTS(kinds) + G_N_ELEMENTS(particular)] = {0};
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    size_t n = 0;

    for (size_t k = 0; k < G_N_ELEMENTS(kinds); k++)
        for (size_t p = 0; p < G_N_ELEMENTS(promises); p++) {
            char *name = g_strdup_printf("%s: %s", kinds[k].name, promises[p].name);

            g_ptr_array_add(names, name);
            tests[n++] = (struct CMUnitTest){
                .name = name, .test_func = promises[p].function, .initial_state = (void *)&kinds[k]};
        }
    for (size_t i = 0; i < G_N_ELEMENTS(particular); i++)
        tests[n++] = particular[i];
    return cmocka_run_group_tests_name("channel", tests, NULL, NULL);
}
