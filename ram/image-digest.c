/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/image-format.h"

#include <xxhash.h>

#ifdef VMF_FUZZ_ANY_CRC
#define ANY true
#else
#define ANY false
#endif

VmfImageDigest vmf_image_digest(const void *data, size_t length)
{
    XXH128_canonical_t canonical;
    VmfImageDigest digest;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, length));
    G_STATIC_ASSERT(sizeof(canonical) == sizeof(digest));
    memcpy(&digest, &canonical, sizeof(digest));
    return digest;
}

bool vmf_image_digest_equal(const VmfImageDigest *a, const VmfImageDigest *b)
{
    return ANY || memcmp(a, b, sizeof(*a)) == 0;
}

bool vmf_image_entry_equal(uint64_t computed, uint64_t given)
{
    return ANY || computed == given;
}
