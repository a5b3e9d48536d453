/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/test-image-rig.h"

#include <inttypes.h>
#include <stdlib.h>

static const uint64_t n_pages[RIG_IMAGE_BLOCKS] = {3 * VMF_CHUNK_PAGES + 5, 40};

ImageGuest *image_guest_new(bool layer)
{
    ImageGuest *guest = g_new0(ImageGuest, 1);

    guest->layer = layer;
    guest->scan = vmf_page_scan_select();
    for (unsigned b = 0; b < RIG_IMAGE_BLOCKS; b++) {
        ImageGuestBlock *block = &guest->blocks[b];
        block->n_pages = n_pages[b];
        block->memory = aligned_alloc(VMF_CHUNK_SIZE, (n_pages[b] / VMF_CHUNK_PAGES + 1) * VMF_CHUNK_SIZE);
        memset(block->memory, 0, n_pages[b] * VMF_PAGE_SIZE);
        block->dirty = g_new0(bool, n_pages[b]);
        block->pushed = g_new0(bool, n_pages[b]);
    }
    memset(guest->id, 7, sizeof(guest->id));
    memset(guest->header, 'h', sizeof(guest->header));
    memset(guest->tail, 't', sizeof(guest->tail));
    vmf_image_layout_compute(&guest->layout, n_pages, RIG_IMAGE_BLOCKS, layer, sizeof(guest->header), NULL);
    return guest;
}

void image_guest_free(ImageGuest *guest)
{
    for (unsigned b = 0; b < RIG_IMAGE_BLOCKS; b++) {
        free(guest->blocks[b].memory);
        g_free(guest->blocks[b].dirty);
        g_free(guest->blocks[b].pushed);
    }
    g_free(guest);
}

void image_guest_write(ImageGuest *guest, unsigned block, uint64_t page, uint64_t value)
{
    uint64_t *words = (uint64_t *)(guest->blocks[block].memory + page * VMF_PAGE_SIZE);

    for (unsigned i = 0; i < VMF_PAGE_SIZE / sizeof(*words); i++)
        words[i] = value ? value * UINT64_C(0x9E3779B97F4A7C15) + page * 512 + i : 0;
    guest->blocks[block].dirty[page] = true;
}

void image_guest_write_range(ImageGuest *guest, unsigned block, uint64_t first_page, uint64_t n, uint64_t value)
{
    for (uint64_t page = first_page; page < first_page + n; page++)
        image_guest_write(guest, block, page, value);
}

typedef struct {
    VmfPageBatch batch;
    ImageGuest *guest;
    uint64_t digests[VMF_CHUNK_PAGES];
} GuestBatch;

static void release(VmfPageBatch *batch)
{
    GuestBatch *own = (GuestBatch *)batch;

    own->guest->n_held--;
    g_free(own);
}

bool image_guest_push(ImageGuest *guest, const VmfPageSink *sink, unsigned b, uint64_t chunk, bool live, GError **error)
{
    ImageGuestBlock *block = &guest->blocks[b];
    uint64_t first = chunk * VMF_CHUNK_PAGES;
    unsigned n = (unsigned)MIN(VMF_CHUNK_PAGES, block->n_pages - first);
    VmfPageSet dirty = {0};

    for (unsigned page = 0; page < n; page++) {
        if (block->dirty[first + page])
            vmf_page_set_add(&dirty, page);
        block->pushed[first + page] |= block->dirty[first + page];
        block->dirty[first + page] = false;
    }
    if (vmf_page_set_is_empty(&dirty))
        return true;
    GuestBatch *own = g_new0(GuestBatch, 1);
    own->guest = guest;
    guest->n_held++;
    own->batch = (VmfPageBatch){.block_index = b, .chunk = chunk, .first_page = first, .n_pages = n, .live = live};
    own->batch.payload = block->memory + first * VMF_PAGE_SIZE;
    own->batch.digests = own->digests;
    own->batch.release = release;
    vmf_page_scan(guest->scan, own->batch.payload, VMF_PAGE_SIZE, n, dirty.words, own->batch.data.words,
                  own->batch.zero.words, own->digests);
    return vmf_page_sink_push(sink, &own->batch, error);
}

