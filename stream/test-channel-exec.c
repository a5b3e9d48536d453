/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Channels over commands: both ways, one way, and commands that fail, hang or vanish. */
#include "stream/channel-fd.h"
#include "stream/channel-wait.h"
#include "stream/listener.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define BOTH (VMF_EXEC_READ | VMF_EXEC_WRITE)

static VmfChannel *run(const char *command, VmfExecSides sides)
{
    g_autoptr(GError) error = NULL;
    VmfChannel *channel = vmf_channel_exec_new(command, sides, &error);

    if (!channel)
        fail_msg("%s", error->message);
    return channel;
}

/* Everything that the command says. */
static char *read_rest(VmfChannel *channel, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL);
    bool ended = false;
    char c;

    while (vmf_channel_read_all_or_end(channel, &c, 1, &ended, error)) {
        if (ended)
            return g_string_free(g_steal_pointer(&text), false);
        g_string_append_c(text, c);
    }
    return NULL;
}

static void a_command_answers(void **state)
{
    g_autoptr(VmfChannel) channel = run("exec cat", BOTH);
    char buf[4];

    assert_false(vmf_channel_is_one_way(channel));
    assert_string_equal(vmf_channel_name(channel), "exec:exec cat");
    assert_true(vmf_channel_write_all(channel, "ping", 4, NULL));
    assert_true(vmf_channel_read_all(channel, buf, 4, NULL));
    assert_memory_equal(buf, "ping", 4);
    assert_true(vmf_channel_finish(channel, NULL));
}

#define MUCH (5 * 1024 * 1024)

static void *write_much(void *channel)
{
    g_autofree char *data = g_malloc(MUCH);

    memset(data, 'x', MUCH);
    return GINT_TO_POINTER(vmf_channel_write_all(channel, data, MUCH, NULL));
}

static void much_passes_through_a_command(void **state)
{
    g_autoptr(VmfChannel) channel = run("cat | cat", BOTH);
    g_autofree char *data = g_malloc0(MUCH);
    pthread_t writer;
    void *written;

    pthread_create(&writer, NULL, write_much, channel);
    assert_true(vmf_channel_read_all(channel, data, MUCH, NULL));
    pthread_join(writer, &written);
    assert_true(GPOINTER_TO_INT(written));
    assert_int_equal(data[0], 'x');
    assert_memory_equal(data, data + 1, MUCH - 1);
    assert_true(vmf_channel_finish(channel, NULL));
}

