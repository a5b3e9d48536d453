/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Images: one file is opened, everything in it that is read at first use is read, and it is verified. Parents are not
 * looked for: their names are the fuzzer's.
 *
 * Theory of operation. An image is mostly places where nothing is, so an input is the pieces where something is: u64
 * size, then for each u64 offset, u32 length, octets (little-endian). A storage in memory reads as zeros everywhere
 * else, so that an image of gigabytes is an input of kilobytes. No digest is wrong here (VMF_FUZZ_ANY_CRC), for no
 * fuzzer would guess one; those of pages are left as they are, since what is done with a page does not depend on its
 * content.
 */
#include <stdlib.h>
#include <string.h>
#include <vmferry/error.h>

#include "ram/image-verify.h"
#include "stream/storage-private.h"
#include "tests/fuzz/fuzz.h"

#define SIZE_MAX_BYTES (UINT64_C(1) << 34)
#define CHUNKS_MAX 64u /* that are read of one input */

/* ---- the storage ------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfStorage base;
    const uint8_t *pieces;
    size_t length;
} FuzzStorage;

static uint64_t number(const uint8_t *at, unsigned octets)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < octets; i++)
        value |= (uint64_t)at[i] << 8 * i;
    return value;
}

/* What of a piece at @at lies in [offset, offset + length). */
static void copy_piece(uint64_t at, const uint8_t *piece, uint64_t piece_length, uint64_t offset, uint8_t *data,
                       uint64_t length)
{
    uint64_t from = MAX(at, offset), end = MIN(at + piece_length, offset + length);

    if (from < end)
        memcpy(data + (from - offset), piece + (from - at), end - from);
}

static void fill(const FuzzStorage *fuzz, uint64_t offset, void *data, uint64_t length)
{
    const uint8_t *at = fuzz->pieces;
    size_t left = fuzz->length;

    memset(data, 0, length);
    while (left >= 12) {
        uint64_t piece_offset = number(at, 8) % SIZE_MAX_BYTES, piece_length = MIN(number(at + 8, 4), left - 12);
        copy_piece(piece_offset, at + 12, piece_length, offset, data, length);
        at += 12 + piece_length;
        left -= 12 + piece_length;
    }
}

static void storage_free(VmfStorage *storage)
{
}

static bool storage_execute(VmfStorage *storage, VmfStorageRequest *request, GError **error)
{
    uint64_t offset = request->offset;

    FUZZ_CHECK(request->kind == VMF_REQUEST_READ && offset + request->length <= vmf_storage_size(storage));
    for (unsigned i = 0; i < request->n_iov; i++) {
        fill((const FuzzStorage *)storage, offset, request->iov[i].iov_base, request->iov[i].iov_len);
        offset += request->iov[i].iov_len;
    }
    return true;
}

/* Where the first piece at or behind @offset begins, or @offset if it lies in one. */
static uint64_t next_piece(const FuzzStorage *fuzz, uint64_t offset)
{
    const uint8_t *at = fuzz->pieces;
    size_t left = fuzz->length;
    uint64_t next = UINT64_MAX;

    while (left >= 12) {
        uint64_t piece_offset = number(at, 8) % SIZE_MAX_BYTES, piece_length = MIN(number(at + 8, 4), left - 12);
        if (piece_offset + piece_length > offset)
            next = MIN(next, MAX(piece_offset, offset));
        at += 12 + piece_length;
        left -= 12 + piece_length;
    }
    return next;
}

static bool storage_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind,
                           uint64_t *extent_length, GError **error)
{
    uint64_t next = next_piece((const FuzzStorage *)storage, offset);

    *kind = next == offset ? VMF_EXTENT_DATA : VMF_EXTENT_ZERO;
    *extent_length = MIN(length, next == offset ? VMF_IMAGE_BLOCK : next - offset);
    return true;
}

/* Everything has happened when it is begun. */
static void queue_issue(VmfStorageQueue *queue)
{
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(&queue->staged))) {
        storage_execute(queue->storage, request, NULL);
        vmf_storage_request_ended(queue, request, NULL);
    }
}

static void queue_reap(VmfStorageQueue *queue, bool wait)
{
    queue_issue(queue);
}

static void queue_free(VmfStorageQueue *queue)
{
}

static VmfStorageQueue *storage_queue_new(VmfStorage *storage, unsigned depth, GError **error)
{
    static const VmfStorageQueueOps queue_ops = {.issue = queue_issue, .reap = queue_reap, .free = queue_free};
    VmfStorageQueue *queue = g_new0(VmfStorageQueue, 1);

    queue->ops = &queue_ops;
    return queue;
}

static VmfStorage *storage_of(const uint8_t *data, size_t size)
{
    static const VmfStorageOps ops = {
        .free = storage_free, .execute = storage_execute, .extent = storage_extent, .queue_new = storage_queue_new};
    FuzzStorage *fuzz = g_new0(FuzzStorage, 1);

    fuzz->base = (VmfStorage){
        .ops = &ops, .name = g_strdup("fuzz"), .backend = "fuzz", .mode = VMF_STORAGE_READ, .alignment = 1};
    atomic_store(&fuzz->base.size, number(data, 8) % SIZE_MAX_BYTES);
    fuzz->pieces = data + 8;
    fuzz->length = size - 8;
    return &fuzz->base;
}

