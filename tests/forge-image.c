/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/forge-image.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define PAGE 4096u
#define CHUNK (2u << 20)
#define CHUNK_PAGES 512u

/* ---- octets ------------------------------------------------------------------------------------------------------ */

static uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t length)
{
    crc = ~crc;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    }
    return ~crc;
}

static void put(uint8_t *at, bool big, uint64_t value, unsigned octets)
{
    for (unsigned i = 0; i < octets; i++)
        at[big ? octets - 1 - i : i] = (uint8_t)(value >> 8 * i);
}

static void add(GByteArray *to, bool big, uint64_t value, unsigned octets)
{
    uint8_t at[8];

    put(at, big, value, octets);
    g_byte_array_append(to, at, octets);
}

static void add_zeros(GByteArray *to, size_t n)
{
    guint before = to->len;

    g_byte_array_set_size(to, before + (guint)n);
    memset(to->data + before, 0, n);
}

static void add_bytes(GByteArray *to, const void *data, size_t length)
{
    if (length > 0)
        g_byte_array_append(to, data, (guint)length);
}

void forge_image_record(GByteArray *to, bool big, uint32_t type, const void *body, size_t length)
{
    guint start = to->len;

    add(to, big, type, 4);
    add(to, big, length, 4);
    add(to, big, length, 4);
    uint32_t crc = crc32c(0, to->data + start, 12);
    add(to, big, crc32c(crc, body, length), 4);
    add_bytes(to, body, length);
    add_zeros(to, -length & 7);
}

static void add_fields(GByteArray *body, bool big, const char *fields, va_list values)
{
    for (; *fields; fields++)
        switch (*fields) {
        case 'H':
            add(body, big, (uint64_t)va_arg(values, int), 2);
            break;
        case 'I':
            add(body, big, va_arg(values, uint32_t), 4);
            break;
        case 'Q':
            add(body, big, va_arg(values, uint64_t), 8);
            break;
        case 'B':
            add_bytes(body, va_arg(values, const uint8_t *), 16);
            break;
        case 'Z':
            add_zeros(body, (size_t)va_arg(values, int));
            break;
        default: {
            const char *text = va_arg(values, const char *);
            add_bytes(body, text, strlen(text));
        }
        }
}

void forge_image_fields(GByteArray *to, bool big, uint32_t type, const char *fields, ...)
{
    g_autoptr(GByteArray) body = g_byte_array_new();
    va_list values;

    va_start(values, fields);
    add_fields(body, big, fields, values);
    va_end(values);
    forge_image_record(to, big, type, body->data, body->len);
}

/* ---- the guest --------------------------------------------------------------------------------------------------- */

static uint64_t mixed(uint64_t x)
{
    x ^= x >> 31;
    x *= UINT64_C(0x9FB21C651E98DF25);
    return x ^ x >> 29;
}

static void fill(uint8_t *page, uint64_t seed)
{
    for (unsigned i = 0; i < PAGE / 8; i++)
        put(page + 8 * i, false, mixed(seed * 1000003 + i + 1), 8);
}

static void set_page(ForgeImageBlock *block, uint32_t page, uint64_t seed)
{
    uint8_t *at = block->memory + (size_t)page * PAGE;

    block->data[page] = seed != 0;
    block->zero[page] = seed == 0;
    if (seed)
        fill(at, seed);
    else
        memset(at, 0, PAGE);
}

static void init_block(ForgeImageBlock *block, const char *name, uint32_t n_pages, uint64_t address, uint32_t flags)
{
    *block = (ForgeImageBlock){.name = name, .n_pages = n_pages, .address = address, .flags = flags};
    block->memory = aligned_alloc(PAGE, (size_t)n_pages * PAGE);
    memset(block->memory, 0, (size_t)n_pages * PAGE);
    block->data = g_new0(bool, n_pages);
    block->zero = g_new0(bool, n_pages);
}

