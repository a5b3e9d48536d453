/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The source: vmf_source_run() reads as the protocol of docs/stream-format.rst and docs/handover.rst. Each step is one function; all
 * of them leave by `return false` and one function at the end, finish(), puts right what has to be put right.
 */
#include "migration/source.h"

#include <vmferry/error.h>

#include <sys/random.h>

#include "stream/channel.h"
#include "stream/clock.h"

#define CONNECT_NS (10 * VMF_NS_PER_S)
#define VERDICT_NS (30 * VMF_NS_PER_S)
#define RTT_PINGS 3
#define RTT_NS (2 * VMF_NS_PER_S) /* for all of them */
#define FIRST_EPOCH 1

static bool random_bytes(void *out, size_t length, GError **error)
{
    if (getrandom(out, length, 0) == (ssize_t)length)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "random numbers: %s", g_strerror(errno));
    return false;
}

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

bool vmf_source_explain(VmfSource *source, GError **error)
{
    bool of_channel = g_error_matches(*error, VMF_ERROR, VMF_ERROR_CUT) || g_error_matches(*error, VMF_ERROR, VMF_ERROR_CANCELLED) ||
                      g_error_matches(*error, VMF_ERROR, VMF_ERROR_IO);
    GError *own = NULL;

    if (!vmf_session_check_cancelled(source->session, &own)) {
        g_clear_error(error);
        g_propagate_error(error, own);
        return false;
    }
    if (of_channel && source->return_path)
        vmf_return_path_explain(source->return_path, error);
    return false;
}

/* ---- steps ----------------------------------------------------------------------------------------------------------------- */

static bool prepare(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;

    if (!vmf_guest_check(session->guest, error) || !random_bytes(source->token, sizeof(source->token), error))
        return false;
    source->format = (VmfStreamFormat){.version = session->parameters.stream_version,
                                       .one_way = vmf_connector_is_one_way(session->connector)};
    bool has_ram = vmf_guest_n_ram(session->guest) > 0;
    source->owners = vmf_owners_new(session->guest, vmf_ram_source_handlers(), has_ram ? &source->ram : NULL, true);
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        owner->begun = true;
        if (owner->handlers->save_prepare && !owner->handlers->save_prepare(owner->opaque, error))
            return false;
    }
    return true;
}

static unsigned wanted_channels(const VmfSource *source)
{
    const VmfSession *session = source->session;

    if (source->format.one_way || vmf_guest_n_ram(session->guest) == 0)
        return 0;
    /* One descriptor carries everything: pages then travel on the main channel. */
    return vmf_connector_max_channels(session->connector) > session->parameters.channels ? session->parameters.channels : 0;
}

static void describe(VmfSource *source)
{
    VmfSession *session = source->session;
    VmfStaticData *data = vmf_static_data_of(session->guest, source->owners);
    uint64_t used = source->format.one_way ? VMF_FEATURE_SUMS
                                           : VMF_FEATURE_SUMS | VMF_FEATURE_ACKS | VMF_FEATURE_HINTS | VMF_FEATURE_REPORT;

    if (session->parameters.audit == VMF_AUDIT_BEFORE && !source->format.one_way)
        used |= VMF_FEATURE_AUDIT_BEFORE;
    data->features_offered = used;
    data->features_required = used & (VMF_FEATURE_SUMS | VMF_FEATURE_ACKS | VMF_FEATURE_AUDIT_BEFORE);
    data->page_channels = wanted_channels(source);
    data->host = g_strdup(session->host_name);
    source->static_data = data;
}

