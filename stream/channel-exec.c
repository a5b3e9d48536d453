/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Channels over a command.
 *
 * Theory of Operation
 *
 * The command runs in /bin/sh with our pipes as its standard input and output, in a process group of its own: an
 * interrupt at the terminal asks the migration to cancel, it must not tear the transport away. posix_spawn() because
 * fork() would copy the page tables of a whole guest.
 *
 * An end of its output, or a broken pipe, often means that the command failed. Then its exit status is the better
 * explanation, so the channel gives it a moment to exit before it tells of the end of the stream.
 *
 * finish() closes its input and waits for it, as long as it takes. free() without finish() waits for a moment, then
 * terminates the whole group.
 */
#include "stream/channel-fd.h"
#include "stream/channel-wait.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_GRACE_NS INT64_C(1000000000)
#define KILL_GRACE_NS INT64_C(500000000)

extern char **environ;

typedef struct {
    VmfChannel base;
    VmfChannel *pipes;
    pid_t pid; /* 0: nothing was started */
    int pidfd;
    VmfWake wake;
    pthread_mutex_t reaping; /* reader, writer */
    bool reaped;
    int status; /* as of waitpid(); -1: somebody else has it */
} ExecChannel;

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Waits for the exit until @deadline_ns or shutdown. Returns whether it has exited; then its status is known. */
static bool wait_exit(ExecChannel *exec, int64_t deadline_ns, bool until_shutdown)
{
    VmfWake none = {.fd = -1};
    bool exited;

    vmf_wake_poll(until_shutdown ? &exec->wake : &none, exec->pidfd, POLLIN, deadline_ns);
    pthread_mutex_lock(&exec->reaping);
    if (!exec->reaped) {
        pid_t pid;

        do {
            pid = waitpid(exec->pid, &exec->status, WNOHANG);
        } while (pid < 0 && errno == EINTR);
        exec->reaped = pid != 0;
        if (pid < 0)
            exec->status = -1;
    }
    exited = exec->reaped;
    pthread_mutex_unlock(&exec->reaping);
    return exited;
}

/* Sets an error that tells how the command ended; false when it ended well. */
static bool has_failed(ExecChannel *exec, GError **error)
{
    int status = exec->status;

    if (status == 0)
        return false;
    if (status > 0 && WIFEXITED(status))
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: the command failed: exit status %d", exec->base.name,
                    WEXITSTATUS(status));
    else if (status > 0 && WIFSIGNALED(status))
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: the command was killed: signal %d", exec->base.name,
                    WTERMSIG(status));
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: the command's exit status is unknown", exec->base.name);
    return true;
}

static bool explained_by_exit(ExecChannel *exec, GError **error)
{
    if (vmf_wake_is_thrown(&exec->wake))
        return false;
    return wait_exit(exec, vmf_deadline_after(EXIT_GRACE_NS), true) && has_failed(exec, error);
}

static ssize_t exec_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    ExecChannel *exec = (ExecChannel *)channel;
    ssize_t got = exec->pipes->ops->readv(exec->pipes, iov, n, error);

    return got == 0 && explained_by_exit(exec, error) ? -1 : got;
}

static ssize_t exec_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    ExecChannel *exec = (ExecChannel *)channel;
    g_autoptr(GError) cause = NULL;
    ssize_t sent = exec->pipes->ops->writev(exec->pipes, iov, n, &cause);

    if (sent < 0 && !(g_error_matches(cause, VMF_ERROR, VMF_ERROR_CUT) && explained_by_exit(exec, error)))
        g_propagate_error(error, g_steal_pointer(&cause));
    return sent;
}

static int exec_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    return vmf_channel_wait_readable(((ExecChannel *)channel)->pipes, timeout_ns, error);
}

static void exec_shutdown(VmfChannel *channel)
{
    ExecChannel *exec = (ExecChannel *)channel;

    vmf_wake_throw(&exec->wake);
    vmf_channel_shutdown(exec->pipes);
}

static bool exec_finish(VmfChannel *channel, GError **error)
{
    ExecChannel *exec = (ExecChannel *)channel;

    vmf_channel_pipe_close_write(exec->pipes);
    if (wait_exit(exec, VMF_NEVER, true))
        return !has_failed(exec, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: the channel was shut down before the command ended",
                channel->name);
    return false;
}

