/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One image file: what is read when it is opened. Each area is compared with its digest before its first octet is
 * looked at, and the layout is checked before the tables are read, whose length is then what the blocks need.
 */
#include "ram/image-reader.h"

#include <inttypes.h>
#include <vmferry/error.h>

#include "ram/image-index.h"
#include "ram/sparse-array.h"
#include "stream/channel-bytes.h"

/* ---- blocks ---------------------------------------------------------------------------------------------------- */

const VmfStaticDisk *vmf_image_file_block_disk(const VmfImageFile *file, unsigned block)
{
    const GArray *disks = file->static_data->disks;
    guint n = file->static_data->blocks->len, d = 0;

    for (; d < disks->len; d++)
        if (g_array_index(disks, VmfStaticDisk, d).flags & VMF_WIRE_DISK_COPIED && n++ == block)
            return &g_array_index(disks, VmfStaticDisk, d);
    return NULL;
}

const char *vmf_image_file_block_name(const VmfImageFile *file, unsigned block)
{
    const GArray *blocks = file->static_data->blocks;

    return block < blocks->len ? g_array_index(blocks, VmfStaticBlock, block).name
                               : vmf_image_file_block_disk(file, block)->name;
}

char *vmf_image_file_block_title(const VmfImageFile *file, unsigned block)
{
    return g_strdup_printf("%s %s", vmf_image_file_block_is_disk(file, block) ? "disk" : "RAM block",
                           vmf_image_file_block_name(file, block));
}

int vmf_image_file_find_disk(const VmfImageFile *file, const char *name)
{
    const VmfImageLayout *layout = &file->layout;

    for (unsigned b = layout->n_blocks - layout->n_disks; b < layout->n_blocks; b++)
        if (strcmp(vmf_image_file_block_name(file, b), name) == 0)
            return (int)b;
    return -1;
}

/* ---- areas ----------------------------------------------------------------------------------------------------- */

static size_t padded(uint64_t length)
{
    return (length + VMF_IMAGE_BLOCK - 1) / VMF_IMAGE_BLOCK * VMF_IMAGE_BLOCK;
}

static bool damaged(const char *area, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DIGEST, "%s: does not match its digest", area);
    return false;
}

/* Reads a bounded area whole, as new memory. */
static uint8_t *read_area(VmfImageFile *file, const char *name, uint64_t offset, uint64_t length,
                          const VmfImageDigest *expected, GError **error)
{
    g_autofree uint8_t *area = g_try_malloc(padded(length));

    if (!area) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%s: no memory for %" PRIu64 " octets", name, length);
        return NULL;
    }
    if (!vmf_storage_read(file->storage, offset, area, padded(length), error))
        return NULL;
    VmfImageDigest digest = vmf_image_digest(area, length);
    if (!vmf_image_digest_equal(&digest, expected)) {
        damaged(name, error);
        return NULL;
    }
    return g_steal_pointer(&area);
}

static bool read_commit(VmfImageFile *file, GError **error)
{
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];
    uint64_t size = vmf_storage_size(file->storage);

    if (size < sizeof(block)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_MAGIC, "commit block: of %" PRIu64 " octets nothing is an image",
                    size);
        return false;
    }
    return vmf_storage_read(file->storage, 0, block, sizeof(block), error) &&
           vmf_image_commit_decode(block, size, &file->commit, error);
}

/* ---- records in an area ------------------------------------------------------------------------------------------ */

typedef struct {
    VmfChannel *channel;
    VmfRecordReader *reader;
    VmfRecord record; /* the last one */
} AreaReader;

static void area_begin(AreaReader *area, const uint8_t *data, uint64_t length, const char *name, VmfStreamFormat format)
{
    area->channel = vmf_channel_of_bytes(data, length, name);
    area->reader = vmf_record_reader_new(area->channel, format);
}

static void area_end(AreaReader *area)
{
    vmf_record_reader_free(area->reader);
    vmf_channel_free(area->channel);
}

/* The next record that is not optional and unknown. */
static bool area_next(AreaReader *area, GError **error)
{
    return vmf_record_read_known(area->reader, &area->record, error);
}