static bool send_static_data(VmfSource *source, GError **error)
{
    VmfRecordWriter *writer = source->main.writer;
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE];

    vmf_image_header_encode(&source->format, image);
    vmf_machine_header_encode(&source->static_data->machine, source->format.swap, machine);
    vmf_record_writer_sum_begin(writer);
    bool sent = vmf_record_write_raw(writer, image, sizeof(image), error) &&
                vmf_record_write_raw(writer, machine, sizeof(machine), error) &&
                vmf_static_data_write(source->static_data, writer, error);
    source->static_sum = vmf_record_writer_sum_end(writer);
    return sent && vmf_record_flush(writer, error);
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
    if (!random_bytes(message.session, sizeof(message.session), error) ||
        !vmf_page_channels_queue(source->main.writer, &message, error) || !vmf_record_flush(source->main.writer, error))
        return false;
    writers[0] = source->main.writer;
    for (unsigned i = 0; i < message.count; i++) {
        if (!open_page_channel(source, &message, i, error))
            return false;
        writers[i] = ((VmfSourceChannel *)g_ptr_array_index(source->pages, i))->writer;
    }
    if (!vmf_ram_source_attach(&source->ram, writers, MAX(message.count, 1), FIRST_EPOCH, source->features & VMF_FEATURE_ACKS,
                               source->features & VMF_FEATURE_HINTS, error))
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

static bool set_up_owners(VmfSource *source, GError **error)
{
    uint32_t id = 0; /* a section's place in the list of the static data */

    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        vmf_save_stream_init(&owner->stream, source->session, source->main.writer, source->device_sum, id);
        id += owner->has_section;
    }
    source->logging = true;
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->handlers->save_setup && !owner->handlers->save_setup(owner->opaque, &owner->stream, error))
            return false;
    }
    return true;
}

/* ---- statistics ------------------------------------------------------------------------------------------------------------ */

static void gather_ram(const VmfRamSave *save, VmfStatistics *statistics)
{
    uint64_t hole = 0, total = 0;

    for (unsigned b = 0; b < save->n_blocks; b++) {
        hole += save->blocks[b].hole;
        total += vmf_ram_block_size(save->blocks[b].block);
    }
    statistics->pages_data = save->pages_data;
    statistics->pages_zero = save->pages_zero;
    statistics->pages_resent = save->pages_resent;
    statistics->pages_hole = hole;
    statistics->ram_total_bytes = total;
    statistics->ram_remaining_bytes = vmf_ram_save_pending_bytes(save);
    statistics->dirty_bytes_per_second = save->dirty_bytes_per_second;
    statistics->chunks_mended = save->chunks_mended;
    statistics->rate_bytes_per_second = vmf_flight_rate(save->flight);
}

static void gather(void *opaque, VmfStatistics *statistics)
{
    VmfSource *source = opaque;
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
    statistics->throttle_percent = source->throttle_percent;
    if (source->return_path)
        statistics->rtt_ns = vmf_return_path_rtt_ns(source->return_path);
    if (source->ram.save)
        gather_ram(source->ram.save, statistics);
    if (source->begun_ns && !vmf_status_is_final(statistics->status) && statistics->outcome == VMF_OUTCOME_NONE)
        statistics->total_ns = (uint64_t)(vmf_now_ns() - source->begun_ns);
}

/* Under the session's lock from here on: what gather() reads is being made or taken down. */
static void show_statistics(VmfSource *source, bool show)
{
    VmfSession *session = source->session;

    pthread_mutex_lock(&session->lock);
    if (!show && session->gather)
        gather(source, &session->statistics);
    session->gather = show ? gather : NULL;
    session->gather_opaque = source;
    pthread_mutex_unlock(&session->lock);
}

