/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the embedder told of its guest: kept, checked once, and read-only afterwards. */
#include "migration/guest.h"
#include "migration/device-state.h"
#include "migration/ops.h"

#include <vmferry/error.h>

#include <pthread.h>
#include <stdatomic.h>

#include "stream/pack.h"

_Static_assert(VMF_SECTION_NAME_MAX == VMF_DEVICE_NAME_MAX, "a device's name is its section's name");

/* An entry with the copies that its pointers lead to. */
typedef struct {
    VmfGuestEntry entry;
    VmfSaveHandlers handlers;
    VmfDeviceState state;
} OwnedEntry;

struct VmfGuest {
    char *architecture;
    _Atomic uint64_t uuid[2]; /* halves: a session may set it while another thread asks */
    VmfGuestOps ops;
    void *opaque;
    bool has_dirty_log;
    VmfDirtyLogOps dirty_log;
    void *dirty_log_opaque;
    GPtrArray *properties; /* VmfGuestProperty */
    GPtrArray *blocks;     /* VmfRamBlock */
    GPtrArray *entries;    /* OwnedEntry */
    GPtrArray *disks;      /* VmfGuestDisk */
    pthread_mutex_t lock;  /* of presence */
    VmfPresence *presence; /* or NULL */
    char *fault;           /* the first thing that was wrong with it; NULL: nothing */
};

static void property_free(gpointer data)
{
    VmfGuestProperty *property = data;

    g_free(property->key);
    g_free(property->value);
    g_free(property);
}

static void block_free(gpointer data)
{
    vmf_ram_block_free(data);
}

static void entry_free(gpointer data)
{
    OwnedEntry *owned = data;

    g_free(owned->entry.name);
    g_free(owned);
}

static void disk_free(gpointer data)
{
    VmfGuestDisk *disk = data;

    g_free(disk->name);
    g_free(disk);
}

/* ---- faults of calls that cannot fail ---------------------------------------------------------------------------- */

static void set_fault(VmfGuest *guest, const char *fault)
{
    if (!guest->fault)
        guest->fault = g_strdup(fault);
}

bool vmf_guest_check(const VmfGuest *guest, GError **error)
{
    if (!guest->fault)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "guest: %s", guest->fault);
    return false;
}

/* ---- identity ---------------------------------------------------------------------------------------------------- */

static void set_uuid(VmfGuest *guest, const uint8_t uuid[16])
{
    uint64_t halves[2];

    memcpy(halves, uuid, sizeof(halves));
    atomic_store(&guest->uuid[0], halves[0]);
    atomic_store(&guest->uuid[1], halves[1]);
}

VmfGuest *vmf_guest_new(const char *architecture, const uint8_t uuid[16], const VmfGuestOps *ops, void *opaque)
{
    VmfGuest *guest = g_new0(VmfGuest, 1);

    guest->architecture = g_strdup(architecture);
    set_uuid(guest, uuid);
    guest->opaque = opaque;
    pthread_mutex_init(&guest->lock, NULL);
    guest->properties = g_ptr_array_new_with_free_func(property_free);
    guest->blocks = g_ptr_array_new_with_free_func(block_free);
    guest->entries = g_ptr_array_new_with_free_func(entry_free);
    guest->disks = g_ptr_array_new_with_free_func(disk_free);

    if (!vmf_is_printable(architecture, strlen(architecture), VMF_ARCHITECTURE_MAX))
        set_fault(guest, "architecture: 1 to 31 bytes of printable ASCII");
    if (!vmf_ops_copy(&guest->ops, sizeof(guest->ops), ops, VMF_SIZE_UP_TO(VmfGuestOps, is_running)) ||
        !guest->ops.stop || !guest->ops.start || !guest->ops.is_running)
        set_fault(guest, "run control: stop, start and is_running are required");
    return guest;
}

void vmf_guest_free(VmfGuest *guest)
{
    if (!guest)
        return;
    vmf_presence_unref(guest->presence);
    pthread_mutex_destroy(&guest->lock);
    g_ptr_array_unref(guest->disks);
    g_ptr_array_unref(guest->entries);
    g_ptr_array_unref(guest->blocks);
    g_ptr_array_unref(guest->properties);
    g_free(guest->architecture);
    g_free(guest->fault);
    g_free(guest);
}

const char *vmf_guest_architecture(const VmfGuest *guest)
{
    return guest->architecture;
}

void vmf_guest_uuid(const VmfGuest *guest, uint8_t uuid[16])
{
    uint64_t halves[2] = {atomic_load(&guest->uuid[0]), atomic_load(&guest->uuid[1])};

    memcpy(uuid, halves, sizeof(halves));
}

void vmf_guest_adopt_uuid(VmfGuest *guest, const uint8_t uuid[16])
{
    if (atomic_load(&guest->uuid[0]) == 0 && atomic_load(&guest->uuid[1]) == 0)
        set_uuid(guest, uuid);
}

const VmfGuestOps *vmf_guest_ops(const VmfGuest *guest)
{
    return &guest->ops;
}

