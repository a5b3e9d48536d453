/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Static data alone: records into a description, which is compared with a guest and written again. What was accepted can be written and
 * read back as the same. The first octet is 0 or 1: swapped.
 */
#include "migration/compatibility.h"
#include "stream/channel.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/guest.h"
#include "tests/fuzz/link.h"
#include "tests/fuzz/stream-mutator.h"

static VmfStaticData *read_all(const uint8_t *data, size_t size, bool swap)
{
    VmfStreamFormat format = {.version = 3, .swap = swap};
    VmfChannel *channel = vmf_fuzz_channel_new(data, size);
    VmfRecordReader *reader = vmf_record_reader_new(channel, format);
    VmfStaticData *all = vmf_static_data_new();
    VmfRecord record;
    bool good = true;

    while (good && vmf_record_read(reader, &record, NULL) && record.type != VMF_RECORD_STATIC_DATA_END) {
        if (reader->payload_left > 0)
            good = vmf_record_skip_payload(reader, record.length, NULL);
        else if (vmf_static_data_is_static(record.type))
            good = vmf_static_data_take(all, &record, swap, NULL);
    }
    vmf_record_reader_free(reader);
    vmf_channel_free(channel);
    if (!good)
        g_clear_pointer(&all, vmf_static_data_free);
    return all;
}

static GByteArray *write_all(const VmfStaticData *all, bool swap)
{
    VmfStreamFormat format = {.version = 3, .swap = swap};
    GByteArray *bytes = g_byte_array_new();
    VmfChannel *channel = vmf_fuzz_channel_into(bytes);
    VmfRecordWriter *writer = vmf_record_writer_new(channel, format);

    FUZZ_CHECK(vmf_static_data_write(all, writer, NULL) && vmf_record_flush(writer, NULL));
    vmf_record_writer_free(writer);
    vmf_channel_free(channel);
    return bytes;
}

static void compare_with_a_guest(const VmfStaticData *all)
{
    static const VmfSaveHandlers no_handlers = {.size = sizeof(VmfSaveHandlers)};
    static VmfFuzzGuest *guest;
    static VmfStaticData *ours;

    if (!guest)
        guest = vmf_fuzz_guest_new(false);
    GArray *owners = vmf_owners_new(guest->guest, &no_handlers, guest, false);
    if (!ours)
        ours = vmf_static_data_of(guest->guest, owners);
    g_strfreev(vmf_compatibility_check(all, ours, owners, guest->guest));
    vmf_owners_free(owners);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool swap = size > 0 && data[0] & 1;
    VmfStaticData *all = size > 0 ? read_all(data + 1, size - 1, swap) : NULL, *again;

    if (!all)
        return 0;
    compare_with_a_guest(all);
    GByteArray *once = write_all(all, swap);
    again = read_all(once->data, once->len, swap);
    FUZZ_CHECK(again);
    GByteArray *twice = write_all(again, swap);
    FUZZ_CHECK(once->len == twice->len && memcmp(once->data, twice->data, once->len) == 0);
    g_byte_array_unref(once);
    g_byte_array_unref(twice);
    vmf_static_data_free(all);
    vmf_static_data_free(again);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    return vmf_fuzz_mutate_records(data, size, max_size, seed, 1, size > 0 && data[0] & 1);
}
