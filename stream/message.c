/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/message.h"

#include <vmferry/error.h>

#define COMPLAINT_TEXT_MAX 4096

static VmfPack begin(const VmfRecordWriter *writer)
{
    return (VmfPack){g_byte_array_new(), writer->format.swap};
}

/* Ends a body that begin() began: sends it, or queues it, and frees it. */
static bool end(VmfRecordWriter *writer, uint32_t type, VmfPack *pack, bool flush, GError **error)
{
    bool done = flush ? vmf_record_write(writer, type, pack->bytes->data, pack->bytes->len, error)
                      : vmf_record_queue(writer, type, pack->bytes->data, pack->bytes->len, error);

    g_byte_array_unref(pack->bytes);
    return done;
}

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

static void unpack_token(VmfUnpack *unpack, uint8_t token[16])
{
    const uint8_t *at = vmf_unpack_bytes(unpack, 16);

    if (at)
        memcpy(token, at, 16);
}

/*
 * What people are told comes from anywhere: file names, properties, messages of libraries. On the wire it is UTF-8 without control
 * characters, 1 to @maximum octets, cut between two characters; otherwise the peer would refuse the record for its text.
 */
static char *clean_text(const char *text, size_t maximum)
{
    const char *some = *text ? text : "no reason given";
    char *clean = g_utf8_make_valid(some, (gssize)strnlen(some, maximum));
    size_t length = strlen(clean);

    for (char *c = clean; *c; c++)
        if ((uint8_t)*c < 0x20 || *c == 0x7f)
            *c = ' ';
    for (; length > maximum || ((uint8_t)clean[length] & 0xc0) == 0x80; length--)
        ;
    clean[length] = 0;
    return clean;
}

void vmf_disk_sync_clear(VmfDiskSync *message)
{
    g_clear_pointer(&message->sums, g_free);
}

bool vmf_disk_sync_send(VmfRecordWriter *writer, uint32_t type, const VmfDiskSync *message, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_u64(&pack, message->cookie);
    vmf_pack_u32(&pack, message->n_disks);
    vmf_pack_u32(&pack, message->flags);
    for (uint32_t i = 0; i < message->n_disks; i++) {
        vmf_pack_u32(&pack, message->disks[i]);
        vmf_pack_u32(&pack, 0);
        vmf_pack_u64(&pack, message->sums[i]);
    }
    return end(writer, type, &pack, true, error);
}

static bool flags_fit(uint32_t type, uint32_t flags)
{
    if (type != VMF_RECORD_DISK_SYNC)
        return flags == 0;
    return flags == 0 || flags == VMF_DISK_SYNC_WRITTEN || flags == VMF_DISK_SYNC_LAST ||
           flags == (VMF_DISK_SYNC_LAST | VMF_DISK_SYNC_VERIFY);
}

bool vmf_disk_sync_decode(const VmfRecord *record, bool swap, uint32_t n_disks, const uint32_t *disks, VmfDiskSync *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfDiskSync){.cookie = vmf_unpack_u64(&unpack), .disks = disks};
    out->n_disks = vmf_unpack_u32(&unpack);
    out->flags = vmf_unpack_u32(&unpack);
    unpack.failed |= out->n_disks != n_disks || !flags_fit(record->type, out->flags);
    out->sums = g_new0(uint64_t, n_disks + 1);
    for (uint32_t i = 0; i < n_disks && !unpack.failed; i++) {
        unpack.failed |= vmf_unpack_u32(&unpack) != disks[i];
        vmf_unpack_zero(&unpack, 4);
        out->sums[i] = vmf_unpack_u64(&unpack);
    }
    if (finished(&unpack, record, error))
        return true;
    vmf_disk_sync_clear(out);
    return false;
}

void vmf_disk_base_clear(VmfDiskBase *message)
{
    g_clear_pointer(&message->digests, g_free);
}

bool vmf_disk_base_send(VmfRecordWriter *writer, const VmfDiskBase *message, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_u32(&pack, message->disk);
    vmf_pack_u32(&pack, message->is_zero ? VMF_BASE_IS_ZERO : 0);
    vmf_pack_u64(&pack, message->offset);
    vmf_pack_u64(&pack, message->length);
    for (uint32_t i = 0; i < message->n_digests; i++)
        vmf_pack_u64(&pack, message->digests[i]);
    return end(writer, VMF_RECORD_BASE, &pack, true, error);
}

