/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The image format: what is written is read, octets are where the page says, and each rule has a fault that breaks it.
 */
#include "ram/image-format.h"

#include "stream/crc32c.h"
#include "stream/test-link.h"

/* ---- an image that is right --------------------------------------------------------------------------------- */

#define N_BLOCKS 2
static const uint64_t n_pages[N_BLOCKS] = {2 * VMF_CHUNK_PAGES + 6, 3};
#define N_CHUNKS 4

static VmfImageLayout good_layout(bool layer)
{
    VmfImageLayout layout;

    assert_true(vmf_image_layout_compute(&layout, n_pages, N_BLOCKS, layer, 5000, NULL));
    return layout;
}

static VmfImageCommit good_commit(const VmfImageLayout *layout, bool layer)
{
    VmfImageCommit commit = {.flags = layer ? VMF_IMAGE_LAYER : 0,
                             .id = {1, 2, 3},
                             .file_size = layout->end + 2 * VMF_IMAGE_BLOCK,
                             .header_length = 5000,
                             .table_offset = layout->table_offset,
                             .table_length = layout->table_length,
                             .tail_offset = layout->end,
                             .tail_length = VMF_IMAGE_BLOCK + 8};

    commit.header = vmf_image_digest("header", 6);
    commit.table = vmf_image_digest("table", 5);
    commit.tail = vmf_image_digest("tail", 4);
    return commit;
}

static void the_digest_is_xxh3_128_in_canonical_form(void **state)
{
    static const uint8_t of_nothing[] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                         0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    VmfImageDigest digest = vmf_image_digest("", 0), other = vmf_image_digest("x", 1);

    assert_memory_equal(digest.bytes, of_nothing, sizeof(of_nothing));
    assert_true(vmf_image_digest_equal(&digest, &digest));
    assert_false(vmf_image_digest_equal(&digest, &other));
}

/* ---- commit block ------------------------------------------------------------------------------------------- */

static void a_commit_block_is_read_as_it_was_written(void **state)
{
    VmfImageLayout layout = good_layout(true);
    VmfImageCommit commit = good_commit(&layout, true), got;
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];

    vmf_image_commit_encode(&commit, block);
    assert_true(vmf_image_commit_decode(block, commit.file_size, &got, NULL));
    assert_memory_equal(&got, &commit, sizeof(commit));
    assert_true(vmf_image_commit_decode(block, UINT64_MAX, &got, NULL));
    assert_int_equal(block[8], VMF_IMAGE_VERSION);
    commit.with_disks = true;
    vmf_image_commit_encode(&commit, block);
    assert_int_equal(block[8], VMF_IMAGE_VERSION_DISKS);
    assert_true(vmf_image_commit_decode(block, commit.file_size, &got, NULL));
    assert_memory_equal(&got, &commit, sizeof(commit));
}

static void commit_octets_are_where_the_page_says(void **state)
{
    VmfImageCommit commit = {.flags = 1,
                             .id = {0xa0, [15] = 0xaf},
                             .file_size = 0x0102030405060000,
                             .header_length = 0x1112,
                             .table_offset = 0x2122232425262000,
                             .table_length = 0x3132,
                             .tail_offset = 0x4142434445464000,
                             .tail_length = 0x5152,
                             .header = {{0xb0, [15] = 0xbf}},
                             .table = {{0xc0, [15] = 0xcf}},
                             .tail = {{0xd0, [15] = 0xdf}}};
    static const struct {
        unsigned at;
        const char *octets; /* up to the first zero */
    } fields[] = {
        {0, "VMFIMAGE\1"},
        {12, "\1"},
        {16, "\xa0"},
        {31, "\xaf"},
        {34, "\6\5\4\3\2\1\x12\x11"},
        {49, "\x20\x26\x25\x24\x23\x22\x21\x32\x31"},
        {65, "\x40\x46\x45\x44\x43\x42\x41\x52\x51"},
        {80, "\xb0"},
        {95, "\xbf\xc0"},
        {111, "\xcf\xd0"},
        {127, "\xdf"},
    };
    uint8_t expected[VMF_IMAGE_COMMIT_SIZE] = {0};
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];

    for (unsigned i = 0; i < G_N_ELEMENTS(fields); i++)
        memcpy(expected + fields[i].at, fields[i].octets, strlen(fields[i].octets));
    vmf_image_commit_encode(&commit, block);
    VmfImageDigest root = vmf_image_digest(expected, 128);
    memcpy(expected + 128, &root, sizeof(root));
    uint32_t crc = GUINT32_TO_LE(vmf_crc32c(0, expected, 4092));
    memcpy(expected + 4092, &crc, sizeof(crc));
    assert_memory_equal(block, expected, sizeof(block));
    assert_memory_equal(&commit.root, &root, sizeof(root));
}