/* ---- what is done with it ---------------------------------------------------------------------------------------- */

static void check_description(const VmfImageFile *file)
{
    uint64_t n_chunks = 0;

    FUZZ_CHECK(file->layout.n_blocks == file->static_data->blocks->len + file->layout.n_disks);
    FUZZ_CHECK(file->static_data->blocks->len > 0 && (file->layout.n_disks > 0) == file->commit.with_disks);
    FUZZ_CHECK(file->commit.file_size <= vmf_storage_size(file->storage));
    for (unsigned b = 0; b < file->layout.n_blocks; b++) {
        const VmfImageBlock *block = &file->layout.blocks[b];
        FUZZ_CHECK(block->first_chunk == n_chunks && block->n_pages > 0);
        FUZZ_CHECK(block->pages_offset + block->n_pages * VMF_PAGE_SIZE <= file->commit.file_size);
        FUZZ_CHECK(file->summary.blocks[b].data <= block->n_pages);
        n_chunks += vmf_image_block_n_chunks(block);
    }
    FUZZ_CHECK(n_chunks == file->layout.n_chunks);
    for (unsigned b = file->static_data->blocks->len; b < file->layout.n_blocks; b++) {
        const VmfStaticDisk *disk = vmf_image_file_block_disk(file, b);
        FUZZ_CHECK(disk && vmf_image_file_find_disk(file, disk->name) == (int)b);
        FUZZ_CHECK((disk->size + VMF_PAGE_SIZE - 1) / VMF_PAGE_SIZE == file->layout.blocks[b].n_pages);
    }
    FUZZ_CHECK(!!(file->commit.flags & VMF_IMAGE_LAYER) == (file->parent.name != NULL));
    FUZZ_CHECK(!file->ram_only || file->disks->len == 0);
    for (guint i = 0; i < file->sections->len; i++) {
        const VmfSection *section = &g_array_index(file->sections, VmfSection, i);
        FUZZ_CHECK(section->id < file->static_data->sections->len && section->length <= VMF_SECTION_CONTENT_MAX);
        FUZZ_CHECK(section->content >= file->tail &&
                   section->content + section->length <= file->tail + file->commit.tail_length);
    }
}

static void check_chunk(const VmfImageFile *file, unsigned block, uint64_t chunk, const VmfImageChunk *content)
{
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        bool data = vmf_page_set_test(&content->data, page), zero = vmf_page_set_test(&content->zero, page);
        FUZZ_CHECK(!(data && zero) && data == (content->digests[page] != 0));
        FUZZ_CHECK(!(data || zero) || chunk * VMF_CHUNK_PAGES + page < file->layout.blocks[block].n_pages);
        FUZZ_CHECK(!zero || file->parent.name);
    }
}

static void read_chunks(VmfImageFile *file)
{
    static const VmfPageSet all = {{~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull}};
    static uint8_t *memory;
    VmfImageChain *chain = vmf_image_chain_of_file(file);
    VmfImageReader *reader = vmf_image_reader_new(chain, 1, NULL);
    unsigned left = CHUNKS_MAX;

    if (!memory)
        memory = aligned_alloc(VMF_CHUNK_SIZE, VMF_CHUNK_SIZE);
    for (unsigned b = 0; b < file->layout.n_blocks; b++)
        for (uint64_t c = 0; c < vmf_image_block_n_chunks(&file->layout.blocks[b]) && left > 0; c++, left--) {
            VmfImageChunk content;
            VmfPageSet zero;
            if (vmf_image_file_chunk(file, b, c, true, &content, NULL))
                check_chunk(file, b, c, &content);
            vmf_image_reader_read(reader, b, c, &all, memory, &zero, NULL);
        }
    vmf_image_reader_free(reader);
    vmf_image_chain_free(chain);
}

static void verify(VmfImageFile *file)
{
    VmfImageVerifyOptions options = {.n_layers = 1, .n_threads = 1, .max_listed = 3};
    VmfImageChain *chain = vmf_image_chain_of_file(file);
    VmfImageVerifyResult result;

    FUZZ_CHECK(vmf_image_chain_verify(chain, &options, &result, NULL));
    FUZZ_CHECK(result.damage->len == MIN(result.n_damaged, 3) && result.pages_damaged <= result.n_damaged);
    vmf_image_verify_result_clear(&result);
    vmf_image_chain_free(chain);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;

    if (size < 8)
        return 0;
    VmfImageFile *file = vmf_image_file_read(storage_of(data, size), &error);
    FUZZ_CHECK(!file == !!error);
    if (!file)
        return 0;
    check_description(file);
    if (file->layout.n_chunks <= CHUNKS_MAX) {
        read_chunks(file);
        verify(file);
    }
    vmf_image_file_free(file);
    return 0;
}
