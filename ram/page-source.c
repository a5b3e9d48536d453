/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/page-source.h"

#include <stdatomic.h>
#include <vmferry/error.h>

bool vmf_page_copy(const VmfPageSource *source, const VmfPageSink *sink, const _Atomic bool *cancel, GError **error)
{
    bool done = false;

    while (!done) {
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "copying pages: cancelled");
            return false;
        }
        if (!source->ops->step(source->opaque, sink, &done, error))
            return false;
    }
    return vmf_page_sink_flush(sink, error);
}
