/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Images of a small guest, made from docs/fixed-ram-format.rst by code that shares nothing with the engine's, and
 * whatever a test plants in them. An image is a description first (blocks, records, places), then octets; each step can
 * be changed before the next is taken, and forge_image_seal() makes all digests right again.
 */
#ifndef TESTS_FORGE_IMAGE_H
#define TESTS_FORGE_IMAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define FORGE_IMAGE_BLOCKS 2u
#define FORGE_IMAGE_RAM_PAGES 1100u /* of block 0, "ram": its third chunk is short, its second empty */
#define FORGE_IMAGE_ROM_PAGES 2u    /* of block 1, "rom" */

enum {
    FORGE_PROPERTIES = 0x01,
    FORGE_RAM_BLOCK = 0x02,
    FORGE_SECTIONS = 0x03,
    FORGE_FEATURES = 0x04,
    FORGE_STATIC_DATA_END = 0x1f,
    FORGE_SECTION = 0x24,
    FORGE_SWITCHOVER = 0x28,
    FORGE_END = 0x3f,
    FORGE_LAYOUT = 0x50,
    FORGE_PARENT = 0x51,
    FORGE_DISK = 0x52,
    FORGE_RAM_ONLY = 0x53,
    FORGE_OPTIONAL = 0x80000077,
};

typedef struct {
    const char *name;
    uint32_t n_pages, flags;
    uint64_t address;
    uint8_t *memory; /* the guest's, parents included */
    bool *data;      /* by page: what this image has */
    bool *zero;
    uint64_t pages, data_bitmap, zero_bitmap, digests; /* offsets */
} ForgeImageBlock;

typedef struct {
    bool big, layer;
    uint8_t id[16];
    uint8_t parent_id[16], parent_root[16];
    char *parent_name;
    const char *architecture;
    ForgeImageBlock blocks[FORGE_IMAGE_BLOCKS];
    GByteArray *begin; /* from the image header to STATIC_DATA_END */
    GByteArray *disks; /* records ahead of the sections */
    GByteArray *header, *tail;
    uint64_t file_size, table, table_length, tail_offset;
    uint8_t root[16];
    GByteArray *file;
} ForgeImage;

/* A whole image, or a layer over @parent; ready to be written. */
ForgeImage *forge_image_new(bool big, uint64_t seed);
ForgeImage *forge_image_layer(const ForgeImage *parent, const char *parent_name, uint64_t seed);
void forge_image_free(ForgeImage *image);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ForgeImage, forge_image_free)

/* The steps, each of which begins with what the one before has left. */
void forge_image_begin(ForgeImage *image);    /* begin, of the blocks */
void forge_image_place(ForgeImage *image);    /* the offsets */
void forge_image_records(ForgeImage *image);  /* header and tail, of begin, offsets, disks and memory */
void forge_image_assemble(ForgeImage *image); /* the file, of all of these */
void forge_image_seal(ForgeImage *image);     /* the commit block, of what is in the file */

void forge_image_rebuild(ForgeImage *image); /* the last three */

/* A record, its CRC right. */
void forge_image_record(GByteArray *to, bool big, uint32_t type, const void *body, size_t length);
/* One that is fields: "I" u32, "H" u16, "Q" u64, "S" a string without its length, "B" 16 octets, "Z" of zeros (int). */
void forge_image_fields(GByteArray *to, bool big, uint32_t type, const char *fields, ...);

/* Makes the chunk tables, and what depends on them, those of the bitmaps and digest blocks in the file. */
void forge_image_entries(ForgeImage *image);
/* Makes the CRC of the commit block right, and nothing else. */
void forge_image_crc(ForgeImage *image);

void forge_image_write(const ForgeImage *image, const char *path);

#endif
