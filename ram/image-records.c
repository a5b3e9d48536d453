/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The records that only images have. */
#include <vmferry/error.h>

#include "ram/image-format.h"

#define DISK_CONTAINED (1u << 0)
#define DISK_NAME_MAX 63
#define DISK_TEXT_MAX 255 /* identity, mark */

static VmfUnpack unpack_of(const VmfRecord *record, bool swap)
{
    return vmf_unpack_begin(record->body, record->checked, swap);
}

static bool finished(const VmfUnpack *unpack, const VmfRecord *record, GError **error)
{
    if (vmf_unpack_done(unpack))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record %s: body of %u octets does not fit its fields",
                vmf_record_name(record->type), record->length);
    return false;
}

static bool queue(VmfRecordWriter *writer, uint32_t type, VmfPack *pack, GError **error)
{
    bool queued = vmf_record_queue(writer, type, pack->bytes->data, pack->bytes->len, error);

    g_byte_array_unref(pack->bytes);
    return queued;
}

/* What the reader will take: as many octets of UTF-8 without control characters. */
static bool is_text(const char *text, size_t minimum, size_t maximum)
{
    size_t length = text ? strlen(text) : 0;

    if (!text || length < minimum || length > maximum)
        return false;
    VmfUnpack unpack = vmf_unpack_begin(text, length, false);
    g_autofree char *copy = vmf_unpack_string(&unpack, length);
    return copy != NULL;
}

/* ---- LAYOUT ------------------------------------------------------------------------------------------------- */

#define LAYOUT_HEAD_SIZE 8
#define LAYOUT_BLOCK_SIZE 32

size_t vmf_image_layout_record_size(unsigned n_blocks)
{
    return VMF_RECORD_HEADER_SIZE + LAYOUT_HEAD_SIZE + (size_t)n_blocks * LAYOUT_BLOCK_SIZE;
}

bool vmf_image_layout_write(const VmfImageLayout *layout, VmfRecordWriter *writer, GError **error)
{
    VmfPack pack = {g_byte_array_new(), writer->format.swap};

    vmf_pack_u32(&pack, layout->n_blocks);
    vmf_pack_u32(&pack, 0);
    for (unsigned b = 0; b < layout->n_blocks; b++) {
        const VmfImageBlock *block = &layout->blocks[b];
        vmf_pack_u64(&pack, block->pages_offset);
        vmf_pack_u64(&pack, block->data_bitmap_offset);
        vmf_pack_u64(&pack, block->zero_bitmap_offset);
        vmf_pack_u64(&pack, block->digests_offset);
    }
    return queue(writer, VMF_RECORD_LAYOUT, &pack, error);
}

bool vmf_image_layout_decode(const VmfRecord *record, bool swap, VmfImageLayout *layout, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    unpack.failed |= vmf_unpack_u32(&unpack) != layout->n_blocks;
    vmf_unpack_zero(&unpack, 4);
    for (unsigned b = 0; b < MIN(layout->n_blocks, VMF_IMAGE_BLOCKS_MAX); b++) {
        VmfImageBlock *block = &layout->blocks[b];
        block->pages_offset = vmf_unpack_u64(&unpack);
        block->data_bitmap_offset = vmf_unpack_u64(&unpack);
        block->zero_bitmap_offset = vmf_unpack_u64(&unpack);
        block->digests_offset = vmf_unpack_u64(&unpack);
    }
    return finished(&unpack, record, error);
}

/* ---- PARENT ------------------------------------------------------------------------------------------------- */

void vmf_image_parent_clear(VmfImageParent *parent)
{
    g_clear_pointer(&parent->name, g_free);
}

bool vmf_image_parent_write(const VmfImageParent *parent, VmfRecordWriter *writer, GError **error)
{
    if (!is_text(parent->name, 1, VMF_IMAGE_PARENT_NAME_MAX)) {
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT,
                            "parent: name: has to be 1 to 4095 octets of text in UTF-8");
        return false;
    }
    VmfPack pack = {g_byte_array_new(), writer->format.swap};
    vmf_pack_bytes(&pack, parent->id, sizeof(parent->id));
    vmf_pack_bytes(&pack, &parent->root, sizeof(parent->root));
    vmf_pack_u16(&pack, (uint16_t)strlen(parent->name));
    vmf_pack_u16(&pack, 0);
    vmf_pack_u32(&pack, 0);
    vmf_pack_bytes(&pack, parent->name, strlen(parent->name));
    return queue(writer, VMF_RECORD_PARENT, &pack, error);
}

