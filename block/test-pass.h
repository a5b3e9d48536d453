/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests: a storage that passes everything on to another, and lets the test in. Blocking calls alone, one piece
 * each. */
#ifndef BLOCK_TEST_PASS_H
#define BLOCK_TEST_PASS_H

#include "stream/storage-private.h"

typedef struct {
    void (*flush)(void *opaque);                   /* ahead of each; may be NULL */
    void (*free)(void *opaque, VmfStorage *below); /* what becomes of @below, which it gets; NULL: it is freed */
} PassHooks;

/* Takes over @below. */
VmfStorage *pass_new(VmfStorage *below, const PassHooks *hooks, void *opaque);

#endif
