/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A one-way stream as an image. Pages go to their places as they come, later versions of a page over older ones; what
 * SWITCHOVER says of counts and sums is compared with what the image then holds, so a stream that a target would refuse
 * becomes no image.
 */
#include <inttypes.h>
#include <vmferry/error.h>

#include "migration/image-build.h"
#include "migration/image-intake.h"
#include "migration/incoming.h"
#include "ram/stream-source.h"

#define EPOCH 1

typedef struct {
    VmfIncoming *incoming;
    const VmfImageMakeOptions *options;
    VmfImageBuild *build;
    VmfPageSink lane, intake;
    bool announced, ended; /* PAGE_CHANNELS, END_MARK */
    uint64_t sequence;
    VmfBlockSummary counted[VMF_RAM_BLOCKS_MAX]; /* first pass: data, zero */
    GArray *sections;                            /* VmfSection; contents are owned */
    uint64_t section_bytes;
    uint32_t parts[VMF_SECTIONS_MAX];
    bool complete[VMF_SECTIONS_MAX];
    XXH3_state_t *device_sum;
    VmfSwitchover summary;
} Conversion;

static void clear_section(void *section)
{
    g_free((void *)((VmfSection *)section)->content);
}

/* ---- pages ---------------------------------------------------------------------------------------------------------
 */

static bool out_of_order(const VmfRecord *record, GError **error)
{
    vmf_record_set_order_error(error, record->type, "here");
    return false;
}

static bool take_page_channels(Conversion *from, const VmfRecord *record, GError **error)
{
    VmfPageChannels message;

    if (!vmf_page_channels_decode(record, from->incoming->format.swap, &message, error))
        return false;
    if (from->announced)
        return out_of_order(record, error);
    if (message.epoch != EPOCH || message.count != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY,
                    "record PAGE_CHANNELS: epoch %u, %u channels: not for this stream", message.epoch, message.count);
        return false;
    }
    from->announced = true;
    return true;
}

static void count(Conversion *from, const VmfWirePages *meta)
{
    if (!(meta->flags & VMF_PAGES_FIRST_PASS))
        return;
    for (unsigned w = 0; w < VMF_WIRE_CHUNK_WORDS; w++) {
        from->counted[meta->block].data += (unsigned)__builtin_popcountll(meta->data[w]);
        from->counted[meta->block].zero += (unsigned)__builtin_popcountll(meta->zero[w]);
    }
}

static bool take_pages(Conversion *from, const VmfRecord *record, GError **error)
{
    VmfRecordReader *reader = from->incoming->reader;
    VmfWirePages meta;

    memcpy(&meta, record->body, sizeof(meta));
    if (reader->format.swap)
        vmf_wire_pages_swap(&meta);
    if (!from->announced || from->ended || meta.epoch != EPOCH || meta.sequence != from->sequence)
        return out_of_order(record, error);
    if (meta.block >= from->build->layout.n_blocks) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE, "record PAGES: RAM block %u: there is none", meta.block);
        return false;
    }
    if (!vmf_stream_source_take(reader, &meta, record->length, from->build->blocks[meta.block], &from->intake, NULL,
                                error))
        return false;
    count(from, &meta);
    from->sequence++;
    return true;
}

static bool take_end_mark(Conversion *from, const VmfRecord *record, GError **error)
{
    uint64_t n_records;

    if (!vmf_u64_decode(record, from->incoming->format.swap, &n_records, error))
        return false;
    if (from->ended)
        return out_of_order(record, error);
    from->ended = true;
    if (n_records == from->sequence)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_COUNTS,
                "record END_MARK: %" PRIu64 " records were sent, %" PRIu64 " came", n_records, from->sequence);
    return false;
}

/* ---- device state --------------------------------------------------------------------------------------------------
 */

static bool take_section(Conversion *from, const VmfRecord *record, GError **error)
{
    const GArray *listed = from->incoming->static_data->sections;
    VmfSection section;

    if (!vmf_section_decode(record, from->incoming->format.swap, &section, error))
        return false;
    from->section_bytes += VMF_RECORD_HEADER_SIZE + VMF_SECTION_META_SIZE + section.length;
    if (section.id >= listed->len || from->complete[section.id] || section.part != from->parts[section.id] ||
        from->section_bytes > VMF_IMAGE_TAIL_MAX / 2) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "record SECTION: id %u, part %u: out of order, or too much",
                    section.id, section.part);
        return false;
    }
    from->parts[section.id]++;
    from->complete[section.id] = section.flags & VMF_SECTION_LAST;
    XXH3_64bits_update(from->device_sum, record->body, record->checked);
    section.content = g_memdup2(section.content, section.length);
    g_array_append_val(from->sections, section);
    return true;
}

