/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/image-format.h"

#include <inttypes.h>
#include <vmferry/error.h>
#include <xxhash.h>

#include "stream/crc32c.h"

/* ---- areas -------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int block; /* -1: of no block */
    uint64_t offset, length, alignment;
} Area;

static bool area_error(const Area *area, const char *what, GError **error)
{
    g_autofree char *of_block = area->block < 0 ? NULL : g_strdup_printf(" of block %d", area->block);

    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT, "%s%s: %" PRIu64 " octets at %" PRIu64 ": %s", area->name,
                of_block ? of_block : "", area->length, area->offset, what);
    return false;
}

/* One area by itself, in a file of @file_size. Afterwards its end can be computed. */
static bool check_area(const Area *area, uint64_t file_size, GError **error)
{
    if (area->length == 0)
        return area_error(area, "is empty", error);
    if (area->offset % area->alignment)
        return area_error(area, "begins at no multiple of its alignment", error);
    if (area->offset > file_size || area->length > file_size - area->offset)
        return area_error(area, "is not within the file", error);
    return true;
}

static int compare_areas(const void *a, const void *b)
{
    const Area *one = a, *other = b;

    return one->offset < other->offset ? -1 : one->offset > other->offset;
}

/* Sorts @areas, each of which was checked by itself. */
static bool check_disjoint(Area *areas, unsigned n, GError **error)
{
    qsort(areas, n, sizeof(*areas), compare_areas);
    for (unsigned i = 1; i < n; i++) {
        if (areas[i].offset < areas[i - 1].offset + areas[i - 1].length)
            return area_error(&areas[i], "overlaps another area", error);
    }
    return true;
}

/* ---- commit block ------------------------------------------------------------------------------------------- */

static const char magic[8] = {'V', 'M', 'F', 'I', 'M', 'A', 'G', 'E'};

enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_FLAGS = 12,
    AT_ID = 16,
    AT_FILE_SIZE = 32,
    AT_HEADER_LENGTH = 40,
    AT_TABLE_OFFSET = 48,
    AT_TABLE_LENGTH = 56,
    AT_TAIL_OFFSET = 64,
    AT_TAIL_LENGTH = 72,
    AT_HEADER_DIGEST = 80,
    AT_TABLE_DIGEST = 96,
    AT_TAIL_DIGEST = 112,
    AT_ROOT_DIGEST = 128,
    AT_RESERVED = 144,
    AT_CRC = 4092,
};

static void put32(uint8_t *at, uint32_t value)
{
    value = GUINT32_TO_LE(value);
    memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
    value = GUINT64_TO_LE(value);
    memcpy(at, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return GUINT32_FROM_LE(value);
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return GUINT64_FROM_LE(value);
}

void vmf_image_commit_encode(VmfImageCommit *commit, uint8_t out[VMF_IMAGE_COMMIT_SIZE])
{
    memset(out, 0, VMF_IMAGE_COMMIT_SIZE);
    memcpy(out + AT_MAGIC, magic, sizeof(magic));
    put32(out + AT_VERSION, commit->with_disks ? VMF_IMAGE_VERSION_DISKS : VMF_IMAGE_VERSION);
    put32(out + AT_FLAGS, commit->flags);
    memcpy(out + AT_ID, commit->id, sizeof(commit->id));
    put64(out + AT_FILE_SIZE, commit->file_size);
    put64(out + AT_HEADER_LENGTH, commit->header_length);
    put64(out + AT_TABLE_OFFSET, commit->table_offset);
    put64(out + AT_TABLE_LENGTH, commit->table_length);
    put64(out + AT_TAIL_OFFSET, commit->tail_offset);
    put64(out + AT_TAIL_LENGTH, commit->tail_length);
    memcpy(out + AT_HEADER_DIGEST, &commit->header, sizeof(commit->header));
    memcpy(out + AT_TABLE_DIGEST, &commit->table, sizeof(commit->table));
    memcpy(out + AT_TAIL_DIGEST, &commit->tail, sizeof(commit->tail));
    commit->root = vmf_image_digest(out, AT_ROOT_DIGEST);
    memcpy(out + AT_ROOT_DIGEST, &commit->root, sizeof(commit->root));
    put32(out + AT_CRC, vmf_crc32c(0, out, AT_CRC));
}

static bool is_zero(const uint8_t *bytes, size_t length)
{
    uint8_t any = 0;

    for (size_t i = 0; i < length; i++)
        any |= bytes[i];
    return any == 0;
}

static bool commit_error(GError **error, VmfErrorCode code, const char *what)
{
    g_set_error(error, VMF_ERROR, code, "commit block: %s", what);
    return false;
}

/* What tells whether the rest of the block may be looked at. */
static bool check_marks(const uint8_t *in, uint64_t storage_size, GError **error)
{
    if (storage_size < VMF_IMAGE_COMMIT_SIZE)
        return commit_error(error, VMF_ERROR_IMAGE_MAGIC, "is not whole");
    if (is_zero(in, VMF_IMAGE_COMMIT_SIZE))
        return commit_error(error, VMF_ERROR_IMAGE_INCOMPLETE, "is zeros");
    if (memcmp(in + AT_MAGIC, magic, sizeof(magic)) != 0)
        return commit_error(error, VMF_ERROR_IMAGE_MAGIC, "does not begin with VMFIMAGE");
    if (get32(in + AT_VERSION) != VMF_IMAGE_VERSION && get32(in + AT_VERSION) != VMF_IMAGE_VERSION_DISKS) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_VERSION, "commit block: image version %u is not known",
                    get32(in + AT_VERSION));
        return false;
    }
    if (!vmf_crc32c_matches(vmf_crc32c(0, in, AT_CRC), get32(in + AT_CRC)))
        return commit_error(error, VMF_ERROR_IMAGE_CRC, "its CRC does not match");
    return true;
}

