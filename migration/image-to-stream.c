/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An image as a one-way stream of version 3: what 'run --incoming file:' reads. The store gives the pages in order,
 * each once, so all of them are of the first pass.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <vmferry/error.h>

#include "block/claim.h"
#include "migration/image-build.h"
#include "migration/image-offline.h"
#include "stream/channel.h"

#define EPOCH 1 /* of a first connection */

typedef struct {
    VmfImage *image;
    const VmfImageFile *file;
    const VmfImageMakeOptions *options;
    const char *uri;
    int claim; /* as of a VmfImageBuild */
    VmfRecordWriter *writer;
    VmfPageStore store;
    void *buffer; /* of a chunk */
    uint64_t static_sum, device_sum, sequence;
    uint64_t done_chunks;
    VmfBlockSummary blocks[VMF_RAM_BLOCKS_MAX];
} Conversion;

static bool write_static(Conversion *to, GError **error)
{
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE];
    const VmfStaticData *data = to->file->static_data;

    vmf_image_header_encode(&to->writer->format, image);
    vmf_machine_header_encode(&data->machine, to->writer->format.swap, machine);
    vmf_record_writer_sum_begin(to->writer);
    bool good = vmf_record_write_raw(to->writer, image, sizeof(image), error) &&
                vmf_record_write_raw(to->writer, machine, sizeof(machine), error) &&
                vmf_static_data_write(data, to->writer, error);
    to->static_sum = vmf_record_writer_sum_end(to->writer);
    return good;
}

static bool write_page_channels(Conversion *to, GError **error)
{
    VmfPageChannels message = {.epoch = EPOCH};

    if (getrandom(message.session, sizeof(message.session), 0) == sizeof(message.session))
        return vmf_page_channels_queue(to->writer, &message, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "stream: random session: %s", g_strerror(errno));
    return false;
}

/* ---- pages ---------------------------------------------------------------------------------------------------------
 */

static bool write_batch(Conversion *to, const VmfPageBatch *batch, GError **error)
{
    struct iovec iov[VMF_PAGES_DATA_MAX];
    VmfWirePages meta = {.block = batch->block_index,
                         .flags = VMF_PAGES_FIRST_PASS,
                         .sequence = to->sequence++,
                         .chunk = batch->chunk,
                         .epoch = EPOCH,
                         .n_data = vmf_page_set_count(&batch->data)};
    unsigned first, n_pages;
    int n = 0;

    for (unsigned from = 0; vmf_page_set_next_run(&batch->data, from, &first, &n_pages); from = first + n_pages)
        iov[n++] =
            (struct iovec){(void *)(batch->payload + (size_t)first * VMF_PAGE_SIZE), (size_t)n_pages * VMF_PAGE_SIZE};
    memcpy(meta.data, batch->data.words, sizeof(meta.data));
    memcpy(meta.zero, batch->zero.words, sizeof(meta.zero));
    return vmf_record_write_pages(to->writer, &meta, iov, n, (size_t)meta.n_data * VMF_PAGE_SIZE, error);
}

/* @wanted in records of at most VMF_PAGES_DATA_MAX pages. */
static bool write_pages(Conversion *to, unsigned block, uint64_t chunk, VmfPageSet wanted, GError **error)
{
    bool good = true;

    while (good && !vmf_page_set_is_empty(&wanted)) {
        unsigned end = vmf_page_set_cut(&wanted, 0, VMF_PAGES_DATA_MAX);
        VmfPageSet piece = vmf_page_set_slice(&wanted, 0, end);
        wanted = vmf_page_set_and_not(&wanted, &piece);
        VmfPageBatch *batch = to->store.ops->read(to->store.opaque, block, chunk, &piece, to->buffer, error);
        if (!batch)
            return false;
        to->blocks[block].data += vmf_page_set_count(&batch->data);
        to->blocks[block].zero += vmf_page_set_count(&batch->zero);
        good = write_batch(to, batch, error);
        vmf_page_batch_release(batch);
    }
    return good;
}

/* A ROM has no holes: the target may have started with a content of its own. */
static bool write_chunk(Conversion *to, unsigned block, uint64_t chunk, bool rom, GError **error)
{
    VmfImageChunk content;
    uint64_t left = to->file->layout.blocks[block].n_pages - chunk * VMF_CHUNK_PAGES;

    if (!vmf_image_chain_chunk(to->image->chain, block, chunk, &content, NULL, error))
        return false;
    if (rom)
        vmf_page_set_add_range(&content.data, 0, (unsigned)MIN(left, VMF_CHUNK_PAGES));
    return write_pages(to, block, chunk, content.data, error);
}

static bool go_on(Conversion *to, GError **error)
{
    const VmfImageMakeOptions *options = to->options;

    if (options && options->progress && to->done_chunks++ % 16 == 0 &&
        !options->progress(options->opaque, to->done_chunks * VMF_CHUNK_SIZE,
                           to->file->layout.n_chunks * VMF_CHUNK_SIZE))
        vmf_image_cancel(to->image);
    return !vmf_image_check_cancelled(to->image, error);
}

