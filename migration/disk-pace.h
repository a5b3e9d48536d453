/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How fast a disk may be read beside a guest that uses it: many large requests at once, fewer of them, one that is small, or
 * that now and then, so that the guest's writes end in the time that somebody has set as a goal. No clock, no I/O: all is in
 * the arguments.
 */
#ifndef MIGRATION_DISK_PACE_H
#define MIGRATION_DISK_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define VMF_DISK_PACE_WINDOW_NS 20000000ll /* what the guest's writes took is looked at so often */

typedef struct {
    bool on;        /* there is a goal; otherwise depth and granules are the most, and pause_ns 0 */
    unsigned depth; /* reads under way, at most */
    unsigned granules; /* of a read, at most */
    unsigned most, most_granules;
    uint64_t pause_ns; /* after each read, where there is one, of one granule */
    uint64_t n_writes, n_late; /* since it changed last, or might have */
    uint64_t debt;             /* writes that are to be on time before it is faster */
} VmfDiskPace;

/* @most_granules: a power of two. */
void vmf_disk_pace_init(VmfDiskPace *pace, bool on, unsigned most, unsigned most_granules);
/* Of a window: how many writes of the guest ended, and how many of them took longer than the goal while a read was under way. */
void vmf_disk_pace_look(VmfDiskPace *pace, uint64_t n_writes, uint64_t n_late);

#endif
