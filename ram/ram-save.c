/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/ram-save.h"

#include <vmferry/error.h>

#include <inttypes.h>

#include "ram/audit.h"
#include "ram/block.h"
#include "ram/occupancy.h"
#include "stream/clock.h"

static bool block_init(VmfRamSaveBlock *own, VmfRamBlock *block, GError **error)
{
    own->block = block;
    own->dirty = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(block), error);
    if (!own->dirty)
        return false;
    own->digests = vmf_digest_table_new(vmf_ram_block_n_pages(block), error);
    return own->digests != NULL;
}

VmfRamSave *vmf_ram_save_new(VmfRamBlock *const *blocks, unsigned n_blocks, const VmfRamSaveConfig *config, GError **error)
{
    g_autoptr(VmfRamSave) save = g_new0(VmfRamSave, 1);
    g_autofree uint64_t *n_chunks = g_new0(uint64_t, n_blocks + 1);

    save->config = *config;
    if (config->presence)
        vmf_presence_ref(config->presence);
    save->scan = vmf_page_scan_select();
    save->suspects = g_array_new(false, false, sizeof(VmfChunkId));
    save->mended = g_array_new(false, false, sizeof(VmfChunkId));
    pthread_mutex_init(&save->lock, NULL);
    vmf_log_audit_init(&save->log_audit, (uint64_t)vmf_now_ns());
    save->blocks = g_new0(VmfRamSaveBlock, n_blocks);
    save->n_blocks = n_blocks;
    for (unsigned b = 0; b < n_blocks; b++) {
        n_chunks[b] = vmf_ram_block_n_chunks(blocks[b]);
        if (!block_init(&save->blocks[b], blocks[b], error))
            return NULL;
    }
    save->flight = vmf_flight_new(config->n_lanes, n_blocks, n_chunks, config->acknowledged, error);
    return save->flight ? g_steal_pointer(&save) : NULL;
}

void vmf_ram_save_free(VmfRamSave *save)
{
    if (!save)
        return;
    vmf_ram_save_end(save);
    for (unsigned b = 0; b < save->n_blocks; b++) {
        vmf_dirty_bitmap_free(save->blocks[b].dirty);
        vmf_digest_table_free(save->blocks[b].digests);
    }
    g_free(save->blocks);
    vmf_flight_free(save->flight);
    g_array_unref(save->suspects);
    g_array_unref(save->mended);
    vmf_log_audit_clear(&save->log_audit);
    vmf_presence_unref(save->config.presence);
    pthread_mutex_destroy(&save->lock);
    g_free(save);
}

/*
 * The log first: a page that is first touched after the scan is then in the log. And what is still on its way ahead of the scan, which
 * finds what arrives in between.
 */
bool vmf_ram_save_begin(VmfRamSave *save, GError **error)
{
    if (save->config.log) {
        if (!save->config.log->start(save->config.log_opaque, error)) {
            g_prefix_error(error, "dirty log %s: ", save->config.log->name);
            return false;
        }
        save->log_started = true;
    }
    save->harvested_at_ns = (uint64_t)vmf_now_ns();
    for (unsigned b = 0; b < save->n_blocks; b++) {
        VmfRamSaveBlock *own = &save->blocks[b];
        if (vmf_ram_block_flags(own->block) & VMF_RAM_ROM)
            vmf_dirty_bitmap_set_range(own->dirty, 0, vmf_ram_block_n_pages(own->block));
        else if (!vmf_presence_pending(save->config.presence, b, own->dirty, error) ||
                 !vmf_occupancy_scan(own->block, own->dirty, error))
            return false;
    }
    return true;
}

void vmf_ram_save_end(VmfRamSave *save)
{
    if (save->log_started)
        save->config.log->stop(save->config.log_opaque);
    save->log_started = false;
}

void vmf_ram_save_enter(VmfRamSave *save, const VmfPageBatch *batch)
{
    VmfRamSaveBlock *own = &save->blocks[batch->block_index];
    unsigned n_data = vmf_page_set_count(&batch->data), n_zero = vmf_page_set_count(&batch->zero);

    vmf_digest_table_update(own->digests, batch->chunk, &batch->data, batch->digests);
    vmf_digest_table_update(own->digests, batch->chunk, &batch->zero, NULL);
    atomic_fetch_add(&save->pages_data, n_data);
    atomic_fetch_add(&save->pages_zero, n_zero);
    atomic_fetch_add(&save->payload_bytes, (uint64_t)n_data * VMF_PAGE_SIZE);
    if (vmf_ram_save_is_first_pass(save)) {
        atomic_fetch_add(&own->data, n_data);
        atomic_fetch_add(&own->zero, n_zero);
    } else {
        atomic_fetch_add(&save->pages_resent, n_data + n_zero);
    }
}

