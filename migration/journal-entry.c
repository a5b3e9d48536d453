/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/journal-entry.h"

#include <vmferry/error.h>

#include "stream/crc32c.h"
#include "stream/pack.h"

#define SLOT_MAGIC "VMFENTRY"
#define ID_MAGIC "VMFSTATE"
#define SIDE_SOURCE 1
#define SIDE_TARGET 2

/* Files are little-endian whatever the host: a state directory may be looked at anywhere. */
#define SWAP (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)

static const char *const names[VMF_JOURNAL_N] = {
    [VMF_JOURNAL_NONE] = "none",       [VMF_JOURNAL_OFFERED] = "offered",     [VMF_JOURNAL_BACK] = "back",
    [VMF_JOURNAL_GONE] = "gone",       [VMF_JOURNAL_READY] = "ready",         [VMF_JOURNAL_STARTED] = "started",
    [VMF_JOURNAL_REFUSED] = "refused", [VMF_JOURNAL_CONFIRMED] = "confirmed",
};

const char *vmf_journal_state_name(VmfJournalState state)
{
    return state >= 0 && state < VMF_JOURNAL_N ? names[state] : "unknown";
}

void vmf_journal_name_of(bool is_source, const uint8_t token[16], char name[VMF_JOURNAL_NAME_SIZE])
{
    static const char digits[] = "0123456789abcdef";

    for (unsigned i = 0; i < 16; i++) {
        name[2 * i] = digits[token[i] >> 4];
        name[2 * i + 1] = digits[token[i] & 15];
    }
    g_strlcpy(name + 32, is_source ? ".source" : ".target", VMF_JOURNAL_NAME_SIZE - 32);
}