/* What was shut down is given up: nothing good can come of waiting for its end. */
static void end_command(ExecChannel *exec)
{
    if (wait_exit(exec, vmf_deadline_after(vmf_wake_is_thrown(&exec->wake) ? 0 : EXIT_GRACE_NS), false))
        return;
    kill(-exec->pid, SIGTERM);
    if (wait_exit(exec, vmf_deadline_after(KILL_GRACE_NS), false))
        return;
    kill(-exec->pid, SIGKILL);
    wait_exit(exec, VMF_NEVER, false);
}

static void exec_free(VmfChannel *channel)
{
    ExecChannel *exec = (ExecChannel *)channel;

    vmf_channel_free(exec->pipes);
    if (exec->pid > 0)
        end_command(exec);
    close_fd(&exec->pidfd);
    vmf_wake_clear(&exec->wake);
    pthread_mutex_destroy(&exec->reaping);
}

static const VmfChannelOps exec_ops = {
    .kind = "exec",
    .readv = exec_readv,
    .writev = exec_writev,
    .wait_readable = exec_wait_readable,
    .finish = exec_finish,
    .shutdown = exec_shutdown,
    .free = exec_free,
};

/* ---- starting --------------------------------------------------------------------------------------------------- */

typedef struct {
    int ours;
    int theirs;
} PipeEnds;

static bool open_pipe(PipeEnds *ends, bool we_write)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0)
        return false;
    *ends = (PipeEnds){.ours = fds[we_write], .theirs = fds[!we_write]};
    return true;
}

/*
 * Without a pipe its input is empty, and its output goes where its messages go: standard output belongs to whoever runs
 * us, who may parse it. Signals are as a fresh shell expects them, whatever the embedder blocked or ignored.
 */
static int spawn_shell(const char *command, int input, int output, pid_t *pid)
{
    char *argv[] = {(char *)"/bin/sh", (char *)"-c", (char *)command, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t all, none;
    int err;

    sigfillset(&all);
    sigemptyset(&none);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawn_file_actions_init(&actions);
    if (input >= 0)
        posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    else
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output >= 0 ? output : STDERR_FILENO, STDOUT_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    err = posix_spawn(pid, argv[0], &actions, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    return err;
}

/* Returns 0 or an errno. The pipes are the caller's in any case. */
static int start(ExecChannel *exec, const char *command, VmfExecSides sides, PipeEnds *input, PipeEnds *output)
{
    int err;

    if (((sides & VMF_EXEC_WRITE) && !open_pipe(input, true)) || ((sides & VMF_EXEC_READ) && !open_pipe(output, false)))
        return errno;
    err = spawn_shell(command, input->theirs, output->theirs, &exec->pid);
    if (err != 0) {
        exec->pid = 0;
        return err;
    }
    exec->pidfd = pidfd_open(exec->pid, 0);
    if (exec->pidfd >= 0)
        return 0;
    err = errno;
    kill(-exec->pid, SIGKILL);
    waitpid(exec->pid, NULL, 0);
    exec->pid = 0;
    return err;
}

VmfChannel *vmf_channel_exec_new(const char *command, VmfExecSides sides, GError **error)
{
    g_autofree char *name = g_strconcat("exec:", command, NULL);
    bool one_way = sides != (VMF_EXEC_READ | VMF_EXEC_WRITE);
    PipeEnds input = {-1, -1}, output = {-1, -1};
    ExecChannel *exec = g_new0(ExecChannel, 1);
    g_autoptr(VmfChannel) channel = &exec->base;
    int err;

    vmf_channel_init(channel, &exec_ops, name, one_way);
    pthread_mutex_init(&exec->reaping, NULL);
    exec->pidfd = -1;
    if (!vmf_wake_init(&exec->wake, error))
        return NULL;
    err = start(exec, command, sides, &input, &output);
    close_fd(&input.theirs);
    close_fd(&output.theirs);
    if (err != 0) {
        close_fd(&input.ours);
        close_fd(&output.ours);
        vmf_channel_error_errno(channel, "start", err, error);
        return NULL;
    }
    exec->pipes = vmf_channel_pipe_new(output.ours, input.ours, name, one_way, error);
    return exec->pipes ? g_steal_pointer(&channel) : NULL;
}
