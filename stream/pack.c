/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/pack.h"

bool vmf_is_text(const char *octets, size_t length)
{
    bool good = g_utf8_validate_len(octets, length, NULL);

    for (size_t i = 0; i < length; i++)
        good &= (uint8_t)octets[i] >= 0x20 && octets[i] != 0x7f;
    for (size_t i = 1; good && i < length; i++) /* U+0080 to U+009F are control characters too */
        good = (uint8_t)octets[i - 1] != 0xc2 || (uint8_t)octets[i] >= 0xa0;
    return good;
}

char *vmf_unpack_string(VmfUnpack *unpack, size_t length)
{
    const char *at = (const char *)vmf_unpack_bytes(unpack, length);

    if (!at)
        return NULL;
    if (!vmf_is_text(at, length)) {
        unpack->failed = true;
        return NULL;
    }
    return g_strndup(at, length);
}
