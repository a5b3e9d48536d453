/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The alias map of bitmaps that move, as JSON: QEMU's block-bitmap-mapping. */
#ifndef VMFERRY_MACHINE_BITMAP_MAP_H
#define VMFERRY_MACHINE_BITMAP_MAP_H

#include <jansson.h>

#include "machine/machine.h"

/*
 * Gives @machine the map that @json says (vmf_machine_set_bitmap_map()): a list of {"node-name": DISK, "alias": …,
 * "bitmaps": [{"name": …, "alias": …, "transform": {"persistent": BOOL}}]}, of which only node-name and name have to be
 * there; true: all under their own names; NULL, or false: no map. VMF_ERROR_USAGE.
 */
bool vmf_bitmap_map_apply(VmfMachine *machine, const json_t *json, bool skip_unknown, GError **error);
/* The same of text: "all", "none", or such a list. */
bool vmf_bitmap_map_apply_text(VmfMachine *machine, const char *text, bool skip_unknown, GError **error);
/* "all", "none" or a list, as JSON, the caller's; NULL with @error. */
json_t *vmf_bitmap_map_parse(const char *text, GError **error);

#endif