typedef enum { AS_IT_IS, WITH_CRC, WITH_ROOT } Seal; /* what is made to match again after the change; ROOT: both */

typedef struct {
    const char *what;
    unsigned at, length;
    uint64_t value; /* little-endian at @at */
    Seal seal;
    VmfErrorCode code;
} CommitFault;

#define BIG (UINT64_C(1) << 63)

static const CommitFault commit_faults[] = {
    {"magic", 0, 1, 'v', WITH_ROOT, VMF_ERROR_IMAGE_MAGIC},
    {"magic, and nothing sealed", 7, 1, 0, AS_IT_IS, VMF_ERROR_IMAGE_MAGIC},
    {"version 0", 8, 4, 0, WITH_ROOT, VMF_ERROR_IMAGE_VERSION},
    {"version 3", 8, 4, 3, AS_IT_IS, VMF_ERROR_IMAGE_VERSION},
    {"version in its last octet", 11, 1, 1, WITH_ROOT, VMF_ERROR_IMAGE_VERSION},
    {"a bit of the flags", 12, 1, 1, AS_IT_IS, VMF_ERROR_IMAGE_CRC},
    {"a reserved octet", 3000, 1, 1, AS_IT_IS, VMF_ERROR_IMAGE_CRC},
    {"the CRC", 4092, 4, 0, AS_IT_IS, VMF_ERROR_IMAGE_CRC},
    {"an unknown flag", 12, 4, 2, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"the highest flag", 12, 4, 1u << 31, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"an id of zeros", 16, 8, 0, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"the first reserved octet", 144, 1, 1, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"the last reserved octet", 4091, 1, 1, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a file size of no whole block", 32, 1, 1, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a file size of 0", 32, 8, 0, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a file of one block", 32, 8, 4096, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a header of nothing", 40, 8, 0, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a header over 1 MiB", 40, 8, (1u << 20) + 1, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a header without end", 40, 8, UINT64_MAX, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"tables at no block", 48, 1, 8, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"tables behind the file", 48, 8, BIG, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"tables of nothing", 56, 8, 0, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"tables of half an entry", 56, 8, 12, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"tables longer than the file", 56, 8, UINT64_MAX - 7, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a tail at no block", 64, 1, 8, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a tail behind the file", 64, 8, UINT64_MAX - 4095, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a tail of nothing", 72, 8, 0, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a tail longer than the file", 72, 8, 3 * 4096, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"a tail over 64 MiB", 72, 8, (64u << 20) + 1, WITH_ROOT, VMF_ERROR_IMAGE_LAYOUT},
    {"the header digest", 80, 1, 0, WITH_CRC, VMF_ERROR_IMAGE_DIGEST},
    {"the tail's last octet", 127, 1, 0, WITH_CRC, VMF_ERROR_IMAGE_DIGEST},
    {"the root digest", 128, 8, 0, WITH_CRC, VMF_ERROR_IMAGE_DIGEST},
    {"the root digest's last octet", 143, 1, 0, WITH_CRC, VMF_ERROR_IMAGE_DIGEST},
};

static void seal(uint8_t block[VMF_IMAGE_COMMIT_SIZE], Seal how)
{
    VmfImageDigest root = vmf_image_digest(block, 128);

    if (how == WITH_ROOT)
        memcpy(block + 128, &root, sizeof(root));
    uint32_t crc = GUINT32_TO_LE(vmf_crc32c(0, block, 4092));
    if (how != AS_IT_IS)
        memcpy(block + 4092, &crc, sizeof(crc));
}

static void expect_commit_error(const uint8_t block[VMF_IMAGE_COMMIT_SIZE], uint64_t size, const char *what,
                                VmfErrorCode code)
{
    GError *error = NULL;
    VmfImageCommit got;

    if (vmf_image_commit_decode(block, size, &got, &error))
        fail_msg("%s: was accepted", what);
    if (!g_error_matches(error, VMF_ERROR, code))
        fail_msg("%s: %s: %s", what, vmf_error_id(error), error->message);
    assert_error(error, code);
}