static void commit_areas(const VmfImageCommit *commit, Area areas[4])
{
    areas[0] = (Area){"commit block", -1, 0, VMF_IMAGE_COMMIT_SIZE, VMF_IMAGE_BLOCK};
    areas[1] = (Area){"header", -1, VMF_IMAGE_HEADER_OFFSET, commit->header_length, VMF_IMAGE_BLOCK};
    areas[2] = (Area){"chunk tables", -1, commit->table_offset, commit->table_length, VMF_IMAGE_BLOCK};
    areas[3] = (Area){"tail", -1, commit->tail_offset, commit->tail_length, VMF_IMAGE_BLOCK};
}

static bool check_commit_ranges(const VmfImageCommit *commit, uint64_t storage_size, GError **error)
{
    Area areas[4];

    if (commit->file_size % VMF_IMAGE_BLOCK)
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "file size is no multiple of 4096");
    if (commit->file_size > storage_size) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT,
                    "commit block: an image of %" PRIu64 " octets, of which there are %" PRIu64, commit->file_size,
                    storage_size);
        return false;
    }
    if (commit->header_length > VMF_IMAGE_HEADER_MAX)
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "header too long");
    if (commit->tail_length > VMF_IMAGE_TAIL_MAX)
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "tail too long");
    if (commit->table_length % sizeof(uint64_t))
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "chunk tables of no whole number of entries");
    commit_areas(commit, areas);
    for (unsigned i = 0; i < G_N_ELEMENTS(areas); i++)
        if (!check_area(&areas[i], commit->file_size, error))
            return false;
    return true;
}

bool vmf_image_commit_decode(const uint8_t in[VMF_IMAGE_COMMIT_SIZE], uint64_t storage_size, VmfImageCommit *commit,
                             GError **error)
{
    *commit = (VmfImageCommit){0};
    if (!check_marks(in, storage_size, error))
        return false;
    commit->with_disks = get32(in + AT_VERSION) == VMF_IMAGE_VERSION_DISKS;
    commit->flags = get32(in + AT_FLAGS);
    memcpy(commit->id, in + AT_ID, sizeof(commit->id));
    commit->file_size = get64(in + AT_FILE_SIZE);
    commit->header_length = get64(in + AT_HEADER_LENGTH);
    commit->table_offset = get64(in + AT_TABLE_OFFSET);
    commit->table_length = get64(in + AT_TABLE_LENGTH);
    commit->tail_offset = get64(in + AT_TAIL_OFFSET);
    commit->tail_length = get64(in + AT_TAIL_LENGTH);
    memcpy(&commit->header, in + AT_HEADER_DIGEST, sizeof(commit->header));
    memcpy(&commit->table, in + AT_TABLE_DIGEST, sizeof(commit->table));
    memcpy(&commit->tail, in + AT_TAIL_DIGEST, sizeof(commit->tail));
    memcpy(&commit->root, in + AT_ROOT_DIGEST, sizeof(commit->root));
    if (commit->flags & ~VMF_IMAGE_LAYER)
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "flags that are not known");
    if (is_zero(commit->id, sizeof(commit->id)))
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "an image id of zeros");
    if (!is_zero(in + AT_RESERVED, AT_CRC - AT_RESERVED))
        return commit_error(error, VMF_ERROR_IMAGE_LAYOUT, "reserved octets that are not zero");
    if (!check_commit_ranges(commit, storage_size, error))
        return false;
    VmfImageDigest root = vmf_image_digest(in, AT_ROOT_DIGEST);
    if (!vmf_image_digest_equal(&root, &commit->root))
        return commit_error(error, VMF_ERROR_IMAGE_DIGEST, "its root digest does not match");
    return true;
}

