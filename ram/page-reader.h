/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages of a guest that is elsewhere (an image, a chain of layers, a peer), read chunk by chunk on demand, several
 * reads at a time. What memory is filled from while the guest already runs.
 */
#ifndef RAM_PAGE_READER_H
#define RAM_PAGE_READER_H

#include "ram/page-set.h"

/*
 * A read has ended. @error NULL: the pages @data are in memory and are what they should be (their digests were
 * checked), the pages @zero are zeros and were not written; together they are what was wanted. Otherwise nothing of
 * what was wanted can be relied on, and @error is the callee's. Called on the reader's thread from within a call of the
 * reader; starts no read.
 */
typedef void (*VmfPageReadDone)(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *data,
                                const VmfPageSet *zero, GError *error);

typedef struct VmfPageReaderOps {
    size_t size; /* sizeof(VmfPageReaderOps) */

    /* ---- of the source: any thread, several at once --------------------------------------------------------- */

    /* False: all of the chunk is zeros. Costs nothing: called for every chunk at the start. */
    bool (*may_have_data)(void *source, unsigned block, uint64_t chunk);
    /* The pages of the chunk that are not known to be zeros. May have to read them up, the first time. */
    bool (*data_pages)(void *source, unsigned block, uint64_t chunk, VmfPageSet *data, GError **error);

    /* ---- a reader: one thread --------------------------------------------------------------------------------- */

    /* For up to @depth reads at once. NULL with @error. */
    void *(*open)(void *source, unsigned depth, GError **error);
    /* Nothing is under way. */
    void (*close)(void *reader);
    /*
     * Begins to read the pages @wanted (some of data_pages()) of a chunk into @memory, page n of the chunk at n *
     * VMF_PAGE_SIZE, aligned to 4096; only where wanted pages go is memory. True: @done is called once. False with
     * @error: it is not.
     */
    bool (*start)(void *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                  VmfPageReadDone done, void *opaque, GError **error);
    /*
     * start() and wait() of one read while nothing is under way, by the shortest way there is: @done was called when it
     * returns true.
     */
    bool (*read_now)(void *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                     VmfPageReadDone done, void *opaque, GError **error);
    /* Waits until at most @n_under_way reads are. */
    void (*wait)(void *reader, unsigned n_under_way);
} VmfPageReaderOps;

/* Reads @wanted and waits for it and all else that is under way. Pages of zeros are written. */
bool vmf_page_reader_read(const VmfPageReaderOps *ops, void *reader, unsigned block, uint64_t chunk,
                          const VmfPageSet *wanted, void *memory, GError **error);

/* The same a page at a time, after a read of all of them has failed: the page that cannot be had is *@bad. */
bool vmf_page_reader_read_singly(const VmfPageReaderOps *ops, void *reader, unsigned block, uint64_t chunk,
                                 const VmfPageSet *wanted, void *memory, unsigned *bad, GError **error);

/* Where to let a read put page @first of a chunk, so that this page comes to lie at @buffer. */
static inline void *vmf_page_reader_base(uint8_t *buffer, unsigned first)
{
    return (void *)((uintptr_t)buffer - (uintptr_t)first * VMF_PAGE_SIZE);
}

#endif
