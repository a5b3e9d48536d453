/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/header.h"

#include <vmferry/error.h>
#include <vmferry/vmferry.h>

#include <stdio.h>

#include "stream/crc32c.h"

#define HOST_BIG_ENDIAN (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)

uint32_t vmf_engine_version(void)
{
    unsigned major = 0, minor = 0, patch = 0;

    sscanf(vmf_version(), "%u.%u.%u", &major, &minor, &patch);
    return major << 16 | minor << 8 | patch;
}

static uint16_t options_of(const VmfStreamFormat *format)
{
    bool big_endian = HOST_BIG_ENDIAN != format->swap;

    return (big_endian ? VMF_OPTION_BIG_ENDIAN : 0) | (format->one_way ? VMF_OPTION_ONE_WAY : 0);
}

static void set_format(VmfStreamFormat *format, uint32_t version, uint16_t options)
{
    format->version = version;
    format->swap = !!(options & VMF_OPTION_BIG_ENDIAN) != HOST_BIG_ENDIAN;
    format->one_way = options & VMF_OPTION_ONE_WAY;
}

/* Headers are packed with a cursor over a fixed buffer; big-endian ones swap on little-endian hosts. */
static void pack_out(VmfPack *pack, uint8_t *out, size_t size)
{
    vmf_pack_u32(pack, vmf_crc32c(0, pack->bytes->data, pack->bytes->len));
    g_assert(pack->bytes->len == size);
    memcpy(out, pack->bytes->data, size);
    g_byte_array_unref(pack->bytes);
}

static bool crc_is_right(const uint8_t *in, size_t size, bool swap)
{
    VmfUnpack tail = vmf_unpack_begin(in + size - 4, 4, swap);

    return vmf_crc32c_matches(vmf_crc32c(0, in, size - 4), vmf_unpack_u32(&tail));
}

void vmf_image_header_encode(const VmfStreamFormat *format, uint8_t out[VMF_IMAGE_HEADER_SIZE])
{
    VmfPack pack = {g_byte_array_new(), !HOST_BIG_ENDIAN};

    vmf_pack_u64(&pack, VMF_IMAGE_MARKER);
    vmf_pack_u32(&pack, VMF_IMAGE_ID);
    vmf_pack_u32(&pack, format->version);
    vmf_pack_u16(&pack, options_of(format));
    vmf_pack_u16(&pack, 0);
    pack_out(&pack, out, VMF_IMAGE_HEADER_SIZE);
}

static bool check_version(uint32_t version, GError **error)
{
    if (version >= VMF_STREAM_VERSION_MIN && version <= VMF_STREAM_VERSION_MAX)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_VERSION, "image header: version %u: this engine reads %u to %u", version,
                VMF_STREAM_VERSION_MIN, VMF_STREAM_VERSION_MAX);
    return false;
}

static bool check_options(const char *what, uint16_t options, bool reserved_zero, GError **error)
{
    if ((options & ~VMF_OPTIONS_KNOWN) == 0 && reserved_zero)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "%s: options 0x%x or reserved octets: not known", what, options);
    return false;
}

bool vmf_image_header_decode(const uint8_t in[VMF_IMAGE_HEADER_SIZE], VmfStreamFormat *format, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(in, VMF_IMAGE_HEADER_SIZE, !HOST_BIG_ENDIAN);
    uint64_t marker = vmf_unpack_u64(&unpack);
    uint32_t id = vmf_unpack_u32(&unpack);
    uint32_t version = vmf_unpack_u32(&unpack);
    uint16_t options = vmf_unpack_u16(&unpack);
    uint16_t reserved = vmf_unpack_u16(&unpack);

    if (marker != VMF_IMAGE_MARKER || id != VMF_IMAGE_ID) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MAGIC, "image header: not a vmferry stream");
        return false;
    }
    if (!check_version(version, error))
        return false;
    if (!crc_is_right(in, VMF_IMAGE_HEADER_SIZE, !HOST_BIG_ENDIAN)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_CRC, "image header: CRC is wrong");
        return false;
    }
    if (!check_options("image header", options, reserved == 0, error))
        return false;
    set_format(format, version, options);
    return true;
}

void vmf_machine_header_encode(const VmfMachineHeader *header, bool swap, uint8_t out[VMF_MACHINE_HEADER_SIZE])
{
    VmfPack pack = {g_byte_array_new(), swap};
    char architecture[VMF_ARCHITECTURE_SIZE] = {0};

    g_strlcpy(architecture, header->architecture, sizeof(architecture));
    vmf_pack_bytes(&pack, architecture, sizeof(architecture));
    vmf_pack_u32(&pack, header->page_size);
    vmf_pack_u32(&pack, header->engine_version);
    vmf_pack_bytes(&pack, header->uuid, sizeof(header->uuid));
    vmf_pack_u32(&pack, 0);
    pack_out(&pack, out, VMF_MACHINE_HEADER_SIZE);
}

static bool architecture_is_good(const char *name)
{
    size_t length = strnlen(name, VMF_ARCHITECTURE_SIZE);
    bool good = length > 0 && length < VMF_ARCHITECTURE_SIZE;

    for (size_t i = 0; good && i < VMF_ARCHITECTURE_SIZE; i++)
        good = i < length ? g_ascii_isgraph(name[i]) : name[i] == 0;
    return good;
}

