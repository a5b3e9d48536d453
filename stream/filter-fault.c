/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults at exact bytes.
 *
 * Theory of Operation
 *
 * Each direction knows its position and the faults that are still ahead, in order of their offsets. A transfer is
 * shortened to end just before the next fault. When the position stands on a fault, the fault happens: it changes what
 * becomes of the one byte that follows, which then is moved alone. The caller sees shorter transfers, which the rules
 * of channels allow, and its buffers are never touched on the way out.
 */
#include "stream/channel-wait.h"
#include "stream/filter-pass.h"
#include "stream/trace.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

typedef struct {
    VmfFault *faults; /* owned; by offset */
    size_t n;
    size_t next;
    size_t told; /* to whoever traces: a fault that goes on happens once */
    uint64_t position;
    bool invert;      /* the byte at the position */
    bool silent;      /* from the position on */
    int64_t until_ns; /* the end of the delay that runs; 0: none does */
} Direction;

typedef struct {
    VmfFilter filter;
    Direction in;  /* the reader's */
    Direction out; /* the writer's */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool down;
    bool cut; /* by a fault, so that writers are told of a cut */
} FaultFilter;

/* Sleeps until @deadline_ns; false: woken by shutdown. */
static bool sleep_until(FaultFilter *fault, int64_t deadline_ns)
{
    bool in_time = true, down;

    pthread_mutex_lock(&fault->lock);
    while (!fault->down && in_time)
        in_time = vmf_cond_wait_until(&fault->changed, &fault->lock, deadline_ns);
    down = fault->down;
    pthread_mutex_unlock(&fault->lock);
    return !down;
}

/* Returns -1. */
static int error_down(FaultFilter *fault, GError **error)
{
    bool cut;

    pthread_mutex_lock(&fault->lock);
    cut = fault->cut;
    pthread_mutex_unlock(&fault->lock);
    return cut ? vmf_channel_error_errno(&fault->filter.base, "write", EPIPE, error)
               : vmf_channel_error_shut_down(&fault->filter.base, error);
}

static void cut(FaultFilter *fault)
{
    pthread_mutex_lock(&fault->lock);
    fault->cut = !fault->down;
    pthread_mutex_unlock(&fault->lock);
    vmf_channel_shutdown(&fault->filter.base);
}

static bool is_down(FaultFilter *fault)
{
    bool down;

    pthread_mutex_lock(&fault->lock);
    down = fault->down;
    pthread_mutex_unlock(&fault->lock);
    return down;
}

/* A delay begins when somebody first asks for its byte. Returns false when it ends after @deadline_ns, or shutdown
 * came. */
static bool sit_out_delay(FaultFilter *fault, Direction *way, int64_t deadline_ns)
{
    if (way->until_ns == 0)
        way->until_ns = vmf_deadline_after(MIN(way->faults[way->next].delay_ns, INT64_MAX));
    if (!sleep_until(fault, MIN(way->until_ns, deadline_ns)) || way->until_ns > deadline_ns)
        return false;
    way->until_ns = 0;
    return true;
}

static void tell(const FaultFilter *fault, Direction *way)
{
    static const char *const kinds[] = {
        [VMF_FAULT_FLIP] = "flip", [VMF_FAULT_CUT] = "cut", [VMF_FAULT_SILENCE] = "silence", [VMF_FAULT_DELAY] = "delay"};

    if (way->told > way->next)
        return;
    way->told = way->next + 1;
    VMF_TRACE(fault_byte, fault, way == &fault->in, kinds[way->faults[way->next].kind], way->position);
}

/* Lets happen what stands at the position. False: not all of it by @deadline_ns, or the channel is down, if only by a
 * cut. */
static bool pass_faults(FaultFilter *fault, Direction *way, int64_t deadline_ns)
{
    for (; way->next < way->n && way->faults[way->next].offset == way->position; way->next++) {
        tell(fault, way);
        switch (way->faults[way->next].kind) {
        case VMF_FAULT_FLIP:
            way->invert = !way->invert;
            break;
        case VMF_FAULT_CUT:
            cut(fault);
            return false;
        case VMF_FAULT_SILENCE:
            way->silent = true;
            break;
        case VMF_FAULT_DELAY:
            if (!sit_out_delay(fault, way, deadline_ns))
                return false;
            break;
        }
    }
    return true;
}

/* How many bytes may move before the next fault, or one if that byte is special. */
static size_t room_before_fault(const Direction *way, size_t length)
{
    if (way->invert)
        return MIN(length, 1);
    if (way->next == way->n)
        return length;
    return MIN(length, way->faults[way->next].offset - way->position);
}

