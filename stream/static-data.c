/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/static-data.h"

#include <vmferry/error.h>
#include <vmferry/ram.h>

static void clear_property(void *p)
{
    g_free(((VmfStaticProperty *)p)->key);
    g_free(((VmfStaticProperty *)p)->value);
}

static void clear_block(void *p)
{
    g_free(((VmfStaticBlock *)p)->name);
}

static void clear_section(void *p)
{
    g_free(((VmfStaticSection *)p)->name);
}

static void clear_disk(void *p)
{
    g_free(((VmfStaticDisk *)p)->name);
}

static GArray *array_of(size_t size, GDestroyNotify clear)
{
    GArray *array = g_array_new(false, true, (guint)size);

    g_array_set_clear_func(array, clear);
    return array;
}

VmfStaticData *vmf_static_data_new(void)
{
    VmfStaticData *data = g_new0(VmfStaticData, 1);

    data->properties = array_of(sizeof(VmfStaticProperty), clear_property);
    data->blocks = array_of(sizeof(VmfStaticBlock), clear_block);
    data->sections = array_of(sizeof(VmfStaticSection), clear_section);
    data->disks = array_of(sizeof(VmfStaticDisk), clear_disk);
    return data;
}

void vmf_static_data_free(VmfStaticData *data)
{
    if (!data)
        return;
    g_array_unref(data->properties);
    g_array_unref(data->blocks);
    g_array_unref(data->sections);
    g_array_unref(data->disks);
    g_free(data->host);
    g_free(data);
}

void vmf_static_data_add_property(VmfStaticData *data, const char *key, const char *value)
{
    VmfStaticProperty property = {g_strdup(key), g_strdup(value)};
    g_array_append_val(data->properties, property);
}

void vmf_static_data_add_block(VmfStaticData *data, const VmfStaticBlock *block)
{
    VmfStaticBlock copy = *block;
    copy.name = g_strdup(block->name);
    g_array_append_val(data->blocks, copy);
}

void vmf_static_data_add_section(VmfStaticData *data, const char *name, uint32_t instance, uint32_t version)
{
    VmfStaticSection section = {g_strdup(name), instance, version};
    g_array_append_val(data->sections, section);
}

void vmf_static_data_add_disk(VmfStaticData *data, const VmfStaticDisk *disk)
{
    VmfStaticDisk copy = *disk;
    copy.name = g_strdup(disk->name);
    g_array_append_val(data->disks, copy);
}

