/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/verify-sink.h"

#include <vmferry/error.h>

typedef struct {
    VmfDigestTable **tables;
    unsigned n_tables;
    VmfVerifyResult *result;
} VerifySink;

static void compare_page(VerifySink *sink, const VmfPageBatch *batch, unsigned page)
{
    VmfVerifyResult *result = sink->result;
    VmfPageMismatch now = {.block_index = batch->block_index,
                           .page = batch->first_page + page,
                           .expected = vmf_digest_table_get(sink->tables[batch->block_index], batch->first_page + page),
                           .found = batch->digests[page]};

    result->pages_checked++;
    if (now.expected == now.found)
        return;
    result->pages_different++;
    if (result->n_listed < G_N_ELEMENTS(result->listed))
        result->listed[result->n_listed++] = now;
}

static bool verify_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    VerifySink *sink = opaque;
    bool usable = batch->digests && batch->block_index < sink->n_tables;

    for (unsigned w = 0; usable && w < VMF_CHUNK_WORDS; w++) {
        for (uint64_t left = batch->data.words[w] | batch->zero.words[w]; left; left &= left - 1)
            compare_page(sink, batch, w * 64 + __builtin_ctzll(left));
    }
    if (!usable)
        g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL, "verifying RAM: block %u: a batch without digests or table",
                    batch->block_index);
    vmf_page_batch_release(batch);
    return usable;
}

static void verify_free(void *opaque)
{
    VerifySink *sink = opaque;

    g_free(sink->tables);
    g_free(sink);
}

static const VmfPageSinkOps verify_ops = {
    .size = sizeof(VmfPageSinkOps),
    .push = verify_push,
    .free = verify_free,
};

VmfPageSink vmf_verify_sink_new(VmfDigestTable *const *tables, unsigned n_tables, VmfVerifyResult *result)
{
    VerifySink *sink = g_new0(VerifySink, 1);

    *result = (VmfVerifyResult){0};
    *sink = (VerifySink){g_memdup2(tables, n_tables * sizeof(*tables)), n_tables, result};
    return (VmfPageSink){&verify_ops, sink};
}

static bool null_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    VmfPageCounts *counts = opaque;

    counts->batches++;
    counts->data_pages += vmf_page_set_count(&batch->data);
    counts->zero_pages += vmf_page_set_count(&batch->zero);
    vmf_page_batch_release(batch);
    return true;
}

static const VmfPageSinkOps null_ops = {
    .size = sizeof(VmfPageSinkOps),
    .push = null_push,
};

VmfPageSink vmf_null_sink_new(VmfPageCounts *counts)
{
    *counts = (VmfPageCounts){0};
    return (VmfPageSink){&null_ops, counts};
}
