/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Built without libnbd. */
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

bool vmf_read_export_bitmap(const char *uri, VmfConnectFlags flags, const char *name,
                            bool (*extent)(void *opaque, uint64_t offset, uint64_t length), void *opaque,
                            uint64_t *size_bytes, GError **error)
{
    *size_bytes = 0;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: read bitmap: built without libnbd", uri);
    return false;
}