static void every_fault_of_a_commit_block_has_its_error(void **state)
{
    VmfImageLayout layout = good_layout(false);
    VmfImageCommit commit = good_commit(&layout, false);
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];

    for (unsigned i = 0; i < G_N_ELEMENTS(commit_faults); i++) {
        const CommitFault *fault = &commit_faults[i];
        uint64_t value = GUINT64_TO_LE(fault->value);
        vmf_image_commit_encode(&commit, block);
        memcpy(block + fault->at, &value, fault->length);
        seal(block, fault->seal);
        expect_commit_error(block, UINT64_MAX, fault->what, fault->code);
    }
}

static bool commit_is_accepted(VmfImageCommit commit)
{
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];
    GError *error = NULL;
    VmfImageCommit got;

    vmf_image_commit_encode(&commit, block);
    bool good = vmf_image_commit_decode(block, commit.file_size, &got, &error);
    if (!good)
        assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
    return good;
}

static void header_and_tail_may_be_as_long_as_the_page_says(void **state)
{
    VmfImageCommit longest = {.id = {1},
                              .file_size = UINT64_C(1) << 40,
                              .header_length = VMF_IMAGE_HEADER_MAX,
                              .table_offset = UINT64_C(1) << 30,
                              .table_length = UINT64_C(1) << 30,
                              .tail_offset = UINT64_C(1) << 31,
                              .tail_length = VMF_IMAGE_TAIL_MAX};
    VmfImageCommit header = longest, tail = longest;

    header.header_length++;
    tail.tail_length++;
    assert_true(commit_is_accepted(longest));
    assert_false(commit_is_accepted(header));
    assert_false(commit_is_accepted(tail));
}

static void blocks_that_are_no_image(void **state)
{
    VmfImageLayout layout = good_layout(false);
    VmfImageCommit commit = good_commit(&layout, false);
    uint8_t block[VMF_IMAGE_COMMIT_SIZE] = {0};

    expect_commit_error(block, UINT64_MAX, "zeros", VMF_ERROR_IMAGE_INCOMPLETE);
    block[4095] = 1;
    expect_commit_error(block, UINT64_MAX, "nearly zeros", VMF_ERROR_IMAGE_MAGIC);
    memset(block, 0xff, sizeof(block));
    expect_commit_error(block, UINT64_MAX, "ones", VMF_ERROR_IMAGE_MAGIC);
    vmf_image_commit_encode(&commit, block);
    expect_commit_error(block, commit.file_size - 1, "a file cut short", VMF_ERROR_IMAGE_LAYOUT);
    expect_commit_error(block, VMF_IMAGE_COMMIT_SIZE, "a file of one block", VMF_ERROR_IMAGE_LAYOUT);
    expect_commit_error(block, VMF_IMAGE_COMMIT_SIZE - 1, "a file of less", VMF_ERROR_IMAGE_MAGIC);
}

static void a_commit_block_with_any_octet_changed_is_refused(void **state)
{
    VmfImageLayout layout = good_layout(false);
    VmfImageCommit commit = good_commit(&layout, false), got;
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];

    vmf_image_commit_encode(&commit, block);
    for (unsigned at = 0; at < sizeof(block); at++) {
        block[at] ^= 0x40;
        assert_false(vmf_image_commit_decode(block, commit.file_size, &got, NULL));
        block[at] ^= 0x40;
    }
}

/* ---- layout ------------------------------------------------------------------------------------------------- */

static void a_layout_passes_its_own_checks(void **state)
{
    for (unsigned layer = 0; layer < 2; layer++) {
        VmfImageLayout layout = good_layout(layer), got = layout;
        VmfImageCommit commit = good_commit(&layout, layer);
        g_autoptr(GError) error = NULL;
        got.n_chunks = got.table_offset = got.table_length = got.end = 0;
        if (!vmf_image_layout_check(&got, &commit, &error))
            fail_msg("%s", error->message);
        assert_memory_equal(&got, &layout, sizeof(got));
        assert_int_equal(layout.n_chunks, N_CHUNKS);
        assert_int_equal(layout.blocks[1].first_chunk, 3);
        assert_int_equal(layout.table_offset, 12288);
        assert_true(layout.blocks[1].pages_offset % VMF_CHUNK_SIZE == 0);
        assert_true(!layer == !layout.blocks[0].zero_bitmap_offset);
    }
}

