/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest RAM as a page sink. */
#ifndef RAM_RAM_SINK_H
#define RAM_RAM_SINK_H

#include "ram/digest-table.h"
#include "ram/page-scan.h"
#include "ram/page-sink.h"

/*
 * A sink that places pages in @blocks and enters their digests in @tables (@n_blocks of each; the arrays are copied,
 * what they point at is not owned). Each block has to agree with its table at the start, which a block that was never
 * touched, or discarded whole, does with a new table: pages of digest 0 are taken to be zeros and are not touched to
 * make them so. reserve() returns guest memory.
 *
 * Several sinks may share blocks and tables as long as no two are given the same chunk at a time.
 */
VmfPageSink vmf_ram_sink_new(VmfRamBlock *const *blocks, VmfDigestTable *const *tables, unsigned n_blocks,
                             const VmfPageScan *scan);

#endif