bool vmf_static_data_is_static(uint32_t type)
{
    return (type & ~VMF_RECORD_OPTIONAL) <= VMF_STATIC_LAST;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static void pack_counted(VmfPack *pack, uint32_t count)
{
    vmf_pack_u32(pack, count);
    vmf_pack_u32(pack, 0);
}

static void pack_properties(const VmfStaticData *data, VmfPack *pack)
{
    pack_counted(pack, data->properties->len);
    for (guint i = 0; i < data->properties->len; i++) {
        const VmfStaticProperty *property = &g_array_index(data->properties, VmfStaticProperty, i);
        vmf_pack_u16(pack, (uint16_t)strlen(property->key));
        vmf_pack_u16(pack, (uint16_t)strlen(property->value));
        vmf_pack_bytes(pack, property->key, strlen(property->key));
        vmf_pack_bytes(pack, property->value, strlen(property->value));
    }
}

static void pack_block(const VmfStaticBlock *block, uint32_t index, VmfPack *pack)
{
    vmf_pack_u32(pack, index);
    vmf_pack_u32(pack, block->flags);
    vmf_pack_u64(pack, block->size);
    vmf_pack_u64(pack, block->guest_address);
    vmf_pack_u32(pack, block->page_size);
    vmf_pack_u16(pack, (uint16_t)strlen(block->name));
    vmf_pack_u16(pack, 0);
    vmf_pack_bytes(pack, block->name, strlen(block->name));
}

static void pack_sections(const VmfStaticData *data, VmfPack *pack)
{
    pack_counted(pack, data->sections->len);
    for (guint i = 0; i < data->sections->len; i++) {
        const VmfStaticSection *section = &g_array_index(data->sections, VmfStaticSection, i);
        vmf_pack_u32(pack, i);
        vmf_pack_u32(pack, section->instance);
        vmf_pack_u32(pack, section->version);
        vmf_pack_u16(pack, (uint16_t)strlen(section->name));
        vmf_pack_u16(pack, 0);
        vmf_pack_bytes(pack, section->name, strlen(section->name));
    }
}

static void pack_disk(const VmfStaticDisk *disk, uint32_t index, VmfPack *pack)
{
    vmf_pack_u32(pack, index);
    vmf_pack_u32(pack, disk->flags);
    vmf_pack_u64(pack, disk->size);
    vmf_pack_u32(pack, disk->sector_bytes);
    vmf_pack_u16(pack, (uint16_t)strlen(disk->name));
    vmf_pack_u16(pack, 0);
    vmf_pack_bytes(pack, disk->name, strlen(disk->name));
}

static void pack_features(const VmfStaticData *data, VmfPack *pack)
{
    vmf_pack_u64(pack, data->features_offered);
    vmf_pack_u64(pack, data->features_required);
    vmf_pack_u32(pack, data->page_channels);
    vmf_pack_u32(pack, 0);
}

static void pack_host(const VmfStaticData *data, VmfPack *pack)
{
    size_t length = strnlen(data->host, VMF_HOST_NAME_MAX);

    vmf_pack_u16(pack, (uint16_t)length);
    vmf_pack_u16(pack, 0);
    vmf_pack_u32(pack, 0);
    vmf_pack_bytes(pack, data->host, length);
}

static bool queue(VmfRecordWriter *writer, uint32_t type, VmfPack *pack, GError **error)
{
    bool done = vmf_record_queue(writer, type, pack->bytes->data, pack->bytes->len, error);

    g_byte_array_set_size(pack->bytes, 0);
    return done;
}

static bool write_records(const VmfStaticData *data, VmfRecordWriter *writer, VmfPack *pack, GError **error)
{
    if (data->host && *data->host) {
        pack_host(data, pack);
        if (!queue(writer, VMF_RECORD_HOST, pack, error))
            return false;
    }
    pack_properties(data, pack);
    if (!queue(writer, VMF_RECORD_PROPERTIES, pack, error))
        return false;
    for (guint i = 0; i < data->blocks->len; i++) {
        pack_block(&g_array_index(data->blocks, VmfStaticBlock, i), i, pack);
        if (!queue(writer, VMF_RECORD_RAM_BLOCK, pack, error))
            return false;
    }
    for (guint i = 0; i < data->disks->len; i++) {
        pack_disk(&g_array_index(data->disks, VmfStaticDisk, i), i, pack);
        if (!queue(writer, VMF_RECORD_GUEST_DISK, pack, error))
            return false;
    }
    pack_sections(data, pack);
    if (!queue(writer, VMF_RECORD_SECTIONS, pack, error))
        return false;
    if (writer->format.version < 3)
        return true;
    pack_features(data, pack);
    return queue(writer, VMF_RECORD_FEATURES, pack, error) && queue(writer, VMF_RECORD_STATIC_DATA_END, pack, error);
}

bool vmf_static_data_write(const VmfStaticData *data, VmfRecordWriter *writer, GError **error)
{
    VmfPack pack = {g_byte_array_new(), writer->format.swap};
    bool done = write_records(data, writer, &pack, error);

    g_byte_array_unref(pack.bytes);
    return done;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static bool bad_body(uint32_t type, const char *what, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record %s: %s", vmf_record_name(type), what);
    return false;
}

static bool duplicate(uint32_t type, const char *what, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_DUPLICATE, "record %s: %s: twice", vmf_record_name(type), what);
    return false;
}

/* A name as the format wants it: printable ASCII, within its bounds. */
static char *unpack_name(VmfUnpack *unpack, size_t length, size_t maximum)
{
    if (length < 1 || length > maximum)
        unpack->failed = true;
    char *name = vmf_unpack_string(unpack, length);
    for (const char *c = name; c && *c; c++)
        unpack->failed |= !g_ascii_isprint(*c);
    return name;
}

static bool has_property(const VmfStaticData *data, const char *key)
{
    for (guint i = 0; i < data->properties->len; i++)
        if (strcmp(g_array_index(data->properties, VmfStaticProperty, i).key, key) == 0)
            return true;
    return false;
}

static bool take_properties(VmfStaticData *data, VmfUnpack *unpack, GError **error)
{
    if (data->have_properties)
        return duplicate(VMF_RECORD_PROPERTIES, "the record", error);
    data->have_properties = true;
    uint32_t count = vmf_unpack_u32(unpack);
    vmf_unpack_zero(unpack, 4);
    if (count > VMF_PROPERTIES_MAX)
        return bad_body(VMF_RECORD_PROPERTIES, "too many", error);
    for (uint32_t i = 0; i < count && !unpack->failed; i++) {
        uint16_t key_length = vmf_unpack_u16(unpack), value_length = vmf_unpack_u16(unpack);
        g_autofree char *key = unpack_name(unpack, key_length, VMF_PROPERTY_KEY_MAX);
        if (value_length > VMF_PROPERTY_VALUE_MAX)
            unpack->failed = true;
        g_autofree char *value = vmf_unpack_string(unpack, value_length);
        if (unpack->failed)
            break;
        if (has_property(data, key))
            return duplicate(VMF_RECORD_PROPERTIES, key, error);
        vmf_static_data_add_property(data, key, value);
    }
    return vmf_unpack_done(unpack) || bad_body(VMF_RECORD_PROPERTIES, "does not fit its fields", error);
}

static bool take_block(VmfStaticData *data, VmfUnpack *unpack, GError **error)
{
    uint32_t index = vmf_unpack_u32(unpack);
    VmfStaticBlock block = {
        .flags = vmf_unpack_u32(unpack),
        .size = vmf_unpack_u64(unpack),
        .guest_address = vmf_unpack_u64(unpack),
        .page_size = vmf_unpack_u32(unpack),
    };
    uint16_t name_length = vmf_unpack_u16(unpack);
    vmf_unpack_zero(unpack, 2);
    g_autofree char *name = unpack_name(unpack, name_length, VMF_RAM_NAME_MAX);

    if (!vmf_unpack_done(unpack) || index != data->blocks->len || index >= VMF_RAM_BLOCKS_MAX)
        return bad_body(VMF_RECORD_RAM_BLOCK, "does not fit its fields, or is out of order", error);
    if (block.page_size != 4096 || block.size == 0 || block.size % block.page_size || block.size > VMF_BLOCK_SIZE_MAX ||
        block.flags & ~VMF_BLOCK_FLAG_ROM)
        return bad_body(VMF_RECORD_RAM_BLOCK, "size, page size or flags", error);
    for (guint i = 0; i < data->blocks->len; i++)
        if (strcmp(g_array_index(data->blocks, VmfStaticBlock, i).name, name) == 0)
            return duplicate(VMF_RECORD_RAM_BLOCK, name, error);
    block.name = name;
    vmf_static_data_add_block(data, &block);
    return true;
}

static bool has_disk(const VmfStaticData *data, const char *name)
{
    for (guint i = 0; i < data->disks->len; i++)
        if (strcmp(g_array_index(data->disks, VmfStaticDisk, i).name, name) == 0)
            return true;
    return false;
}

static bool disk_fits(const VmfStaticDisk *disk)
{
    return (disk->sector_bytes == 512 || disk->sector_bytes == 4096) && disk->size > 0 && disk->size % disk->sector_bytes == 0 &&
           disk->size <= (disk->flags & VMF_WIRE_DISK_COPIED ? VMF_WIRE_COPIED_DISK_SIZE_MAX : VMF_WIRE_DISK_SIZE_MAX) &&
           !(disk->flags & ~VMF_WIRE_DISK_COPIED);
}

static bool take_disk(VmfStaticData *data, VmfUnpack *unpack, GError **error)
{
    uint32_t index = vmf_unpack_u32(unpack);
    VmfStaticDisk disk = {
        .flags = vmf_unpack_u32(unpack),
        .size = vmf_unpack_u64(unpack),
        .sector_bytes = vmf_unpack_u32(unpack),
    };
    uint16_t name_length = vmf_unpack_u16(unpack);
    vmf_unpack_zero(unpack, 2);
    g_autofree char *name = unpack_name(unpack, name_length, VMF_WIRE_DISK_NAME_MAX);

    if (!vmf_unpack_done(unpack) || index != data->disks->len || index >= VMF_WIRE_DISKS_MAX)
        return bad_body(VMF_RECORD_GUEST_DISK, "does not fit its fields, or is out of order", error);
    if (!disk_fits(&disk))
        return bad_body(VMF_RECORD_GUEST_DISK, "size, sector size or flags", error);
    if (has_disk(data, name))
        return duplicate(VMF_RECORD_GUEST_DISK, name, error);
    disk.name = name;
    vmf_static_data_add_disk(data, &disk);
    return true;
}

/* A target that does not know disks has to see that it cannot take them: so the feature is required. */
bool vmf_static_data_check(const VmfStaticData *data, GError **error)
{
    bool copied = false;

    for (guint i = 0; i < data->disks->len; i++)
        copied |= g_array_index(data->disks, VmfStaticDisk, i).flags & VMF_WIRE_DISK_COPIED;
    if (data->features_required & VMF_FEATURE_BASES && !copied)
        return bad_body(VMF_RECORD_FEATURES, "bases, though no disk is copied", error);
    return !copied || data->features_required & VMF_FEATURE_DISKS ||
           bad_body(VMF_RECORD_GUEST_DISK, "copied, though the feature is not required", error);
}

static bool has_section(const VmfStaticData *data, const char *name, uint32_t instance)
{
    for (guint i = 0; i < data->sections->len; i++) {
        const VmfStaticSection *section = &g_array_index(data->sections, VmfStaticSection, i);
        if (section->instance == instance && strcmp(section->name, name) == 0)
            return true;
    }
    return false;
}

static bool take_sections(VmfStaticData *data, VmfUnpack *unpack, GError **error)
{
    if (data->have_sections)
        return duplicate(VMF_RECORD_SECTIONS, "the record", error);
    data->have_sections = true;
    uint32_t count = vmf_unpack_u32(unpack);
    vmf_unpack_zero(unpack, 4);
    if (count > VMF_SECTIONS_MAX)
        return bad_body(VMF_RECORD_SECTIONS, "too many", error);
    for (uint32_t i = 0; i < count && !unpack->failed; i++) {
        uint32_t id = vmf_unpack_u32(unpack), instance = vmf_unpack_u32(unpack), version = vmf_unpack_u32(unpack);
        uint16_t name_length = vmf_unpack_u16(unpack);
        vmf_unpack_zero(unpack, 2);
        g_autofree char *name = unpack_name(unpack, name_length, VMF_SECTION_NAME_MAX);
        if (unpack->failed || id != i)
            return bad_body(VMF_RECORD_SECTIONS, "does not fit its fields, or is out of order", error);
        if (has_section(data, name, instance))
            return duplicate(VMF_RECORD_SECTIONS, name, error);
        vmf_static_data_add_section(data, name, instance, version);
    }
    return vmf_unpack_done(unpack) || bad_body(VMF_RECORD_SECTIONS, "does not fit its fields", error);
}

static bool take_features(VmfStaticData *data, VmfUnpack *unpack, GError **error)
{
    if (data->have_features)
        return duplicate(VMF_RECORD_FEATURES, "the record", error);
    data->have_features = true;
    data->features_offered = vmf_unpack_u64(unpack);
    data->features_required = vmf_unpack_u64(unpack);
    data->page_channels = vmf_unpack_u32(unpack);
    vmf_unpack_zero(unpack, 4);
    if (!vmf_unpack_done(unpack) || data->features_required & ~data->features_offered || data->page_channels > 64)
        return bad_body(VMF_RECORD_FEATURES, "does not fit its fields", error);
    return true;
}

static bool take_host(VmfStaticData *data, VmfUnpack *unpack, GError **error)
{
    if (data->host)
        return duplicate(VMF_RECORD_HOST, "the record", error);
    uint16_t length = vmf_unpack_u16(unpack);
    vmf_unpack_zero(unpack, 6);
    if (length < 1 || length > VMF_HOST_NAME_MAX)
        unpack->failed = true;
    data->host = vmf_unpack_string(unpack, length);
    return vmf_unpack_done(unpack) || bad_body(VMF_RECORD_HOST, "does not fit its fields", error);
}

bool vmf_static_data_take(VmfStaticData *data, const VmfRecord *record, bool swap, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(record->body, record->checked, swap);

    switch (record->type) {
    case VMF_RECORD_PROPERTIES:
        return take_properties(data, &unpack, error);
    case VMF_RECORD_RAM_BLOCK:
        return take_block(data, &unpack, error);
    case VMF_RECORD_SECTIONS:
        return take_sections(data, &unpack, error);
    case VMF_RECORD_FEATURES:
        return take_features(data, &unpack, error);
    case VMF_RECORD_HOST:
        return take_host(data, &unpack, error);
    case VMF_RECORD_GUEST_DISK:
        return take_disk(data, &unpack, error);
    default:
        vmf_record_set_order_error(error, record->type, "in static data");
        return false;
    }
}
