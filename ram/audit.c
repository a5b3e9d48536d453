/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/audit.h"

#include <inttypes.h>

#include "ram/block.h"
#include "ram/occupancy.h"
#include "ram/ram-store.h"
#include "ram/store-source.h"

/* A page that was sent with content and has lost its memory since is a difference too, so the table adds its pages. */
static void add_known_pages(const VmfAuditBlock *own, VmfDirtyBitmap *bitmap)
{
    uint64_t n_chunks = vmf_ram_block_n_chunks(own->block), first, digests[VMF_CHUNK_PAGES];

    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        if (vmf_digest_table_chunk_sum(own->digests, chunk) == 0)
            continue;
        unsigned n = vmf_ram_block_chunk_pages(own->block, chunk, &first);
        vmf_digest_table_read(own->digests, chunk, NULL, digests);
        for (unsigned page = 0; page < n; page++)
            if (digests[page] != 0)
                vmf_dirty_bitmap_set_range(bitmap, first + page, 1);
    }
}

static VmfDirtyBitmap *pages_to_audit(const VmfAuditBlock *own, GError **error)
{
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(own->block), error);

    if (!bitmap || !vmf_occupancy_scan(own->block, bitmap, error))
        return NULL;
    add_known_pages(own, bitmap);
    return g_steal_pointer(&bitmap);
}

bool vmf_audit_run(const VmfAuditBlock *blocks, unsigned n_blocks, const VmfPageScan *scan, VmfVerifyResult *result,
                   const _Atomic bool *cancel, GError **error)
{
    g_autofree VmfRamBlock **memory = g_new0(VmfRamBlock *, n_blocks + 1);
    g_autofree VmfDigestTable **tables = g_new0(VmfDigestTable *, n_blocks + 1);
    g_autofree VmfDirtyBitmap **bitmaps = g_new0(VmfDirtyBitmap *, n_blocks + 1);
    bool good = true;

    for (unsigned b = 0; b < n_blocks && good; b++) {
        memory[b] = blocks[b].block;
        tables[b] = blocks[b].digests;
        bitmaps[b] = pages_to_audit(&blocks[b], error);
        good = bitmaps[b] != NULL;
    }
    if (good) {
        g_auto(VmfPageStore) store = vmf_ram_store_new(memory, n_blocks, scan, false);
        g_auto(VmfPageSource) source = vmf_store_source_new(&store, bitmaps, n_blocks, 128);
        g_auto(VmfPageSink) sink = vmf_verify_sink_new(tables, n_blocks, result);
        good = vmf_page_copy(&source, &sink, cancel, error);
    }
    for (unsigned b = 0; b < n_blocks; b++)
        vmf_dirty_bitmap_free(bitmaps[b]);
    return good;
}

/* ---- in two halves ---------------------------------------------------------------------------------------------- */

static bool keep_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    VmfDigestTable *const *tables = opaque;

    vmf_digest_table_update(tables[batch->block_index], batch->chunk, &batch->data, batch->digests);
    vmf_page_batch_release(batch);
    return true;
}

static bool scan_all(VmfRamBlock *const *memory, VmfDirtyBitmap **bitmaps, unsigned n_blocks, GError **error)
{
    for (unsigned b = 0; b < n_blocks; b++) {
        bitmaps[b] = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(memory[b]), error);
        if (!bitmaps[b] || !vmf_occupancy_scan(memory[b], bitmaps[b], error))
            return false;
    }
    return true;
}

bool vmf_audit_take(VmfRamBlock *const *memory, VmfDigestTable *const *digests, unsigned n_blocks, const VmfPageScan *scan,
                    const _Atomic bool *cancel, GError **error)
{
    static const VmfPageSinkOps keep_ops = {.size = sizeof(VmfPageSinkOps), .push = keep_push};
    g_autofree VmfDirtyBitmap **bitmaps = g_new0(VmfDirtyBitmap *, n_blocks + 1);
    bool good = scan_all(memory, bitmaps, n_blocks, error);

    if (good) {
        g_auto(VmfPageStore) store = vmf_ram_store_new(memory, n_blocks, scan, false);
        g_auto(VmfPageSource) source = vmf_store_source_new(&store, bitmaps, n_blocks, 128);
        const VmfPageSink sink = {&keep_ops, (void *)digests};
        good = vmf_page_copy(&source, &sink, cancel, error);
    }
    for (unsigned b = 0; b < n_blocks; b++)
        vmf_dirty_bitmap_free(bitmaps[b]);
    return good;
}

static void compare_chunk(const VmfAuditBlock *own, VmfDigestTable *taken, unsigned block, uint64_t chunk,
                          VmfVerifyResult *result)
{
    uint64_t first;
    unsigned n = vmf_ram_block_chunk_pages(own->block, chunk, &first);

    result->pages_checked += n;
    if (vmf_digest_table_chunk_sum(own->digests, chunk) == vmf_digest_table_chunk_sum(taken, chunk))
        return;
    for (uint64_t page = first; page < first + n; page++) {
        VmfPageMismatch now = {block, page, vmf_digest_table_get(taken, page), vmf_digest_table_get(own->digests, page)};
        if (now.expected == now.found)
            continue;
        result->pages_different++;
        if (result->n_listed < G_N_ELEMENTS(result->listed))
            result->listed[result->n_listed++] = now;
    }
}

void vmf_audit_compare(const VmfAuditBlock *blocks, VmfDigestTable *const *taken, unsigned n_blocks, VmfVerifyResult *result)
{
    *result = (VmfVerifyResult){0};
    for (unsigned b = 0; b < n_blocks; b++)
        for (uint64_t chunk = 0; chunk < vmf_ram_block_n_chunks(blocks[b].block); chunk++)
            compare_chunk(&blocks[b], taken[b], b, chunk, result);
}

char *vmf_audit_describe(const VmfAuditBlock *blocks, const VmfVerifyResult *result)
{
    GString *text = g_string_new(NULL);

    g_string_printf(text, "%" PRIu64 " page%s:", result->pages_different, result->pages_different == 1 ? " differs" : "s differ");
    for (unsigned i = 0; i < result->n_listed; i++)
        g_string_append_printf(text, "%s %s page %" PRIu64, i ? "," : "",
                               vmf_ram_block_name(blocks[result->listed[i].block_index].block), result->listed[i].page);
    if (result->n_listed < result->pages_different)
        g_string_append(text, ", ...");
    return g_string_free(text, false);
}
