/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory of which a part is still elsewhere. Whoever reads it only needs to touch it; but who looks for what was never touched (a
 * source, to leave it out) has to ask here first, and who reads all of it does better to say so ahead, since a page that cannot be had
 * is an error here and a touch of it never returns.
 */
#ifndef RAM_PRESENCE_H
#define RAM_PRESENCE_H

#include "ram/bitmap.h"

typedef struct VmfPresence VmfPresence;

/* Any thread, several calls at once. */
typedef struct {
    /* Adds to @out the pages of the block that may hold something and may not be there yet. */
    bool (*pending)(void *opaque, unsigned block, VmfDirtyBitmap *out, GError **error);
    /* Returns once all of the chunk is there; false: it cannot be had. */
    bool (*ensure)(void *opaque, unsigned block, uint64_t chunk, GError **error);
} VmfPresenceOps;

VmfPresence *vmf_presence_new(const VmfPresenceOps *ops, void *opaque);
VmfPresence *vmf_presence_ref(VmfPresence *presence);
void vmf_presence_unref(VmfPresence *presence); /* NULL is allowed */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfPresence, vmf_presence_unref)
/*
 * No call reaches the ops any more when it returns. @why NULL: all memory is there. Otherwise it never will be: every later call fails with
 * a copy of it.
 */
void vmf_presence_close(VmfPresence *presence, const GError *why);

/* NULL stands for memory that is all there. */
bool vmf_presence_pending(VmfPresence *presence, unsigned block, VmfDirtyBitmap *out, GError **error);
bool vmf_presence_ensure(VmfPresence *presence, unsigned block, uint64_t chunk, GError **error);

#endif
