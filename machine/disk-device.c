/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * A slot lives twice: as the guest sees it (live.status), and at the host (host_busy). The command copies what is to be
 * written out of guest memory and gives the request to the disk; its end at the host changes nothing that the guest
 * could see. The guest is told later, by the vCPU's own thread, which then also writes what was read into guest memory:
 *
 *   command ........ the host is done (any time) ........ the guest is told
 *
 * On a machine that counts instructions that is at a fixed count, and the vCPU stands there until the host is done: so
 * the guest's run is the same whatever the storage does. On another it is when the guest looks.
 *
 * A stop waits for the host, never for the guest's being told; what is in between travels with the guest
 * (disk-state.c).
 */
#include "machine/disks.h"

#include "machine/machine-private.h"

static VmfDiskSlot *slot_at(const VmfMachine *m, uint32_t offset)
{
    uint32_t disk = offset / GUEST_DISK_STRIDE;

    return disk < m->n_disks ? &m->disks[disk].slots[offset % GUEST_DISK_STRIDE / GUEST_DISK_SLOT_STRIDE] : NULL;
}
G_STATIC_ASSERT(GUEST_DISK_STRIDE == GUEST_DISK_SLOTS * GUEST_DISK_SLOT_STRIDE);

static bool is_write(uint32_t command)
{
    return command == GUEST_DISK_WRITE || command == GUEST_DISK_WRITE_FUA;
}

static bool is_due(const VmfMachine *m, const VmfDiskSlot *slot)
{
    return slot->live.status == GUEST_DISK_BUSY && slot->live.due <= m->cpu.state.instructions;
}

/* ---- the end of a request ---------------------------------------------------------------------------------------- */

