/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Dirty bitmaps that move with the guest, whether its disks are shared or copied: a section of the stream ("dirty-bitmaps" in
 * docs/stream-format.rst) with handlers of its own.
 *
 *   mover = vmf_bitmap_mover_new();
 *   vmf_bitmap_mover_add_disk(mover, disk);                             each, at both ends
 *   vmf_guest_add_handlers(guest, "dirty-bitmaps", 0, 1, &vmf_bitmap_handlers, mover, &error);
 *   vmf_bitmap_mover_set_map(mover, &map, &error);                      the source, ahead of a session that is to take them along
 *
 * What a bitmap has is sent while the guest runs, and what changed of it after the stop. At the target they are there, and record if they
 * did, once the disk has been acquired (vmf_disk_acquire(), in the VMM's storage_acquire): ahead of the guest's first write. One that is
 * persistent is in its file by then; where it cannot be, acquiring fails and the guest stays at the source. Where there is one of that
 * name, it is merged into the one that arrives. A bitmap that a backup uses has what the backup would have merged again.
 */
#ifndef VMFERRY_BITMAP_MOVER_H
#define VMFERRY_BITMAP_MOVER_H

#include <vmferry/bitmap.h>
#include <vmferry/handlers.h>

G_BEGIN_DECLS

typedef struct VmfBitmapMover VmfBitmapMover;

typedef enum {
    VMF_BITMAP_PERSISTENCE_KEEP,
    VMF_BITMAP_PERSISTENCE_ON,
    VMF_BITMAP_PERSISTENCE_OFF,
} VmfBitmapPersistence;

/* Aliases are what the stream calls them, 1 to 255 bytes; NULL: as here. */
typedef struct {
    const char *name;
    const char *alias;
    VmfBitmapPersistence persistence; /* what becomes of it at the target; either end may say so, the target last */
} VmfBitmapAlias;

typedef struct {
    const char *disk;
    const char *alias;
    const VmfBitmapAlias *bitmaps; /* these alone; NULL: all, under their own names */
    unsigned n_bitmaps;
} VmfBitmapNode;

typedef struct {
    size_t size;                /* sizeof(VmfBitmapMap) */
    const VmfBitmapNode *nodes; /* these alone; NULL: all, under their own names */
    unsigned n_nodes;
    bool skip_unknown; /* target: what has no place here is left out, and none may come; otherwise both fail the migration */
} VmfBitmapMap;

VmfBitmapMover *vmf_bitmap_mover_new(void);
/* NULL is allowed. */
void vmf_bitmap_mover_free(VmfBitmapMover *mover);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfBitmapMover, vmf_bitmap_mover_free)
/* @disk outlives the mover. */
void vmf_bitmap_mover_add_disk(VmfBitmapMover *mover, VmfDisk *disk);
/*
 * At the source bitmaps travel while there is a map; what it does not name stays. At the target it says what aliases mean here; without
 * one they are names. Copied; NULL: no map. No session is running. VMF_ERROR_USAGE: it is not one to one.
 */
bool vmf_bitmap_mover_set_map(VmfBitmapMover *mover, const VmfBitmapMap *map, GError **error);

/* For vmf_guest_add_handlers(), with the mover. */
extern const VmfSaveHandlers vmf_bitmap_handlers;

G_END_DECLS
#endif
