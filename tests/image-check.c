/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tests/image-check.h"

#include "migration/guest.h"
#include "ram/block.h"
#include "ram/page-scan.h"
#include "stream/channel-bytes.h"

typedef struct {
    VmfSeenImage *seen;
    const uint8_t *file;
    gsize length;
    VmfChannel *channel; /* header, then tail */
    VmfRecordReader *reader;
    uint64_t static_sum;
} Reading;

static VmfRecord next(Reading *reading)
{
    VmfRecord record;
    g_autoptr(GError) error = NULL;

    if (!vmf_record_read(reading->reader, &record, &error))
        fail_msg("%s", error->message);
    return record;
}

static void open_area(Reading *reading, uint64_t offset, uint64_t length)
{
    VmfStreamFormat format = {.version = 3, .one_way = true};

    assert_true(offset + length <= reading->length);
    reading->channel = vmf_channel_of_bytes(reading->file + offset, length, "area");
    reading->reader = vmf_record_reader_new(reading->channel, format);
}

static void close_area(Reading *reading, uint64_t length)
{
    assert_int_equal(vmf_channel_bytes_position(reading->channel), length);
    vmf_record_reader_free(reading->reader);
    vmf_channel_free(reading->channel);
}

/* ---- header ----------------------------------------------------------------------------------------------------- */

static void read_static_data(Reading *reading)
{
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE];
    VmfStaticData *data = reading->seen->static_data = vmf_static_data_new();
    VmfStreamFormat format;

    assert_true(vmf_channel_read_all(reading->channel, image, sizeof(image), NULL));
    assert_true(vmf_image_header_decode(image, &format, NULL));
    assert_int_equal(format.version, 3);
    assert_true(format.one_way);
    assert_false(format.swap);
    assert_true(vmf_channel_read_all(reading->channel, machine, sizeof(machine), NULL));
    assert_true(vmf_machine_header_decode(machine, false, &data->machine, NULL));
    for (VmfRecord record = next(reading); record.type != VMF_RECORD_STATIC_DATA_END; record = next(reading))
        assert_true(vmf_static_data_take(data, &record, false, NULL));
    reading->static_sum =
        XXH3_64bits(reading->file + VMF_IMAGE_HEADER_OFFSET, vmf_channel_bytes_position(reading->channel));
}

static void read_header(Reading *reading)
{
    VmfSeenImage *seen = reading->seen;

    open_area(reading, VMF_IMAGE_HEADER_OFFSET, seen->commit.header_length);
    read_static_data(reading);
    seen->layout.n_blocks = seen->static_data->blocks->len;
    for (unsigned b = 0; b < seen->layout.n_blocks; b++)
        seen->layout.blocks[b].n_pages =
            g_array_index(seen->static_data->blocks, VmfStaticBlock, b).size / VMF_PAGE_SIZE;
    VmfRecord record = next(reading);
    assert_int_equal(record.type, VMF_RECORD_LAYOUT);
    assert_true(vmf_image_layout_decode(&record, false, &seen->layout, NULL));
    assert_true(vmf_image_layout_check(&seen->layout, &seen->commit, NULL));
    assert_int_equal(next(reading).type, VMF_RECORD_END);
    close_area(reading, seen->commit.header_length);
}

/* ---- tail ------------------------------------------------------------------------------------------------------- */

static VmfRecord read_disks(Reading *reading)
{
    VmfSeenImage *seen = reading->seen;
    VmfRecord record = next(reading);

    for (; record.type == VMF_RECORD_DISK; record = next(reading)) {
        VmfImageDisk disk = {0};
        assert_true(vmf_image_disk_decode(&record, false, &disk, NULL));
        g_array_append_val(seen->disks, disk);
    }
    seen->ram_only = record.type == VMF_RECORD_RAM_ONLY;
    return seen->ram_only ? next(reading) : record;
}