static bool misplaced(const AreaReader *area, GError **error)
{
    g_autofree char *where = g_strdup_printf("here in the %s", vmf_channel_name(area->channel));
    uint32_t type = area->record.type;

    if (type == VMF_RECORD_STATIC_DATA_END)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_DOUBLE_END, "record STATIC_DATA_END: twice");
    else if (vmf_static_data_is_static(type))
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_LATE, "record 0x%x: static data after its end", type);
    else
        vmf_record_set_order_error(error, type, where);
    return false;
}

/* END has been read: it has to be empty, and nothing stands behind it. */
static bool area_finish(const AreaReader *area, uint64_t length, GError **error)
{
    if (!vmf_empty_check(&area->record, error))
        return false;
    if (vmf_channel_bytes_position(area->channel) == length)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT, "%s: octets behind its END", vmf_channel_name(area->channel));
    return false;
}

/* ---- header ------------------------------------------------------------------------------------------------------ */

static bool check_static(const VmfStaticData *data, bool with_disks, GError **error)
{
    uint64_t features = VMF_FEATURE_SUMS | (with_disks ? VMF_FEATURE_DISKS : 0);

    if (!data->have_sections || !data->have_features) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER, "static data ends without %s",
                    data->have_sections ? "FEATURES" : "SECTIONS");
        return false;
    }
    if (data->features_offered == features && data->features_required == features)
        return vmf_static_data_check(data, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY,
                "record FEATURES: 0x%" PRIx64 " of 0x%" PRIx64 ": not of an image", data->features_required,
                data->features_offered);
    return false;
}

static bool read_static(VmfImageFile *file, AreaReader *area, GError **error)
{
    VmfStaticData *data = file->static_data;

    while (area_next(area, error)) {
        if (area->record.type == VMF_RECORD_STATIC_DATA_END)
            return vmf_empty_check(&area->record, error) && check_static(data, file->commit.with_disks, error);
        if (!vmf_static_data_is_static(area->record.type)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_MISSING_END, "record 0x%x: before STATIC_DATA_END",
                        area->record.type);
            return false;
        }
        if (!vmf_static_data_take(data, &area->record, file->format.swap, error))
            return false;
    }
    return false;
}

/* RAM blocks, then the disks that are marked as copied: their content is here. */
static void name_blocks(VmfImageFile *file)
{
    VmfImageLayout *layout = &file->layout;
    const GArray *blocks = file->static_data->blocks, *disks = file->static_data->disks;

    for (guint b = 0; b < blocks->len; b++)
        layout->blocks[layout->n_blocks++].n_pages = g_array_index(blocks, VmfStaticBlock, b).size / VMF_PAGE_SIZE;
    for (guint d = 0; d < disks->len; d++) {
        const VmfStaticDisk *disk = &g_array_index(disks, VmfStaticDisk, d);
        if (!(disk->flags & VMF_WIRE_DISK_COPIED))
            continue;
        layout->blocks[layout->n_blocks++].n_pages = vmf_image_disk_n_pages(disk->size);
        layout->n_disks++;
    }
}

static bool read_layout(VmfImageFile *file, AreaReader *area, GError **error)
{
    VmfImageLayout *layout = &file->layout;

    if (!area_next(area, error))
        return false;
    if (area->record.type != VMF_RECORD_LAYOUT)
        return misplaced(area, error);
    name_blocks(file);
    if ((layout->n_disks > 0) != file->commit.with_disks) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT, "layout: %u disks in an image of a version %s",
                    layout->n_disks, file->commit.with_disks ? "with some" : "without");
        return false;
    }
    return vmf_image_layout_decode(&area->record, file->format.swap, layout, error) &&
           vmf_image_layout_check(layout, &file->commit, error);
}

static bool read_parent(VmfImageFile *file, AreaReader *area, GError **error)
{
    if (!(file->commit.flags & VMF_IMAGE_LAYER))
        return true;
    if (!area_next(area, error))
        return false;
    if (area->record.type != VMF_RECORD_PARENT)
        return misplaced(area, error);
    return vmf_image_parent_decode(&area->record, file->format.swap, &file->parent, error);
}

static bool check_format(const VmfStreamFormat *format, GError **error)
{
    if (format->version == VMF_STREAM_VERSION_MAX && format->one_way)
        return true;
    g_set_error(error, VMF_ERROR, format->one_way ? VMF_ERROR_VERSION : VMF_ERROR_RECORD_BODY,
                "image header: version %u, %s: not of an image", format->version,
                format->one_way ? "one-way" : "two-way");
    return false;
}

