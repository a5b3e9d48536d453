/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Time as the engine measures it. */
#ifndef VMF_STREAM_CLOCK_H
#define VMF_STREAM_CLOCK_H

#include <stdint.h>
#include <time.h>

#define VMF_NS_PER_S INT64_C(1000000000)
#define VMF_NS_PER_MS INT64_C(1000000)

/* CLOCK_MONOTONIC. */
static inline int64_t vmf_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * VMF_NS_PER_S + t.tv_nsec;
}

#endif