static void moved(Direction *way, ssize_t n)
{
    if (n <= 0)
        return;
    way->position += n;
    way->invert = false;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static ssize_t read_some(FaultFilter *fault, const struct iovec *iov, int n, GError **error)
{
    struct iovec head[IOV_MAX];
    size_t room = room_before_fault(&fault->in, vmf_iov_length(iov, n));
    ssize_t got = vmf_filter_pass_readv(&fault->filter.base, head, vmf_iov_head(head, iov, n, room), error);

    if (got > 0 && fault->in.invert)
        *(uint8_t *)iov[0].iov_base ^= 0xff;
    moved(&fault->in, got);
    return got;
}

static ssize_t fault_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    FaultFilter *fault = (FaultFilter *)channel;

    if (!pass_faults(fault, &fault->in, VMF_NEVER))
        return 0;
    if (fault->in.silent) {
        sleep_until(fault, VMF_NEVER);
        return 0;
    }
    return read_some(fault, iov, n, error);
}

static int fault_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error)
{
    FaultFilter *fault = (FaultFilter *)channel;
    int64_t deadline = vmf_deadline_after(timeout_ns);

    if (!pass_faults(fault, &fault->in, deadline))
        return is_down(fault);
    if (fault->in.silent)
        return !sleep_until(fault, deadline);
    return vmf_channel_wait_readable(fault->filter.below, vmf_time_left(deadline), error);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static ssize_t write_some(FaultFilter *fault, const struct iovec *iov, int n, GError **error)
{
    struct iovec head[IOV_MAX];
    size_t room = room_before_fault(&fault->out, vmf_iov_length(iov, n));
    int entries = vmf_iov_head(head, iov, n, room);
    g_autoptr(GError) cause = NULL;
    uint8_t inverted;
    ssize_t sent;

    if (fault->out.invert) {
        inverted = *(const uint8_t *)iov[0].iov_base ^ 0xff;
        head[0].iov_base = &inverted;
    }
    sent = vmf_filter_pass_writev(&fault->filter.base, head, entries, &cause);
    moved(&fault->out, sent);
    if (sent < 0 && is_down(fault))
        return error_down(fault, error);
    if (sent < 0)
        g_propagate_error(error, g_steal_pointer(&cause));
    return sent;
}

static ssize_t fault_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    FaultFilter *fault = (FaultFilter *)channel;

    if (is_down(fault) || !pass_faults(fault, &fault->out, VMF_NEVER))
        return error_down(fault, error);
    if (fault->out.silent)
        return vmf_iov_length(iov, n);
    return write_some(fault, iov, n, error);
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

static void fault_shutdown(VmfChannel *channel)
{
    FaultFilter *fault = (FaultFilter *)channel;

    pthread_mutex_lock(&fault->lock);
    fault->down = true;
    pthread_cond_broadcast(&fault->changed);
    pthread_mutex_unlock(&fault->lock);
    vmf_filter_pass_shutdown(channel);
}

static void fault_free(VmfChannel *channel)
{
    FaultFilter *fault = (FaultFilter *)channel;

    vmf_filter_pass_free(channel);
    g_free(fault->in.faults);
    g_free(fault->out.faults);
    pthread_cond_destroy(&fault->changed);
    pthread_mutex_destroy(&fault->lock);
}

static const VmfChannelOps fault_ops = {
    .kind = "fault",
    .readv = fault_readv,
    .writev = fault_writev,
    .wait_readable = fault_wait_readable,
    .has_room = vmf_filter_pass_has_room,
    .unsent_bytes = vmf_filter_pass_unsent_bytes,
    .finish = vmf_filter_pass_finish,
    .shutdown = fault_shutdown,
    .free = fault_free,
};

static gint by_offset(gconstpointer a, gconstpointer b, gpointer unused)
{
    const VmfFault *x = a, *y = b;

    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Those of one direction; faults of one byte stay in the order in which they were given. */
static void set_faults(Direction *way, const VmfFault *faults, size_t n, bool on_read)
{
    way->faults = g_new0(VmfFault, n + 1);
    for (size_t i = 0; i < n; i++)
        if (faults[i].on_read == on_read)
            way->faults[way->n++] = faults[i];
    g_qsort_with_data(way->faults, way->n, sizeof(VmfFault), by_offset, NULL);
}

VmfChannel *vmf_filter_fault(VmfChannel *below, const VmfFault *faults, size_t n_faults)
{
    FaultFilter *fault = g_new0(FaultFilter, 1);

    vmf_filter_init(&fault->filter, &fault_ops, below);
    pthread_mutex_init(&fault->lock, NULL);
    vmf_cond_init(&fault->changed);
    set_faults(&fault->in, faults, n_faults, true);
    set_faults(&fault->out, faults, n_faults, false);
    return &fault->filter.base;
}
