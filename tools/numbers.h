/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes, bandwidths and times as people write and read them. Parsing is exact: no floating point, overflow is an error.
 */
#ifndef VMFERRY_TOOLS_NUMBERS_H
#define VMFERRY_TOOLS_NUMBERS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* "4096", "256M", "1.5G" (powers of 1024: K M G T), "100MB" (powers of 1000: KB MB GB TB). A "/s" at the end is
 * allowed. */
bool vmf_parse_size(const char *text, uint64_t *bytes, GError **error);
/* "20ms", "2s", "0.5s", "300us"; "0". A number without a unit is refused, because QEMU's tools would read it as
 * something else. */
bool vmf_parse_duration(const char *text, uint64_t *ns, GError **error);
/* A decimal number within bounds. */
bool vmf_parse_number(const char *text, uint64_t minimum, uint64_t maximum, uint64_t *value, GError **error);

/* For people: "312.4 MB", "3.1 ms". The result is owned by the caller. */
char *vmf_format_bytes(uint64_t bytes);
char *vmf_format_ns(uint64_t ns);

#endif