static void a_layout_costs_little_beside_the_memory(void **state)
{
    static const uint64_t sizes[] = {1, UINT64_C(1) << 24, UINT64_C(1) << 36};
    VmfImageLayout layout;

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        assert_true(vmf_image_layout_compute(&layout, &sizes[i], 1, true, VMF_IMAGE_HEADER_MAX, NULL));
        uint64_t bytes = sizes[i] * VMF_PAGE_SIZE;
        assert_true(layout.end <= bytes + bytes / 100 + 2 * VMF_CHUNK_SIZE);
    }
}

static void what_cannot_be_laid_out_is_an_error(void **state)
{
    static const uint64_t none = 0, huge = (UINT64_C(1) << 36) + 1, one = 1;
    g_autofree uint64_t *many = g_new0(uint64_t, VMF_IMAGE_BLOCKS_MAX + 1);
    VmfImageLayout layout;
    GError *error = NULL;

    for (unsigned b = 0; b <= VMF_IMAGE_BLOCKS_MAX; b++)
        many[b] = 1;
    assert_true(vmf_image_layout_compute(&layout, many, VMF_IMAGE_BLOCKS_MAX, false, 100, NULL));
    assert_false(vmf_image_layout_compute(&layout, many, VMF_IMAGE_BLOCKS_MAX + 1, false, 100, &error));
    assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
    assert_false(vmf_image_layout_compute(&layout, many, 0, false, 100, &error));
    assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
    assert_false(vmf_image_layout_compute(&layout, &none, 1, false, 100, &error));
    assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
    assert_false(vmf_image_layout_compute(&layout, &huge, 1, false, 100, &error));
    assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
    assert_false(vmf_image_layout_compute(&layout, &one, 1, false, VMF_IMAGE_HEADER_MAX + 1, &error));
    assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
    assert_false(vmf_image_layout_compute(&layout, &one, 1, false, 0, &error));
    assert_error(error, VMF_ERROR_IMAGE_LAYOUT);
}

/* What is changed, by its offset in both structs side by side. */
typedef struct {
    VmfImageLayout layout;
    VmfImageCommit commit;
} Plan;

typedef struct {
    const char *what;
    bool layer;
    size_t field;
    uint64_t value;
} LayoutFault;

#define FIELD(f) offsetof(Plan, f)

static const LayoutFault layout_faults[] = {
    {"a layer without zero bitmap", true, FIELD(layout.blocks[1].zero_bitmap_offset), 0},
    {"a zero bitmap in no layer", false, FIELD(layout.blocks[1].zero_bitmap_offset), 4096},
    {"pages at no multiple of 2 MiB", false, FIELD(layout.blocks[1].pages_offset), 3 * VMF_CHUNK_SIZE + 65536},
    {"pages over the header", false, FIELD(layout.blocks[1].pages_offset), 0},
    {"pages over the other block's", false, FIELD(layout.blocks[1].pages_offset), VMF_CHUNK_SIZE},
    {"pages behind the file", false, FIELD(layout.blocks[1].pages_offset), UINT64_C(1) << 40},
    {"pages at the end of all numbers", false, FIELD(layout.blocks[0].pages_offset), 0 - (uint64_t)VMF_CHUNK_SIZE},
    {"a data bitmap at no block", false, FIELD(layout.blocks[0].data_bitmap_offset), (1u << 20) + 8},
    {"a data bitmap in the tables", false, FIELD(layout.blocks[0].data_bitmap_offset), 12288},
    {"a data bitmap in the commit block", false, FIELD(layout.blocks[0].data_bitmap_offset), 0},
    {"a data bitmap in the tail", false, FIELD(layout.blocks[0].data_bitmap_offset), 4 * VMF_CHUNK_SIZE + 3 * 4096},
    {"a data bitmap behind the file", false, FIELD(layout.blocks[0].data_bitmap_offset), UINT64_MAX - 4095},
    {"a zero bitmap over pages", true, FIELD(layout.blocks[0].zero_bitmap_offset), VMF_CHUNK_SIZE + 8192},
    {"a zero bitmap behind the file", true, FIELD(layout.blocks[0].zero_bitmap_offset), UINT64_C(1) << 63},
    {"digests at no block", false, FIELD(layout.blocks[1].digests_offset), (1u << 20) + 8},
    {"digests over the header", false, FIELD(layout.blocks[0].digests_offset), 4096},
    {"digests behind the file", false, FIELD(layout.blocks[0].digests_offset), UINT64_C(1) << 62},
    {"a header that runs into the tables", false, FIELD(commit.header_length), 8193},
    {"tables in the commit block", false, FIELD(commit.table_offset), 0},
    {"tables in the header", false, FIELD(commit.table_offset), 4096},
    {"a tail in the tables", false, FIELD(commit.tail_offset), 12288},
    {"too few entries", false, FIELD(commit.table_length), (N_CHUNKS - 1) * 8},
    {"too many entries", false, FIELD(commit.table_length), (N_CHUNKS + 1) * 8},
    {"a block too large for any", false, FIELD(layout.blocks[0].n_pages), (UINT64_C(1) << 36) + 1},
    {"a block that overflows", false, FIELD(layout.blocks[0].n_pages), UINT64_MAX},
    {"a block of nothing", false, FIELD(layout.blocks[0].n_pages), 0},
    {"a file that ends later", false, FIELD(commit.file_size), 5 * VMF_CHUNK_SIZE},
};

