/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. What is put is cut into chunks, as the image has them, and copied: whoever read it needs the
 * memory for the next read, and the last page of a disk has to be filled up. Reads are smaller than chunks, and a lane
 * has one batch of a chunk under way: so neighbours are gathered first. Each piece is then a batch like those of guest
 * memory, with digests, and takes their way: what differs from the parent (layers only), the gate, the image writer's
 * lane. A disk has a lane of its own, so no two lanes ever have one chunk.
 */
#include "migration/image-disk-save.h"

#include <stdlib.h>
#include <string.h>
#include <vmferry/error.h>

#include "block/disk.h"
#include "ram/image-format.h"

/* Of one chunk, what was put of it lately. */
typedef struct VmfImageDiskPiece {
    VmfPageBatch batch; /* first */
    uint64_t digests[VMF_CHUNK_PAGES];
    uint8_t *memory; /* of the chunk; what was not put is never touched */
} Piece;

static void piece_release(VmfPageBatch *batch)
{
    free(((Piece *)batch)->memory);
    g_free(batch);
}

bool vmf_image_disk_save_init(VmfImageDiskSave *save, VmfDiskSource *source, unsigned first_block, GError **error)
{
    save->source = source;
    save->scan = vmf_page_scan_select();
    save->disks = g_new0(VmfImageDiskSaveOne, source->n_disks + 1);
    for (unsigned i = 0; i < source->n_disks; i++) {
        VmfImageDiskSaveOne *one = &save->disks[i];
        one->save = save;
        one->disk = source->disks[i].disk;
        one->block = first_block + i;
        one->digests = vmf_digest_table_new(vmf_image_disk_n_pages(vmf_disk_size(one->disk)), error);
        if (!one->digests)
            return false;
    }
    return true;
}

void vmf_image_disk_save_clear(VmfImageDiskSave *save)
{
    vmf_image_disk_save_cancel(save);
    for (unsigned i = 0; save->disks && i < save->source->n_disks; i++) {
        if (save->disks[i].piece)
            vmf_page_batch_release(&save->disks[i].piece->batch);
        vmf_page_sink_free(&save->disks[i].lane);
        vmf_digest_table_free(save->disks[i].digests);
    }
    g_clear_pointer(&save->disks, g_free);
}

void vmf_image_disk_save_summary(const VmfImageDiskSave *save, unsigned disk, VmfBlockSummary *out)
{
    const VmfDigestTable *digests = save->disks[disk].digests;
    uint64_t n_data = vmf_digest_table_n_data(digests);

    *out = (VmfBlockSummary){n_data, 0, vmf_digest_table_n_pages(digests) - n_data, vmf_digest_table_total(digests)};
}

/* ---- putting ----------------------------------------------------------------------------------------------------- */

static Piece *piece_new(const VmfImageDiskSaveOne *one, uint64_t chunk, GError **error)
{
    Piece *piece = g_new0(Piece, 1);
    uint64_t left = vmf_digest_table_n_pages(one->digests) - chunk * VMF_CHUNK_PAGES;

    piece->memory = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    if (!piece->memory) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disk %s: image: out of memory", vmf_disk_name(one->disk));
        g_free(piece);
        return NULL;
    }
    piece->batch = (VmfPageBatch){
        .block_index = one->block,
        .chunk = chunk,
        .first_page = chunk * VMF_CHUNK_PAGES,
        .n_pages = (unsigned)MIN(left, VMF_CHUNK_PAGES),
        .digests = piece->digests,
        .payload = piece->memory,
        .release = piece_release,
    };
    return piece;
}

static bool push_piece(VmfImageDiskSaveOne *one, GError **error)
{
    Piece *piece = g_steal_pointer(&one->piece);

    return !piece || vmf_page_sink_push(&one->lane, &piece->batch, error);
}

