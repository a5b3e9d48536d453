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

/* The digests are entered before the bytes leave: whoever sees the record's acknowledgement finds them there. */
static bool send_batch(VmfStreamSink *sink, const VmfPageBatch *batch, GError **error)
{
    struct iovec iov[VMF_PAGES_DATA_MAX];
    unsigned n_data = vmf_page_set_count(&batch->data);
    size_t payload = (size_t)n_data * VMF_PAGE_SIZE;
    VmfWirePages meta = {.block = batch->block_index, .chunk = batch->chunk, .epoch = sink->epoch, .n_data = n_data};
    VmfChunkId id = {batch->block_index, batch->chunk};

    g_assert(n_data <= VMF_PAGES_DATA_MAX);
    if (!launch(sink, id, (uint32_t)(payload + sizeof(meta) + VMF_RECORD_HEADER_SIZE), error))
        return false;
    meta.sequence = vmf_flight_sequence(sink->save->flight, sink->lane) - 1;
    meta.flags = vmf_ram_save_is_first_pass(sink->save) ? VMF_PAGES_FIRST_PASS : 0;
    memcpy(meta.data, batch->data.words, sizeof(meta.data));
    memcpy(meta.zero, batch->zero.words, sizeof(meta.zero));
    vmf_ram_save_enter(sink->save, batch);
    sink->unasked_bytes += payload + sizeof(meta);
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

static bool announce(void *opaque, VmfChunkId id, const VmfPageSet *data, GError **error)
{
    VmfStreamSink *sink = opaque;
    VmfHint hint = {.block = id.block, .chunk = id.chunk};

    memcpy(hint.data, data->words, sizeof(hint.data));
    return vmf_hint_queue(sink->writer, &hint, error);
}

#define ASK_EVERY_BYTES (64u << 10) /* a system call for each page would be too many */

static bool is_ready(void *opaque)
{
    VmfStreamSink *sink = opaque;

    if (sink->had_room && sink->unasked_bytes < ASK_EVERY_BYTES)
        return true;
    sink->unasked_bytes = 0;
    sink->had_room = vmf_channel_has_room(sink->writer->channel);
    return sink->had_room;
}

VmfLaneConfig vmf_stream_sink_lane(VmfStreamSink *sink, bool hints)
{
    return (VmfLaneConfig){
        .sink = vmf_stream_sink(sink),
        .batch_pages = VMF_PAGES_DATA_MAX,
        .announce = hints ? announce : NULL,
        .announce_opaque = sink,
        .is_ready = is_ready,
        .let_go = stream_sink_flush,
        .opaque = sink,
    };
}

bool vmf_stream_sink_end_mark(VmfStreamSink *sink, GError **error)
{
    return vmf_u64_send(sink->writer, VMF_RECORD_END_MARK, vmf_flight_sequence(sink->save->flight, sink->lane), error);
}
