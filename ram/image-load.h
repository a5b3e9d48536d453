/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory filled from an image, all of it before the guest runs. Pages go straight from the storage into place; each is checked
 * there against its digest. What is zeros in the image is never touched.
 */
#ifndef RAM_IMAGE_LOAD_H
#define RAM_IMAGE_LOAD_H

#include <stdatomic.h>

#include "ram/image-reader.h"

typedef struct VmfImageLoad VmfImageLoad;

/* Empties @blocks, which are as the image's are in number and size. What is given outlives it. */
VmfImageLoad *vmf_image_load_new(VmfImageChain *chain, VmfRamBlock *const *blocks, unsigned n_blocks, GError **error);
void vmf_image_load_free(VmfImageLoad *load);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageLoad, vmf_image_load_free)

/*
 * Loads all, by @n_threads threads (at least one; no more than there are processors), and waits for it. The first error ends it,
 * VMF_ERROR_CANCELLED soon after *@cancel is set. Once.
 */
bool vmf_image_load_run(VmfImageLoad *load, unsigned n_threads, const _Atomic bool *cancel, GError **error);

/*
 * Instead of loading: counts and sums what there is to load, from the tables alone. For pages that come into memory in another way, each
 * checked against its digest there. VMF_ERROR_CANCELLED.
 */
bool vmf_image_load_survey(VmfImageLoad *load, const _Atomic bool *cancel, GError **error);

/* What the image says of the blocks against what was loaded: VMF_ERROR_RAM_COUNTS, VMF_ERROR_RAM_SUM. */
bool vmf_image_load_check(const VmfImageLoad *load, const VmfSwitchover *summary, GError **error);

/* Any thread. */
typedef struct {
    uint64_t pages;     /* loaded */
    unsigned n_threads; /* how many were started */
} VmfImageLoadProgress;
void vmf_image_load_progress(const VmfImageLoad *load, VmfImageLoadProgress *out);
/* Loaded by thread @thread. */
uint64_t vmf_image_load_thread_bytes(const VmfImageLoad *load, unsigned thread);

#endif
