/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a target makes of the handover: the engine writes a good stream up to and with SWITCHOVER, the input goes on from there, on the
 * main channel and on further connections. Its first octet says which stream (bit 0: version 2, bit 1: swapped, bit 2: the guest is to
 * run, bit 3: audit).
 */
#include <string.h>

#include "migration/compatibility.h"
#include "stream/channel.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/guest.h"
#include "tests/fuzz/link.h"

#define COUNTER_FIELDS 17 /* octets: u32, u64, bool, u8[4] */

static void write_static(VmfRecordWriter *writer, const VmfFuzzGuest *guest)
{
    static const VmfSaveHandlers no_handlers = {.size = sizeof(VmfSaveHandlers)};
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE];
    GArray *owners = vmf_owners_new(guest->guest, &no_handlers, (void *)guest, false);
    VmfStaticData *data = vmf_static_data_of(guest->guest, owners);

    data->features_offered = data->features_required = VMF_FEATURES_KNOWN;
    vmf_image_header_encode(&writer->format, image);
    vmf_machine_header_encode(&data->machine, writer->format.swap, machine);
    vmf_record_write_raw(writer, image, sizeof(image), NULL);
    vmf_record_write_raw(writer, machine, sizeof(machine), NULL);
    vmf_static_data_write(data, writer, NULL);
    vmf_static_data_free(data);
    vmf_owners_free(owners);
}

static void write_state(VmfRecordWriter *writer, XXH3_state_t *sum)
{
    uint8_t counter[4 + COUNTER_FIELDS + 1] = {0};
    const uint8_t length[2] = {COUNTER_FIELDS, 0};

    counter[writer->format.swap ? 3 : 0] = length[0];
    VmfSection sections[] = {{0, VMF_SECTION_FIRST | VMF_SECTION_LAST, 0, counter, sizeof(counter)},
                             {1, VMF_SECTION_FIRST | VMF_SECTION_LAST, 0, length, sizeof(length)}};
    for (unsigned i = 0; i < G_N_ELEMENTS(sections); i++)
        vmf_section_queue(writer, &sections[i], sum, NULL);
}

/* No page of it has any content: sums are 0, and all of it was left out. */
static void write_switchover(VmfRecordWriter *writer, const VmfFuzzGuest *guest, unsigned flags, uint64_t static_sum, uint64_t device_sum)
{
    VmfBlockSummary blocks[8] = {{0}};
    VmfSwitchover message = {.flags = flags, .static_sum = static_sum, .device_sum = device_sum, .blocks = blocks};

    memset(message.token, 'T', sizeof(message.token));
    message.n_blocks = vmf_guest_n_ram(guest->guest);
    for (unsigned b = 0; b < message.n_blocks; b++)
        blocks[b].hole = vmf_ram_block_size(vmf_guest_ram(guest->guest, b)) / 4096;
    vmf_switchover_send(writer, &message, NULL);
}

static GByteArray *begin_stream(const VmfFuzzGuest *guest, uint8_t kind)
{
    VmfStreamFormat format = {.version = kind & 1 ? 2 : 3, .swap = kind & 2};
    VmfPageChannels page_channels = {.count = 0, .epoch = 1};
    GByteArray *bytes = g_byte_array_new();
    VmfChannel *channel = vmf_fuzz_channel_into(bytes);
    VmfRecordWriter *writer = vmf_record_writer_new(channel, format);
    XXH3_state_t *device_sum = XXH3_createState();

    XXH3_64bits_reset(device_sum);
    vmf_record_writer_sum_begin(writer);
    write_static(writer, guest);
    uint64_t static_sum = vmf_record_writer_sum_end(writer);
    vmf_page_channels_queue(writer, &page_channels, NULL);
    write_state(writer, device_sum);
    vmf_u64_send(writer, VMF_RECORD_END_MARK, 0, NULL);
    write_switchover(writer, guest, (kind & 4 ? VMF_SWITCHOVER_RUN : 0) | (kind & 8 ? VMF_SWITCHOVER_AUDIT : 0), static_sum,
                     XXH3_64bits_digest(device_sum));
    XXH3_freeState(device_sum);
    vmf_record_writer_free(writer);
    vmf_channel_free(channel);
    return bytes;
}

static void run(VmfFuzzGuest *guest, const GByteArray *stream)
{
    VmfParameters parameters;
    GError *error = NULL;

    vmf_parameters_init(&parameters);
    VmfFuzzLink *link = vmf_fuzz_link_new(stream->data, stream->len, false);
    VmfListener *listener = vmf_fuzz_link_listener(link, false);
    VmfSession *session = NULL;
    session = vmf_session_new_target(guest->guest, listener, &parameters, &vmf_fuzz_session_ops, &session);
    bool done = vmf_fuzz_link_run(link, session, &error);
    FUZZ_CHECK(done == (error == NULL));
    FUZZ_CHECK(guest->setups == guest->cleanups);
    FUZZ_CHECK(guest->starts <= 1 && (done || guest->starts == 0));
    g_clear_error(&error);
    vmf_session_free(session);
    vmf_listener_free(listener);
    vmf_fuzz_link_free(link);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static VmfFuzzGuest *guest;

    if (!guest)
        guest = vmf_fuzz_guest_new(false);
    if (size < 1)
        return 0;
    vmf_fuzz_guest_reset(guest, false);
    GByteArray *stream = begin_stream(guest, data[0]);
    g_byte_array_append(stream, data + 1, (guint)size - 1);
    run(guest, stream);
    g_byte_array_unref(stream);
    return 0;
}
