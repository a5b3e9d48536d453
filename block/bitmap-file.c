/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/bitmap-file.h"

#include <string.h>
#include <unistd.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "stream/crc32c.h"
#include "stream/pack.h"

#define BODY_BYTES (VMF_BITMAP_PIECE_WORDS * 8)
#define CRC_AT (VMF_BITMAP_SECTOR - 4)
#define FORMAT_VERSION 1u
#define READ_SECTORS 128u
#define FLAG_IN_USE 1u
#define FLAG_RECORDING 1u
#define FLAG_INCONSISTENT 2u

static const char magic[8] = "vmf-bits"; /* no terminator */

/* What follows the body of a sector. */
typedef struct {
    uint32_t kind, index, id, crc;
} Foot;
G_STATIC_ASSERT(BODY_BYTES + sizeof(Foot) == VMF_BITMAP_SECTOR);

void vmf_bitmap_header_init(VmfBitmapHeader *header, uint64_t disk_bytes)
{
    uint64_t regions_max = (uint64_t)VMF_BITMAP_INTENT_PIECES_MAX * VMF_BITMAP_PIECE_WORDS * 64;

    *header = (VmfBitmapHeader){.disk_bytes = disk_bytes, .region_bytes = VMF_BITMAP_REGION_MIN};
    while ((disk_bytes - 1) / header->region_bytes >= regions_max)
        header->region_bytes *= 2;
    header->n_regions = (uint32_t)((disk_bytes - 1) / header->region_bytes + 1);
    header->n_intent_pieces = (header->n_regions - 1) / (VMF_BITMAP_PIECE_WORDS * 64) + 1;
}

uint64_t vmf_bitmap_file_entries(const VmfBitmapHeader *header)
{
    return 1 + header->n_intent_pieces;
}

uint64_t vmf_bitmap_file_bits(const VmfBitmapHeader *header)
{
    return vmf_bitmap_file_entries(header) + header->n_bitmaps;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* The body is there already. */
static void seal(uint8_t *sector, const VmfBitmapHeader *header, uint32_t kind, uint32_t index)
{
    Foot foot = {GUINT32_TO_LE(kind), GUINT32_TO_LE(index), GUINT32_TO_LE(header->id), 0};

    memcpy(sector + BODY_BYTES, &foot, sizeof(foot));
    foot.crc = GUINT32_TO_LE(vmf_crc32c(0, sector, CRC_AT));
    memcpy(sector + CRC_AT, &foot.crc, sizeof(foot.crc));
}

void vmf_bitmap_encode(uint8_t sector[VMF_BITMAP_SECTOR], const VmfBitmapHeader *header, uint32_t kind, uint32_t index,
                       const uint64_t *words, unsigned n)
{
    memset(sector, 0, VMF_BITMAP_SECTOR);
    for (unsigned i = 0; i < n; i++) {
        uint64_t word = GUINT64_TO_LE(words[i]);

        memcpy(sector + i * 8, &word, sizeof(word));
    }
    seal(sector, header, kind, index);
}

/* Puts what was packed into the body. */
static void put_body(uint8_t *sector, GByteArray *bytes)
{
    memset(sector, 0, VMF_BITMAP_SECTOR);
    memcpy(sector, bytes->data, MIN(bytes->len, BODY_BYTES));
}

static VmfPack pack_begin(GByteArray *bytes)
{
    return (VmfPack){.bytes = bytes, .swap = G_BYTE_ORDER != G_LITTLE_ENDIAN};
}

void vmf_bitmap_encode_header(uint8_t sector[VMF_BITMAP_SECTOR], const VmfBitmapHeader *header, uint64_t n_sectors)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    VmfPack pack = pack_begin(bytes);

    vmf_pack_bytes(&pack, magic, sizeof(magic));
    vmf_pack_u32(&pack, FORMAT_VERSION);
    vmf_pack_u32(&pack, header->in_use ? FLAG_IN_USE : 0);
    vmf_pack_u64(&pack, header->disk_bytes);
    vmf_pack_u64(&pack, header->region_bytes);
    vmf_pack_u32(&pack, header->n_intent_pieces);
    vmf_pack_u32(&pack, header->n_bitmaps);
    vmf_pack_u64(&pack, n_sectors);
    vmf_pack_u64(&pack, (uint64_t)header->mtime_ns);
    put_body(sector, bytes);
    seal(sector, header, VMF_BITMAP_HEADER, 0);
}