static bool write_memory(Conversion *to, GError **error)
{
    for (unsigned block = 0; block < to->file->layout.n_blocks; block++) {
        bool rom = g_array_index(to->file->static_data->blocks, VmfStaticBlock, block).flags & VMF_BLOCK_FLAG_ROM;
        uint64_t n_chunks = vmf_image_block_n_chunks(&to->file->layout.blocks[block]);
        for (uint64_t chunk = 0; chunk < n_chunks; chunk++)
            if (!go_on(to, error) || !write_chunk(to, block, chunk, rom, error))
                return false;
    }
    return vmf_u64_send(to->writer, VMF_RECORD_END_MARK, to->sequence, error);
}

/* ---- state ---------------------------------------------------------------------------------------------------------
 */

static bool write_sections(Conversion *to, GError **error)
{
    XXH3_state_t *sum = XXH3_createState();
    bool good = true;

    XXH3_64bits_reset(sum);
    for (guint i = 0; good && i < to->file->sections->len; i++)
        good = vmf_section_queue(to->writer, &g_array_index(to->file->sections, VmfSection, i), sum, error);
    to->device_sum = XXH3_64bits_digest(sum);
    XXH3_freeState(sum);
    return good;
}

static bool write_end(Conversion *to, GError **error)
{
    VmfSwitchover message = {
        .flags = to->file->summary.flags,
        .static_sum = to->static_sum,
        .device_sum = to->device_sum,
        .n_blocks = to->file->layout.n_blocks,
        .blocks = to->blocks,
    };

    memcpy(message.token, to->file->commit.id, sizeof(message.token));
    for (unsigned b = 0; b < message.n_blocks; b++) {
        to->blocks[b].hole = to->file->layout.blocks[b].n_pages - to->blocks[b].data - to->blocks[b].zero;
        to->blocks[b].sum = to->file->summary.blocks[b].sum;
    }
    return vmf_switchover_send(to->writer, &message, error) &&
           vmf_record_write(to->writer, VMF_RECORD_END, NULL, 0, error);
}

static bool convert(Conversion *to, GError **error)
{
    return write_static(to, error) && write_page_channels(to, error) && write_memory(to, error) &&
           write_sections(to, error) && write_end(to, error);
}

/* A command may answer, but nobody listens; how it ends says whether it had all. */
static bool takes_what_it_is_given(const char *uri)
{
    return g_str_has_prefix(uri, "exec:");
}

static bool write_to(Conversion *to, VmfConnector *connector, GError **error)
{
    VmfStreamFormat format = {.version = VMF_STREAM_VERSION_MAX, .swap = to->file->format.swap, .one_way = true};
    g_autoptr(VmfChannel) channel = vmf_connector_open(connector, -1, error);

    if (!channel)
        return false;
    g_autoptr(VmfRecordWriter) writer = vmf_record_writer_new(channel, format);
    to->writer = writer;
    to->buffer = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    if (!to->buffer)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%s: no memory for a chunk", to->uri);
    bool good = to->buffer && convert(to, error) && vmf_image_build_claim(to->uri, to->options, &to->claim, error) &&
                vmf_channel_finish(channel, error);
    free(to->buffer);
    return good;
}

bool vmf_image_to_stream(VmfImage *image, const char *stream_uri, const VmfImageMakeOptions *options, GError **error)
{
    const VmfImageFile *last = vmf_image_layer_of(image, vmf_image_n_layers(image) - 1);
    g_autoptr(VmfConnector) connector = vmf_connector_new(stream_uri, options ? options->flags : 0, error);
    Conversion to = {.image = image, .file = vmf_image_layer_of(image, 0), .options = options, .uri = stream_uri, .claim = -1};
    g_auto(VmfPageStore) store = {NULL, NULL};

    if (!connector)
        return false;
    if (last->parent.name || !(vmf_connector_is_one_way(connector) || takes_what_it_is_given(stream_uri))) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: %s", stream_uri,
                    last->parent.name ? "the image was opened without its parents"
                                      : "goes both ways: a stream of an image does not");
        return false;
    }
    if (to.file->layout.n_disks > 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: disk %s: its content is in the image: a stream of it is not written",
                    vmf_storage_name(to.file->storage), vmf_image_file_block_name(to.file, to.file->layout.n_blocks - 1));
        return false;
    }
    if (!vmf_image_build_check_target(stream_uri, image->chain, error) || !vmf_image_store_new(image->chain, &store, error))
        return false;
    to.store = store;
    bool good = vmf_image_build_claim(stream_uri, options, &to.claim, error) && write_to(&to, connector, error);
    vmf_claim_drop(&to.claim);
    return good;
}
