/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/image-gaps.h"

#include <inttypes.h>
#include <stdlib.h>
#include <vmferry/error.h>

#define PIECE (256u << 10)

typedef struct {
    uint64_t offset, end;
} Area;

static int compare(const void *a, const void *b)
{
    const Area *one = a, *other = b;

    return one->offset < other->offset ? -1 : one->offset > other->offset;
}

static void add(GArray *areas, uint64_t offset, uint64_t length)
{
    Area area = {offset, offset + length};

    g_array_append_val(areas, area);
}

static GArray *areas_of(const VmfImageFile *file)
{
    GArray *areas = g_array_new(false, false, sizeof(Area));
    const VmfImageCommit *commit = &file->commit;

    add(areas, 0, VMF_IMAGE_COMMIT_SIZE);
    add(areas, VMF_IMAGE_HEADER_OFFSET, commit->header_length);
    add(areas, commit->table_offset, commit->table_length);
    add(areas, commit->tail_offset, commit->tail_length);
    for (unsigned b = 0; b < file->layout.n_blocks; b++) {
        const VmfImageBlock *block = &file->layout.blocks[b];
        add(areas, block->data_bitmap_offset, vmf_image_block_bitmap_length(block));
        if (block->zero_bitmap_offset)
            add(areas, block->zero_bitmap_offset, vmf_image_block_bitmap_length(block));
        add(areas, block->digests_offset, vmf_image_block_n_chunks(block) * VMF_IMAGE_BLOCK);
        add(areas, block->pages_offset, block->n_pages * VMF_PAGE_SIZE);
    }
    add(areas, commit->file_size, 0);
    g_array_sort(areas, compare);
    return areas;
}

static uint64_t round_up(uint64_t offset)
{
    return (offset + VMF_IMAGE_BLOCK - 1) / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK;
}

static bool is_zero(const uint8_t *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* [@from, @end) lies in the blocks that are read. */
static bool check_piece(VmfImageFile *file, uint64_t from, uint64_t end, uint8_t *piece, GError **error)
{
    uint64_t start = from / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK;

    if (!vmf_storage_read(file->storage, start, piece, round_up(end) - start, error))
        return false;
    if (is_zero(piece + (from - start), end - from))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT,
                "%s: octets %" PRIu64 " to %" PRIu64 ": are between areas and not zero",
                vmf_storage_name(file->storage), from, end - 1);
    return false;
}

/* Areas begin, and so gaps end, where a block does. */
static bool check_gap(VmfImageFile *file, uint64_t from, uint64_t end, uint8_t *piece, GError **error)
{
    uint64_t head = MIN(round_up(from), end);

    if (head > from && !check_piece(file, from, head, piece, error))
        return false;
    for (from = head; from < end;) {
        VmfExtentKind kind = VMF_EXTENT_DATA;
        uint64_t length = end - from;
        if (!vmf_storage_extent(file->storage, from, length, &kind, &length, error))
            return false;
        if (kind == VMF_EXTENT_ZERO && length >= VMF_IMAGE_BLOCK) {
            from += length / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK;
            continue;
        }
        length = MIN(MIN(round_up(length), PIECE), end - from);
        if (!check_piece(file, from, from + length, piece, error))
            return false;
        from += length;
    }
    return true;
}

bool vmf_image_gaps_check(VmfImageFile *file, GError **error)
{
    g_autoptr(GArray) areas = areas_of(file);
    uint8_t *piece = aligned_alloc(VMF_IMAGE_BLOCK, PIECE);
    bool good = piece != NULL;

    if (!piece)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory");
    for (guint i = 1; good && i < areas->len; i++)
        good =
            check_gap(file, g_array_index(areas, Area, i - 1).end, g_array_index(areas, Area, i).offset, piece, error);
    free(piece);
    return good;
}
