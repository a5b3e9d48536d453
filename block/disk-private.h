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
    uint64_t n_watched, n_late;   /* since it was asked for */
    void (*ends_kept)(void *opaque); /* NULL: nobody keeps ends */
    void *ends_opaque;
    VmfDiskOp *kept, **kept_tail; /* changes that have ended and were not told of, in that order */
    uint64_t n_kept, n_let_go;    /* ever; the first of kept is number n_let_go */
    VmfDiskOp *to_tell;           /* what was let go */
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
bool vmf_disk_error(const VmfDisk *disk, VmfErrorCode code, const char *operation, const char *why, GError **error);

/* disk-io.c */
/* The disk is about to be released, or freed: its gate lets all pass, and nobody keeps ends. */
void vmf_disk_open_gate(VmfDisk *disk);
bool vmf_disk_io_start(VmfDisk *disk, GError **error);
/* Nothing is under way. */
void vmf_disk_io_end(VmfDisk *disk);

#endif
