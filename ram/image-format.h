/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * docs/fixed-ram-format.rst in C: commit block, layout, chunk table, the records that only images have. Pure: nothing
 * here reads or writes a file.
 */
#ifndef RAM_IMAGE_FORMAT_H
#define RAM_IMAGE_FORMAT_H

#include "ram/page-set.h"
#include "stream/record.h"

#define VMF_IMAGE_BLOCK 4096u /* octets: unit of all areas; size of the commit block and of a digest block */
#define VMF_IMAGE_COMMIT_SIZE VMF_IMAGE_BLOCK
#define VMF_IMAGE_HEADER_OFFSET VMF_IMAGE_BLOCK
#define VMF_IMAGE_VERSION 1u       /* without disks */
#define VMF_IMAGE_VERSION_DISKS 2u /* with the content of some */
#define VMF_IMAGE_HEADER_MAX (1u << 20)
#define VMF_IMAGE_TAIL_MAX (64u << 20)
#define VMF_IMAGE_ID_SIZE 16
#define VMF_IMAGE_DIGEST_SIZE 16
#define VMF_IMAGE_CHAIN_MAX 64u
#define VMF_IMAGE_DISKS_MAX 256u
#define VMF_IMAGE_BLOCKS_MAX (VMF_RAM_BLOCKS_MAX + VMF_IMAGE_DISKS_MAX)
#define VMF_IMAGE_PARENT_NAME_MAX 4095u
#define VMF_IMAGE_LAYER (1u << 0)

/* XXH3-128 in canonical form. */
typedef struct {
    uint8_t bytes[VMF_IMAGE_DIGEST_SIZE];
} VmfImageDigest;
VmfImageDigest vmf_image_digest(const void *data, size_t length);
/* These two decide whether something is damaged. As with CRCs (stream/crc32c.h), fuzz targets have a copy that says yes to all. */
bool vmf_image_digest_equal(const VmfImageDigest *a, const VmfImageDigest *b);
bool vmf_image_entry_equal(uint64_t computed, uint64_t given); /* entries of chunk tables */

/* ---- commit block ------------------------------------------------------------------------------------------- */

typedef struct {
    bool with_disks; /* the version */
    uint32_t flags;  /* VMF_IMAGE_LAYER */
    uint8_t id[VMF_IMAGE_ID_SIZE];
    uint64_t file_size;
    uint64_t header_length;
    uint64_t table_offset, table_length;
    uint64_t tail_offset, tail_length;
    VmfImageDigest header, table, tail;
    VmfImageDigest root; /* encode fills it in */
} VmfImageCommit;

void vmf_image_commit_encode(VmfImageCommit *commit, uint8_t out[VMF_IMAGE_COMMIT_SIZE]);
/* All checks that need nothing but the block itself. @storage_size: of what it was read from. */
bool vmf_image_commit_decode(const uint8_t in[VMF_IMAGE_COMMIT_SIZE], uint64_t storage_size, VmfImageCommit *commit,
                             GError **error);

/* ---- layout ------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t n_pages;      /* of the block: from its RAM_BLOCK or GUEST_DISK record, not in LAYOUT */
    uint64_t pages_offset; /* a multiple of VMF_CHUNK_SIZE */
    uint64_t data_bitmap_offset;
    uint64_t zero_bitmap_offset; /* 0: no layer */
    uint64_t digests_offset;
    uint64_t first_chunk; /* the block's first entry in the chunk tables: derived */
} VmfImageBlock;

/* A disk whose content is in the image is one more block: behind those of RAM, in pages as they are. */
typedef struct {
    unsigned n_blocks;
    unsigned n_disks; /* of them, the last ones. Set by whoever knows, after the layout was computed or read */
    VmfImageBlock blocks[VMF_IMAGE_BLOCKS_MAX];
    uint64_t n_chunks;     /* of all blocks */
    uint64_t table_offset; /* likewise from the commit block when read */
    uint64_t table_length;
    uint64_t end; /* of the last area: where the tail goes */
} VmfImageLayout;

