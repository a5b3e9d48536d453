/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where pages come from: guest RAM, a stream being read, a store that is walked. */
#ifndef RAM_PAGE_SOURCE_H
#define RAM_PAGE_SOURCE_H

#include "ram/page-sink.h"

/* Calls come from one thread at a time. */
typedef struct VmfPageSourceOps {
    size_t size; /* sizeof(VmfPageSourceOps) */

    /*
     * Pushes the next batch into @sink: true and *done false, true and *done true when there was nothing left (nothing
     * is pushed then), or false with @error. After an error only free is called.
     */
    bool (*step)(void *source, const VmfPageSink *sink, bool *done, GError **error);

    /* Once, the last call; every batch has been released by then. */
    void (*free)(void *source);
} VmfPageSourceOps;

typedef struct VmfPageSource {
    const VmfPageSourceOps *ops;
    void *opaque;
} VmfPageSource;

/*
 * Pushes everything @source has into @sink and flushes it. *@cancel, if not NULL, is looked at before each batch: the
 * copy then ends with VMF_ERROR_CANCELLED.
 */
bool vmf_page_copy(const VmfPageSource *source, const VmfPageSink *sink, const _Atomic bool *cancel, GError **error);

static inline void vmf_page_source_free(VmfPageSource *source)
{
    if (source->ops && source->ops->free)
        source->ops->free(source->opaque);
    *source = (VmfPageSource){NULL, NULL};
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfPageSource, vmf_page_source_free)

#endif