static void every_fault_of_a_layout_has_its_error(void **state)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(layout_faults); i++) {
        const LayoutFault *fault = &layout_faults[i];
        g_autofree Plan *plan = g_new0(Plan, 1);
        GError *error = NULL;

        plan->layout = good_layout(fault->layer);
        plan->commit = good_commit(&plan->layout, fault->layer);
        assert_true(vmf_image_layout_check(&plan->layout, &plan->commit, NULL));
        *(uint64_t *)((uint8_t *)plan + fault->field) = fault->value;
        if (vmf_image_layout_check(&plan->layout, &plan->commit, &error))
            fail_msg("%s: was accepted", fault->what);
        if (!g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT))
            fail_msg("%s: %s: %s", fault->what, vmf_error_id(error), error->message);
        g_clear_error(&error);
    }
}

static void areas_may_be_in_any_order(void **state)
{
    VmfImageLayout layout = good_layout(true);
    VmfImageCommit commit = good_commit(&layout, true);
    VmfImageBlock *one = &layout.blocks[0], *other = &layout.blocks[1];
    uint64_t bitmap = one->data_bitmap_offset;

    one->data_bitmap_offset = other->data_bitmap_offset;
    other->data_bitmap_offset = bitmap;
    assert_true(vmf_image_layout_check(&layout, &commit, NULL));
}

/* ---- chunks ------------------------------------------------------------------------------------------------- */

static VmfImageChunk some_chunk(void)
{
    VmfImageChunk chunk = {0};

    vmf_page_set_add_range(&chunk.data, 60, 10);
    vmf_page_set_add_range(&chunk.zero, 100, 3);
    for (unsigned page = 60; page < 70; page++)
        chunk.digests[page] = page * UINT64_C(0x9E3779B97F4A7C15);
    return chunk;
}

static void a_chunk_entry_covers_what_the_page_says(void **state)
{
    VmfImageChunk chunk = some_chunk(), none = {0};
    uint64_t octets[8 + 8 + 512] = {0};

    octets[0] = GUINT64_TO_LE(UINT64_C(0xf) << 60);
    octets[1] = GUINT64_TO_LE(UINT64_C(0x3f) | UINT64_C(7) << 36);
    octets[9] = octets[1] & GUINT64_TO_LE(UINT64_C(7) << 36);
    octets[1] ^= octets[9];
    for (unsigned page = 60; page < 70; page++)
        octets[16 + page] = GUINT64_TO_LE(chunk.digests[page]);
    assert_true(vmf_image_chunk_entry(&chunk) == XXH3_64bits(octets, sizeof(octets)));
    vmf_page_set_clear(&chunk.data);
    octets[0] = octets[1] = 0;
    assert_true(vmf_image_chunk_entry(&chunk) == XXH3_64bits(octets, 128));
    assert_true(vmf_image_chunk_entry(&none) == 0);
}

static void expect_chunk_error(const VmfImageChunk *chunk, unsigned pages, uint64_t entry, VmfErrorCode code)
{
    GError *error = NULL;

    assert_false(vmf_image_chunk_check(chunk, pages, entry, &error));
    assert_error(error, code);
}

