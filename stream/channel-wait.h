/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Waiting: deadlines on CLOCK_MONOTONIC, in nanoseconds, for condition variables and for poll(); and a descriptor that
 * ends a poll() from another thread. Wall-clock jumps never change how long anything waits.
 */
#ifndef VMF_STREAM_CHANNEL_WAIT_H
#define VMF_STREAM_CHANNEL_WAIT_H

#include "stream/clock.h"

#include <glib.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define VMF_NEVER INT64_MAX

/* A negative timeout, or one beyond the end of time, is VMF_NEVER. */
static inline int64_t vmf_deadline_after(int64_t timeout_ns)
{
    int64_t deadline;

    if (timeout_ns < 0 || __builtin_add_overflow(vmf_now_ns(), timeout_ns, &deadline))
        return VMF_NEVER;
    return deadline;
}

/* The inverse: -1 for VMF_NEVER, 0 for what has passed. */
static inline int64_t vmf_time_left(int64_t deadline_ns)
{
    return deadline_ns == VMF_NEVER ? -1 : MAX(deadline_ns - vmf_now_ns(), 0);
}

/* pthread_cond_init() for vmf_cond_wait_until(). */
void vmf_cond_init(pthread_cond_t *cond);

/* Waits once. False when the deadline has passed; true says only that it is time to look again. */
bool vmf_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t deadline_ns);

/* poll() until a deadline, through signals. As poll(): the number of ready descriptors, 0 when time is up, -1 with
 * errno. */
int vmf_poll_until(struct pollfd *fds, nfds_t n, int64_t deadline_ns);

/* A switch that is thrown once, by any thread, and stays: poll @fd for POLLIN. */
typedef struct {
    int fd;
    atomic_bool thrown;
} VmfWake;

bool vmf_wake_init(VmfWake *wake, GError **error);
void vmf_wake_clear(VmfWake *wake);
void vmf_wake_throw(VmfWake *wake);

static inline bool vmf_wake_is_thrown(VmfWake *wake)
{
    return atomic_load(&wake->thrown);
}

/* Waits for @events on @fd, or for @wake. Returns 1 (either; an error on @fd counts), 0 when time is up, -1 with errno.
 */
int vmf_wake_poll(VmfWake *wake, int fd, short events, int64_t deadline_ns);

#endif
