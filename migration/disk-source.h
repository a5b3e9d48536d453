/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks that are copied, at the source: the owner of what EXTENT and DISK_SYNC carry (docs/stream-format.rst). One
 * owner for all of them, for they share a bound on the memory for what was read and not sent.
 */
#ifndef MIGRATION_DISK_SOURCE_H
#define MIGRATION_DISK_SOURCE_H

#include "migration/disk-pace.h"
#include "migration/disk-proof.h"
#include "migration/owners.h"

typedef struct VmfDiskMirror VmfDiskMirror; /* disk-mirror.h */

/* Where disks go that do not go into a stream. Calls come from the session's thread. */
typedef struct {
    /* Whole granules of disk @disk (of those chosen), to be copied; @data NULL: zeros. @first: never put before. */
    bool (*put)(void *opaque, unsigned disk, uint64_t offset, const uint8_t *data, uint64_t length, bool first,
                GError **error);
    /* All that was put is where it is to be. */
    bool (*flush)(void *opaque, GError **error);
} VmfDiskPlaceOps;

typedef struct {
    VmfDisk *disk;
    VmfDiskDirty *dirty; /* what is to be sent: what was there when it began, and what the guest has written since */
    bool tracked;
    uint64_t at; /* the pass has come to this granule */
    VmfDiskProof proof;
} VmfDiskSourceOne;

typedef struct {
    VmfSession *session;
    VmfDiskSourceOne *disks;
    uint32_t *indexes; /* in the stream's list, by place in @disks */
    unsigned n_disks;
    const VmfDiskPlaceOps *place_ops; /* NULL: the stream. Set before set-up */
    void *place;
    bool two_way; /* DISK_SYNC is answered */
    bool verify;
    const char *bitmap; /* the target has a base, and this bitmap of each disk what differs from it; NULL: it has none */
    VmfDiskPace pace; /* of whoever sends passes */
    int64_t paced_ns; /* when it was looked at last */
    _Atomic int64_t copied_ns; /* when a read of a pass ended last; INT64_MAX while one is under way */
    bool may_mirror;  /* asked for, and not tried yet */
    VmfReadAhead *ahead;
    unsigned at; /* the pass has come to this disk */
    VmfDiskMirror *mirror;      /* NULL: there is none. Changed under the session's lock */
    pthread_mutex_t order;      /* between the session's thread and the mirror's: sums, and the records that carry them */
    _Atomic uint64_t n_mirrored; /* pieces that the mirror has sent, ever: the number of the next one */

    /* Under the session's lock: */
    uint64_t cookie; /* of the latest DISK_SYNC; 0: none */
    uint64_t *sums;  /* that it carried */
    uint64_t *answered; /* sums of the answer, where they are compared later */
    bool compare_later; /* the sums of the answer that is due */
    bool waiting;    /* it has not been answered */
    bool gone;       /* nothing will be answered any more */
    int64_t asked_ns;

    _Atomic unsigned depth;           /* the pace's, for others */
    _Atomic uint64_t mirrored_writes; /* of mirrors that have ended */
    _Atomic uint64_t total_bytes, sent_bytes, zero_bytes, base_bytes, unsynced_bytes;
    _Atomic uint64_t under_way_bytes; /* read, or being read, and not sent */
    _Atomic uint64_t pass_ns;         /* spent in passes */
    _Atomic uint64_t sync_ns;         /* how long the latest DISK_SYNC took */
} VmfDiskSource;

/* Chooses those that VmfParameters.copy_disks names. @source is zeros but for its session. VMF_ERROR_USAGE, VMF_ERROR_UNSUPPORTED: one
 * cannot be copied. */
bool vmf_disk_source_choose(VmfDiskSource *source, VmfSession *session, GError **error);
/* No callback is running. All zeros is fine. */
void vmf_disk_source_clear(VmfDiskSource *source);
bool vmf_disk_source_has(const VmfDiskSource *source, const char *name);
VmfOwner vmf_disk_source_owner(VmfDiskSource *source);
/* For whoever reads disks in the place of a pass: another read may begin; one has ended, and it may go on. */
bool vmf_disk_source_has_room(const VmfDiskSource *source);
bool vmf_disk_source_between_reads(VmfDiskSource *source, GError **error);
/* Something was sent that the target has not got, as far as it has said; but for what it was asked to take its time
 * for. Any thread. */
bool vmf_disk_source_waits(const VmfDiskSource *source);
/* The watchdog's. */
void vmf_disk_source_look(VmfDiskSource *source, int64_t now_ns);
/* Any thread. */
uint64_t vmf_disk_source_pending_bytes(const VmfDiskSource *source);
void vmf_disk_source_gather(const VmfDiskSource *source, VmfStatistics *statistics);

#endif