static void every_fault_of_a_chunk_has_its_error(void **state)
{
    static const uint8_t zeros[VMF_PAGE_SIZE];
    VmfImageChunk chunk = some_chunk();
    uint64_t entry = vmf_image_chunk_entry(&chunk);

    assert_true(vmf_image_chunk_check(&chunk, 512, entry, NULL));
    assert_true(vmf_image_chunk_check(&chunk, 103, entry, NULL));
    expect_chunk_error(&chunk, 102, entry, VMF_ERROR_IMAGE_BITMAP);
    expect_chunk_error(&chunk, 65, entry, VMF_ERROR_IMAGE_BITMAP);
    expect_chunk_error(&chunk, 512, entry ^ 1, VMF_ERROR_IMAGE_DIGEST);
    expect_chunk_error(&chunk, 512, 0, VMF_ERROR_IMAGE_DIGEST);
    expect_chunk_error(&chunk, 65, entry ^ 1, VMF_ERROR_IMAGE_DIGEST);
    chunk.digests[61] = XXH3_64bits(zeros, sizeof(zeros));
    expect_chunk_error(&chunk, 512, vmf_image_chunk_entry(&chunk), VMF_ERROR_IMAGE_BITMAP);
    chunk = some_chunk();
    chunk.digests[200] = 7;
    expect_chunk_error(&chunk, 512, vmf_image_chunk_entry(&chunk), VMF_ERROR_IMAGE_DIGEST);
    chunk = some_chunk();
    chunk.digests[61] = 0;
    expect_chunk_error(&chunk, 512, vmf_image_chunk_entry(&chunk), VMF_ERROR_IMAGE_DIGEST);
    chunk = some_chunk();
    vmf_page_set_add(&chunk.zero, 61);
    expect_chunk_error(&chunk, 512, vmf_image_chunk_entry(&chunk), VMF_ERROR_IMAGE_BITMAP);
    chunk = (VmfImageChunk){0};
    assert_true(vmf_image_chunk_check(&chunk, 1, 0, NULL));
    expect_chunk_error(&chunk, 1, 1, VMF_ERROR_IMAGE_DIGEST);
}

/* ---- records ------------------------------------------------------------------------------------------------ */

static VmfRecord read_back(Link *link, uint32_t type)
{
    VmfRecord record = {0};
    GError *error = NULL;

    assert_true(vmf_record_flush(link->writer, NULL));
    if (!vmf_record_read(link->reader, &record, &error))
        fail_msg("%s", error->message);
    assert_int_equal(record.type, type);
    return record;
}

#define FOR_BOTH_ORDERS(link)                                                                                          \
    for (unsigned swap = 0; swap < 2; swap++)                                                                          \
        for (Link link = link_new(swap); link.writer; link_free(&link), link.writer = NULL)

static bool try_layout(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfImageLayout layout = {.n_blocks = *(unsigned *)opaque};

    return vmf_image_layout_decode(record, swap, &layout, error);
}

static bool try_parent(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfImageParent parent;
    bool good = vmf_image_parent_decode(record, swap, &parent, error);

    assert_true(good == (parent.name != NULL));
    vmf_image_parent_clear(&parent);
    return good;
}

static bool try_disk(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    VmfImageDisk disk;
    bool good = vmf_image_disk_decode(record, swap, &disk, error);

    assert_true(good == (disk.name && disk.identity && disk.mark));
    vmf_image_disk_clear(&disk);
    return good;
}

static void layout_records(void **state)
{
    unsigned two = N_BLOCKS, three = 3;

    FOR_BOTH_ORDERS(link)
    {
        VmfImageLayout layout = good_layout(true), got = {.n_blocks = N_BLOCKS};
        assert_true(vmf_image_layout_write(&layout, link.writer, NULL));
        assert_int_equal(link.writer->pending->len, vmf_image_layout_record_size(N_BLOCKS));
        VmfRecord record = read_back(&link, VMF_RECORD_LAYOUT);
        g_autofree uint8_t *body = g_memdup2(record.body, record.length);
        assert_true(vmf_image_layout_decode(&record, swap, &got, NULL));
        for (unsigned b = 0; b < N_BLOCKS; b++) {
            assert_true(got.blocks[b].pages_offset == layout.blocks[b].pages_offset);
            assert_true(got.blocks[b].data_bitmap_offset == layout.blocks[b].data_bitmap_offset);
            assert_true(got.blocks[b].zero_bitmap_offset == layout.blocks[b].zero_bitmap_offset);
            assert_true(got.blocks[b].digests_offset == layout.blocks[b].digests_offset);
        }
        try_everything(try_layout, VMF_RECORD_LAYOUT, body, record.length, swap, &two);
        assert_false(try_once(try_layout, VMF_RECORD_LAYOUT, body, record.length, swap, &three));
        body[swap ? 4 : 7] = 1; /* flags */
        assert_false(try_once(try_layout, VMF_RECORD_LAYOUT, body, record.length, swap, &two));
    }
}

