/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What one side knows of a copied disk: the digest of each granule as it was sent (source) or received (target), which
 * granules were named so far, and the sum over them that the two sides compare. One thread at a time; the counters are
 * read by any.
 */
#ifndef MIGRATION_DISK_PROOF_H
#define MIGRATION_DISK_PROOF_H

#include "block/dirty.h"
#include "block/read-ahead.h"
#include "ram/digest-table.h"
#include "ram/page-scan.h"

typedef struct {
    const char *name; /* the disk's, for messages */
    uint64_t size;
    const VmfPageScan *scan;
    VmfDigestTable *digests; /* by granule */
    VmfDiskDirty *named;
    VmfDiskDirty *mirrored; /* granules in which something was mirrored since they were sent: their digests are of before */
    uint64_t mirrored_sum;
    _Atomic bool has_mirrored;
} VmfDiskProof;

bool vmf_disk_proof_init(VmfDiskProof *proof, const char *name, uint64_t size, GError **error);
/* All zeros is fine. */
void vmf_disk_proof_clear(VmfDiskProof *proof);

/* The granule that @offset is in; octets of a granule. */
uint64_t vmf_disk_proof_granule_bytes(const VmfDiskProof *proof, uint64_t granule);
bool vmf_disk_proof_is_zero(const VmfDiskProof *proof, const uint8_t *data, uint64_t length);
/* As it is kept: 0 for zeros. */
uint64_t vmf_disk_proof_digest_of(const VmfDiskProof *proof, const uint8_t *data, uint64_t length);
uint64_t vmf_disk_proof_digest(const VmfDiskProof *proof, uint64_t granule);
/* How many granules from @granule on, at most @max, were all named before, or all not (*@first). */
uint64_t vmf_disk_proof_run(const VmfDiskProof *proof, uint64_t granule, uint64_t max, bool *first);
/* [offset, offset + length), whole granules, has this content from now on (@data NULL: zeros) and is named. */
void vmf_disk_proof_set(VmfDiskProof *proof, uint64_t offset, const uint8_t *data, uint64_t length);
/* The same of one granule, by its digest. */
void vmf_disk_proof_set_digest(VmfDiskProof *proof, uint64_t granule, uint64_t digest);
uint64_t vmf_disk_proof_sum(const VmfDiskProof *proof);
/*
 * A change of [offset, offset + length), which are no whole granules, was mirrored, the @number-th of the migration: so
 * much of what the granules hold is proved by itself. Another thread than the others', as long as none of them is about
 * those granules.
 */
void vmf_disk_proof_mirror(VmfDiskProof *proof, uint64_t number, uint64_t offset, const uint8_t *data, uint64_t length);
bool vmf_disk_proof_all_named(const VmfDiskProof *proof, uint64_t offset, uint64_t length);
/* VMF_ERROR_DISK_COUNTS: a granule was never named. */
bool vmf_disk_proof_check_whole(const VmfDiskProof *proof, GError **error);

/*
 * Reads all of @disk from its storage and compares it. @alive is called between the requests; false with @error ends
 * it. VMF_ERROR_DISK_AUDIT names what differs. Granules in which something was mirrored have the digests of what was
 * read from then on: of them the sums of the two sides tell.
 */
bool vmf_disk_proof_audit(VmfDiskProof *proof, VmfDisk *disk, VmfReadAhead *ahead,
                          bool (*alive)(void *opaque, GError **error), void *opaque, GError **error);

#endif
