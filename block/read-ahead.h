/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading disks ahead of whoever uses what was read: several requests under way, taken in the order in which they were
 * begun, in a bounded number of buffers. One thread at a time.
 */
#ifndef BLOCK_READ_AHEAD_H
#define BLOCK_READ_AHEAD_H

#include <vmferry/block.h>

#define VMF_READ_AHEAD_BYTES (1u << 20) /* of a buffer: what storage likes to be asked for */

typedef struct VmfReadAhead VmfReadAhead;

typedef struct {
    VmfDisk *disk;
    unsigned tag; /* the caller's */
    uint64_t offset, length;
    uint8_t *data;       /* aligned to a page */
    const GError *error; /* NULL: it was read */
} VmfReadPiece;

VmfReadAhead *vmf_read_ahead_new(unsigned n_buffers, GError **error);
/* Waits for what is under way. */
void vmf_read_ahead_free(VmfReadAhead *ahead);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfReadAhead, vmf_read_ahead_free)

/* There is a buffer for another one. */
bool vmf_read_ahead_has_room(const VmfReadAhead *ahead);
/* There is room. @length: up to VMF_READ_AHEAD_BYTES. */
void vmf_read_ahead_begin(VmfReadAhead *ahead, VmfDisk *disk, unsigned tag, uint64_t offset, uint64_t length);
/* Waits for the one that was begun first; NULL: there is none. The same until it is given back. */
const VmfReadPiece *vmf_read_ahead_next(VmfReadAhead *ahead);
void vmf_read_ahead_give_back(VmfReadAhead *ahead);
unsigned vmf_read_ahead_under_way(const VmfReadAhead *ahead);
/* Bytes that were begun and not given back. */
uint64_t vmf_read_ahead_pending(const VmfReadAhead *ahead);

#endif