bool vmf_machine_header_decode(const uint8_t in[VMF_MACHINE_HEADER_SIZE], bool swap, VmfMachineHeader *header, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(in, VMF_MACHINE_HEADER_SIZE - 4, swap);

    if (!crc_is_right(in, VMF_MACHINE_HEADER_SIZE, swap)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_CRC, "machine header: CRC is wrong");
        return false;
    }
    memcpy(header->architecture, vmf_unpack_bytes(&unpack, VMF_ARCHITECTURE_SIZE), VMF_ARCHITECTURE_SIZE);
    header->page_size = vmf_unpack_u32(&unpack);
    header->engine_version = vmf_unpack_u32(&unpack);
    memcpy(header->uuid, vmf_unpack_bytes(&unpack, sizeof(header->uuid)), sizeof(header->uuid));
    vmf_unpack_zero(&unpack, 4);
    if (!vmf_unpack_done(&unpack) || !architecture_is_good(header->architecture) || header->page_size != 4096) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "machine header: architecture, page size or reserved octets");
        return false;
    }
    return true;
}

void vmf_preamble_encode(const VmfPreamble *preamble, const VmfStreamFormat *format, uint8_t out[VMF_PREAMBLE_SIZE])
{
    VmfPack pack = {g_byte_array_new(), !HOST_BIG_ENDIAN};

    vmf_pack_bytes(&pack, VMF_PREAMBLE_MAGIC, 8);
    vmf_pack_u32(&pack, format->version);
    vmf_pack_u16(&pack, options_of(format));
    vmf_pack_u16(&pack, (uint16_t)preamble->channel);
    vmf_pack_bytes(&pack, preamble->session, sizeof(preamble->session));
    vmf_pack_u32(&pack, preamble->epoch);
    vmf_pack_u64(&pack, 0);
    pack_out(&pack, out, VMF_PREAMBLE_SIZE);
}

VmfOpening vmf_opening_classify(const uint8_t in[8])
{
    static const uint8_t marker[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

    if (memcmp(in, marker, sizeof(marker)) == 0)
        return VMF_OPENING_MAIN;
    if (memcmp(in, VMF_TOKEN_PREAMBLE_MAGIC, 8) == 0)
        return VMF_OPENING_TOKEN;
    return memcmp(in, VMF_PREAMBLE_MAGIC, 8) == 0 ? VMF_OPENING_PAGES : VMF_OPENING_STRANGER;
}

static bool preamble_is_good(const uint8_t in[VMF_PREAMBLE_SIZE], VmfOpening kind, uint32_t version, uint16_t options,
                             bool rest_is_zero, VmfStreamFormat *format, GError **error)
{
    if (vmf_opening_classify(in) != kind) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MAGIC, "preamble: not %s", kind == VMF_OPENING_PAGES ? "a page channel" : "a question");
        return false;
    }
    if (!check_version(version, error))
        return false;
    if (!crc_is_right(in, VMF_PREAMBLE_SIZE, !HOST_BIG_ENDIAN)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_CRC, "preamble: CRC is wrong");
        return false;
    }
    if (!check_options("preamble", options, rest_is_zero, error))
        return false;
    set_format(format, version, options);
    return true;
}

bool vmf_preamble_decode(const uint8_t in[VMF_PREAMBLE_SIZE], VmfPreamble *preamble, VmfStreamFormat *format, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(in, VMF_PREAMBLE_SIZE - 4, !HOST_BIG_ENDIAN);

    vmf_unpack_bytes(&unpack, 8);
    uint32_t version = vmf_unpack_u32(&unpack);
    uint16_t options = vmf_unpack_u16(&unpack);
    preamble->channel = vmf_unpack_u16(&unpack);
    memcpy(preamble->session, vmf_unpack_bytes(&unpack, sizeof(preamble->session)), sizeof(preamble->session));
    preamble->epoch = vmf_unpack_u32(&unpack);
    uint64_t reserved = vmf_unpack_u64(&unpack);

    return preamble_is_good(in, VMF_OPENING_PAGES, version, options, reserved == 0, format, error);
}

void vmf_token_preamble_encode(const VmfTokenPreamble *preamble, const VmfStreamFormat *format, uint8_t out[VMF_PREAMBLE_SIZE])
{
    static const uint8_t reserved[12];
    VmfPack pack = {g_byte_array_new(), !HOST_BIG_ENDIAN};

    vmf_pack_bytes(&pack, VMF_TOKEN_PREAMBLE_MAGIC, 8);
    vmf_pack_u32(&pack, format->version);
    vmf_pack_u16(&pack, options_of(format));
    vmf_pack_u16(&pack, 0);
    vmf_pack_bytes(&pack, preamble->token, sizeof(preamble->token));
    vmf_pack_bytes(&pack, reserved, sizeof(reserved));
    pack_out(&pack, out, VMF_PREAMBLE_SIZE);
}

bool vmf_token_preamble_decode(const uint8_t in[VMF_PREAMBLE_SIZE], VmfTokenPreamble *preamble, VmfStreamFormat *format, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(in, VMF_PREAMBLE_SIZE - 4, !HOST_BIG_ENDIAN);

    vmf_unpack_bytes(&unpack, 8);
    uint32_t version = vmf_unpack_u32(&unpack);
    uint16_t options = vmf_unpack_u16(&unpack);
    uint16_t reserved = vmf_unpack_u16(&unpack);
    memcpy(preamble->token, vmf_unpack_bytes(&unpack, sizeof(preamble->token)), sizeof(preamble->token));
    vmf_unpack_zero(&unpack, 12);
    /* A question wants an answer. */
    bool two_way = !(options & VMF_OPTION_ONE_WAY);
    return preamble_is_good(in, VMF_OPENING_TOKEN, version, options, two_way && reserved == 0 && vmf_unpack_done(&unpack), format, error);
}