static bool read_header_records(VmfImageFile *file, AreaReader *area, GError **error)
{
    if (!read_static(file, area, error))
        return false;
    file->static_sum = vmf_record_reader_sum_end(area->reader, false);
    if (!read_layout(file, area, error) || !read_parent(file, area, error) || !area_next(area, error))
        return false;
    return area->record.type == VMF_RECORD_END || misplaced(area, error);
}

#define HEADERS_SIZE (VMF_IMAGE_HEADER_SIZE + VMF_MACHINE_HEADER_SIZE)

static bool read_header(VmfImageFile *file, GError **error)
{
    const VmfImageCommit *commit = &file->commit;
    g_autofree uint8_t *header =
        read_area(file, "header", VMF_IMAGE_HEADER_OFFSET, commit->header_length, &commit->header, error);
    AreaReader area;

    if (!header)
        return false;
    if (commit->header_length < HEADERS_SIZE) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT, "header: too short");
        return false;
    }
    if (!vmf_image_header_decode(header, &file->format, error) || !check_format(&file->format, error) ||
        !vmf_machine_header_decode(header + VMF_IMAGE_HEADER_SIZE, file->format.swap, &file->static_data->machine,
                                   error))
        return false;
    area_begin(&area, header + HEADERS_SIZE, commit->header_length - HEADERS_SIZE, "header", file->format);
    vmf_record_reader_sum_begin(area.reader);
    XXH3_64bits_update(area.reader->sum, header, HEADERS_SIZE);
    bool good =
        read_header_records(file, &area, error) && area_finish(&area, commit->header_length - HEADERS_SIZE, error);
    area_end(&area);
    return good;
}

/* ---- chunk tables ------------------------------------------------------------------------------------------------ */

#define TABLE_PIECE (1u << 20)

/* What is zero is not written: a sparse guest's table costs what of it is in use. */
static void store_entries(uint64_t *table, const uint64_t *piece, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (piece[i])
            table[i] = GUINT64_FROM_LE(piece[i]);
}

static bool read_table_pieces(VmfImageFile *file, uint64_t *table, uint64_t *piece, XXH3_state_t *state, GError **error)
{
    uint64_t length = file->layout.table_length;

    for (uint64_t at = 0; at < length; at += TABLE_PIECE) {
        size_t n = MIN(length - at, TABLE_PIECE);
        if (!vmf_storage_read(file->storage, file->layout.table_offset + at, piece, padded(n), error))
            return false;
        XXH3_128bits_update(state, piece, n);
        store_entries(table + at / sizeof(*table), piece, n / sizeof(*table));
    }
    return true;
}

static bool table_matches(const VmfImageFile *file, const XXH3_state_t *state, GError **error)
{
    XXH128_canonical_t canonical;
    VmfImageDigest digest;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    G_STATIC_ASSERT(sizeof(canonical) == sizeof(digest));
    memcpy(&digest, &canonical, sizeof(digest));
    return vmf_image_digest_equal(&digest, &file->commit.table) || damaged("chunk tables", error);
}

static bool read_table(VmfImageFile *file, GError **error)
{
    uint64_t *table = vmf_sparse_array_new(file->layout.n_chunks, sizeof(*table), "chunk tables", error);
    uint64_t *piece = table ? vmf_sparse_array_new(1, TABLE_PIECE, "chunk tables", error) : NULL;
    XXH3_state_t *state = XXH3_createState();

    file->table = table;
    XXH3_128bits_reset(state);
    bool good = piece && read_table_pieces(file, table, piece, state, error) && table_matches(file, state, error);
    XXH3_freeState(state);
    vmf_sparse_array_free(piece, 1, TABLE_PIECE);
    return good;
}

/* ---- tail -------------------------------------------------------------------------------------------------------- */

/* How far the sections of the list have come. */
typedef struct {
    uint32_t *parts;
    bool *complete;
    XXH3_state_t *sum;
} SectionCount;

static bool take_disk(VmfImageFile *file, const VmfRecord *record, GError **error)
{
    VmfImageDisk disk;

    if (!vmf_image_disk_decode(record, file->format.swap, &disk, error))
        return false;
    for (guint i = 0; i < file->disks->len; i++)
        if (strcmp(g_array_index(file->disks, VmfImageDisk, i).name, disk.name) == 0) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DISK, "record DISK: %s: twice", disk.name);
            vmf_image_disk_clear(&disk);
            return false;
        }
    g_array_append_val(file->disks, disk);
    return true;
}

