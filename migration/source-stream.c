/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stream as the place where a guest goes: to a target, which answers, or into a file or a pipe. Channels, static data and what the
 * target says of it. What comes after the last page is in switchover.c.
 */
#include "migration/source.h"

#include <vmferry/error.h>

#include "block/claim.h"
#include "stream/channel.h"
#include "stream/connector.h"
#include "stream/clock.h"

#define CONNECT_NS (10 * VMF_NS_PER_S)
#define VERDICT_NS (30 * VMF_NS_PER_S)
#define RTT_PINGS 3
#define RTT_NS (2 * VMF_NS_PER_S) /* for all of them */
#define FIRST_EPOCH 1

/* ---- channels -------------------------------------------------------------------------------------------------------------- */

static bool open_channel(VmfSource *source, VmfSourceChannel *out, GError **error)
{
    VmfChannel *channel = vmf_connector_open(source->session->connector, CONNECT_NS, error);

    if (!channel)
        return false;
    out->count = vmf_filter_count(channel);
    out->channel = vmf_filter_rate(out->count, source->session->rate);
    out->writer = vmf_record_writer_new(out->channel, source->format);
    vmf_session_add_channel(source->session, out->channel);
    return true;
}

static void close_channel(VmfSource *source, VmfSourceChannel *channel)
{
    if (channel->channel)
        vmf_session_remove_channel(source->session, channel->channel);
    g_clear_pointer(&channel->writer, vmf_record_writer_free);
    g_clear_pointer(&channel->channel, vmf_channel_free);
}

/* ---- static data ----------------------------------------------------------------------------------------------------------- */

static unsigned wanted_channels(const VmfSource *source)
{
    const VmfSession *session = source->session;

    if (source->format.one_way || vmf_guest_n_ram(session->guest) == 0)
        return 0;
    /* One descriptor carries everything: pages then travel on the main channel. */
    return vmf_connector_max_channels(session->connector) > session->parameters.channels ? session->parameters.channels : 0;
}

static bool is_copied(void *opaque, const char *name)
{
    return vmf_disk_source_has(opaque, name);
}

/* It is the user who knows whether that is so. */
static void tell_shared_disks(VmfSource *source)
{
    VmfGuest *guest = source->session->guest;
    g_autoptr(GPtrArray) names = g_ptr_array_new();

    for (unsigned i = 0; i < vmf_guest_n_disks(guest); i++)
        if (!is_copied(&source->disks, vmf_guest_disk(guest, i)->name))
            g_ptr_array_add(names, (char *)vmf_guest_disk(guest, i)->name);
    if (names->len == 0)
        return;
    g_ptr_array_add(names, NULL);
    g_autofree char *all = g_strjoinv(", ", (char **)names->pdata);
    vmf_session_event(source->session, "disk.shared", "taken as storage that both hosts reach, not copied: %s", all);
}

static void describe(VmfSource *source)
{
    VmfSession *session = source->session;
    uint64_t used = source->format.one_way ? VMF_FEATURE_SUMS
                                           : VMF_FEATURE_SUMS | VMF_FEATURE_ACKS | VMF_FEATURE_HINTS | VMF_FEATURE_REPORT;

    if (session->parameters.audit == VMF_AUDIT_BEFORE && !source->format.one_way)
        used |= VMF_FEATURE_AUDIT_BEFORE;
    if (source->disks.n_disks > 0)
        used |= VMF_FEATURE_DISKS;
    if (source->disks.bitmap)
        used |= VMF_FEATURE_BASES;
    if (source->disks.may_mirror && source->disks.n_disks > 0 && !source->format.one_way)
        used |= VMF_FEATURE_MIRROR;
    vmf_source_describe(source, used, wanted_channels(source));
    vmf_static_data_add_disks(source->static_data, session->guest, is_copied, &source->disks);
    tell_shared_disks(source);
}

