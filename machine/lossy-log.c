/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/lossy-log.h"
#include <stdatomic.h>

#define HARVESTS 8 /* of a block with something in it: the write is lost in one of so many */

struct VmfLossyLog {
    VmfDirtyLogOps ops;
    VmfGuest *guest;
    const VmfDirtyLogOps *inner;
    void *inner_opaque;
    uint64_t seed;
    unsigned harvests_left;
    unsigned block;
    uint64_t page;
    _Atomic bool lost;
};

typedef struct {
    uint64_t word;
    uint64_t bits;
} Word;

static void keep_words(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    GArray *kept = opaque;

    for (size_t i = 0; i < n_words; i++) {
        Word word = {first_word + i, words[i]};

        if (word.bits)
            g_array_append_val(kept, word);
    }
}

static Word *choose_page(VmfLossyLog *log, GArray *kept, uint64_t *mask)
{
    uint64_t n_pages = 0, nth;

    for (guint i = 0; i < kept->len; i++)
        n_pages += __builtin_popcountll(g_array_index(kept, Word, i).bits);
    nth = log->seed / HARVESTS % n_pages;
    for (guint i = 0;; i++) {
        Word *word = &g_array_index(kept, Word, i);

        for (uint64_t bits = word->bits; bits; bits &= bits - 1) {
            *mask = bits & -bits;
            if (nth-- == 0)
                return word;
        }
    }
}

/* The inner log forgets the page. What it cleared besides is reported. */
static void lose_one(VmfLossyLog *log, unsigned block, GArray *kept)
{
    uint64_t n_pages = vmf_ram_block_size(vmf_guest_ram(log->guest, block)) / 4096;
    uint64_t mask, cleared;
    Word *word = choose_page(log, kept, &mask);

    cleared = mask;
    log->inner->clear(log->inner_opaque, block, word->word * 64, MIN(64, n_pages - word->word * 64), &cleared);
    word->bits = (word->bits | cleared) & ~mask;
    log->block = block;
    log->page = word->word * 64 + (unsigned)__builtin_ctzll(mask);
    atomic_store(&log->lost, true);
}

static bool lossy_harvest(void *opaque, unsigned block,
                          void (*report)(void *report_opaque, uint64_t first_word, const uint64_t *words, size_t n_words),
                          void *report_opaque, GError **error)
{
    VmfLossyLog *log = opaque;
    g_autoptr(GArray) kept = NULL;

    if (atomic_load(&log->lost))
        return log->inner->harvest(log->inner_opaque, block, report, report_opaque, error);
    kept = g_array_new(false, false, sizeof(Word));
    if (!log->inner->harvest(log->inner_opaque, block, keep_words, kept, error))
        return false;
    if (kept->len > 0 && log->harvests_left-- == 0)
        lose_one(log, block, kept);
    for (guint i = 0; i < kept->len; i++) {
        const Word *word = &g_array_index(kept, Word, i);

        report(report_opaque, word->word, &word->bits, 1);
    }
    return true;
}

static bool lossy_start(void *opaque, GError **error)
{
    VmfLossyLog *log = opaque;

    return log->inner->start(log->inner_opaque, error);
}

static void lossy_stop(void *opaque)
{
    VmfLossyLog *log = opaque;

    log->inner->stop(log->inner_opaque);
}

static void lossy_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfLossyLog *log = opaque;

    log->inner->clear(log->inner_opaque, block, first_page, n_pages, words);
}

/* Spreads seeds that follow each other. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

VmfLossyLog *vmf_lossy_log_new(VmfGuest *guest, const VmfDirtyLogOps *inner, void *inner_opaque, uint64_t seed)
{
    VmfLossyLog *log = g_new0(VmfLossyLog, 1);

    log->guest = guest;
    log->inner = inner;
    log->inner_opaque = inner_opaque;
    log->seed = mix(seed);
    log->harvests_left = log->seed % HARVESTS;
    log->ops = (VmfDirtyLogOps){
        .size = sizeof(VmfDirtyLogOps),
        .name = inner->name,
        .start = lossy_start,
        .stop = lossy_stop,
        .harvest = lossy_harvest,
        .clear = lossy_clear,
    };
    return log;
}

void vmf_lossy_log_free(VmfLossyLog *log)
{
    g_free(log);
}

const VmfDirtyLogOps *vmf_lossy_log_ops(const VmfLossyLog *log)
{
    return &log->ops;
}

bool vmf_lossy_log_lost(VmfLossyLog *log, unsigned *block, uint64_t *page)
{
    bool lost = atomic_load(&log->lost);

    *block = lost ? log->block : 0;
    *page = lost ? log->page : 0;
    return lost;
}
