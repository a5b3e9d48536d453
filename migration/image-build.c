/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/image-build.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <vmferry/error.h>

#include "block/claim.h"
#include "migration/image-offline.h"
#include "stream/channel-bytes.h"

/* ---- header --------------------------------------------------------------------------------------------------------
 */

/* Records in memory. */
typedef struct {
    GByteArray *bytes;
    VmfChannel *channel;
    VmfRecordWriter *writer;
} Records;

static Records records_begin(VmfStreamFormat format)
{
    Records records = {.bytes = g_byte_array_new()};

    records.channel = vmf_channel_into_bytes(records.bytes, "image");
    records.writer = vmf_record_writer_new(records.channel, format);
    return records;
}

/* NULL with @error unless @good. */
static GByteArray *records_end(Records *records, bool good, GError **error)
{
    good = good && vmf_record_flush(records->writer, error);
    vmf_record_writer_free(records->writer);
    vmf_channel_free(records->channel);
    if (!good)
        g_clear_pointer(&records->bytes, g_byte_array_unref);
    return records->bytes;
}

static bool write_end(VmfRecordWriter *writer, GError **error)
{
    return vmf_record_queue(writer, VMF_RECORD_END, NULL, 0, error);
}

static bool holds_disks(const VmfStaticData *data)
{
    for (guint d = 0; d < data->disks->len; d++)
        if (g_array_index(data->disks, VmfStaticDisk, d).flags & VMF_WIRE_DISK_COPIED)
            return true;
    return false;
}

static GByteArray *make_beginning(VmfImageBuild *build, const VmfStaticData *data, GError **error)
{
    Records records = records_begin(build->format);
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE];
    VmfStaticData own = *data; /* what it points at is @data's still */

    own.features_offered = own.features_required = VMF_FEATURE_SUMS | (holds_disks(data) ? VMF_FEATURE_DISKS : 0);
    own.page_channels = 0;
    vmf_image_header_encode(&build->format, image);
    vmf_machine_header_encode(&own.machine, build->format.swap, machine);
    vmf_record_writer_sum_begin(records.writer);
    bool good = vmf_record_write_raw(records.writer, image, sizeof(image), error) &&
                vmf_record_write_raw(records.writer, machine, sizeof(machine), error) &&
                vmf_static_data_write(&own, records.writer, error);
    build->static_sum = vmf_record_writer_sum_end(records.writer);
    return records_end(&records, good, error);
}

/* PARENT and END: what stands behind LAYOUT. */
static GByteArray *make_end(const VmfImageBuild *build, const VmfImageParent *parent, GError **error)
{
    Records records = records_begin(build->format);
    bool good = (!parent || vmf_image_parent_write(parent, records.writer, error)) && write_end(records.writer, error);

    return records_end(&records, good, error);
}

static GByteArray *make_layout(const VmfImageBuild *build, GError **error)
{
    Records records = records_begin(build->format);
    bool good = vmf_image_layout_write(&build->layout, records.writer, error);

    return records_end(&records, good, error);
}

/* RAM blocks, and behind them the disks that are held: their number is *@n_disks. */
static GArray *sizes_of(const VmfStaticData *data, unsigned *n_disks)
{
    GArray *n_pages = g_array_new(false, false, sizeof(uint64_t));

    for (guint b = 0; b < data->blocks->len; b++) {
        uint64_t n = g_array_index(data->blocks, VmfStaticBlock, b).size / VMF_PAGE_SIZE;
        g_array_append_val(n_pages, n);
    }
    for (guint d = 0; d < data->disks->len; d++) {
        const VmfStaticDisk *disk = &g_array_index(data->disks, VmfStaticDisk, d);
        uint64_t n = vmf_image_disk_n_pages(disk->size);
        if (disk->flags & VMF_WIRE_DISK_COPIED)
            g_array_append_val(n_pages, n);
    }
    *n_disks = n_pages->len - data->blocks->len;
    return n_pages;
}

