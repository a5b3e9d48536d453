/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/image-tables.h"

#include "ram/sparse-array.h"

#define WORDS_PER_BLOCK (VMF_IMAGE_BLOCK / sizeof(uint64_t))

static bool block_init(VmfImageBlockTables *own, const VmfImageBlock *block, bool layer, GError **error)
{
    static const char what[] = "image tables";
    uint64_t n_words = vmf_image_block_n_chunks(block) * VMF_CHUNK_WORDS;

    own->n_chunks = vmf_image_block_n_chunks(block);
    own->n_words = (n_words + WORDS_PER_BLOCK - 1) / WORDS_PER_BLOCK * WORDS_PER_BLOCK;
    own->data = vmf_sparse_array_new(own->n_words, sizeof(uint64_t), what, error);
    if (!own->data)
        return false;
    own->occupied = vmf_sparse_array_new(own->n_words, sizeof(uint64_t), what, error);
    if (!own->occupied)
        return false;
    own->digests = vmf_sparse_array_new(own->n_chunks, VMF_IMAGE_BLOCK, what, error);
    if (!own->digests)
        return false;
    if (layer)
        own->zero = vmf_sparse_array_new(own->n_words, sizeof(uint64_t), what, error);
    return !layer || own->zero;
}

VmfImageTables *vmf_image_tables_new(const VmfImageLayout *layout, bool layer, GError **error)
{
    g_autoptr(VmfImageTables) tables = g_new0(VmfImageTables, 1);

    for (unsigned b = 0; b < layout->n_blocks; b++) {
        tables->n_blocks++;
        if (!block_init(&tables->blocks[b], &layout->blocks[b], layer, error))
            return NULL;
    }
    return g_steal_pointer(&tables);
}

void vmf_image_tables_free(VmfImageTables *tables)
{
    for (unsigned b = 0; tables && b < tables->n_blocks; b++) {
        VmfImageBlockTables *own = &tables->blocks[b];
        vmf_sparse_array_free(own->data, own->n_words, sizeof(uint64_t));
        vmf_sparse_array_free(own->zero, own->n_words, sizeof(uint64_t));
        vmf_sparse_array_free(own->occupied, own->n_words, sizeof(uint64_t));
        vmf_sparse_array_free(own->digests, own->n_chunks, VMF_IMAGE_BLOCK);
    }
    g_free(tables);
}

static void put_digests(uint64_t *to, const uint64_t *from, uint64_t pages)
{
    for (; pages; pages &= pages - 1) {
        unsigned page = (unsigned)__builtin_ctzll(pages);
        to[page] = from ? GUINT64_TO_LE(from[page]) : 0;
    }
}

void vmf_image_tables_put_data(VmfImageTables *tables, unsigned block, uint64_t chunk, const VmfPageSet *pages,
                               const uint64_t *digests)
{
    VmfImageBlockTables *own = &tables->blocks[block];

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        uint64_t word = chunk * VMF_CHUNK_WORDS + w, bits = GUINT64_TO_LE(pages->words[w]);
        if (!bits)
            continue;
        own->data[word] |= bits;
        own->occupied[word] |= pages->words[w];
        if (own->zero && own->zero[word] & bits)
            own->zero[word] &= ~bits;
        put_digests(&own->digests[word * 64], &digests[w * 64], pages->words[w]);
    }
}

/* Only what has to change is written: a word or a digest that was never touched stays so. */
void vmf_image_tables_put_zero(VmfImageTables *tables, unsigned block, uint64_t chunk, const VmfPageSet *pages)
{
    VmfImageBlockTables *own = &tables->blocks[block];

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        uint64_t word = chunk * VMF_CHUNK_WORDS + w, bits = GUINT64_TO_LE(pages->words[w]);
        if (!bits)
            continue;
        uint64_t lost = own->data[word] & bits;
        if (lost) {
            own->data[word] &= ~bits;
            put_digests(&own->digests[word * 64], NULL, GUINT64_FROM_LE(lost));
        }
        if (own->zero)
            own->zero[word] |= bits;
    }
}

void vmf_image_tables_occupy(VmfImageTables *tables, unsigned block, uint64_t first_page, uint64_t n_pages)
{
    VmfImageBlockTables *own = &tables->blocks[block];

    for (uint64_t word = first_page / 64; word * 64 < first_page + n_pages; word++)
        own->occupied[word] |= vmf_page_word_mask(word, first_page, first_page + n_pages);
}

void vmf_image_tables_chunk(const VmfImageTables *tables, unsigned block, uint64_t chunk, VmfImageChunk *out)
{
    const VmfImageBlockTables *own = &tables->blocks[block];

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        out->data.words[w] = GUINT64_FROM_LE(own->data[chunk * VMF_CHUNK_WORDS + w]);
        out->zero.words[w] = own->zero ? GUINT64_FROM_LE(own->zero[chunk * VMF_CHUNK_WORDS + w]) : 0;
    }
    if (vmf_page_set_is_empty(&out->data)) {
        memset(out->digests, 0, sizeof(out->digests));
        return;
    }
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        out->digests[page] = GUINT64_FROM_LE(own->digests[chunk * VMF_CHUNK_PAGES + page]);
}

bool vmf_image_tables_chunk_has_data(const VmfImageTables *tables, unsigned block, uint64_t chunk)
{
    VmfPageSet data;

    memcpy(data.words, &tables->blocks[block].data[chunk * VMF_CHUNK_WORDS], sizeof(data.words));
    return !vmf_page_set_is_empty(&data);
}

VmfPageSet vmf_image_tables_present(const VmfImageTables *tables, unsigned block, uint64_t chunk)
{
    const VmfImageBlockTables *own = &tables->blocks[block];
    VmfPageSet present;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        uint64_t word = chunk * VMF_CHUNK_WORDS + w;
        present.words[w] = GUINT64_FROM_LE(own->data[word] | (own->zero ? own->zero[word] : 0));
    }
    return present;
}

VmfPageSet vmf_image_tables_idle(const VmfImageTables *tables, unsigned block, uint64_t chunk)
{
    const VmfImageBlockTables *own = &tables->blocks[block];
    VmfPageSet idle;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++) {
        uint64_t word = chunk * VMF_CHUNK_WORDS + w;
        idle.words[w] = own->occupied[word] & ~GUINT64_FROM_LE(own->data[word]);
    }
    return idle;
}