static ForgeImage *image_of(bool big, uint64_t seed)
{
    ForgeImage *image = g_new0(ForgeImage, 1);

    image->big = big;
    image->architecture = "rv32";
    for (unsigned i = 0; i < 16; i++)
        image->id[i] = (uint8_t)(mixed(seed + i + 77) | 1);
    init_block(&image->blocks[0], "ram", FORGE_IMAGE_RAM_PAGES, 0x80000000, 0);
    init_block(&image->blocks[1], "rom", FORGE_IMAGE_ROM_PAGES, 0x1000, 1);
    image->disks = g_byte_array_new();
    return image;
}

void forge_image_rebuild(ForgeImage *image)
{
    forge_image_records(image);
    forge_image_assemble(image);
    forge_image_seal(image);
}

static void build(ForgeImage *image)
{
    forge_image_begin(image);
    forge_image_place(image);
    forge_image_rebuild(image);
}

/* Runs and single pages, gaps short and long, the first page and the last; chunk 1 of the RAM stays empty. */
ForgeImage *forge_image_new(bool big, uint64_t seed)
{
    ForgeImage *image = image_of(big, seed);
    ForgeImageBlock *ram = &image->blocks[0];

    for (uint32_t page = 0; page < ram->n_pages; page++)
        if (page / CHUNK_PAGES != 1 && (page < 40 || page % 7 == 0 || page % 64 > 50 || page == ram->n_pages - 1))
            set_page(ram, page, seed * 5000 + page + 1);
    set_page(&image->blocks[1], 0, seed * 7000 + 1);
    memset(ram->zero, 0, ram->n_pages);
    if (seed % 2)
        forge_image_fields(image->disks, big, FORGE_DISK, "IIQHHHHSSS", 0, 0, UINT64_C(1) << 30, 3, 5, 4, 0, "hda",
                           "uuid1", "mark");
    else
        forge_image_record(image->disks, big, FORGE_RAM_ONLY, NULL, 0);
    build(image);
    return image;
}

/* Some pages change, some become zero, some that were zero are written, and the empty chunk gets a page. */
ForgeImage *forge_image_layer(const ForgeImage *parent, const char *parent_name, uint64_t seed)
{
    ForgeImage *image = image_of(parent->big, seed);
    ForgeImageBlock *ram = &image->blocks[0];

    image->layer = true;
    image->architecture = parent->architecture;
    image->parent_name = g_strdup(parent_name);
    memcpy(image->parent_id, parent->id, 16);
    memcpy(image->parent_root, parent->root, 16);
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        memcpy(image->blocks[b].memory, parent->blocks[b].memory, (size_t)image->blocks[b].n_pages * PAGE);
    for (uint32_t page = 0; page < ram->n_pages; page++)
        if (page / CHUNK_PAGES != 1 && mixed(seed * 31 + page) % 5 < 2)
            set_page(ram, page, mixed(seed * 31 + page) % 5 ? seed * 5000 + page + 1 : 0);
    set_page(ram, CHUNK_PAGES + 100 + (uint32_t)(seed % 50), seed * 5000 + 17);
    forge_image_record(image->disks, image->big, FORGE_RAM_ONLY, NULL, 0);
    build(image);
    return image;
}

void forge_image_free(ForgeImage *image)
{
    if (!image)
        return;
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        free(image->blocks[b].memory);
        g_free(image->blocks[b].data);
        g_free(image->blocks[b].zero);
    }
    g_free(image->parent_name);
    g_clear_pointer(&image->begin, g_byte_array_unref);
    g_clear_pointer(&image->disks, g_byte_array_unref);
    g_clear_pointer(&image->header, g_byte_array_unref);
    g_clear_pointer(&image->tail, g_byte_array_unref);
    g_clear_pointer(&image->file, g_byte_array_unref);
    g_free(image);
}

/* ---- digests ----------------------------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t *page)
{
    for (unsigned i = 0; i < PAGE; i++)
        if (page[i])
            return false;
    return true;
}

static uint64_t digest_of(const uint8_t *page)
{
    uint64_t digest = XXH3_64bits(page, PAGE);

    return is_zero(page) ? 0 : digest ? digest : 1;
}

static uint64_t mix(uint64_t page, uint64_t digest)
{
    uint64_t x = digest ^ (page + 1) * UINT64_C(0x9E3779B97F4A7C15);

    x = (x ^ x >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    x = (x ^ x >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    return digest ? x ^ x >> 32 : 0;
}

static void put_digest(uint8_t *at, const uint8_t *data, size_t length)
{
    XXH128_hash_t hash = XXH3_128bits(data, length);

    put(at, true, hash.high64, 8);
    put(at + 8, true, hash.low64, 8);
}

/* ---- the steps --------------------------------------------------------------------------------------------------- */

