/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bitmaps of one disk, as the disk and a backup use them (vmferry/bitmap.h is for people). bitmap-set.c has them in
 * memory, bitmap-store.c keeps the persistent ones in their file.
 *
 * Locks, outermost first: admin (one changes what bitmaps there are, or cleans the file), file (writes to the file that
 * others wait for), lock (all that is in memory; held for moments, also under the disk's own lock).
 */
#ifndef BLOCK_BITMAP_SET_H
#define BLOCK_BITMAP_SET_H

#include <pthread.h>
#include <stdatomic.h>
#include <vmferry/bitmap.h>

#include "block/bitmap-file.h"

typedef VmfStorage *(*VmfBitmapsWrap)(VmfStorage *storage, void *opaque, GError **error);

typedef struct {
    char *disk;          /* its name, for messages */
    uint64_t size_bytes; /* 0: not known yet */
    pthread_mutex_t admin, file, lock;

    /* lock */
    GPtrArray *bitmaps;  /* VmfBitmap */
    uint32_t *under_way; /* by region: changes that were submitted and have not ended */
    uint64_t *touched;   /* by region: changed since the file was last cleaned */
    uint64_t *intents;   /* by region: the file says, or is about to say, that it may be changed */
    uint64_t unsynced;   /* by piece of the intents: the file says less */
    bool stores;         /* there is a file, and it can be written */
    bool records;        /* stores, and there is a persistent bitmap that records */
    char *problem;
    pthread_t cleaner;
    pthread_cond_t wake; /* quit has been set */
    bool quit;

    atomic_bool waits; /* unsynced is not zero */

    /* file, and admin to change which it is */
    VmfStorage *storage;    /* NULL: there is none */
    int lock_fd;            /* holds the lock of what is at path (bitmap-lock.h); -1: nothing is */
    VmfBitmapHeader header; /* as the file has it; lock as well to change it, either to read it */
    bool broken;            /* it could be neither written nor removed, and has not taken all anew; no storage: nor is known which it is */

    /* admin */
    GPtrArray *staged; /* VmfBitmap, on their way in; NULL: none */
    char *path; /* NULL: the disk is released, or has no place for them */
    bool attached;
    bool early; /* attached, and where their file will be is not known yet */
    VmfBitmapsWrap wrap;
    void *wrap_opaque;
} VmfBitmaps;

VmfBitmaps *vmf_bitmaps_new(const char *disk);
/*
 * Whenever it changes, 0 where it is not known: then nothing is marked. The disk is released and nothing under way.
 * Bitmaps of a disk of another size are forgotten.
 */
void vmf_bitmaps_set_size(VmfBitmaps *set, uint64_t size_bytes);
/* Detached. */
void vmf_bitmaps_free(VmfBitmaps *set);

/* ---- for the disk's I/O ------------------------------------------------------------------------------------------ */

typedef enum { VMF_BITMAPS_BEGINS, VMF_BITMAPS_ENDS } VmfBitmapsMoment;

/* A change of [offset, offset + length), which lies within the disk. Any thread; it never waits for storage. */
void vmf_bitmaps_mark(VmfBitmaps *set, uint64_t offset, uint64_t length, VmfBitmapsMoment moment);
/*
 * Makes durable what was marked: ahead of giving it to the storage, and of telling its end. Nothing to do in the steady
 * state. False: it is neither durable nor could the file be given up; the change must not be made.
 */
bool vmf_bitmaps_commit(VmfBitmaps *set, GError **error);

/* ---- for the disk's owner: nothing is under way ------------------------------------------------------------------ */

/*
 * The disk has been acquired for writing. @path: where its bitmaps are, or will be; NULL: nowhere. @mtime_ns: of the
 * disk's file; 0: it has none. Fine where it is attached already. False: there is a file, and it cannot be opened, or is
 * damaged and cannot be written anew (VMF_ERROR_BITMAP_FILE, VMF_ERROR_NO_SPACE): it would go on saying that all is as it
 * was. VMF_ERROR_LOCKED: another has it.
 */
bool vmf_bitmaps_attach(VmfBitmaps *set, const char *path, int64_t mtime_ns, GError **error);
/*
 * The same of a disk that is used before it has its place: what was there before may have a file of bitmaps there. The
 * persistent ones are in memory only until it has taken the place, @path is where they are from then on; nothing where
 * it is not attached early. Others may use the disk meanwhile.
 */
bool vmf_bitmaps_attach_early(VmfBitmaps *set, GError **error);
void vmf_bitmaps_take_place(VmfBitmaps *set, const char *path);
/* The disk will never have been: what is attached goes, and its file (durably). False: that is there still. */
bool vmf_bitmaps_discard(VmfBitmaps *set);
/* It is about to be released: stores the persistent bitmaps and forgets them. Fine where it is not attached. */
void vmf_bitmaps_detach(VmfBitmaps *set, int64_t mtime_ns);

/* ---- for backups ------------------------------------------------------------------------------------------------- */

/*
 * Sets the bits of @name aside (block/bitmap.h), for vmf_bitmaps_aside() to walk. VMF_ERROR_STATE: a backup has it.
 */
bool vmf_bitmaps_set_aside(VmfBitmaps *set, const char *name, GError **error);
/* As vmf_bitmap_next(), of what is aside. */
bool vmf_bitmaps_next_aside(VmfBitmaps *set, const char *name, uint64_t from, uint64_t *offset, uint64_t *length);
void vmf_bitmaps_end_aside(VmfBitmaps *set, const char *name, bool keep);
/* Whether a backup may begin with it; only to say so early. */
bool vmf_bitmaps_check_source(VmfBitmaps *set, const char *name, GError **error);

/* It records, and nothing of [offset, offset + length), at most 64 KiB, is dirty or set aside. */
bool vmf_bitmaps_is_clean(VmfBitmaps *set, const char *name, uint64_t offset, uint64_t length);

/* What is not dirty in it is as it was when it began: it is sound and records, and no backup uses it. */
bool vmf_bitmaps_check_base(VmfBitmaps *set, const char *name, GError **error);

/* ---- for bitmaps that arrive ------------------------------------------------------------------------------------- */

VmfBitmaps *vmf_disk_bitmap_set(VmfDisk *disk);
/*
 * VmfBitmap that the disk is to have once it is attached; at once where it is. Takes over @bitmaps, whose free function is
 * theirs; they take the place of those that were given and not taken over yet. NULL: there are none. VMF_ERROR_STATE,
 * VMF_ERROR_USAGE: they cannot be had; also as vmf_disk_add_bitmap().
 */
bool vmf_bitmaps_stage(VmfBitmaps *set, GPtrArray *bitmaps, GError **error);
/* Admin held, attached. Takes over what is staged. */
bool vmf_bitmaps_install(VmfBitmaps *set, GError **error);

/* ---- between bitmap-set.c and bitmap-store.c --------------------------------------------------------------------- */

/* Lock held. NULL: there is none of this name. */
VmfBitmap *vmf_bitmaps_find(const VmfBitmaps *set, const char *name);
void vmf_bitmaps_set_records(VmfBitmaps *set);
/* Admin held. Writes the file anew, with what bitmaps there are now; removes it when none is persistent. */
bool vmf_bitmaps_rewrite(VmfBitmaps *set, GError **error);
/* Admin held. What memory has is durable when it returns, and intents of regions that are at rest are dropped. */
bool vmf_bitmaps_clean(VmfBitmaps *set, GError **error);

/* For tests: before the set is attached, or a bitmap added. */
void vmf_bitmaps_set_wrap(VmfBitmaps *set, VmfBitmapsWrap wrap, void *opaque);

#endif
