/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The vCPU thread stores into guest memory and then sets the page's bit. A thread of the engine clears the bit and then
 * reads the page. Nothing may be lost between them: either the reader sees the store, or the bit is set after the
 * clear.
 *
 *   vCPU:    store page;  fetch_or(bit)          engine:  exchange(bits, 0);  read page
 *
 * Both middle steps are read-modify-writes of one word, so one comes first. If fetch_or does, exchange reads what it
 * wrote and the store, which came before it, is visible to the read. If exchange does, the bit is set again afterwards
 * and the next harvest has it.
 *
 * It is tempting to skip the fetch_or when a plain load says that the bit is set already. That is a store followed by a
 * load of another address, which processors reorder (x86 does, through the store buffer): the load may see the bit just
 * before the exchange clears it while the store becomes visible only after the page was read, and the write is lost. It
 * would need a full fence between the two, which costs what the locked instruction costs.
 *
 * Between the store and the fetch_or the vCPU's thread may be off its processor for milliseconds. Whoever reads the
 * page then sees a change that the log does not explain yet. So a harvest first lets the vCPU get past the instruction
 * it is at: what was visible when the harvest began is in it.
 *
 * The summary is cleared before the words and set after them, so a word other than zero never hides behind a clear
 * summary bit. A summary bit over a zero word is harmless. Here the shortcut is sound: the load of the summary follows
 * a fetch_or on the word, and where that one read the result of the exchange it also sees the summary cleared before.
 */
#include "machine/dirty-log.h"
#include <string.h>
#include <vmferry/error.h>

struct VmfRv32Log {
    unsigned n_blocks;
    VmfRv32LogAttach attach;
    VmfRv32LogPass pass;
    void *opaque;
    VmfLogBitmap bitmaps[];
};

bool vmf_log_bitmap_init(VmfLogBitmap *bitmap, uint64_t n_pages, GError **error)
{
    bitmap->n_pages = n_pages;
    bitmap->n_words = (n_pages + 63) / 64;
    bitmap->n_summary = (bitmap->n_words + 63) / 64;
    bitmap->words = g_try_malloc0_n(bitmap->n_words, sizeof(uint64_t));
    bitmap->summary = g_try_malloc0_n(bitmap->n_summary, sizeof(uint64_t));
    if (bitmap->words && bitmap->summary)
        return true;
    vmf_log_bitmap_destroy(bitmap);
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "dirty log: no memory for %" G_GUINT64_FORMAT " pages", n_pages);
    return false;
}

void vmf_log_bitmap_destroy(VmfLogBitmap *bitmap)
{
    g_free(bitmap->words);
    g_free(bitmap->summary);
    *bitmap = (VmfLogBitmap){0};
}

/* ---- bitmaps ----------------------------------------------------------------------------------------------------- */

/* One summary word: reports the stretch from the first to the last of its words that are set. */
static void harvest_group(VmfLogBitmap *bitmap, uint64_t group, uint64_t bits, VmfLogBitmapReport report,
                          void *report_opaque)
{
    unsigned first = __builtin_ctzll(bits);
    unsigned end = 64 - __builtin_clzll(bits);
    uint64_t words[64];
    uint64_t any = 0;

    for (unsigned i = first; i < end; i++) {
        words[i] = bits >> i & 1 ? atomic_load_explicit(&bitmap->words[group * 64 + i], memory_order_acquire) : 0;
        any |= words[i];
    }
    if (any)
        report(report_opaque, group * 64 + first, words + first, end - first);
}

void vmf_log_bitmap_report(VmfLogBitmap *bitmap, VmfLogBitmapReport report, void *report_opaque)
{
    for (uint64_t group = 0; group < bitmap->n_summary; group++) {
        uint64_t bits = atomic_load_explicit(&bitmap->summary[group], memory_order_acquire);

        if (bits)
            harvest_group(bitmap, group, bits, report, report_opaque);
    }
}

