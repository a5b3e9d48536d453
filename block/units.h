/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk in units of 64 KiB, each of which is to do, under way, or done, whatever it is that is done to it (a backup
 * reads it, a restore fills it); and which of them somebody waits for. Their user's lock guards all of it.
 */
#ifndef BLOCK_UNITS_H
#define BLOCK_UNITS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define VMF_DISK_UNIT 65536u

typedef struct {
    uint64_t n;                 /* units */
    uint64_t *todo, *under_way; /* bits, at most one of the two is set */
    uint64_t *asked;            /* bits: it has been in urgent since it is to do */
    uint64_t n_left;            /* that are not done */
    uint64_t cursor;            /* no unit before it is to do; its user's to move on */
    GArray *urgent;             /* uint64_t: units that are waited for; some may be done already */
} VmfDiskUnits;

/* All of them done. False: no memory. */
bool vmf_disk_units_init(VmfDiskUnits *units, uint64_t size_bytes);
/* All zeros is fine. */
void vmf_disk_units_clear(VmfDiskUnits *units);

/* Of a range in bytes, not empty: those that it touches; they were done. Returns how many are to do that were not. */
uint64_t vmf_disk_units_set_todo(VmfDiskUnits *units, uint64_t offset, uint64_t length);
/* The first that is to do at or after @from, and how many are from @first on, at most @max. None: units->n, 0. */
uint64_t vmf_disk_units_next_todo(const VmfDiskUnits *units, uint64_t from);
uint64_t vmf_disk_units_run(const VmfDiskUnits *units, uint64_t first, uint64_t max);
/* The first in [from, end) that is not done, and that is under way; @end: there is none. */
uint64_t vmf_disk_units_next_left(const VmfDiskUnits *units, uint64_t from, uint64_t end);
uint64_t vmf_disk_units_next_under_way(const VmfDiskUnits *units, uint64_t from, uint64_t end);

/* Of those in [first, first + n): to do becomes under way; that becomes done, or to do again. */
void vmf_disk_units_begin(VmfDiskUnits *units, uint64_t first, uint64_t n);
void vmf_disk_units_end(VmfDiskUnits *units, uint64_t first, uint64_t n);
void vmf_disk_units_undo(VmfDiskUnits *units, uint64_t first, uint64_t n);

/*
 * True: some of [first, end) are not done. Those to do among the first of these become urgent: of a range that is large some are
 * enough to begin with, it is asked for again.
 */
bool vmf_disk_units_ask(VmfDiskUnits *units, uint64_t first, uint64_t end);
/* The next urgent one that is to do still, and what is to do behind it: how many, at most @max. 0: there is none. */
uint64_t vmf_disk_units_take_urgent(VmfDiskUnits *units, uint64_t max, uint64_t *first);

#endif
