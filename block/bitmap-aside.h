/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file of bitmaps speaks of the disk that was written while they recorded. Where another disk takes the place of that
 * one it has to be out of the way first: its bitmaps would count as sound, and say of the new one what is not so. It
 * waits under PATH.replaced, and comes back with the disk that it speaks of.
 *
 * One thread at a time.
 */
#ifndef BLOCK_BITMAP_ASIDE_H
#define BLOCK_BITMAP_ASIDE_H

#include <glib.h>
#include <stdbool.h>

typedef struct {
    char *path; /* NULL: nothing is aside */
    char *replaced;
} VmfBitmapsAside;

/*
 * Durable when it returns; what is no file of bitmaps stays. False: VMF_ERROR_IO, and it may be there still; VMF_ERROR_LOCKED:
 * another disk has it, that is in use.
 */
bool vmf_bitmaps_aside_move(VmfBitmapsAside *aside, const char *path, GError **error);
/* What it speaks of is back. */
void vmf_bitmaps_aside_return(VmfBitmapsAside *aside);
/* What it speaks of has gone for ever. */
void vmf_bitmaps_aside_remove(VmfBitmapsAside *aside);
/* It stays where it is. */
void vmf_bitmaps_aside_clear(VmfBitmapsAside *aside);

#endif