void vmf_bitmap_encode_entry(uint8_t sector[VMF_BITMAP_SECTOR], const VmfBitmapHeader *header, uint32_t index,
                             const VmfBitmap *bitmap, uint64_t first_sector)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    VmfPack pack = pack_begin(bytes);
    uint32_t length = (uint32_t)strlen(bitmap->name);

    vmf_pack_u32(&pack, bitmap->granularity_bytes);
    vmf_pack_u32(&pack, (bitmap->file_records ? FLAG_RECORDING : 0) | (bitmap->problem ? FLAG_INCONSISTENT : 0));
    vmf_pack_u64(&pack, first_sector);
    vmf_pack_u64(&pack, bitmap->n_pieces);
    vmf_pack_u32(&pack, length);
    vmf_pack_bytes(&pack, bitmap->name, length);
    put_body(sector, bytes);
    seal(sector, header, VMF_BITMAP_ENTRY, index);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

bool vmf_bitmap_file_is_one(int fd)
{
    char found[sizeof(magic)];

    return pread(fd, found, sizeof(found), 0) == sizeof(found) && memcmp(found, magic, sizeof(magic)) == 0;
}

static bool damaged(const VmfStorage *storage, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_BITMAP, "%s: read: %s", vmf_storage_name(storage), why);
    return false;
}

/* @header NULL: the first sector, which says the id itself. */
static bool is_sealed(const uint8_t *sector, const VmfBitmapHeader *header, uint32_t kind, uint32_t index)
{
    Foot foot;

    memcpy(&foot, sector + BODY_BYTES, sizeof(foot));
    return vmf_crc32c_matches(vmf_crc32c(0, sector, CRC_AT), GUINT32_FROM_LE(foot.crc)) &&
           GUINT32_FROM_LE(foot.kind) == kind && GUINT32_FROM_LE(foot.index) == index &&
           (!header || GUINT32_FROM_LE(foot.id) == header->id);
}

static void get_words(const uint8_t *sector, uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    memcpy(words, sector, BODY_BYTES);
    for (unsigned i = 0; i < VMF_BITMAP_PIECE_WORDS; i++)
        words[i] = GUINT64_FROM_LE(words[i]);
}

static bool parse_header(const VmfStorage *storage, const uint8_t *sector, uint64_t disk_bytes, VmfBitmapHeader *header,
                         uint64_t *n_sectors, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(sector, BODY_BYTES, G_BYTE_ORDER != G_LITTLE_ENDIAN);
    const uint8_t *found = vmf_unpack_bytes(&unpack, sizeof(magic));
    uint32_t version = vmf_unpack_u32(&unpack), flags = vmf_unpack_u32(&unpack), n_pieces;
    uint64_t disk, region;
    Foot foot;

    if (memcmp(found, magic, sizeof(magic)) != 0)
        return damaged(storage, "it is no file of bitmaps", error);
    if (version != FORMAT_VERSION)
        return damaged(storage, "it has another version than 1", error);
    if (!is_sealed(sector, NULL, VMF_BITMAP_HEADER, 0))
        return damaged(storage, "its header is damaged", error);
    disk = vmf_unpack_u64(&unpack);
    region = vmf_unpack_u64(&unpack);
    n_pieces = vmf_unpack_u32(&unpack);
    if (disk != disk_bytes)
        return damaged(storage, "it belongs to a disk of another size", error);
    vmf_bitmap_header_init(header, disk_bytes);
    header->n_bitmaps = vmf_unpack_u32(&unpack);
    *n_sectors = vmf_unpack_u64(&unpack);
    header->mtime_ns = (int64_t)vmf_unpack_u64(&unpack);
    vmf_unpack_zero(&unpack, unpack.left);
    memcpy(&foot, sector + BODY_BYTES, sizeof(foot));
    header->id = GUINT32_FROM_LE(foot.id);
    header->in_use = flags & FLAG_IN_USE;
    if (!vmf_unpack_done(&unpack) || flags & ~FLAG_IN_USE || region != header->region_bytes ||
        n_pieces != header->n_intent_pieces || header->n_bitmaps > VMF_DISK_BITMAPS_MAX ||
        *n_sectors > vmf_storage_size(storage) / VMF_BITMAP_SECTOR || (header->in_use && header->mtime_ns != 0))
        return damaged(storage, "its header makes no sense", error);
    return true;
}

