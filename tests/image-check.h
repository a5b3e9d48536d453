/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An image as it stands on disk, read from end to end without the engine's reader, for tests of what writes one. */
#ifndef TESTS_IMAGE_CHECK_H
#define TESTS_IMAGE_CHECK_H

#include <vmferry/vmferry.h>

#include "ram/image-format.h"
#include "stream/message.h"
#include "stream/static-data.h"

typedef struct {
    VmfImageCommit commit;
    VmfStaticData *static_data;
    VmfImageLayout layout;
    GArray *disks; /* VmfImageDisk */
    bool ram_only;
    unsigned n_sections; /* complete ones */
    VmfSwitchover summary;
    uint64_t n_data; /* pages, of all blocks */
} VmfSeenImage;

/*
 * Reads the image at @path, which is no layer, and asserts every sum and digest, and that it says the same everywhere.
 * @guest: stopped; its memory is what the image has to hold. NULL: whatever it is.
 */
VmfSeenImage *vmf_see_image(const char *path, VmfGuest *guest);
void vmf_seen_image_free(VmfSeenImage *seen);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfSeenImage, vmf_seen_image_free)

#endif