static void add_headers(ForgeImage *image)
{
    GByteArray *to = image->begin;
    char architecture[32] = {0};

    add(to, true, UINT64_MAX, 8);
    add(to, true, 0x564D4659, 4);
    add(to, true, 3, 4);
    add(to, true, image->big ? 3 : 2, 2);
    add(to, true, 0, 2);
    add(to, true, crc32c(0, to->data, 20), 4);
    strcpy(architecture, image->architecture);
    add_bytes(to, architecture, sizeof(architecture));
    add(to, image->big, PAGE, 4);
    add(to, image->big, 1 << 8, 4);
    add_bytes(to, "0123456789abcdef", 16);
    add(to, image->big, 0, 4);
    add(to, image->big, crc32c(0, to->data + 24, 60), 4);
}

void forge_image_begin(ForgeImage *image)
{
    GByteArray *to = g_byte_array_new();

    g_clear_pointer(&image->begin, g_byte_array_unref);
    image->begin = to;
    add_headers(image);
    forge_image_fields(to, image->big, FORGE_PROPERTIES, "IIHHSS", 1, 0, 3, 4, "cpu", "rv32");
    for (uint32_t b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        const ForgeImageBlock *block = &image->blocks[b];
        forge_image_fields(to, image->big, FORGE_RAM_BLOCK, "IIQQIHHS", b, block->flags,
                           (uint64_t)block->n_pages * PAGE, block->address, PAGE, (int)strlen(block->name), 0,
                           block->name);
    }
    forge_image_fields(to, image->big, FORGE_SECTIONS, "IIIIIHHSIIIHHS", 2, 0, 0, 0, 1, 3, 0, "cpu", 1, 0, 2, 5, 0,
                       "timer");
    forge_image_fields(to, image->big, FORGE_OPTIONAL, "S", "nobody knows this");
    forge_image_fields(to, image->big, FORGE_FEATURES, "QQII", UINT64_C(2), UINT64_C(2), 0, 0);
    forge_image_record(to, image->big, FORGE_STATIC_DATA_END, NULL, 0);
}

static uint64_t place(uint64_t *end, uint64_t length, uint64_t alignment)
{
    uint64_t at = (*end + alignment - 1) / alignment * alignment;

    *end = at + length;
    return at;
}

static uint32_t n_chunks(const ForgeImageBlock *block)
{
    return (block->n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
}

static uint32_t bitmap_length(const ForgeImageBlock *block)
{
    return (block->n_pages + 63) / 64 * 8;
}

/* Not in the order in which the engine places them: a reader goes by what the header says. */
void forge_image_place(ForgeImage *image)
{
    uint64_t end = 4096 + 4096;

    for (unsigned b = FORGE_IMAGE_BLOCKS; b-- > 0;) {
        ForgeImageBlock *block = &image->blocks[b];
        block->digests = place(&end, n_chunks(block) * (uint64_t)PAGE, PAGE);
        block->data_bitmap = place(&end, bitmap_length(block), PAGE);
        block->zero_bitmap = image->layer ? place(&end, bitmap_length(block), PAGE) : 0;
    }
    image->table_length = 0;
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        image->table_length += n_chunks(&image->blocks[b]) * 8;
    image->table = place(&end, image->table_length, PAGE);
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        image->blocks[b].pages = place(&end, image->blocks[b].n_pages * (uint64_t)PAGE, CHUNK);
    image->tail_offset = place(&end, 0, PAGE);
}

static void add_layout(ForgeImage *image)
{
    g_autoptr(GByteArray) body = g_byte_array_new();

    add(body, image->big, FORGE_IMAGE_BLOCKS, 4);
    add(body, image->big, 0, 4);
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        add(body, image->big, image->blocks[b].pages, 8);
        add(body, image->big, image->blocks[b].data_bitmap, 8);
        add(body, image->big, image->blocks[b].zero_bitmap, 8);
        add(body, image->big, image->blocks[b].digests, 8);
    }
    forge_image_record(image->header, image->big, FORGE_LAYOUT, body->data, body->len);
}

