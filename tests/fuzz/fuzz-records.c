/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The record layer and the headers: octets into records, with every way of passing over a payload. What was read is never more than
 * what was there, and a record that was read whole is written as the same octets. The first octet: bit 0 swapped, bit 1 payloads are read
 * into memory instead of skipped, bit 2 headers are decoded first, bit 3 the reader may hold 64 octets at most.
 */
#include <string.h>

#include "stream/channel.h"
#include "stream/header.h"
#include "stream/record.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/link.h"
#include "tests/fuzz/stream-mutator.h"

#define CRC_OFFSET offsetof(VmfWireRecordHeader, crc32c)

static void decode_headers(const uint8_t *data, bool swap)
{
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE], preamble[VMF_PREAMBLE_SIZE];
    VmfStreamFormat format;
    VmfMachineHeader header;
    VmfPreamble said;

    if (vmf_image_header_decode(data, &format, NULL)) {
        vmf_image_header_encode(&format, image);
        FUZZ_CHECK(memcmp(image, data, sizeof(image) - 4) == 0);
    }
    if (vmf_machine_header_decode(data, swap, &header, NULL)) {
        vmf_machine_header_encode(&header, swap, machine);
        FUZZ_CHECK(memcmp(machine, data, sizeof(machine) - 4) == 0);
    }
    if (vmf_preamble_decode(data, &said, &format, NULL)) {
        vmf_preamble_encode(&said, &format, preamble);
        FUZZ_CHECK(memcmp(preamble, data, sizeof(preamble) - 4) == 0);
    }
}

/* @at is where the record began in the input. */
static void write_again(const VmfRecord *record, VmfStreamFormat format, const uint8_t *at)
{
    GByteArray *bytes = g_byte_array_new();
    VmfChannel *channel = vmf_fuzz_channel_into(bytes);
    VmfRecordWriter *writer = vmf_record_writer_new(channel, format);

    FUZZ_CHECK(vmf_record_write(writer, record->type, record->body, record->length, NULL));
    FUZZ_CHECK(memcmp(bytes->data, at, CRC_OFFSET) == 0);
    FUZZ_CHECK(memcmp(bytes->data + VMF_RECORD_HEADER_SIZE, at + VMF_RECORD_HEADER_SIZE, bytes->len - VMF_RECORD_HEADER_SIZE) == 0);
    vmf_record_writer_free(writer);
    vmf_channel_free(channel);
    g_byte_array_unref(bytes);
}

static bool take_payload(VmfRecordReader *reader, const VmfRecord *record, bool into_memory)
{
    uint8_t piece[512];

    while (into_memory && reader->payload_left > sizeof(piece)) {
        struct iovec iov[2] = {{piece, 100}, {piece + 100, sizeof(piece) - 100}};
        if (!vmf_record_read_payload(reader, iov, 2, sizeof(piece), NULL))
            return false;
    }
    return vmf_record_skip_payload(reader, record->length, NULL);
}

static void read_records(const uint8_t *data, size_t size, uint8_t how)
{
    VmfStreamFormat format = {.version = 3, .swap = how & 1};
    VmfChannel *channel = vmf_fuzz_channel_new(data, size);
    VmfRecordReader *reader = vmf_record_reader_new(channel, format);
    VmfRecord record;
    size_t at = 0;
    bool good = true;

    reader->memory_max = how & 8 ? 64 : 0;
    vmf_record_reader_sum_begin(reader);
    while (good && vmf_record_read(reader, &record, NULL)) {
        FUZZ_CHECK(record.checked <= record.length && record.length <= VMF_RECORD_BODY_MAX);
        FUZZ_CHECK(!reader->memory_max || !record.body || record.checked <= reader->memory_max);
        if (reader->payload_left > 0)
            good = take_payload(reader, &record, how & 2);
        else if (record.body)
            write_again(&record, format, data + at);
        at += VMF_RECORD_HEADER_SIZE + (size_t)record.length + (-record.length & 7);
        FUZZ_CHECK(!good || at <= size);
    }
    vmf_record_reader_sum_end(reader, true);
    vmf_record_reader_free(reader);
    vmf_channel_free(channel);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if (data[0] & 4 && size > VMF_MACHINE_HEADER_SIZE)
        decode_headers(data + 1, data[0] & 1);
    read_records(data + 1, size - 1, data[0]);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    return vmf_fuzz_mutate_records(data, size, max_size, seed, 1, size > 0 && data[0] & 1);
}