static void report(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    VmfRamSaveBlock *own = opaque;

    vmf_dirty_bitmap_or_words(own->dirty, first_word, words, n_words);
}

static bool harvest_log(VmfRamSave *save, GError **error)
{
    uint64_t before = vmf_ram_save_pending_bytes(save);

    if (!save->log_started)
        return true;
    for (unsigned b = 0; b < save->n_blocks; b++)
        if (!save->config.log->harvest(save->config.log_opaque, b, report, &save->blocks[b], error)) {
            g_prefix_error(error, "dirty log %s: RAM block %s: ", save->config.log->name,
                           vmf_ram_block_name(save->blocks[b].block));
            return false;
        }
    uint64_t now = (uint64_t)vmf_now_ns(), elapsed = now - save->harvested_at_ns;
    uint64_t gained = vmf_ram_save_pending_bytes(save) - before;
    save->harvested_at_ns = now;
    vmf_dirty_rate_add(&save->dirty_rate, gained, elapsed);
    return true;
}

static bool contains(const GArray *list, VmfChunkId id)
{
    for (guint i = 0; i < list->len; i++) {
        const VmfChunkId *at = &g_array_index(list, VmfChunkId, i);
        if (at->block == id.block && at->chunk == id.chunk)
            return true;
    }
    return false;
}

static char *name_chunk(const VmfRamSave *save, VmfChunkId id)
{
    uint64_t first;
    unsigned n = vmf_ram_block_chunk_pages(save->blocks[id.block].block, id.chunk, &first);

    return g_strdup_printf("RAM block %s: pages %" PRIu64 " to %" PRIu64, vmf_ram_block_name(save->blocks[id.block].block), first,
                           first + n - 1);
}

/* The chunk is clean and still differs from the target's: nothing the guest did explains it. */
static bool mend(VmfRamSave *save, VmfChunkId id, GError **error)
{
    g_autofree char *name = name_chunk(save, id);
    uint64_t first;
    unsigned n = vmf_ram_block_chunk_pages(save->blocks[id.block].block, id.chunk, &first);

    if (contains(save->mended, id)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_SUM, "%s: sum at the target differs a second time", name);
        return false;
    }
    g_array_append_val(save->mended, id);
    save->chunks_mended++;
    vmf_dirty_bitmap_set_range(save->blocks[id.block].dirty, first, n);
    if (save->config.mended) {
        g_autofree char *text = g_strdup_printf("%s: sum at the target differs, sent again", name);
        save->config.mended(save->config.opaque, text);
    }
    return true;
}

typedef struct {
    VmfRamSave *save;
    GArray *ripe;
} Split;

/*
 * Takes the suspects that can be judged. One that has records under way cannot: it was compared just before they were launched, the
 * write that made it differ may be what they carry, and their acknowledgement compares it anew.
 */
static void take_ripe(void *opaque)
{
    Split *split = opaque;
    VmfRamSave *save = split->save;

    pthread_mutex_lock(&save->lock);
    for (guint i = save->suspects->len; i-- > 0;) {
        VmfChunkId id = g_array_index(save->suspects, VmfChunkId, i);
        if (vmf_flight_is_under_way(save->flight, id))
            continue;
        g_array_append_val(split->ripe, id);
        g_array_remove_index_fast(save->suspects, i);
    }
    pthread_mutex_unlock(&save->lock);
}

static bool judge_suspects(VmfRamSave *save, GError **error)
{
    g_autoptr(GArray) ripe = g_array_new(false, false, sizeof(VmfChunkId));
    Split split = {save, ripe};
    bool good = true;
    VmfPageSet dirty;

    vmf_flight_freeze(save->flight, take_ripe, &split);
    for (guint i = 0; good && i < ripe->len; i++) {
        VmfChunkId id = g_array_index(ripe, VmfChunkId, i);
        if (vmf_dirty_bitmap_peek_chunk(save->blocks[id.block].dirty, id.chunk, &dirty) == 0)
            good = mend(save, id, error);
    }
    return good;
}

bool vmf_ram_save_harvest(VmfRamSave *save, GError **error)
{
    return harvest_log(save, error) && judge_suspects(save, error);
}

static bool log_lost(const VmfRamSave *save, VmfAuditedPage page, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_AUDIT, "dirty log %s: RAM block %s: page %" PRIu64 ": was written and is not in the log",
                save->config.log->name, vmf_ram_block_name(save->blocks[page.block].block), page.page);
    return false;
}

