/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bitmaps that move: bitmap-mover.c has the map and the source, bitmap-arrival.c the target. */
#ifndef MIGRATION_BITMAP_MOVER_H
#define MIGRATION_BITMAP_MOVER_H

#include <stdatomic.h>
#include <vmferry/bitmap-mover.h>

#include "block/bitmap-set.h"

/* Messages of the section: u32 type, u32 length of the body, body. docs/stream-format.rst. */
enum { VMF_MOVE_BITMAP = 1, VMF_MOVE_BITS = 2, VMF_MOVE_STATE = 3, VMF_MOVE_END = 4 };
enum { VMF_MOVE_RECORDS = 1, VMF_MOVE_PERSISTENT = 2, VMF_MOVE_INCONSISTENT = 4, VMF_MOVE_GONE = 8 };

#define VMF_MOVE_HEAD_BYTES 8u
#define VMF_MOVE_BODY_MAX 1024u
#define VMF_MOVE_BITS_BYTES (16u + VMF_BITMAP_PIECE_WORDS * 8)

typedef struct {
    char *name, *alias;
    VmfBitmapPersistence persistence;
} VmfMoverAlias;

typedef struct {
    char *disk, *alias;
    GArray *bitmaps; /* VmfMoverAlias; NULL: all */
} VmfMoverNode;

/* One on its way out. */
typedef struct {
    VmfBitmaps *set;
    char *name;
    VmfBitmapPersistence persistence;
    uint32_t granularity_bytes;
    uint64_t n_pieces;
    uint64_t *sent; /* what the target has of it */
    uint32_t flags; /* as sent */
} VmfMoverItem;

/* One on its way in. */
typedef struct {
    VmfBitmaps *set;   /* NULL: it is left out */
    VmfBitmap *bitmap; /* owned; NULL likewise, or it is gone */
    uint64_t n_pieces;
    VmfBitmapPersistence persistence;
    bool complete; /* its STATE has come */
} VmfMoverArrival;

struct VmfBitmapMover {
    GPtrArray *disks; /* VmfDisk; not owned */
    bool has_map, skip_unknown;
    GArray *nodes; /* VmfMoverNode; NULL: all */
    GArray *items; /* source: VmfMoverItem */
    _Atomic uint64_t pending_bytes;
    GArray *arrivals; /* target: VmfMoverArrival */
    GByteArray *part; /* target: of a message */
    bool ended;       /* target: END has come */
};

/* NULL: none is called so. */
VmfDisk *vmf_bitmap_mover_disk(const VmfBitmapMover *mover, const char *name);

/* bitmap-arrival.c */
bool vmf_bitmap_arrival_setup(void *opaque, GError **error);
bool vmf_bitmap_arrival_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last,
                             GError **error);
void vmf_bitmap_arrival_cleanup(void *opaque);

#endif
