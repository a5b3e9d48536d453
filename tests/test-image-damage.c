/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that are cut, damaged, or lies: each is refused with the id of what is wrong with it, and no wrong byte is
 * given. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tests/image-rig.h"

/* ---- damage ------------------------------------------------------------------------------------------------------ */

static void every_truncation_is_refused(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 5);
    g_autofree char *path = image_path(*state, "image"), *uri = image_uri(*state, "image");

    image_write(*state, image, "image");
    for (off_t size = (off_t)image->file_size - 4096; size >= 0; size -= 4096) {
        g_autoptr(GError) error = NULL;
        assert_int_equal(truncate(path, size), 0);
        assert_false(image_read_all(uri, image, &error));
        image_assert_id(error, size == 0 ? "image.magic" : "image.layout", "truncated");
    }
    assert_int_equal(truncate(path, 100), 0);
    g_autoptr(GError) error = NULL;
    assert_false(image_read_all(uri, image, &error));
    image_assert_id(error, "image.magic", "100 octets");
}

/* Flips a bit of the file, and says what reading everything then gives. */
static void flip(const ImageRoom *room, const ForgeImage *image, uint64_t offset, unsigned bit, const char *id)
{
    g_autofree char *path = image_path(room, "image"), *uri = image_uri(room, "image");
    g_autofree char *what = g_strdup_printf("bit %u at %" G_GUINT64_FORMAT, bit, offset);
    g_autoptr(GError) error = NULL;
    uint8_t octet = image->file->data[offset] ^ (uint8_t)(1 << bit);
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    assert_int_equal(pwrite(fd, &octet, 1, (off_t)offset), 1);
    bool good = image_read_all(uri, image, &error);
    if (id)
        image_assert_id(error, id, what);
    else
        assert_true(good);
    assert_int_equal(pwrite(fd, &image->file->data[offset], 1, (off_t)offset), 1);
    close(fd);
}

static void flips_are_found_wherever_they_are(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 6);
    const ForgeImageBlock *ram = &image->blocks[0];

    image_write(*state, image, "image");
    for (unsigned i = 0; i < 160; i++)
        flip(*state, image, i, i % 8, i < 8 ? "image.magic" : i < 12 ? "image.version" : "image.crc");
    flip(*state, image, 4000, 0, "image.crc");
    flip(*state, image, 4095, 7, "image.crc");
    for (unsigned i = 0; i < image->header->len; i += 3)
        flip(*state, image, 4096 + i, i % 8, "image.digest");
    for (unsigned i = 0; i < image->tail->len; i += 3)
        flip(*state, image, image->tail_offset + i, i % 8, "image.digest");
    for (unsigned i = 0; i < image->table_length; i++)
        flip(*state, image, image->table + i, i % 8, "image.digest");
    for (unsigned i = 0; i < 64; i++) /* of the first chunk: there are pages */
        flip(*state, image, ram->data_bitmap + i, i % 8, "image.digest");
    for (unsigned i = 0; i < 4096; i += 61)
        flip(*state, image, ram->digests + i, i % 8, "image.digest");
    for (unsigned page = 0; page < ram->n_pages; page += 13)
        flip(*state, image, ram->pages + (uint64_t)page * VMF_PAGE_SIZE + page, page % 8,
             ram->data[page] ? "image.page" : NULL);
}

static void damaged_done(void *opaque, const VmfImageRead *read, GError *error)
{
    VmfImageRead *kept = opaque;

    *kept = *read;
    image_assert_id(error, "image.page", "damaged");
    assert_non_null(strstr(error->message, "RAM block ram, page 15, and 1 more"));
    g_error_free(error);
}

static void damaged_pages_are_named(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 6);
    g_autofree char *uri = image_uri(*state, "image");
    uint8_t *memory = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    VmfImageRead read;

    image->file->data[image->blocks[0].pages + 15 * VMF_PAGE_SIZE + 7] ^= 1;
    image->file->data[image->blocks[0].pages + 500 * VMF_PAGE_SIZE + 4095] ^= 1;
    image_write(*state, image, "image");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);
    g_autoptr(VmfImageReader) reader = vmf_image_reader_new(chain, 0, NULL);
    assert_true(vmf_image_reader_start(reader, 0, 0, &image_every_page, memory, damaged_done, &read, NULL));
    vmf_image_reader_wait(reader, 0);
    assert_int_equal(vmf_page_set_count(&read.damaged), 2);
    assert_true(vmf_page_set_test(&read.damaged, 15) && vmf_page_set_test(&read.damaged, 500));
    free(memory);
}

