/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Chunks are looked at in pieces of PIECE neighbours, so that who goes through an image in order
 * reads digest blocks 64 KiB at a time, and who jumps about in it pays little more than for one. A piece is read under
 * one of a few locks; what it holds is published chunk by chunk with the chunk's state, after which it never changes
 * and is read without a lock. A chunk that does not match its entry stays unknown: it is read, and refused, each time
 * anew.
 *
 * A chunk whose entry is 0 has no bit: that is known without reading, so memory that was never used costs nothing.
 */
#include "ram/image-index.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <vmferry/error.h>

#include "ram/sparse-array.h"

#define PIECE 16u /* chunks; their bits lie within one block of a bitmap */
#define N_LOCKS 16u
#define BITS_SIZE (VMF_CHUNK_WORDS * sizeof(uint64_t)) /* of one chunk in a bitmap */

G_STATIC_ASSERT(VMF_IMAGE_BLOCK % (PIECE * BITS_SIZE) == 0);

typedef uint64_t Digests[VMF_CHUNK_PAGES];

struct VmfImageIndex {
    uint64_t n_chunks;
    _Atomic uint8_t *known; /* by chunk of the image, as all of these */
    VmfPageSet *data;
    VmfPageSet *zero;
    Digests *digests;
    pthread_mutex_t locks[N_LOCKS];
};

/* As it is read: neighbouring chunks of one block. */
typedef struct {
    uint64_t data[VMF_IMAGE_BLOCK / sizeof(uint64_t)];
    uint64_t zero[VMF_IMAGE_BLOCK / sizeof(uint64_t)];
    Digests digests[PIECE];
} Piece;

VmfImageIndex *vmf_image_index_new(VmfImageFile *file, GError **error)
{
    VmfImageIndex *index = g_new0(VmfImageIndex, 1);
    uint64_t n = file->layout.n_chunks;

    index->n_chunks = n;
    for (unsigned i = 0; i < N_LOCKS; i++)
        pthread_mutex_init(&index->locks[i], NULL);
    index->known = vmf_sparse_array_new(n, sizeof(*index->known), "image index", error);
    index->data = index->known ? vmf_sparse_array_new(n, sizeof(*index->data), "image index", error) : NULL;
    index->zero = index->data ? vmf_sparse_array_new(n, sizeof(*index->zero), "image index", error) : NULL;
    index->digests = index->zero ? vmf_sparse_array_new(n, sizeof(*index->digests), "image index", error) : NULL;
    if (index->digests)
        return index;
    vmf_image_index_free(index);
    return NULL;
}

