/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Filling lazy memory ahead of its guest: first in the order in which a guest touched its pages before, then upwards,
 * until all is there.
 */
#ifndef RAM_PREFETCH_H
#define RAM_PREFETCH_H

#include "ram/lazy-ram.h"
#include "ram/touch-order.h"

#define VMF_PREFETCH_DEPTH 8u        /* reads at once */
#define VMF_PREFETCH_PIECE_PAGES 64u /* of a read, at most, as long as pages are small */

typedef struct {
    VmfLazyRam *ram;
    const VmfPageReaderOps *reader;
    void *source;
    const VmfTouchOrder *order; /* NULL: none. Entries that are not of these blocks are passed over */
    uint64_t hold_ns;           /* before it begins */

    /* All calls come from its thread. */

    /* How many reads may be under way now: 1 to VMF_PREFETCH_DEPTH. Asked before each. */
    unsigned (*depth)(void *opaque);
    /* @n_pages have come to be there. */
    void (*placed)(void *opaque, unsigned n_pages);
    /* Once, the last call: all that is not zeros is there (@error NULL), or @page of @block cannot be had. Not if it
     * was freed before. @error is the callee's. */
    void (*ended)(void *opaque, unsigned block, uint64_t page, GError *error);
    void *opaque;
} VmfPrefetchConfig;

typedef struct VmfPrefetch VmfPrefetch;

/* Begins, in a thread of its own at nice 10. What @config points to outlives it. */
VmfPrefetch *vmf_prefetch_new(const VmfPrefetchConfig *config, GError **error);
/* Ends it, wherever it is; waits for the reads that are under way. */
void vmf_prefetch_free(VmfPrefetch *prefetch);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfPrefetch, vmf_prefetch_free)

#endif
