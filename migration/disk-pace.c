/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How long a write waits depends on how much is read ahead of it: one read of 64 KiB is hardly felt, one of 1 MiB is. So before
 * there are pauses the reads are small.
 *
 * It begins slowly, is half as fast as soon as more than one write in a hundred is late, and a little faster after each
 * hundred in which that is not so: what takes long to find is how much the storage bears, and what must not take long
 * is to leave it alone. A window may have a few writes only, of which none is late by chance; so windows are added up
 * until they have a hundred.
 *
 * To try what the storage bears makes writes late, and a goal that is missed at each try is missed. So each late write
 * is paid for: a hundred are to be on time before the next try. Over all of a copy one in a hundred is late then, at
 * about the goal, however the tries end. Storage that is late by itself is not the copy's doing: only what was late while a read
 * was under way counts, and the slower the copy is, the less that is. A guest that does not write is not disturbed.
 */
#include "migration/disk-pace.h"

#include <glib.h>

#define PAUSE_LEAST_NS 250000u
#define PAUSE_MOST_NS 16000000u /* a copy that never ends helps nobody */
#define JUDGED_WRITES 100
#define LATE_PERCENT 1
#define DEBT_MOST 5000u  /* or a storage that is slow for a moment is left alone for ever */
#define DEBT_QUIET 10u   /* so many of them a window without writes pays */

void vmf_disk_pace_init(VmfDiskPace *pace, bool on, unsigned most, unsigned most_granules)
{
    *pace = (VmfDiskPace){.on = on,
                          .depth = on ? 1 : most,
                          .granules = on ? 1 : most_granules,
                          .most = most,
                          .most_granules = most_granules};
}

static void slow_down(VmfDiskPace *pace)
{
    if (pace->depth > 1)
        pace->depth /= 2;
    else if (pace->granules > 1)
        pace->granules /= 2;
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
    else if (pace->granules < pace->most_granules)
        pace->granules *= 2;
    else if (pace->depth < pace->most)
        pace->depth++;
}

static void pay(VmfDiskPace *pace, uint64_t n_writes, uint64_t n_late)
{
    uint64_t paid = MAX(n_writes - MIN(n_late, n_writes), n_writes > 0 ? 0 : DEBT_QUIET);

    pace->debt = MIN(pace->debt + MIN(n_late, DEBT_MOST) * (100 / LATE_PERCENT), DEBT_MOST);
    pace->debt -= MIN(paid, pace->debt);
}

void vmf_disk_pace_look(VmfDiskPace *pace, uint64_t n_writes, uint64_t n_late)
{
    if (!pace->on)
        return;
    pay(pace, n_writes, n_late);
    pace->n_writes += n_writes;
    pace->n_late += n_late;
    bool late = pace->n_late * 100 > MAX(pace->n_writes, JUDGED_WRITES) * LATE_PERCENT;
    if (!late && pace->n_writes < JUDGED_WRITES && n_writes > 0)
        return;
    if (late)
        slow_down(pace);
    else if (pace->debt == 0)
        speed_up(pace);
    pace->n_writes = pace->n_late = 0;
}