static void one_way_commands(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmferry-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(directory, "out", NULL), *contents = NULL, *text = NULL;
    g_autofree char *to = g_strdup_printf("exec:sleep 0.05; cat > %s", path),
                    *from = g_strdup_printf("exec:cat %s", path);
    g_autoptr(VmfConnector) connector = vmf_connector_new(to, VMF_CONNECT_ONE_WAY, NULL);
    g_autoptr(VmfListener) listener = vmf_listener_new(from, VMF_CONNECT_ONE_WAY, NULL);
    g_autoptr(VmfChannel) writer = vmf_connector_open(connector, -1, NULL), reader = NULL;

    assert_true(vmf_connector_is_one_way(connector) && vmf_listener_is_one_way(listener));
    assert_int_equal(vmf_connector_max_channels(connector), 1);
    assert_int_equal(vmf_listener_max_channels(listener), 1);
    assert_true(vmf_channel_is_one_way(writer));
    assert_true(vmf_channel_write_all(writer, "stream", 6, NULL));
    assert_true(vmf_channel_finish(writer, NULL));
    assert_true(g_file_get_contents(path, &contents, NULL, NULL)); /* the command was waited for */
    assert_string_equal(contents, "stream");

    reader = vmf_listener_accept(listener, -1, NULL);
    assert_true(vmf_channel_is_one_way(reader));
    text = read_rest(reader, NULL);
    assert_string_equal(text, "stream");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

static void assert_says(GError *error, const char *what)
{
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    if (!strstr(error->message, what))
        fail_msg("'%s' does not say '%s'", error->message, what);
}

static void a_failing_command_tells_its_status(void **state)
{
    g_autoptr(VmfChannel) reading = run("printf ab; exit 3", VMF_EXEC_READ), writing = run("exit 5", VMF_EXEC_WRITE),
                          killed = run("kill -9 $$", VMF_EXEC_READ),
                          finishing = run("cat > /dev/null; exit 7", VMF_EXEC_WRITE),
                          unknown = run("no-such-command-anywhere 2> /dev/null", BOTH);
    g_autoptr(GError) error = NULL;
    char buf[2];
    bool ended;

    assert_true(vmf_channel_read_all(reading, buf, 2, NULL));
    assert_false(vmf_channel_read_all_or_end(reading, buf, 1, &ended, &error));
    assert_says(error, "exit status 3");
    g_clear_error(&error);

    while (vmf_channel_write_all(writing, "x", 1, &error))
        g_usleep(1000);
    assert_says(error, "exit status 5");
    g_clear_error(&error);

    assert_null(read_rest(killed, &error));
    assert_says(error, "signal 9");
    g_clear_error(&error);

    assert_true(vmf_channel_write_all(finishing, "x", 1, NULL));
    assert_false(vmf_channel_finish(finishing, &error));
    assert_says(error, "exit status 7");
    g_clear_error(&error);

    assert_null(read_rest(unknown, &error));
    assert_says(error, "exit status 127");
}

static void *read_one(void *channel)
{
    bool ended = false;
    char buf;

    return GINT_TO_POINTER(vmf_channel_read_all_or_end(channel, &buf, 1, &ended, NULL) && ended);
}

static void *write_for_ever(void *channel)
{
    GError *error = NULL;
    g_autofree char *data = g_malloc0(65536);

    while (vmf_channel_write_all(channel, data, 65536, &error))
        continue;
    return error;
}

static void *finish(void *channel)
{
    GError *error = NULL;

    assert_false(vmf_channel_finish(channel, &error));
    return error;
}

static void shutdown_leaves_a_hanging_command(void **state)
{
    g_autoptr(VmfChannel) channel = run("exec sleep 1000", BOTH), finishing = run("exec sleep 1000", VMF_EXEC_WRITE);
    g_autoptr(GError) write_error = NULL, finish_error = NULL;
    pthread_t reader, writer, finisher;
    void *ended, *result;

    pthread_create(&reader, NULL, read_one, channel);
    pthread_create(&writer, NULL, write_for_ever, channel);
    pthread_create(&finisher, NULL, finish, finishing);
    g_usleep(5000);
    vmf_channel_shutdown(channel);
    vmf_channel_shutdown(finishing);
    pthread_join(reader, &ended);
    assert_true(GPOINTER_TO_INT(ended));
    pthread_join(writer, &result);
    write_error = result;
    assert_true(g_error_matches(write_error, VMF_ERROR, VMF_ERROR_CANCELLED));
    pthread_join(finisher, &result);
    finish_error = result;
    assert_true(g_error_matches(finish_error, VMF_ERROR, VMF_ERROR_CANCELLED));
}

static pid_t read_pid(VmfChannel *channel)
{
    char line[32] = {0};

    for (size_t i = 0; i < sizeof(line) - 1 && (i == 0 || line[i - 1] != '\n'); i++)
        assert_true(vmf_channel_read_all(channel, &line[i], 1, NULL));
    return g_ascii_strtoll(line, NULL, 10);
}

/* A command may ignore the polite signal. */
static void a_stubborn_command_ends(void **state)
{
    g_autoptr(VmfChannel) channel = run("trap '' TERM; echo $$; sleep 1000; sleep 1000", VMF_EXEC_READ);
    pid_t pid = read_pid(channel);

    assert_true(pid > 0);
    assert_int_equal(kill(pid, 0), 0);
    vmf_channel_shutdown(channel);
    g_clear_pointer(&channel, vmf_channel_free);
    assert_int_equal(kill(pid, 0), -1);
}

/* A command may be a pipeline. All of it holds the lock, which is free when the last of it is gone. */
static void nothing_of_a_pipeline_is_left(void **state)
{
    g_autofree char *path = NULL, *command = NULL;
    g_autoptr(VmfChannel) channel = NULL;
    int fd = g_file_open_tmp("vmferry-XXXXXX", &path, NULL);

    assert_true(fd >= 0);
    command = g_strdup_printf("exec 9< %s; flock -s 9; sleep 1000 | (echo 1; sleep 1000)", path);
    channel = run(command, VMF_EXEC_READ);
    read_pid(channel);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), -1);
    vmf_channel_shutdown(channel);
    g_clear_pointer(&channel, vmf_channel_free);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    close(fd);
    assert_int_equal(unlink(path), 0);
}

/* The embedder's habits do not reach the command. */
static void a_command_starts_fresh(void **state)
{
    g_autoptr(VmfChannel) channel = NULL, piped = NULL;
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;
    int fds[2];
    sigset_t all, before;

    signal(SIGPIPE, SIG_IGN);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    assert_int_equal(pipe(fds), 0); /* without close-on-exec, as embedders do */
    channel = run("ls /proc/self/fd | wc -l; grep SigBlk /proc/self/status", VMF_EXEC_READ);
    piped = run("kill -PIPE $$; exit 0", VMF_EXEC_READ);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    signal(SIGPIPE, SIG_DFL);
    text = read_rest(channel, NULL);
    /* 0, 1, 2 and the directory itself */
    assert_string_equal(text, "4\nSigBlk:\t0000000000000000\n");
    assert_null(read_rest(piped, &error));
    assert_says(error, "signal 13");
    close(fds[0]);
    close(fds[1]);
}

static void somebody_else_may_take_the_status(void **state)
{
    g_autoptr(VmfChannel) channel = NULL;
    g_autoptr(GError) error = NULL;

    signal(SIGCHLD, SIG_IGN);
    channel = run("cat > /dev/null", VMF_EXEC_WRITE);
    assert_false(vmf_channel_finish(channel, &error));
    assert_says(error, "unknown");
    signal(SIGCHLD, SIG_DFL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_command_answers),
        cmocka_unit_test(much_passes_through_a_command),
        cmocka_unit_test(one_way_commands),
        cmocka_unit_test(a_failing_command_tells_its_status),
        cmocka_unit_test(shutdown_leaves_a_hanging_command),
        cmocka_unit_test(a_stubborn_command_ends),
        cmocka_unit_test(nothing_of_a_pipeline_is_left),
        cmocka_unit_test(a_command_starts_fresh),
        cmocka_unit_test(somebody_else_may_take_the_status),
    };

    return cmocka_run_group_tests_name("channel-exec", tests, NULL, NULL);
}