static bool refused(VmfSource *source, const VmfVerdict *verdict, GError **error)
{
    g_autofree char *all = g_strjoinv("; ", verdict->texts);

    vmf_session_set_incompatibilities(source->session, verdict->texts);
    g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE, "target: refuses: %s", all);
    return false;
}

/* Version 2 has fixed features and does not wait. */
static bool await_verdict(VmfSource *source, GError **error)
{
    bool ask = source->session->parameters.dry_run;
    VmfVerdict verdict;

    source->features = source->static_data->features_required;
    source->channels_allowed = wanted_channels(source);
    if (source->format.version < 3) {
        source->features = VMF_FEATURE_SUMS | (source->format.one_way ? 0 : VMF_FEATURE_ACKS);
        if (!ask)
            return true;
    }
    if (source->format.one_way)
        return true;
    if (!vmf_return_path_read_verdict(source->return_path, vmf_now_ns() + VERDICT_NS, &verdict, error)) {
        if (g_error_matches(*error, VMF_ERROR, VMF_ERROR_TIMEOUT))
            g_prefix_error(error, "target: does not answer the static data: ");
        return false;
    }
    bool accepted = verdict.accepted || refused(source, &verdict, error);
    source->features = verdict.features & source->static_data->features_offered;
    source->channels_allowed = MIN(source->channels_allowed, verdict.page_channels);
    source->disks.may_mirror &= (source->features & VMF_FEATURE_MIRROR) != 0;
    vmf_verdict_clear(&verdict);
    if (accepted && source->static_data->features_required & ~source->features) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_FEATURE, "target: accepts, but without required features 0x%" G_GINT64_MODIFIER "x",
                    source->static_data->features_required & ~source->features);
        return false;
    }
    return accepted;
}

static bool preflight(VmfSource *source, GError **error)
{
    return vmf_record_queue(source->main.writer, VMF_RECORD_PREFLIGHT, NULL, 0, error) &&
           vmf_record_write(source->main.writer, VMF_RECORD_END, NULL, 0, error) && await_verdict(source, error);
}

static bool open_page_channel(VmfSource *source, const VmfPageChannels *message, unsigned index, GError **error)
{
    VmfPreamble preamble = {.channel = index, .epoch = message->epoch};
    VmfSourceChannel *channel = g_new0(VmfSourceChannel, 1);
    uint8_t wire[VMF_PREAMBLE_SIZE];

    g_ptr_array_add(source->pages, channel);
    memcpy(preamble.session, message->session, sizeof(preamble.session));
    vmf_preamble_encode(&preamble, &source->format, wire);
    return open_channel(source, channel, error) && vmf_record_write_raw(channel->writer, wire, sizeof(wire), error);
}

/* All are opened before the first is waited for, so that it takes one round trip. */
static bool open_page_channels(VmfSource *source, GError **error)
{
    VmfPageChannels message = {.count = source->channels_allowed, .epoch = FIRST_EPOCH};
    g_autofree VmfRecordWriter **writers = g_new0(VmfRecordWriter *, message.count + 1);
    int64_t deadline = vmf_now_ns() + CONNECT_NS;

    if (vmf_guest_n_ram(source->session->guest) == 0)
        return true;
    if (!vmf_source_random_bytes(message.session, sizeof(message.session), error) ||
        !vmf_page_channels_queue(source->main.writer, &message, error) || !vmf_record_flush(source->main.writer, error))
        return false;
    writers[0] = source->main.writer;
    for (unsigned i = 0; i < message.count; i++) {
        if (!open_page_channel(source, &message, i, error))
            return false;
        writers[i] = ((VmfSourceChannel *)g_ptr_array_index(source->pages, i))->writer;
    }
    if (!vmf_ram_source_attach_streams(&source->ram, writers, MAX(message.count, 1), FIRST_EPOCH,
                                       source->features & VMF_FEATURE_ACKS, source->features & VMF_FEATURE_HINTS, error))
        return false;
    if (source->return_path)
        vmf_return_path_attached(source->return_path, message.count == 0);
    for (unsigned i = 0; i < message.count; i++)
        if (!vmf_return_path_join(source->return_path, ((VmfSourceChannel *)g_ptr_array_index(source->pages, i))->channel, i,
                                  deadline, error))
            return false;
    return true;
}

