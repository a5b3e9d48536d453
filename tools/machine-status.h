/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A machine's state in one flat object: {"type":"status", "name", "status", "running", what the machine counts,
 * "migration"}. */
#ifndef VMFERRY_TOOLS_MACHINE_STATUS_H
#define VMFERRY_TOOLS_MACHINE_STATUS_H

#include "tools/client.h"

/* Owned by the caller; NULL with @error. "migration" is x-vmferry of query-migrate, or null. */
json_t *vmf_machine_status(VmfClient *client, GError **error);

#endif