static bool sections_are_complete(const Conversion *from, GError **error)
{
    const GArray *listed = from->incoming->static_data->sections;

    for (guint i = 0; i < listed->len; i++) {
        const VmfStaticSection *section = &g_array_index(listed, VmfStaticSection, i);
        if (from->complete[i])
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "section %s %u: is missing, or not complete", section->name,
                    section->instance);
        return false;
    }
    return true;
}

/* ---- the end -------------------------------------------------------------------------------------------------------
 */

/* What the image holds of a block. */
static VmfBlockSummary sum_block(const VmfImageBuild *build, unsigned block)
{
    VmfBlockSummary found = {0};
    VmfImageChunk chunk;

    for (uint64_t c = 0; c < vmf_image_block_n_chunks(&build->layout.blocks[block]); c++) {
        vmf_image_writer_chunk(build->writer, block, c, &chunk);
        if (vmf_page_set_is_empty(&chunk.data))
            continue;
        found.data += vmf_page_set_count(&chunk.data);
        for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
            found.sum += vmf_page_digest_mix(c * VMF_CHUNK_PAGES + page, chunk.digests[page]);
    }
    return found;
}

/* Replaces what SWITCHOVER says of the first pass by what the image holds. */
static bool check_memory(Conversion *from, GError **error)
{
    const VmfImageBuild *build = from->build;

    for (unsigned b = 0; b < build->layout.n_blocks; b++) {
        VmfBlockSummary *said = &from->summary.blocks[b], found = sum_block(build, b);
        const VmfBlockSummary *counted = &from->counted[b];
        uint64_t n_pages = build->layout.blocks[b].n_pages;
        bool counts = counted->data == said->data && counted->zero == said->zero && said->data <= n_pages &&
                      said->zero <= n_pages - said->data && said->hole == n_pages - said->data - said->zero;
        if (!counts || said->sum != found.sum) {
            g_set_error(error, VMF_ERROR, counts ? VMF_ERROR_RAM_SUM : VMF_ERROR_RAM_COUNTS,
                        "record SWITCHOVER: RAM block %s: what came has %s", vmf_ram_block_name(build->blocks[b]),
                        counts ? "another sum" : "other counts");
            return false;
        }
        *said = found;
    }
    return true;
}

static bool check_sums(Conversion *from, GError **error)
{
    if (from->summary.static_sum != from->incoming->static_sum) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_SUM, "record SWITCHOVER: static data has another sum");
        return false;
    }
    if (from->summary.device_sum != XXH3_64bits_digest(from->device_sum)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_SUM, "record SWITCHOVER: device state has another sum");
        return false;
    }
    return check_memory(from, error);
}

/* A stream is whole when END has come. */
static bool take_end(Conversion *from, GError **error)
{
    VmfRecord record;

    if (!vmf_record_read_known(from->incoming->reader, &record, error))
        return false;
    return record.type == VMF_RECORD_END ? vmf_empty_check(&record, error) : out_of_order(&record, error);
}

static bool finish(Conversion *from, const VmfRecord *record, GError **error)
{
    const VmfImageBuild *build = from->build;

    if (!vmf_switchover_decode(record, from->incoming->format.swap, build->layout.n_blocks, &from->summary, error))
        return false;
    if (!from->announced || !from->ended)
        return out_of_order(record, error);
    if (!sections_are_complete(from, error) || !vmf_page_sink_flush(&from->intake, error) || !check_sums(from, error) ||
        !take_end(from, error))
        return false;
    VmfImageTail tail = {
        .ram_only = true,
        .sections = from->sections,
        .runs = from->summary.flags & VMF_SWITCHOVER_RUN,
        .blocks = from->summary.blocks,
    };
    vmf_page_sink_free(&from->intake);
    vmf_page_sink_free(&from->lane);
    return vmf_image_build_finish(from->build, &tail, error);
}

/* ---- the stream ----------------------------------------------------------------------------------------------------
 */

