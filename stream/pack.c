/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/pack.h"

char *vmf_unpack_string(VmfUnpack *unpack, size_t length)
{
    const char *at = (const char *)vmf_unpack_bytes(unpack, length);

    if (!at)
        return NULL;
    bool good = g_utf8_validate_len(at, length, NULL);
    for (size_t i = 0; i < length; i++)
        good &= (uint8_t)at[i] >= 0x20 && at[i] != 0x7f;
    if (!good) {
        unpack->failed = true;
        return NULL;
    }
    return g_strndup(at, length);
}