/* ---- layout ------------------------------------------------------------------------------------------------- */

static bool layout_error(GError **error, const char *what)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT, "layout: %s", what);
    return false;
}

/* Counts the chunks of blocks that are of a size that blocks can have; so the length of each area can be computed. */
static bool number_chunks(VmfImageLayout *layout, GError **error)
{
    layout->n_chunks = 0;
    if (layout->n_blocks == layout->n_disks || layout->n_blocks > VMF_IMAGE_BLOCKS_MAX)
        return layout_error(error, "no RAM block, or too many blocks");
    for (unsigned b = 0; b < layout->n_blocks; b++) {
        VmfImageBlock *block = &layout->blocks[b];
        if (block->n_pages == 0 || block->n_pages > VMF_BLOCK_SIZE_MAX / VMF_PAGE_SIZE)
            return layout_error(error, "a RAM block or disk of a size out of range");
        block->first_chunk = layout->n_chunks;
        layout->n_chunks += vmf_image_block_n_chunks(block);
    }
    return true;
}

/* The next free place for @length octets at a multiple of @alignment; *end follows. */
static uint64_t place(uint64_t *end, uint64_t length, uint64_t alignment)
{
    uint64_t offset = (*end + alignment - 1) / alignment * alignment;

    *end = offset + length;
    return offset;
}

