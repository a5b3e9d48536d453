/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A fixed-ram image as the place where a guest goes (docs/fixed-ram-format.rst).
 *
 * Theory of operation
 *
 * An image has everything that a one-way stream has; only where it stands is another matter. So the source runs as for a stream whose
 * main channel is memory: what it writes ahead of the first page is the image's header, what it writes afterwards are the sections of
 * the tail. Pages go from the lanes to their places: lane, entering of digests, what differs from the parent (layers only), the gate
 * (bandwidth, cancel), the image writer's lane.
 *
 * A round ends with the flush of all lanes, so when the last pass has ended the image holds the guest's memory as it stands, and what
 * is in memory here holds its state. From then on a guest that is to go on does; what is left (tables, flush, commit) is not about it.
 * Only a commit gives the file its name; whatever fails earlier leaves it as it was, and the guest too.
 *
 * Or the image is of one moment (point_in_time): there are no rounds. Memory is protected while the guest runs, the stop is the moment,
 * and it goes on ahead of the first page that is written (ram-instant.h). It goes on for good: a save that fails later has nothing to
 * give back. The session stays "active" meanwhile; "device" are the commit and what it needs.
 *
 * Disks whose content is to be in it are blocks behind those of RAM (image-disk-save.h).
 */
#include "migration/image-save.h"

#include <string.h>

#include <vmferry/error.h>
#include <vmferry/save.h>

#include "block/claim.h"
#include "migration/image-disk-save.h"
#include "migration/image-disks.h"
#include "migration/image-lane.h"
#include "migration/image-parent.h"
#include "migration/ops.h"
#include "migration/ram-instant.h"
#include "migration/source.h"
#include "ram/image-layer-filter.h"
#include "ram/image-writer.h"
#include "stream/channel-bytes.h"
#include "stream/clock.h"

/* What vmf_session_new_save() was told. */
typedef struct {
    VmfSaveOptions options; /* strings are ours */
    VmfStorage *(*wrap)(VmfStorage *storage, void *opaque, GError **error);
    void *wrap_opaque;
} Config;

typedef struct {
    const Config *config;
    int claim; /* of what stands where it goes; -1: nothing does, or an export */
    VmfStorage *storage;
    VmfImageWriter *writer;
    VmfImageLayout layout;
    VmfImageChain *chain; /* NULL: a whole image, and so are the next three */
    VmfImageParent parent;
    VmfImageParentPages parent_pages;
    VmfImageLayer *layer;
    GByteArray *records; /* what the source writes on its main channel: the header, then the sections */
    GByteArray *header;
    GByteArray *tail;
    VmfImageDiskSave disks;
    unsigned n_lanes;
    _Atomic uint64_t passed[VMF_CHANNELS_MAX + 1]; /* bytes of pages, by lane; the last: of disks */
} Place;

/* ---- header ----------------------------------------------------------------------------------------------------- */

/* What stands behind LAYOUT. */
static bool write_end_of_header(const Place *place, VmfRecordWriter *writer, GError **error)
{
    return (!place->chain || vmf_image_parent_write(&place->parent, writer, error)) &&
           vmf_record_write(writer, VMF_RECORD_END, NULL, 0, error);
}

/* How long that is. */
static bool measure_end_of_header(const VmfSource *source, const Place *place, uint64_t *length, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    VmfChannel *channel = vmf_channel_into_bytes(bytes, "image header");
    VmfRecordWriter *writer = vmf_record_writer_new(channel, source->format);

    bool written = write_end_of_header(place, writer, error);
    *length = bytes->len;
    vmf_record_writer_free(writer);
    vmf_channel_free(channel);
    return written;
}

static bool lay_out(const VmfSource *source, Place *place, uint64_t header_length, GError **error)
{
    VmfGuest *guest = source->session->guest;
    const VmfDiskSource *disks = &source->disks;
    unsigned n_ram = vmf_guest_n_ram(guest), n_blocks = n_ram + disks->n_disks;
    g_autofree uint64_t *n_pages = g_new0(uint64_t, n_blocks + 1);

    if (header_length > VMF_IMAGE_HEADER_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT,
                    "image: header: %" G_GUINT64_FORMAT " octets are more than the format has room for", header_length);
        return false;
    }
    for (unsigned b = 0; b < n_ram; b++)
        n_pages[b] = vmf_ram_block_n_pages(vmf_guest_ram(guest, b));
    for (unsigned d = 0; d < disks->n_disks; d++)
        n_pages[n_ram + d] = vmf_image_disk_n_pages(vmf_disk_size(disks->disks[d].disk));
    if (!vmf_image_layout_compute(&place->layout, n_pages, n_blocks, place->chain != NULL, header_length, error))
        return false;
    place->layout.n_disks = disks->n_disks;
    return true;
}

