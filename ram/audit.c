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
    uint64_t n_chunks = vmf_ram_block_n_chunks(own->block), first;

    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        if (vmf_digest_table_chunk_sum(own->digests, chunk) == 0)
            continue;
        unsigned n = vmf_ram_block_chunk_pages(own->block, chunk, &first);
        for (unsigned page = 0; page < n; page++)
            if (vmf_digest_table_get(own->digests, first + page) != 0)
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
