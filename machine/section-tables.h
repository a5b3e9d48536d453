/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The declared tables of the reference VMM's devices, for tools that look at device state at rest. */
#ifndef VMFERRY_MACHINE_SECTION_TABLES_H
#define VMFERRY_MACHINE_SECTION_TABLES_H

#include <vmferry/device-state.h>

/* Of section @name of a guest of @architecture; NULL: not one of ours, or not of this build. */
const VmfDeviceState *vmf_machine_section_table(const char *architecture, const char *name);

#endif