static bool make_header(VmfImageBuild *build, const VmfImageOrigin *origin, GError **error)
{
    unsigned n_disks;
    g_autoptr(GArray) n_pages = sizes_of(origin->static_data, &n_disks);
    g_autoptr(GByteArray) beginning = make_beginning(build, origin->static_data, error);
    g_autoptr(GByteArray) end = beginning ? make_end(build, origin->parent, error) : NULL;

    if (!end)
        return false;
    uint64_t length = beginning->len + vmf_image_layout_record_size(n_pages->len) + end->len;
    if (!vmf_image_layout_compute(&build->layout, (const uint64_t *)(const void *)n_pages->data, n_pages->len, origin->parent,
                                  length, error))
        return false;
    build->layout.n_disks = n_disks;
    g_autoptr(GByteArray) layout = make_layout(build, error);
    if (!layout)
        return false;
    build->header = g_byte_array_sized_new((guint)length);
    g_byte_array_append(build->header, beginning->data, beginning->len);
    g_byte_array_append(build->header, layout->data, layout->len);
    g_byte_array_append(build->header, end->data, end->len);
    return true;
}

/* ---- making it -----------------------------------------------------------------------------------------------------
 */

static bool make_id(uint8_t id[VMF_IMAGE_ID_SIZE], GError **error)
{
    if (getrandom(id, VMF_IMAGE_ID_SIZE, 0) == VMF_IMAGE_ID_SIZE)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "image: random id: %s", g_strerror(errno));
    return false;
}

static bool make_blocks(VmfImageBuild *build, const VmfStaticData *data, GError **error)
{
    for (guint b = 0; b < data->blocks->len; b++) {
        const VmfStaticBlock *block = &g_array_index(data->blocks, VmfStaticBlock, b);
        build->blocks[b] = vmf_ram_block_new(block->name, block->size, VMF_RAM_ANON, 0, block->guest_address, error);
        if (!build->blocks[b])
            return false;
    }
    return true;
}

static bool open_all(VmfImageBuild *build, const char *uri, const VmfImageMakeOptions *options,
                     const VmfImageOrigin *origin, GError **error)
{
    VmfStorageOptions storage = {.mode = VMF_STORAGE_CREATE, .silence_ns = VMF_IMAGE_SILENCE_NS};

    if (options) {
        storage.connect = options->flags;
        storage.buffered = options->buffered;
        storage.backend = options->backend;
    }
    build->uri = uri;
    build->options = options;
    build->format = (VmfStreamFormat){.version = VMF_STREAM_VERSION_MAX, .swap = origin->swap, .one_way = true};
    if (!make_id(build->id, error) || !make_header(build, origin, error) ||
        !make_blocks(build, origin->static_data, error) || !vmf_image_build_claim(uri, options, &build->claim, error))
        return false;
    build->storage = vmf_storage_open(uri, &storage, error);
    if (!build->storage)
        return false;
    VmfImageWriterConfig config = {
        .storage = build->storage,
        .layout = &build->layout,
        .id = build->id,
        .layer = origin->parent != NULL,
        .scan = vmf_page_scan_select(),
        .stable = true,
        .reads = {origin->reads[0], origin->reads[1]},
    };
    build->writer = vmf_image_writer_new(&config, error);
    return build->writer != NULL;
}

VmfImageBuild *vmf_image_build_new(const char *uri, const VmfImageMakeOptions *options, const VmfImageOrigin *origin,
                                   GError **error)
{
    g_autoptr(VmfImageBuild) build = g_new0(VmfImageBuild, 1);

    build->claim = -1;
    return open_all(build, uri, options, origin, error) ? g_steal_pointer(&build) : NULL;
}

void vmf_image_build_free(VmfImageBuild *build)
{
    if (!build)
        return;
    vmf_image_writer_free(build->writer);
    vmf_storage_free(build->storage);
    vmf_claim_drop(&build->claim);
    g_clear_pointer(&build->header, g_byte_array_unref);
    for (unsigned b = 0; b < VMF_RAM_BLOCKS_MAX; b++)
        vmf_ram_block_free(build->blocks[b]);
    g_free(build);
}

/* ---- tail ----------------------------------------------------------------------------------------------------------
 */