/* The piece that is to get @pages of @chunk: neighbours share one, for the lane has one batch of a chunk at a time. */
static Piece *piece_for(VmfImageDiskSaveOne *one, uint64_t chunk, const VmfPageSet *pages, GError **error)
{
    if (one->piece) {
        const VmfPageBatch *batch = &one->piece->batch;
        VmfPageSet there = vmf_page_set_or(&batch->data, &batch->zero), both = vmf_page_set_and(&there, pages);
        if ((batch->chunk != chunk || !vmf_page_set_is_empty(&both)) && !push_piece(one, error))
            return NULL;
    }
    if (!one->piece)
        one->piece = piece_new(one, chunk, error);
    return one->piece;
}

/* Of the disk's last page what lies behind its end is zeros. */
static void fill(const VmfImageDiskSaveOne *one, Piece *piece, size_t at, const VmfPageSet *pages, const uint8_t *data,
                 uint64_t length)
{
    size_t room = (length + VMF_PAGE_SIZE - 1) / VMF_PAGE_SIZE * VMF_PAGE_SIZE;
    VmfPageBatch *batch = &piece->batch;
    VmfPageSet found = {{0}}, zero = {{0}};

    memcpy(piece->memory + at, data, length);
    memset(piece->memory + at + length, 0, room - length);
    vmf_page_scan(one->save->scan, piece->memory, VMF_PAGE_SIZE, batch->n_pages, pages->words, found.words, zero.words,
                  piece->digests);
    batch->data = vmf_page_set_or(&batch->data, &found);
    batch->zero = vmf_page_set_or(&batch->zero, &zero);
}

/* Within one chunk. */
static bool put_piece(VmfImageDiskSaveOne *one, uint64_t offset, const uint8_t *data, uint64_t length, GError **error)
{
    static const VmfPageSet all = {{~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull}};
    size_t at = offset % VMF_CHUNK_SIZE;
    VmfPageSet pages = vmf_page_set_slice(&all, (unsigned)(at / VMF_PAGE_SIZE),
                                          (unsigned)((length + VMF_PAGE_SIZE - 1) / VMF_PAGE_SIZE));
    Piece *piece = piece_for(one, offset / VMF_CHUNK_SIZE, &pages, error);

    if (!piece)
        return false;
    if (data)
        fill(one, piece, at, &pages, data, length);
    else
        piece->batch.zero = vmf_page_set_or(&piece->batch.zero, &pages);
    vmf_digest_table_update(one->digests, piece->batch.chunk, &pages, data ? piece->digests : NULL);
    return true;
}

bool vmf_image_disk_save_put(VmfImageDiskSaveOne *one, uint64_t offset, const uint8_t *data, uint64_t length,
                             GError **error)
{
    while (length > 0) {
        uint64_t bytes = MIN(length, VMF_CHUNK_SIZE - offset % VMF_CHUNK_SIZE);
        if (!put_piece(one, offset, data, bytes, error))
            return false;
        offset += bytes;
        length -= bytes;
        data = data ? data + bytes : NULL;
    }
    return true;
}

bool vmf_image_disk_save_flush(VmfImageDiskSaveOne *one, GError **error)
{
    return push_piece(one, error) && vmf_page_sink_flush(&one->lane, error);
}

/* ---- in rounds --------------------------------------------------------------------------------------------------- */

/* What was never put is zeros already: a disk's holes cost nothing. */
static bool place_put(void *opaque, unsigned disk, uint64_t offset, const uint8_t *data, uint64_t length, bool first,
                      GError **error)
{
    VmfImageDiskSave *save = opaque;

    return (!data && first) || vmf_image_disk_save_put(&save->disks[disk], offset, data, length, error);
}

static bool place_flush(void *opaque, GError **error)
{
    VmfImageDiskSave *save = opaque;

    for (unsigned i = 0; i < save->source->n_disks; i++)
        if (!vmf_image_disk_save_flush(&save->disks[i], error))
            return false;
    return true;
}

const VmfDiskPlaceOps vmf_image_disk_place_ops = {place_put, place_flush};
