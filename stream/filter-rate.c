/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rate limits.
 *
 * Theory of Operation
 *
 * All channels of a limit take from one bucket before they write. Who finds too little in it waits in line: the first
 * one sleeps until the bucket holds enough for it, those behind it until they are first. So a short message of the main
 * channel waits for at most one piece of each page channel, however busy they are. A change of the limit wakes all, who
 * look again.
 *
 * A write that is larger than the bucket goes out in pieces. From about 100 MB/s on a piece is larger than any record,
 * and gather writes stay whole.
 *
 * Without a limit a write costs one relaxed load more.
 */
#include "stream/filter-rate.h"
#include "stream/channel-wait.h"
#include "stream/filter-pass.h"

#include <limits.h>

#define BURST_NS (5 * VMF_NS_PER_MS)
#define BURST_BYTES_MIN 512

/* ---- the bucket ------------------------------------------------------------------------------------------------- */

static uint64_t muldiv(uint64_t a, uint64_t b, uint64_t divisor)
{
    unsigned __int128 result = (unsigned __int128)a * b / divisor;

    return result > INT64_MAX ? INT64_MAX : (uint64_t)result;
}

static void fill(VmfTokenBucket *bucket, int64_t now_ns)
{
    unsigned __int128 earned;

    if (now_ns <= bucket->at_ns || bucket->rate == 0)
        return;
    earned = (unsigned __int128)(now_ns - bucket->at_ns) * bucket->rate + bucket->rest;
    bucket->at_ns = now_ns;
    bucket->rest = (uint64_t)(earned % VMF_NS_PER_S);
    earned /= VMF_NS_PER_S;
    bucket->level = earned >= bucket->burst - bucket->level ? bucket->burst : bucket->level + (uint64_t)earned;
}

void vmf_token_bucket_set_rate(VmfTokenBucket *bucket, uint64_t rate, int64_t now_ns)
{
    fill(bucket, now_ns);
    bucket->level = bucket->rate == 0 ? 0 : bucket->level;
    bucket->rate = rate;
    bucket->burst = MAX(muldiv(rate, BURST_NS, VMF_NS_PER_S), BURST_BYTES_MIN);
    bucket->level = MIN(bucket->level, bucket->burst);
    bucket->rest = 0;
    bucket->at_ns = now_ns;
}

uint64_t vmf_token_bucket_take(VmfTokenBucket *bucket, uint64_t want, int64_t now_ns, int64_t *ready_ns)
{
    uint64_t enough = MIN(want, (bucket->burst + 1) / 2), taken;

    if (bucket->rate == 0)
        return want;
    fill(bucket, now_ns);
    if (bucket->level < enough) {
        *ready_ns = bucket->at_ns + (int64_t)muldiv(enough - bucket->level, VMF_NS_PER_S, bucket->rate) + 1;
        return 0;
    }
    taken = MIN(want, bucket->level);
    bucket->level -= taken;
    return taken;
}

void vmf_token_bucket_return(VmfTokenBucket *bucket, uint64_t bytes)
{
    bucket->level = MIN(bucket->level + bytes, bucket->burst);
}

/* ---- the limit -------------------------------------------------------------------------------------------------- */

struct VmfRateLimit {
    atomic_int references;
    atomic_bool unlimited; /* mirrors bucket.rate == 0, for who has no lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    VmfTokenBucket bucket;
    GQueue line; /* of who waits, in order of arrival: nodes on their stacks */
};

VmfRateLimit *vmf_rate_limit_new(uint64_t bytes_per_second)
{
    VmfRateLimit *limit = g_new0(VmfRateLimit, 1);

    atomic_init(&limit->references, 1);
    pthread_mutex_init(&limit->lock, NULL);
    vmf_cond_init(&limit->changed);
    g_queue_init(&limit->line);
    vmf_rate_limit_set(limit, bytes_per_second);
    return limit;
}

VmfRateLimit *vmf_rate_limit_ref(VmfRateLimit *limit)
{
    atomic_fetch_add(&limit->references, 1);
    return limit;
}

void vmf_rate_limit_unref(VmfRateLimit *limit)
{
    if (!limit || atomic_fetch_sub(&limit->references, 1) > 1)
        return;
    pthread_cond_destroy(&limit->changed);
    pthread_mutex_destroy(&limit->lock);
    g_free(limit);
}