void *vmf_guest_opaque(const VmfGuest *guest)
{
    return guest->opaque;
}

/* ---- memory that is on its way ----------------------------------------------------------------------------------- */

VmfPresence *vmf_guest_presence(VmfGuest *guest)
{
    pthread_mutex_lock(&guest->lock);
    VmfPresence *presence = guest->presence ? vmf_presence_ref(guest->presence) : NULL;
    pthread_mutex_unlock(&guest->lock);
    return presence;
}

void vmf_guest_set_presence(VmfGuest *guest, VmfPresence *presence)
{
    pthread_mutex_lock(&guest->lock);
    VmfPresence *before = guest->presence;
    guest->presence = presence ? vmf_presence_ref(presence) : NULL;
    pthread_mutex_unlock(&guest->lock);
    vmf_presence_unref(before);
}

/* ---- the dirty log ----------------------------------------------------------------------------------------------- */

void vmf_guest_set_dirty_log(VmfGuest *guest, const VmfDirtyLogOps *ops, void *opaque)
{
    VmfDirtyLogOps *own = &guest->dirty_log;

    if (!vmf_ops_copy(own, sizeof(*own), ops, VMF_SIZE_UP_TO(VmfDirtyLogOps, clear)) || !own->start || !own->stop ||
        !own->harvest || !own->clear)
        set_fault(guest, "dirty log: start, stop, harvest and clear are required");
    if (!own->name)
        own->name = "unnamed";
    guest->dirty_log_opaque = opaque;
    guest->has_dirty_log = true;
}

const VmfDirtyLogOps *vmf_guest_dirty_log(const VmfGuest *guest)
{
    return guest->has_dirty_log ? &guest->dirty_log : NULL;
}

void *vmf_guest_dirty_log_opaque(const VmfGuest *guest)
{
    return guest->dirty_log_opaque;
}

/* ---- properties -------------------------------------------------------------------------------------------------- */

static VmfGuestProperty *find_property(const VmfGuest *guest, const char *key)
{
    for (unsigned i = 0; i < guest->properties->len; i++) {
        VmfGuestProperty *property = g_ptr_array_index(guest->properties, i);

        if (!strcmp(property->key, key))
            return property;
    }
    return NULL;
}

static bool is_text(const char *text, size_t least, size_t most)
{
    size_t length = strlen(text);

    return length >= least && length <= most && vmf_is_text(text, length);
}

static const char *property_fault(const VmfGuest *guest, const char *key, const char *value)
{
    if (!is_text(key, 1, VMF_PROPERTY_KEY_MAX))
        return "property: a key has 1 to 63 bytes of UTF-8 without control characters";
    if (!is_text(value, 0, VMF_PROPERTY_VALUE_MAX))
        return "property: a value has up to 255 bytes of UTF-8 without control characters";
    if (!find_property(guest, key) && guest->properties->len == VMF_PROPERTIES_MAX)
        return "property: there are more than 256";
    return NULL;
}

void vmf_guest_set_property(VmfGuest *guest, const char *key, const char *value)
{
    const char *fault = property_fault(guest, key, value);
    VmfGuestProperty *property;

    if (fault) {
        set_fault(guest, fault);
        return;
    }
    property = find_property(guest, key);
    if (!property) {
        property = g_new0(VmfGuestProperty, 1);
        property->key = g_strdup(key);
        g_ptr_array_add(guest->properties, property);
    }
    g_free(property->value);
    property->value = g_strdup(value);
}

unsigned vmf_guest_n_properties(const VmfGuest *guest)
{
    return guest->properties->len;
}

const VmfGuestProperty *vmf_guest_property(const VmfGuest *guest, unsigned index)
{
    return g_ptr_array_index(guest->properties, index);
}

const char *vmf_guest_property_value(const VmfGuest *guest, const char *key)
{
    const VmfGuestProperty *property = find_property(guest, key);

    return property ? property->value : NULL;
}

/* ---- RAM --------------------------------------------------------------------------------------------------------- */

bool vmf_guest_add_ram(VmfGuest *guest, VmfRamBlock *block, unsigned *index, GError **error)
{
    const char *name = vmf_ram_block_name(block);

    if (guest->blocks->len == VMF_RAM_BLOCKS_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "guest: RAM block '%s': there are %u already, the most a guest can have", name, VMF_RAM_BLOCKS_MAX);
        return false;
    }
    for (unsigned i = 0; i < guest->blocks->len; i++) {
        if (!strcmp(vmf_ram_block_name(vmf_guest_ram(guest, i)), name)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "guest: RAM block '%s': the name is taken", name);
            return false;
        }
    }
    g_ptr_array_add(guest->blocks, block);
    if (index)
        *index = guest->blocks->len - 1;
    return true;
}

unsigned vmf_guest_n_ram(const VmfGuest *guest)
{
    return guest->blocks->len;
}

VmfRamBlock *vmf_guest_ram(const VmfGuest *guest, unsigned index)
{
    return g_ptr_array_index(guest->blocks, index);
}

/* ---- devices and handlers ---------------------------------------------------------------------------------------- */