/* Clears the pages of @mask in @word and returns those that were set. */
static uint64_t clear_word(VmfLogBitmap *bitmap, uint64_t word, uint64_t mask)
{
    if (mask != UINT64_MAX)
        return atomic_fetch_and_explicit(&bitmap->words[word], ~mask, memory_order_seq_cst) & mask;
    atomic_fetch_and_explicit(&bitmap->summary[word / 64], ~(1ull << (word % 64)), memory_order_seq_cst);
    return atomic_exchange_explicit(&bitmap->words[word], 0, memory_order_seq_cst);
}

void vmf_log_bitmap_clear(VmfLogBitmap *bitmap, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    uint64_t first_word = first_page / 64;

    g_assert(first_page % 64 == 0 && first_page + n_pages <= bitmap->n_pages);
    for (uint64_t i = 0; i < (n_pages + 63) / 64; i++) {
        uint64_t left = n_pages - i * 64;
        bool whole = left >= 64 || first_page + n_pages == bitmap->n_pages;

        words[i] |= clear_word(bitmap, first_word + i, whole ? UINT64_MAX : (1ull << left) - 1);
    }
}

/* ---- the log ----------------------------------------------------------------------------------------------------- */

static void destroy_bitmaps(VmfRv32Log *log)
{
    for (unsigned i = 0; i < log->n_blocks; i++) {
        uint64_t n_pages = log->bitmaps[i].n_pages;

        vmf_log_bitmap_destroy(&log->bitmaps[i]);
        log->bitmaps[i].n_pages = n_pages;
    }
}

VmfRv32Log *vmf_rv32_log_new(const uint64_t *n_pages, unsigned n_blocks, VmfRv32LogAttach attach, VmfRv32LogPass pass,
                             void *opaque)
{
    VmfRv32Log *log = g_malloc0(sizeof(*log) + n_blocks * sizeof(log->bitmaps[0]));

    log->n_blocks = n_blocks;
    log->attach = attach;
    log->pass = pass;
    log->opaque = opaque;
    for (unsigned i = 0; i < n_blocks; i++)
        log->bitmaps[i].n_pages = n_pages[i];
    return log;
}

void vmf_rv32_log_free(VmfRv32Log *log)
{
    if (!log)
        return;
    destroy_bitmaps(log);
    g_free(log);
}

static bool dirty_log_start(void *opaque, GError **error)
{
    VmfRv32Log *log = opaque;

    for (unsigned i = 0; i < log->n_blocks; i++) {
        if (!vmf_log_bitmap_init(&log->bitmaps[i], log->bitmaps[i].n_pages, error)) {
            destroy_bitmaps(log);
            return false;
        }
    }
    log->attach(log->opaque, log->bitmaps);
    return true;
}

static void dirty_log_stop(void *opaque)
{
    VmfRv32Log *log = opaque;

    log->attach(log->opaque, NULL);
    destroy_bitmaps(log);
}

static bool dirty_log_harvest(void *opaque, unsigned block, VmfLogBitmapReport report, void *report_opaque,
                              GError **error)
{
    VmfRv32Log *log = opaque;

    if (block >= log->n_blocks || !log->bitmaps[block].words) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL, "dirty log: harvest of block %u: not recorded", block);
        return false;
    }
    log->pass(log->opaque);
    vmf_log_bitmap_report(&log->bitmaps[block], report, report_opaque);
    return true;
}

static void dirty_log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfRv32Log *log = opaque;

    g_assert(block < log->n_blocks);
    vmf_log_bitmap_clear(&log->bitmaps[block], first_page, n_pages, words);
}

const VmfDirtyLogOps vmf_rv32_log_ops = {
    .size = sizeof(VmfDirtyLogOps),
    .name = "rv32",
    .start = dirty_log_start,
    .stop = dirty_log_stop,
    .harvest = dirty_log_harvest,
    .clear = dirty_log_clear,
};
