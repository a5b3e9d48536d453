/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Device state as people and programs read it. */
#ifndef VMFERRY_TOOLS_INSPECT_SECTIONS_H
#define VMFERRY_TOOLS_INSPECT_SECTIONS_H

#include <jansson.h>
#include <vmferry/image.h>

/* One object for each section: name, instance, version, length_bytes; and "fields" where its table is known and fits.
 */
json_t *vmf_inspect_sections(const VmfImage *image, unsigned layer);
/* The same as text on stdout. @fields: each field on a line of its own. */
void vmf_inspect_print_sections(const json_t *sections, bool fields);

#endif
