/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/image-offline.h"

#define HOST_BIG_ENDIAN (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)

void vmf_image_info(const VmfImage *image, unsigned layer, VmfImageInfo *out)
{
    const VmfImageFile *file = vmf_image_layer_of(image, layer);
    const VmfStaticData *data = file->static_data;

    *out = (VmfImageInfo){
        .uri = vmf_storage_name(file->storage),
        .id = file->commit.id,
        .root_digest = file->commit.root.bytes,
        .file_size = file->commit.file_size,
        .big_endian = file->format.swap != HOST_BIG_ENDIAN,
        .architecture = data->machine.architecture,
        .page_size = data->machine.page_size,
        .engine_version = data->machine.engine_version,
        .uuid = data->machine.uuid,
        .host = data->host,
        .parent_uri = file->parent.name,
        .parent_id = file->parent.id,
        .parent_digest = file->parent.root.bytes,
        .runs = file->summary.flags & VMF_SWITCHOVER_RUN,
        .ram_only = file->ram_only,
        .n_properties = data->properties->len,
        .n_blocks = data->blocks->len,
        .n_sections = data->sections->len,
        .n_disks = file->disks->len,
    };
}

void vmf_image_property(const VmfImage *image, unsigned layer, unsigned index, const char **key, const char **value)
{
    const VmfStaticData *data = vmf_image_layer_of(image, layer)->static_data;
    const VmfStaticProperty *property = &g_array_index(data->properties, VmfStaticProperty, index);

    *key = property->key;
    *value = property->value;
}

static bool count_pages(VmfImage *image, VmfImageFile *file, unsigned block, VmfImageRam *out, GError **error)
{
    uint64_t n_chunks = vmf_image_block_n_chunks(&file->layout.blocks[block]);
    VmfImageChunk chunk;

    for (uint64_t c = 0; c < n_chunks; c++) {
        if (file->table[file->layout.blocks[block].first_chunk + c] == 0)
            continue;
        if (vmf_image_check_cancelled(image, error) || !vmf_image_file_chunk(file, block, c, false, &chunk, error))
            return false;
        unsigned n_data = vmf_page_set_count(&chunk.data);
        out->pages_here += n_data;
        out->zero_pages_here += vmf_page_set_count(&chunk.zero);
        out->bytes_here += (uint64_t)n_data * VMF_PAGE_SIZE + (n_data ? VMF_IMAGE_BLOCK : 0);
    }
    return true;
}

bool vmf_image_ram(VmfImage *image, unsigned layer, unsigned index, VmfImageRam *out, GError **error)
{
    VmfImageFile *file = vmf_image_layer_of(image, layer);
    const VmfStaticBlock *block = &g_array_index(file->static_data->blocks, VmfStaticBlock, index);

    *out = (VmfImageRam){
        .name = block->name,
        .size = block->size,
        .guest_address = block->guest_address,
        .rom = block->flags & VMF_BLOCK_FLAG_ROM,
        .pages_used = file->summary.blocks[index].data,
        .sum = file->summary.blocks[index].sum,
    };
    return count_pages(image, file, index, out, error);
}

static uint64_t section_length(const VmfImageFile *file, unsigned index)
{
    uint64_t length = 0;

    for (guint i = 0; i < file->sections->len; i++) {
        const VmfSection *part = &g_array_index(file->sections, VmfSection, i);
        length += part->id == index ? part->length : 0;
    }
    return length;
}

void vmf_image_section(const VmfImage *image, unsigned layer, unsigned index, VmfImageSection *out)
{
    const VmfImageFile *file = vmf_image_layer_of(image, layer);
    const VmfStaticSection *section = &g_array_index(file->static_data->sections, VmfStaticSection, index);

    *out = (VmfImageSection){section->name, section->instance, section->version, section_length(file, index)};
}

uint8_t *vmf_image_section_content(const VmfImage *image, unsigned layer, unsigned index, size_t *length)
{
    const VmfImageFile *file = vmf_image_layer_of(image, layer);
    uint8_t *content = g_malloc(section_length(file, index) + 1); /* at most the tail's 64 MiB */

    *length = 0;
    for (guint i = 0; i < file->sections->len; i++) {
        const VmfSection *part = &g_array_index(file->sections, VmfSection, i);
        if (part->id != index || part->length == 0)
            continue;
        memcpy(content + *length, part->content, part->length);
        *length += part->length;
    }
    return content;
}

void vmf_image_disk(const VmfImage *image, unsigned layer, unsigned index, VmfImageDiskInfo *out)
{
    const VmfImageFile *file = vmf_image_layer_of(image, layer);
    const VmfImageDisk *disk = &g_array_index(file->disks, VmfImageDisk, index);

    *out = (VmfImageDiskInfo){disk->name, disk->identity, disk->mark, disk->size_bytes, disk->contained, 0};
    int block = vmf_image_file_find_disk(file, disk->name);
    if (block >= 0)
        out->pages_used = file->summary.blocks[block].data;
}

uint64_t vmf_image_n_chunks(const VmfImage *image, unsigned block)
{
    return vmf_image_block_n_chunks(&vmf_image_layer_of(image, 0)->layout.blocks[block]);
}

bool vmf_image_occupancy(VmfImage *image, unsigned block, uint64_t chunk, VmfImageOccupancy *out, GError **error)
{
    VmfImageFile *file = vmf_image_layer_of(image, 0);
    uint64_t left = file->layout.blocks[block].n_pages - chunk * VMF_CHUNK_PAGES;
    VmfImageChunk here, all;

    *out = (VmfImageOccupancy){.n_pages = (unsigned)MIN(left, VMF_CHUNK_PAGES)};
    if (vmf_image_check_cancelled(image, error) || !vmf_image_file_chunk(file, block, chunk, false, &here, error) ||
        !vmf_image_chain_chunk(image->chain, block, chunk, &all, NULL, error))
        return false;
    out->here = vmf_page_set_count(&here.data);
    out->zeroed = vmf_page_set_count(&here.zero);
    out->below = vmf_page_set_count(&all.data) - out->here;
    return true;
}