static GByteArray *take_records(Place *place)
{
    GByteArray *taken = g_byte_array_new();

    g_byte_array_append(taken, place->records->data, place->records->len);
    g_byte_array_set_size(place->records, 0);
    return taken;
}

static bool write_header(VmfSource *source, Place *place, GError **error)
{
    VmfRecordWriter *writer = source->main.writer;
    uint64_t length;

    if (!measure_end_of_header(source, place, &length, error) || !vmf_source_send_static_data(source, error) ||
        !vmf_record_flush(writer, error))
        return false;
    /* LAYOUT says where things are, and they are behind the header: so it has to be known how long that will be. */
    length += place->records->len + vmf_image_layout_record_size(vmf_guest_n_ram(source->session->guest) + source->disks.n_disks);
    if (!lay_out(source, place, length, error) || !vmf_image_layout_write(&place->layout, writer, error) ||
        !write_end_of_header(place, writer, error))
        return false;
    g_assert(place->records->len == length);
    place->header = take_records(place);
    return true;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static bool check_disks(const VmfSource *source, const Place *place, GError **error)
{
    const VmfSaveOptions *options = &place->config->options;

    if (options->ram_only && source->disks.n_disks > 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "image: its disks are to be in it, and memory alone");
        return false;
    }
    if (!options->resume || options->ram_only || vmf_guest_n_disks(source->session->guest) == source->disks.n_disks)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "image: the guest goes on and writes its disks, which the image does not hold: save them with it (--disks all), "
                "or its memory alone (--ram-only), or leave it stopped (--then stop)");
    return false;
}

static VmfStorageOptions storage_options(const VmfSession *session, const Config *config, VmfStorageMode mode)
{
    return (VmfStorageOptions){
        .mode = mode,
        .cancelled = &session->cancelled,
        .connect = config->options.flags,
        .buffered = config->options.buffered,
        .backend = config->options.backend,
    };
}

static bool open_parent(VmfSource *source, Place *place, GError **error)
{
    const VmfSaveOptions *options = &place->config->options;
    VmfStorageOptions how = storage_options(source->session, place->config, VMF_STORAGE_READ);

    if (!options->parent)
        return true;
    place->chain = vmf_image_chain_open(options->parent, NULL, &how, error);
    return place->chain &&
           vmf_image_parent_of_layer(place->chain, options->uri, source->static_data, &place->parent, error);
}

/* First ahead of all that is written, and again ahead of its taking the name. */
static bool claim(Place *place, GError **error)
{
    const VmfSaveOptions *options = &place->config->options;

    return vmf_claim_renew_uri(options->uri, options->force ? VMF_CLAIM_FORCE : VMF_CLAIM_REPLACE, &place->claim, error);
}

static bool open_storage(VmfSource *source, Place *place, GError **error)
{
    const Config *config = place->config;
    VmfStorageOptions how = storage_options(source->session, config, VMF_STORAGE_CREATE);

    place->storage = vmf_storage_open(config->options.uri, &how, error);
    if (place->storage && config->wrap)
        place->storage = config->wrap(place->storage, config->wrap_opaque, error);
    return place->storage != NULL;
}

static bool make_writer(VmfSource *source, Place *place, GError **error)
{
    VmfImageWriterConfig config = {
        .storage = place->storage,
        .layout = &place->layout,
        .id = source->token,
        .layer = place->chain != NULL,
        .scan = vmf_page_scan_select(),
        .stable = source->session->stop_first,
        .reads = {place->chain},
    };

    place->writer = vmf_image_writer_new(&config, error);
    if (!place->writer || !place->chain)
        return place->writer != NULL;
    place->parent_pages = vmf_image_parent_pages(place->chain);
    place->layer = vmf_image_layer_new(place->writer, &place->parent_pages, error);
    return place->layer != NULL;
}

static bool is_contained(void *opaque, const char *name)
{
    return vmf_disk_source_has(opaque, name);
}

