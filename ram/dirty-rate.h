/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How fast the guest writes, from what the dirty log had at each harvest.
 *
 * A throttled guest runs and rests in turns of some ten milliseconds. Two harvests that lie closer together than that see one or the other,
 * so what they had is summed until it covers several turns; a figure before that is the best there is, and said to be no more.
 */
#ifndef RAM_DIRTY_RATE_H
#define RAM_DIRTY_RATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define VMF_DIRTY_RATE_WINDOW_NS INT64_C(100000000)

typedef struct {
    uint64_t bytes, ns; /* summed up in the window that is under way */
    _Atomic uint64_t bytes_per_second;
    bool settled; /* the figure is of a whole window since it was last begun anew */
} VmfDirtyRate;

/* What was written in @ns. One thread; the figure is read by any. */
static inline void vmf_dirty_rate_add(VmfDirtyRate *rate, uint64_t bytes, uint64_t ns)
{
    rate->bytes += bytes;
    rate->ns += ns > 0 ? ns : 1;
    bool whole = rate->ns >= VMF_DIRTY_RATE_WINDOW_NS;
    if (whole || !rate->settled)
        atomic_store(&rate->bytes_per_second, (uint64_t)((double)rate->bytes * 1e9 / (double)rate->ns));
    if (!whole)
        return;
    rate->settled = true;
    rate->bytes = rate->ns = 0;
}

/* A figure that was measured by itself, over whole turns. */
static inline void vmf_dirty_rate_set(VmfDirtyRate *rate, uint64_t bytes_per_second)
{
    atomic_store(&rate->bytes_per_second, bytes_per_second);
    rate->settled = true;
    rate->bytes = rate->ns = 0;
}

/* The guest has just been slowed, or let go: what it wrote before does not count any more. The figure stays until there is a new one. */
static inline void vmf_dirty_rate_restart(VmfDirtyRate *rate)
{
    rate->bytes = rate->ns = 0;
    rate->settled = false;
}

#endif