bool vmf_disk_base_decode(const VmfRecord *record, bool swap, VmfDiskBase *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfDiskBase){.disk = vmf_unpack_u32(&unpack)};
    uint32_t flags = vmf_unpack_u32(&unpack);
    out->is_zero = flags & VMF_BASE_IS_ZERO;
    out->offset = vmf_unpack_u64(&unpack);
    out->length = vmf_unpack_u64(&unpack);
    size_t n = unpack.left / 8;
    unpack.failed |= flags & ~VMF_BASE_IS_ZERO || n > VMF_BASE_GRANULES_MAX || (out->is_zero && n > 0);
    out->n_digests = unpack.failed ? 0 : (uint32_t)n;
    out->digests = g_new0(uint64_t, out->n_digests + 1);
    for (uint32_t i = 0; i < out->n_digests; i++)
        out->digests[i] = vmf_unpack_u64(&unpack);
    if (finished(&unpack, record, error))
        return true;
    vmf_disk_base_clear(out);
    return false;
}

bool vmf_empty_check(const VmfRecord *record, GError **error)
{
    VmfUnpack unpack = unpack_of(record, false);
    return finished(&unpack, record, error);
}

/* ---- VERDICT ---------------------------------------------------------------------------------------------------- */

void vmf_verdict_clear(VmfVerdict *verdict)
{
    g_clear_pointer(&verdict->texts, g_strfreev);
}

bool vmf_verdict_send(VmfRecordWriter *writer, const VmfVerdict *verdict, GError **error)
{
    VmfPack pack = begin(writer);
    uint32_t count = MIN(verdict->texts ? g_strv_length(verdict->texts) : 0, VMF_VERDICT_TEXTS_MAX);

    vmf_pack_u32(&pack, verdict->accepted ? 0 : 1);
    vmf_pack_u32(&pack, count);
    vmf_pack_u64(&pack, verdict->features);
    vmf_pack_u32(&pack, verdict->page_channels);
    vmf_pack_u32(&pack, 0);
    for (uint32_t i = 0; i < count; i++) {
        g_autofree char *text = clean_text(verdict->texts[i], VMF_VERDICT_TEXT_MAX);
        vmf_pack_u16(&pack, (uint16_t)strlen(text));
        vmf_pack_bytes(&pack, text, strlen(text));
    }
    return end(writer, VMF_RECORD_VERDICT, &pack, true, error);
}

bool vmf_verdict_decode(const VmfRecord *record, bool swap, VmfVerdict *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);
    uint32_t verdict = vmf_unpack_u32(&unpack);
    uint32_t count = vmf_unpack_u32(&unpack);

    *out = (VmfVerdict){.accepted = verdict == 0, .features = vmf_unpack_u64(&unpack), .page_channels = vmf_unpack_u32(&unpack)};
    vmf_unpack_zero(&unpack, 4);
    unpack.failed |= verdict > 1 || count > VMF_VERDICT_TEXTS_MAX || (verdict == 1) != (count > 0);
    g_autoptr(GPtrArray) texts = g_ptr_array_new_with_free_func(g_free);
    for (uint32_t i = 0; i < count && !unpack.failed; i++) {
        uint16_t length = vmf_unpack_u16(&unpack);
        unpack.failed |= length < 1 || length > VMF_VERDICT_TEXT_MAX;
        char *text = vmf_unpack_string(&unpack, length);
        if (text)
            g_ptr_array_add(texts, text);
    }
    if (!finished(&unpack, record, error))
        return false;
    g_ptr_array_add(texts, NULL);
    out->texts = (char **)g_ptr_array_free(g_steal_pointer(&texts), false);
    return true;
}