/* An image without disks says what it always said. */
static void describe(VmfSource *source)
{
    bool with_disks = source->disks.n_disks > 0;

    source->features = VMF_FEATURE_SUMS | (with_disks ? VMF_FEATURE_DISKS : 0);
    vmf_source_describe(source, source->features, 0);
    if (with_disks)
        vmf_static_data_add_disks(source->static_data, source->session->guest, is_contained, &source->disks);
}

static bool image_open(VmfSource *source, GError **error)
{
    Place *place = source->place;

    source->format = (VmfStreamFormat){.version = 3, .one_way = true};
    describe(source);
    source->main.channel = vmf_channel_into_bytes(place->records, "image");
    source->main.writer = vmf_record_writer_new(source->main.channel, source->format);
    return check_disks(source, place, error) && open_parent(source, place, error) && write_header(source, place, error) &&
           claim(place, error) && open_storage(source, place, error) && make_writer(source, place, error);
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

static void image_begin(void *opaque, const VmfRamSave *save)
{
    VmfSource *source = opaque;

    const Place *place = source->place;

    for (unsigned b = 0; b < save->n_blocks && !place->chain; b++) /* how much of it a layer will hold nobody knows */
        vmf_image_writer_preallocate(place->writer, b, save->blocks[b].dirty);
}

/* Where the pages of one lane go, behind the entering of their digests. */
static bool open_lane(VmfSource *source, VmfPageSink *sink, void (*gate)(VmfPageSink *, VmfSession *, _Atomic uint64_t *),
                      unsigned index, GError **error)
{
    Place *place = source->place;

    if (!vmf_image_writer_lane(place->writer, sink, error))
        return false;
    gate(sink, source->session, &place->passed[index]);
    if (!place->layer || vmf_image_layer_filter(place->layer, sink, error))
        return true;
    vmf_page_sink_free(sink);
    return false;
}

static bool image_lane(void *opaque, VmfRamSave *save, unsigned index, VmfLaneConfig *lane, GError **error)
{
    lane->batch_pages = VMF_CHUNK_PAGES;
    if (!open_lane(opaque, &lane->sink, vmf_image_lane_gate, index, error))
        return false;
    vmf_image_lane_enter(&lane->sink, save);
    return true;
}

static const VmfRamWays ways = {.begin = image_begin, .lane = image_lane};

static bool attach(VmfSource *source, const VmfRamWays *how, GError **error)
{
    Place *place = source->place;

    if (vmf_guest_n_ram(source->session->guest) == 0)
        return true;
    place->n_lanes = source->session->parameters.channels;
    return vmf_ram_source_attach(&source->ram, how, source, place->n_lanes, false, error);
}

static bool attach_disks(VmfSource *source, void (*gate)(VmfPageSink *, VmfSession *, _Atomic uint64_t *), GError **error)
{
    Place *place = source->place;
    unsigned n = source->disks.n_disks;

    if (n > 0 && !vmf_image_disk_save_init(&place->disks, &source->disks, place->layout.n_blocks - n, error))
        return false;
    for (unsigned i = 0; i < n; i++)
        if (!open_lane(source, &place->disks.disks[i].lane, gate, VMF_CHANNELS_MAX, error))
            return false;
    source->disks.place_ops = &vmf_image_disk_place_ops;
    source->disks.place = &place->disks;
    return true;
}

static bool image_attach(VmfSource *source, GError **error)
{
    return attach_disks(source, vmf_image_lane_gate, error) && attach(source, &ways, error);
}

static void image_last_pass(VmfSource *source)
{
    vmf_image_writer_set_stable(((Place *)source->place)->writer, true);
}

/* ---- tail ------------------------------------------------------------------------------------------------------- */

static bool write_disk(const VmfSource *source, const VmfGuestDisk *disk, VmfRecordWriter *writer, GError **error)
{
    VmfImageDisk record = {0};

    bool written = vmf_image_disk_describe(disk, &record, error);
    record.contained = vmf_disk_source_has(&source->disks, disk->name);
    written = written && vmf_image_disk_write(&record, writer, error);
    vmf_image_disk_clear(&record);
    return written;
}

static bool write_disks(const VmfSource *source, const Place *place, VmfRecordWriter *writer, GError **error)
{
    VmfGuest *guest = source->session->guest;

    if (place->config->options.ram_only)
        return vmf_record_queue(writer, VMF_RECORD_RAM_ONLY, NULL, 0, error);
    for (unsigned d = 0; d < vmf_guest_n_disks(guest); d++)
        if (!write_disk(source, vmf_guest_disk(guest, d), writer, error))
            return false;
    return true;
}

/* Of all memory and disks, wherever in a chain their pages are. */
static bool write_switchover(const VmfSource *source, VmfRecordWriter *writer, GError **error)
{
    const Place *place = source->place;
    const VmfRamSave *save = source->ram.save;
    unsigned n_ram = save ? save->n_blocks : 0;
    VmfSwitchover message = {.n_blocks = n_ram + source->disks.n_disks};

    message.blocks = g_new0(VmfBlockSummary, message.n_blocks + 1);
    vmf_source_fill_switchover(source, &message);
    for (unsigned b = 0; b < n_ram; b++) {
        const VmfRamSaveBlock *own = &save->blocks[b];
        uint64_t n_data = vmf_digest_table_n_data(own->digests);
        message.blocks[b] =
            (VmfBlockSummary){n_data, 0, vmf_ram_block_n_pages(own->block) - n_data, vmf_digest_table_total(own->digests)};
    }
    for (unsigned d = 0; d < source->disks.n_disks; d++)
        vmf_image_disk_save_summary(&place->disks, d, &message.blocks[n_ram + d]);
    bool written = vmf_switchover_send(writer, &message, error);
    vmf_switchover_clear(&message);
    return written;
}

static bool write_tail(VmfSource *source, Place *place, VmfRecordWriter *writer, GError **error)
{
    return write_disks(source, place, writer, error) && vmf_record_flush(source->main.writer, error) &&
           vmf_record_flush(writer, error) &&
           vmf_record_write_raw(writer, place->records->data, place->records->len, error) &&
           write_switchover(source, writer, error) && vmf_record_write(writer, VMF_RECORD_END, NULL, 0, error);
}

static bool make_tail(VmfSource *source, Place *place, GError **error)
{
    place->tail = g_byte_array_new();
    VmfChannel *channel = vmf_channel_into_bytes(place->tail, "image tail");
    VmfRecordWriter *writer = vmf_record_writer_new(channel, source->format);

    bool made = write_tail(source, place, writer, error);
    vmf_record_writer_free(writer);
    vmf_channel_free(channel);
    if (!made || place->tail->len <= VMF_IMAGE_TAIL_MAX)
        return made;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT,
                "image: device state: %u octets are more than the format has room for", place->tail->len);
    return false;
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

static bool goes_on(const VmfSource *source)
{
    return source->was_running && ((const Place *)source->place)->config->options.resume;
}

/* Memory stands still; what was written is compared with it while the guest can still be had back. */
static bool audit(VmfSource *source, GError **error)
{
    VmfAudit when = source->session->parameters.audit;
    g_autofree char *difference = NULL;

    vmf_source_set_verified(source, when == VMF_AUDIT_OFF ? VMF_VERIFIED_OFF : VMF_VERIFIED_NOT_APPLICABLE);
    if (when == VMF_AUDIT_OFF || (when == VMF_AUDIT_AFTER && goes_on(source)))
        return true;
    if (!vmf_source_audit(source, &source->session->cancelled, &difference, error))
        return false;
    vmf_source_set_verified(source, difference ? VMF_VERIFIED_FAILED : VMF_VERIFIED_FULL);
    if (difference)
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_AUDIT, "image: memory differs from what was written: %s",
                    difference);
    return !difference;
}