static bool take_record(Conversion *from, const VmfRecord *record, GError **error)
{
    VmfHint hint;

    switch (record->type) {
    case VMF_RECORD_PAGE_CHANNELS:
        return take_page_channels(from, record, error);
    case VMF_RECORD_PAGES:
        return take_pages(from, record, error);
    case VMF_RECORD_END_MARK:
        return take_end_mark(from, record, error);
    case VMF_RECORD_HINT:
        return vmf_hint_decode(record, from->incoming->format.swap, &hint, error);
    case VMF_RECORD_SECTION:
        return take_section(from, record, error);
    case VMF_RECORD_ROUND:
    case VMF_RECORD_PING:
        return true;
    case VMF_RECORD_ABORT:
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "source: took the guest back");
        return false;
    default:
        return out_of_order(record, error);
    }
}

static bool go_on(Conversion *from, GError **error)
{
    const VmfImageMakeOptions *options = from->options;
    uint64_t written = vmf_image_writer_bytes_written(from->build->writer);

    if (!options || !options->progress || from->sequence % 64 != 0 || options->progress(options->opaque, written, 0))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "image: cancelled");
    return false;
}

static bool is_skippable(const VmfRecord *record)
{
    return !vmf_record_name(record->type) && record->type & VMF_RECORD_OPTIONAL;
}

static bool read_records(Conversion *from, GError **error)
{
    VmfRecordReader *reader = from->incoming->reader;
    VmfRecord record = from->incoming->first;

    while (record.type != VMF_RECORD_SWITCHOVER) {
        bool taken = is_skippable(&record)
                         ? reader->payload_left == 0 || vmf_record_skip_payload(reader, record.length, error)
                         : take_record(from, &record, error);
        if (!taken || !go_on(from, error) || !vmf_record_read(reader, &record, error))
            return false;
    }
    return finish(from, &record, error);
}

/* The image would hold a place for it, and EXTENT records are not for this reader. */
static bool copies_disks(const VmfStaticData *data, GError **error)
{
    for (guint d = 0; d < data->disks->len; d++) {
        const VmfStaticDisk *disk = &g_array_index(data->disks, VmfStaticDisk, d);
        if (!(disk->flags & VMF_WIRE_DISK_COPIED))
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "stream: disk %s: it is copied in the stream: no image is made of that",
                    disk->name);
        return true;
    }
    return false;
}

static bool convert(Conversion *from, const char *uri, GError **error)
{
    VmfImageOrigin origin = {.static_data = from->incoming->static_data, .swap = from->incoming->format.swap};

    if (copies_disks(from->incoming->static_data, error))
        return false;
    from->build = vmf_image_build_new(uri, from->options, &origin, error);
    if (!from->build || !vmf_image_writer_lane(from->build->writer, &from->lane, error) ||
        !vmf_image_intake_new(&from->lane, &from->intake, error))
        return false;
    return read_records(from, error);
}

static void clear(Conversion *from)
{
    vmf_page_sink_free(&from->intake);
    vmf_page_sink_free(&from->lane);
    vmf_image_build_free(from->build);
    g_array_unref(from->sections);
    XXH3_freeState(from->device_sum);
    vmf_switchover_clear(&from->summary);
    g_free(from);
}

static VmfIncoming *open_stream(const char *stream_uri, const VmfImageMakeOptions *options, GError **error)
{
    g_autoptr(VmfListener) listener = vmf_listener_new(stream_uri, options ? options->flags : 0, error);

    if (!listener)
        return NULL;
    if (!vmf_listener_is_one_way(listener)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: goes both ways: not where a stream is kept", stream_uri);
        return NULL;
    }
    VmfChannel *channel = vmf_listener_accept(listener, -1, error);
    return channel ? vmf_incoming_read(channel, error) : NULL;
}

bool vmf_image_from_stream(const char *stream_uri, const char *uri, const VmfImageMakeOptions *options, GError **error)
{
    g_autoptr(VmfIncoming) incoming = open_stream(stream_uri, options, error);

    if (!incoming)
        return false;
    Conversion *from = g_new0(Conversion, 1);
    from->incoming = incoming;
    from->options = options;
    from->device_sum = XXH3_createState();
    XXH3_64bits_reset(from->device_sum);
    from->sections = g_array_new(false, true, sizeof(VmfSection));
    g_array_set_clear_func(from->sections, clear_section);
    bool good = convert(from, uri, error);
    clear(from);
    if (!good)
        g_prefix_error(error, "%s: ", stream_uri);
    return good;
}