bool vmf_target_host_send(VmfRecordWriter *writer, const char *name, GError **error)
{
    VmfPack pack = begin(writer);
    size_t length = strnlen(name, VMF_HOST_NAME_MAX);

    vmf_pack_u16(&pack, (uint16_t)length);
    vmf_pack_u16(&pack, 0);
    vmf_pack_u32(&pack, 0);
    vmf_pack_bytes(&pack, name, length);
    return end(writer, VMF_RECORD_TARGET_HOST, &pack, true, error);
}

bool vmf_target_host_decode(const VmfRecord *record, bool swap, char **name, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);
    uint16_t length = vmf_unpack_u16(&unpack);

    vmf_unpack_zero(&unpack, 6);
    unpack.failed |= length < 1 || length > VMF_HOST_NAME_MAX;
    g_autofree char *got = vmf_unpack_string(&unpack, length);
    if (!finished(&unpack, record, error))
        return false;
    *name = g_steal_pointer(&got);
    return true;
}

bool vmf_target_state_send(VmfRecordWriter *writer, const uint8_t id[16], GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_bytes(&pack, id, 16);
    return end(writer, VMF_RECORD_TARGET_STATE, &pack, true, error);
}

bool vmf_target_state_decode(const VmfRecord *record, uint8_t id[16], GError **error)
{
    static const uint8_t nobody[16];
    VmfUnpack unpack = unpack_of(record, false);

    memcpy(id, nobody, sizeof(nobody));
    unpack_token(&unpack, id);
    unpack.failed |= memcmp(id, nobody, sizeof(nobody)) == 0;
    return finished(&unpack, record, error);
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

bool vmf_page_channels_queue(VmfRecordWriter *writer, const VmfPageChannels *message, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_bytes(&pack, message->session, sizeof(message->session));
    vmf_pack_u32(&pack, message->count);
    vmf_pack_u32(&pack, message->epoch);
    return end(writer, VMF_RECORD_PAGE_CHANNELS, &pack, false, error);
}

bool vmf_page_channels_decode(const VmfRecord *record, bool swap, VmfPageChannels *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    unpack_token(&unpack, out->session);
    out->count = vmf_unpack_u32(&unpack);
    out->epoch = vmf_unpack_u32(&unpack);
    unpack.failed |= out->count > 64;
    return finished(&unpack, record, error);
}

bool vmf_hint_queue(VmfRecordWriter *writer, const VmfHint *hint, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_u32(&pack, hint->block);
    vmf_pack_u32(&pack, 0);
    vmf_pack_u64(&pack, hint->chunk);
    for (unsigned i = 0; i < VMF_WIRE_CHUNK_WORDS; i++)
        vmf_pack_u64(&pack, hint->data[i]);
    return end(writer, VMF_RECORD_HINT, &pack, false, error);
}

bool vmf_hint_decode(const VmfRecord *record, bool swap, VmfHint *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    out->block = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    out->chunk = vmf_unpack_u64(&unpack);
    for (unsigned i = 0; i < VMF_WIRE_CHUNK_WORDS; i++)
        out->data[i] = vmf_unpack_u64(&unpack);
    return finished(&unpack, record, error);
}

bool vmf_ack_send(VmfRecordWriter *writer, const VmfAck *ack, const VmfAckEntry *entries, GError **error)
{
    VmfPack pack = begin(writer);

    g_assert(ack->n_entries <= VMF_ACK_ENTRIES_MAX);
    vmf_pack_u32(&pack, ack->epoch);
    vmf_pack_u32(&pack, ack->channel);
    vmf_pack_u64(&pack, ack->sequence);
    vmf_pack_u32(&pack, ack->n_entries);
    vmf_pack_u32(&pack, 0);
    for (uint32_t i = 0; i < ack->n_entries; i++) {
        vmf_pack_u32(&pack, entries[i].block);
        vmf_pack_u32(&pack, 0);
        vmf_pack_u64(&pack, entries[i].chunk);
        vmf_pack_u64(&pack, entries[i].sum);
    }
    return end(writer, VMF_RECORD_ACK, &pack, true, error);
}

bool vmf_ack_decode(const VmfRecord *record, bool swap, VmfAck *ack, GArray **entries, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    ack->epoch = vmf_unpack_u32(&unpack);
    ack->channel = vmf_unpack_u32(&unpack);
    ack->sequence = vmf_unpack_u64(&unpack);
    ack->n_entries = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    unpack.failed |= ack->n_entries > VMF_ACK_ENTRIES_MAX;
    g_autoptr(GArray) list = g_array_new(false, false, sizeof(VmfAckEntry));
    for (uint32_t i = 0; i < ack->n_entries && !unpack.failed; i++) {
        VmfAckEntry entry = {.block = vmf_unpack_u32(&unpack)};
        vmf_unpack_zero(&unpack, 4);
        entry.chunk = vmf_unpack_u64(&unpack);
        entry.sum = vmf_unpack_u64(&unpack);
        g_array_append_val(list, entry);
    }
    if (!finished(&unpack, record, error))
        return false;
    *entries = g_steal_pointer(&list);
    return true;
}

bool vmf_round_queue(VmfRecordWriter *writer, uint32_t round, uint64_t pending_bytes, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_u32(&pack, round);
    vmf_pack_u32(&pack, 0);
    vmf_pack_u64(&pack, pending_bytes);
    return end(writer, VMF_RECORD_ROUND, &pack, false, error);
}

bool vmf_u64_send(VmfRecordWriter *writer, uint32_t type, uint64_t value, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_u64(&pack, value);
    return end(writer, type, &pack, true, error);
}

bool vmf_u64_decode(const VmfRecord *record, bool swap, uint64_t *value, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *value = vmf_unpack_u64(&unpack);
    return finished(&unpack, record, error);
}

/* ---- state ------------------------------------------------------------------------------------------------------ */

bool vmf_section_queue(VmfRecordWriter *writer, const VmfSection *section, XXH3_state_t *sum, GError **error)
{
    VmfPack pack = begin(writer);

    g_assert(section->length <= VMF_SECTION_CONTENT_MAX);
    vmf_pack_u32(&pack, section->id);
    vmf_pack_u32(&pack, section->flags);
    vmf_pack_u32(&pack, section->part);
    vmf_pack_u32(&pack, 0);
    vmf_pack_bytes(&pack, section->content, section->length);
    XXH3_64bits_update(sum, pack.bytes->data, pack.bytes->len);
    return end(writer, VMF_RECORD_SECTION, &pack, false, error);
}

bool vmf_section_decode(const VmfRecord *record, bool swap, VmfSection *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    out->id = vmf_unpack_u32(&unpack);
    out->flags = vmf_unpack_u32(&unpack);
    out->part = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    out->length = (uint32_t)unpack.left;
    out->content = vmf_unpack_bytes(&unpack, unpack.left);
    unpack.failed |= out->length > VMF_SECTION_CONTENT_MAX || out->flags & ~(VMF_SECTION_FIRST | VMF_SECTION_LAST) ||
                     (out->part == 0) != !!(out->flags & VMF_SECTION_FIRST);
    return finished(&unpack, record, error);
}

/* ---- handover --------------------------------------------------------------------------------------------------- */

void vmf_switchover_clear(VmfSwitchover *message)
{
    g_clear_pointer(&message->blocks, g_free);
}

bool vmf_switchover_send(VmfRecordWriter *writer, const VmfSwitchover *message, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_bytes(&pack, message->token, sizeof(message->token));
    vmf_pack_u32(&pack, message->flags);
    vmf_pack_u32(&pack, message->n_blocks);
    vmf_pack_u64(&pack, message->static_sum);
    vmf_pack_u64(&pack, message->device_sum);
    for (uint32_t i = 0; i < message->n_blocks; i++) {
        const VmfBlockSummary *block = &message->blocks[i];
        vmf_pack_u32(&pack, i);
        vmf_pack_u32(&pack, 0);
        vmf_pack_u64(&pack, block->data);
        vmf_pack_u64(&pack, block->zero);
        vmf_pack_u64(&pack, block->hole);
        vmf_pack_u64(&pack, block->sum);
    }
    return end(writer, VMF_RECORD_SWITCHOVER, &pack, true, error);
}

bool vmf_switchover_decode(const VmfRecord *record, bool swap, uint32_t n_blocks, VmfSwitchover *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfSwitchover){0};
    unpack_token(&unpack, out->token);
    out->flags = vmf_unpack_u32(&unpack);
    out->n_blocks = vmf_unpack_u32(&unpack);
    out->static_sum = vmf_unpack_u64(&unpack);
    out->device_sum = vmf_unpack_u64(&unpack);
    unpack.failed |= out->n_blocks != n_blocks || out->flags & ~(VMF_SWITCHOVER_RUN | VMF_SWITCHOVER_AUDIT);
    out->blocks = g_new0(VmfBlockSummary, n_blocks);
    for (uint32_t i = 0; i < n_blocks && !unpack.failed; i++) {
        unpack.failed |= vmf_unpack_u32(&unpack) != i;
        vmf_unpack_zero(&unpack, 4);
        out->blocks[i].data = vmf_unpack_u64(&unpack);
        out->blocks[i].zero = vmf_unpack_u64(&unpack);
        out->blocks[i].hole = vmf_unpack_u64(&unpack);
        out->blocks[i].sum = vmf_unpack_u64(&unpack);
    }
    if (finished(&unpack, record, error))
        return true;
    vmf_switchover_clear(out);
    return false;
}

