/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Record bodies, field by field, in the stream's byte order.
 *
 * VmfUnpack never reads beyond its end: a read past it returns zero and sets `failed`, so that a parser reads all its fields and asks
 * once, with vmf_unpack_done(), whether they were there and nothing is left.
 */
#ifndef VMF_STREAM_PACK_H
#define VMF_STREAM_PACK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    GByteArray *bytes;
    bool swap; /* the stream's order is not this host's */
} VmfPack;

static inline void vmf_pack_bytes(VmfPack *pack, const void *data, size_t length)
{
    if (length > 0)
        g_byte_array_append(pack->bytes, data, (guint)length);
}

static inline void vmf_pack_u8(VmfPack *pack, uint8_t value)
{
    vmf_pack_bytes(pack, &value, sizeof(value));
}

static inline void vmf_pack_u16(VmfPack *pack, uint16_t value)
{
    value = pack->swap ? __builtin_bswap16(value) : value;
    vmf_pack_bytes(pack, &value, sizeof(value));
}

static inline void vmf_pack_u32(VmfPack *pack, uint32_t value)
{
    value = pack->swap ? __builtin_bswap32(value) : value;
    vmf_pack_bytes(pack, &value, sizeof(value));
}

static inline void vmf_pack_u64(VmfPack *pack, uint64_t value)
{
    value = pack->swap ? __builtin_bswap64(value) : value;
    vmf_pack_bytes(pack, &value, sizeof(value));
}

typedef struct {
    const uint8_t *at;
    size_t left;
    bool swap;
    bool failed;
} VmfUnpack;

static inline VmfUnpack vmf_unpack_begin(const void *data, size_t length, bool swap)
{
    return (VmfUnpack){.at = data, .left = length, .swap = swap};
}

/* The next @length bytes where they lie, or NULL. */
static inline const uint8_t *vmf_unpack_bytes(VmfUnpack *unpack, size_t length)
{
    if (unpack->failed || unpack->left < length) {
        unpack->failed = true;
        return NULL;
    }
    const uint8_t *at = unpack->at;
    unpack->at += length;
    unpack->left -= length;
    return at;
}

static inline uint8_t vmf_unpack_u8(VmfUnpack *unpack)
{
    const uint8_t *at = vmf_unpack_bytes(unpack, 1);
    return at ? *at : 0;
}

#define VMF_UNPACK_INTEGER(bits)                                                                                                \
    static inline uint##bits##_t vmf_unpack_u##bits(VmfUnpack *unpack)                                                          \
    {                                                                                                                           \
        uint##bits##_t value = 0;                                                                                               \
        const uint8_t *at = vmf_unpack_bytes(unpack, sizeof(value));                                                            \
        if (at)                                                                                                                 \
            memcpy(&value, at, sizeof(value));                                                                                  \
        return unpack->swap ? __builtin_bswap##bits(value) : value;                                                             \
    }
VMF_UNPACK_INTEGER(16)
VMF_UNPACK_INTEGER(32)
VMF_UNPACK_INTEGER(64)
#undef VMF_UNPACK_INTEGER

/* A reserved field: anything but zero fails. */
static inline void vmf_unpack_zero(VmfUnpack *unpack, size_t length)
{
    const uint8_t *at = vmf_unpack_bytes(unpack, length);
    for (size_t i = 0; at && i < length; i++)
        unpack->failed |= at[i] != 0;
}

/* All that was asked for was there, and nothing is left over. */
static inline bool vmf_unpack_done(const VmfUnpack *unpack)
{
    return !unpack->failed && unpack->left == 0;
}

/* What a string on the wire may be: UTF-8 without control characters. Who sends one checks it too, so that it is refused where it was
 * given. */
bool vmf_is_text(const char *octets, size_t length);

/* A string of @length bytes, newly allocated; NULL (and failed) where it is no text. */
char *vmf_unpack_string(VmfUnpack *unpack, size_t length);

#endif
