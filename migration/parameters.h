/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a session keeps of its caller's parameters. */
#ifndef VMFERRY_MIGRATION_PARAMETERS_H
#define VMFERRY_MIGRATION_PARAMETERS_H

#include <vmferry/session.h>

#define VMF_HOST_NAME_MAX 255                                           /* bytes */
#define VMF_DOWNTIME_LIMIT_MAX_NS (UINT64_C(2000) * 1000 * 1000 * 1000) /* as in QEMU */
#define VMF_SWITCHOVER_TIMEOUT_MAX_NS (UINT64_C(3600) * 1000 * 1000 * 1000)
#define VMF_MINIMUM_ROUNDS_MAX 1000000

/*
 * Checks @theirs and copies it into @own: members that the caller's struct does not have take their defaults, a NULL
 * policy becomes the default one, the host name is never NULL. What it points at still belongs to the caller.
 */
bool vmf_parameters_copy(VmfParameters *own, const VmfParameters *theirs, GError **error);

#endif