static bool read_disks(VmfImageFile *file, AreaReader *area, GError **error)
{
    while (area_next(area, error)) {
        if (area->record.type == VMF_RECORD_RAM_ONLY && file->disks->len == 0 && !file->ram_only) {
            if (!vmf_empty_check(&area->record, error))
                return false;
            file->ram_only = true;
        } else if (area->record.type == VMF_RECORD_DISK && !file->ram_only) {
            if (!take_disk(file, &area->record, error))
                return false;
        } else {
            return true;
        }
    }
    return false;
}

static const VmfImageDisk *find_record(const VmfImageFile *file, const char *name)
{
    for (guint i = 0; i < file->disks->len; i++)
        if (strcmp(g_array_index(file->disks, VmfImageDisk, i).name, name) == 0)
            return &g_array_index(file->disks, VmfImageDisk, i);
    return NULL;
}

/* What the header has a place for and what the tail says is here are the same disks. */
static bool check_contained(const VmfImageFile *file, GError **error)
{
    const VmfImageLayout *layout = &file->layout;
    unsigned n = 0;

    for (guint i = 0; i < file->disks->len; i++)
        n += g_array_index(file->disks, VmfImageDisk, i).contained;
    for (unsigned b = layout->n_blocks - layout->n_disks; b < layout->n_blocks; b++) {
        const VmfStaticDisk *disk = vmf_image_file_block_disk(file, b);
        const VmfImageDisk *record = find_record(file, disk->name);
        if (record && record->contained && record->size_bytes == disk->size)
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DISK,
                    "disk %s: the header has %" PRIu64 " octets of it, and the tail says otherwise", disk->name, disk->size);
        return false;
    }
    if (n == layout->n_disks || !file->commit.with_disks)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DISK, "record DISK: the header has no place for what is said to be here");
    return false;
}

/* @at: where the record that was read last stands in the tail. */
static bool take_section(VmfImageFile *file, const VmfRecord *record, const uint8_t *at, SectionCount *count,
                         GError **error)
{
    VmfRecord in_place = *record;
    VmfSection section;

    in_place.body = at + VMF_RECORD_HEADER_SIZE;
    if (!vmf_section_decode(&in_place, file->format.swap, &section, error))
        return false;
    bool listed = section.id < file->static_data->sections->len;
    if (!listed || count->complete[section.id] || section.part != count->parts[section.id]) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "record SECTION: id %u, part %u: %s", section.id, section.part,
                    listed ? "out of order" : "not in the list");
        return false;
    }
    count->parts[section.id]++;
    count->complete[section.id] = section.flags & VMF_SECTION_LAST;
    XXH3_64bits_update(count->sum, in_place.body, in_place.length);
    g_array_append_val(file->sections, section);
    return true;
}

/* The record that was read last is the first that is no disk. Ends at SWITCHOVER. */
static bool read_section_records(VmfImageFile *file, AreaReader *area, SectionCount *count, GError **error)
{
    while (area->record.type == VMF_RECORD_SECTION) {
        size_t length = VMF_RECORD_HEADER_SIZE + ((size_t)area->record.length + 7) / 8 * 8;
        const uint8_t *at = file->tail + vmf_channel_bytes_position(area->channel) - length;
        if (!take_section(file, &area->record, at, count, error) || !area_next(area, error))
            return false;
    }
    if (area->record.type != VMF_RECORD_SWITCHOVER)
        return misplaced(area, error);
    for (guint i = 0; i < file->static_data->sections->len; i++)
        if (!count->complete[i]) {
            const VmfStaticSection *section = &g_array_index(file->static_data->sections, VmfStaticSection, i);
            g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "section %s %u: is missing, or not complete",
                        section->name, section->instance);
            return false;
        }
    return true;
}

static bool read_sections(VmfImageFile *file, AreaReader *area, GError **error)
{
    guint n = file->static_data->sections->len;
    SectionCount count = {g_new0(uint32_t, n), g_new0(bool, n), XXH3_createState()};

    XXH3_64bits_reset(count.sum);
    bool good = read_section_records(file, area, &count, error);
    file->device_sum = XXH3_64bits_digest(count.sum);
    XXH3_freeState(count.sum);
    g_free(count.parts);
    g_free(count.complete);
    return good;
}

