/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A page source that walks a page store along dirty bitmaps. */
#ifndef RAM_STORE_SOURCE_H
#define RAM_STORE_SOURCE_H

#include "ram/page-store.h"

/*
 * Takes the pages of @bitmaps[i] (of block i of @store, @n_blocks of them) out of them, reads them from @store and
 * pushes them in batches of at most @batch_pages (1 to 512; 128 keep a batch in the L2 cache). It is done when it has
 * passed the end of the last bitmap; what is set behind it stays there. Pages taken when a push fails are lost: the
 * bitmap is then no longer of use. The array is copied; store and bitmaps are not owned.
 */
VmfPageSource vmf_store_source_new(const VmfPageStore *store, VmfDirtyBitmap *const *bitmaps, unsigned n_blocks,
                                   unsigned batch_pages);

#endif
