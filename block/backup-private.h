/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup's parts: backup.c begins and ends it and is the disk's gate, backup-base.c looks whether it goes onto its base, backup-copy.c is
 * its thread.
 */
#ifndef BLOCK_BACKUP_PRIVATE_H
#define BLOCK_BACKUP_PRIVATE_H

#include <vmferry/backup.h>

#include "block/claim.h"
#include "block/disk-private.h"
#include "block/units.h"
#include "stream/clock.h"

#define VMF_BACKUP_RUN_UNITS 16u /* that are read at once */
#define VMF_BACKUP_JOBS 16u
#define VMF_BACKUP_LOOK_NS (VMF_NS_PER_S / 20) /* so often it looks whether it is cancelled, while it begins */

typedef enum { JOB_FREE, JOB_READING, JOB_READ, JOB_WRITING } JobState;

/* A run of units on its way. */
typedef struct {
    VmfBackup *backup;
    JobState state;
    uint64_t first, n; /* units */
    VmfDiskRequest read;
    VmfStorageRequest write;
    struct iovec iov, write_iov;
    void *data; /* of VMF_BACKUP_RUN_UNITS */
} Job;

typedef enum {
    BACKUP_DRAINS,   /* every change is held, until none is under way: that is the moment */
    BACKUP_PREPARES, /* every change is held: what is to be copied is being found out */
    BACKUP_COPIES,   /* changes of what is not copied yet are held */
    BACKUP_OVER,     /* nothing is held */
} BackupState;

struct VmfBackup {
    VmfDisk *disk;
    char *bitmap; /* NULL: none */
    bool full;
    uint64_t bytes_per_second;
    const VmfFlag *cancelled; /* while it begins; or NULL */
    void (*ended)(VmfBackup *backup, void *opaque);
    void *opaque;

    VmfStorage *target;
    bool fresh;      /* it reads as zeros where nothing is written */
    char *target_path; /* NULL: an export */
    char *target_uri;  /* and then this too */
    bool target_is_file; /* it was there */
    VmfClaimKind claim;
    int target_lock; /* -1: none */
    pthread_t thread;
    bool gated; /* the disk has its gate */

    /* backup-copy.c: the thread's own */
    VmfStorageQueue *queue;
    Job jobs[VMF_BACKUP_JOBS];
    uint64_t extent_begin, extent_end; /* bytes: what is known of holes */
    bool extent_is_hole;
    int64_t next_ns; /* no sooner is more read, but for a guest that waits */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    BackupState state;
    GError *error;      /* the first one; owned */
    bool aside;         /* the bitmap's bits are */
    bool is_over;       /* the thread has done all but telling */
    bool in_queue;      /* the thread sleeps in it, and was not woken */
    VmfDiskUnits units; /* under way: being read */
    VmfBackupProgress progress;
};

/* Lock held. The first one counts; nothing is held from now on. Takes over @error. */
void vmf_backup_fail(VmfBackup *backup, GError *error);
/* Lock held. */
void vmf_backup_wake(VmfBackup *backup);

/*
 * backup-base.c. Ahead of the moment, with a bitmap that is to be copied, a target and a queue: false where a sample of what is clean in
 * it differs (VMF_ERROR_DISK_BASE) or cannot be read there, or it is cancelled. One that does not record says of nothing that it is clean.
 */
bool vmf_backup_check_base(const VmfBackup *backup, GError **error);

/* backup-copy.c. Lock held, and given up while it waits: until something changes, for so long at most. */
void vmf_backup_sleep(VmfBackup *backup, int64_t ns);
/* Copies all that is to do; false: backup->error says why. Nothing is under way when it returns. */
bool vmf_backup_copy(VmfBackup *backup);

#endif
