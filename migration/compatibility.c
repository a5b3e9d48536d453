/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/compatibility.h"

#include <inttypes.h>

#include "block/receive.h"

static void add_blocks(VmfStaticData *data, VmfGuest *guest)
{
    for (unsigned i = 0; i < vmf_guest_n_ram(guest); i++) {
        const VmfRamBlock *ram = vmf_guest_ram(guest, i);
        VmfStaticBlock block = {
            .name = (char *)vmf_ram_block_name(ram),
            .flags = vmf_ram_block_flags(ram) & VMF_RAM_ROM ? VMF_BLOCK_FLAG_ROM : 0,
            .size = vmf_ram_block_size(ram),
            .guest_address = vmf_ram_block_guest_address(ram),
            .page_size = vmf_ram_block_page_size(ram),
        };
        vmf_static_data_add_block(data, &block);
    }
}

VmfStaticData *vmf_static_data_of(VmfGuest *guest, GArray *owners)
{
    VmfStaticData *data = vmf_static_data_new();

    g_strlcpy(data->machine.architecture, vmf_guest_architecture(guest), sizeof(data->machine.architecture));
    data->machine.page_size = 4096;
    data->machine.engine_version = vmf_engine_version();
    vmf_guest_uuid(guest, data->machine.uuid);
    for (unsigned i = 0; i < vmf_guest_n_properties(guest); i++)
        vmf_static_data_add_property(data, vmf_guest_property(guest, i)->key, vmf_guest_property(guest, i)->value);
    add_blocks(data, guest);
    for (unsigned i = 0; i < owners->len; i++) {
        const VmfOwner *owner = vmf_owner(owners, i);
        if (owner->has_section)
            vmf_static_data_add_section(data, owner->name, owner->instance, owner->version);
    }
    return data;
}

static uint32_t sector_bytes(const VmfGuestDisk *disk)
{
    return disk->ops.disk ? vmf_disk_sector_size(disk->ops.disk(disk->opaque)) : 512;
}

void vmf_static_data_add_disks(VmfStaticData *data, VmfGuest *guest, bool (*is_copied)(void *, const char *), void *opaque)
{
    for (unsigned i = 0; i < vmf_guest_n_disks(guest); i++) {
        const VmfGuestDisk *own = vmf_guest_disk(guest, i);
        VmfStaticDisk disk = {
            .name = own->name,
            .flags = is_copied && is_copied(opaque, own->name) ? VMF_WIRE_DISK_COPIED : 0,
            .size = own->ops.size_bytes(own->opaque),
            .sector_bytes = sector_bytes(own),
        };
        vmf_static_data_add_disk(data, &disk);
    }
}

G_GNUC_PRINTF(2, 3) static void differ(GPtrArray *texts, const char *format, ...)
{
    va_list arguments;

    if (texts->len >= VMF_VERDICT_TEXTS_MAX)
        return;
    va_start(arguments, format);
    g_ptr_array_add(texts, g_strdup_vprintf(format, arguments));
    va_end(arguments);
}

static bool is_zero(const uint8_t *uuid)
{
    static const uint8_t zeros[16];
    return memcmp(uuid, zeros, sizeof(zeros)) == 0;
}

