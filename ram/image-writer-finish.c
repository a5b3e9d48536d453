/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What makes an image of the pages that were written, in the order of docs/fixed-ram-format.rst. */
#include <vmferry/error.h>

#include "ram/image-writer-private.h"
#include "ram/sparse-array.h"

/* ---- punches ------------------------------------------------------------------------------------------------ */

#define PUNCHES_MAX 16

/* Merged runs of idle places, a request each. */
typedef struct {
    VmfImageWriter *writer;
    VmfStorageQueue *queue;
    unsigned block;
    uint64_t first, end; /* pages of the block: the run that grows */
    VmfStorageRequest requests[PUNCHES_MAX];
    unsigned free[PUNCHES_MAX], n_free;
    GError *error; /* the first */
} Puncher;

static void punched(VmfStorageRequest *request, GError *error)
{
    Puncher *puncher = request->opaque;

    puncher->free[puncher->n_free++] = (unsigned)(request - puncher->requests);
    if (error && !puncher->error)
        puncher->error = error;
    else
        g_clear_error(&error);
}

static void zero(Puncher *puncher, uint64_t offset, uint64_t length)
{
    if (length == 0 || puncher->error)
        return;
    while (puncher->n_free == 0)
        vmf_storage_wait(puncher->queue, PUNCHES_MAX - 1);
    VmfStorageRequest *request = &puncher->requests[puncher->free[--puncher->n_free]];
    *request = (VmfStorageRequest){
        .kind = VMF_REQUEST_ZERO, .offset = offset, .length = length, .done = punched, .opaque = puncher};
    vmf_storage_submit(puncher->queue, request);
}

static void punch_run(Puncher *puncher)
{
    zero(puncher, puncher->writer->layout.blocks[puncher->block].pages_offset + puncher->first * VMF_PAGE_SIZE,
         (puncher->end - puncher->first) * VMF_PAGE_SIZE);
}

static void punch_block(Puncher *puncher)
{
    uint64_t n_chunks = vmf_image_block_n_chunks(&puncher->writer->layout.blocks[puncher->block]);
    unsigned first, n_pages;

    puncher->first = puncher->end = 0;
    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        VmfPageSet idle = vmf_image_tables_idle(puncher->writer->tables, puncher->block, chunk);
        for (unsigned from = 0; vmf_page_set_next_run(&idle, from, &first, &n_pages); from = first + n_pages) {
            uint64_t page = chunk * VMF_CHUNK_PAGES + first;
            if (page != puncher->end) {
                punch_run(puncher);
                puncher->first = page;
            }
            puncher->end = page + n_pages;
        }
    }
    punch_run(puncher);
}

/* What lies between the areas is zeros in a new file; elsewhere it is what was there before. */
static void zero_gaps(Puncher *puncher)
{
    const VmfImageLayout *layout = &puncher->writer->layout;
    const VmfImageBlock *last = &layout->blocks[layout->n_blocks - 1];
    uint64_t end = last->digests_offset + vmf_image_block_n_chunks(last) * VMF_IMAGE_BLOCK;

    for (unsigned b = 0; b < layout->n_blocks; b++) {
        zero(puncher, end, layout->blocks[b].pages_offset - end);
        end = layout->blocks[b].pages_offset + layout->blocks[b].n_pages * VMF_PAGE_SIZE;
    }
}

static bool punch(VmfImageWriter *writer, GError **error)
{
    g_autofree Puncher *puncher = g_new0(Puncher, 1);

    puncher->writer = writer;
    puncher->queue = vmf_storage_queue_new(writer->storage, PUNCHES_MAX, error);
    if (!puncher->queue)
        return false;
    for (; puncher->n_free < PUNCHES_MAX; puncher->n_free++)
        puncher->free[puncher->n_free] = puncher->n_free;
    for (; puncher->block < writer->layout.n_blocks; puncher->block++)
        punch_block(puncher);
    if (vmf_storage_is_in_place(writer->storage))
        zero_gaps(puncher);
    vmf_storage_wait(puncher->queue, 0);
    vmf_storage_queue_free(puncher->queue);
    if (puncher->error)
        g_propagate_error(error, puncher->error);
    return !puncher->error;
}

/* ---- bitmaps, digests, tables ------------------------------------------------------------------------------- */

#define DIGEST_GAP_MAX 16 /* blocks */

static bool is_zero_block(const uint8_t *block)
{
    uint64_t words[8], any = 0;

    for (unsigned at = 0; at < VMF_IMAGE_BLOCK && any == 0; at += sizeof(words)) {
        memcpy(words, block + at, sizeof(words));
        for (unsigned i = 0; i < G_N_ELEMENTS(words); i++)
            any |= words[i];
    }
    return any == 0;
}

/*
 * Writes @length octets, whole blocks, of which those that are zeros are left out where the storage has zeros already:
 * a new file.
 */
static bool write_area(VmfImageWriter *writer, uint64_t offset, const void *memory, uint64_t length, GError **error)
{
    bool may_skip = !vmf_storage_is_in_place(writer->storage);
    const uint8_t *octets = memory;
    uint64_t at = 0, end;

    for (; at < length; at = end) {
        for (; may_skip && at < length && is_zero_block(octets + at); at += VMF_IMAGE_BLOCK)
            ;
        for (end = at; end < length && !(may_skip && is_zero_block(octets + end)); end += VMF_IMAGE_BLOCK)
            ;
        if (end > at && !vmf_storage_write(writer->storage, offset + at, octets + at, end - at, error))
            return false;
    }
    return true;
}

/* The first chunk from @from on that has data, or the end. */
static uint64_t next_with_data(const VmfImageWriter *writer, unsigned b, uint64_t from)
{
    while (from < writer->tables->blocks[b].n_chunks && !vmf_image_tables_chunk_has_data(writer->tables, b, from))
        from++;
    return from;
}