static void on_done(VmfDiskRequest *request, const GError *error)
{
    VmfDiskSlot *slot = request->opaque;
    VmfMachine *m = slot->disk->machine;

    pthread_mutex_lock(&m->lock);
    slot->host_busy = false;
    slot->live.failed = error != NULL;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

/* The host is done with it. False: it has to do with what cannot be had, and nothing may be told any more. */
static bool tell_guest(VmfMachine *m, VmfDiskSlot *slot)
{
    VmfDiskSlotState *s = &slot->live;

    if (s->failed && m->memory_lost)
        return false;
    if (s->command == GUEST_DISK_READ && !s->failed && !vmf_machine_store(m, s->address, slot->data, s->length))
        return false;
    s->status = s->failed ? GUEST_DISK_FAILED : GUEST_DISK_DONE;
    s->due = 0;
    s->failed = false;
    return true;
}

bool vmf_disks_hold_up(const VmfMachine *m)
{
    for (unsigned i = 0; i < m->n_disks * GUEST_DISK_SLOTS; i++) {
        const VmfDiskSlot *slot = &m->disks[i / GUEST_DISK_SLOTS].slots[i % GUEST_DISK_SLOTS];

        if (slot->host_busy && is_due(m, slot))
            return true;
    }
    return false;
}

/* In the order in which they stand, should two be due at one instruction and read into one place. */
bool vmf_disks_settle(VmfMachine *m)
{
    for (unsigned i = 0; i < m->n_disks * GUEST_DISK_SLOTS; i++) {
        VmfDiskSlot *slot = &m->disks[i / GUEST_DISK_SLOTS].slots[i % GUEST_DISK_SLOTS];

        if (is_due(m, slot) && !tell_guest(m, slot)) {
            vmf_vcpu_lose_memory(m);
            return false;
        }
    }
    return true;
}

uint64_t vmf_disks_due(const VmfMachine *m)
{
    uint64_t due = 0;

    for (unsigned i = 0; i < m->n_disks * GUEST_DISK_SLOTS; i++) {
        const VmfDiskSlotState *s = &m->disks[i / GUEST_DISK_SLOTS].slots[i % GUEST_DISK_SLOTS].live;

        if (s->status == GUEST_DISK_BUSY && (due == 0 || s->due < due))
            due = s->due;
    }
    return due;
}

bool vmf_disks_busy(const VmfMachine *m)
{
    for (unsigned i = 0; i < m->n_disks * GUEST_DISK_SLOTS; i++)
        if (m->disks[i / GUEST_DISK_SLOTS].slots[i % GUEST_DISK_SLOTS].host_busy)
            return true;
    return false;
}

/* ---- its beginning ----------------------------------------------------------------------------------------------- */

/* What the guest asks for, as the disk takes it. False: it cannot be. */
static bool translate(VmfMachine *m, VmfDiskSlot *slot)
{
    static const VmfDiskOperation operations[] = {
        [GUEST_DISK_READ] = VMF_DISK_READ,       [GUEST_DISK_WRITE] = VMF_DISK_WRITE,
        [GUEST_DISK_WRITE_FUA] = VMF_DISK_WRITE, [GUEST_DISK_FLUSH] = VMF_DISK_FLUSH,
        [GUEST_DISK_ZERO] = VMF_DISK_ZERO,       [GUEST_DISK_DISCARD] = VMF_DISK_DISCARD,
    };
    const VmfDiskSlotState *s = &slot->live;
    uint64_t sector = (uint64_t)s->sector_high << 32 | s->sector_low;
    bool reads = s->command == GUEST_DISK_READ, writes = is_write(s->command);

    if (s->command < GUEST_DISK_READ || s->command > GUEST_DISK_DISCARD || sector > G_MAXUINT64 / 512)
        return false;
    if ((reads || writes) && (s->length == 0 || s->length > GUEST_DISK_LENGTH_MAX))
        return false;
    if ((reads || writes) && !vmf_machine_has_memory(m, s->address, s->length, reads))
        return false;
    slot->iov = (struct iovec){slot->data, s->length};
    slot->request = (VmfDiskRequest){
        .operation = operations[s->command],
        .fua = s->command == GUEST_DISK_WRITE_FUA,
        .offset = sector * 512,
        .length = s->length,
        .iov = &slot->iov,
        .n_iov = reads || writes,
        .done = on_done,
        .opaque = slot,
    };
    return true;
}

static void begin(VmfMachine *m, VmfDiskSlot *slot, uint32_t command)
{
    VmfDiskSlotState *s = &slot->live;

    if (s->status == GUEST_DISK_BUSY)
        return;
    s->command = command;
    s->status = GUEST_DISK_BUSY;
    s->failed = !translate(m, slot);
    if (!s->failed && is_write(command) && !vmf_machine_load(m, s->address, slot->data, s->length)) {
        vmf_vcpu_lose_memory(m);
        return;
    }
    slot->host_busy = !s->failed;
    if (m->backend->disk_delay) {
        s->due = m->cpu.state.instructions + m->backend->disk_delay;
        m->cpu.due = vmf_disks_due(m);
    }
    if (!s->failed)
        vmf_disk_submit(slot->disk->disk, &slot->request);
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

static uint32_t status_of(VmfMachine *m, VmfDiskSlot *slot)
{
    bool when_looked_at = m->backend->disk_delay == 0;

    if (when_looked_at && slot->live.status == GUEST_DISK_BUSY && !slot->host_busy && !tell_guest(m, slot))
        vmf_vcpu_lose_memory(m);
    return slot->live.status;
}

bool vmf_disks_register_read(VmfMachine *m, uint32_t offset, uint32_t *value)
{
    VmfDiskSlot *slot = slot_at(m, offset);

    if (!slot)
        return false;
    switch (offset % GUEST_DISK_SLOT_STRIDE) {
    case GUEST_DISK_ADDRESS:
        *value = slot->live.address;
        return true;
    case GUEST_DISK_LENGTH:
        *value = slot->live.length;
        return true;
    case GUEST_DISK_SECTOR_LOW:
        *value = slot->live.sector_low;
        return true;
    case GUEST_DISK_SECTOR_HIGH:
        *value = slot->live.sector_high;
        return true;
    case GUEST_DISK_COMMAND:
        *value = slot->live.command;
        return true;
    case GUEST_DISK_STATUS:
        *value = status_of(m, slot);
        return true;
    default:
        return false;
    }
}

/* A busy slot's registers are those of its request. */
static void set(VmfDiskSlot *slot, uint32_t *reg, uint32_t value)
{
    if (slot->live.status != GUEST_DISK_BUSY)
        *reg = value;
}

bool vmf_disks_register_write(VmfMachine *m, uint32_t offset, uint32_t value)
{
    VmfDiskSlot *slot = slot_at(m, offset);

    if (!slot)
        return false;
    switch (offset % GUEST_DISK_SLOT_STRIDE) {
    case GUEST_DISK_ADDRESS:
        set(slot, &slot->live.address, value);
        return true;
    case GUEST_DISK_LENGTH:
        set(slot, &slot->live.length, value);
        return true;
    case GUEST_DISK_SECTOR_LOW:
        set(slot, &slot->live.sector_low, value);
        return true;
    case GUEST_DISK_SECTOR_HIGH:
        set(slot, &slot->live.sector_high, value);
        return true;
    case GUEST_DISK_COMMAND:
        begin(m, slot, value);
        return true;
    default:
        return false;
    }
}
