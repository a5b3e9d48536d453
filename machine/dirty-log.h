/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dirty log of the rv32 backend: one bitmap for each RAM block, written by the vCPU thread, harvested and cleared
 * by the engine.
 */
#ifndef MACHINE_DIRTY_LOG_H
#define MACHINE_DIRTY_LOG_H

#include <stdatomic.h>
#include <vmferry/guest.h>

/* Bit n of words[w] is page w * 64 + n; bit n of summary[s] says that words[s * 64 + n] may be other than zero. */
typedef struct {
    uint64_t n_pages;
    uint64_t n_words;
    uint64_t n_summary;
    _Atomic uint64_t *words;
    _Atomic uint64_t *summary;
} VmfLogBitmap;

bool vmf_log_bitmap_init(VmfLogBitmap *bitmap, uint64_t n_pages, GError **error);
void vmf_log_bitmap_destroy(VmfLogBitmap *bitmap);

/*
 * Records a write of @page. The caller's store is already done; see the Theory of Operation in dirty-log.c for why the
 * bit is set with a read-modify-write each time, even where it is set already.
 */
static inline void vmf_log_bitmap_mark(VmfLogBitmap *bitmap, uint64_t page)
{
    uint64_t word = page / 64;

    atomic_fetch_or_explicit(&bitmap->words[word], 1ull << (page % 64), memory_order_seq_cst);
    if (!(atomic_load_explicit(&bitmap->summary[word / 64], memory_order_relaxed) & 1ull << (word % 64)))
        atomic_fetch_or_explicit(&bitmap->summary[word / 64], 1ull << (word % 64), memory_order_seq_cst);
}

typedef void (*VmfLogBitmapReport)(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words);
/* As VmfDirtyLogOps.harvest and .clear. */
void vmf_log_bitmap_report(VmfLogBitmap *bitmap, VmfLogBitmapReport report, void *report_opaque);
void vmf_log_bitmap_clear(VmfLogBitmap *bitmap, uint64_t first_page, uint64_t n_pages, uint64_t *words);

/* Which bitmaps the vCPU writes: called while a log starts and stops, with NULL for none. Returns when the vCPU has
 * seen it. */
typedef void (*VmfRv32LogAttach)(void *opaque, VmfLogBitmap *bitmaps);
/* Returns once the vCPU has finished the instruction it was at, so that its bit is set as well as its store. */
typedef void (*VmfRv32LogPass)(void *opaque);

typedef struct VmfRv32Log VmfRv32Log;
/* @n_pages: pages of each of the @n_blocks blocks, in the order of the guest's list. */
VmfRv32Log *vmf_rv32_log_new(const uint64_t *n_pages, unsigned n_blocks, VmfRv32LogAttach attach, VmfRv32LogPass pass,
                             void *opaque);
void vmf_rv32_log_free(VmfRv32Log *log);

/* The opaque of these is a VmfRv32Log. */
extern const VmfDirtyLogOps vmf_rv32_log_ops;

#endif
