/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an image that is being written holds: the bitmaps and the page digests of each block, as the file will have them
 * (little-endian words), so that they are written from where they lie. Memory that no page with data needs is never
 * touched.
 *
 * One thread at a time changes or reads a chunk; chunks share no word.
 */
#ifndef RAM_IMAGE_TABLES_H
#define RAM_IMAGE_TABLES_H

#include "ram/image-format.h"

typedef struct {
    uint64_t n_chunks;
    uint64_t n_words;   /* of each bitmap here: whole blocks of 4096 octets, those behind the last page are zero */
    uint64_t *data;     /* by page, a bit */
    uint64_t *zero;     /* likewise; NULL: no layer */
    uint64_t *occupied; /* likewise, host order: places that were written or allocated */
    uint64_t *digests;  /* by page */
} VmfImageBlockTables;

typedef struct {
    unsigned n_blocks;
    VmfImageBlockTables blocks[VMF_IMAGE_BLOCKS_MAX];
} VmfImageTables;

/* All pages absent. NULL with VMF_ERROR_MEMORY. */
VmfImageTables *vmf_image_tables_new(const VmfImageLayout *layout, bool layer, GError **error);
void vmf_image_tables_free(VmfImageTables *tables);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageTables, vmf_image_tables_free)

/* The image has @pages of the chunk, with @digests (by page of the chunk, host order, not 0). */
void vmf_image_tables_put_data(VmfImageTables *tables, unsigned block, uint64_t chunk, const VmfPageSet *pages,
                               const uint64_t *digests);
/* @pages of the chunk are zeros: they lose bit and digest, and get the other bit in a layer. */
void vmf_image_tables_put_zero(VmfImageTables *tables, unsigned block, uint64_t chunk, const VmfPageSet *pages);
/* Places [first_page, first_page + n_pages) of the block are not holes. */
void vmf_image_tables_occupy(VmfImageTables *tables, unsigned block, uint64_t first_page, uint64_t n_pages);

void vmf_image_tables_chunk(const VmfImageTables *tables, unsigned block, uint64_t chunk, VmfImageChunk *out);
bool vmf_image_tables_chunk_has_data(const VmfImageTables *tables, unsigned block, uint64_t chunk);
/* Pages of the chunk that have a bit. */
VmfPageSet vmf_image_tables_present(const VmfImageTables *tables, unsigned block, uint64_t chunk);
/* Places of the chunk that are occupied for nothing. */
VmfPageSet vmf_image_tables_idle(const VmfImageTables *tables, unsigned block, uint64_t chunk);

#endif
