/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The log audit: does the dirty log see every write?
 *
 * Theory of operation. A page that was sent and is in no log since still has the bytes that were sent, so its digest is the one in the
 * table. Between two rounds some pages are hashed again, at random, for a few hundredths of the time that the round took. One that
 * differs has been written since it was sent; the harvest that follows has to know it. If it does not, the log lost a write: the
 * target would have got an old page, and no sum could have told, since both sides hold the digest of the old bytes. Pages that were
 * never sent with content are left out: looking at them would touch them.
 */
#ifndef RAM_LOG_AUDIT_H
#define RAM_LOG_AUDIT_H

#include "ram/audit.h"
#include "ram/bitmap.h"

typedef struct {
    unsigned block;
    uint64_t page;
} VmfAuditedPage;

typedef struct {
    uint64_t random;          /* state of the choice; never 0 */
    uint64_t pages_looked_at; /* all rounds */
    GArray *different;        /* VmfAuditedPage, of the last look */
} VmfLogAudit;

void vmf_log_audit_init(VmfLogAudit *audit, uint64_t seed);
void vmf_log_audit_clear(VmfLogAudit *audit);

/* Hashes pages for @budget_ns, ahead of a harvest; no lane sends meanwhile. @pending: of each block, what is known to be dirty. */
void vmf_log_audit_look(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                        const VmfPageScan *scan, uint64_t budget_ns);

/* After the harvest: the first page that differed and is not pending, if there is one. */
bool vmf_log_audit_unexplained(const VmfLogAudit *audit, VmfDirtyBitmap *const *pending, VmfAuditedPage *page);

#endif