/* With page channels a cancel leaves the main channel for a moment, so that the target hears of it. */
static void spare_main(VmfSource *source, bool spare)
{
    pthread_mutex_lock(&source->session->lock);
    source->session->spared = spare ? source->main.channel : NULL;
    pthread_mutex_unlock(&source->session->lock);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static bool connect_target(VmfSource *source, GError **error)
{
    if (!open_channel(source, &source->main, error))
        return false;
    if (!source->format.one_way)
        source->return_path = vmf_return_path_new(source->session, source->main.channel, source->format, &source->ram);
    describe(source);
    return send_static_data(source, error);
}

static bool migrate(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;
    int64_t start = vmf_now_ns();

    if (!prepare(source, error) || !connect_target(source, error))
        return false;
    if (session->parameters.dry_run)
        return preflight(source, error);
    if (!vmf_session_fault(session, "source.static.sent", error))
        return false;
    if (!await_verdict(source, error) || !open_page_channels(source, error) ||
        (source->return_path && !vmf_return_path_start(source->return_path, error)))
        return false;
    if (!vmf_session_fault(session, "source.accepted", error))
        return false;
    if (!measure_rtt(source, error))
        return false;
    source->begun_ns = vmf_now_ns();
    if (source->pages->len > 0)
        spare_main(source, true);
    show_statistics(source, true);
    if (!set_up_owners(source, error))
        return false;
    pthread_mutex_lock(&session->lock);
    session->statistics.setup_ns = (uint64_t)(vmf_now_ns() - start);
    pthread_mutex_unlock(&session->lock);
    vmf_session_set_status(session, VMF_STATUS_ACTIVE);
    return vmf_source_precopy(source, error) && vmf_source_switchover(source, error);
}

static void set_outcome(VmfSession *session, VmfOutcome outcome)
{
    pthread_mutex_lock(&session->lock);
    session->statistics.outcome = outcome;
    pthread_mutex_unlock(&session->lock);
}

/* A hold keeps the status at device: nobody knows how it ended. */
static void settle(VmfSource *source, bool done, const GError *error)
{
    VmfSession *session = source->session;
    bool dry_run = session->parameters.dry_run;

    if (source->state == VMF_SOURCE_HELD) {
        set_outcome(session, VMF_OUTCOME_HELD);
    } else if (done) {
        if (dry_run)
            set_outcome(session, VMF_OUTCOME_PREFLIGHT_OK);
        vmf_session_set_status(session, VMF_STATUS_COMPLETED);
    } else if (g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED)) {
        vmf_session_set_status(session, VMF_STATUS_CANCELLING);
        vmf_session_set_status(session, VMF_STATUS_CANCELLED);
    } else {
        if (dry_run && g_error_matches(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE))
            set_outcome(session, VMF_OUTCOME_PREFLIGHT_REFUSED);
        vmf_session_set_status(session, VMF_STATUS_FAILED);
    }
}

static void clean_up(VmfSource *source)
{
    show_statistics(source, false);
    spare_main(source, false);
    vmf_source_throttle(source, 0);
    vmf_session_shutdown_channels(source->session);
    for (guint i = 0; source->owners && i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        if (owner->begun && owner->handlers->save_cleanup)
            owner->handlers->save_cleanup(owner->opaque);
    }
    g_clear_pointer(&source->return_path, vmf_return_path_free);
    vmf_ram_source_clear(&source->ram);
    for (guint i = 0; i < source->pages->len; i++)
        close_channel(source, g_ptr_array_index(source->pages, i));
    close_channel(source, &source->main);
    g_ptr_array_unref(source->pages);
    vmf_owners_free(source->owners);
    vmf_static_data_free(source->static_data);
    XXH3_freeState(source->device_sum);
}

bool vmf_source_run(VmfSession *session, GError **error)
{
    g_autofree VmfSource *source = g_new0(VmfSource, 1);
    GError *why = NULL;

    source->session = session;
    source->ram.session = session;
    source->pages = g_ptr_array_new_with_free_func(g_free);
    source->device_sum = XXH3_createState();
    XXH3_64bits_reset(source->device_sum);
    vmf_session_set_status(session, VMF_STATUS_SETUP);
    source->started_ns = vmf_now_ns();
    source->watchdog = vmf_watchdog_new(session, vmf_source_look, source, &why);
    bool done = source->watchdog && migrate(source, &why);
    if (!done && !session->killed && source->state != VMF_SOURCE_HELD)
        vmf_source_explain(source, &why);
    if (vmf_session_is_cancelled(session) && !atomic_load(&session->offered))
        vmf_source_tell_abort(source);
    g_clear_pointer(&source->watchdog, vmf_watchdog_free);
    clean_up(source);
    settle(source, done, why);
    if (why)
        g_propagate_error(error, why);
    return done;
}
