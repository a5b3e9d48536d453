/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/stream-sink.h"

#include <vmferry/error.h>

static bool closed(GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "page channel: closed");
    return false;
}

/* A lane must not wait for the landing of records that it has not let go. */
static bool launch(VmfStreamSink *sink, VmfChunkId id, uint32_t bytes, GError **error)
{
    if (vmf_flight_try_launch(sink->save->flight, sink->lane, id, bytes))
        return true;
    if (!vmf_record_flush(sink->writer, error))
        return false;
    return vmf_flight_launch(sink->save->flight, sink->lane, id, bytes) || closed(error);
}

static int gather(struct iovec *iov, const VmfPageBatch *batch)
{
    unsigned first, n_pages, from = 0;
    int n = 0;

    for (; vmf_page_set_next_run(&batch->data, from, &first, &n_pages); from = first + n_pages)
        iov[n++] = (struct iovec){(void *)(batch->payload + (size_t)first * VMF_PAGE_SIZE), (size_t)n_pages * VMF_PAGE_SIZE};
    return n;
}

static void count(VmfStreamSink *sink, VmfRamSaveBlock *own, unsigned n_data, unsigned n_zero)
{
    atomic_fetch_add(&sink->save->pages_data, n_data);
    atomic_fetch_add(&sink->save->pages_zero, n_zero);
    atomic_fetch_add(&sink->save->payload_bytes, (uint64_t)n_data * VMF_PAGE_SIZE);
    if (sink->first_pass) {
        atomic_fetch_add(&own->data, n_data);
        atomic_fetch_add(&own->zero, n_zero);
    } else {
        atomic_fetch_add(&sink->save->pages_resent, n_data + n_zero);
    }
}

/* The digests are entered before the bytes leave: whoever sees the record's acknowledgement finds them there. */
static bool send_batch(VmfStreamSink *sink, const VmfPageBatch *batch, GError **error)
{
    VmfRamSaveBlock *own = &sink->save->blocks[batch->block_index];
    struct iovec iov[VMF_PAGES_DATA_MAX];
    unsigned n_data = vmf_page_set_count(&batch->data);
    size_t payload = (size_t)n_data * VMF_PAGE_SIZE;
    VmfWirePages meta = {.block = batch->block_index, .chunk = batch->chunk, .epoch = sink->epoch, .n_data = n_data};
    VmfChunkId id = {batch->block_index, batch->chunk};

    g_assert(n_data <= VMF_PAGES_DATA_MAX);
    if (!launch(sink, id, (uint32_t)(payload + sizeof(meta) + VMF_RECORD_HEADER_SIZE), error))
        return false;
    meta.sequence = vmf_flight_sequence(sink->save->flight, sink->lane) - 1;
    meta.flags = sink->first_pass ? VMF_PAGES_FIRST_PASS : 0;
    memcpy(meta.data, batch->data.words, sizeof(meta.data));
    memcpy(meta.zero, batch->zero.words, sizeof(meta.zero));
    vmf_digest_table_update(own->digests, batch->chunk, &batch->data, batch->digests);
    vmf_digest_table_update(own->digests, batch->chunk, &batch->zero, NULL);
    count(sink, own, n_data, vmf_page_set_count(&batch->zero));
    return vmf_record_write_pages(sink->writer, &meta, iov, gather(iov, batch), payload, error);
}

static bool stream_sink_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    bool sent = send_batch(opaque, batch, error);

    vmf_page_batch_release(batch);
    return sent;
}

static bool stream_sink_flush(void *opaque, GError **error)
{
    return vmf_record_flush(((VmfStreamSink *)opaque)->writer, error);
}

static const VmfPageSinkOps ops = {
    .size = sizeof(VmfPageSinkOps),
    .push = stream_sink_push,
    .flush = stream_sink_flush,
};

VmfPageSink vmf_stream_sink(VmfStreamSink *sink)
{
    return (VmfPageSink){&ops, sink};
}
