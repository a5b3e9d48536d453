/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Named dirty bitmaps of a disk: which parts were written since some moment. A bit stands for a granule, and is set before a write, zero
 * or discard is given to the storage and again before its end is told: so a bitmap that records has the bit of every block that was
 * changed, and perhaps a few more. A backup (vmferry/backup.h) copies what one has, and lets it begin anew.
 *
 * A persistent bitmap outlives the process, however that ends: it lies in a file beside the disk (VmfDiskOptions.bitmaps,
 * docs/bitmap-format.rst) that says, durably and ahead of each write, which regions of the disk may be changed next; after a crash those
 * regions are dirty as a whole. It is there while the disk is acquired: it is read from the file then, and stored when the disk is
 * released, so that who acquires the disk next goes on with it. A bitmap that is not persistent is lost with the VmfDisk.
 *
 * What cannot be trusted is inconsistent: its file was damaged, or the disk was written by somebody who did not record it. Then it is
 * refused as a source of anything, and can be removed, or cleared to begin anew.
 *
 * Any thread. Calls about persistent bitmaps write and sync the file; done() of a request (vmferry/block.h) must not make them.
 * Errors: VMF_ERROR_USAGE: there is no bitmap of this name, or there is one already, or it cannot be so; VMF_ERROR_STATE: the disk is
 * released, or the bitmap is in use by a backup; VMF_ERROR_BITMAP: it is inconsistent; VMF_ERROR_BITMAP_FILE: the file is damaged as a
 * whole, or was given up; VMF_ERROR_IO, VMF_ERROR_NO_SPACE of the file.
 */
#ifndef VMFERRY_BITMAP_H
#define VMFERRY_BITMAP_H

#include <vmferry/block.h>

G_BEGIN_DECLS

#define VMF_BITMAP_NAME_MAX 255u /* bytes of UTF-8 */
#define VMF_BITMAP_GRANULARITY_MIN 512u
#define VMF_BITMAP_GRANULARITY_MAX (64u << 20)
#define VMF_BITMAP_GRANULARITY_DEFAULT 65536u
#define VMF_BITMAP_GRANULES_MAX (1ull << 32) /* of one bitmap: half a GiB of memory, and of its file */
#define VMF_DISK_BITMAPS_MAX 64u

typedef struct {
    size_t size;                /* sizeof(VmfBitmapOptions) */
    const char *name;           /* 1 to VMF_BITMAP_NAME_MAX bytes of UTF-8 */
    uint32_t granularity_bytes; /* a power of two; 0: 64 KiB */
    bool persistent;
    bool disabled; /* it does not record yet */
} VmfBitmapOptions;

/* A new bitmap, clean. */
bool vmf_disk_add_bitmap(VmfDisk *disk, const VmfBitmapOptions *options, GError **error);
bool vmf_disk_remove_bitmap(VmfDisk *disk, const char *name, GError **error);
/* All of it is clean; one that was inconsistent is sound again. */
bool vmf_disk_clear_bitmap(VmfDisk *disk, const char *name, GError **error);
/* Records from now on, what is under way included; or no longer. Fine where it is so already. */
bool vmf_disk_enable_bitmap(VmfDisk *disk, const char *name, bool enable, GError **error);
/* What any of the @n @sources has dirty is dirty in @target too; granularities may differ. */
bool vmf_disk_merge_bitmaps(VmfDisk *disk, const char *target, const char *const *sources, unsigned n, GError **error);
typedef struct {
    uint64_t offset, length; /* bytes */
} VmfBitmapExtent;

/* All of them are dirty, whoever says so; of a persistent bitmap durably when it returns. None of them is if one reaches past the disk. */
bool vmf_disk_set_bitmap(VmfDisk *disk, const char *name, const VmfBitmapExtent *extents, size_t n, GError **error);

typedef struct {
    size_t size; /* sizeof(VmfBitmapInfo), set by the caller; of an array, in each */
    char name[VMF_BITMAP_NAME_MAX + 1];
    uint32_t granularity_bytes;
    uint64_t dirty_bytes; /* a multiple of the granularity */
    bool recording;       /* writes are recorded: it is enabled */
    bool persistent;
    bool busy;         /* a backup uses it */
    bool inconsistent; /* problem says why */
    char problem[256]; /* "" */
} VmfBitmapInfo;

/* Of up to @max bitmaps, in the order in which they were made; returns how many there are. */
unsigned vmf_disk_list_bitmaps(VmfDisk *disk, VmfBitmapInfo *infos, unsigned max);
/* The first dirty extent at or after @from, in bytes, within the disk. *length 0: there is none. */
bool vmf_disk_next_dirty(VmfDisk *disk, const char *name, uint64_t from, uint64_t *offset, uint64_t *length, GError **error);
/*
 * What the bitmap @name of an NBD export has ("qemu:dirty-bitmap:NAME", as QEMU's servers tell it): @extent is called for each dirty
 * extent, in bytes, in their order; false ends it with VMF_ERROR_CANCELLED. @size_bytes: of the export. On the caller's thread, who waits
 * up to 10 seconds for each answer. VMF_ERROR_UNSUPPORTED: it has none of this name, or this was built without libnbd; VMF_ERROR_URI,
 * VMF_ERROR_CONNECT, VMF_ERROR_INSECURE, VMF_ERROR_IO, VMF_ERROR_PEER.
 */
bool vmf_read_export_bitmap(const char *uri, VmfConnectFlags flags, const char *name,
                            bool (*extent)(void *opaque, uint64_t offset, uint64_t length), void *opaque, uint64_t *size_bytes,
                            GError **error);

/*
 * Why persistent bitmaps cannot be had here, though there is a file of them: it is damaged as a whole, or could not be written. The
 * caller's, to free; NULL: all is well. A damaged file is left as it is until somebody removes it.
 */
char *vmf_disk_bitmaps_problem(VmfDisk *disk);

/*
 * The file that its persistent bitmaps are in, or would be, free of links; NULL: there is no place for them, or the disk is read-only. The
 * caller's, to free. Two disks must not have one.
 */
char *vmf_disk_bitmaps_file(const VmfDisk *disk);

G_END_DECLS
#endif
