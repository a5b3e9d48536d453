/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a session reads of a guest. The embedder's tables are copies of our own size (see ops.h), so a callback that is
 * not there is simply NULL.
 */
#ifndef VMFERRY_MIGRATION_GUEST_H
#define VMFERRY_MIGRATION_GUEST_H

#include <vmferry/device-state.h>
#include <vmferry/guest.h>
#include <vmferry/handlers.h>

#include "ram/presence.h"

#define VMF_ARCHITECTURE_MAX 31    /* bytes */
#define VMF_PROPERTY_KEY_MAX 63    /* bytes */
#define VMF_PROPERTY_VALUE_MAX 255 /* bytes */
#define VMF_PROPERTIES_MAX 256
#define VMF_SECTION_NAME_MAX 63 /* bytes */
#define VMF_SECTIONS_MAX 1024   /* of one guest, the one of RAM included */
#define VMF_DISK_NAME_MAX 63    /* bytes */
#define VMF_DISKS_MAX 256

/* What messages call RAM among the owners of state; no embedder can take the name. */
#define VMF_SECTION_RAM "ram"

typedef struct VmfGuestProperty {
    char *key;
    char *value;
} VmfGuestProperty;

/* One owner of state: either @handlers with @opaque, or @state with @device. */
typedef struct VmfGuestEntry {
    char *name;
    uint32_t instance;
    uint32_t version;
    const VmfSaveHandlers *handlers; /* NULL for a device */
    void *opaque;
    const VmfDeviceState *state; /* NULL for handlers */
    void *device;
} VmfGuestEntry;

typedef struct VmfGuestDisk {
    char *name;
    VmfDiskOps ops; /* all of them set */
    void *opaque;
} VmfGuestDisk;

/*
 * What vmf_guest_new, vmf_guest_set_property and vmf_guest_set_dirty_log had no way to say: the first thing that was
 * wrong with their arguments. A session asks before anything else.
 */
bool vmf_guest_check(const VmfGuest *guest, GError **error);

const char *vmf_guest_architecture(const VmfGuest *guest);
/* For a guest without one: that of the stream. */
void vmf_guest_adopt_uuid(VmfGuest *guest, const uint8_t uuid[16]);

const VmfGuestOps *vmf_guest_ops(const VmfGuest *guest);
void *vmf_guest_opaque(const VmfGuest *guest);

/*
 * Where the guest's memory is still being filled: a new reference, or NULL. Set by a session that has started its guest before that (NULL:
 * none any more), which may be while another one begins. Any thread.
 */
VmfPresence *vmf_guest_presence(VmfGuest *guest);
void vmf_guest_set_presence(VmfGuest *guest, VmfPresence *presence);

/* NULL: the guest has none, and cannot be moved while it runs. */
const VmfDirtyLogOps *vmf_guest_dirty_log(const VmfGuest *guest);
void *vmf_guest_dirty_log_opaque(const VmfGuest *guest);

/* In the order in which the keys were first set. */
unsigned vmf_guest_n_properties(const VmfGuest *guest);
const VmfGuestProperty *vmf_guest_property(const VmfGuest *guest, unsigned index);
/* NULL: not set. */
const char *vmf_guest_property_value(const VmfGuest *guest, const char *key);

/* In the order added. Valid until the guest is freed. */
unsigned vmf_guest_n_entries(const VmfGuest *guest);
const VmfGuestEntry *vmf_guest_entry(const VmfGuest *guest, unsigned index);
const VmfGuestEntry *vmf_guest_find_entry(const VmfGuest *guest, const char *name, uint32_t instance);

/* In the order added. Valid until the guest is freed. */
unsigned vmf_guest_n_disks(const VmfGuest *guest);
const VmfGuestDisk *vmf_guest_disk(const VmfGuest *guest, unsigned index);
/* NULL: there is none of that name. */
const VmfGuestDisk *vmf_guest_find_disk(const VmfGuest *guest, const char *name);

#endif
