/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/crc32c.h"

#include <string.h>

/* Four bits a step: the table is sixteen constants that can be checked by eye, and only hosts without the instruction use it. */
static const uint32_t nibbles[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t vmf_crc32c_portable(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *p = data;

    crc = ~crc;
    for (size_t i = 0; i < length; i++) {
        crc ^= p[i];
        crc = (crc >> 4) ^ nibbles[crc & 15];
        crc = (crc >> 4) ^ nibbles[crc & 15];
    }
    return ~crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *p = data;
    uint64_t sum = (uint32_t)~crc;

    for (; length >= 8; p += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, p, sizeof(word));
        sum = __builtin_ia32_crc32di(sum, word);
    }
    for (; length > 0; p++, length--)
        sum = __builtin_ia32_crc32qi((uint32_t)sum, *p);
    return ~(uint32_t)sum;
}
#endif

uint32_t vmf_crc32c(uint32_t crc, const void *data, size_t length)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2"))
        return crc32c_sse42(crc, data, length);
#endif
    return vmf_crc32c_portable(crc, data, length);
}

bool vmf_crc32c_matches(uint32_t computed, uint32_t given)
{
#ifdef VMF_FUZZ_ANY_CRC
    return true;
#else
    return computed == given;
#endif
}