static const char *entry_fault(const VmfGuest *guest, const char *name, uint32_t instance)
{
    if (!vmf_is_printable(name, strlen(name), VMF_SECTION_NAME_MAX))
        return "a name has 1 to 63 bytes of printable ASCII";
    if (!strcmp(name, VMF_SECTION_RAM))
        return "the name belongs to the guest's memory";
    if (guest->entries->len == VMF_SECTIONS_MAX - 1)
        return "there are 1024 sections already, with that of RAM, the most a guest can have";
    if (vmf_guest_find_entry(guest, name, instance))
        return "this name and instance are taken";
    return NULL;
}

/* NULL with @error when the section cannot be added. */
static OwnedEntry *add_entry(VmfGuest *guest, const char *name, uint32_t instance, uint32_t version, GError **error)
{
    const char *fault = entry_fault(guest, name, instance);
    OwnedEntry *owned;

    if (fault) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "guest: section '%s' instance %u: %s", name, instance, fault);
        return NULL;
    }
    owned = g_new0(OwnedEntry, 1);
    owned->entry.name = g_strdup(name);
    owned->entry.instance = instance;
    owned->entry.version = version;
    g_ptr_array_add(guest->entries, owned);
    return owned;
}

bool vmf_guest_add_device(VmfGuest *guest, const VmfDeviceState *state, uint32_t instance, void *device, GError **error)
{
    VmfDeviceState own;
    OwnedEntry *owned;

    if (!vmf_device_state_copy(&own, state, error)) {
        g_prefix_error(error, "guest: ");
        return false;
    }
    owned = add_entry(guest, own.name, instance, own.version, error);
    if (!owned)
        return false;
    owned->state = own;
    owned->entry.state = &owned->state;
    owned->entry.device = device;
    return true;
}

bool vmf_guest_add_handlers(VmfGuest *guest, const char *name, uint32_t instance, uint32_t version,
                            const VmfSaveHandlers *handlers, void *opaque, GError **error)
{
    OwnedEntry *owned = add_entry(guest, name, instance, version, error);

    if (!owned)
        return false;
    vmf_ops_copy(&owned->handlers, sizeof(owned->handlers), handlers, sizeof(handlers->size));
    owned->entry.handlers = &owned->handlers;
    owned->entry.opaque = opaque;
    return true;
}

unsigned vmf_guest_n_entries(const VmfGuest *guest)
{
    return guest->entries->len;
}

const VmfGuestEntry *vmf_guest_entry(const VmfGuest *guest, unsigned index)
{
    const OwnedEntry *owned = g_ptr_array_index(guest->entries, index);

    return &owned->entry;
}

const VmfGuestEntry *vmf_guest_find_entry(const VmfGuest *guest, const char *name, uint32_t instance)
{
    for (unsigned i = 0; i < guest->entries->len; i++) {
        const VmfGuestEntry *entry = vmf_guest_entry(guest, i);

        if (entry->instance == instance && !strcmp(entry->name, name))
            return entry;
    }
    return NULL;
}

/* ---- disks ------------------------------------------------------------------------------------------------------- */

static const char *disk_fault(const VmfGuest *guest, const char *name, const VmfDiskOps *ops)
{
    if (!vmf_is_printable(name, strlen(name), VMF_DISK_NAME_MAX))
        return "a name has 1 to 63 bytes of printable ASCII";
    if (strcmp(name, "all") == 0 || strcmp(name, "none") == 0)
        return "all and none are no names: VmfParameters.copy_disks has another meaning for them";
    if (vmf_guest_find_disk(guest, name))
        return "the name is taken";
    if (guest->disks->len == VMF_DISKS_MAX)
        return "there are 256 already";
    if (!ops->size_bytes || !ops->identity || !ops->mark)
        return "size_bytes, identity and mark are required";
    return NULL;
}

bool vmf_guest_add_disk(VmfGuest *guest, const char *name, const VmfDiskOps *ops, void *opaque, GError **error)
{
    VmfGuestDisk *disk;
    VmfDiskOps own;

    vmf_ops_copy(&own, sizeof(own), ops, VMF_SIZE_UP_TO(VmfDiskOps, mark));
    const char *fault = disk_fault(guest, name, &own);
    if (fault) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "guest: disk '%s': %s", name, fault);
        return false;
    }
    disk = g_new0(VmfGuestDisk, 1);
    *disk = (VmfGuestDisk){.name = g_strdup(name), .ops = own, .opaque = opaque};
    g_ptr_array_add(guest->disks, disk);
    return true;
}

unsigned vmf_guest_n_disks(const VmfGuest *guest)
{
    return guest->disks->len;
}

const VmfGuestDisk *vmf_guest_disk(const VmfGuest *guest, unsigned index)
{
    return g_ptr_array_index(guest->disks, index);
}

const VmfGuestDisk *vmf_guest_find_disk(const VmfGuest *guest, const char *name)
{
    for (unsigned i = 0; i < guest->disks->len; i++)
        if (strcmp(vmf_guest_disk(guest, i)->name, name) == 0)
            return vmf_guest_disk(guest, i);
    return NULL;
}