static void parent_records(void **state)
{
    g_autofree char *longest = g_strnfill(VMF_IMAGE_PARENT_NAME_MAX, 'n');
    const char *names[] = {"file:base.vmf", "x", longest};

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        FOR_BOTH_ORDERS(link)
        {
            VmfImageParent parent = {.id = {1, [15] = 16}, .root = {{2, [15] = 32}}, .name = (char *)names[i]}, got;
            assert_true(vmf_image_parent_write(&parent, link.writer, NULL));
            VmfRecord record = read_back(&link, VMF_RECORD_PARENT);
            assert_true(vmf_image_parent_decode(&record, swap, &got, NULL));
            assert_memory_equal(got.id, parent.id, sizeof(got.id));
            assert_memory_equal(&got.root, &parent.root, sizeof(got.root));
            assert_string_equal(got.name, names[i]);
            vmf_image_parent_clear(&got);
            if (i < 2)
                try_everything(try_parent, VMF_RECORD_PARENT, record.body, record.length, swap, NULL);
        }
}

static void disk_records(void **state)
{
    g_autofree char *longest = g_strnfill(255, 't');
    const VmfImageDisk disks[] = {
        {false, UINT64_C(10) << 30, (char *)"root", (char *)"uuid:1", (char *)""},
        {true, 0, (char *)"d", (char *)"i", (char *)"generation 17"},
        {true, UINT64_MAX, longest + 192, longest, longest},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(disks); i++)
        FOR_BOTH_ORDERS(link)
        {
            VmfImageDisk got;
            assert_true(vmf_image_disk_write(&disks[i], link.writer, NULL));
            VmfRecord record = read_back(&link, VMF_RECORD_DISK);
            assert_true(vmf_image_disk_decode(&record, swap, &got, NULL));
            assert_true(got.contained == disks[i].contained && got.size_bytes == disks[i].size_bytes);
            assert_string_equal(got.name, disks[i].name);
            assert_string_equal(got.identity, disks[i].identity);
            assert_string_equal(got.mark, disks[i].mark);
            vmf_image_disk_clear(&got);
            try_everything(try_disk, VMF_RECORD_DISK, record.body, record.length, swap, NULL);
        }
}

/* ---- record bodies by hand ---------------------------------------------------------------------------------- */

static void expect_body_error(TryDecode decode, uint32_t type, const GByteArray *body)
{
    VmfRecord record = {.type = type, .length = body->len, .body = body->data, .checked = body->len};
    GError *error = NULL;

    assert_false(decode(&record, false, NULL, &error));
    assert_error(error, VMF_ERROR_RECORD_BODY);
}

static void a_parent_whose_name_is_out_of_bounds_is_refused(void **state)
{
    static const unsigned lengths[] = {0, VMF_IMAGE_PARENT_NAME_MAX + 1, UINT16_MAX};

    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
        VmfPack pack = {g_byte_array_new(), false};
        g_autofree char *name = g_strnfill(lengths[i], 'n');
        g_autoptr(GByteArray) owned = pack.bytes;
        vmf_pack_bytes(&pack, "0123456789abcdef0123456789abcdef", 32);
        vmf_pack_u16(&pack, (uint16_t)lengths[i]);
        vmf_pack_u16(&pack, 0);
        vmf_pack_u32(&pack, 0);
        vmf_pack_bytes(&pack, name, lengths[i]);
        expect_body_error(try_parent, VMF_RECORD_PARENT, pack.bytes);
    }
}

