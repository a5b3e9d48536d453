/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/channel-wait.h"

#include <vmferry/error.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / VMF_NS_PER_S, .tv_nsec = ns % VMF_NS_PER_S};
}

void vmf_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

bool vmf_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t deadline_ns)
{
    struct timespec until;

    if (deadline_ns == VMF_NEVER) {
        pthread_cond_wait(cond, lock);
        return true;
    }
    until = timespec_of(MAX(deadline_ns, 0));
    return pthread_cond_timedwait(cond, lock, &until) != ETIMEDOUT;
}

int vmf_poll_until(struct pollfd *fds, nfds_t n, int64_t deadline_ns)
{
    for (;;) {
        int64_t left = vmf_time_left(deadline_ns);
        struct timespec timeout = timespec_of(left);
        int ready = ppoll(fds, n, left < 0 ? NULL : &timeout, NULL);

        if (ready >= 0 || errno != EINTR)
            return ready;
    }
}

bool vmf_wake_init(VmfWake *wake, GError **error)
{
    atomic_init(&wake->thrown, false);
    wake->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake->fd < 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "eventfd: %s", g_strerror(errno));
    return wake->fd >= 0;
}

void vmf_wake_clear(VmfWake *wake)
{
    if (wake->fd >= 0)
        close(wake->fd);
    wake->fd = -1;
}

void vmf_wake_throw(VmfWake *wake)
{
    uint64_t one = 1;

    atomic_store(&wake->thrown, true);
    /* Never read, so it stays readable; it cannot fail before 2^64 - 2 calls, and then it is readable already. */
    if (write(wake->fd, &one, sizeof(one)) < 0)
        return;
}

int vmf_wake_poll(VmfWake *wake, int fd, short events, int64_t deadline_ns)
{
    struct pollfd fds[] = {{.fd = fd, .events = events}, {.fd = wake->fd, .events = POLLIN}};
    int ready = vmf_poll_until(fds, G_N_ELEMENTS(fds), deadline_ns);

    return MIN(ready, 1);
}