static bool write_disks(const VmfImageTail *tail, VmfRecordWriter *writer, GError **error)
{
    if (tail->ram_only)
        return vmf_record_queue(writer, VMF_RECORD_RAM_ONLY, NULL, 0, error);
    for (guint i = 0; tail->disks && i < tail->disks->len; i++)
        if (!vmf_image_disk_write(&g_array_index(tail->disks, VmfImageDisk, i), writer, error))
            return false;
    return true;
}

static bool write_sections(const VmfImageTail *tail, VmfRecordWriter *writer, uint64_t *device_sum, GError **error)
{
    XXH3_state_t *sum = XXH3_createState();
    bool good = true;

    XXH3_64bits_reset(sum);
    for (guint i = 0; good && i < tail->sections->len; i++)
        good = vmf_section_queue(writer, &g_array_index(tail->sections, VmfSection, i), sum, error);
    *device_sum = XXH3_64bits_digest(sum);
    XXH3_freeState(sum);
    return good;
}

static bool write_switchover(const VmfImageBuild *build, const VmfImageTail *tail, uint64_t device_sum,
                             VmfRecordWriter *writer, GError **error)
{
    g_autofree VmfBlockSummary *blocks = g_new0(VmfBlockSummary, build->layout.n_blocks);
    VmfSwitchover message = {
        .flags = tail->runs ? VMF_SWITCHOVER_RUN : 0,
        .static_sum = build->static_sum,
        .device_sum = device_sum,
        .n_blocks = build->layout.n_blocks,
        .blocks = blocks,
    };

    memcpy(message.token, build->id, sizeof(message.token));
    for (unsigned b = 0; b < build->layout.n_blocks; b++)
        blocks[b] = (VmfBlockSummary){.data = tail->blocks[b].data,
                                      .hole = build->layout.blocks[b].n_pages - tail->blocks[b].data,
                                      .sum = tail->blocks[b].sum};
    return vmf_switchover_send(writer, &message, error);
}

bool vmf_image_build_finish(VmfImageBuild *build, const VmfImageTail *tail, GError **error)
{
    Records records = records_begin(build->format);
    uint64_t device_sum;
    bool good = write_disks(tail, records.writer, error) && write_sections(tail, records.writer, &device_sum, error) &&
                write_switchover(build, tail, device_sum, records.writer, error) && write_end(records.writer, error);
    g_autoptr(GByteArray) octets = records_end(&records, good, error);

    return octets && vmf_image_build_claim(build->uri, build->options, &build->claim, error) &&
           vmf_image_writer_finish(build->writer, build->header->data, build->header->len, octets->data, octets->len, NULL, error);
}

/* ---- what must not be overwritten ----------------------------------------------------------------------------------
 */

static bool same_file(const char *a, const char *b)
{
    struct stat one, other;

    if (strcmp(a, b) == 0)
        return true;
    if (!g_str_has_prefix(a, "file:") || !g_str_has_prefix(b, "file:"))
        return false;
    if (stat(a + strlen("file:"), &one) < 0 || stat(b + strlen("file:"), &other) < 0)
        return false;
    if (S_ISBLK(one.st_mode) && S_ISBLK(other.st_mode))
        return one.st_rdev == other.st_rdev;
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

bool vmf_image_build_check_target(const char *uri, const VmfImageChain *chain, GError **error)
{
    g_autofree char *partial = g_strconcat(uri, ".partial", NULL);

    for (unsigned i = 0; i < vmf_image_chain_n_layers(chain); i++) {
        const char *name = vmf_storage_name(vmf_image_chain_layer(chain, i)->storage);
        if (!same_file(uri, name) && !same_file(partial, name))
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: is an image that is read: write to another place", uri);
        return false;
    }
    return true;
}

/* Options of an embedder that was built before there was such a thing do not have it. */
static bool is_forced(const VmfImageMakeOptions *options)
{
    return options && options->size >= sizeof(*options) && options->force;
}

bool vmf_image_build_claim(const char *uri, const VmfImageMakeOptions *options, int *claim, GError **error)
{
    return vmf_claim_renew_uri(uri, is_forced(options) ? VMF_CLAIM_FORCE : VMF_CLAIM_REPLACE, claim, error);
}