bool image_guest_push_all(ImageGuest *guest, const VmfPageSink *sink, bool live, GError **error)
{
    for (unsigned b = 0; b < RIG_IMAGE_BLOCKS; b++)
        for (uint64_t chunk = 0; chunk < vmf_image_block_n_chunks(&guest->layout.blocks[b]); chunk++)
            if (!image_guest_push(guest, sink, b, chunk, live, error))
                return false;
    return true;
}

VmfImageWriter *image_guest_writer(const ImageGuest *guest, VmfStorage *storage, GError **error)
{
    VmfImageWriterConfig config = {
        .storage = storage, .layout = &guest->layout, .id = guest->id, .layer = guest->layer, .scan = guest->scan};

    return vmf_image_writer_new(&config, error);
}

bool image_guest_finish(const ImageGuest *guest, VmfImageWriter *writer, GError **error)
{
    return vmf_image_writer_finish(writer, guest->header, sizeof(guest->header), guest->tail, sizeof(guest->tail), NULL,
                                   error);
}

/* ---- looking ------------------------------------------------------------------------------------------------ */

bool image_is_claimed(const uint8_t *octets, uint64_t size)
{
    VmfImageCommit commit;

    return vmf_image_commit_decode(octets, size, &commit, NULL);
}

static bool area_matches(const uint8_t *octets, uint64_t offset, uint64_t length, VmfImageDigest expected)
{
    VmfImageDigest found = vmf_image_digest(octets + offset, length);

    return vmf_image_digest_equal(&found, &expected);
}

static const char *check_commit(const ImageGuest *guest, const uint8_t *octets, uint64_t size)
{
    VmfImageLayout layout = guest->layout;
    VmfImageCommit commit;

    if (!vmf_image_commit_decode(octets, size, &commit, NULL) || memcmp(commit.id, guest->id, sizeof(commit.id)) != 0)
        return "commit block";
    if (!vmf_image_layout_check(&layout, &commit, NULL))
        return "layout";
    if (!area_matches(octets, VMF_IMAGE_HEADER_OFFSET, commit.header_length, commit.header) ||
        memcmp(octets + VMF_IMAGE_HEADER_OFFSET, guest->header, sizeof(guest->header)) != 0)
        return "header";
    if (!area_matches(octets, commit.tail_offset, commit.tail_length, commit.tail) ||
        memcmp(octets + commit.tail_offset, guest->tail, sizeof(guest->tail)) != 0)
        return "tail";
    if (!area_matches(octets, commit.table_offset, commit.table_length, commit.table))
        return "chunk tables";
    return NULL;
}

/* Bits of @chunk in the bitmap at @offset, of which there are none behind the block's words. */
static VmfPageSet read_words(const VmfImageBlock *block, const uint8_t *octets, uint64_t offset, uint64_t chunk)
{
    uint64_t at = chunk * sizeof(VmfPageSet), length = vmf_image_block_bitmap_length(block);
    VmfPageSet set = {0};

    memcpy(&set, octets + offset + at, MIN(sizeof(set), length - at));
    return set; /* tests run on little-endian hosts */
}

static bool page_is_as_expected(const ImageGuest *guest, unsigned b, const VmfImageChunk *chunk, uint64_t page,
                                const uint8_t *octets)
{
    const ImageGuestBlock *block = &guest->blocks[b];
    const uint8_t *memory = block->memory + page * VMF_PAGE_SIZE;
    bool data = vmf_page_set_test(&chunk->data, page % VMF_CHUNK_PAGES);
    bool zero = vmf_page_set_test(&chunk->zero, page % VMF_CHUNK_PAGES);
    bool is_zero = guest->scan->is_zero(memory, VMF_PAGE_SIZE);

    if (data != (block->pushed[page] && !is_zero) || zero != (guest->layer && block->pushed[page] && is_zero))
        return false;
    return !data ||
           (memcmp(octets + guest->layout.blocks[b].pages_offset + page * VMF_PAGE_SIZE, memory, VMF_PAGE_SIZE) == 0 &&
            chunk->digests[page % VMF_CHUNK_PAGES] == guest->scan->digest(memory, VMF_PAGE_SIZE));
}