static bool check_counts(const VmfImageFile *file, GError **error)
{
    for (unsigned b = 0; b < file->layout.n_blocks; b++) {
        const VmfBlockSummary *block = &file->summary.blocks[b];
        uint64_t n_pages = file->layout.blocks[b].n_pages;
        if (block->zero != 0 || block->data > n_pages || block->hole != n_pages - block->data) {
            g_autofree char *title = vmf_image_file_block_title(file, b);
            g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_COUNTS,
                        "record SWITCHOVER: %s: its counts are not those of %" PRIu64 " pages", title, n_pages);
            return false;
        }
    }
    return true;
}

static bool check_summary(const VmfImageFile *file, GError **error)
{
    const VmfSwitchover *summary = &file->summary;

    if (memcmp(summary->token, file->commit.id, VMF_IMAGE_ID_SIZE) != 0 || summary->flags & ~VMF_SWITCHOVER_RUN) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record SWITCHOVER: token or flags: not of this image");
        return false;
    }
    if (summary->static_sum != file->static_sum) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_SUM, "record SWITCHOVER: static data has another sum");
        return false;
    }
    if (summary->device_sum != file->device_sum) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_SUM, "record SWITCHOVER: device state has another sum");
        return false;
    }
    return check_counts(file, error);
}

static bool read_tail_records(VmfImageFile *file, AreaReader *area, GError **error)
{
    if (!read_disks(file, area, error) || !check_contained(file, error) || !read_sections(file, area, error))
        return false;
    if (!vmf_switchover_decode(&area->record, file->format.swap, file->layout.n_blocks, &file->summary, error) ||
        !check_summary(file, error) || !area_next(area, error))
        return false;
    return area->record.type == VMF_RECORD_END || misplaced(area, error);
}

static bool read_tail(VmfImageFile *file, GError **error)
{
    const VmfImageCommit *commit = &file->commit;
    AreaReader area;

    file->tail = read_area(file, "tail", commit->tail_offset, commit->tail_length, &commit->tail, error);
    if (!file->tail)
        return false;
    area_begin(&area, file->tail, commit->tail_length, "tail", file->format);
    bool good = read_tail_records(file, &area, error) && area_finish(&area, commit->tail_length, error);
    area_end(&area);
    return good;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static void clear_disk(void *disk)
{
    vmf_image_disk_clear(disk);
}

static bool read_all(VmfImageFile *file, GError **error)
{
    if (!read_commit(file, error) || !read_header(file, error) || !read_table(file, error) || !read_tail(file, error))
        return false;
    file->index = vmf_image_index_new(file, error);
    return file->index != NULL;
}

VmfImageFile *vmf_image_file_read(VmfStorage *storage, GError **error)
{
    VmfImageFile *file = g_new0(VmfImageFile, 1);

    file->storage = storage;
    file->static_data = vmf_static_data_new();
    file->disks = g_array_new(false, true, sizeof(VmfImageDisk));
    g_array_set_clear_func(file->disks, clear_disk);
    file->sections = g_array_new(false, true, sizeof(VmfSection));
    if (read_all(file, error))
        return file;
    if (error && !g_str_has_prefix((*error)->message, vmf_storage_name(storage))) /* errors of the storage name it */
        g_prefix_error(error, "%s: ", vmf_storage_name(storage));
    vmf_image_file_free(file);
    return NULL;
}

VmfImageFile *vmf_image_file_open(const char *uri, const VmfStorageOptions *options, GError **error)
{
    VmfStorageOptions reading = *options;

    reading.mode = VMF_STORAGE_READ;
    VmfStorage *storage = vmf_storage_open(uri, &reading, error);
    return storage ? vmf_image_file_read(storage, error) : NULL;
}

void vmf_image_file_free(VmfImageFile *file)
{
    if (!file)
        return;
    vmf_image_index_free(file->index);
    vmf_sparse_array_free((void *)file->table, file->layout.n_chunks, sizeof(*file->table));
    vmf_static_data_free(file->static_data);
    vmf_image_parent_clear(&file->parent);
    g_array_unref(file->disks);
    g_array_unref(file->sections);
    vmf_switchover_clear(&file->summary);
    g_free(file->tail);
    vmf_storage_free(file->storage);
    g_free(file);
}