static char *uuid_text(const uint8_t *uuid)
{
    GString *text = g_string_new(NULL);

    for (unsigned i = 0; i < 16; i++)
        g_string_append_printf(text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    return g_string_free(text, false);
}

/* A guest without a UUID of its own (all zeros) takes any. */
static void compare_machine(const VmfStaticData *theirs, const VmfStaticData *ours, GPtrArray *texts)
{
    if (strcmp(theirs->machine.architecture, ours->machine.architecture) != 0)
        differ(texts, "machine.architecture: here %s, there %s", ours->machine.architecture, theirs->machine.architecture);
    if (!is_zero(ours->machine.uuid) && memcmp(ours->machine.uuid, theirs->machine.uuid, 16) != 0) {
        g_autofree char *here = uuid_text(ours->machine.uuid), *there = uuid_text(theirs->machine.uuid);
        differ(texts, "machine.uuid: here %s, there %s", here, there);
    }
}

static const char *find_property(const VmfStaticData *data, const char *key)
{
    for (guint i = 0; i < data->properties->len; i++)
        if (strcmp(g_array_index(data->properties, VmfStaticProperty, i).key, key) == 0)
            return g_array_index(data->properties, VmfStaticProperty, i).value;
    return NULL;
}

static void compare_properties(const VmfStaticData *theirs, const VmfStaticData *ours, GPtrArray *texts)
{
    for (guint i = 0; i < ours->properties->len; i++) {
        const VmfStaticProperty *mine = &g_array_index(ours->properties, VmfStaticProperty, i);
        const char *there = find_property(theirs, mine->key);
        if (!there || strcmp(there, mine->value) != 0)
            differ(texts, "%s: here %s, there %s", mine->key, mine->value, there ? there : "nothing");
    }
    for (guint i = 0; i < theirs->properties->len; i++) {
        const VmfStaticProperty *property = &g_array_index(theirs->properties, VmfStaticProperty, i);
        if (!find_property(ours, property->key))
            differ(texts, "%s: here nothing, there %s", property->key, property->value);
    }
}

static void compare_block(const VmfStaticBlock *here, const VmfStaticBlock *there, guint index, GPtrArray *texts)
{
    if (strcmp(here->name, there->name) != 0) {
        differ(texts, "ram.name: block %u: here %s, there %s", index, here->name, there->name);
        return;
    }
    if (here->size != there->size)
        differ(texts, "ram.size: block %s: here %" PRIu64 ", there %" PRIu64, here->name, here->size, there->size);
    if (here->guest_address != there->guest_address)
        differ(texts, "ram.address: block %s: here 0x%" PRIx64 ", there 0x%" PRIx64, here->name, here->guest_address,
               there->guest_address);
    if (here->flags != there->flags)
        differ(texts, "ram.flags: block %s: here %u, there %u", here->name, here->flags, there->flags);
}

static void compare_blocks(const VmfStaticData *theirs, const VmfStaticData *ours, GPtrArray *texts)
{
    if (theirs->blocks->len != ours->blocks->len)
        differ(texts, "ram.blocks: here %u, there %u", ours->blocks->len, theirs->blocks->len);
    for (guint i = 0; i < MIN(theirs->blocks->len, ours->blocks->len); i++)
        compare_block(&g_array_index(ours->blocks, VmfStaticBlock, i), &g_array_index(theirs->blocks, VmfStaticBlock, i), i, texts);
}

static uint32_t minimum_version(const VmfOwner *owner, VmfGuest *guest)
{
    const VmfGuestEntry *entry = vmf_guest_find_entry(guest, owner->name, owner->instance);

    return entry && entry->state ? entry->state->minimum_version : 0;
}

static void compare_section(const VmfStaticSection *there, const VmfOwner *owner, VmfGuest *guest, GPtrArray *texts)
{
    if (there->version > owner->version || there->version < minimum_version(owner, guest))
        differ(texts, "section.version: %s %u: here %u to %u, there %u", there->name, there->instance,
               minimum_version(owner, guest), owner->version, there->version);
}

static VmfOwner *find_owner(GArray *owners, const char *name, uint32_t instance)
{
    for (guint i = 0; i < owners->len; i++) {
        VmfOwner *owner = vmf_owner(owners, i);
        if (owner->has_section && owner->instance == instance && strcmp(owner->name, name) == 0)
            return owner;
    }
    return NULL;
}

void vmf_compatibility_note(const VmfStaticData *theirs, GArray *owners)
{
    for (guint i = 0; i < owners->len; i++)
        vmf_owner(owners, i)->absent = vmf_owner(owners, i)->has_section;
    for (guint i = 0; i < theirs->sections->len; i++) {
        const VmfStaticSection *there = &g_array_index(theirs->sections, VmfStaticSection, i);
        VmfOwner *owner = find_owner(owners, there->name, there->instance);
        if (owner) {
            owner->stream_version = there->version;
            owner->absent = false;
        }
    }
}

static void compare_sections(const VmfStaticData *theirs, GArray *owners, VmfGuest *guest, GPtrArray *texts)
{
    vmf_compatibility_note(theirs, owners);
    for (guint i = 0; i < theirs->sections->len; i++) {
        const VmfStaticSection *there = &g_array_index(theirs->sections, VmfStaticSection, i);
        const VmfOwner *owner = find_owner(owners, there->name, there->instance);
        if (!owner)
            differ(texts, "section.missing: %s %u: here nothing, there version %u", there->name, there->instance, there->version);
        else
            compare_section(there, owner, guest, texts);
    }
    for (guint i = 0; i < owners->len; i++) {
        const VmfOwner *owner = vmf_owner(owners, i);
        bool may_miss = owner->handlers->is_active && !owner->handlers->is_active(owner->opaque);
        if (owner->absent && !may_miss)
            differ(texts, "section.missing: %s %u: here version %u, there nothing", owner->name, owner->instance, owner->version);
    }
}

static void compare_copied_disk(const VmfStaticDisk *there, const VmfGuestDisk *here, VmfReceiveOnto onto, GPtrArray *texts)
{
    VmfDisk *disk = here->ops.disk ? here->ops.disk(here->opaque) : NULL;
    g_autofree char *problem = disk ? vmf_disk_receive_problem(disk, there->size, onto) : NULL;

    if (!disk)
        differ(texts, "disk.place: %s: here nothing that a copy could arrive in, there it is copied", there->name);
    else if (problem)
        differ(texts, "disk.place: %s", problem);
}

static void compare_disk(const VmfStaticDisk *there, VmfGuest *guest, VmfReceiveOnto onto, GPtrArray *texts)
{
    const VmfGuestDisk *here = vmf_guest_find_disk(guest, there->name);

    if (!here) {
        differ(texts, "disk.missing: %s: here nothing, there %" PRIu64 " bytes", there->name, there->size);
        return;
    }
    if (there->sector_bytes != sector_bytes(here))
        differ(texts, "disk.sector: %s: here %u, there %u", there->name, sector_bytes(here), there->sector_bytes);
    else if (there->flags & VMF_WIRE_DISK_COPIED)
        compare_copied_disk(there, here, onto, texts);
    else if (here->ops.size_bytes(here->opaque) != there->size)
        differ(texts, "disk.size: %s: here %" PRIu64 ", there %" PRIu64 ", and it is not copied", there->name,
               here->ops.size_bytes(here->opaque), there->size);
}

static bool names_disk(const VmfStaticData *data, const char *name)
{
    for (guint i = 0; i < data->disks->len; i++)
        if (strcmp(g_array_index(data->disks, VmfStaticDisk, i).name, name) == 0)
            return true;
    return false;
}

static VmfDisk *place_of_copy(const VmfStaticData *theirs, guint i, VmfGuest *guest)
{
    const VmfStaticDisk *there = &g_array_index(theirs->disks, VmfStaticDisk, i);
    const VmfGuestDisk *here = there->flags & VMF_WIRE_DISK_COPIED ? vmf_guest_find_disk(guest, there->name) : NULL;

    return here && here->ops.disk ? here->ops.disk(here->opaque) : NULL;
}

/* Two copies in one place. */
static void compare_places(const VmfStaticData *theirs, VmfGuest *guest, GPtrArray *texts)
{
    for (guint i = 0; i < theirs->disks->len; i++)
        for (guint j = 0; j < i; j++) {
            VmfDisk *one = place_of_copy(theirs, j, guest), *other = place_of_copy(theirs, i, guest);
            if (one && other && vmf_disk_receive_is_same(one, other))
                differ(texts, "disk.place: %s: here in the place of %s, there a disk of its own",
                       g_array_index(theirs->disks, VmfStaticDisk, i).name, g_array_index(theirs->disks, VmfStaticDisk, j).name);
        }
}

static void compare_disks(const VmfStaticData *theirs, VmfGuest *guest, GPtrArray *texts)
{
    VmfReceiveOnto onto = theirs->features_required & VMF_FEATURE_BASES ? VMF_RECEIVE_ONTO_BASE : VMF_RECEIVE_ANEW;

    for (guint i = 0; i < theirs->disks->len; i++)
        compare_disk(&g_array_index(theirs->disks, VmfStaticDisk, i), guest, onto, texts);
    compare_places(theirs, guest, texts);
    for (unsigned i = 0; theirs->disks->len > 0 && i < vmf_guest_n_disks(guest); i++) {
        const VmfGuestDisk *here = vmf_guest_disk(guest, i);
        if (!names_disk(theirs, here->name))
            differ(texts, "disk.missing: %s: here %" PRIu64 " bytes, there nothing", here->name, here->ops.size_bytes(here->opaque));
    }
}

static void compare_features(const VmfStaticData *theirs, GPtrArray *texts)
{
    uint64_t unknown = theirs->features_required & ~VMF_FEATURES_KNOWN;

    if (unknown)
        differ(texts, "static.feature: here 0x%" PRIx64 ", there 0x%" PRIx64 " is required", (uint64_t)VMF_FEATURES_KNOWN,
               theirs->features_required);
}

char **vmf_compatibility_check(const VmfStaticData *theirs, const VmfStaticData *ours, GArray *owners, VmfGuest *guest)
{
    GPtrArray *texts = g_ptr_array_new();

    compare_machine(theirs, ours, texts);
    if (theirs->have_properties)
        compare_properties(theirs, ours, texts);
    compare_blocks(theirs, ours, texts);
    compare_sections(theirs, owners, guest, texts);
    compare_disks(theirs, guest, texts);
    compare_features(theirs, texts);
    g_ptr_array_add(texts, NULL);
    return (char **)g_ptr_array_free(texts, false);
}
