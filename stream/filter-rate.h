/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The arithmetic of a rate limit, apart from clocks and threads. */
#ifndef VMF_STREAM_FILTER_RATE_H
#define VMF_STREAM_FILTER_RATE_H

#include <stdint.h>

#include <vmferry/channel.h>

/*
 * A bucket that fills with @rate bytes a second up to @burst, and from which writes take. What a bucket holds when it
 * is full may go out at once: a few milliseconds' worth, so that a limit holds over short times too.
 */
typedef struct {
    uint64_t rate;  /* bytes a second, 0: unlimited */
    uint64_t burst; /* bytes */
    uint64_t level; /* bytes that may go out now */
    uint64_t rest;  /* billionths of a byte that were earned beside it, so that no fraction is lost however often it is
                       filled */
    int64_t at_ns;  /* when it was filled last */
} VmfTokenBucket;

/* Starts empty at a rate that was unlimited; otherwise keeps what was earned so far, up to the new burst. Effective at
 * @now_ns. */
void vmf_token_bucket_set_rate(VmfTokenBucket *bucket, uint64_t rate, int64_t now_ns);

/*
 * Takes what is there, up to @want bytes (above 0). Returns it, or 0 and when to come back in *@ready_ns: at once for
 * small wants, a piece worth a system call for large ones.
 */
uint64_t vmf_token_bucket_take(VmfTokenBucket *bucket, uint64_t want, int64_t now_ns, int64_t *ready_ns);

/* Puts back what was taken and not sent. */
void vmf_token_bucket_return(VmfTokenBucket *bucket, uint64_t bytes);

/*
 * Waits for its turn at @limit among all who wait, then takes at least one of @want bytes (above 0) and returns how many: for what goes
 * elsewhere than through a channel. What is taken at once is small (a few milliseconds' worth); the rest is for the next call.
 */
uint64_t vmf_rate_limit_take(VmfRateLimit *limit, uint64_t want);

#endif
