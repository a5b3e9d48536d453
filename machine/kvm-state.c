/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state of the whole VM, in the order in which it has to be read and applied: vCPUs, then chips, then the clock;
 * and back chips, clock, vCPUs. So reading happens at once when the guest has been stopped, and applying at once when
 * the last section is here.
 *
 * Time. On the host that was read, the TSC's offset stays what it was, and the guest's TSC and clock go on as if
 * nothing had been. On another one the clock is moved on by the real time that passed, and the offset is found so that
 * TSC and clock keep their relation: with t the host's TSC, k the guest's clock and o the offset, t + o has to advance
 * as k does,
 *
 *     o1 = t0 + o0 + (k1 - k0) * khz / 10^6 - t1
 *
 * (the kernel's documentation of KVM_VCPU_TSC_OFFSET). Where a kernel cannot say t, the TSC's value itself is set.
 */
#include "machine/kvm.h"
#include <errno.h>
#include <string.h>
#include <vmferry/error.h>

static bool set_vm(VmfMachine *m, unsigned long request, void *argument, const char *what, GError **error)
{
    if (vmf_kvm_ioctl(m->kvm->vm_fd, request, argument) >= 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: %s: load: KVM refuses it: %s", m->name, what,
                g_strerror(errno));
    return false;
}

/* ---- interrupt chips --------------------------------------------------------------------------------------------- */

_Static_assert(sizeof(struct kvm_pic_state) == VMF_PIC_SIZE, "the PIC's registers");
_Static_assert(KVM_IOAPIC_NUM_PINS == VMF_IOAPIC_PINS, "the I/O APIC's pins");

static bool read_chips(VmfMachine *m, GError **error)
{
    VmfKvmChips *s = &m->kvm->wire.chips;
    struct kvm_irqchip chip = {0};

    for (unsigned i = 0; i < 2; i++) {
        chip.chip_id = i == 0 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
        if (!vmf_kvm_call(m, m->kvm->vm_fd, KVM_GET_IRQCHIP, &chip, "read a PIC", error))
            return false;
        memcpy(s->pic + i * VMF_PIC_SIZE, &chip.chip.pic, VMF_PIC_SIZE);
    }
    chip.chip_id = KVM_IRQCHIP_IOAPIC;
    if (!vmf_kvm_call(m, m->kvm->vm_fd, KVM_GET_IRQCHIP, &chip, "read the I/O APIC", error))
        return false;
    s->ioapic_base = chip.chip.ioapic.base_address;
    s->ioapic_select = chip.chip.ioapic.ioregsel;
    s->ioapic_id = chip.chip.ioapic.id;
    s->ioapic_requests = chip.chip.ioapic.irr;
    for (unsigned i = 0; i < VMF_IOAPIC_PINS; i++)
        s->ioapic_redirect[i] = chip.chip.ioapic.redirtbl[i].bits;
    return true;
}

static bool apply_chips(VmfMachine *m, GError **error)
{
    const VmfKvmChips *s = &m->kvm->wire.chips;
    struct kvm_irqchip chip = {0};

    for (unsigned i = 0; i < 2; i++) {
        chip.chip_id = i == 0 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
        memcpy(&chip.chip.pic, s->pic + i * VMF_PIC_SIZE, VMF_PIC_SIZE);
        if (!set_vm(m, KVM_SET_IRQCHIP, &chip, "irqchip", error))
            return false;
    }
    memset(&chip, 0, sizeof(chip));
    chip.chip_id = KVM_IRQCHIP_IOAPIC;
    chip.chip.ioapic.base_address = s->ioapic_base;
    chip.chip.ioapic.ioregsel = s->ioapic_select;
    chip.chip.ioapic.id = s->ioapic_id;
    chip.chip.ioapic.irr = s->ioapic_requests;
    for (unsigned i = 0; i < VMF_IOAPIC_PINS; i++)
        chip.chip.ioapic.redirtbl[i].bits = s->ioapic_redirect[i];
    return set_vm(m, KVM_SET_IRQCHIP, &chip, "irqchip", error);
}

/* ---- PIT --------------------------------------------------------------------------------------------------------- */

static bool read_pit(VmfMachine *m, GError **error)
{
    VmfKvmPit *s = &m->kvm->wire.pit;
    struct kvm_pit_state2 pit;

    if (!vmf_kvm_call(m, m->kvm->vm_fd, KVM_GET_PIT2, &pit, "read the PIT", error))
        return false;
    for (unsigned i = 0; i < 3; i++) {
        const struct kvm_pit_channel_state *c = &pit.channels[i];
        const uint8_t registers[] = {c->count_latched, c->status_latched, c->status, c->read_state, c->write_state,
                                     c->write_latch,   c->rw_mode,        c->mode,   c->bcd,        c->gate};

        s->count[i] = c->count;
        s->latched_count[i] = c->latched_count;
        s->load_time[i] = (uint64_t)c->count_load_time;
        memcpy(s->registers + i * VMF_PIT_REGISTERS, registers, sizeof(registers));
    }
    s->flags = pit.flags;
    return true;
}

static bool apply_pit(VmfMachine *m, GError **error)
{
    const VmfKvmPit *s = &m->kvm->wire.pit;
    struct kvm_pit_state2 pit = {.flags = s->flags};

    for (unsigned i = 0; i < 3; i++) {
        const uint8_t *r = s->registers + i * VMF_PIT_REGISTERS;

        pit.channels[i] = (struct kvm_pit_channel_state){
            .count = s->count[i],
            .latched_count = s->latched_count[i],
            .count_latched = r[0],
            .status_latched = r[1],
            .status = r[2],
            .read_state = r[3],
            .write_state = r[4],
            .write_latch = r[5],
            .rw_mode = r[6],
            .mode = r[7],
            .bcd = r[8],
            .gate = r[9],
            .count_load_time = (int64_t)s->load_time[i],
        };
    }
    return set_vm(m, KVM_SET_PIT2, &pit, "pit", error);
}

/* ---- clock ------------------------------------------------------------------------------------------------------- */

static bool read_clock(VmfMachine *m, GError **error)
{
    VmfKvmClock *s = &m->kvm->wire.clock;
    struct kvm_clock_data clock = {0};

    if (!vmf_kvm_call(m, m->kvm->vm_fd, KVM_GET_CLOCK, &clock, "read the clock", error))
        return false;
    s->clock_ns = clock.clock;
    s->realtime_ns = clock.flags & KVM_CLOCK_REALTIME ? clock.realtime : 0;
    s->host_tsc = clock.flags & KVM_CLOCK_HOST_TSC ? clock.host_tsc : 0;
    memcpy(s->boot_id, m->boot_id, sizeof(s->boot_id));
    return true;
}

static bool apply_clock(VmfMachine *m, GError **error)
{
    const VmfKvmClock *s = &m->kvm->wire.clock;
    struct kvm_clock_data clock = {
        .clock = s->clock_ns,
        .flags = s->realtime_ns ? KVM_CLOCK_REALTIME : 0,
        .realtime = s->realtime_ns,
    };

    return set_vm(m, KVM_SET_CLOCK, &clock, "clock", error);
}

/* The offset of this host that @offset of the other one corresponds to; false: not known. */
static bool offset_here(VmfMachine *m, uint64_t *offset)
{
    const VmfKvmClock *there = &m->kvm->wire.clock;
    struct kvm_clock_data here = {0};

    if (memcmp(there->boot_id, m->boot_id, sizeof(m->boot_id)) == 0)
        return true;
    if (!there->host_tsc || vmf_kvm_ioctl(m->kvm->vm_fd, KVM_GET_CLOCK, &here) < 0 ||
        !(here.flags & KVM_CLOCK_HOST_TSC))
        return false;
    __int128 passed = (__int128)(here.clock - there->clock_ns) * m->kvm->tsc_khz / 1000000;
    *offset = there->host_tsc + *offset + (uint64_t)passed - here.host_tsc;
    return true;
}

static void translate_offsets(VmfMachine *m)
{
    for (unsigned i = 0; i < m->kvm->n_vcpus; i++) {
        VmfKvmCpuState *s = &m->kvm->vcpus[i].wire;

        s->has_tsc_offset = s->has_tsc_offset && offset_here(m, &s->tsc_offset);
    }
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

bool vmf_kvm_read_state(VmfMachine *m, GError **error)
{
    for (unsigned i = 0; i < m->kvm->n_vcpus; i++) {
        if (!vmf_kvm_read_registers(&m->kvm->vcpus[i], error))
            return false;
    }
    return read_chips(m, error) && read_pit(m, error) && read_clock(m, error);
}

bool vmf_kvm_apply_state(VmfMachine *m, GError **error)
{
    if (!apply_chips(m, error) || !apply_pit(m, error) || !apply_clock(m, error))
        return false;
    translate_offsets(m);
    for (unsigned i = 0; i < m->kvm->n_vcpus; i++) {
        if (!vmf_kvm_apply_registers(&m->kvm->vcpus[i], error))
            return false;
    }
    return true;
}