/* ---- what only a liar writes ------------------------------------------------------------------------------------- */

static void put64(ForgeImage *image, uint64_t offset, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++)
        image->file->data[offset + i] = (uint8_t)(value >> 8 * i);
}

static void swap_parts(ForgeImage *image, GByteArray *with)
{
    g_byte_array_unref(image->tail);
    image->tail = with;
    forge_image_assemble(image);
    forge_image_seal(image);
}

/* A tail of other records: of the good one's, which begin with one disk and end with SWITCHOVER and END. */
static GByteArray *slice(const ForgeImage *image, guint from, guint to)
{
    GByteArray *some = g_byte_array_new();

    g_byte_array_append(some, image->tail->data + from, to - from);
    return some;
}

static guint switchover_at(const ForgeImage *image)
{
    return image->tail->len - 16 - (16 + 48 + FORGE_IMAGE_BLOCKS * 40) +
           8; /* END; header and body, the sum of no pad */
}

static void reserved_octet(ForgeImage *image)
{
    image->file->data[200] = 1;
    forge_image_crc(image);
}

static void flag_unknown(ForgeImage *image)
{
    image->file->data[12] = 2;
    forge_image_crc(image);
}

static void no_id(ForgeImage *image)
{
    memset(image->id, 0, 16);
    forge_image_seal(image);
}

static void wrong_root(ForgeImage *image)
{
    image->file->data[130] ^= 1;
    forge_image_crc(image);
}

static void nothing_written(ForgeImage *image)
{
    memset(image->file->data, 0, 4096);
}

static void other_version(ForgeImage *image)
{
    image->file->data[8] = 3;
    forge_image_crc(image);
}

static void table_elsewhere(ForgeImage *image)
{
    put64(image, 48, image->table + 8);
    forge_image_crc(image);
}

static void huge_tail(ForgeImage *image)
{
    put64(image, 72, UINT64_MAX - 4095);
    forge_image_crc(image);
}

static void huge_header(ForgeImage *image)
{
    put64(image, 40, UINT64_C(1) << 40);
    forge_image_crc(image);
}

static void pages_over_the_tables(ForgeImage *image)
{
    image->blocks[1].digests = image->table;
    forge_image_rebuild(image);
}

