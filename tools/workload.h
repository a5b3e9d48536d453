/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the bundled guest is to do: "dirty=100M,set=64M,seed=7". */
#ifndef VMFERRY_TOOLS_WORKLOAD_H
#define VMFERRY_TOOLS_WORKLOAD_H

#include "machine/machine.h"

/* Sets dirty_bytes_per_second, set_bytes and seed of @config; what is not named stays. */
bool vmf_parse_workload(const char *text, VmfMachineConfig *config, GError **error);

#endif
