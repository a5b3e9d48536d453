/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Half as fast as soon as more than one write in a hundred is late, a little faster after each hundred in which that is
 * not so: what takes long to find is how much the storage bears, and what must not take long is to leave it alone. A
 * window may have a few writes only, of which none is late by chance; so windows are added up until they have a hundred.
 * A guest that does not write is not disturbed.
 */
#include "migration/disk-pace.h"

#include <glib.h>

#define PAUSE_LEAST_NS 1000000u
#define PAUSE_MOST_NS 200000000u
#define JUDGED_WRITES 100
#define LATE_PERCENT 1

void vmf_disk_pace_init(VmfDiskPace *pace, bool on, unsigned most)
{
    *pace = (VmfDiskPace){.on = on, .depth = most, .most = most};
}

static void slow_down(VmfDiskPace *pace)
{
    if (pace->depth > 1)
        pace->depth /= 2;
    else if (pace->pause_ns == 0)
        pace->pause_ns = PAUSE_LEAST_NS;
    else if (pace->pause_ns < PAUSE_MOST_NS / 2)
        pace->pause_ns *= 2;
    else
        pace->pause_ns = PAUSE_MOST_NS;
}

static void speed_up(VmfDiskPace *pace)
{
    if (pace->pause_ns > PAUSE_LEAST_NS)
        pace->pause_ns -= pace->pause_ns / 4;
    else if (pace->pause_ns > 0)
        pace->pause_ns = 0;
    else if (pace->depth < pace->most)
        pace->depth++;
}

void vmf_disk_pace_look(VmfDiskPace *pace, uint64_t n_writes, uint64_t n_late)
{
    if (!pace->on)
        return;
    pace->n_writes += n_writes;
    pace->n_late += n_late;
    bool late = pace->n_late * 100 > MAX(pace->n_writes, JUDGED_WRITES) * LATE_PERCENT;
    if (!late && pace->n_writes < JUDGED_WRITES && n_writes > 0)
        return;
    if (late)
        slow_down(pace);
    else
        speed_up(pace);
    pace->n_writes = pace->n_late = 0;
}
