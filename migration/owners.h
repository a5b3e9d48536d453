/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who owns state: RAM first, so that its last pages are under way while devices are read, then what
 * the embedder added, in the order of the section list. The loop calls handlers and knows nothing else of them.
 */
#ifndef MIGRATION_OWNERS_H
#define MIGRATION_OWNERS_H

#include "migration/save-stream.h"

typedef struct {
    const char *name;
    uint32_t instance;
    uint32_t version;
    const VmfSaveHandlers *handlers;
    void *opaque;
    bool has_section;     /* false for RAM: its pages have records of their own, so it is not in the stream's list */
    VmfSaveStream stream; /* source */
    bool begun;           /* save_prepare or load_setup was called or skipped: cleanup is due */
    /* target: what came of its section */
    uint32_t stream_version;
    uint32_t parts;
    bool complete;
    GDestroyNotify free_opaque; /* NULL: the embedder's */
} VmfOwner;

/*
 * The owners of @guest. @ram_handlers and @ram stand for RAM, if the guest has any (NULL otherwise). Not active ones are left out on
 * the source.
 */
GArray *vmf_owners_new(VmfGuest *guest, const VmfSaveHandlers *ram_handlers, void *ram, bool source);
void vmf_owners_free(GArray *owners);

static inline VmfOwner *vmf_owner(GArray *owners, unsigned index)
{
    return &g_array_index(owners, VmfOwner, index);
}

/* Handlers over a declared device; @opaque is freed with the owner. @swap: the order of the stream it will load. */
const VmfSaveHandlers *vmf_device_handlers(void);
void *vmf_device_owner_new(const VmfDeviceState *state, void *device);
void vmf_device_owner_set_swap(VmfOwner *owner, bool swap);
void vmf_device_owner_free(void *opaque);

#endif
