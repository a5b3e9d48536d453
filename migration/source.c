/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The source: migrate() reads as the protocol of docs/stream-format.rst and docs/handover.rst, whatever the guest goes to
 * (VmfDestination). Each step is one function; all of them leave by `return false` and one function at the end, clean_up(), puts right
 * what has to be put right.
 */
#include "migration/source.h"

#include <vmferry/error.h>

#include <sys/random.h>

#include "block/disk.h"
#include "stream/channel.h"
#include "stream/clock.h"

#define DISKS_NS (20 * VMF_NS_PER_MS)

bool vmf_source_random_bytes(void *out, size_t length, GError **error)
{
    if (getrandom(out, length, 0) == (ssize_t)length)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "random numbers: %s", g_strerror(errno));
    return false;
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

static bool choose_disks(VmfSource *source, GError **error)
{
    if (!vmf_disk_source_choose(&source->disks, source->session, error))
        return false;
    if (source->disks.n_disks == 0)
        return true;
    VmfOwner owner = source->destination->disk_owner ? source->destination->disk_owner(source)
                                                     : vmf_disk_source_owner(&source->disks);
    vmf_owners_add(source->owners, &owner);
    return true;
}

static bool prepare(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;

    if (!vmf_guest_check(session->guest, error) || !vmf_source_random_bytes(source->token, sizeof(source->token), error))
        return false;
    bool has_ram = vmf_guest_n_ram(session->guest) > 0;
    const VmfSaveHandlers *of_ram =
        source->destination->ram_handlers ? source->destination->ram_handlers() : vmf_ram_source_handlers();
    source->owners = vmf_owners_new(session->guest, of_ram, has_ram ? &source->ram : NULL, true);
    if (!choose_disks(source, error))
        return false;
    for (guint i = 0; i < source->owners->len; i++) {
        VmfOwner *owner = vmf_owner(source->owners, i);
        owner->begun = true;
        if (owner->handlers->save_prepare && !owner->handlers->save_prepare(owner->opaque, error))
            return false;
    }
    return true;
}

void vmf_source_describe(VmfSource *source, uint64_t features, uint32_t page_channels)
{
    VmfStaticData *data = vmf_static_data_of(source->session->guest, source->owners);

    data->features_offered = features;
    data->features_required = features & (VMF_FEATURE_SUMS | VMF_FEATURE_ACKS | VMF_FEATURE_AUDIT_BEFORE | VMF_FEATURE_DISKS |
                                            VMF_FEATURE_BASES);
    data->page_channels = page_channels;
    data->host = g_strdup(source->session->host_name);
    source->static_data = data;
}

bool vmf_source_send_static_data(VmfSource *source, GError **error)
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
    return sent;
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

static void gather_ram(const VmfSource *source, VmfStatistics *statistics)
{
    const VmfRamSave *save = source->ram.save;
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
    statistics->dirty_bytes_per_second = save->dirty_rate.bytes_per_second;
    statistics->chunks_mended = save->chunks_mended;
    statistics->log_audit_cpu_ns = save->log_audit.cpu_ns;
    statistics->log_audit_pages = save->log_audit.pages_looked_at;
    statistics->rate_bytes_per_second = vmf_source_rate(source);
}

