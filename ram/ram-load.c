/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/ram-load.h"

#include <vmferry/error.h>

#include <inttypes.h>

#include "ram/audit.h"
#include "ram/block.h"

#define POPULATE_LEAST 8 /* pages: a shorter run is left to the faults */

VmfRamLoad *vmf_ram_load_new(VmfRamBlock *const *blocks, unsigned n_blocks, bool populate, GError **error)
{
    g_autoptr(VmfRamLoad) load = g_new0(VmfRamLoad, 1);

    load->scan = vmf_page_scan_select();
    load->n_cpus = g_get_num_processors();
    load->blocks = g_new0(VmfRamLoadBlock, n_blocks);
    load->n_blocks = n_blocks;
    for (unsigned b = 0; b < n_blocks; b++) {
        VmfRamLoadBlock *own = &load->blocks[b];
        own->block = blocks[b];
        own->digests = vmf_digest_table_new(vmf_ram_block_n_pages(blocks[b]), error);
        if (!own->digests || !vmf_ram_block_empty(blocks[b], error))
            return NULL;
    }
    load->fresh = vmf_fresh_new(blocks, n_blocks);
    if (populate)
        load->populate = vmf_populate_new(load->fresh);
    return g_steal_pointer(&load);
}

void vmf_ram_load_free(VmfRamLoad *load)
{
    if (!load)
        return;
    vmf_populate_free(load->populate);
    vmf_fresh_free(load->fresh);
    for (unsigned b = 0; b < load->n_blocks; b++)
        vmf_digest_table_free(load->blocks[b].digests);
    g_free(load->blocks);
    g_free(load);
}

void vmf_ram_load_discard(VmfRamLoad *load)
{
    g_clear_pointer(&load->populate, vmf_populate_free);
    g_clear_pointer(&load->fresh, vmf_fresh_free);
    for (unsigned b = 0; b < load->n_blocks; b++)
        vmf_ram_block_discard(load->blocks[b].block, 0, vmf_ram_block_size(load->blocks[b].block), NULL);
}

VmfPageSink vmf_ram_load_sink(VmfRamLoad *load)
{
    g_autofree VmfRamBlock **blocks = g_new0(VmfRamBlock *, load->n_blocks + 1);
    g_autofree VmfDigestTable **tables = g_new0(VmfDigestTable *, load->n_blocks + 1);

    for (unsigned b = 0; b < load->n_blocks; b++) {
        blocks[b] = load->blocks[b].block;
        tables[b] = load->blocks[b].digests;
    }
    return vmf_ram_sink_new(blocks, tables, load->n_blocks, load->scan);
}

static VmfRamLoadBlock *find(VmfRamLoad *load, uint32_t block, const char *what, GError **error)
{
    if (block < load->n_blocks)
        return &load->blocks[block];
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE, "record %s: block %u: the guest has %u", what, block, load->n_blocks);
    return NULL;
}

/* Memory that the populating thread has not come to: it lags behind on a full host, being at nice 10. */
static void populate_now(VmfRamLoad *load, VmfRamBlock *block, const VmfWirePages *meta)
{
    unsigned first, n_pages, from = 0;
    bool fresh = vmf_fresh_has(load->fresh, meta->block);
    VmfPageSet data;

    if (!load->populate || !(meta->flags & VMF_PAGES_FIRST_PASS) || !vmf_stream_source_in_range(block, meta->chunk, meta->data))
        return;
    memcpy(data.words, meta->data, sizeof(data.words));
    for (; vmf_page_set_next_run(&data, from, &first, &n_pages); from = first + n_pages)
        if (fresh)
            vmf_populate_forget(load->populate, block, meta->chunk * VMF_CHUNK_PAGES + first, n_pages);
        else if (n_pages >= POPULATE_LEAST)
            vmf_populate_now(load->populate, block, meta->chunk * VMF_CHUNK_PAGES + first, n_pages);
}