bool vmf_journal_name_parse(const char *name, bool *is_source, uint8_t token[16])
{
    char again[VMF_JOURNAL_NAME_SIZE];

    if (strlen(name) != VMF_JOURNAL_NAME_SIZE - 1)
        return false;
    for (unsigned i = 0; i < 16; i++) {
        int high = g_ascii_xdigit_value(name[2 * i]), low = g_ascii_xdigit_value(name[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        token[i] = (uint8_t)(high << 4 | low);
    }
    *is_source = strcmp(name + 32, ".source") == 0;
    vmf_journal_name_of(*is_source, token,
                        again); /* one name for each token: capital letters are somebody else's file */
    return strcmp(name, again) == 0;
}

bool vmf_journal_may_become(bool is_source, VmfJournalState from, VmfJournalState to)
{
    /* Each set has the state itself: writing it again is how a caller finds out after a failure, or adds the peer's id.
     */
#define BIT(state) (1u << VMF_JOURNAL_##state)
    static const unsigned source[VMF_JOURNAL_N] = {
        [VMF_JOURNAL_NONE] = BIT(OFFERED),
        [VMF_JOURNAL_OFFERED] = BIT(OFFERED) | BIT(BACK) | BIT(GONE),
        [VMF_JOURNAL_BACK] = BIT(BACK),
        [VMF_JOURNAL_GONE] = BIT(GONE),
    };
    static const unsigned target[VMF_JOURNAL_N] = {
        [VMF_JOURNAL_NONE] = BIT(READY) | BIT(REFUSED),
        [VMF_JOURNAL_READY] = BIT(READY) | BIT(STARTED) | BIT(REFUSED),
        [VMF_JOURNAL_STARTED] = BIT(STARTED) | BIT(CONFIRMED),
        [VMF_JOURNAL_REFUSED] = BIT(REFUSED),
        [VMF_JOURNAL_CONFIRMED] = BIT(CONFIRMED),
    };
#undef BIT
    return from >= 0 && from < VMF_JOURNAL_N && to >= 0 && to < VMF_JOURNAL_N &&
           ((is_source ? source : target)[from] & 1u << to);
}

static bool is_a_state_of(bool is_source, uint32_t state)
{
    if (is_source)
        return state >= VMF_JOURNAL_OFFERED && state <= VMF_JOURNAL_GONE;
    return state >= VMF_JOURNAL_READY && state <= VMF_JOURNAL_CONFIRMED;
}

bool vmf_journal_entry_check(const VmfJournalEntry *entry, GError **error)
{
    bool ended = memchr(entry->machine, 0, sizeof(entry->machine)) && memchr(entry->peer, 0, sizeof(entry->peer)) &&
                 memchr(entry->peer_host, 0, sizeof(entry->peer_host));

    if (ended && is_a_state_of(entry->is_source, entry->state))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "journal: entry: %s",
                ended ? "a state of the other side" : "a name is not ended by a zero");
    return false;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

static void pack_slot(VmfPack *pack, const VmfJournalEntry *entry, uint64_t sequence)
{
    static const uint8_t zeros[VMF_JOURNAL_SLOT_SIZE];
    size_t machine = strlen(entry->machine), peer = strlen(entry->peer), host = strlen(entry->peer_host);

    vmf_pack_bytes(pack, SLOT_MAGIC, 8);
    vmf_pack_u32(pack, VMF_JOURNAL_VERSION);
    vmf_pack_u32(pack, entry->is_source ? SIDE_SOURCE : SIDE_TARGET);
    vmf_pack_u64(pack, sequence);
    vmf_pack_u32(pack, entry->state);
    vmf_pack_u16(pack, (uint16_t)machine);
    vmf_pack_u16(pack, (uint16_t)peer);
    vmf_pack_u16(pack, (uint16_t)host);
    vmf_pack_bytes(pack, zeros, 6);
    vmf_pack_bytes(pack, entry->token, 16);
    vmf_pack_bytes(pack, entry->uuid, 16);
    vmf_pack_bytes(pack, entry->peer_id, 16);
    vmf_pack_u64(pack, (uint64_t)entry->time_ns);
    g_assert(pack->bytes->len == VMF_JOURNAL_FIXED_SIZE);
    vmf_pack_bytes(pack, entry->machine, machine);
    vmf_pack_bytes(pack, entry->peer, peer);
    vmf_pack_bytes(pack, entry->peer_host, host);
    vmf_pack_bytes(pack, zeros, VMF_JOURNAL_SLOT_SIZE - 4 - pack->bytes->len);
    vmf_pack_u32(pack, vmf_crc32c(0, pack->bytes->data, pack->bytes->len));
}

void vmf_journal_slot_encode(const VmfJournalEntry *entry, uint64_t sequence, uint8_t out[VMF_JOURNAL_SLOT_SIZE])
{
    VmfPack pack = {g_byte_array_sized_new(VMF_JOURNAL_SLOT_SIZE), SWAP};

    pack_slot(&pack, entry, sequence);
    g_assert(pack.bytes->len == VMF_JOURNAL_SLOT_SIZE);
    memcpy(out, pack.bytes->data, VMF_JOURNAL_SLOT_SIZE);
    g_byte_array_unref(pack.bytes);
}

static void unpack_16(VmfUnpack *unpack, uint8_t out[16])
{
    const uint8_t *at = vmf_unpack_bytes(unpack, 16);

    if (at)
        memcpy(out, at, 16);
}

/* @out is zeroed and has room for @maximum octets and a zero. Any octet but zero: URIs and names are what their owners
 * made them. */
static void unpack_text(VmfUnpack *unpack, uint16_t length, size_t maximum, char *out)
{
    const uint8_t *at = vmf_unpack_bytes(unpack, length);

    unpack->failed |= length > maximum || (length > 0 && at && memchr(at, 0, length));
    if (!unpack->failed && length > 0)
        memcpy(out, at, length);
}

static bool crc_is_right(const uint8_t *data, size_t size)
{
    VmfUnpack tail = vmf_unpack_begin(data + size - 4, 4, SWAP);

    return vmf_unpack_u32(&tail) == vmf_crc32c(0, data, size - 4);
}

/* A slot whose CRC is right was written whole. True: all of it is understood. */
static bool unpack_slot(const uint8_t *data, VmfJournalEntry *entry, uint64_t *sequence)
{
    VmfUnpack unpack = vmf_unpack_begin(data, VMF_JOURNAL_SLOT_SIZE - 4, SWAP);
    const uint8_t *magic = vmf_unpack_bytes(&unpack, 8);
    uint32_t version = vmf_unpack_u32(&unpack), side = vmf_unpack_u32(&unpack);

    *entry = (VmfJournalEntry){.is_source = side == SIDE_SOURCE};
    *sequence = vmf_unpack_u64(&unpack);
    uint32_t state = vmf_unpack_u32(&unpack);
    uint16_t machine = vmf_unpack_u16(&unpack), peer = vmf_unpack_u16(&unpack), host = vmf_unpack_u16(&unpack);
    vmf_unpack_zero(&unpack, 6);
    unpack_16(&unpack, entry->token);
    unpack_16(&unpack, entry->uuid);
    unpack_16(&unpack, entry->peer_id);
    entry->time_ns = (int64_t)vmf_unpack_u64(&unpack);
    unpack_text(&unpack, machine, VMF_JOURNAL_MACHINE_MAX, entry->machine);
    unpack_text(&unpack, peer, VMF_JOURNAL_PEER_MAX, entry->peer);
    unpack_text(&unpack, host, VMF_JOURNAL_HOST_MAX, entry->peer_host);
    vmf_unpack_zero(&unpack, unpack.left);
    if (memcmp(magic, SLOT_MAGIC, 8) != 0 || version != VMF_JOURNAL_VERSION ||
        (side != SIDE_SOURCE && side != SIDE_TARGET) || *sequence == 0 || !is_a_state_of(entry->is_source, state) ||
        !vmf_unpack_done(&unpack))
        return false;
    entry->state = (VmfJournalState)state;
    return true;
}

static bool damaged(GError **error, const char *cause)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_JOURNAL_DAMAGED, "read: %s", cause);
    return false;
}