/* Nothing of it has to be watched any more. */
static void let_go_on(VmfSource *source)
{
    if (source->ram.save)
        vmf_ram_save_end(source->ram.save);
    vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_LOST);
}

static bool commit(VmfSource *source, Place *place, GError **error)
{
    if (!vmf_session_due(source->session, "source.image.commit", error) ||
        !vmf_session_check_cancelled(source->session, error) ||
        (place->layer && !vmf_image_layer_close(place->layer, error)) || !claim(place, error) ||
        !vmf_image_writer_finish(place->writer, place->header->data, place->header->len, place->tail->data,
                                 place->tail->len, NULL, error) ||
        !vmf_session_done(source->session, "source.image.commit", error))
        return false;
    uint64_t total_ns = (uint64_t)(vmf_now_ns() - source->begun_ns);
    VMF_NOTE_NS(source, total_ns, total_ns - source->session->statistics.audit_ns);
    return true;
}

static bool image_finish(VmfSource *source, GError **error)
{
    Place *place = source->place;

    if (!make_tail(source, place, error) || !audit(source, error))
        return false;
    VMF_NOTE_NS(source, downtime_ns, (uint64_t)(vmf_now_ns() - source->stopped_ns));
    if (goes_on(source))
        let_go_on(source);
    return commit(source, place, error);
}