static void add_section(ForgeImage *image, XXH3_state_t *sum, uint32_t id, uint32_t flags, uint32_t part,
                        const char *text)
{
    guint start = image->tail->len;

    forge_image_fields(image->tail, image->big, FORGE_SECTION, "IIIIS", id, flags, part, 0, text);
    XXH3_64bits_update(sum, image->tail->data + start + 16, 16 + strlen(text));
}

static void add_switchover(ForgeImage *image, uint64_t device_sum)
{
    g_autoptr(GByteArray) body = g_byte_array_new();

    add_bytes(body, image->id, 16);
    add(body, image->big, 1, 4);
    add(body, image->big, FORGE_IMAGE_BLOCKS, 4);
    add(body, image->big, XXH3_64bits(image->begin->data, image->begin->len), 8);
    add(body, image->big, device_sum, 8);
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        const ForgeImageBlock *block = &image->blocks[b];
        uint64_t data = 0, sum = 0;
        for (uint32_t page = 0; page < block->n_pages; page++) {
            uint64_t digest = digest_of(block->memory + (size_t)page * PAGE);
            data += digest != 0;
            sum += mix(page, digest);
        }
        add(body, image->big, b, 4);
        add(body, image->big, 0, 4);
        add(body, image->big, data, 8);
        add(body, image->big, 0, 8);
        add(body, image->big, block->n_pages - data, 8);
        add(body, image->big, sum, 8);
    }
    forge_image_record(image->tail, image->big, FORGE_SWITCHOVER, body->data, body->len);
}

void forge_image_records(ForgeImage *image)
{
    XXH3_state_t *sum = XXH3_createState();

    g_clear_pointer(&image->header, g_byte_array_unref);
    image->header = g_byte_array_new();
    add_bytes(image->header, image->begin->data, image->begin->len);
    add_layout(image);
    if (image->layer)
        forge_image_fields(image->header, image->big, FORGE_PARENT, "BBHHIS", image->parent_id, image->parent_root,
                           (int)strlen(image->parent_name), 0, 0, image->parent_name);
    forge_image_record(image->header, image->big, FORGE_END, NULL, 0);

    g_clear_pointer(&image->tail, g_byte_array_unref);
    image->tail = g_byte_array_new();
    add_bytes(image->tail, image->disks->data, image->disks->len);
    XXH3_64bits_reset(sum);
    add_section(image, sum, 0, 1, 0, "state of the cpu, ");
    add_section(image, sum, 1, 3, 0, "and of the timer");
    add_section(image, sum, 0, 2, 1, "in two parts");
    add_switchover(image, XXH3_64bits_digest(sum));
    forge_image_record(image->tail, image->big, FORGE_END, NULL, 0);
    XXH3_freeState(sum);
}

static void store(ForgeImage *image, uint64_t offset, const void *data, size_t length)
{
    g_assert(offset + length <= image->file->len);
    if (length > 0)
        memcpy(image->file->data + offset, data, length);
}

static void set_bit(ForgeImage *image, uint64_t bitmap, uint32_t page)
{
    image->file->data[bitmap + page / 8] |= (uint8_t)(1 << page % 8);
}

static void store_chunk(ForgeImage *image, const ForgeImageBlock *block, uint32_t chunk, uint64_t entry_at)
{
    uint8_t all[64 + 64 + PAGE] = {0};
    size_t length = 128;
    bool any = false;

    for (uint32_t i = 0; i < CHUNK_PAGES && chunk * CHUNK_PAGES + i < block->n_pages; i++) {
        uint32_t page = chunk * CHUNK_PAGES + i;
        const uint8_t *memory = block->memory + (size_t)page * PAGE;
        any |= block->data[page] || (image->layer && block->zero[page]);
        if (image->layer && block->zero[page]) {
            all[64 + i / 8] |= (uint8_t)(1 << i % 8);
            set_bit(image, block->zero_bitmap, page);
        }
        if (!block->data[page])
            continue;
        length = sizeof(all);
        all[i / 8] |= (uint8_t)(1 << i % 8);
        set_bit(image, block->data_bitmap, page);
        put(all + 128 + 8 * i, false, digest_of(memory), 8);
        store(image, block->pages + (uint64_t)page * PAGE, memory, PAGE);
    }
    if (length > 128)
        store(image, block->digests + (uint64_t)chunk * PAGE, all + 128, PAGE);
    put(image->file->data + entry_at, false, any ? XXH3_64bits(all, length) : 0, 8);
}

