/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every octet of an image, and of its parents if wanted, against its digests; by several threads, as fast as the
 * storage or memory lets them.
 */
#ifndef RAM_IMAGE_VERIFY_H
#define RAM_IMAGE_VERIFY_H

#include "ram/image-reader.h"

typedef struct {
    unsigned n_layers;  /* of the chain, from the youngest: 1 leaves its parents out */
    unsigned n_threads; /* 0: one a CPU, at most 8 */
    unsigned max_listed;
    /* On the calling thread, some times a second: how much of what there is to check is done. NULL: none. */
    void (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);
    void *opaque;
    const _Atomic bool *cancel; /* NULL: cannot be */
} VmfImageVerifyOptions;

typedef struct {
    unsigned layer; /* of the chain */
    int block;      /* -1: not of a block */
    int64_t page;   /* of the block; -1: bitmaps and digests of a chunk, or what is between the areas */
    char *text;     /* what is wrong, as an error says it; owned */
    int code;       /* VmfErrorCode */
} VmfImageDamage;

typedef struct {
    uint64_t pages_checked;
    uint64_t pages_damaged;
    uint64_t n_damaged; /* all there is: pages, chunks whose bits or digests cannot be used, areas, sums */
    GArray *damage;     /* VmfImageDamage, the first of them; in no order */
    bool sums_checked;  /* the parents were at hand, so that counts and sums of memory could be compared */
} VmfImageVerifyResult;
void vmf_image_verify_result_clear(VmfImageVerifyResult *result);

/*
 * True: all was looked at; whether it is whole is in @result (n_damaged is 0). False: it could not be, or
 * VMF_ERROR_CANCELLED; @result then has what was found until then. Either way it is to be cleared.
 */
bool vmf_image_chain_verify(VmfImageChain *chain, const VmfImageVerifyOptions *options, VmfImageVerifyResult *result,
                            GError **error);

#endif
