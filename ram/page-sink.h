/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where pages go: a stream being written, guest RAM, a verifier. */
#ifndef RAM_PAGE_SINK_H
#define RAM_PAGE_SINK_H

#include "ram/page-batch.h"

/* Calls come from one thread at a time. A callback that is NULL is left out, except push, which every sink has. */
typedef struct VmfPageSinkOps {
    size_t size; /* sizeof(VmfPageSinkOps) */

    /*
     * Where to read the pages of @chunk into, page n at n * VMF_PAGE_SIZE: the sink's own memory, so that the push that
     * follows (with this as its payload) need not copy; any page of it that is not pushed afterwards must not have been
     * written. NULL, or no such callback: read into memory of the source's own.
     */
    void *(*reserve)(void *sink, unsigned block_index, uint64_t chunk);

    /*
     * Takes @batch, and has to release it (vmf_page_batch_release) exactly once, whether it succeeds or not: before it
     * returns, or later from any thread, at the latest when flush or free returns.
     */
    bool (*push)(void *sink, VmfPageBatch *batch, GError **error);

    /* Everything pushed has arrived where the sink puts it, and every batch is released. Any number of times. */
    bool (*flush)(void *sink, GError **error);

    /* Once, the last call. */
    void (*free)(void *sink);
} VmfPageSinkOps;

typedef struct VmfPageSink {
    const VmfPageSinkOps *ops;
    void *opaque;
} VmfPageSink;

static inline void *vmf_page_sink_reserve(const VmfPageSink *sink, unsigned block_index, uint64_t chunk)
{
    return sink->ops->reserve ? sink->ops->reserve(sink->opaque, block_index, chunk) : NULL;
}

static inline bool vmf_page_sink_push(const VmfPageSink *sink, VmfPageBatch *batch, GError **error)
{
    return sink->ops->push(sink->opaque, batch, error);
}

static inline bool vmf_page_sink_flush(const VmfPageSink *sink, GError **error)
{
    return sink->ops->flush ? sink->ops->flush(sink->opaque, error) : true;
}

static inline void vmf_page_sink_free(VmfPageSink *sink)
{
    if (sink->ops && sink->ops->free)
        sink->ops->free(sink->opaque);
    *sink = (VmfPageSink){NULL, NULL};
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfPageSink, vmf_page_sink_free)

#endif
