/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/log-audit.h"

#include "ram/block.h"
#include "stream/clock.h"

#define WINDOW_PAGES 64 /* hashed at a time: between two looks at the clock, and a word of the sets */
#define TRIES 256       /* at finding a chunk that has content, for each window */

void vmf_log_audit_init(VmfLogAudit *audit, uint64_t seed)
{
    *audit = (VmfLogAudit){.random = seed | 1, .different = g_array_new(false, false, sizeof(VmfAuditedPage))};
}

void vmf_log_audit_clear(VmfLogAudit *audit)
{
    g_clear_pointer(&audit->different, g_array_unref);
}

/* xorshift64*: what is looked at need only be spread, and differ from run to run. */
static uint64_t next_random(VmfLogAudit *audit)
{
    audit->random ^= audit->random >> 12;
    audit->random ^= audit->random << 25;
    audit->random ^= audit->random >> 27;
    return audit->random * UINT64_C(0x2545F4914F6CDD1D);
}

static uint64_t random_below(VmfLogAudit *audit, uint64_t n)
{
    return (uint64_t)((unsigned __int128)next_random(audit) * n >> 64);
}

/* A chunk that was sent with content, blocks weighed by their size. */
static bool choose_chunk(VmfLogAudit *audit, const VmfAuditBlock *blocks, unsigned n_blocks, unsigned *block, uint64_t *chunk)
{
    uint64_t n_chunks = 0;

    for (unsigned b = 0; b < n_blocks; b++)
        n_chunks += vmf_ram_block_n_chunks(blocks[b].block);
    for (unsigned i = 0; i < TRIES; i++) {
        *chunk = random_below(audit, n_chunks);
        for (*block = 0; *chunk >= vmf_ram_block_n_chunks(blocks[*block].block); (*block)++)
            *chunk -= vmf_ram_block_n_chunks(blocks[*block].block);
        if (vmf_digest_table_chunk_sum(blocks[*block].digests, *chunk) != 0)
            return true;
    }
    return false;
}

static void look_at_window(VmfLogAudit *audit, const VmfAuditBlock *own, VmfDirtyBitmap *pending, unsigned block, uint64_t chunk,
                           const VmfPageScan *scan)
{
    uint64_t first, digests[VMF_CHUNK_PAGES];
    unsigned n_pages = vmf_ram_block_chunk_pages(own->block, chunk, &first);
    unsigned word = (unsigned)random_below(audit, (n_pages + WINDOW_PAGES - 1) / WINDOW_PAGES);
    VmfPageSet wanted = {0}, dirty;

    vmf_dirty_bitmap_peek_chunk(pending, chunk, &dirty);
    for (unsigned page = word * WINDOW_PAGES; page < MIN((word + 1) * WINDOW_PAGES, n_pages); page++)
        if (vmf_digest_table_get(own->digests, first + page) != 0 && !vmf_page_set_test(&dirty, page))
            vmf_page_set_add(&wanted, page);
    audit->pages_looked_at += vmf_page_set_count(&wanted);
    vmf_page_scan_digests(scan, vmf_ram_block_page(own->block, first), VMF_PAGE_SIZE, n_pages, wanted.words, digests);
    for (unsigned page = word * WINDOW_PAGES; page < MIN((word + 1) * WINDOW_PAGES, n_pages); page++) {
        VmfAuditedPage at = {block, first + page};
        if (vmf_page_set_test(&wanted, page) && digests[page] != vmf_digest_table_get(own->digests, first + page))
            g_array_append_val(audit->different, at);
    }
}

void vmf_log_audit_look(VmfLogAudit *audit, const VmfAuditBlock *blocks, VmfDirtyBitmap *const *pending, unsigned n_blocks,
                        const VmfPageScan *scan, uint64_t budget_ns)
{
    int64_t end = vmf_now_ns() + (int64_t)budget_ns;
    unsigned block;
    uint64_t chunk;

    g_array_set_size(audit->different, 0);
    while (vmf_now_ns() < end && choose_chunk(audit, blocks, n_blocks, &block, &chunk))
        look_at_window(audit, &blocks[block], pending[block], block, chunk, scan);
}

bool vmf_log_audit_unexplained(const VmfLogAudit *audit, VmfDirtyBitmap *const *pending, VmfAuditedPage *page)
{
    for (guint i = 0; i < audit->different->len; i++) {
        *page = g_array_index(audit->different, VmfAuditedPage, i);
        if (!vmf_dirty_bitmap_test(pending[page->block], page->page))
            return true;
    }
    return false;
}