/*
 * Digest blocks of chunks with data: a run of chunks is contiguous in memory and in the file. Others are zeros, and a few
 * of them between two runs are written along: a request more would take longer.
 */
static bool write_digests(VmfImageWriter *writer, unsigned b, GError **error)
{
    const uint8_t *digests = (const uint8_t *)writer->tables->blocks[b].digests;
    uint64_t n_chunks = writer->tables->blocks[b].n_chunks, from = next_with_data(writer, b, 0), end, next;

    for (; from < n_chunks; from = next) {
        end = from + 1;
        while ((next = next_with_data(writer, b, end)) < n_chunks && next - end <= DIGEST_GAP_MAX)
            end = next + 1;
        if (!vmf_storage_write(writer->storage, writer->layout.blocks[b].digests_offset + from * VMF_IMAGE_BLOCK,
                               digests + from * VMF_IMAGE_BLOCK, (end - from) * VMF_IMAGE_BLOCK, error))
            return false;
    }
    return true;
}

static bool write_block_tables(VmfImageWriter *writer, unsigned b, GError **error)
{
    const VmfImageBlock *block = &writer->layout.blocks[b];
    const VmfImageBlockTables *own = &writer->tables->blocks[b];
    uint64_t length = vmf_image_round_up(vmf_image_block_bitmap_length(block));

    return write_area(writer, block->data_bitmap_offset, own->data, length, error) &&
           (!own->zero || write_area(writer, block->zero_bitmap_offset, own->zero, length, error)) &&
           write_digests(writer, b, error);
}

static void fill_chunk_table(const VmfImageWriter *writer, uint64_t *table)
{
    VmfImageChunk chunk;

    for (unsigned b = 0; b < writer->layout.n_blocks; b++) {
        for (uint64_t c = 0; c < writer->tables->blocks[b].n_chunks; c++) {
            vmf_image_tables_chunk(writer->tables, b, c, &chunk);
            uint64_t entry = vmf_image_chunk_entry(&chunk);
            if (entry)
                table[writer->layout.blocks[b].first_chunk + c] = GUINT64_TO_LE(entry);
        }
    }
}

static bool write_chunk_table(VmfImageWriter *writer, VmfImageDigest *digest, GError **error)
{
    uint64_t length = vmf_image_round_up(writer->layout.table_length);
    uint64_t *table = vmf_sparse_array_new(length, 1, "chunk tables", error);

    if (!table)
        return false;
    fill_chunk_table(writer, table);
    *digest = vmf_image_digest(table, writer->layout.table_length);
    bool written = write_area(writer, writer->layout.table_offset, table, length, error);
    vmf_sparse_array_free(table, length, 1);
    return written;
}

/* ---- the rest ----------------------------------------------------------------------------------------------- */

/* With zeros up to the end of its last block. */
static bool write_padded(VmfImageWriter *writer, uint64_t offset, const void *data, size_t length, GError **error)
{
    size_t padded = vmf_image_round_up(length);
    g_autofree uint8_t *copy = g_try_malloc0(padded);

    if (!copy) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "writing an image: %zu bytes: no memory", padded);
        return false;
    }
    memcpy(copy, data, length);
    return vmf_storage_write(writer->storage, offset, copy, padded, error);
}

static bool check_lengths(const VmfImageWriter *writer, size_t header_length, size_t tail_length, GError **error)
{
    if (header_length > 0 && header_length <= VMF_IMAGE_HEADER_MAX && tail_length > 0 &&
        tail_length <= VMF_IMAGE_TAIL_MAX &&
        VMF_IMAGE_HEADER_OFFSET + vmf_image_round_up(header_length) == writer->layout.table_offset)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT,
                "writing an image: a header of %zu and a tail of %zu octets: do not fit the layout", header_length,
                tail_length);
    return false;
}

/* The commit of the storage begins with the second flush. */
static bool write_commit_block(VmfImageWriter *writer, VmfImageCommit *commit, GError **error)
{
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];

    vmf_image_commit_encode(commit, block);
    return vmf_storage_flush(writer->storage, error) &&
           vmf_storage_write(writer->storage, 0, block, sizeof(block), error) &&
           vmf_storage_commit(writer->storage, error);
}

bool vmf_image_writer_finish(VmfImageWriter *writer, const void *header, size_t header_length, const void *tail,
                             size_t tail_length, VmfImageCommit *commit, GError **error)
{
    VmfImageCommit own = {.with_disks = writer->layout.n_disks > 0,
                          .flags = writer->layer ? VMF_IMAGE_LAYER : 0,
                          .file_size = writer->layout.end + vmf_image_round_up(tail_length),
                          .header_length = header_length,
                          .table_offset = writer->layout.table_offset,
                          .table_length = writer->layout.table_length,
                          .tail_offset = writer->layout.end,
                          .tail_length = tail_length,
                          .header = vmf_image_digest(header, header_length),
                          .tail = vmf_image_digest(tail, tail_length)};

    memcpy(own.id, writer->id, sizeof(own.id));
    if (!check_lengths(writer, header_length, tail_length, error) || !punch(writer, error) ||
        !vmf_storage_set_size(writer->storage, own.file_size, error))
        return false;
    for (unsigned b = 0; b < writer->layout.n_blocks; b++)
        if (!write_block_tables(writer, b, error))
            return false;
    if (!write_chunk_table(writer, &own.table, error) ||
        !write_padded(writer, VMF_IMAGE_HEADER_OFFSET, header, header_length, error) ||
        !write_padded(writer, own.tail_offset, tail, tail_length, error) || !write_commit_block(writer, &own, error))
        return false;
    if (commit)
        *commit = own;
    return true;
}