/* One look, then the harvest that has to explain what it found. */
static bool harvest_audited(VmfRamSave *save, bool last, uint64_t budget_ns, GError **error)
{
    g_autofree VmfAuditBlock *blocks = g_new0(VmfAuditBlock, save->n_blocks + 1);
    g_autofree VmfDirtyBitmap **pending = g_new0(VmfDirtyBitmap *, save->n_blocks + 1);
    VmfAuditedPage page;

    for (unsigned b = 0; b < save->n_blocks; b++) {
        blocks[b] = (VmfAuditBlock){save->blocks[b].block, save->blocks[b].digests};
        pending[b] = save->blocks[b].dirty;
    }
    if (last)
        vmf_log_audit_last_look(&save->log_audit, blocks, pending, save->n_blocks, save->scan);
    else
        vmf_log_audit_look(&save->log_audit, blocks, pending, save->n_blocks, save->scan, budget_ns);
    if (!vmf_ram_save_harvest(save, error))
        return false;
    vmf_log_audit_note_written(&save->log_audit, blocks, pending, save->n_blocks);
    return !vmf_log_audit_unexplained(&save->log_audit, pending, &page) || log_lost(save, page, error);
}

bool vmf_ram_save_harvest_audited(VmfRamSave *save, GError **error)
{
    uint64_t budget_ns = ((uint64_t)vmf_now_ns() - save->harvested_at_ns) * save->config.log_audit_percent / 100;

    if (!save->log_started || save->config.log_audit_percent == 0)
        return vmf_ram_save_harvest(save, error);
    return harvest_audited(save, false, budget_ns, error);
}

bool vmf_ram_save_last_look(VmfRamSave *save, bool *looked, GError **error)
{
    *looked = save->log_started && vmf_log_audit_wants_last_look(&save->log_audit);
    return !*looked || harvest_audited(save, true, 0, error);
}

uint64_t vmf_ram_save_pending_bytes(const VmfRamSave *save)
{
    uint64_t pages = 0;

    for (unsigned b = 0; b < save->n_blocks; b++)
        pages += vmf_dirty_bitmap_count(save->blocks[b].dirty);
    return pages * VMF_PAGE_SIZE;
}

bool vmf_ram_save_check_counts(const VmfRamSave *save, GError **error)
{
    for (unsigned b = 0; b < save->n_blocks; b++) {
        const VmfRamSaveBlock *own = &save->blocks[b];
        uint64_t sum = own->data + own->zero + own->hole;
        if (sum == vmf_ram_block_n_pages(own->block))
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_COUNTS,
                    "RAM block %s: %" PRIu64 " data, %" PRIu64 " zero and %" PRIu64 " hole pages are not its %" PRIu64,
                    vmf_ram_block_name(own->block), own->data, own->zero, own->hole, vmf_ram_block_n_pages(own->block));
        return false;
    }
    return true;
}

/*
 * A page that the guest wrote while it was sent differs, is dirty, and will be sent again: only the next harvest can tell that from
 * damage, so the chunk is noted here and judged there.
 */
void vmf_ram_save_compare(void *opaque, VmfChunkId id, uint64_t sum)
{
    VmfRamSave *save = opaque;

    bool differs = vmf_digest_table_chunk_sum(save->blocks[id.block].digests, id.chunk) != sum;
    pthread_mutex_lock(&save->lock);
    for (guint i = 0; i < save->suspects->len; i++) {
        const VmfChunkId *at = &g_array_index(save->suspects, VmfChunkId, i);
        if (at->block == id.block && at->chunk == id.chunk) {
            g_array_remove_index_fast(save->suspects, i);
            break;
        }
    }
    if (differs)
        g_array_append_val(save->suspects, id);
    pthread_mutex_unlock(&save->lock);
}

char *vmf_ram_save_name_suspect(VmfRamSave *save)
{
    pthread_mutex_lock(&save->lock);
    char *name = save->suspects->len ? name_chunk(save, g_array_index(save->suspects, VmfChunkId, 0)) : NULL;
    pthread_mutex_unlock(&save->lock);
    return name;
}

bool vmf_ram_save_audit(VmfRamSave *save, VmfVerifyResult *result, char **text, const _Atomic bool *cancel, GError **error)
{
    g_autofree VmfAuditBlock *blocks = g_new0(VmfAuditBlock, save->n_blocks + 1);

    *text = NULL;
    for (unsigned b = 0; b < save->n_blocks; b++)
        blocks[b] = (VmfAuditBlock){save->blocks[b].block, save->blocks[b].digests};
    if (!vmf_audit_run(blocks, save->n_blocks, save->scan, result, cancel, error))
        return false;
    if (result->pages_different > 0) {
        g_autofree char *pages = vmf_audit_describe(blocks, result);
        *text = g_strdup_printf("dirty log %s: %s", save->config.log ? save->config.log->name : "none", pages);
    }
    return true;
}
