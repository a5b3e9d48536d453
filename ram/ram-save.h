/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RAM at the source: which pages are still to go, what was sent, and what came of it. The lanes (lane.h) take chunks out of it and
 * the session decides when a round begins.
 */
#ifndef RAM_RAM_SAVE_H
#define RAM_RAM_SAVE_H

#include <pthread.h>
#include <stdatomic.h>

#include <vmferry/guest.h>

#include "ram/bitmap.h"
#include "ram/digest-table.h"
#include "ram/dirty-rate.h"
#include "ram/flight.h"
#include "ram/log-audit.h"
#include "ram/page-batch.h"
#include "ram/page-scan.h"
#include "ram/presence.h"
#include "ram/verify-sink.h"

typedef struct {
    VmfRamBlock *block;
    VmfDirtyBitmap *dirty;    /* still to be sent */
    VmfDigestTable *digests;  /* of what was sent last */
    _Atomic uint64_t data;    /* the first pass's counts, in pages */
    _Atomic uint64_t zero;
    _Atomic uint64_t hole;
    _Atomic uint64_t passed;  /* pages of chunks that the first pass dealt with */
} VmfRamSaveBlock;

typedef struct {
    unsigned n_lanes;
    bool acknowledged;
    unsigned log_audit_percent; /* of a core's time between two harvests, for the log audit; 0: none */
    const VmfDirtyLogOps *log; /* NULL: the guest stays stopped */
    void *log_opaque;
    VmfPresence *presence; /* of memory that may still be on its way; a reference is kept. NULL: it is all there */
    /* A chunk differed and will be sent again. Session thread. */
    void (*mended)(void *opaque, const char *text);
    void *opaque;
} VmfRamSaveConfig;

typedef struct {
    VmfRamSaveConfig config;
    const VmfPageScan *scan;
    VmfRamSaveBlock *blocks;
    unsigned n_blocks;
    VmfFlight *flight;
    bool log_started;
    uint32_t round; /* now running or last run, from 1 */

    _Atomic uint64_t pages_data, pages_zero, pages_resent; /* sends */
    _Atomic uint64_t payload_bytes;
    uint64_t first_pass_bytes; /* payload of round 1 */

    VmfLogAudit log_audit;
    uint64_t harvested_at_ns;
    VmfDirtyRate dirty_rate;
    uint64_t dirtied_pages; /* since the log started */

    pthread_mutex_t lock; /* of the two below */
    GArray *suspects;     /* VmfChunkId: target's sum differs, not explained yet */
    GArray *mended;       /* VmfChunkId: sent again for that reason */
    _Atomic unsigned chunks_mended;
} VmfRamSave;

/* @blocks: the guest's, in order, not owned. */
VmfRamSave *vmf_ram_save_new(VmfRamBlock *const *blocks, unsigned n_blocks, const VmfRamSaveConfig *config, GError **error);
void vmf_ram_save_free(VmfRamSave *save);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRamSave, vmf_ram_save_free)

/* Starts the dirty log (if there is one), then marks all that was ever touched. */
bool vmf_ram_save_begin(VmfRamSave *save, GError **error);
void vmf_ram_save_end(VmfRamSave *save);

/*
 * Between two rounds: adds what the log recorded, and judges the chunks whose sums differed: those with nothing dirty are damaged, are
 * marked to be sent again and named; a second time is VMF_ERROR_RAM_SUM.
 */
bool vmf_ram_save_harvest(VmfRamSave *save, GError **error);

/*
 * The same, with the log audit around it: VMF_ERROR_RAM_AUDIT names a page whose write the log lost. While the guest runs; inside the
 * downtime the full audit is what there is.
 */
bool vmf_ram_save_harvest_audited(VmfRamSave *save, GError **error);

/* The same with what the audit has saved up, once, before the stop. *@looked: there was something; then a round has to follow. */
bool vmf_ram_save_last_look(VmfRamSave *save, bool *looked, GError **error);

/* Until the first round has ended. The lanes, and the session's thread. */
static inline bool vmf_ram_save_is_first_pass(const VmfRamSave *save)
{
    return save->round <= 1;
}

/*
 * Enters what is about to go: digests, which @batch has to have, and counts. The lanes; before its bytes leave, so that whoever hears of
 * their arrival finds the digests there.
 */
void vmf_ram_save_enter(VmfRamSave *save, const VmfPageBatch *batch);

/* Bytes still to be sent, without and with what is under way. Any thread. */
uint64_t vmf_ram_save_pending_bytes(const VmfRamSave *save);

/* After the first round: every page was counted once. VMF_ERROR_RAM_COUNTS. */
bool vmf_ram_save_check_counts(const VmfRamSave *save, GError **error);

/* The target's sum of a chunk, all of whose records have landed. Under the flight's lock, any thread. */
void vmf_ram_save_compare(void *save, VmfChunkId id, uint64_t sum);

/* Whether suspects are left, and the first one in words; for naming what a failed handover was about. NULL: none. */
char *vmf_ram_save_name_suspect(VmfRamSave *save);

/* Compares all memory with what was sent; the guest is stopped. @text says in words what differs, NULL if nothing does. */
bool vmf_ram_save_audit(VmfRamSave *save, VmfVerifyResult *result, char **text, const _Atomic bool *cancel, GError **error);

#endif