static bool is_known(const GPtrArray *bitmaps, const char *name)
{
    for (guint i = 0; i < bitmaps->len; i++)
        if (strcmp(((const VmfBitmap *)g_ptr_array_index(bitmaps, i))->name, name) == 0)
            return true;
    return false;
}

/* @at: where its bits must begin; moved behind them. */
static VmfBitmap *parse_entry(const VmfStorage *storage, const VmfBitmapHeader *header, const uint8_t *sector,
                              uint32_t index, uint64_t *at, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(sector, BODY_BYTES, G_BYTE_ORDER != G_LITTLE_ENDIAN);
    uint32_t granularity = vmf_unpack_u32(&unpack), flags = vmf_unpack_u32(&unpack), length;
    uint64_t first = vmf_unpack_u64(&unpack), n_pieces = vmf_unpack_u64(&unpack);
    g_autofree char *name = NULL;

    length = vmf_unpack_u32(&unpack);
    if (length <= VMF_BITMAP_NAME_MAX)
        name = vmf_unpack_string(&unpack, length);
    vmf_unpack_zero(&unpack, unpack.left);
    if (!is_sealed(sector, header, VMF_BITMAP_ENTRY, index) || !name || !vmf_unpack_done(&unpack) ||
        flags & ~(FLAG_RECORDING | FLAG_INCONSISTENT)) {
        damaged(storage, "what it says of a bitmap is damaged", error);
        return NULL;
    }
    g_autoptr(VmfBitmap) bitmap = vmf_bitmap_new(name, header->disk_bytes, granularity, NULL);
    if (!bitmap || first != *at || n_pieces != bitmap->n_pieces) {
        damaged(storage, "what it says of a bitmap makes no sense", error);
        return NULL;
    }
    bitmap->recording = bitmap->file_records = flags & FLAG_RECORDING;
    bitmap->persistent = true;
    bitmap->problem = flags & FLAG_INCONSISTENT ? g_strdup("it was inconsistent before") : NULL;
    *at += n_pieces;
    return g_steal_pointer(&bitmap);
}

static bool read_entries(VmfStorage *storage, const VmfBitmapHeader *header, uint64_t n_sectors, GPtrArray *bitmaps,
                         GError **error)
{
    uint64_t at = vmf_bitmap_file_bits(header);
    uint8_t sector[VMF_BITMAP_SECTOR];

    for (uint32_t i = 0; i < header->n_bitmaps; i++) {
        if (!vmf_storage_read(storage, (vmf_bitmap_file_entries(header) + i) * VMF_BITMAP_SECTOR, sector,
                              sizeof(sector), error))
            return false;
        VmfBitmap *bitmap = parse_entry(storage, header, sector, i, &at, error);
        if (!bitmap)
            return false;
        if (at > n_sectors) { /* so that entries alone take no memory for bits that are not there */
            vmf_bitmap_free(bitmap);
            return damaged(storage, "its header makes no sense", error);
        }
        if (is_known(bitmaps, bitmap->name)) {
            vmf_bitmap_free(bitmap);
            return damaged(storage, "it has one name twice", error);
        }
        g_ptr_array_add(bitmaps, bitmap);
    }
    return at == n_sectors || damaged(storage, "its header makes no sense", error);
}

