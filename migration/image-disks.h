/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of a guest as an image knows them: what is written of them, and whether they are still the same. */
#ifndef MIGRATION_IMAGE_DISKS_H
#define MIGRATION_IMAGE_DISKS_H

#include "migration/guest.h"
#include "ram/image-format.h"

/* Asks the embedder what @disk is and in which state. @out is to be cleared by the caller, also on failure. */
bool vmf_image_disk_describe(const VmfGuestDisk *disk, VmfImageDisk *out, GError **error);

/*
 * What of the guest's disks is not as @disks (VmfImageDisk) has it, but for those whose content is in the image, in words: "disk root:
 * mark: here X, in the image Y". A list that ends with NULL, empty if all is well; owned by the caller. NULL with @error: a disk could not
 * be asked.
 */
char **vmf_image_disks_compare(VmfGuest *guest, const GArray *disks, GError **error);

#endif
