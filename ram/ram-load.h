/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RAM at the target: pages go from the channel straight into place, are digested there, and are counted. Any number of receivers
 * place pages at once; the source sees to it that a chunk is on one channel at a time. One that does not gets wrong sums and nothing
 * worse.
 */
#ifndef RAM_RAM_LOAD_H
#define RAM_RAM_LOAD_H

#include <stdatomic.h>

#include "ram/digest-table.h"
#include "ram/flight.h"
#include "ram/fresh.h"
#include "ram/page-scan.h"
#include "ram/populate.h"
#include "ram/ram-sink.h"
#include "ram/stream-source.h"
#include "stream/message.h"

typedef struct {
    VmfRamBlock *block;
    VmfDigestTable *digests;
    _Atomic uint64_t data; /* first pass, as received */
    _Atomic uint64_t zero;
} VmfRamLoadBlock;

typedef struct {
    const VmfPageScan *scan;
    VmfRamLoadBlock *blocks;
    unsigned n_blocks;
    VmfFresh *fresh;       /* NULL: first touches are left to the kernel; until the check at the handover */
    VmfPopulate *populate; /* NULL: hints are ignored */
    _Atomic unsigned n_receivers;
    unsigned n_cpus;
    _Atomic uint64_t pages_data, pages_zero;
} VmfRamLoad;

/* Empties the blocks (all of their content is given back to the host), so that a page nobody sends is a page of zeros. */
VmfRamLoad *vmf_ram_load_new(VmfRamBlock *const *blocks, unsigned n_blocks, bool populate, GError **error);
void vmf_ram_load_free(VmfRamLoad *load);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRamLoad, vmf_ram_load_free)

/* Gives all memory back: a load that failed leaves nothing. */
void vmf_ram_load_discard(VmfRamLoad *load);

/* A sink that places pages in the blocks; one for each receiver. The load outlives it. */
VmfPageSink vmf_ram_load_sink(VmfRamLoad *load);

/* Places what the PAGES record that @reader read last carries, and counts it. @meta: its fields in host order; @sink: of this
 * load; @fresh: the receiver's own, with its scan set. */
bool vmf_ram_load_pages(VmfRamLoad *load, const VmfPageSink *sink, VmfFreshReader *fresh, VmfRecordReader *reader,
                        const VmfWirePages *meta, uint32_t length, GError **error);

/* Populates ahead what @hint names. */
bool vmf_ram_load_hint(VmfRamLoad *load, const VmfHint *hint, GError **error);

/* What SWITCHOVER says against what came: counts, then sums. From here on the memory is the guest's: every receiver has ended. */
bool vmf_ram_load_check(VmfRamLoad *load, const VmfSwitchover *message, GError **error);

/* Digests all memory again and compares with what was placed: VMF_ERROR_RAM_AUDIT. */
bool vmf_ram_load_audit(VmfRamLoad *load, const _Atomic bool *cancel, GError **error);

#endif
