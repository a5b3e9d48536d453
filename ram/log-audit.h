/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The log audit: does the dirty log see every write?
 *
 * Theory of operation. A page that was sent and is in no log since still has the bytes that were sent, so its digest is the one in the
 * table. Between two rounds some pages are hashed again, for a few hundredths of the time that the round took. One that differs has been
 * written since it was sent; the harvest that follows has to know it. If it does not, the log lost a write: the target would have got
 * an old page, and no sum could have told, since both sides hold the digest of the old bytes. Pages that have no memory are left out,
 * since looking at them would touch them, and so are chunks that were never sent with content.
 *
 * A page that differs goes on differing, so what matters is to come by everywhere, and rather late than early. Every other look is at
 * chunks that the guest has written since they were first sent: where it writes is where a log can lose. The others go through all
 * memory, which finds what is left out again and again where the log knows of nothing (a device whose writes are not marked). Neither
 * comes back to a place before it was everywhere. Half of the budget is saved, up to SAVED_MAX_NS, for one last look when the policy
 * first finds that it is time to stop; the round that follows it carries what the guest wrote meanwhile, so it is no downtime.
 *
 * The budget is an account: what the last window took beyond it is missing next time, so that many short rounds do not cost more.
 */
#ifndef RAM_LOG_AUDIT_H
#define RAM_LOG_AUDIT_H

#include <stdatomic.h>

#include "ram/audit.h"
#include "ram/bitmap.h"

typedef struct {
    unsigned block;
    uint64_t page;
} VmfAuditedPage;

typedef struct {
    unsigned block;
    uint64_t chunk;
} VmfAuditedChunk;

/* Through the windows of some chunks: one of each, then the next one of each. */
typedef struct {
    uint64_t position, stride; /* the stride has no divisor in common with the number of chunks */
} VmfAuditWalk;

typedef struct {
    uint64_t random;                  /* state of the choice; never 0 */
    int64_t credit_ns;                /* of the budget; below 0: overdrawn */
    uint64_t saved_ns;                /* likewise, for the last look */
    bool looked_last;
    uint64_t turns;                   /* windows that were chosen */
    VmfAuditWalk everywhere, where_written;
    GArray *written;                  /* VmfAuditedChunk: some thousand, at most, of those that were dirty after they were sent */
    uint64_t n_written;               /* how many there were */
    GPtrArray *seen;                  /* of each block a bit for each chunk: it was counted in n_written */
    int pagemap;                      /* tells which pages have memory; -1: only those that were sent with content are looked at */
    GArray *different;                /* VmfAuditedPage, of the last look */
    _Atomic uint64_t pages_looked_at; /* all rounds */
    _Atomic uint64_t cpu_ns;          /* likewise */
} VmfLogAudit;

void vmf_log_audit_init(VmfLogAudit *audit, uint64_t seed);
void vmf_log_audit_clear(VmfLogAudit *audit);

/*
 * Hashes pages for half of @budget_ns, ahead of a harvest; no lane sends meanwhile. @pending: of each block, what is known to be dirty.
 * The last look spends what was saved; it is worth a round when vmf_log_audit_wants_last_look().
 */
void vmf_log_audit_look(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                        const VmfPageScan *scan, uint64_t budget_ns);
bool vmf_log_audit_wants_last_look(const VmfLogAudit *audit);
void vmf_log_audit_last_look(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                             const VmfPageScan *scan);

/* After the harvest: the first page that differed and is not pending, if there is one. */
bool vmf_log_audit_unexplained(const VmfLogAudit *audit, VmfDirtyBitmap *const *pending, VmfAuditedPage *page);
/* After the harvest, which found all that is pending: notes where the guest writes. */
void vmf_log_audit_note_written(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks);

#endif