static void image_gather(const VmfSource *source, VmfStatistics *statistics)
{
    const Place *place = source->place;

    statistics->bytes_sent = vmf_image_writer_bytes_written(place->writer);
    statistics->n_channels = place->n_lanes;
    for (unsigned i = 0; i < place->n_lanes; i++)
        statistics->channel_bytes[i] = place->passed[i];
}

static void image_close(VmfSource *source)
{
    Place *place = source->place;

    vmf_ram_source_clear(&source->ram);
    vmf_image_disk_save_clear(&place->disks);
    g_clear_pointer(&source->main.writer, vmf_record_writer_free);
    g_clear_pointer(&source->main.channel, vmf_channel_free);
    g_clear_pointer(&place->layer, vmf_image_layer_free);
    g_clear_pointer(&place->writer, vmf_image_writer_free);
    g_clear_pointer(&place->storage, vmf_storage_free);
    vmf_claim_drop(&place->claim);
    g_clear_pointer(&place->chain, vmf_image_chain_free);
    vmf_image_parent_clear(&place->parent);
}

static const VmfDestination image = {
    .open = image_open,
    .attach = image_attach,
    .last_pass = image_last_pass,
    .finish = image_finish,
    .gather = image_gather,
    .close = image_close,
};

/* ---- point in time ---------------------------------------------------------------------------------------------- */

static bool instant_lane(void *opaque, VmfRamSave *save, unsigned index, VmfLaneConfig *lane, GError **error)
{
    if (!open_lane(opaque, &lane->sink, vmf_image_lane_gate_behind, index, error))
        return false;
    vmf_image_lane_enter_once(&lane->sink, save);
    return true;
}

static bool instant_attach(VmfSource *source, GError **error)
{
    static const VmfRamWays instant_ways = {.begin = image_begin, .lane = instant_lane};
    const Place *place = source->place;

    if (!attach_disks(source, vmf_image_lane_gate_paid, error) || !attach(source, &instant_ways, error))
        return false;
    if (source->ram.save)
        vmf_ram_instant_attach(&source->ram, place->config->options.kernel_writes);
    return true;
}

static VmfOwner instant_disk_owner(VmfSource *source)
{
    return vmf_image_disk_instant_owner(&((Place *)source->place)->disks);
}

static bool is_hashed(const VmfSource *source)
{
    return source->ram.save && source->session->parameters.audit == VMF_AUDIT_BEFORE && goes_on(source);
}

static bool hash_instant(VmfSource *source, GError **error)
{
    int64_t start = vmf_now_ns();
    bool hashed = vmf_ram_instant_hash(&source->ram, &source->session->cancelled, error);

    VMF_NOTE_NS(source, audit_ns, (uint64_t)(vmf_now_ns() - start));
    return hashed;
}

/* The moment: from the stop until the guest goes on. */
static bool take_instant(VmfSource *source, GError **error)
{
    if (!vmf_source_stop_guest(source, error) || !vmf_source_send_the_rest(source, error) ||
        (is_hashed(source) && !hash_instant(source, error)))
        return false;
    if (goes_on(source))
        vmf_source_exchange_feed(&source->exchange, VMF_SOURCE_EV_LOST);
    VMF_NOTE_NS(source, downtime_ns, (uint64_t)(vmf_now_ns() - source->stopped_ns));
    return true;
}

/* What it pays for bandwidth counts again, and nothing of the guest has to be watched any more. */
static bool write_instant(VmfSource *source, GError **error)
{
    VmfSession *session = source->session;

    vmf_rate_limit_set(session->rate, session->max_bandwidth);
    if (!source->ram.save)
        return vmf_image_disk_save_wait(&((Place *)source->place)->disks, error);
    vmf_ram_save_end(source->ram.save);
    if (!vmf_ram_instant_write(&source->ram, error) || !vmf_image_disk_save_wait(&((Place *)source->place)->disks, error))
        return false;
    g_autofree char *text = vmf_ram_instant_describe(&source->ram);
    vmf_session_event(session, "point-in-time", "%s", text);
    return true;
}