static void gather(void *opaque, VmfStatistics *statistics)
{
    VmfSource *source = opaque;

    source->destination->gather(source, statistics);
    statistics->throttle_percent = source->throttle_percent;
    if (source->ram.save)
        gather_ram(source, statistics);
    if (source->disks.n_disks > 0)
        vmf_disk_source_gather(&source->disks, statistics);
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

/* ---- disks that are still being restored ------------------------------------------------------------------------------------ */

bool vmf_source_disks_are_whole(VmfSource *source, bool *whole, GError **error)
{
    VmfGuest *guest = source->session->guest;

    *whole = true;
    for (unsigned i = 0; i < vmf_guest_n_disks(guest) && *whole; i++) {
        const VmfGuestDisk *disk = vmf_guest_disk(guest, i);
        VmfDisk *own = disk->ops.disk ? disk->ops.disk(disk->opaque) : NULL;
        if (own && !vmf_disk_is_whole(own, whole, error))
            return false;
    }
    return true;
}

bool vmf_source_await_disks(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;
    bool whole = false;

    while (vmf_source_disks_are_whole(source, &whole, error) && !whole) {
        pthread_mutex_lock(&session->lock);
        vmf_session_wait_locked(session, vmf_now_ns() + DISKS_NS);
        pthread_mutex_unlock(&session->lock);
        if (!vmf_session_check_cancelled(session, error))
            return false;
    }
    return whole;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static bool migrate(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;
    const VmfDestination *destination = source->destination;
    int64_t start = vmf_now_ns();

    if (!prepare(source, error) || !destination->open(source, error))
        return false;
    if (session->parameters.dry_run)
        return destination->preflight(source, error);
    if (!vmf_session_fault(session, "source.static.sent", error) || !destination->attach(source, error))
        return false;
    source->begun_ns = vmf_now_ns();
    if (source->pages->len > 0)
        spare_main(source, true);
    show_statistics(source, true);
    if (session->stop_first && (!vmf_source_await_disks(source, error) || !vmf_source_stop_guest(source, error)))
        return false;
    if (!set_up_owners(source, error))
        return false;
    pthread_mutex_lock(&session->lock);
    session->statistics.setup_ns = (uint64_t)(vmf_now_ns() - start);
    pthread_mutex_unlock(&session->lock);
    vmf_session_set_status(session, VMF_STATUS_ACTIVE);
    if (destination->proceed)
        return destination->proceed(source, error);
    return vmf_source_precopy(source, error) && vmf_source_switchover(source, error);
}

static void set_outcome(VmfSession *session, VmfOutcome outcome)
{
    pthread_mutex_lock(&session->lock);
    session->statistics.outcome = outcome;
    pthread_mutex_unlock(&session->lock);
}

/* The session was left while it held the guest. */
static bool is_left_held(const VmfSource *source)
{
    return vmf_source_exchange_is_held(&source->exchange);
}

/* A hold keeps the status at device: nobody knows how it ended. */
static void settle(VmfSource *source, bool done, const GError *error)
{
    VmfSession *session = source->session;
    bool dry_run = session->parameters.dry_run;

    if (is_left_held(source)) {
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
    source->destination->close(source);
    vmf_disk_source_clear(&source->disks);
    g_ptr_array_unref(source->pages);
    vmf_owners_free(source->owners);
    vmf_static_data_free(source->static_data);
    XXH3_freeState(source->device_sum);
    vmf_source_handover_clear(source);
    pthread_mutex_destroy(&source->throttle_lock);
}

bool vmf_source_run(VmfSession *session, GError **error)
{
    return vmf_source_run_to(session, &vmf_destination_stream, NULL, error);
}

bool vmf_source_run_to(VmfSession *session, const VmfDestination *destination, void *place, GError **error)
{
    g_autofree VmfSource *source = g_new0(VmfSource, 1);
    GError *why = NULL;

    source->session = session;
    source->destination = destination;
    pthread_mutex_init(&source->throttle_lock, NULL);
    source->place = place;
    source->claim = -1;
    source->ram.session = session;
    source->disks.session = session;
    source->pages = g_ptr_array_new_with_free_func(g_free);
    source->device_sum = XXH3_createState();
    XXH3_64bits_reset(source->device_sum);
    vmf_source_handover_init(source);
    vmf_session_set_status(session, VMF_STATUS_SETUP);
    source->started_ns = vmf_now_ns();
    source->watchdog = vmf_watchdog_new(session, vmf_source_look, source, &why);
    bool done = source->watchdog && migrate(source, &why);
    if (!done && source->exchange.state == VMF_SOURCE_STOPPED)
        vmf_source_fail_stopped(source);
    if (!done && !session->killed && !is_left_held(source))
        vmf_source_explain(source, &why);
    if (vmf_session_is_cancelled(session) && atomic_load(&session->offer) == VMF_OFFER_NONE)
        vmf_source_tell_abort(source);
    g_clear_pointer(&source->watchdog, vmf_watchdog_free);
    clean_up(source);
    settle(source, done, why);
    if (why)
        g_propagate_error(error, why);
    return done;
}
