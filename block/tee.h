/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A tee: whoever has to make every change of a disk elsewhere as well. From its begin on each write, zero and discard
 * goes two ways at once, to the storage and to the tee, with the same octets (a private copy), and is told of when it
 * has ended at both.
 *
 * What is under way does not overlap: a change waits until one to the same place has ended at both ends. So the order
 * in which the tee is given them is the order in which they changed the storage, wherever that matters.
 *
 * One tee at a time. Any thread, but for what is said below.
 */
#ifndef BLOCK_TEE_H
#define BLOCK_TEE_H

#include "block/disk.h"

#define VMF_TEE_RANGES_MAX 16u

typedef struct VmfDiskOp VmfDiskOp;

/* A change, as the tee is given it. */
typedef struct {
    VmfDiskOp *op;
    uint64_t offset, length;
    const uint8_t *data; /* NULL: zeros. As long as it was not said to be sent */
} VmfTeeChange;

/*
 * @dirty is tracked (vmf_disk_track): from now on the tee alone marks in it, and only what is not at both ends: changes
 * that were under way already, those that fail at the storage, and what was under way when the tee ends. @wake is
 * called when there is something to take: on the disk's thread, with a lock held. False: there is one, or the disk is
 * released.
 */
bool vmf_disk_tee_begin(VmfDisk *disk, VmfDiskDirty *dirty, void (*wake)(void *opaque), void *opaque);
/*
 * All that the storage has is told of at once, and @dirty is tracked as before. Fine where it has ended already, as it
 * does when the disk is released.
 */
void vmf_disk_tee_end(VmfDisk *disk);

/* The next one to be sent; false: there is none. One thread, as the two that follow. */
bool vmf_disk_tee_take(VmfDisk *disk, VmfTeeChange *change);
/* Ahead of its being sent: it consists of so many pieces, numbered from @first on. */
void vmf_disk_tee_number(VmfDisk *disk, VmfDiskOp *op, uint64_t first, uint64_t n);
/* Exactly once for each that was taken, sent or not, whether the tee has ended or not: it is not touched any more. */
void vmf_disk_tee_sent(VmfDisk *disk, VmfDiskOp *op);
/* The piece of this number is at the other end. False: none of these waits for it. */
bool vmf_disk_tee_arrived(VmfDisk *disk, uint64_t number);

/*
 * Keeps changes away from a place: when it returns, all that was begun there is on the storage and was sent, and none
 * begins until vmf_disk_tee_include(). Up to VMF_TEE_RANGES_MAX places. Where there is no tee, or it ends, it waits only
 * until what was taken there is said to be sent, and keeps nothing away.
 */
void vmf_disk_tee_exclude(VmfDisk *disk, uint64_t offset, uint64_t length);
void vmf_disk_tee_include(VmfDisk *disk, uint64_t offset, uint64_t length);

typedef struct {
    bool on;
    uint64_t n_waiting; /* for the other end alone, or for a place to be free */
    uint64_t n_arrived; /* pieces, ever */
    uint64_t n_ended;   /* changes, ever: at both ends */
} VmfTeeInfo;
void vmf_disk_tee_get_info(VmfDisk *disk, VmfTeeInfo *info);

#endif
