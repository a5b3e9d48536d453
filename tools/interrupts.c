/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/interrupts.h"

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define SAME_NS INT64_C(300000000)

static volatile sig_atomic_t cancel_asked, abandon_asked;
static int64_t first_ns; /* the handler's alone, which does not interrupt itself */

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void on_signal(int number)
{
    if (!cancel_asked)
        first_ns = now_ns();
    else if (number == SIGINT && now_ns() - first_ns > SAME_NS)
        abandon_asked = 1;
    cancel_asked = 1;
}

void vmf_interrupts_catch(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* who reads our progress may leave */
}

bool vmf_interrupts_cancel(void)
{
    return cancel_asked;
}

bool vmf_interrupts_abandon(void)
{
    return abandon_asked;
}
