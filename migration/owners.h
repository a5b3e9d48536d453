/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who owns state: RAM first, so that its last pages are under way while devices are read, then disks that are copied, then what
 * the embedder added, in the order of the section list. The loop calls handlers and knows nothing else of them.
 */
#ifndef MIGRATION_OWNERS_H
#define MIGRATION_OWNERS_H

#include "migration/save-stream.h"

/*
 * What an owner within the engine may have beside its handlers: records of its own on the main channel, and answers to them.
 * Callbacks that are NULL are skipped.
 */
typedef struct {
    /* Source. An answer of a type that is the owner's: *@taken, which was false, says so. The return path's thread. */
    bool (*answer)(void *opaque, const VmfRecord *record, bool swap, bool *taken, GError **error);
    /* Source: no answer will come any more. Any thread. */
    void (*lost)(void *opaque);
    /* Source, READY has come: false, the target has not said all that it had to say of what this owner sent. */
    bool (*proven)(void *opaque, GError **error);
    /* Target. A record likewise; where it has a payload, that is read here. The session's thread. */
    bool (*record)(void *opaque, VmfRecordReader *reader, const VmfRecord *record, bool *taken, GError **error);
    /* Target, SWITCHOVER has come and all else is right: whatever the guest needs to run here is to be there, for good. */
    bool (*arrived)(void *opaque, GError **error);
    /* Target, at the end: the guest is ours, or will never be (@known), or nobody knows. */
    void (*settled)(void *opaque, bool ours, bool known);
} VmfOwnRecords;

typedef struct {
    const char *name;
    uint32_t instance;
    uint32_t version;
    const VmfSaveHandlers *handlers;
    void *opaque;
    const VmfOwnRecords *records; /* NULL: it has none */
    bool has_section;     /* false for RAM and disks: what they send are records of their own, so they are not in the stream's list */
    size_t downtime;      /* where in VmfStatistics the time that it takes of the stop is noted; 0: with the state */
    VmfSaveStream stream; /* source */
    bool begun;           /* save_prepare or load_setup was called or skipped: cleanup is due */
    /* target: what came of its section */
    uint32_t stream_version;
    uint32_t parts;
    bool complete;
    bool absent; /* the source does not send it, which is fine (is_active) */
    GDestroyNotify free_opaque; /* NULL: the embedder's */
} VmfOwner;

/*
 * The owners of @guest. @ram_handlers and @ram stand for RAM, if the guest has any (NULL otherwise). Not active ones are left out on
 * the source.
 */
GArray *vmf_owners_new(VmfGuest *guest, const VmfSaveHandlers *ram_handlers, void *ram, bool source);
void vmf_owners_free(GArray *owners);
/* Puts an owner within the engine where it belongs: after RAM, ahead of the embedder's. */
void vmf_owners_add(GArray *owners, const VmfOwner *owner);
/* Gives @record to the owner whose it is; *@taken: there is one. */
bool vmf_owners_take(GArray *owners, VmfRecordReader *reader, const VmfRecord *record, bool *taken, GError **error);
bool vmf_owners_answer(GArray *owners, const VmfRecord *record, bool swap, bool *taken, GError **error);

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
