/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which pages of a RAM block were ever touched, found without reading (and so populating) any. The others read as zero
 * and need not travel.
 */
#ifndef RAM_OCCUPANCY_H
#define RAM_OCCUPANCY_H

#include "ram/bitmap.h"
#include "ram/block.h"

/*
 * Adds to @out every page that may hold something other than zeros. Costs what is touched, not what exists. Where the
 * host cannot tell, that is all pages. A page first touched while this runs may be missed: start the dirty log before.
 */
bool vmf_occupancy_scan(const VmfRamBlock *block, VmfDirtyBitmap *out, GError **error);

#endif
