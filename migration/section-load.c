/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/section-load.h"

#include <vmferry/error.h>

void vmf_section_load_init(VmfSectionLoad *load, GArray *owners)
{
    *load = (VmfSectionLoad){.owners = owners, .sum = XXH3_createState()};
    XXH3_64bits_reset(load->sum);
}

bool vmf_section_load_begin(VmfSectionLoad *load, const VmfStaticData *theirs, bool swap, VmfMissing missing, GError **error)
{
    load->theirs = theirs;
    load->swap = swap;
    for (guint i = 0; i < load->owners->len; i++) {
        VmfOwner *owner = vmf_owner(load->owners, i);
        owner->begun = true;
        vmf_device_owner_set_swap(owner, swap);
        if (owner->handlers->load_setup && !owner->handlers->load_setup(owner->opaque, error))
            return false;
    }
    for (guint i = 0; i < load->owners->len; i++) {
        VmfOwner *owner = vmf_owner(load->owners, i);
        if (owner->handlers->static_data_done && !owner->handlers->static_data_done(owner->opaque, missing, error))
            return false;
    }
    return true;
}

/* Sections are numbered by the list in the static data; the check of that made sure that each has an owner. */
static VmfOwner *owner_of(VmfSectionLoad *load, uint32_t id)
{
    const GArray *sections = load->theirs->sections;

    if (id >= sections->len)
        return NULL;
    const VmfStaticSection *section = &g_array_index(sections, VmfStaticSection, id);
    for (guint i = 0; i < load->owners->len; i++) {
        VmfOwner *owner = vmf_owner(load->owners, i);
        if (owner->instance == section->instance && strcmp(owner->name, section->name) == 0)
            return owner;
    }
    return NULL;
}

bool vmf_section_load_give(VmfSectionLoad *load, const VmfSection *section, GError **error)
{
    VmfOwner *owner = owner_of(load, section->id);

    if (!owner || owner->complete || section->part != owner->parts) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "record SECTION: id %u, part %u: %s", section->id, section->part,
                    owner ? "out of order" : "not in the list");
        return false;
    }
    bool last = section->flags & VMF_SECTION_LAST;
    owner->parts++;
    owner->complete = last;
    if (!owner->handlers->load_state)
        return true;
    if (owner->handlers->load_state(owner->opaque, owner->stream_version, section->content, section->length, last, error))
        return true;
    g_prefix_error(error, "section %s %u: ", owner->name, owner->instance);
    return false;
}

bool vmf_section_load_take(VmfSectionLoad *load, const VmfRecord *record, GError **error)
{
    VmfSection section;

    if (!vmf_section_decode(record, load->swap, &section, error))
        return false;
    XXH3_64bits_update(load->sum, record->body, record->checked);
    return vmf_section_load_give(load, &section, error);
}

bool vmf_section_load_check_complete(const VmfSectionLoad *load, GError **error)
{
    for (guint i = 0; i < load->owners->len; i++) {
        const VmfOwner *owner = vmf_owner(load->owners, i);
        if (owner->complete || !owner->has_section || owner->absent)
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "section %s %u: not complete at SWITCHOVER", owner->name, owner->instance);
        return false;
    }
    return true;
}

uint64_t vmf_section_load_sum(const VmfSectionLoad *load)
{
    return XXH3_64bits_digest(load->sum);
}

bool vmf_section_load_check_sum(const VmfSectionLoad *load, uint64_t sum, GError **error)
{
    if (sum == vmf_section_load_sum(load))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_SUM, "device state: sum differs from the source's");
    return false;
}

void vmf_section_load_clear(VmfSectionLoad *load)
{
    for (guint i = 0; i < load->owners->len; i++) {
        VmfOwner *owner = vmf_owner(load->owners, i);
        if (owner->begun && owner->handlers->load_cleanup)
            owner->handlers->load_cleanup(owner->opaque);
    }
    XXH3_freeState(load->sum);
    load->sum = NULL;
}