/* What is in the image is compared with what memory was; the memory itself is another by now. */
static bool audit_instant(VmfSource *source, GError **error)
{
    VmfStatistics *statistics = &source->session->statistics;
    uint64_t n_different;

    if (!is_hashed(source))
        return audit(source, error);
    g_autofree char *difference = vmf_ram_instant_audit(&source->ram, &n_different);
    vmf_source_set_verified(source, difference ? VMF_VERIFIED_FAILED : VMF_VERIFIED_FULL);
    pthread_mutex_lock(&source->session->lock);
    statistics->audit_pages_different = (unsigned)MIN(n_different, G_MAXUINT);
    pthread_mutex_unlock(&source->session->lock);
    if (difference)
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_AUDIT, "image: what was written is not what memory was: %s", difference);
    return !difference;
}

static bool instant_proceed(VmfSource *source, GError **error)
{
    Place *place = source->place;

    if (!vmf_source_await_disks(source, error))
        return false;
    if ((source->ram.save && !vmf_ram_instant_arm(&source->ram, error)) || !vmf_session_check_cancelled(source->session, error))
        return false;
    if (!take_instant(source, error))
        return vmf_source_fail_stopped(source);
    if (!write_instant(source, error))
        return false;
    vmf_session_set_status(source->session, VMF_STATUS_DEVICE);
    return make_tail(source, place, error) && audit_instant(source, error) && commit(source, place, error);
}

static const VmfDestination instant_image = {
    .ram_handlers = vmf_ram_instant_handlers,
    .disk_owner = instant_disk_owner,
    .open = image_open,
    .attach = instant_attach,
    .proceed = instant_proceed,
    .gather = image_gather,
    .close = image_close,
};

static bool run(VmfSession *session, GError **error)
{
    Place place = {.config = session->own, .records = g_byte_array_new(), .claim = -1};
    bool done = vmf_source_run_to(session, place.config->options.point_in_time ? &instant_image : &image, &place, error);

    g_byte_array_unref(place.records);
    g_clear_pointer(&place.header, g_byte_array_unref);
    g_clear_pointer(&place.tail, g_byte_array_unref);
    return done;
}

/* ---- the session ------------------------------------------------------------------------------------------------ */

static void config_free(void *opaque)
{
    Config *config = opaque;

    g_free((char *)config->options.uri);
    g_free((char *)config->options.parent);
    g_free((char *)config->options.backend);
    g_free(config);
}

static Config *config_of(const VmfSaveOptions *options)
{
    Config *config = g_new0(Config, 1);

    vmf_ops_copy(&config->options, sizeof(config->options), options, VMF_SIZE_UP_TO(VmfSaveOptions, ram_only));
    config->options.uri = g_strdup(config->options.uri);
    config->options.parent = g_strdup(config->options.parent);
    config->options.backend = g_strdup(config->options.backend);
    return config;
}

static const char *fault_of(const VmfSaveOptions *options, const VmfParameters *parameters)
{
    if (!options->uri)
        return "options: no URI, or their size is less than any release had";
    if (parameters->dry_run)
        return "dry run: nobody is there to be asked";
    if (parameters->stream_version != 3)
        return "stream version 2: an image has no such header";
    if (options->point_in_time && (options->stop_first || !options->resume || parameters->pause_before_switchover))
        return "point in time: the guest runs on while it is written: it is not stopped first, nor stays stopped, nor waits before it";
    if (options->point_in_time && parameters->verify_disks)
        return "point in time: a disk that the guest has written since cannot be compared with what it was";
    if (parameters->incremental_bitmap && *parameters->incremental_bitmap)
        return "incremental: an image has a parent, not a base";
    return NULL;
}

VmfSession *vmf_session_new_save(VmfGuest *guest, const VmfSaveOptions *options, const VmfParameters *parameters,
                                 const VmfSessionOps *ops, void *opaque)
{
    VmfSession *session = vmf_session_new(guest, parameters, ops, opaque);
    Config *config = config_of(options);

    session->operation = "save";
    session->is_source = true;
    session->run = run;
    session->own = config;
    session->free_own = config_free;
    session->stop_first = config->options.stop_first;
    const char *fault = session->parameters_error ? NULL : fault_of(&config->options, &session->parameters);
    if (fault)
        session->parameters_error = g_error_new(VMF_ERROR, VMF_ERROR_USAGE, "save: %s", fault);
    return session;
}

void vmf_save_session_wrap_storage(VmfSession *session, VmfStorage *(*wrap)(VmfStorage *storage, void *opaque, GError **error),
                                   void *opaque)
{
    Config *config = session->own;

    config->wrap = wrap;
    config->wrap_opaque = opaque;
}
