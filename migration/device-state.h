/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Limits of device state, and the check of a description. The encoding is described in device-state.c. */
#ifndef VMFERRY_MIGRATION_DEVICE_STATE_H
#define VMFERRY_MIGRATION_DEVICE_STATE_H

#include <vmferry/device-state.h>

#define VMF_DEVICE_NAME_MAX 63           /* bytes: devices and subsections */
#define VMF_SUBSECTIONS_MAX 64           /* in one device's state */
#define VMF_DEVICE_STATE_MAX (16u << 20) /* bytes of one device's encoding; a loader need not keep more */

/*
 * Copies the embedder's description into one of our own size and checks it: names, versions, kinds, lengths.
 * VMF_ERROR_USAGE names what is wrong. The name, the fields and the subsections still belong to the embedder.
 */
bool vmf_device_state_copy(VmfDeviceState *own, const VmfDeviceState *theirs, GError **error);

/* Whether @text may stand in a stream and in a message: 1 to @most bytes of printable ASCII. */
bool vmf_is_printable(const char *text, size_t length, size_t most);

#endif
