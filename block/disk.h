/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the engine does with a disk beside what an embedder may (vmferry/block.h). */
#ifndef BLOCK_DISK_H
#define BLOCK_DISK_H

#include <stdatomic.h>
#include <vmferry/block.h>

#include "block/dirty.h"
#include "stream/storage.h"

/*
 * From its return on every write, zero and discard is recorded in @dirty (dirty.h says when), until vmf_disk_untrack();
 * what is under way when it is called too, as it ends. Any number of them. @dirty is the caller's and was made for a
 * disk of this size. Any thread.
 */
void vmf_disk_track(VmfDisk *disk, VmfDiskDirty *dirty);
void vmf_disk_untrack(VmfDisk *disk, VmfDiskDirty *dirty);

/*
 * From now on it is counted how many writes, zeros and discards take longer than @goal_ns from their submission to the end at the storage.
 * 0: not any more. Any thread.
 *
 * @copied_ns: when a copy was last at the storage; INT64_MAX while it is. What it cannot have delayed is not counted as late. It stays
 * until the watch ends; NULL: every late one counts.
 */
void vmf_disk_watch_latency(VmfDisk *disk, uint64_t goal_ns, const _Atomic int64_t *copied_ns);
/* How many have ended since the last call, and how many of those were late. Any thread. */
void vmf_disk_take_latency(VmfDisk *disk, uint64_t *n, uint64_t *n_late);

/*
 * What of [offset, offset + length) of an acquired disk is there: the first extent (stream/storage.h); what is missing
 * (below) may be data. Any thread but the disk's, as long as it stays acquired. A write that is under way, or comes
 * meanwhile, may be missed.
 */
bool vmf_disk_extent(VmfDisk *disk, uint64_t offset, uint64_t length, VmfExtentKind *kind, uint64_t *extent_length,
                     GError **error);

/* Of an acquired disk: what this host remembers of it, and has written, is read from the storage the next time. */
void vmf_disk_forget_cache(VmfDisk *disk);

/*
 * A gate: whoever has to see what is there before it is changed, or has to bring what is there before it is read. Every
 * write, zero and discard, and where it says so every read, asks it on its way to the storage, and waits while it is
 * held; flushes pass. The disk's lock is held: these may neither wait nor call the disk. There is one gate at a time.
 * What may be NULL is of no interest to it then.
 */
typedef struct {
    bool reads; /* ask too */
    /* *@refused, which is NULL, set: it ends with this error, at once (false then). */
    bool (*holds)(void *opaque, const VmfDiskRequest *request, GError **refused);
    /* No change is under way in the storage; called whenever that is found, ahead of asking. May be NULL. */
    void (*quiet)(void *opaque);
    /* A change that has passed has ended; what is held is asked for again. May be NULL. */
    void (*ended)(void *opaque, const VmfDiskRequest *request, bool failed);
    /* A request that was held goes on, or is refused, after so long. May be NULL. */
    void (*waited)(void *opaque, uint64_t ns);
    /*
     * Whether the first part of a range is not on the storage, whatever that has there; @run: how much of the range is so, or
     * is not. May be NULL: all is there.
     */
    bool (*is_missing)(void *opaque, uint64_t offset, uint64_t length, uint64_t *run);
    /* The disk is being released: from now on nothing may be held. The gate stays until it is taken away. */
    void (*released)(void *opaque);
} VmfDiskGate;

/* False: there is one, or the disk is released. Any thread. */
bool vmf_disk_set_gate(VmfDisk *disk, const VmfDiskGate *gate, void *opaque);
/* From its return on it is not called any more. */
void vmf_disk_clear_gate(VmfDisk *disk);
/* What is held is asked for again. */
void vmf_disk_gate_moved(VmfDisk *disk);
/*
 * As vmf_disk_submit(), for whoever brings what is missing: no gate is asked, nothing is marked as dirty, and it counts for
 * nobody's request. It is drained, and refused by a disk that is released, like any other.
 */
void vmf_disk_submit_beneath(VmfDisk *disk, VmfDiskRequest *request);

/*
 * A disk that is used while a part of it is still elsewhere is not whole. It cannot be released then, but for being freed or given up
 * (block/receive.h), and whoever is about to pass it on waits until it is. Any thread.
 */
void vmf_disk_set_whole(VmfDisk *disk, bool whole);
/* It will never be. @why is copied; the first one counts. */
void vmf_disk_set_lost(VmfDisk *disk, const GError *why);
/* False: it will never be whole. Otherwise *@whole. */
bool vmf_disk_is_whole(VmfDisk *disk, bool *whole, GError **error);

/*
 * A stage between the disk and its storage, for tests: @wrap is given each storage that vmf_disk_acquire() opens, takes
 * it over, and returns what is used in its place, or NULL with @error.
 */
void vmf_disk_set_wrap(VmfDisk *disk, VmfStorage *(*wrap)(VmfStorage *storage, void *opaque, GError **error),
                       void *opaque);

#endif