static void a_disk_with_a_field_out_of_bounds_is_refused(void **state)
{
    static const struct {
        uint32_t flags, reserved;
        uint16_t name, identity, mark, reserved2;
        const char *text;
    } faults[] = {
        {2, 0, 1, 1, 0, 0, "x"},  {0, 1, 1, 1, 0, 0, "x"},    {0, 0, 0, 1, 0, 0, "x"},   {0, 0, 64, 1, 0, 0, "x"},
        {0, 0, 1, 0, 0, 0, "x"},  {0, 0, 1, 256, 0, 0, "x"},  {0, 0, 1, 1, 256, 0, "x"}, {0, 0, 1, 1, 0, 1, "x"},
        {0, 0, 1, 1, 0, 0, "\t"}, {0, 0, 1, 1, 0, 0, "\xff"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(faults); i++) {
        VmfPack pack = {g_byte_array_new(), false};
        g_autoptr(GByteArray) owned = pack.bytes;
        vmf_pack_u32(&pack, faults[i].flags);
        vmf_pack_u32(&pack, faults[i].reserved);
        vmf_pack_u64(&pack, 4096);
        vmf_pack_u16(&pack, faults[i].name);
        vmf_pack_u16(&pack, faults[i].identity);
        vmf_pack_u16(&pack, faults[i].mark);
        vmf_pack_u16(&pack, faults[i].reserved2);
        for (int left = faults[i].name + faults[i].identity + faults[i].mark; left > 0; left--)
            vmf_pack_bytes(&pack, faults[i].text, 1);
        expect_body_error(try_disk, VMF_RECORD_DISK, pack.bytes);
    }
}

static void what_no_reader_takes_is_not_written(void **state)
{
    g_autofree char *name = g_strnfill(VMF_IMAGE_PARENT_NAME_MAX + 1, 'n');
    const VmfImageParent parents[] = {{.name = NULL}, {.name = (char *)""}, {.name = name}, {.name = (char *)"a\n"}};
    const VmfImageDisk disks[] = {
        {false, 1, NULL, (char *)"i", (char *)"m"},        {false, 1, (char *)"", (char *)"i", (char *)"m"},
        {false, 1, name + 4032, (char *)"i", (char *)"m"}, {false, 1, (char *)"n", (char *)"", (char *)"m"},
        {false, 1, (char *)"n", name + 3840, (char *)"m"}, {false, 1, (char *)"n", (char *)"i", name + 3840},
        {false, 1, (char *)"n", (char *)"i", NULL},        {false, 1, (char *)"\xff", (char *)"i", (char *)"m"},
    };
    Link link = link_new(false);
    GError *error = NULL;

    for (unsigned i = 0; i < G_N_ELEMENTS(parents); i++) {
        assert_false(vmf_image_parent_write(&parents[i], link.writer, &error));
        assert_error(error, VMF_ERROR_IMAGE_PARENT);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(disks); i++) {
        assert_false(vmf_image_disk_write(&disks[i], link.writer, &error));
        assert_error(error, VMF_ERROR_IMAGE_DISK);
    }
    assert_int_equal(link.writer->pending->len, 0);
    link_free(&link);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_digest_is_xxh3_128_in_canonical_form),
        cmocka_unit_test(a_commit_block_is_read_as_it_was_written),
        cmocka_unit_test(commit_octets_are_where_the_page_says),
        cmocka_unit_test(every_fault_of_a_commit_block_has_its_error),
        cmocka_unit_test(header_and_tail_may_be_as_long_as_the_page_says),
        cmocka_unit_test(blocks_that_are_no_image),
        cmocka_unit_test(a_commit_block_with_any_octet_changed_is_refused),
        cmocka_unit_test(a_layout_passes_its_own_checks),
        cmocka_unit_test(a_layout_costs_little_beside_the_memory),
        cmocka_unit_test(what_cannot_be_laid_out_is_an_error),
        cmocka_unit_test(every_fault_of_a_layout_has_its_error),
        cmocka_unit_test(areas_may_be_in_any_order),
        cmocka_unit_test(a_chunk_entry_covers_what_the_page_says),
        cmocka_unit_test(every_fault_of_a_chunk_has_its_error),
        cmocka_unit_test(layout_records),
        cmocka_unit_test(parent_records),
        cmocka_unit_test(disk_records),
        cmocka_unit_test(a_parent_whose_name_is_out_of_bounds_is_refused),
        cmocka_unit_test(a_disk_with_a_field_out_of_bounds_is_refused),
        cmocka_unit_test(what_no_reader_takes_is_not_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