void vmf_ready_clear(VmfReady *message)
{
    g_clear_pointer(&message->sums, g_free);
}

bool vmf_ready_send(VmfRecordWriter *writer, const VmfReady *message, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_bytes(&pack, message->token, sizeof(message->token));
    vmf_pack_bytes(&pack, message->state_directory, sizeof(message->state_directory));
    vmf_pack_u32(&pack, message->flags);
    vmf_pack_u32(&pack, message->n_blocks);
    vmf_pack_u64(&pack, message->static_sum);
    vmf_pack_u64(&pack, message->device_sum);
    for (uint32_t i = 0; i < message->n_blocks; i++)
        vmf_pack_u64(&pack, message->sums[i]);
    return end(writer, VMF_RECORD_READY, &pack, true, error);
}

bool vmf_ready_decode(const VmfRecord *record, bool swap, uint32_t n_blocks, VmfReady *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfReady){0};
    unpack_token(&unpack, out->token);
    unpack_token(&unpack, out->state_directory);
    out->flags = vmf_unpack_u32(&unpack);
    out->n_blocks = vmf_unpack_u32(&unpack);
    out->static_sum = vmf_unpack_u64(&unpack);
    out->device_sum = vmf_unpack_u64(&unpack);
    unpack.failed |= out->n_blocks != n_blocks || out->flags & ~VMF_READY_AUDITED;
    out->sums = g_new0(uint64_t, n_blocks);
    for (uint32_t i = 0; i < n_blocks && !unpack.failed; i++)
        out->sums[i] = vmf_unpack_u64(&unpack);
    if (finished(&unpack, record, error))
        return true;
    vmf_ready_clear(out);
    return false;
}