bool vmf_ram_load_pages(VmfRamLoad *load, const VmfPageSink *sink, VmfFreshReader *fresh, VmfRecordReader *reader,
                        const VmfWirePages *meta, uint32_t length, GError **error)
{
    VmfRamLoadBlock *own = find(load, meta->block, "PAGES", error);
    unsigned n_zero = 0;

    if (own)
        populate_now(load, own->block, meta);
    fresh->fresh = load->fresh;
    if (!own || !vmf_stream_source_take(reader, meta, length, own->block, sink, fresh, error))
        return false;
    for (unsigned w = 0; w < VMF_WIRE_CHUNK_WORDS; w++)
        n_zero += (unsigned)__builtin_popcountll(meta->zero[w]);
    atomic_fetch_add(&load->pages_data, meta->n_data);
    atomic_fetch_add(&load->pages_zero, n_zero);
    if (meta->flags & VMF_PAGES_FIRST_PASS) {
        atomic_fetch_add(&own->data, meta->n_data);
        atomic_fetch_add(&own->zero, n_zero);
    }
    return true;
}

/*
 * Into watched memory a receiver gets content placed with less work than it takes to populate first. So that is for processors which the
 * receivers leave idle: with as many of them as processors there is none.
 */
static bool populates(const VmfRamLoad *load, unsigned block)
{
    return load->populate && (!vmf_fresh_has(load->fresh, block) || load->n_receivers < load->n_cpus);
}

bool vmf_ram_load_hint(VmfRamLoad *load, const VmfHint *hint, GError **error)
{
    VmfRamLoadBlock *own = find(load, hint->block, "HINT", error);
    unsigned first, n_pages, from = 0;
    VmfPageSet set;

    if (!own)
        return false;
    if (!vmf_stream_source_in_range(own->block, hint->chunk, hint->data)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE, "record HINT: RAM block %s, chunk %" PRIu64 ": not all in the block",
                    vmf_ram_block_name(own->block), hint->chunk);
        return false;
    }
    memcpy(set.words, hint->data, sizeof(set.words));
    for (; populates(load, hint->block) && vmf_page_set_next_run(&set, from, &first, &n_pages); from = first + n_pages)
        if (n_pages >= POPULATE_LEAST)
            vmf_populate_push(load->populate, own->block, hint->chunk * VMF_CHUNK_PAGES + first, n_pages);
    return true;
}

bool vmf_ram_load_check(VmfRamLoad *load, const VmfSwitchover *message, GError **error)
{
    g_clear_pointer(&load->populate, vmf_populate_free);
    g_clear_pointer(&load->fresh, vmf_fresh_free);
    for (unsigned b = 0; b < load->n_blocks; b++) {
        const VmfRamLoadBlock *own = &load->blocks[b];
        const VmfBlockSummary *theirs = &message->blocks[b];
        const char *name = vmf_ram_block_name(own->block);
        uint64_t n_pages = vmf_ram_block_n_pages(own->block), sum;
        if (__builtin_add_overflow(theirs->data, theirs->zero, &sum) || __builtin_add_overflow(sum, theirs->hole, &sum) ||
            sum != n_pages || theirs->data != own->data || theirs->zero != own->zero) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_COUNTS,
                        "RAM block %s: source counts %" PRIu64 " data, %" PRIu64 " zero, %" PRIu64 " hole pages; %" PRIu64
                        " data and %" PRIu64 " zero of %" PRIu64 " came",
                        name, theirs->data, theirs->zero, theirs->hole, own->data, own->zero, n_pages);
            return false;
        }
        if (theirs->sum != vmf_digest_table_total(own->digests)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_SUM, "RAM block %s: sum differs from the source's", name);
            return false;
        }
    }
    return true;
}

bool vmf_ram_load_audit(VmfRamLoad *load, const _Atomic bool *cancel, GError **error)
{
    g_autofree VmfAuditBlock *blocks = g_new0(VmfAuditBlock, load->n_blocks + 1);
    VmfVerifyResult result = {0};

    for (unsigned b = 0; b < load->n_blocks; b++)
        blocks[b] = (VmfAuditBlock){load->blocks[b].block, load->blocks[b].digests};
    if (!vmf_audit_run(blocks, load->n_blocks, load->scan, &result, cancel, error))
        return false;
    if (result.pages_different == 0)
        return true;
    g_autofree char *text = vmf_audit_describe(blocks, &result);
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_AUDIT, "audit at the target: %s", text);
    return false;
}