/*
 * The first answer may find the target busy with setting up; the forecast of the stop rests on the round trip, so it is asked three
 * times, one after the other, while nothing else is under way.
 */
static bool measure_rtt(VmfSource *source, GError **error)
{
    int64_t deadline = vmf_now_ns() + RTT_NS;

    for (unsigned i = 1; i <= RTT_PINGS && source->return_path; i++) {
        if (!vmf_u64_send(source->main.writer, VMF_RECORD_PING, (uint64_t)vmf_now_ns(), error))
            return false;
        vmf_return_path_await_pong(source->return_path, i, deadline);
    }
    return vmf_session_check_cancelled(source->session, error);
}

/* ---- the place ------------------------------------------------------------------------------------------------------------- */

bool vmf_source_claim(VmfSource *source, GError **error)
{
    const VmfUri *uri = source->session->connector->uri;

    return !uri || vmf_claim_renew_uri(uri->text, VMF_CLAIM_FORCE, &source->claim, error);
}

static bool stream_open(VmfSource *source, GError **error)
{
    source->format = (VmfStreamFormat){.version = source->session->parameters.stream_version,
                                       .one_way = vmf_connector_is_one_way(source->session->connector)};
    if (!vmf_source_claim(source, error) || !open_channel(source, &source->main, error))
        return false;
    if (!source->format.one_way)
        source->return_path = vmf_return_path_new(source->session, source->main.channel, source->format, &source->ram, source->owners);
    describe(source);
    return vmf_source_send_static_data(source, error) && vmf_record_flush(source->main.writer, error);
}

static bool stream_attach(VmfSource *source, GError **error)
{
    return await_verdict(source, error) && open_page_channels(source, error) &&
           (!source->return_path || vmf_return_path_start(source->return_path, error)) &&
           vmf_session_fault(source->session, "source.accepted", error) && measure_rtt(source, error);
}

static bool stream_begin_round(VmfSource *source, uint64_t pending_bytes, GError **error)
{
    return vmf_round_queue(source->main.writer, source->session->statistics.round, pending_bytes, error) &&
           (source->format.one_way || vmf_u64_send(source->main.writer, VMF_RECORD_PING, (uint64_t)vmf_now_ns(), error));
}

static void stream_gather(const VmfSource *source, VmfStatistics *statistics)
{
    uint64_t sent = 0, received = 0;

    if (source->main.count) {
        sent = vmf_filter_count_sent(source->main.count);
        received = vmf_filter_count_received(source->main.count);
    }
    statistics->n_channels = source->pages->len;
    for (guint i = 0; i < source->pages->len; i++) {
        VmfSourceChannel *channel = g_ptr_array_index(source->pages, i);
        statistics->channel_bytes[i] = channel->count ? vmf_filter_count_sent(channel->count) : 0;
        sent += statistics->channel_bytes[i];
        received += channel->count ? vmf_filter_count_received(channel->count) : 0;
    }
    statistics->bytes_sent = sent;
    statistics->bytes_received = received;
    if (source->return_path)
        statistics->rtt_ns = vmf_return_path_rtt_ns(source->return_path);
}

static void stream_close(VmfSource *source)
{
    g_clear_pointer(&source->return_path, vmf_return_path_free);
    vmf_ram_source_clear(&source->ram);
    for (guint i = 0; i < source->pages->len; i++)
        close_channel(source, g_ptr_array_index(source->pages, i));
    close_channel(source, &source->main);
    vmf_claim_drop(&source->claim);
}

const VmfDestination vmf_destination_stream = {
    .open = stream_open,
    .preflight = preflight,
    .attach = stream_attach,
    .begin_round = stream_begin_round,
    .finish = vmf_source_finish_stream,
    .gather = stream_gather,
    .close = stream_close,
};
