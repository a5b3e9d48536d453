/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk as the place that a copy arrives in.
 *
 * begin ... requests ... commit ... end. Until it is committed the copy is nobody's disk. A file is written as
 * PATH.partial and takes its name when it is committed, so that under PATH there is what was there before or a whole
 * copy; what was there then waits under PATH.partial until the end, should it have to come back. A copy that does not
 * arrive stays behind as PATH.partial; the next one begins it anew. Whoever else makes a new file of that name is kept
 * out meanwhile, and keeps a copy out (stream/partial-file.h). A block device or an export is written in place,
 * and nothing says that it is not whole.
 *
 * Onto a base: the file at PATH is written itself, and is PATH.partial from the first change on until it is committed.
 * One that does not arrive stays behind under that name, and is as good a base as before for who knows what else has
 * changed since: where nothing is at PATH, PATH.partial is the base.
 *
 * A file of bitmaps beside PATH speaks of what was there before. It goes as PATH's file does: it is set aside ahead of the
 * commit, or of the first change of what is written in place (block/bitmap-aside.h), and comes back with that file.
 *
 * One thread at a time.
 */
#ifndef BLOCK_RECEIVE_H
#define BLOCK_RECEIVE_H

#include <vmferry/block.h>

typedef enum { VMF_RECEIVE_ANEW, VMF_RECEIVE_ONTO_BASE } VmfReceiveOnto;

/* What speaks against a copy of @size_bytes; NULL: nothing. Changes nothing and keeps nothing; the caller's to free. */
char *vmf_disk_receive_problem(VmfDisk *disk, uint64_t size_bytes, VmfReceiveOnto onto);

/* What comes for both would be written to one file, device or export, as far as their names tell. */
bool vmf_disk_receive_is_same(const VmfDisk *one, const VmfDisk *other);

/*
 * Checks it again, locks it, and opens it for requests; the disk has this size from now on. VMF_ERROR_DISK_PLACE: it is
 * smaller, or holds what is not to be replaced, or there is no base of this size, or it is a device that is in use
 * (mounted), which it cannot become before the disk is released; VMF_ERROR_LOCKED; VMF_ERROR_STATE: the disk is acquired.
 */
bool vmf_disk_receive_begin(VmfDisk *disk, uint64_t size_bytes, VmfReceiveOnto onto, GError **error);
/*
 * Onto a base: ahead of the first change. @proven: some of it was found to be the disk that comes; otherwise a
 * filesystem there is not to be replaced (VMF_ERROR_DISK_PLACE), unless it is under PATH.partial already.
 */
bool vmf_disk_receive_change(VmfDisk *disk, bool proven, GError **error);
/* It read as zeros when it was begun. */
bool vmf_disk_receive_is_new(const VmfDisk *disk);
/* The place is another's still: the copy is written beside it, and has not been committed. */
bool vmf_disk_receive_is_beside(const VmfDisk *disk);
/* All writes of the copy have ended. From now on it is on stable storage and under its name, and the disk is acquired.
 * Others may use it meanwhile. VMF_ERROR_DISK_PLACE: at PATH is not what was there when it was begun (a file, or
 * nothing), and what is there now stays. */
bool vmf_disk_receive_commit(VmfDisk *disk, GError **error);

typedef enum {
    VMF_RECEIVE_KEPT,    /* committed, and the guest is ours: what it has replaced goes */
    VMF_RECEIVE_DROPPED, /* nobody needs it: it is PATH.partial (again), and PATH what it was; where another has that
                          * name by now, a copy is removed and a base stays PATH */
    VMF_RECEIVE_LEFT,    /* nobody knows: all stays as it is; closed, unless it was committed */
} VmfReceiveEnd;
/* Nothing where nothing was begun. A disk that was dropped is released. */
void vmf_disk_receive_end(VmfDisk *disk, VmfReceiveEnd how);

#endif