static void read_tail(Reading *reading)
{
    VmfSeenImage *seen = reading->seen;
    VmfSection section;

    open_area(reading, seen->commit.tail_offset, seen->commit.tail_length);
    VmfRecord record = read_disks(reading);
    for (; record.type == VMF_RECORD_SECTION; record = next(reading)) {
        assert_true(vmf_section_decode(&record, false, &section, NULL));
        assert_int_equal(section.id, seen->n_sections); /* none of the guests here writes two at a time */
        seen->n_sections += (section.flags & VMF_SECTION_LAST) != 0;
    }
    assert_int_equal(seen->n_sections, seen->static_data->sections->len);
    assert_int_equal(record.type, VMF_RECORD_SWITCHOVER);
    assert_true(vmf_switchover_decode(&record, false, seen->layout.n_blocks, &seen->summary, NULL));
    assert_int_equal(next(reading).type, VMF_RECORD_END);
    close_area(reading, seen->commit.tail_length);
    assert_int_equal(seen->summary.static_sum, reading->static_sum);
    assert_memory_equal(seen->summary.token, seen->commit.id, VMF_IMAGE_ID_SIZE);
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

static uint64_t word_at(const Reading *reading, uint64_t offset)
{
    uint64_t word;

    assert_true(offset + sizeof(word) <= reading->length);
    memcpy(&word, reading->file + offset, sizeof(word));
    return GUINT64_FROM_LE(word);
}

static bool has_page(const Reading *reading, const VmfImageBlock *block, uint64_t page)
{
    return word_at(reading, block->data_bitmap_offset + page / 64 * 8) >> (page % 64) & 1;
}

static void check_page(const Reading *reading, const VmfImageBlock *block, uint64_t page, const uint8_t *memory,
                       uint64_t *sum)
{
    static const uint8_t zeros[VMF_PAGE_SIZE];
    const VmfPageScan *scan = vmf_page_scan_select();
    bool is_there = has_page(reading, block, page);
    const uint8_t *content = is_there ? reading->file + block->pages_offset + page * VMF_PAGE_SIZE : zeros;

    if (is_there) {
        uint64_t digest = word_at(reading, block->digests_offset + page * 8); /* 512 a chunk: the pages' own order */
        assert_int_equal(digest, scan->digest(content, VMF_PAGE_SIZE));
        assert_false(vmf_page_is_zero(scan, content, VMF_PAGE_SIZE));
        *sum += vmf_page_digest_mix(page, digest);
    }
    if (memory)
        assert_memory_equal(memory, content, VMF_PAGE_SIZE);
}

static void check_block(const Reading *reading, unsigned index, VmfRamBlock *own)
{
    VmfSeenImage *seen = reading->seen;
    const VmfImageBlock *block = &seen->layout.blocks[index];
    const VmfBlockSummary *summary = &seen->summary.blocks[index];
    uint64_t sum = 0, n_data = 0;

    for (uint64_t page = 0; page < block->n_pages; page++) {
        n_data += has_page(reading, block, page);
        check_page(reading, block, page, own ? vmf_ram_block_page(own, page) : NULL, &sum);
    }
    assert_int_equal(summary->data, n_data);
    assert_int_equal(summary->zero, 0);
    assert_int_equal(summary->hole, block->n_pages - n_data);
    assert_int_equal(summary->sum, sum);
    seen->n_data += n_data;
}

VmfSeenImage *vmf_see_image(const char *path, VmfGuest *guest)
{
    VmfSeenImage *seen = g_new0(VmfSeenImage, 1);
    Reading reading = {.seen = seen};
    GMappedFile *file = g_mapped_file_new(path, FALSE, NULL); /* so that its pages are aligned */

    assert_non_null(file);
    reading.file = (const uint8_t *)g_mapped_file_get_contents(file);
    reading.length = g_mapped_file_get_length(file);
    seen->disks = g_array_new(false, false, sizeof(VmfImageDisk));
    g_array_set_clear_func(seen->disks, (GDestroyNotify)vmf_image_disk_clear);
    assert_true(reading.length >= VMF_IMAGE_COMMIT_SIZE);
    assert_true(vmf_image_commit_decode(reading.file, reading.length, &seen->commit, NULL));
    assert_int_equal(seen->commit.flags, 0);
    read_header(&reading);
    read_tail(&reading);
    for (unsigned b = 0; b < seen->layout.n_blocks; b++)
        check_block(&reading, b, guest ? vmf_guest_ram(guest, b) : NULL);
    g_mapped_file_unref(file);
    return seen;
}

void vmf_seen_image_free(VmfSeenImage *seen)
{
    vmf_static_data_free(seen->static_data);
    vmf_switchover_clear(&seen->summary);
    g_array_unref(seen->disks);
    g_free(seen);
}
