/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A disk's parts: disk.c opens it and changes whose it is, disk-io.c is the way of requests, disk-identity.c says what
 * it is to images, receive.c makes it what a copy arrives in. */
#ifndef BLOCK_DISK_PRIVATE_H
#define BLOCK_DISK_PRIVATE_H

#include <pthread.h>

#include <vmferry/error.h>

#include "block/bitmap-set.h"
#include "block/disk.h"
#include "stream/storage-uri.h"

/* How many requests the storage is given at once. */
#define VMF_DISK_DEPTH 64u

typedef struct VmfDiskOp VmfDiskOp;
typedef struct VmfDiskTee VmfDiskTee;

struct VmfDiskOp {
    VmfStorageRequest storage; /* first: the storage gives it back */
    VmfDiskOp *next;
    VmfDisk *disk;
    VmfDiskRequest *request;
    int refs;   /* atomic */
    void *copy; /* NULL: memory of the request's own is used */
    GError *refused;
    int64_t submitted_ns; /* 0: its latency is not watched */
    int64_t held_ns;      /* since when; 0: not held */
    const void *passed;   /* the opaque of the gate that let it go; NULL: none was asked */
    bool marked;
    bool beneath; /* no gate is asked, nobody counts it */
    /* tee.c; under the lock */
    bool teed; /* in flight: those that wait for the other end, or will */
    bool landed, arrived, sent;
    GError *failure; /* of the storage, for when it is told of */
    uint64_t first_number, n_pieces, n_left;
    VmfDiskOp *flight_next, **flight_before, *queue_next;
    VmfDiskOp *taken_next;
    uint64_t taken_offset, taken_length; /* the request may be gone by then */

    struct iovec whole; /* of the copy */
    unsigned n_iov;
    struct iovec iov[]; /* of the request; the storage's while it is there, unless there is a copy */
};

struct VmfDisk {
    char *name;
    char *uri;
    char *path;           /* of a file or device; NULL: an export */
    char *backend_wanted; /* NULL: the best one */
    char *bitmaps_path;   /* NULL: beside the file */
    VmfConnectFlags connect;
    uint64_t size_bytes;
    uint64_t create_bytes; /* until it is there */
    uint32_t sector_bytes;
    bool read_only, buffered, no_lock;
    bool incoming, overwrite;
    bool windowed; /* the storage may be larger than the disk */
    _Atomic bool given_up; /* nobody waits for its server any more */
    bool exclusive; /* receive.c: as it is opened now, nobody mounts it, where it is a device */
    VmfStorage *(*wrap)(VmfStorage *storage, void *opaque, GError **error);
    void *wrap_opaque;
    VmfBitmaps *bitmaps;

    pthread_mutex_t ownership; /* one acquires or releases at a time */
    /* disk.c: of the thread that acquires or releases; nothing is under way when they change */
    int lock_fd; /* holds the lock; -1: there is none */
    VmfStorage *storage;
    VmfStorageQueue *queue; /* the I/O thread's while requests are under way */
    bool copies_writes;     /* the storage wants what it is given not to change */
    struct VmfReceiving *receiving; /* receive.c: a copy arrives, or has and may have to go again; NULL: none */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* any of what follows */
    bool acquired;
    bool quit;
    const VmfDiskGate *gate; /* NULL: none */
    void *gate_opaque;
    bool gate_moved; /* what it held may go now */
    bool incomplete; /* a part of it is elsewhere */
    GError *lost;    /* and will be for ever; NULL: not that anybody knows */
    uint64_t latency_goal_ns;     /* 0: nobody watches */
    const _Atomic int64_t *copied_ns; /* or NULL */
    uint64_t n_watched, n_late;   /* since it was asked for */
    VmfDiskTee *tee;    /* NULL: none */
    VmfDiskOp *taken;   /* by who sends for a tee, and not said to be sent; they outlive the tee */
    unsigned n_excluders; /* that wait for a place */
    VmfDiskOp *to_tell; /* changes that ended before, and that are to be told of now */
    bool waiting; /* the I/O thread sleeps in the storage's queue, and was not woken */
    VmfDiskOp *head, **tail; /* submitted, not taken by the I/O thread */
    uint64_t under_way;      /* submitted, and the I/O thread is not finished with it */
    GPtrArray *dirty;        /* VmfDiskDirty; not owned */
    VmfDiskInfo counters;    /* only what is counted */

    pthread_t thread;
    VmfDiskOp *held, **held_tail; /* the I/O thread's: for the gate */
    unsigned changing;            /* the I/O thread's: changes that have passed the gate, and not ended */
    unsigned in_storage; /* the I/O thread's: given to the queue, and not ended */
    uint64_t n_ended;    /* the I/O thread's: done() has returned, under_way does not say so yet */
};

/* disk.c: the ownership mutex is held */
/* Opens and uses storage that is locked already: at @uri, which stands for @path (NULL: an export). */
bool vmf_disk_open_locked(VmfDisk *disk, const char *uri, const char *path, GError **error);
/* Closes it, and drops the lock. False: it could not be flushed, and all is as it was. */
bool vmf_disk_close_locked(VmfDisk *disk, GError **error);
/* The same, whether it can be flushed or not. */
void vmf_disk_close_anyway(VmfDisk *disk);
/* Where its persistent bitmaps are, in the place that it has or will have; NULL: nowhere. The caller's to free. */
char *vmf_disk_bitmaps_path(const VmfDisk *disk, bool is_file);
bool vmf_disk_error(const VmfDisk *disk, VmfErrorCode code, const char *operation, const char *why, GError **error);

/* disk-io.c */
/* The disk is about to be released, or freed: its gate lets all pass, and its tee ends. */
void vmf_disk_open_gate(VmfDisk *disk);
bool vmf_disk_io_start(VmfDisk *disk, GError **error);
/* Nothing is under way. */
void vmf_disk_io_end(VmfDisk *disk);
/* For tee.c, as the next three: lock held. What is held is asked for again. */
void vmf_disk_move_gate(VmfDisk *disk);
/* It was not told of when it ended. */
void vmf_disk_may_tell(VmfDisk *disk, VmfDiskOp *op);
void vmf_disk_op_ref(VmfDiskOp *op);
void vmf_disk_op_unref(VmfDiskOp *op);

/* tee.c, of changes on the disk's thread. Lock held: whether it is to wait; it goes on; it is marked, having ended. */
bool vmf_tee_holds(const VmfDisk *disk, const VmfDiskOp *op);
void vmf_tee_join(VmfDisk *disk, VmfDiskOp *op);
void vmf_tee_mark(VmfDisk *disk, const VmfDiskOp *op, bool failed);
void vmf_tee_end_locked(VmfDisk *disk);
/* Lock not held: it is begun, its copy made, or refused; it has ended at the storage. True: it is told of later. */
void vmf_tee_put(VmfDisk *disk, VmfDiskOp *op);
bool vmf_tee_lands(VmfDisk *disk, VmfDiskOp *op, const GError *error);

#endif
