/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The full audit: all memory of a stopped guest against the digests of what was sent or placed. */
#ifndef RAM_AUDIT_H
#define RAM_AUDIT_H

#include "ram/page-scan.h"
#include "ram/verify-sink.h"

typedef struct {
    VmfRamBlock *block;
    VmfDigestTable *digests;
} VmfAuditBlock;

/* Differences are no error: they are in @result. */
bool vmf_audit_run(const VmfAuditBlock *blocks, unsigned n_blocks, const VmfPageScan *scan, VmfVerifyResult *result,
                   const _Atomic bool *cancel, GError **error);

/* The other half first: hashes all memory into @digests, by block, empty tables. */
bool vmf_audit_take(VmfRamBlock *const *memory, VmfDigestTable *const *digests, unsigned n_blocks, const VmfPageScan *scan,
                    const _Atomic bool *cancel, GError **error);
/* And later, without the memory: @blocks' digests against those that were @taken. */
void vmf_audit_compare(const VmfAuditBlock *blocks, VmfDigestTable *const *taken, unsigned n_blocks, VmfVerifyResult *result);

/* "3 pages differ: ram page 17, ram page 18, vram page 0". Newly allocated. */
char *vmf_audit_describe(const VmfAuditBlock *blocks, const VmfVerifyResult *result);

#endif