bool vmf_token_send(VmfRecordWriter *writer, uint32_t type, const uint8_t token[VMF_TOKEN_SIZE], GError **error)
{
    return vmf_record_write(writer, type, token, VMF_TOKEN_SIZE, error);
}

bool vmf_token_decode(const VmfRecord *record, uint8_t token[VMF_TOKEN_SIZE], GError **error)
{
    VmfUnpack unpack = unpack_of(record, false);

    unpack_token(&unpack, token);
    return finished(&unpack, record, error);
}

bool vmf_complaint_send(VmfRecordWriter *writer, uint32_t type, const uint8_t *token, const GError *why, GError **error)
{
    VmfPack pack = begin(writer);
    const char *id = vmf_error_id(why);
    g_autofree char *text = clean_text(why->message, COMPLAINT_TEXT_MAX);

    if (token)
        vmf_pack_bytes(&pack, token, VMF_TOKEN_SIZE);
    vmf_pack_u16(&pack, (uint16_t)strlen(id));
    vmf_pack_u16(&pack, (uint16_t)strlen(text));
    vmf_pack_u32(&pack, 0);
    vmf_pack_bytes(&pack, id, strlen(id));
    vmf_pack_bytes(&pack, text, strlen(text));
    return end(writer, type, &pack, true, error);
}

