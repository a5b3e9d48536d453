/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One named bitmap, in memory. Nothing here locks: bitmap-set.c does, which owns it.
 *
 * It knows which pieces of itself differ from what its file has: a piece is what one sector of the file carries
 * (bitmap-file.h). For a backup its bits are set aside: it goes on with none, while the file keeps both, until the
 * backup is done and they are dropped, or has failed and they are merged again.
 */
#ifndef BLOCK_BITMAP_H
#define BLOCK_BITMAP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define VMF_BITMAP_PIECE_WORDS 62u /* of 64 bits */

typedef struct {
    char *name;
    uint64_t size_bytes; /* of the disk */
    uint32_t granularity_bytes;
    uint64_t n_granules;
    uint64_t n_words;
    uint64_t n_pieces;
    uint64_t *words;
    uint64_t *aside; /* NULL: no backup has it */
    uint64_t *stale; /* by piece: differs from the file */
    bool recording;
    bool persistent;
    bool file_records; /* what its file is to say of recording */
    char *problem;     /* inconsistent: why; NULL: it is sound */
} VmfBitmap;

/* Clean, recording. NULL with @error: VMF_ERROR_USAGE (name, granularity), VMF_ERROR_MEMORY. */
VmfBitmap *vmf_bitmap_new(const char *name, uint64_t size_bytes, uint32_t granularity_bytes, GError **error);
void vmf_bitmap_free(VmfBitmap *bitmap);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfBitmap, vmf_bitmap_free)

/* All granules that [offset, offset + length) touches; the range lies within the disk. */
void vmf_bitmap_set(VmfBitmap *bitmap, uint64_t offset, uint64_t length);
void vmf_bitmap_clear(VmfBitmap *bitmap);
/* What of @from is set; both are of one disk. */
void vmf_bitmap_merge(VmfBitmap *bitmap, const VmfBitmap *from);
bool vmf_bitmap_is_set(const VmfBitmap *bitmap, uint64_t offset);
uint64_t vmf_bitmap_count(const VmfBitmap *bitmap); /* granules */
/* The first run of set granules at or after @from, in bytes, within the disk. False: there is none. */
bool vmf_bitmap_next(const VmfBitmap *bitmap, uint64_t from, uint64_t *offset, uint64_t *length);

/* Not while it is aside. VMF_ERROR_MEMORY. */
bool vmf_bitmap_set_aside(VmfBitmap *bitmap, GError **error);
/* @keep: they are set again, else dropped. */
void vmf_bitmap_end_aside(VmfBitmap *bitmap, bool keep);

/* What the file, or another host, is to have of a piece: what is aside as well. */
void vmf_bitmap_look_at_piece(const VmfBitmap *bitmap, uint64_t piece, uint64_t words[VMF_BITMAP_PIECE_WORDS]);
/* The same, and it is not stale any more. */
void vmf_bitmap_take_piece(VmfBitmap *bitmap, uint64_t piece, uint64_t words[VMF_BITMAP_PIECE_WORDS]);
/* All of it is clean. */
void vmf_bitmap_forget_piece(VmfBitmap *bitmap, uint64_t piece);
/* Into a clean one. False: bits beyond the disk are set. */
bool vmf_bitmap_put_piece(VmfBitmap *bitmap, uint64_t piece, const uint64_t words[VMF_BITMAP_PIECE_WORDS]);
/* The first stale piece at or after @from; n_pieces: none. */
uint64_t vmf_bitmap_next_stale(const VmfBitmap *bitmap, uint64_t from);

#endif