/* Lays out an image whose header has @header_length octets (known ahead: LAYOUT has a fixed length). False: no block,
 * or a block or a header of a size that none has. */
bool vmf_image_layout_compute(VmfImageLayout *layout, const uint64_t *n_pages, unsigned n_blocks, bool layer,
                              uint64_t header_length, GError **error);
/* Octets of LAYOUT's record with header and padding: for header_length ahead of the layout. */
size_t vmf_image_layout_record_size(unsigned n_blocks);
bool vmf_image_layout_write(const VmfImageLayout *layout, VmfRecordWriter *writer, GError **error);
/* @layout->n_blocks and n_pages are set by the caller; the rest is filled in, as the file says. */
bool vmf_image_layout_decode(const VmfRecord *record, bool swap, VmfImageLayout *layout, GError **error);
/* Every area against the others and the file: alignment, overlaps, ends, table length. After the decode.
 * VMF_ERROR_IMAGE_LAYOUT. */
bool vmf_image_layout_check(VmfImageLayout *layout, const VmfImageCommit *commit, GError **error);

/* Pages of a disk: the last one may be filled up with zeros. */
static inline uint64_t vmf_image_disk_n_pages(uint64_t size_bytes)
{
    return size_bytes / VMF_PAGE_SIZE + (size_bytes % VMF_PAGE_SIZE != 0);
}

static inline uint64_t vmf_image_block_n_chunks(const VmfImageBlock *block)
{
    return (block->n_pages + VMF_CHUNK_PAGES - 1) / VMF_CHUNK_PAGES;
}
static inline uint64_t vmf_image_block_bitmap_length(const VmfImageBlock *block)
{
    return (block->n_pages + 63) / 64 * 8;
}
static inline uint64_t vmf_image_chunk_offset(const VmfImageBlock *block, uint64_t chunk)
{
    return block->pages_offset + chunk * VMF_CHUNK_SIZE;
}

/* ---- chunks ------------------------------------------------------------------------------------------------- */

/* What an image says of a chunk, in host order. */
typedef struct {
    VmfPageSet data, zero;
    uint64_t digests[VMF_CHUNK_PAGES]; /* 0 for pages without data */
} VmfImageChunk;

/* The chunk's entry in the table. */
uint64_t vmf_image_chunk_entry(const VmfImageChunk *chunk);
/* First @entry, the chunk's in the table (VMF_ERROR_IMAGE_DIGEST); then bits behind the end, both bits of a page, the
 * data bit of a page of zeros (VMF_ERROR_IMAGE_BITMAP), digests that do not go with the bits
 * (VMF_ERROR_IMAGE_DIGEST). */
bool vmf_image_chunk_check(const VmfImageChunk *chunk, unsigned n_pages, uint64_t entry, GError **error);

/* ---- records ------------------------------------------------------------------------------------------------ */

typedef struct {
    uint8_t id[VMF_IMAGE_ID_SIZE];
    VmfImageDigest root;
    char *name; /* owned */
} VmfImageParent;
void vmf_image_parent_clear(VmfImageParent *parent);
bool vmf_image_parent_write(const VmfImageParent *parent, VmfRecordWriter *writer, GError **error);
bool vmf_image_parent_decode(const VmfRecord *record, bool swap, VmfImageParent *out, GError **error);

typedef struct {
    bool contained;
    uint64_t size_bytes;
    char *name, *identity, *mark; /* owned */
} VmfImageDisk;
void vmf_image_disk_clear(VmfImageDisk *disk);
bool vmf_image_disk_write(const VmfImageDisk *disk, VmfRecordWriter *writer, GError **error);
bool vmf_image_disk_decode(const VmfRecord *record, bool swap, VmfImageDisk *out, GError **error);

#endif
