/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest RAM as a page store. */
#ifndef RAM_RAM_STORE_H
#define RAM_RAM_STORE_H

#include "ram/page-scan.h"
#include "ram/page-store.h"

/*
 * A store over @blocks (the array is copied, the blocks are not owned). Pages are read in place: payloads point into
 * guest memory.
 * @live: the guest may run meanwhile.
 */
VmfPageStore vmf_ram_store_new(VmfRamBlock *const *blocks, unsigned n_blocks, const VmfPageScan *scan, bool live);

#endif