typedef bool (*PutWords)(void *opaque, uint64_t piece, const uint64_t words[VMF_BITMAP_PIECE_WORDS]);

/* NULL: all went well; else why not. */
static const char *read_pieces(VmfStorage *storage, const VmfBitmapHeader *header, uint64_t first, uint64_t n,
                               uint32_t kind, PutWords put, void *opaque)
{
    g_autofree uint8_t *data = g_malloc(READ_SECTORS * VMF_BITMAP_SECTOR);
    uint64_t words[VMF_BITMAP_PIECE_WORDS];

    for (uint64_t done = 0, some; done < n; done += some) {
        some = MIN(n - done, READ_SECTORS);
        if (!vmf_storage_read(storage, (first + done) * VMF_BITMAP_SECTOR, data, some * VMF_BITMAP_SECTOR, NULL))
            return "its file cannot be read";
        for (uint64_t i = 0; i < some; i++) {
            const uint8_t *sector = data + i * VMF_BITMAP_SECTOR;

            if (!is_sealed(sector, header, kind, (uint32_t)(done + i)))
                return "its file is damaged";
            get_words(sector, words);
            if (!put(opaque, done + i, words))
                return "its file has bits beyond the disk's end";
        }
    }
    return NULL;
}

static bool put_bits(void *bitmap, uint64_t piece, const uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    return vmf_bitmap_put_piece(bitmap, piece, words);
}

typedef struct {
    const VmfBitmapHeader *header;
    uint64_t *words;
} Intents;

static bool put_intents(void *opaque, uint64_t piece, const uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    const Intents *intents = opaque;
    uint64_t first = piece * VMF_BITMAP_PIECE_WORDS;

    for (unsigned i = 0; i < VMF_BITMAP_PIECE_WORDS; i++) {
        uint64_t begin = (first + i) * 64, n = intents->header->n_regions;

        if (begin + 64 > n && words[i] >> (n > begin ? n - begin : 0))
            return false;
        intents->words[first + i] = words[i];
    }
    return true;
}

static void set_problem(VmfBitmap *bitmap, const char *why)
{
    if (why && !bitmap->problem)
        bitmap->problem = g_strdup(why);
}

static void read_all_bits(VmfStorage *storage, const VmfBitmapHeader *header, uint64_t *intents, GPtrArray *bitmaps)
{
    Intents into = {header, intents};
    const char *why = read_pieces(storage, header, 1, header->n_intent_pieces, VMF_BITMAP_INTENTS, put_intents, &into);
    uint64_t at = vmf_bitmap_file_bits(header);

    for (guint i = 0; i < bitmaps->len; i++) {
        VmfBitmap *bitmap = g_ptr_array_index(bitmaps, i);

        if (bitmap->recording)
            set_problem(bitmap, why ? "what its file says of the last writes is damaged" : NULL);
        set_problem(bitmap, read_pieces(storage, header, at, bitmap->n_pieces, VMF_BITMAP_BITS + i, put_bits, bitmap));
        at += bitmap->n_pieces;
    }
}

bool vmf_bitmap_file_read(VmfStorage *storage, uint64_t disk_bytes, VmfBitmapHeader *header, uint64_t *intents,
                          GPtrArray *bitmaps, GError **error)
{
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_bitmap_free);
    uint8_t sector[VMF_BITMAP_SECTOR];
    uint64_t n_sectors;

    if (vmf_storage_size(storage) < sizeof(sector))
        return damaged(storage, "it is no file of bitmaps", error);
    if (!vmf_storage_read(storage, 0, sector, sizeof(sector), error) ||
        !parse_header(storage, sector, disk_bytes, header, &n_sectors, error) ||
        !read_entries(storage, header, n_sectors, found, error))
        return false;
    read_all_bits(storage, header, intents, found);
    g_ptr_array_extend_and_steal(bitmaps, g_steal_pointer(&found));
    return true;
}