void vmf_image_index_free(VmfImageIndex *index)
{
    if (!index)
        return;
    vmf_sparse_array_free((void *)index->known, index->n_chunks, sizeof(*index->known));
    vmf_sparse_array_free(index->data, index->n_chunks, sizeof(*index->data));
    vmf_sparse_array_free(index->zero, index->n_chunks, sizeof(*index->zero));
    vmf_sparse_array_free(index->digests, index->n_chunks, sizeof(*index->digests));
    for (unsigned i = 0; i < N_LOCKS; i++)
        pthread_mutex_destroy(&index->locks[i]);
    g_free(index);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static Piece *piece_new(GError **error)
{
    Piece *piece = aligned_alloc(VMF_IMAGE_BLOCK, sizeof(Piece));

    G_STATIC_ASSERT(sizeof(Piece) % VMF_IMAGE_BLOCK == 0);
    if (!piece)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image index: no memory for a piece");
    return piece;
}

/* The block of the bitmap at @offset that has the bits of @chunk. */
static bool read_bits(VmfImageFile *file, uint64_t offset, uint64_t chunk, uint64_t *bits, GError **error)
{
    return vmf_storage_read(file->storage, offset + chunk * BITS_SIZE / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK, bits,
                            VMF_IMAGE_BLOCK, error);
}

static bool read_bitmaps(VmfImageFile *file, const VmfImageBlock *block, uint64_t chunk, Piece *piece, GError **error)
{
    if (!read_bits(file, block->data_bitmap_offset, chunk, piece->data, error))
        return false;
    if (block->zero_bitmap_offset)
        return read_bits(file, block->zero_bitmap_offset, chunk, piece->zero, error);
    memset(piece->zero, 0, sizeof(piece->zero));
    return true;
}

static bool read_digests(VmfImageFile *file, const VmfImageBlock *block, uint64_t first, unsigned n, Digests *digests,
                         GError **error)
{
    return vmf_storage_read(file->storage, block->digests_offset + first * VMF_IMAGE_BLOCK, digests,
                            (size_t)n * VMF_IMAGE_BLOCK, error);
}

/* Words behind the block's end are padding, and count as zero. */
static VmfPageSet take_bits(const VmfImageBlock *block, uint64_t chunk, const uint64_t *bits)
{
    const uint64_t *words = bits + chunk * BITS_SIZE % VMF_IMAGE_BLOCK / sizeof(*bits);
    uint64_t n_words = (block->n_pages + 63) / 64;
    VmfPageSet set = {{0}};

    for (unsigned w = 0; w < VMF_CHUNK_WORDS && chunk * VMF_CHUNK_WORDS + w < n_words; w++)
        set.words[w] = GUINT64_FROM_LE(words[w]);
    return set;
}

static bool take_chunk(VmfImageFile *file, unsigned b, uint64_t chunk, const Piece *piece, const Digests *digests,
                       VmfImageChunk *out, GError **error)
{
    const VmfImageBlock *block = &file->layout.blocks[b];
    unsigned n_pages = (unsigned)MIN(block->n_pages - chunk * VMF_CHUNK_PAGES, VMF_CHUNK_PAGES);

    out->data = take_bits(block, chunk, piece->data);
    out->zero = take_bits(block, chunk, piece->zero);
    bool has_digests = !vmf_page_set_is_empty(&out->data);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        out->digests[page] = has_digests ? GUINT64_FROM_LE((*digests)[page]) : 0;
    if (vmf_image_chunk_check(out, n_pages, file->table[block->first_chunk + chunk], error))
        return true;
    g_autofree char *title = vmf_image_file_block_title(file, b);
    g_prefix_error(error, "%s: %s, chunk %" PRIu64 ": ", vmf_storage_name(file->storage), title, chunk);
    return false;
}

/* ---- chunks that are kept ---------------------------------------------------------------------------------------- */

static bool is_known(const VmfImageIndex *index, uint64_t chunk)
{
    return atomic_load_explicit(&index->known[chunk], memory_order_acquire);
}

static bool is_wanted(const VmfImageFile *file, uint64_t chunk)
{
    return file->table[chunk] != 0 && !is_known(file->index, chunk);
}

static void publish(VmfImageIndex *index, uint64_t chunk, const VmfImageChunk *content)
{
    index->data[chunk] = content->data;
    if (!vmf_page_set_is_empty(&content->zero))
        index->zero[chunk] = content->zero;
    if (!vmf_page_set_is_empty(&content->data))
        memcpy(index->digests[chunk], content->digests, sizeof(Digests));
    atomic_store_explicit(&index->known[chunk], 1, memory_order_release);
}

/* Reads the piece that @wanted is in. Others of it that are damaged are told of when they are wanted. */
static bool load_piece(VmfImageFile *file, unsigned b, uint64_t wanted, Piece *piece, GError **error)
{
    const VmfImageBlock *block = &file->layout.blocks[b];
    uint64_t first = wanted / PIECE * PIECE, end = MIN(first + PIECE, vmf_image_block_n_chunks(block));
    VmfImageChunk chunk;
    bool good = false;

    while (!is_wanted(file, block->first_chunk + first))
        first++;
    while (!is_wanted(file, block->first_chunk + end - 1))
        end--;
    if (!read_bitmaps(file, block, first, piece, error) ||
        !read_digests(file, block, first, (unsigned)(end - first), piece->digests, error))
        return false;
    for (uint64_t c = first; c < end; c++) {
        if (!is_wanted(file, block->first_chunk + c))
            continue;
        if (take_chunk(file, b, c, piece, &piece->digests[c - first], &chunk, c == wanted ? error : NULL)) {
            publish(file->index, block->first_chunk + c, &chunk);
            good |= c == wanted;
        }
    }
    return good;
}

static bool load(VmfImageFile *file, unsigned b, uint64_t chunk, GError **error)
{
    VmfImageIndex *index = file->index;
    uint64_t in_image = file->layout.blocks[b].first_chunk + chunk;
    pthread_mutex_t *lock = &index->locks[(b + chunk / PIECE) % N_LOCKS];
    Piece *piece = piece_new(error);

    if (!piece)
        return false;
    pthread_mutex_lock(lock);
    bool good = is_known(index, in_image) || load_piece(file, b, chunk, piece, error);
    pthread_mutex_unlock(lock);
    free(piece);
    return good;
}

bool vmf_image_file_chunk(VmfImageFile *file, unsigned block, uint64_t chunk, bool digests, VmfImageChunk *out,
                          GError **error)
{
    const VmfImageIndex *index = file->index;
    uint64_t in_image = file->layout.blocks[block].first_chunk + chunk;

    g_assert(block < file->layout.n_blocks && chunk < vmf_image_block_n_chunks(&file->layout.blocks[block]));
    if (file->table[in_image] == 0) {
        memset(out, 0, digests ? sizeof(*out) : offsetof(VmfImageChunk, digests));
        return true;
    }
    if (!is_known(index, in_image) && !load(file, block, chunk, error))
        return false;
    out->data = index->data[in_image];
    out->zero = index->zero[in_image];
    if (digests)
        memcpy(out->digests, index->digests[in_image], sizeof(out->digests));
    return true;
}

bool vmf_image_index_verify(VmfImageFile *file, unsigned block, uint64_t first, GError **error)
{
    static const Digests none;
    const VmfImageBlock *of = &file->layout.blocks[block];
    uint64_t end = MIN(first + VMF_IMAGE_INDEX_UNIT, vmf_image_block_n_chunks(of));
    Piece *piece = piece_new(error);
    VmfImageChunk content;

    bool good = piece && read_bitmaps(file, of, first, piece, error);
    for (uint64_t chunk = first; good && chunk < end; chunk++)
        if (file->table[of->first_chunk + chunk] == 0)
            good = take_chunk(file, block, chunk, piece, &none, &content, error);
    free(piece);
    return good;
}