/* A layout that the octets do not follow: they stay where they are. */
static void layout_says(ForgeImage *image, uint64_t *field, uint64_t value)
{
    uint64_t real = *field;

    *field = value;
    forge_image_records(image);
    *field = real;
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void pages_not_aligned(ForgeImage *image)
{
    layout_says(image, &image->blocks[0].pages, image->blocks[0].pages + 4096);
}

static void pages_beyond_the_file(ForgeImage *image)
{
    layout_says(image, &image->blocks[0].pages, UINT64_C(1) << 40);
}

static void pages_around_the_end_of_numbers(ForgeImage *image)
{
    layout_says(image, &image->blocks[0].pages, UINT64_MAX - (2u << 20) + 1);
}

static void bitmap_in_the_header(ForgeImage *image)
{
    layout_says(image, &image->blocks[0].data_bitmap, 4096);
}

static void zero_bitmap_of_no_layer(ForgeImage *image)
{
    layout_says(image, &image->blocks[0].zero_bitmap, image->table);
}

static void larger_block(ForgeImage *image)
{
    uint32_t real = image->blocks[0].n_pages;

    image->blocks[0].n_pages = 1u << 31;
    forge_image_begin(image);
    image->blocks[0].n_pages = real;
    forge_image_rebuild(image);
}

static void entry_of_an_empty_chunk(ForgeImage *image)
{
    put64(image, image->table + 8, 1);
    forge_image_seal(image);
}

static void no_layout(ForgeImage *image)
{
    g_byte_array_set_size(image->header, image->begin->len);
    forge_image_record(image->header, image->big, FORGE_END, NULL, 0);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void layout_of_other_blocks(ForgeImage *image)
{
    g_byte_array_set_size(image->header, image->begin->len);
    forge_image_fields(image->header, image->big, FORGE_LAYOUT, "IIZ", 1, 0, 32);
    forge_image_record(image->header, image->big, FORGE_END, NULL, 0);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void parent_of_no_layer(ForgeImage *image)
{
    g_byte_array_set_size(image->header, image->header->len - 16);
    forge_image_fields(image->header, image->big, FORGE_PARENT, "BBHHIS", image->id, image->root, 6, 0, 0, "file:x");
    forge_image_record(image->header, image->big, FORGE_END, NULL, 0);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void octets_behind_the_header(ForgeImage *image)
{
    forge_image_record(image->header, image->big, FORGE_END, NULL, 0);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void header_without_end(ForgeImage *image)
{
    g_byte_array_set_size(image->header, image->header->len - 16);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void static_data_late(ForgeImage *image)
{
    g_byte_array_set_size(image->header, image->header->len - 16);
    forge_image_fields(image->header, image->big, FORGE_PROPERTIES, "II", 0, 0);
    forge_image_record(image->header, image->big, FORGE_END, NULL, 0);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void no_features(ForgeImage *image)
{
    guint length = image->begin->len;

    g_byte_array_set_size(image->begin, length - 16 - 40);
    forge_image_record(image->begin, image->big, FORGE_STATIC_DATA_END, NULL, 0);
    forge_image_rebuild(image);
}

static void disk_twice(ForgeImage *image)
{
    guint length = image->disks->len;

    g_byte_array_set_size(image->disks, 2 * length);
    memcpy(image->disks->data + length, image->disks->data, length);
    forge_image_rebuild(image);
}

static void disk_and_ram_only(ForgeImage *image)
{
    forge_image_record(image->disks, image->big, FORGE_RAM_ONLY, NULL, 0);
    forge_image_rebuild(image);
}

static void section_missing(ForgeImage *image)
{
    guint at = switchover_at(image);
    GByteArray *tail = slice(image, 0, at - 48); /* the last part of section 0 */

    g_byte_array_append(tail, image->tail->data + at, image->tail->len - at);
    swap_parts(image, tail);
}

static void section_twice(ForgeImage *image)
{
    guint at = switchover_at(image);
    GByteArray *tail = slice(image, 0, at);

    g_byte_array_append(tail, image->tail->data + at - 48, image->tail->len - at + 48);
    swap_parts(image, tail);
}

static void section_of_no_list(ForgeImage *image)
{
    guint at = switchover_at(image);
    GByteArray *tail = slice(image, 0, at);

    forge_image_fields(tail, image->big, FORGE_SECTION, "IIII", 2, 3, 0, 0);
    g_byte_array_append(tail, image->tail->data + at, image->tail->len - at);
    swap_parts(image, tail);
}

static void no_switchover(ForgeImage *image)
{
    GByteArray *tail = slice(image, 0, switchover_at(image));

    forge_image_record(tail, image->big, FORGE_END, NULL, 0);
    swap_parts(image, tail);
}

static void tail_cut(ForgeImage *image)
{
    swap_parts(image, slice(image, 0, image->tail->len - 24));
}

/* SWITCHOVER with one of its octets changed, and its CRC right. */
static void switchover_with(ForgeImage *image, guint octet)
{
    guint at = switchover_at(image), length = image->tail->len - 16 - at - 16;
    g_autofree uint8_t *body = g_memdup2(image->tail->data + at + 16, length);
    GByteArray *tail = slice(image, 0, at);

    body[octet] ^= 1;
    forge_image_record(tail, image->big, FORGE_SWITCHOVER, body, length);
    forge_image_record(tail, image->big, FORGE_END, NULL, 0);
    swap_parts(image, tail);
}

static void other_token(ForgeImage *image)
{
    switchover_with(image, 3);
}

static void other_static_sum(ForgeImage *image)
{
    switchover_with(image, 24);
}

static void other_device_sum(ForgeImage *image)
{
    switchover_with(image, 32);
}

static void other_counts(ForgeImage *image)
{
    switchover_with(image, 40 + 8);
}

static void bit_that_nobody_sealed(ForgeImage *image)
{
    image->file->data[image->blocks[1].data_bitmap] |= 4;
    forge_image_seal(image);
}

static void bit_behind_the_end(ForgeImage *image)
{
    image->file->data[image->blocks[1].data_bitmap] |= 4;
    image->file->data[image->blocks[1].digests + 2 * 8] = 1;
    forge_image_entries(image);
}

static void page_of_zeros(ForgeImage *image)
{
    static const uint8_t zeros[VMF_PAGE_SIZE];

    image->file->data[image->blocks[1].data_bitmap] |= 2;
    put64(image, image->blocks[1].digests + 8, XXH3_64bits(zeros, sizeof(zeros)));
    forge_image_entries(image);
}

static void digest_of_no_page(ForgeImage *image)
{
    put64(image, image->blocks[1].digests + 8, 77);
    forge_image_entries(image);
}

static void page_without_digest(ForgeImage *image)
{
    put64(image, image->blocks[1].digests, 0);
    forge_image_entries(image);
}

typedef void (*Plant)(ForgeImage *image);

static const struct {
    const char *what;
    Plant plant;
    const char *id;
} plants[] = {
    {"a reserved octet of the commit block", reserved_octet, "image.layout"},
    {"an unknown flag", flag_unknown, "image.layout"},
    {"an id of zeros", no_id, "image.layout"},
    {"a wrong root digest", wrong_root, "image.digest"},
    {"a commit block of zeros", nothing_written, "image.incomplete"},
    {"another version", other_version, "image.version"},
    {"tables that are not aligned", table_elsewhere, "image.layout"},
    {"a tail as long as can be", huge_tail, "image.layout"},
    {"a header of a terabyte", huge_header, "image.layout"},
    {"digests over the tables", pages_over_the_tables, "image.layout"},
    {"pages that are not aligned", pages_not_aligned, "image.layout"},
    {"pages beyond the file", pages_beyond_the_file, "image.layout"},
    {"pages around the end of numbers", pages_around_the_end_of_numbers, "image.layout"},
    {"a bitmap in the header", bitmap_in_the_header, "image.layout"},
    {"a zero bitmap of no layer", zero_bitmap_of_no_layer, "image.layout"},
    {"a block larger than its place", larger_block, "image.layout"},
    {"an entry of an empty chunk", entry_of_an_empty_chunk, "image.digest"},
    {"no LAYOUT", no_layout, "stream.record-order"},
    {"LAYOUT of other blocks", layout_of_other_blocks, "stream.record-body"},
    {"PARENT of no layer", parent_of_no_layer, "stream.record-order"},
    {"octets behind the header's END", octets_behind_the_header, "image.layout"},
    {"a header without END", header_without_end, "channel.cut"},
    {"static data after its end", static_data_late, "static.late"},
    {"no FEATURES", no_features, "stream.record-order"},
    {"a disk twice", disk_twice, "image.disk"},
    {"RAM_ONLY beside a disk", disk_and_ram_only, "stream.record-order"},
    {"a section that is not complete", section_missing, "section"},
    {"a part twice", section_twice, "section"},
    {"a section of no list", section_of_no_list, "section"},
    {"no SWITCHOVER", no_switchover, "stream.record-order"},
    {"a tail that ends within a record", tail_cut, "channel.cut"},
    {"another token", other_token, "stream.record-body"},
    {"another static sum", other_static_sum, "static.sum"},
    {"another device sum", other_device_sum, "device-state.sum"},
    {"counts of other pages", other_counts, "ram.counts"},
    {"a bit that nobody sealed", bit_that_nobody_sealed, "image.digest"},
    {"a bit behind the end", bit_behind_the_end, "image.bitmap"},
    {"a data bit of a page of zeros", page_of_zeros, "image.bitmap"},
    {"a digest of a page that is not there", digest_of_no_page, "image.digest"},
    {"a page without digest", page_without_digest, "image.digest"},
};

static void a_page_with_both_bits_is_refused(void **state)
{
    g_autoptr(ForgeImage) base = forge_image_new(false, 2);
    g_autoptr(ForgeImage) layer = forge_image_layer(base, "file:base", 50);
    g_autofree char *uri = image_uri(*state, "layer");
    const ForgeImageBlock *ram = &layer->blocks[0];
    g_autoptr(GError) error = NULL;
    unsigned page = 0;

    while (!ram->data[page])
        page++;
    layer->file->data[ram->zero_bitmap + page / 8] |= (uint8_t)(1 << page % 8);
    forge_image_entries(layer);
    image_write(*state, base, "base");
    image_write(*state, layer, "layer");
    assert_false(image_read_all(uri, layer, &error));
    image_assert_id(error, "image.bitmap", "both bits");
}

static void what_is_planted_is_refused(void **state)
{
    g_autofree char *uri = image_uri(*state, "image");

    for (unsigned i = 0; i < G_N_ELEMENTS(plants); i++) {
        g_autoptr(ForgeImage) image = forge_image_new(false, 9);
        g_autoptr(GError) error = NULL;
        plants[i].plant(image);
        image_write(*state, image, "image");
        image_read_all(uri, image, &error);
        image_assert_id(error, plants[i].id, plants[i].what);
    }
}

#define IN_A_ROOM(f) cmocka_unit_test_setup_teardown(f, image_enter, image_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_ROOM(every_truncation_is_refused), IN_A_ROOM(flips_are_found_wherever_they_are),
        IN_A_ROOM(damaged_pages_are_named),     IN_A_ROOM(a_page_with_both_bits_is_refused),
        IN_A_ROOM(what_is_planted_is_refused),
    };

    return cmocka_run_group_tests_name("image-damage", tests, NULL, NULL);
}
