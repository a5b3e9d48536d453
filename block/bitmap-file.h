/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file of a disk's persistent bitmaps (docs/bitmap-format.rst): what its sectors carry, and reading one as hostile
 * input. When they are written, and what that is good for, is bitmap-store.c's business.
 */
#ifndef BLOCK_BITMAP_FILE_H
#define BLOCK_BITMAP_FILE_H

#include "block/bitmap.h"
#include "stream/storage.h"

#define VMF_BITMAP_SECTOR 512u
#define VMF_BITMAP_REGION_MIN (4ull << 20)
#define VMF_BITMAP_INTENT_PIECES_MAX 32u

/* Which kind of thing a sector carries; bits of bitmap n: VMF_BITMAP_BITS + n. */
enum { VMF_BITMAP_HEADER = 1, VMF_BITMAP_INTENTS = 2, VMF_BITMAP_ENTRY = 3, VMF_BITMAP_BITS = 16 };

typedef struct {
    uint32_t id; /* of this writing of the file, in each of its sectors */
    uint64_t disk_bytes;
    uint64_t region_bytes;
    uint32_t n_regions;
    uint32_t n_intent_pieces;
    uint32_t n_bitmaps;
    bool in_use;      /* regions with an intent may differ from what the bits say */
    int64_t mtime_ns; /* not in use: of the disk's file; 0: it has none */
} VmfBitmapHeader;

/* For a disk of so many bytes; no bitmaps, not in use, no id. */
void vmf_bitmap_header_init(VmfBitmapHeader *header, uint64_t disk_bytes);

/* One sector. @words, @n of them (at most VMF_BITMAP_PIECE_WORDS): little-endian they become. */
void vmf_bitmap_encode(uint8_t sector[VMF_BITMAP_SECTOR], const VmfBitmapHeader *header, uint32_t kind, uint32_t index,
                       const uint64_t *words, unsigned n);
void vmf_bitmap_encode_header(uint8_t sector[VMF_BITMAP_SECTOR], const VmfBitmapHeader *header, uint64_t n_sectors);
void vmf_bitmap_encode_entry(uint8_t sector[VMF_BITMAP_SECTOR], const VmfBitmapHeader *header, uint32_t index,
                             const VmfBitmap *bitmap, uint64_t first_sector);

/* Where things are, in sectors. The bits of a bitmap follow those of the one before it. */
uint64_t vmf_bitmap_file_entries(const VmfBitmapHeader *header);
uint64_t vmf_bitmap_file_bits(const VmfBitmapHeader *header); /* of the first bitmap */

/* Begins as one does. */
bool vmf_bitmap_file_is_one(int fd);
/*
 * Reads all. @bitmaps gets VmfBitmap, persistent; those with damage have their problem. @intents:
 * VMF_BITMAP_PIECE_WORDS words for each piece that vmf_bitmap_header_init() says there are; damage in them is a problem
 * of all that record. VMF_ERROR_BITMAP: damaged as a whole, or of another disk; nothing was added then.
 */
bool vmf_bitmap_file_read(VmfStorage *storage, uint64_t disk_bytes, VmfBitmapHeader *header, uint64_t *intents,
                          GPtrArray *bitmaps, GError **error);

#endif
