/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks whose content goes into an image (docs/fixed-ram-format.rst): blocks behind those of RAM. Beside rounds, where
 * the disks' own source (disk-source.h) puts granules, there is the one moment, where backups of the disks do.
 */
#ifndef MIGRATION_IMAGE_DISK_SAVE_H
#define MIGRATION_IMAGE_DISK_SAVE_H

#include <vmferry/backup.h>

#include "migration/disk-source.h"
#include "ram/image-writer.h"
#include "stream/message.h"

typedef struct VmfImageDiskSave VmfImageDiskSave;

/* One disk on its way into the image. */
typedef struct {
    VmfImageDiskSave *save;
    VmfDisk *disk;
    unsigned block; /* of the layout */
    VmfPageSink lane;
    struct VmfImageDiskPiece *piece; /* NULL: none; not in the lane yet */
    VmfDigestTable *digests; /* by page: what the image, with its parents, has of it */
    VmfBackup *backup;       /* at a point in time; NULL: not begun */
} VmfImageDiskSaveOne;

struct VmfImageDiskSave {
    VmfDiskSource *source;
    const VmfPageScan *scan;
    VmfImageDiskSaveOne *disks; /* as source->disks */
};

/*
 * For the disks that @source has chosen, the first of which is block @first_block. Their lanes are then opened by the
 * caller. @save is zeros.
 */
bool vmf_image_disk_save_init(VmfImageDiskSave *save, VmfDiskSource *source, unsigned first_block, GError **error);
/* Cancels backups, frees the lanes. All zeros is fine. */
void vmf_image_disk_save_clear(VmfImageDiskSave *save);
/* Pages of data and their sum, once all was put. */
void vmf_image_disk_save_summary(const VmfImageDiskSave *save, unsigned disk, VmfBlockSummary *out);

/* In rounds: for VmfDiskSource.place_ops, the place being the VmfImageDiskSave. */
extern const VmfDiskPlaceOps vmf_image_disk_place_ops;

/*
 * At a point in time: an owner whose last pass is the moment. @save outlives it. vmf_image_disk_save_wait() waits for what
 * the disks were then to be written; vmf_image_disk_save_cancel() ends that, and waits.
 */
VmfOwner vmf_image_disk_instant_owner(VmfImageDiskSave *save);
bool vmf_image_disk_save_wait(VmfImageDiskSave *save, GError **error);
void vmf_image_disk_save_cancel(VmfImageDiskSave *save);
/* For image-disk-instant.c. A range of a disk, whole pages unless it ends with the disk. @data NULL: zeros. */
bool vmf_image_disk_save_put(VmfImageDiskSaveOne *one, uint64_t offset, const uint8_t *data, uint64_t length,
                             GError **error);
bool vmf_image_disk_save_flush(VmfImageDiskSaveOne *one, GError **error);

#endif
