/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/owners.h"

static void owner_clear(void *p)
{
    VmfOwner *owner = p;

    vmf_save_stream_clear(&owner->stream);
    if (owner->free_opaque)
        owner->free_opaque(owner->opaque);
}

static VmfOwner owner_of(const VmfGuestEntry *entry)
{
    VmfOwner owner = {.name = entry->name, .instance = entry->instance, .version = entry->version, .has_section = true};

    if (entry->state) {
        owner.handlers = vmf_device_handlers();
        owner.opaque = vmf_device_owner_new(entry->state, entry->device);
        owner.free_opaque = vmf_device_owner_free;
    } else {
        owner.handlers = entry->handlers;
        owner.opaque = entry->opaque;
    }
    return owner;
}

GArray *vmf_owners_new(VmfGuest *guest, const VmfSaveHandlers *ram_handlers, void *ram, bool source)
{
    GArray *owners = g_array_new(false, true, sizeof(VmfOwner));

    g_array_set_clear_func(owners, owner_clear);
    if (ram) {
        VmfOwner owner = {.name = VMF_SECTION_RAM,
                          .handlers = ram_handlers,
                          .opaque = ram,
                          .downtime = offsetof(VmfStatistics, downtime_ram_ns)};
        g_array_append_val(owners, owner);
    }
    for (unsigned i = 0; i < vmf_guest_n_entries(guest); i++) {
        VmfOwner owner = owner_of(vmf_guest_entry(guest, i));
        if (source && owner.handlers->is_active && !owner.handlers->is_active(owner.opaque))
            owner_clear(&owner);
        else
            g_array_append_val(owners, owner);
    }
    return owners;
}

void vmf_owners_add(GArray *owners, const VmfOwner *owner)
{
    guint at = 0;

    while (at < owners->len && !vmf_owner(owners, at)->has_section)
        at++;
    g_array_insert_vals(owners, at, owner, 1);
}

bool vmf_owners_take(GArray *owners, VmfRecordReader *reader, const VmfRecord *record, bool *taken, GError **error)
{
    bool good = true;

    *taken = false;
    for (guint i = 0; i < owners->len && good && !*taken; i++) {
        const VmfOwner *owner = vmf_owner(owners, i);
        if (owner->records && owner->records->record)
            good = owner->records->record(owner->opaque, reader, record, taken, error);
    }
    return good;
}

bool vmf_owners_answer(GArray *owners, const VmfRecord *record, bool swap, bool *taken, GError **error)
{
    bool good = true;

    *taken = false;
    for (guint i = 0; i < owners->len && good && !*taken; i++) {
        const VmfOwner *owner = vmf_owner(owners, i);
        if (owner->records && owner->records->answer)
            good = owner->records->answer(owner->opaque, record, swap, taken, error);
    }
    return good;
}

void vmf_owners_free(GArray *owners)
{
    if (owners)
        g_array_unref(owners);
}