static char *check_chunk(const ImageGuest *guest, unsigned b, uint64_t c, const uint8_t *octets)
{
    const VmfImageBlock *block = &guest->layout.blocks[b];
    uint64_t first = c * VMF_CHUNK_PAGES, n = MIN(VMF_CHUNK_PAGES, block->n_pages - first), entry;
    g_autoptr(GError) error = NULL;
    VmfImageChunk chunk = {0};

    chunk.data = read_words(block, octets, block->data_bitmap_offset, c);
    if (guest->layer)
        chunk.zero = read_words(block, octets, block->zero_bitmap_offset, c);
    if (!vmf_page_set_is_empty(&chunk.data))
        memcpy(chunk.digests, octets + block->digests_offset + c * VMF_IMAGE_BLOCK, sizeof(chunk.digests));
    memcpy(&entry, octets + guest->layout.table_offset + (block->first_chunk + c) * sizeof(entry), sizeof(entry));
    if (!vmf_image_chunk_check(&chunk, (unsigned)n, entry, &error))
        return g_strdup_printf("block %u chunk %" PRIu64 ": %s", b, c, error->message);
    for (uint64_t page = first; page < first + n; page++)
        if (!page_is_as_expected(guest, b, &chunk, page, octets))
            return g_strdup_printf("block %u page %" PRIu64, b, page);
    return NULL;
}

static bool is_zero(const uint8_t *octets, uint64_t from, uint64_t to)
{
    for (; from < to && octets[from] == 0; from++)
        ;
    return from >= to;
}

/* What stands between the areas; the layout is the writer's, so their order is known. */
static bool gaps_are_zero(const ImageGuest *guest, const uint8_t *octets)
{
    const VmfImageLayout *layout = &guest->layout;
    const VmfImageBlock *last = &layout->blocks[RIG_IMAGE_BLOCKS - 1];
    uint64_t end = last->digests_offset + vmf_image_block_n_chunks(last) * VMF_IMAGE_BLOCK;
    bool zero = is_zero(octets, VMF_IMAGE_HEADER_OFFSET + sizeof(guest->header), layout->table_offset) &&
                is_zero(octets, layout->end + sizeof(guest->tail), layout->end + 2 * VMF_IMAGE_BLOCK) &&
                is_zero(octets, layout->table_offset + layout->table_length, layout->blocks[0].data_bitmap_offset);

    for (unsigned b = 0; b < RIG_IMAGE_BLOCKS; b++) {
        const VmfImageBlock *block = &layout->blocks[b];
        uint64_t bitmap = vmf_image_block_bitmap_length(block);
        zero &= is_zero(octets, end, block->pages_offset) &&
                is_zero(octets, block->data_bitmap_offset + bitmap, block->data_bitmap_offset + VMF_IMAGE_BLOCK) &&
                is_zero(octets, block->zero_bitmap_offset ? block->zero_bitmap_offset + bitmap : 0,
                        block->zero_bitmap_offset ? block->zero_bitmap_offset + VMF_IMAGE_BLOCK : 0);
        end = block->pages_offset + block->n_pages * VMF_PAGE_SIZE;
    }
    return zero;
}

char *image_difference(const ImageGuest *guest, const uint8_t *octets, uint64_t size)
{
    const char *what = check_commit(guest, octets, size);

    if (what)
        return g_strdup(what);
    for (unsigned b = 0; b < RIG_IMAGE_BLOCKS; b++)
        for (uint64_t c = 0; c < vmf_image_block_n_chunks(&guest->layout.blocks[b]); c++) {
            char *difference = check_chunk(guest, b, c, octets);
            if (difference)
                return difference;
        }
    return gaps_are_zero(guest, octets) ? NULL : g_strdup("octets between areas");
}