/* No sum here can overflow: blocks have at most 2^48 octets each, all of them 2^57. */
bool vmf_image_layout_compute(VmfImageLayout *layout, const uint64_t *n_pages, unsigned n_blocks, bool layer,
                              uint64_t header_length, GError **error)
{
    uint64_t end = VMF_IMAGE_HEADER_OFFSET + header_length;

    *layout = (VmfImageLayout){.n_blocks = n_blocks};
    for (unsigned b = 0; b < MIN(n_blocks, VMF_IMAGE_BLOCKS_MAX); b++)
        layout->blocks[b].n_pages = n_pages[b];
    if (!number_chunks(layout, error))
        return false;
    if (header_length == 0 || header_length > VMF_IMAGE_HEADER_MAX)
        return layout_error(error, "a header of a length out of range");
    layout->table_length = layout->n_chunks * sizeof(uint64_t);
    layout->table_offset = place(&end, layout->table_length, VMF_IMAGE_BLOCK);
    for (unsigned b = 0; b < n_blocks; b++) {
        VmfImageBlock *block = &layout->blocks[b];
        uint64_t bitmap_length = vmf_image_block_bitmap_length(block);
        block->data_bitmap_offset = place(&end, bitmap_length, VMF_IMAGE_BLOCK);
        if (layer)
            block->zero_bitmap_offset = place(&end, bitmap_length, VMF_IMAGE_BLOCK);
        block->digests_offset = place(&end, vmf_image_block_n_chunks(block) * VMF_IMAGE_BLOCK, VMF_IMAGE_BLOCK);
    }
    for (unsigned b = 0; b < n_blocks; b++)
        layout->blocks[b].pages_offset = place(&end, n_pages[b] * VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    layout->end = end;
    return true;
}

/* What is left to check once each area lies where it can: nothing behind the last one. */
static bool check_file_size(VmfImageLayout *layout, const Area *areas, unsigned n, const VmfImageCommit *commit,
                            GError **error)
{
    uint64_t last = areas[n - 1].offset + areas[n - 1].length;

    layout->end = 0;
    for (unsigned i = 0; i < n; i++)
        if (areas[i].offset != commit->tail_offset)
            layout->end = MAX(layout->end, areas[i].offset + areas[i].length);
    if ((last + VMF_IMAGE_BLOCK - 1) / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK == commit->file_size)
        return true;
    return layout_error(error, "the file does not end with its last area");
}

static unsigned block_areas(const VmfImageLayout *layout, unsigned b, Area *areas)
{
    const VmfImageBlock *block = &layout->blocks[b];
    uint64_t bitmap_length = vmf_image_block_bitmap_length(block);
    unsigned n = 0;

    areas[n++] = (Area){"data bitmap", (int)b, block->data_bitmap_offset, bitmap_length, VMF_IMAGE_BLOCK};
    areas[n++] = (Area){"digest blocks", (int)b, block->digests_offset,
                        vmf_image_block_n_chunks(block) * VMF_IMAGE_BLOCK, VMF_IMAGE_BLOCK};
    areas[n++] = (Area){"pages", (int)b, block->pages_offset, block->n_pages * VMF_PAGE_SIZE, VMF_CHUNK_SIZE};
    if (block->zero_bitmap_offset)
        areas[n++] = (Area){"zero bitmap", (int)b, block->zero_bitmap_offset, bitmap_length, VMF_IMAGE_BLOCK};
    return n;
}

bool vmf_image_layout_check(VmfImageLayout *layout, const VmfImageCommit *commit, GError **error)
{
    g_autofree Area *areas = g_new0(Area, 4 + 4 * VMF_IMAGE_BLOCKS_MAX);
    bool layer = commit->flags & VMF_IMAGE_LAYER;
    unsigned n = 4;

    if (!number_chunks(layout, error))
        return false;
    layout->table_offset = commit->table_offset;
    layout->table_length = commit->table_length;
    if (commit->table_length != layout->n_chunks * sizeof(uint64_t))
        return layout_error(error, "chunk tables with too few entries or too many");
    commit_areas(commit, areas);
    for (unsigned b = 0; b < layout->n_blocks; b++) {
        if (layer != (layout->blocks[b].zero_bitmap_offset != 0))
            return layout_error(error, layer ? "a layer without zero bitmap" : "a zero bitmap, though it is no layer");
        n += block_areas(layout, b, &areas[n]);
    }
    for (unsigned i = 0; i < n; i++)
        if (!check_area(&areas[i], commit->file_size, error))
            return false;
    return check_disjoint(areas, n, error) && check_file_size(layout, areas, n, commit, error);
}

/* ---- chunks ------------------------------------------------------------------------------------------------- */

uint64_t vmf_image_chunk_entry(const VmfImageChunk *chunk)
{
    struct {
        uint64_t data[VMF_CHUNK_WORDS], zero[VMF_CHUNK_WORDS], digests[VMF_CHUNK_PAGES];
    } octets; /* little-endian */
    bool has_data = !vmf_page_set_is_empty(&chunk->data);

    G_STATIC_ASSERT(sizeof(octets) == 64 + 64 + VMF_IMAGE_BLOCK);
    if (!has_data && vmf_page_set_is_empty(&chunk->zero))
        return 0;
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        octets.data[w] = GUINT64_TO_LE(chunk->data.words[w]);
        octets.zero[w] = GUINT64_TO_LE(chunk->zero.words[w]);
    }
    for (unsigned page = 0; has_data && page < VMF_CHUNK_PAGES; page++)
        octets.digests[page] = GUINT64_TO_LE(chunk->digests[page]);
    uint64_t entry = XXH3_64bits(&octets, has_data ? sizeof(octets) : offsetof(typeof(octets), digests));
    return entry ? entry : 1;
}

/* What XXH3-64 makes of 4096 zeros. */
#define DIGEST_OF_ZEROS UINT64_C(0x93d76fe148c689ba)

static bool check_digests(const VmfImageChunk *chunk, GError **error)
{
    bool fit = true, zeros = false;

    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        fit &= (chunk->digests[page] != 0) == vmf_page_set_test(&chunk->data, page);
        zeros |= chunk->digests[page] == DIGEST_OF_ZEROS;
    }
    if (!fit)
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_DIGEST, "digest block: does not go with the data bitmap");
    else if (zeros)
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_BITMAP, "bitmap: the data bit of a page of zeros");
    return fit && !zeros;
}

bool vmf_image_chunk_check(const VmfImageChunk *chunk, unsigned n_pages, uint64_t entry, GError **error)
{
    VmfPageSet both = vmf_page_set_and(&chunk->data, &chunk->zero);
    VmfPageSet either = vmf_page_set_or(&chunk->data, &chunk->zero);
    VmfPageSet inside = vmf_page_set_slice(&either, 0, n_pages);
    VmfPageSet outside = vmf_page_set_and_not(&either, &inside);

    if (!vmf_image_entry_equal(vmf_image_chunk_entry(chunk), entry)) {
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_DIGEST,
                            "bitmaps and digest block: do not match the chunk table");
        return false;
    }
    if (!vmf_page_set_is_empty(&outside)) {
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_BITMAP, "bitmap: a bit behind the last page");
        return false;
    }
    if (!vmf_page_set_is_empty(&both)) {
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_BITMAP, "bitmaps: a page with both bits");
        return false;
    }
    return check_digests(chunk, error);
}
