/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <vmferry/error.h>

#include "ram/image-writer-private.h"

static const uint8_t zeros[VMF_IMAGE_BLOCK];

/* An old commit block must not vouch for new pages, whatever happens from here on. */
static bool void_commit_block(VmfImageWriter *writer, GError **error)
{
    return vmf_storage_write(writer->storage, 0, zeros, sizeof(zeros), error) &&
           vmf_storage_flush(writer->storage, error);
}

static bool has_layer(const VmfImageChain *chain, const uint8_t *id)
{
    for (unsigned i = 0; chain && i < vmf_image_chain_n_layers(chain); i++)
        if (memcmp(vmf_image_chain_layer(chain, i)->commit.id, id, VMF_IMAGE_ID_SIZE) == 0)
            return true;
    return false;
}

/* Names do not always tell: an export has several, and so has a device. What is no image is nobody's. */
static bool check_not_read(const VmfImageWriterConfig *config, GError **error)
{
    g_autofree uint8_t *block = g_malloc(VMF_IMAGE_BLOCK);
    VmfStorage *storage = config->storage;
    VmfImageCommit commit;

    if ((!config->reads[0] && !config->reads[1]) || !vmf_storage_is_in_place(storage) || vmf_storage_size(storage) < VMF_IMAGE_BLOCK)
        return true;
    if (!vmf_storage_read(storage, 0, block, VMF_IMAGE_BLOCK, error))
        return false;
    if (!vmf_image_commit_decode(block, vmf_storage_size(storage), &commit, NULL) ||
        (!has_layer(config->reads[0], commit.id) && !has_layer(config->reads[1], commit.id)))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: is an image that is read, or a copy of one: write to another place",
                vmf_storage_name(storage));
    return false;
}

VmfImageWriter *vmf_image_writer_new(const VmfImageWriterConfig *config, GError **error)
{
    g_autoptr(VmfImageWriter) writer = g_new0(VmfImageWriter, 1);

    writer->storage = config->storage;
    writer->layout = *config->layout;
    memcpy(writer->id, config->id, sizeof(writer->id));
    writer->layer = config->layer;
    writer->scan = config->scan;
    writer->depth = config->depth ? config->depth : VMF_IMAGE_WRITER_DEPTH;
    writer->stable = config->stable;
    writer->tables = vmf_image_tables_new(&writer->layout, config->layer, error);
    if (!writer->tables || !check_not_read(config, error) || !vmf_storage_set_size(writer->storage, writer->layout.end, error))
        return NULL;
    if (vmf_storage_is_in_place(writer->storage) && !void_commit_block(writer, error))
        return NULL;
    return g_steal_pointer(&writer);
}

void vmf_image_writer_free(VmfImageWriter *writer)
{
    if (!writer)
        return;
    g_assert(writer->n_lanes == 0);
    vmf_image_tables_free(writer->tables);
    g_free(writer);
}

void vmf_image_writer_set_stable(VmfImageWriter *writer, bool stable)
{
    atomic_store(&writer->stable, stable);
}

void vmf_image_writer_chunk(const VmfImageWriter *writer, unsigned block, uint64_t chunk, VmfImageChunk *out)
{
    vmf_image_tables_chunk(writer->tables, block, chunk, out);
}

uint64_t vmf_image_writer_bytes_written(const VmfImageWriter *writer)
{
    return atomic_load_explicit(&writer->bytes_written, memory_order_relaxed);
}

/* ---- preallocation ------------------------------------------------------------------------------------------ */

/* Allocating costs a transaction of the filesystem whatever the length, and stops the writers. */
#define RUN_MIN_PAGES 256 /* shorter ones are left to the writers */
#define GAP_MAX_PAGES 16  /* so many pages that are not expected are allocated with those on both sides */

typedef struct {
    VmfImageWriter *writer;
    unsigned block;
    uint64_t first, end; /* pages of the block: the run that grows */
    bool failed;
} Preallocation;

/* Fails without consequence: what the place is really short of, the writers will find out. */
static void allocate_run(Preallocation *run)
{
    VmfImageWriter *writer = run->writer;
    uint64_t n_pages = run->end - run->first;
    g_autoptr(GError) error = NULL;

    if (n_pages < RUN_MIN_PAGES || run->failed)
        return;
    run->failed = !vmf_storage_preallocate(writer->storage,
                                           writer->layout.blocks[run->block].pages_offset + run->first * VMF_PAGE_SIZE,
                                           n_pages * VMF_PAGE_SIZE, &error);
    vmf_image_tables_occupy(writer->tables, run->block, run->first, n_pages);
}

static void add_pages(Preallocation *run, uint64_t first, uint64_t n_pages)
{
    if (first > run->end + GAP_MAX_PAGES || run->first == run->end) {
        allocate_run(run);
        run->first = first;
    }
    run->end = first + n_pages;
}

void vmf_image_writer_preallocate(VmfImageWriter *writer, unsigned block, const VmfDirtyBitmap *expected)
{
    Preallocation run = {.writer = writer, .block = block};
    unsigned first, n_pages;
    VmfPageSet pages;

    for (uint64_t chunk = 0; vmf_dirty_bitmap_next_chunk(expected, chunk, &chunk) && !run.failed; chunk++) {
        vmf_dirty_bitmap_peek_chunk(expected, chunk, &pages);
        for (unsigned from = 0; vmf_page_set_next_run(&pages, from, &first, &n_pages); from = first + n_pages)
            add_pages(&run, chunk * VMF_CHUNK_PAGES + first, n_pages);
    }
    allocate_run(&run);
}
