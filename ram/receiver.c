/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/receiver.h"

#include <vmferry/error.h>

#include <inttypes.h>

#include "stream/clock.h"

void vmf_receiver_init(VmfReceiver *receiver, VmfRamLoad *load, VmfRecordReader *reader, VmfRecordWriter *writer, unsigned channel,
                       uint32_t epoch)
{
    *receiver = (VmfReceiver){.load = load, .reader = reader, .writer = writer, .channel = channel, .epoch = epoch};
    receiver->sink = vmf_ram_load_sink(load);
    receiver->fresh.scan = load->scan;
    atomic_fetch_add(&load->n_receivers, 1);
    receiver->touched = g_array_new(false, false, sizeof(VmfAckEntry));
}

void vmf_receiver_clear(VmfReceiver *receiver)
{
    g_clear_pointer(&receiver->touched, g_array_unref);
    vmf_page_sink_free(&receiver->sink);
    vmf_fresh_reader_clear(&receiver->fresh);
    if (receiver->load)
        atomic_fetch_sub(&receiver->load->n_receivers, 1);
    receiver->load = NULL;
}

static bool acknowledge(VmfReceiver *receiver, GError **error)
{
    VmfAck ack = {receiver->epoch, receiver->channel, receiver->sequence, receiver->touched->len};

    if (!receiver->writer)
        return true;
    for (guint i = 0; i < receiver->touched->len; i++) {
        VmfAckEntry *entry = &g_array_index(receiver->touched, VmfAckEntry, i);
        entry->sum = vmf_digest_table_chunk_sum(receiver->load->blocks[entry->block].digests, entry->chunk);
    }
    if (!vmf_ack_send(receiver->writer, &ack, (const VmfAckEntry *)(void *)receiver->touched->data, error))
        return false;
    g_array_set_size(receiver->touched, 0);
    receiver->acknowledged = receiver->sequence;
    receiver->unacknowledged_bytes = 0;
    return true;
}

bool vmf_receiver_wait(VmfReceiver *receiver, GError **error)
{
    if (!receiver->writer || receiver->acknowledged == receiver->sequence)
        return true;
    int64_t left = receiver->oldest_ns + VMF_ACK_DELAY_NS - vmf_now_ns();
    int ready = vmf_channel_wait_readable(receiver->reader->channel, MAX(left, 0), error);
    if (ready != 0)
        return ready > 0;
    return acknowledge(receiver, error);
}

/* For the next acknowledgement. Records of one chunk follow each other, so comparing with the last entry finds nearly all repetitions. */
static void touch(VmfReceiver *receiver, uint32_t block, uint64_t chunk)
{
    if (!receiver->writer) /* a list that nobody ever takes would grow with the stream */
        return;
    const VmfAckEntry *last =
        receiver->touched->len ? &g_array_index(receiver->touched, VmfAckEntry, receiver->touched->len - 1) : NULL;

    if (last && last->block == block && last->chunk == chunk)
        return;
    VmfAckEntry entry = {.block = block, .chunk = chunk};
    g_array_append_val(receiver->touched, entry);
}

static bool take_pages(VmfReceiver *receiver, const VmfRecord *record, GError **error)
{
    VmfWirePages meta;

    memcpy(&meta, record->body, sizeof(meta));
    if (receiver->reader->format.swap)
        vmf_wire_pages_swap(&meta);
    if (receiver->ended || meta.epoch != receiver->epoch || meta.sequence != receiver->sequence) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER,
                    "record PAGES: epoch %u, sequence %" PRIu64 ": expected epoch %u, sequence %" PRIu64, meta.epoch, meta.sequence,
                    receiver->epoch, receiver->sequence);
        return false;
    }
    if (!vmf_ram_load_pages(receiver->load, &receiver->sink, &receiver->fresh, receiver->reader, &meta, record->length, error))
        return false;
    if (receiver->acknowledged == receiver->sequence)
        receiver->oldest_ns = vmf_now_ns();
    receiver->sequence++;
    receiver->unacknowledged_bytes += record->length;
    atomic_fetch_add_explicit(&receiver->bytes, VMF_RECORD_HEADER_SIZE + record->length, memory_order_relaxed);
    touch(receiver, meta.block, meta.chunk);
    if (receiver->unacknowledged_bytes < VMF_ACK_BYTES && receiver->touched->len < VMF_ACK_CHUNKS &&
        vmf_now_ns() - receiver->oldest_ns < VMF_ACK_DELAY_NS)
        return true;
    return acknowledge(receiver, error);
}

static bool take_end_mark(VmfReceiver *receiver, const VmfRecord *record, GError **error)
{
    uint64_t n_records;

    if (!vmf_u64_decode(record, receiver->reader->format.swap, &n_records, error))
        return false;
    if (receiver->ended || n_records != receiver->sequence) {
        g_set_error(error, VMF_ERROR, receiver->ended ? VMF_ERROR_RECORD_ORDER : VMF_ERROR_RAM_COUNTS,
                    "record END_MARK: channel %u: %" PRIu64 " records were sent, %" PRIu64 " came", receiver->channel, n_records,
                    receiver->sequence);
        return false;
    }
    receiver->ended = true;
    return acknowledge(receiver, error);
}

bool vmf_receiver_take(VmfReceiver *receiver, const VmfRecord *record, GError **error)
{
    VmfHint hint;

    switch (record->type) {
    case VMF_RECORD_PAGES:
        return take_pages(receiver, record, error);
    case VMF_RECORD_HINT:
        return vmf_hint_decode(record, receiver->reader->format.swap, &hint, error) &&
               vmf_ram_load_hint(receiver->load, &hint, error);
    case VMF_RECORD_END_MARK:
        return take_end_mark(receiver, record, error);
    default:
        vmf_record_set_order_error(error, record->type, "on a page channel");
        return false;
    }
}

static bool skip_optional(VmfReceiver *receiver, const VmfRecord *record, GError **error)
{
    return receiver->reader->payload_left == 0 || vmf_record_skip_payload(receiver->reader, record->length, error);
}

bool vmf_receiver_run(VmfReceiver *receiver, GError **error)
{
    VmfRecord record;

    if (!acknowledge(receiver, error))
        return false;
    while (!receiver->ended) {
        if (!vmf_receiver_wait(receiver, error) || !vmf_record_read(receiver->reader, &record, error))
            return false;
        bool known = vmf_record_name(record.type) != NULL;
        bool taken = !known && record.type & VMF_RECORD_OPTIONAL ? skip_optional(receiver, &record, error)
                                                                 : vmf_receiver_take(receiver, &record, error);
        if (!taken)
            return false;
    }
    return true;
}
