/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bodies of single records, each by its decoder. A message that was accepted is written as the octets that it was read from. The first
 * octet is the row of the table, bit 7: swapped; the body follows.
 */
#include <string.h>

#include "stream/channel.h"
#include "stream/message.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/link.h"

#define N_BLOCKS 2

typedef struct {
    VmfRecord record;
    bool swap;
    VmfRecordWriter *writer;
} Trial;

/* Each returns whether it was accepted and, if it is so, has written it to trial->writer. */

static bool try_verdict(Trial *trial)
{
    VmfVerdict verdict;

    if (!vmf_verdict_decode(&trial->record, trial->swap, &verdict, NULL))
        return false;
    FUZZ_CHECK(vmf_verdict_send(trial->writer, &verdict, NULL));
    vmf_verdict_clear(&verdict);
    return true;
}

static bool try_target_host(Trial *trial)
{
    g_autofree char *name = NULL;

    return vmf_target_host_decode(&trial->record, trial->swap, &name, NULL) && vmf_target_host_send(trial->writer, name, NULL);
}

static bool try_page_channels(Trial *trial)
{
    VmfPageChannels message;

    return vmf_page_channels_decode(&trial->record, trial->swap, &message, NULL) &&
           vmf_page_channels_queue(trial->writer, &message, NULL);
}

static bool try_hint(Trial *trial)
{
    VmfHint hint;

    return vmf_hint_decode(&trial->record, trial->swap, &hint, NULL) && vmf_hint_queue(trial->writer, &hint, NULL);
}

static bool try_ack(Trial *trial)
{
    VmfAck ack;
    g_autoptr(GArray) entries = NULL;

    return vmf_ack_decode(&trial->record, trial->swap, &ack, &entries, NULL) &&
           vmf_ack_send(trial->writer, &ack, (const VmfAckEntry *)(void *)entries->data, NULL);
}

static bool try_u64(Trial *trial)
{
    uint64_t value;

    return vmf_u64_decode(&trial->record, trial->swap, &value, NULL) &&
           vmf_u64_send(trial->writer, trial->record.type, value, NULL);
}

static bool try_section(Trial *trial)
{
    XXH3_state_t *sum = XXH3_createState();
    VmfSection section;

    XXH3_64bits_reset(sum);
    bool good = vmf_section_decode(&trial->record, trial->swap, &section, NULL) &&
                vmf_section_queue(trial->writer, &section, sum, NULL);
    XXH3_freeState(sum);
    return good;
}

static bool try_switchover(Trial *trial)
{
    VmfSwitchover message;

    if (!vmf_switchover_decode(&trial->record, trial->swap, N_BLOCKS, &message, NULL))
        return false;
    FUZZ_CHECK(vmf_switchover_send(trial->writer, &message, NULL));
    vmf_switchover_clear(&message);
    return true;
}

static bool try_ready(Trial *trial)
{
    VmfReady message;

    if (!vmf_ready_decode(&trial->record, trial->swap, N_BLOCKS, &message, NULL))
        return false;
    FUZZ_CHECK(vmf_ready_send(trial->writer, &message, NULL));
    vmf_ready_clear(&message);
    return true;
}

static bool try_token(Trial *trial)
{
    uint8_t token[VMF_TOKEN_SIZE];

    return vmf_token_decode(&trial->record, token, NULL) && vmf_token_send(trial->writer, trial->record.type, token, NULL);
}

static bool try_report(Trial *trial)
{
    VmfReport report;

    return vmf_report_decode(&trial->record, trial->swap, &report, NULL) && vmf_report_send(trial->writer, &report, NULL);
}

/* Its id is one of ours when it is sent, so it is only read. */
static bool try_complaint(Trial *trial)
{
    g_autofree char *id = NULL, *text = NULL;
    uint8_t token[VMF_TOKEN_SIZE];
    bool failed = trial->record.type == VMF_RECORD_FAILED;

    if (vmf_complaint_decode(&trial->record, trial->swap, failed ? NULL : token, &id, &text, NULL))
        FUZZ_CHECK(g_utf8_validate(id, -1, NULL) && g_utf8_validate(text, -1, NULL));
    return false;
}

static bool try_empty(Trial *trial)
{
    return vmf_empty_check(&trial->record, NULL) && vmf_record_write(trial->writer, trial->record.type, NULL, 0, NULL);
}

static bool try_disk_sync(Trial *trial)
{
    static const uint32_t disks[] = {0, 3};
    VmfDiskSync message;

    if (!vmf_disk_sync_decode(&trial->record, trial->swap, G_N_ELEMENTS(disks), disks, &message, NULL))
        return false;
    FUZZ_CHECK(vmf_disk_sync_send(trial->writer, trial->record.type, &message, NULL));
    vmf_disk_sync_clear(&message);
    return true;
}

static bool try_disk_base(Trial *trial)
{
    VmfDiskBase message;

    if (!vmf_disk_base_decode(&trial->record, trial->swap, &message, NULL))
        return false;
    FUZZ_CHECK(vmf_disk_base_send(trial->writer, &message, NULL));
    vmf_disk_base_clear(&message);
    return true;
}

static const struct {
    uint32_t type;
    bool (*attempt)(Trial *trial);
} rows[] = {
    {VMF_RECORD_VERDICT, try_verdict},     {VMF_RECORD_TARGET_HOST, try_target_host}, {VMF_RECORD_PAGE_CHANNELS, try_page_channels},
    {VMF_RECORD_HINT, try_hint},           {VMF_RECORD_ACK, try_ack},                 {VMF_RECORD_END_MARK, try_u64},
    {VMF_RECORD_SECTION, try_section},     {VMF_RECORD_SWITCHOVER, try_switchover},   {VMF_RECORD_READY, try_ready},
    {VMF_RECORD_RUN, try_token},           {VMF_RECORD_REPORT, try_report},           {VMF_RECORD_REFUSED, try_complaint},
    {VMF_RECORD_FAILED, try_complaint},    {VMF_RECORD_END, try_empty},              {VMF_RECORD_DISK_SYNC, try_disk_sync},
    {VMF_RECORD_DISK_SYNCED, try_disk_sync}, {VMF_RECORD_BASE, try_disk_base},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > VMF_RECORD_BODY_MAX)
        return 0;
    unsigned row = (data[0] & 0x7f) % G_N_ELEMENTS(rows);
    uint32_t length = (uint32_t)size - 1;
    VmfStreamFormat format = {.version = 3, .swap = data[0] & 0x80};
    GByteArray *bytes = g_byte_array_new();
    VmfChannel *channel = vmf_fuzz_channel_into(bytes);
    Trial trial = {{rows[row].type, length, data + 1, length}, format.swap, vmf_record_writer_new(channel, format)};

    if (rows[row].attempt(&trial)) {
        FUZZ_CHECK(vmf_record_flush(trial.writer, NULL) && bytes->len >= VMF_RECORD_HEADER_SIZE + length);
        FUZZ_CHECK(memcmp(bytes->data + VMF_RECORD_HEADER_SIZE, data + 1, length) == 0);
    }
    vmf_record_writer_free(trial.writer);
    vmf_channel_free(channel);
    g_byte_array_unref(bytes);
    return 0;
}