bool vmf_journal_file_decode(const uint8_t *data, size_t size, VmfJournalEntry *entry, uint64_t *sequence,
                             unsigned *slot, GError **error)
{
    VmfJournalEntry found[2];
    uint64_t sequences[2] = {0, 0};

    if (size != VMF_JOURNAL_FILE_SIZE)
        return damaged(error, "the file has another size than it was made with");
    for (unsigned i = 0; i < 2; i++) {
        const uint8_t *at = data + i * VMF_JOURNAL_SLOT_SIZE;
        /* A torn write fails its CRC and the former state counts. What passes and is not understood was no accident of
         * that kind. */
        if (crc_is_right(at, VMF_JOURNAL_SLOT_SIZE) && !unpack_slot(at, &found[i], &sequences[i]))
            return damaged(error, "written by another version of the engine, or not a journal's file");
    }
    if (sequences[0] == 0 && sequences[1] == 0)
        return damaged(error, "both copies are damaged");
    if (sequences[0] == sequences[1] && memcmp(data, data + VMF_JOURNAL_SLOT_SIZE, VMF_JOURNAL_SLOT_SIZE) != 0)
        return damaged(error, "two states of one sequence number");
    *slot = sequences[1] > sequences[0];
    *entry = found[*slot];
    *sequence = sequences[*slot];
    return true;
}

/* ---- the id ----------------------------------------------------------------------------------------------------- */

void vmf_journal_id_encode(const uint8_t id[16], uint8_t out[VMF_JOURNAL_ID_FILE_SIZE])
{
    static const uint8_t zeros[28];
    VmfPack pack = {g_byte_array_new(), SWAP};

    vmf_pack_bytes(&pack, ID_MAGIC, 8);
    vmf_pack_u32(&pack, VMF_JOURNAL_VERSION);
    vmf_pack_u32(&pack, 0);
    vmf_pack_bytes(&pack, id, 16);
    vmf_pack_bytes(&pack, zeros, sizeof(zeros));
    vmf_pack_u32(&pack, vmf_crc32c(0, pack.bytes->data, pack.bytes->len));
    g_assert(pack.bytes->len == VMF_JOURNAL_ID_FILE_SIZE);
    memcpy(out, pack.bytes->data, VMF_JOURNAL_ID_FILE_SIZE);
    g_byte_array_unref(pack.bytes);
}

bool vmf_journal_id_decode(const uint8_t *data, size_t size, uint8_t id[16], GError **error)
{
    static const uint8_t zeros[16];

    if (size != VMF_JOURNAL_ID_FILE_SIZE || !crc_is_right(data, size))
        return damaged(error, "its content is not what was written");
    VmfUnpack unpack = vmf_unpack_begin(data, size - 4, SWAP);
    const uint8_t *magic = vmf_unpack_bytes(&unpack, 8);
    uint32_t version = vmf_unpack_u32(&unpack);
    vmf_unpack_zero(&unpack, 4);
    unpack_16(&unpack, id);
    vmf_unpack_zero(&unpack, 28);
    if (memcmp(magic, ID_MAGIC, 8) != 0 || version != VMF_JOURNAL_VERSION || !vmf_unpack_done(&unpack) ||
        memcmp(id, zeros, 16) == 0)
        return damaged(error, "written by another version of the engine, or not a state directory's id");
    return true;
}