bool vmf_image_parent_decode(const VmfRecord *record, bool swap, VmfImageParent *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfImageParent){0};
    const uint8_t *id = vmf_unpack_bytes(&unpack, sizeof(out->id));
    const uint8_t *root = vmf_unpack_bytes(&unpack, sizeof(out->root));
    uint16_t name_length = vmf_unpack_u16(&unpack);
    vmf_unpack_zero(&unpack, 6);
    unpack.failed |= name_length == 0 || name_length > VMF_IMAGE_PARENT_NAME_MAX;
    g_autofree char *name = vmf_unpack_string(&unpack, name_length);
    if (!finished(&unpack, record, error))
        return false;
    memcpy(out->id, id, sizeof(out->id));
    memcpy(&out->root, root, sizeof(out->root));
    out->name = g_steal_pointer(&name);
    return true;
}

/* ---- DISK --------------------------------------------------------------------------------------------------- */

void vmf_image_disk_clear(VmfImageDisk *disk)
{
    g_clear_pointer(&disk->name, g_free);
    g_clear_pointer(&disk->identity, g_free);
    g_clear_pointer(&disk->mark, g_free);
}

static bool disk_error(const VmfImageDisk *disk, const char *what, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DISK, "disk %s: %s", disk->name ? disk->name : "without name", what);
    return false;
}

bool vmf_image_disk_write(const VmfImageDisk *disk, VmfRecordWriter *writer, GError **error)
{
    if (!is_text(disk->name, 1, DISK_NAME_MAX))
        return disk_error(disk, "name: has to be 1 to 63 octets of text in UTF-8", error);
    if (!is_text(disk->identity, 1, DISK_TEXT_MAX))
        return disk_error(disk, "identity: has to be 1 to 255 octets of text in UTF-8", error);
    if (!is_text(disk->mark, 0, DISK_TEXT_MAX))
        return disk_error(disk, "mark: has to be at most 255 octets of text in UTF-8", error);
    VmfPack pack = {g_byte_array_new(), writer->format.swap};
    vmf_pack_u32(&pack, disk->contained ? DISK_CONTAINED : 0);
    vmf_pack_u32(&pack, 0);
    vmf_pack_u64(&pack, disk->size_bytes);
    vmf_pack_u16(&pack, (uint16_t)strlen(disk->name));
    vmf_pack_u16(&pack, (uint16_t)strlen(disk->identity));
    vmf_pack_u16(&pack, (uint16_t)strlen(disk->mark));
    vmf_pack_u16(&pack, 0);
    vmf_pack_bytes(&pack, disk->name, strlen(disk->name));
    vmf_pack_bytes(&pack, disk->identity, strlen(disk->identity));
    vmf_pack_bytes(&pack, disk->mark, strlen(disk->mark));
    return queue(writer, VMF_RECORD_DISK, &pack, error);
}

bool vmf_image_disk_decode(const VmfRecord *record, bool swap, VmfImageDisk *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfImageDisk){0};
    uint32_t flags = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    out->size_bytes = vmf_unpack_u64(&unpack);
    uint16_t name = vmf_unpack_u16(&unpack), identity = vmf_unpack_u16(&unpack), mark = vmf_unpack_u16(&unpack);
    vmf_unpack_zero(&unpack, 2);
    unpack.failed |= flags & ~DISK_CONTAINED || name == 0 || name > DISK_NAME_MAX || identity == 0 ||
                     identity > DISK_TEXT_MAX || mark > DISK_TEXT_MAX;
    out->contained = flags & DISK_CONTAINED;
    out->name = vmf_unpack_string(&unpack, name);
    out->identity = vmf_unpack_string(&unpack, identity);
    out->mark = vmf_unpack_string(&unpack, mark);
    if (finished(&unpack, record, error))
        return true;
    vmf_image_disk_clear(out);
    return false;
}
