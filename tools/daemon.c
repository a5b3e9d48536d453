/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmferry/error.h>

static bool fail(GError **error, const char *call)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "daemon: %s: %s", call, g_strerror(errno));
    return false;
}

/* The byte says that the child is ready; without one it has ended, and its exit code is ours. */
static G_GNUC_NORETURN void wait_for(pid_t child, int fd)
{
    char byte;
    int status;
    ssize_t n;

    do {
        n = read(fd, &byte, 1);
    } while (n < 0 && errno == EINTR);
    if (n == 1)
        _exit(0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

int vmf_daemon_fork(GError **error)
{
    int fds[2];
    pid_t child;

    if (pipe2(fds, O_CLOEXEC) < 0) {
        fail(error, "pipe");
        return -1;
    }
    fflush(NULL);
    child = fork();
    if (child < 0) {
        fail(error, "fork");
        return -1;
    }
    if (child > 0) {
        close(fds[1]);
        wait_for(child, fds[0]);
    }
    close(fds[0]);
    setsid();
    return fds[1];
}

bool vmf_daemon_ready(int ready_fd, const char *log_path, GError **error)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

    fflush(NULL);
    if (null_fd < 0 || log_fd < 0)
        return fail(error, log_path);
    if (dup2(null_fd, 0) < 0 || dup2(null_fd, 1) < 0 || dup2(log_fd, 2) < 0)
        return fail(error, "dup2");
    if (null_fd > 2)
        close(null_fd);
    if (log_fd > 2)
        close(log_fd);
    if (write(ready_fd, "", 1) != 1)
        return fail(error, "write");
    close(ready_fd);
    return true;
}
