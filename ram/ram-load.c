/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/ram-load.h"

#include <vmferry/error.h>

#include <inttypes.h>

#include "ram/audit.h"
#include "ram/block.h"

VmfRamLoad *vmf_ram_load_new(VmfRamBlock *const *blocks, unsigned n_blocks, bool populate, GError **error)
{
    g_autoptr(VmfRamLoad) load = g_new0(VmfRamLoad, 1);

    load->scan = vmf_page_scan_select();
    load->blocks = g_new0(VmfRamLoadBlock, n_blocks);
    load->n_blocks = n_blocks;
    for (unsigned b = 0; b < n_blocks; b++) {
        VmfRamLoadBlock *own = &load->blocks[b];
        own->block = blocks[b];
        own->digests = vmf_digest_table_new(vmf_ram_block_n_pages(blocks[b]), error);
        if (!own->digests || !vmf_ram_block_discard(blocks[b], 0, vmf_ram_block_size(blocks[b]), error))
            return NULL;
    }
    if (populate)
        load->populate = vmf_populate_new();
    return g_steal_pointer(&load);
}

void vmf_ram_load_free(VmfRamLoad *load)
{
    if (!load)
        return;
    vmf_populate_free(load->populate);
    for (unsigned b = 0; b < load->n_blocks; b++)
        vmf_digest_table_free(load->blocks[b].digests);
    g_free(load->blocks);
    g_free(load);
}

void vmf_ram_load_discard(VmfRamLoad *load)
{
    g_clear_pointer(&load->populate, vmf_populate_free);
    for (unsigned b = 0; b < load->n_blocks; b++)
        vmf_ram_block_discard(load->blocks[b].block, 0, vmf_ram_block_size(load->blocks[b].block), NULL);
}

static bool range_error(const char *what, uint32_t block, uint64_t chunk, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE, "%s: block %u, chunk %" PRIu64 ": not in the guest's RAM", what, block, chunk);
    return false;
}

/* The block, or NULL: chunk in range, no bit at or beyond the chunk's end. */
static VmfRamLoadBlock *find(VmfRamLoad *load, uint32_t block, uint64_t chunk, const uint64_t *words, unsigned *n_pages)
{
    uint64_t first;

    if (block >= load->n_blocks || chunk >= vmf_ram_block_n_chunks(load->blocks[block].block))
        return NULL;
    *n_pages = vmf_ram_block_chunk_pages(load->blocks[block].block, chunk, &first);
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        if (words[w] & ~vmf_page_word_mask(w, 0, *n_pages))
            return NULL;
    return &load->blocks[block];
}

static bool check_meta(const VmfWirePages *meta, uint32_t length, GError **error)
{
    unsigned n_data = 0;
    uint64_t both = 0, any = 0;

    for (unsigned w = 0; w < VMF_WIRE_CHUNK_WORDS; w++) {
        n_data += (unsigned)__builtin_popcountll(meta->data[w]);
        both |= meta->data[w] & meta->zero[w];
        any |= meta->data[w] | meta->zero[w];
    }
    if (n_data == meta->n_data && n_data <= VMF_PAGES_DATA_MAX && !both && any && !(meta->flags & ~VMF_PAGES_FIRST_PASS) &&
        length == sizeof(*meta) + n_data * VMF_PAGE_SIZE)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record PAGES: %u pages in %u octets do not fit its sets", meta->n_data,
                length);
    return false;
}

static bool scatter(VmfRecordReader *reader, uint8_t *base, const VmfPageSet *data, unsigned n_data, GError **error)
{
    struct iovec iov[VMF_PAGES_DATA_MAX];
    unsigned first, n_pages, from = 0;
    int n = 0;

    if (n_data == 0)
        return true;
    for (; vmf_page_set_next_run(data, from, &first, &n_pages); from = first + n_pages)
        iov[n++] = (struct iovec){base + (size_t)first * VMF_PAGE_SIZE, (size_t)n_pages * VMF_PAGE_SIZE};
    return vmf_record_read_payload(reader, iov, n, (size_t)n_data * VMF_PAGE_SIZE, error);
}

/* A page that never had content is a page of zeros already, and stays untouched. */
static void clear_pages(VmfRamLoadBlock *own, uint64_t chunk, uint8_t *base, const VmfPageSet *zero)
{
    unsigned first, n_pages, from = 0;

    for (; vmf_page_set_next_run(zero, from, &first, &n_pages); from = first + n_pages)
        for (unsigned page = first; page < first + n_pages; page++)
            if (vmf_digest_table_get(own->digests, chunk * VMF_CHUNK_PAGES + page) != 0)
                memset(base + (size_t)page * VMF_PAGE_SIZE, 0, VMF_PAGE_SIZE);
    vmf_digest_table_update(own->digests, chunk, zero, NULL);
}

bool vmf_ram_load_pages(VmfRamLoad *load, VmfRecordReader *reader, uint32_t length, const VmfWirePages *meta, GError **error)
{
    VmfPageSet data, zero, any;
    uint64_t digests[VMF_CHUNK_PAGES];
    unsigned n_pages;

    memcpy(data.words, meta->data, sizeof(data.words));
    memcpy(zero.words, meta->zero, sizeof(zero.words));
    any = vmf_page_set_or(&data, &zero);
    if (!check_meta(meta, length, error))
        return false;
    VmfRamLoadBlock *own = find(load, meta->block, meta->chunk, any.words, &n_pages);
    if (!own)
        return range_error("record PAGES", meta->block, meta->chunk, error);
    uint8_t *base = vmf_ram_block_page(own->block, meta->chunk * VMF_CHUNK_PAGES);
    if (!scatter(reader, base, &data, meta->n_data, error))
        return false;
    if (meta->n_data > 0) {
        vmf_page_scan_digests(load->scan, base, VMF_PAGE_SIZE, n_pages, data.words, digests);
        vmf_digest_table_update(own->digests, meta->chunk, &data, digests);
    }
    clear_pages(own, meta->chunk, base, &zero);
    unsigned n_zero = vmf_page_set_count(&zero);
    atomic_fetch_add(&load->pages_data, meta->n_data);
    atomic_fetch_add(&load->pages_zero, n_zero);
    if (meta->flags & VMF_PAGES_FIRST_PASS) {
        atomic_fetch_add(&own->data, meta->n_data);
        atomic_fetch_add(&own->zero, n_zero);
    }
    return true;
}

bool vmf_ram_load_hint(VmfRamLoad *load, const VmfHint *hint, GError **error)
{
    VmfPageSet set;
    unsigned first, n_pages, from = 0;

    VmfRamLoadBlock *own = find(load, hint->block, hint->chunk, hint->data, &n_pages);
    if (!own)
        return range_error("record HINT", hint->block, hint->chunk, error);
    memcpy(set.words, hint->data, sizeof(set.words));
    for (; load->populate && vmf_page_set_next_run(&set, from, &first, &n_pages); from = first + n_pages)
        vmf_populate_push(load->populate, own->block, hint->chunk * VMF_CHUNK_PAGES + first, n_pages);
    return true;
}

bool vmf_ram_load_check(const VmfRamLoad *load, const VmfSwitchover *message, GError **error)
{
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
