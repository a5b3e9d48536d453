/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* CRC32C (Castagnoli), as iSCSI and ext4 use it. */
#ifndef VMF_STREAM_CRC32C_H
#define VMF_STREAM_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Continues @crc (0 to begin) over @length bytes: crc32c(crc32c(0, a), b) is the CRC of a followed by b. */
uint32_t vmf_crc32c(uint32_t crc, const void *data, size_t length);

/*
 * Whether a CRC that came with data is right: every check of one is made here. The fuzz targets are linked with a copy of this file that
 * was compiled with VMF_FUZZ_ANY_CRC and says yes to any, for no fuzzer guesses one (tests/fuzz/meson.build). Nothing else ever is.
 */
bool vmf_crc32c_matches(uint32_t computed, uint32_t given);

/* The table-driven version alone; tests compare the two. */
uint32_t vmf_crc32c_portable(uint32_t crc, const void *data, size_t length);

#endif
