/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The parts of VmfImageDiskLoad (image-disk-load.h): image-disk-load.c begins and ends it, image-disk-fill.c reads the
 * image and writes the disks, image-disk-gate.c keeps a guest that runs meanwhile from what is not there.
 */
#ifndef MIGRATION_IMAGE_DISK_FILL_H
#define MIGRATION_IMAGE_DISK_FILL_H

#include "block/disk.h"
#include "block/units.h"
#include "migration/image-disk-load.h"
#include "ram/latency.h"

#define VMF_FILL_JOBS 8u /* chunks: read, or being written */
#define VMF_FILL_RUNS_MAX (VMF_CHUNK_PAGES / 2)
#define VMF_CHUNK_UNITS (VMF_CHUNK_SIZE / VMF_DISK_UNIT)
#define VMF_UNIT_PAGES (VMF_DISK_UNIT / VMF_PAGE_SIZE)

typedef struct VmfFillDisk VmfFillDisk;
typedef struct VmfFillLane VmfFillLane;

/* Units of one chunk on their way. */
typedef struct {
    VmfFillLane *lane;
    VmfFillDisk *disk;
    uint64_t chunk;
    uint32_t units; /* bits */
    bool busy, again, failed; /* busy and failed: under the lock */
    unsigned n_writes;        /* under way; likewise */
    uint8_t *memory;          /* of the chunk; only what is read into costs memory */
    VmfDiskRequest requests[VMF_FILL_RUNS_MAX];
    struct iovec iov[VMF_FILL_RUNS_MAX];
} VmfFillJob;

/* A thread's way from the image to the disks. */
struct VmfFillLane {
    VmfImageDiskLoad *load;
    VmfImageReader *reader;
    uint8_t *memory;
    VmfFillJob *jobs;
    unsigned n_busy; /* under the lock */
};

struct VmfFillDisk {
    VmfImageDiskLoad *load;
    unsigned block;
    VmfDisk *disk;
    uint64_t size_bytes;
    bool begun;
    bool lazy;  /* the guest uses it meanwhile */
    bool gated; /* the disk has our gate; written under the lock */
    uint64_t n_data, sum; /* of pages of data, as the tables have them */
    VmfDiskUnits units;   /* under the lock; under way: being filled, or written by the guest as a whole */
};

struct VmfImageDiskLoad {
    VmfImageChain *chain;
    VmfSession *session;
    VmfImageFile *image;
    unsigned n_disks;
    VmfFillDisk *disks;
    const VmfImageDiskLoadOps *ops; /* of one that is lazy */
    void *opaque;

    VmfFillLane ahead, urgent;
    pthread_t ahead_thread, urgent_thread;
    bool has_ahead_thread, has_urgent_thread;

    pthread_mutex_t lock; /* taken with a disk's held; never the other way round */
    pthread_cond_t changed;
    bool in_use;   /* a guest may use the disks that are lazy */
    bool losing;   /* somebody has an error, and tells of it */
    GError *error; /* the first; what is missing now is missing for ever */
    bool over;     /* the threads are to end */

    _Atomic unsigned n_urgent;  /* jobs that somebody waits for */
    _Atomic int64_t urgent_ns;  /* when the last of them ended */
    _Atomic uint64_t total_bytes, written_bytes;
    _Atomic uint64_t n_waits;
    VmfLatency waits;
};

/* ---- image-disk-fill.c ------------------------------------------------------------------------------------------- */

bool vmf_fill_lane_init(VmfFillLane *lane, VmfImageDiskLoad *load, GError **error);
/* Waits for what is under way. All zeros is fine. */
void vmf_fill_lane_clear(VmfFillLane *lane);
/* What of the disk may not be zeros is to do. False: no memory. */
bool vmf_fill_set_todo(VmfFillDisk *disk, GError **error);
/* Returns once all of it is done, by whomever. False: load->error, or it is over or cancelled. */
bool vmf_fill_all(VmfFillDisk *disk);
/* What the tables say of it against what the image's tail says. VMF_ERROR_DISK_COUNTS, VMF_ERROR_DISK_SUM. */
bool vmf_fill_survey(VmfFillDisk *disk, GError **error);
/* The thread for what is waited for; @opaque is the load. */
void *vmf_fill_urgent_main(void *opaque);
/* Takes over @error: some of a disk will never be there. Any thread, without the lock. */
void vmf_fill_lose(VmfImageDiskLoad *load, GError *error);

/* ---- image-disk-gate.c ------------------------------------------------------------------------------------------- */

/* False: the disk has another gate. */
bool vmf_fill_gate_set(VmfFillDisk *disk, GError **error);
void vmf_fill_gate_clear(VmfFillDisk *disk);

#endif
