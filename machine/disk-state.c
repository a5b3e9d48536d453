/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks' devices as the stream has them: each one a section, with the data of reads that the guest has not been told of. */
#include <stddef.h>
#include <string.h>
#include <vmferry/error.h>

#include "machine/disks.h"
#include "machine/machine-private.h"

#define DISK_OF(device) ((VmfMachineDisk *)((char *)(device)-offsetof(VmfMachineDisk, wire)))

static const VmfField disk_fields[] = {
    VMF_FIELD_ARRAY(VmfDiskWire, address, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, length, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, sector_low, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, sector_high, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, command, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, status, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, due, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfDiskWire, failed, VMF_FIELD_BOOL, 1),
    VMF_FIELD_END,
};

static bool has_data(const VmfDiskWire *w, unsigned slot)
{
    return w->status[slot] == GUEST_DISK_BUSY && w->command[slot] == GUEST_DISK_READ && !w->failed[slot];
}

/* A subsection's condition is told the device and nothing else, so each slot has one of its own. */
#define DATA_OF_SLOT(n)                                                                                                \
    static bool data_needed_##n(const void *device)                                                                    \
    {                                                                                                                  \
        return has_data(device, n);                                                                                    \
    }                                                                                                                  \
    static const VmfField data_fields_##n[] = {                                                                        \
        {"data", VMF_FIELD_U8, offsetof(VmfDiskWire, data[n]), GUEST_DISK_LENGTH_MAX, 1},                              \
        VMF_FIELD_END,                                                                                                 \
    };
#define SUBSECTION_OF_SLOT(n)                                                                                          \
    {                                                                                                                  \
        .name = "read-" #n, .version = 1, .minimum_version = 1, .needed = data_needed_##n, .fields = data_fields_##n   \
    }

DATA_OF_SLOT(0)
DATA_OF_SLOT(1)
DATA_OF_SLOT(2)
DATA_OF_SLOT(3)
DATA_OF_SLOT(4)
DATA_OF_SLOT(5)
DATA_OF_SLOT(6)
DATA_OF_SLOT(7)
G_STATIC_ASSERT(GUEST_DISK_SLOTS == 8);

static const VmfSubsection disk_subsections[] = {
    SUBSECTION_OF_SLOT(0), SUBSECTION_OF_SLOT(1), SUBSECTION_OF_SLOT(2), SUBSECTION_OF_SLOT(3), SUBSECTION_OF_SLOT(4),
    SUBSECTION_OF_SLOT(5), SUBSECTION_OF_SLOT(6), SUBSECTION_OF_SLOT(7), {.name = NULL},
};

/* ---- out --------------------------------------------------------------------------------------------------------- */

static void put_slot(VmfDiskWire *w, unsigned i, const VmfDiskSlot *slot)
{
    const VmfDiskSlotState *s = &slot->live;

    w->address[i] = s->address;
    w->length[i] = s->length;
    w->sector_low[i] = s->sector_low;
    w->sector_high[i] = s->sector_high;
    w->command[i] = s->command;
    w->status[i] = s->status;
    w->due[i] = s->due;
    w->failed[i] = s->failed;
    memset(w->data[i], 0, GUEST_DISK_LENGTH_MAX);
    if (has_data(w, i))
        memcpy(w->data[i], slot->data, s->length);
}

/* A stop has drained them; who only looks may come before. */
static void disk_pre_save(void *device)
{
    VmfMachineDisk *disk = DISK_OF(device);
    VmfMachine *m = disk->machine;

    vmf_vcpu_hold(m);
    while (vmf_disks_busy(m))
        pthread_cond_wait(&m->changed, &m->lock);
    for (unsigned i = 0; i < GUEST_DISK_SLOTS; i++)
        put_slot(&disk->wire, i, &disk->slots[i]);
    vmf_vcpu_unhold(m);
}

/* ---- in ---------------------------------------------------------------------------------------------------------- */

static void disk_pre_load(void *device)
{
    memset(((VmfDiskWire *)device)->data, 0, sizeof(((VmfDiskWire *)device)->data));
}

static const char *problem_of(const VmfMachine *m, const VmfDiskWire *w, unsigned i)
{
    if (w->status[i] > GUEST_DISK_FAILED)
        return "there is no such status";
    if (w->status[i] == GUEST_DISK_BUSY && w->due[i] > m->cpu.state.instructions + m->backend->disk_delay)
        return "a request is due later than it can be";
    if (has_data(w, i) && (w->length[i] == 0 || w->length[i] > GUEST_DISK_LENGTH_MAX ||
                           !vmf_machine_has_memory(m, w->address[i], w->length[i], true)))
        return "it reads into what is no memory";
    return NULL;
}

static void take_slot(VmfDiskSlot *slot, const VmfDiskWire *w, unsigned i)
{
    slot->live = (VmfDiskSlotState){
        .address = w->address[i],
        .length = w->length[i],
        .sector_low = w->sector_low[i],
        .sector_high = w->sector_high[i],
        .command = w->command[i],
        .status = w->status[i],
        .due = w->due[i],
        .failed = w->failed[i],
    };
    memcpy(slot->data, w->data[i], GUEST_DISK_LENGTH_MAX);
}

static bool disk_post_load(void *device, GError **error)
{
    VmfMachineDisk *disk = DISK_OF(device);
    VmfMachine *m = disk->machine;
    const char *problem = NULL;

    vmf_vcpu_hold(m);
    for (unsigned i = 0; i < GUEST_DISK_SLOTS && !problem; i++)
        problem = problem_of(m, &disk->wire, i);
    for (unsigned i = 0; i < GUEST_DISK_SLOTS && !problem; i++)
        take_slot(&disk->slots[i], &disk->wire, i);
    vmf_vcpu_unhold(m);
    if (problem)
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: disk %s: load: %s", m->name, vmf_disk_name(disk->disk),
                    problem);
    return !problem;
}

const VmfDeviceState vmf_disk_state = {
    .size = sizeof(VmfDeviceState),
    .name = "disk",
    .version = 1,
    .minimum_version = 1,
    .fields = disk_fields,
    .subsections = disk_subsections,
    .pre_save = disk_pre_save,
    .pre_load = disk_pre_load,
    .post_load = disk_post_load,
};

bool vmf_disks_add_devices(VmfMachine *m, GError **error)
{
    for (unsigned i = 0; i < m->n_disks; i++)
        if (!vmf_guest_add_device(m->guest, &vmf_disk_state, i, &m->disks[i].wire, error))
            return false;
    return m->n_disks == 0 ||
           vmf_guest_add_handlers(m->guest, "dirty-bitmaps", 0, 1, &vmf_bitmap_handlers, m->bitmap_mover, error);
}

bool vmf_disks_append_state(VmfMachine *m, GByteArray *bytes, GError **error)
{
    for (unsigned i = 0; i < m->n_disks; i++)
        if (!vmf_machine_append_device(&vmf_disk_state, &m->disks[i].wire, bytes, error))
            return false;
    return true;
}