bool vmf_complaint_decode(const VmfRecord *record, bool swap, uint8_t *token, char **id, char **text, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    if (token)
        unpack_token(&unpack, token);
    uint16_t id_length = vmf_unpack_u16(&unpack), text_length = vmf_unpack_u16(&unpack);
    vmf_unpack_zero(&unpack, 4);
    g_autofree char *got_id = vmf_unpack_string(&unpack, id_length);
    g_autofree char *got_text = vmf_unpack_string(&unpack, text_length);
    if (!finished(&unpack, record, error))
        return false;
    *id = g_steal_pointer(&got_id);
    *text = g_steal_pointer(&got_text);
    return true;
}

bool vmf_report_send(VmfRecordWriter *writer, const VmfReport *report, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_bytes(&pack, report->token, sizeof(report->token));
    vmf_pack_u32(&pack, (report->gap_known ? VMF_REPORT_GAP_KNOWN : 0) | (report->not_started ? VMF_REPORT_NOT_STARTED : 0));
    vmf_pack_u32(&pack, 0);
    vmf_pack_u64(&pack, report->guest_gap_ns);
    return end(writer, VMF_RECORD_REPORT, &pack, true, error);
}

bool vmf_report_decode(const VmfRecord *record, bool swap, VmfReport *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    unpack_token(&unpack, out->token);
    uint32_t flags = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    out->guest_gap_ns = vmf_unpack_u64(&unpack);
    out->gap_known = flags & VMF_REPORT_GAP_KNOWN;
    out->not_started = flags & VMF_REPORT_NOT_STARTED;
    unpack.failed |= flags & ~(VMF_REPORT_GAP_KNOWN | VMF_REPORT_NOT_STARTED);
    return finished(&unpack, record, error);
}

/* ---- questions ------------------------------------------------------------------------------------------------------------- */

/* In the order of VmfQuestion. */
static const uint32_t question_types[] = {VMF_RECORD_QUERY, VMF_RECORD_ABORT, VMF_RECORD_INQUIRE, VMF_RECORD_CONFIRM};
G_STATIC_ASSERT(G_N_ELEMENTS(question_types) == VMF_QUESTION_N);

bool vmf_question_send(VmfRecordWriter *writer, VmfQuestion question, const uint8_t token[VMF_TOKEN_SIZE], GError **error)
{
    return vmf_token_send(writer, question_types[question], token, error);
}

bool vmf_question_decode(const VmfRecord *record, const uint8_t token[VMF_TOKEN_SIZE], VmfQuestion *question, GError **error)
{
    uint8_t got[VMF_TOKEN_SIZE];

    for (unsigned i = 0; i < G_N_ELEMENTS(question_types); i++) {
        if (record->type != question_types[i])
            continue;
        *question = i;
        if (!vmf_token_decode(record, got, error))
            return false;
        if (memcmp(got, token, sizeof(got)) == 0)
            return true;
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record %s: of another token", vmf_record_name(record->type));
        return false;
    }
    vmf_record_set_order_error(error, record->type, "where a question has to be");
    return false;
}

bool vmf_answer_send(VmfRecordWriter *writer, const VmfAnswerMessage *message, GError **error)
{
    VmfPack pack = begin(writer);

    vmf_pack_bytes(&pack, message->token, sizeof(message->token));
    vmf_pack_bytes(&pack, message->state_directory, sizeof(message->state_directory));
    vmf_pack_u32(&pack, message->answer);
    vmf_pack_u32(&pack, 0);
    return end(writer, VMF_RECORD_ANSWER, &pack, true, error);
}

bool vmf_answer_decode(const VmfRecord *record, bool swap, VmfAnswerMessage *out, GError **error)
{
    VmfUnpack unpack = unpack_of(record, swap);

    *out = (VmfAnswerMessage){.answer = VMF_ANSWER_NONE};
    unpack_token(&unpack, out->token);
    unpack_token(&unpack, out->state_directory);
    uint32_t answer = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    unpack.failed |= answer == VMF_ANSWER_NONE || answer >= VMF_ANSWER_N;
    out->answer = unpack.failed ? VMF_ANSWER_NONE : (VmfAnswer)answer;
    return finished(&unpack, record, error);
}