void forge_image_assemble(ForgeImage *image)
{
    uint64_t entry_at = image->table;

    g_clear_pointer(&image->file, g_byte_array_unref);
    image->file = g_byte_array_new();
    image->file_size = (image->tail_offset + image->tail->len + PAGE - 1) / PAGE * PAGE;
    add_zeros(image->file, image->file_size);
    store(image, 4096, image->header->data, image->header->len);
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        for (uint32_t chunk = 0; chunk < n_chunks(&image->blocks[b]); chunk++, entry_at += 8)
            store_chunk(image, &image->blocks[b], chunk, entry_at);
    store(image, image->tail_offset, image->tail->data, image->tail->len);
}

static void count_entry(ForgeImage *image, const ForgeImageBlock *block, uint32_t chunk, uint64_t entry_at)
{
    uint8_t all[64 + 64 + PAGE] = {0};
    uint32_t length = MIN(64, bitmap_length(block) - chunk * 64);
    bool has_data = false, any = false;

    memcpy(all, image->file->data + block->data_bitmap + chunk * 64, length);
    for (unsigned i = 0; i < 64; i++)
        has_data |= all[i] != 0;
    if (image->layer)
        memcpy(all + 64, image->file->data + block->zero_bitmap + chunk * 64, length);
    for (unsigned i = 0; i < 128; i++)
        any |= all[i] != 0;
    memcpy(all + 128, image->file->data + block->digests + (uint64_t)chunk * PAGE, PAGE);
    put(image->file->data + entry_at, false, any ? XXH3_64bits(all, has_data ? sizeof(all) : 128) : 0, 8);
}

void forge_image_entries(ForgeImage *image)
{
    uint64_t entry_at = image->table;

    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        for (uint32_t chunk = 0; chunk < n_chunks(&image->blocks[b]); chunk++, entry_at += 8)
            count_entry(image, &image->blocks[b], chunk, entry_at);
    forge_image_seal(image);
}

void forge_image_crc(ForgeImage *image)
{
    put(image->file->data + 4092, false, crc32c(0, image->file->data, 4092), 4);
}

void forge_image_seal(ForgeImage *image)
{
    uint8_t *at = image->file->data;

    memset(at, 0, PAGE);
    memcpy(at, "VMFIMAGE", 8);
    put(at + 8, false, 1, 4);
    put(at + 12, false, image->layer, 4);
    memcpy(at + 16, image->id, 16);
    put(at + 32, false, image->file_size, 8);
    put(at + 40, false, image->header->len, 8);
    put(at + 48, false, image->table, 8);
    put(at + 56, false, image->table_length, 8);
    put(at + 64, false, image->tail_offset, 8);
    put(at + 72, false, image->tail->len, 8);
    put_digest(at + 80, at + 4096, image->header->len);
    put_digest(at + 96, at + image->table, image->table_length);
    put_digest(at + 112, at + image->tail_offset, image->tail->len);
    put_digest(at + 128, at, 128);
    memcpy(image->root, at + 128, 16);
    forge_image_crc(image);
}

/* Blocks of zeros are left out, so that a chain of many images costs what is in it. */
void forge_image_write(const ForgeImage *image, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    g_assert(fd >= 0 && ftruncate(fd, image->file->len) == 0);
    for (guint at = 0; at < image->file->len; at += PAGE) {
        guint length = MIN(PAGE, image->file->len - at);
        if (length < PAGE || !is_zero(image->file->data + at))
            g_assert(pwrite(fd, image->file->data + at, length, at) == (ssize_t)length);
    }
    close(fd);
}
