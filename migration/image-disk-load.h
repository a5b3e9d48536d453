/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks whose content is in an image, given back: each arrives as a copied disk does (block/receive.h), before the guest
 * runs, or behind its back.
 */
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

/* Any thread, without a lock of the load. They neither wait for the guest nor end the load. */
typedef struct {
    /*
     * A part of a disk cannot be had, or not be written; or the disk cannot be made durable. The guest has to be kept
     * from running on, and from hearing of what it has asked for: that is refused once this has returned. At most once.
     */
    void (*lost)(void *opaque, const GError *error);
    /* All that vmf_image_disk_load_fill() was to do is done, unless lost() was called. Once, if ever. */
    void (*filled)(void *opaque);
} VmfImageDiskLoadOps;

/*
 * In place of the above, in steps. When it returns the disks can be used: what is not there is brought when it is asked
 * for. But a device or an export has no second name that says that it is not whole: it is written here and now.
 */
bool vmf_image_disk_load_begin(VmfImageDiskLoad *load, const VmfImageDiskLoadOps *ops, void *opaque, GError **error);
/* Begins to bring the rest. Once. */
bool vmf_image_disk_load_fill(VmfImageDiskLoad *load, GError **error);
/* After filled(): they are whole on stable storage, and have their names. lost() if not. */
bool vmf_image_disk_load_commit(VmfImageDiskLoad *load, GError **error);
/* Nothing is brought any more, at whatever step it was: what is missing is refused from now on, with @why. The guest stands. */
void vmf_image_disk_load_stop(VmfImageDiskLoad *load, const GError *why);

/* What becomes of them at the end, whatever was reached. NULL is fine. */
void vmf_image_disk_load_end(VmfImageDiskLoad *load, VmfReceiveEnd how);

/* Any thread. */
void vmf_image_disk_load_gather(VmfImageDiskLoad *load, VmfStatistics *statistics);

#endif
