/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks whose content is in an image, given back: each arrives as a copied disk does (block/receive.h). */
#ifndef MIGRATION_IMAGE_DISK_LOAD_H
#define MIGRATION_IMAGE_DISK_LOAD_H

#include "block/receive.h"
#include "migration/session.h"
#include "ram/image-reader.h"

typedef struct VmfImageDiskLoad VmfImageDiskLoad;

/* For all that the image holds; nothing is begun. What is given outlives it. */
VmfImageDiskLoad *vmf_image_disk_load_new(VmfImageChain *chain, VmfSession *session);
/* Nothing is under way. NULL is fine. */
void vmf_image_disk_load_free(VmfImageDiskLoad *load);

/*
 * Writes them, compares counts and sums with what the image says (VMF_ERROR_DISK_COUNTS, VMF_ERROR_DISK_SUM), and gives
 * them their names: they are acquired, and whole on stable storage. VMF_ERROR_CANCELLED. Once.
 */
bool vmf_image_disk_load_run(VmfImageDiskLoad *load, GError **error);
/* What becomes of them at the end, whatever was reached. */
void vmf_image_disk_load_end(VmfImageDiskLoad *load, VmfReceiveEnd how);

/* Any thread. */
void vmf_image_disk_load_gather(const VmfImageDiskLoad *load, VmfStatistics *statistics);

#endif