void vmf_rate_limit_set(VmfRateLimit *limit, uint64_t bytes_per_second)
{
    pthread_mutex_lock(&limit->lock);
    vmf_token_bucket_set_rate(&limit->bucket, bytes_per_second, vmf_now_ns());
    atomic_store_explicit(&limit->unlimited, bytes_per_second == 0, memory_order_relaxed);
    pthread_cond_broadcast(&limit->changed);
    pthread_mutex_unlock(&limit->lock);
}

/* Waits for its turn and for bytes. Returns how many of @want may go out; 0 when *@down was set. */
static uint64_t take(VmfRateLimit *limit, uint64_t want, atomic_bool *down)
{
    uint64_t taken = 0;
    GList turn = {0};

    pthread_mutex_lock(&limit->lock);
    g_queue_push_tail_link(&limit->line, &turn);
    while (!atomic_load(down)) {
        int64_t ready_ns = VMF_NEVER;

        if (limit->line.head == &turn)
            taken = vmf_token_bucket_take(&limit->bucket, want, vmf_now_ns(), &ready_ns);
        if (taken > 0)
            break;
        vmf_cond_wait_until(&limit->changed, &limit->lock, ready_ns);
    }
    g_queue_unlink(&limit->line, &turn);
    if (limit->line.length > 0)
        pthread_cond_broadcast(&limit->changed);
    pthread_mutex_unlock(&limit->lock);
    return taken;
}

uint64_t vmf_rate_limit_take(VmfRateLimit *limit, uint64_t want)
{
    atomic_bool never_down = false;

    return atomic_load_explicit(&limit->unlimited, memory_order_relaxed) ? want : take(limit, want, &never_down);
}

static void give_back(VmfRateLimit *limit, uint64_t bytes)
{
    pthread_mutex_lock(&limit->lock);
    vmf_token_bucket_return(&limit->bucket, bytes);
    pthread_mutex_unlock(&limit->lock);
}

/* ---- the filter ------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfFilter filter;
    VmfRateLimit *limit;
    atomic_bool down;
} RateFilter;

static ssize_t write_limited(RateFilter *rate, const struct iovec *iov, int n, GError **error)
{
    struct iovec head[IOV_MAX];
    uint64_t granted = take(rate->limit, vmf_iov_length(iov, n), &rate->down);
    ssize_t sent;

    if (granted == 0)
        return vmf_channel_error_shut_down(&rate->filter.base, error);
    sent = vmf_filter_pass_writev(&rate->filter.base, head, vmf_iov_head(head, iov, n, granted), error);
    if (sent < (ssize_t)granted)
        give_back(rate->limit, granted - MAX(sent, 0));
    return sent;
}

static ssize_t rate_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    RateFilter *rate = (RateFilter *)channel;

    if (atomic_load_explicit(&rate->limit->unlimited, memory_order_relaxed))
        return vmf_filter_pass_writev(channel, iov, n, error);
    return write_limited(rate, iov, n, error);
}

static void rate_shutdown(VmfChannel *channel)
{
    RateFilter *rate = (RateFilter *)channel;

    atomic_store(&rate->down, true);
    pthread_mutex_lock(&rate->limit->lock);
    pthread_cond_broadcast(&rate->limit->changed);
    pthread_mutex_unlock(&rate->limit->lock);
    vmf_filter_pass_shutdown(channel);
}

static void rate_free(VmfChannel *channel)
{
    vmf_rate_limit_unref(((RateFilter *)channel)->limit);
    vmf_filter_pass_free(channel);
}

static const VmfChannelOps rate_ops = {
    .kind = "rate",
    .readv = vmf_filter_pass_readv,
    .writev = rate_writev,
    .wait_readable = vmf_filter_pass_wait_readable,
    .has_room = vmf_filter_pass_has_room,
    .unsent_bytes = vmf_filter_pass_unsent_bytes,
    .finish = vmf_filter_pass_finish,
    .shutdown = rate_shutdown,
    .free = rate_free,
};

VmfChannel *vmf_filter_rate(VmfChannel *below, VmfRateLimit *limit)
{
    RateFilter *rate = g_new0(RateFilter, 1);

    vmf_filter_init(&rate->filter, &rate_ops, below);
    rate->limit = vmf_rate_limit_ref(limit);
    atomic_init(&rate->down, false);
    return &rate->filter.base;
}
