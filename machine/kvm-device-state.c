/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The KVM machine's state as sections: irqchip, pit, clock, one cpu for each vCPU, console, beat. guest_stop has read
 * it all into the wire structs; a section that comes in is checked and kept there, and all are applied together once
 * the last one is here.
 */
#include "machine/kvm.h"
#include <stddef.h>
#include <string.h>
#include <vmferry/device-state.h>
#include <vmferry/error.h>

enum { SECTION_CHIPS, SECTION_PIT, SECTION_CLOCK, SECTION_CPU };

#define APIC_BASE_ADDRESS 0xfee00000u
#define APIC_BASE_BSP 0x100u
#define APIC_BASE_ENABLED 0x800u
#define APIC_ID_OFFSET 0x23 /* the register's highest octet */
#define IOAPIC_ADDRESS 0xfec00000u
#define PIT_COUNT_MAX 65536u
#define PIT_MODE_MAX 5u
#define PIT_MODE_NONE 0xffu /* never programmed */
#define PIT_RW_MODE_MAX 3u
enum { PIT_RW_MODE = 6, PIT_MODE = 7 }; /* in VmfKvmPit.registers */
#define MP_STATE_MAX 4                  /* runnable to SIPI received: the others are not x86's */

static bool refuse(const VmfMachine *m, const char *device, const char *problem, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: %s: load: %s", m->name, device, problem);
    return false;
}

/* Notes that section @number is here. One that comes a second time begins a new load: what came before is of an old
 * one. */
static bool arrived(VmfMachine *m, unsigned number, GError **error)
{
    VmfKvm *k = m->kvm;
    uint64_t bit = 1ull << number;
    bool applied = true;

    vmf_vcpu_hold(m);
    k->loaded = k->loaded & bit ? bit : k->loaded | bit;
    if (k->loaded == (1ull << (SECTION_CPU + k->n_vcpus)) - 1) {
        k->loaded = 0;
        applied = vmf_kvm_apply_state(m, error);
        m->released = m->released && !applied;
        if (applied) {
            g_clear_pointer(&m->failure, g_free); /* of a guest that is no more */
            m->memory_lost = false;
        }
    }
    vmf_vcpu_unhold(m);
    return applied;
}

/* ---- irqchip, pit, clock ----------------------------------------------------------------------------------------- */

static const VmfField irqchip_fields[] = {
    VMF_FIELD_ARRAY(VmfKvmVmState, chips.pic, VMF_FIELD_U8, 1),
    VMF_FIELD(VmfKvmVmState, chips.ioapic_base, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVmState, chips.ioapic_select, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfKvmVmState, chips.ioapic_id, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfKvmVmState, chips.ioapic_requests, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfKvmVmState, chips.ioapic_redirect, VMF_FIELD_U64, 1),
    VMF_FIELD_END,
};

static bool irqchip_post_load(void *device, GError **error)
{
    const VmfKvmVmState *s = device;

    if (s->chips.ioapic_base != IOAPIC_ADDRESS)
        return refuse(s->machine, "irqchip", "the I/O APIC is not at its place", error);
    return arrived(s->machine, SECTION_CHIPS, error);
}

static const VmfDeviceState irqchip_state = {
    .size = sizeof(VmfDeviceState),
    .name = "irqchip",
    .version = 1,
    .minimum_version = 1,
    .fields = irqchip_fields,
    .post_load = irqchip_post_load,
};

static const VmfField pit_fields[] = {
    VMF_FIELD_ARRAY(VmfKvmVmState, pit.count, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfKvmVmState, pit.latched_count, VMF_FIELD_U16, 1),
    VMF_FIELD_ARRAY(VmfKvmVmState, pit.registers, VMF_FIELD_U8, 1),
    VMF_FIELD_ARRAY(VmfKvmVmState, pit.load_time, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVmState, pit.flags, VMF_FIELD_U32, 1),
    VMF_FIELD_END,
};

static bool pit_post_load(void *device, GError **error)
{
    const VmfKvmVmState *s = device;

    for (unsigned i = 0; i < 3; i++) {
        const uint8_t *r = s->pit.registers + i * VMF_PIT_REGISTERS;

        if (s->pit.count[i] > PIT_COUNT_MAX || r[PIT_RW_MODE] > PIT_RW_MODE_MAX ||
            (r[PIT_MODE] > PIT_MODE_MAX && r[PIT_MODE] != PIT_MODE_NONE))
            return refuse(s->machine, "pit", "a counter is in a state that it cannot be in", error);
    }
    return arrived(s->machine, SECTION_PIT, error);
}

static const VmfDeviceState pit_state = {
    .size = sizeof(VmfDeviceState),
    .name = "pit",
    .version = 1,
    .minimum_version = 1,
    .fields = pit_fields,
    .post_load = pit_post_load,
};

static const VmfField clock_fields[] = {
    VMF_FIELD(VmfKvmVmState, clock.clock_ns, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVmState, clock.realtime_ns, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVmState, clock.host_tsc, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVmState, clock.boot_id, VMF_FIELD_U8, 1),
    VMF_FIELD_END,
};

/* Any time will do. */
static bool clock_post_load(void *device, GError **error)
{
    return arrived(((VmfKvmVmState *)device)->machine, SECTION_CLOCK, error);
}

static const VmfDeviceState clock_state = {
    .size = sizeof(VmfDeviceState),
    .name = "clock",
    .version = 1,
    .minimum_version = 1,
    .fields = clock_fields,
    .post_load = clock_post_load,
};

const VmfDeviceState *const vmf_kvm_vm_states[3] = {&irqchip_state, &pit_state, &clock_state};

/* ---- cpu --------------------------------------------------------------------------------------------------------- */

static const VmfField cpu_fields[] = {
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.general, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.rip, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.rflags, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.segment_base, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.segment_limit, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.segment_selector, VMF_FIELD_U16, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.segment_attributes, VMF_FIELD_U16, 1),
    VMF_FIELD(VmfKvmVcpu, wire.gdt_base, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.idt_base, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.gdt_limit, VMF_FIELD_U16, 1),
    VMF_FIELD(VmfKvmVcpu, wire.idt_limit, VMF_FIELD_U16, 1),
    VMF_FIELD(VmfKvmVcpu, wire.cr0, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.cr2, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.cr3, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.cr4, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.cr8, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.efer, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.apic_base, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.interrupt_bitmap, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.xcr0, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.debug_address, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.debug_status, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.debug_control, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.mp_state, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.exception, VMF_FIELD_U8, 1),
    VMF_FIELD(VmfKvmVcpu, wire.exception_error, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfKvmVcpu, wire.exception_payload, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.interrupt, VMF_FIELD_U8, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.nmi, VMF_FIELD_U8, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.smi, VMF_FIELD_U8, 1),
    VMF_FIELD(VmfKvmVcpu, wire.sipi_vector, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfKvmVcpu, wire.event_flags, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfKvmVcpu, wire.has_tsc_offset, VMF_FIELD_BOOL, 1),
    VMF_FIELD(VmfKvmVcpu, wire.tsc, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.tsc_offset, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfKvmVcpu, wire.n_msrs, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.msr_index, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.msr_value, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.lapic, VMF_FIELD_U8, 1),
    VMF_FIELD_ARRAY(VmfKvmVcpu, wire.xsave, VMF_FIELD_U8, 1),
    VMF_FIELD_END,
};

static bool knows_msrs(const VmfKvm *k, const VmfKvmCpuState *s)
{
    for (uint32_t i = 0; i < s->n_msrs; i++) {
        uint32_t n = 0;

        while (n < k->msrs->nmsrs && k->msrs->indices[n] != s->msr_index[i])
            n++;
        if (n == k->msrs->nmsrs)
            return false;
    }
    return true;
}

static const char *cpu_problem(const VmfKvmVcpu *vcpu)
{
    const VmfKvmCpuState *s = &vcpu->wire;
    uint64_t apic_base = APIC_BASE_ADDRESS | APIC_BASE_ENABLED | (vcpu->index == 0 ? APIC_BASE_BSP : 0);

    if (s->n_msrs > VMF_KVM_MSRS_MAX)
        return "there are more MSRs than the list has room for";
    if (!knows_msrs(vcpu->machine->kvm, s))
        return "there is an MSR that this host does not know";
    if (s->mp_state > MP_STATE_MAX)
        return "the run state is none";
    if (s->apic_base != apic_base || s->lapic[APIC_ID_OFFSET] != vcpu->index)
        return "its local APIC is not the one of this number";
    if (!(s->rflags & 2) || !(s->xcr0 & 1))
        return "rflags or xcr0 lacks a bit that is always one";
    return NULL;
}

static bool cpu_post_load(void *device, GError **error)
{
    const VmfKvmVcpu *vcpu = device;
    const char *problem = cpu_problem(vcpu);

    if (problem)
        return refuse(vcpu->machine, "cpu", problem, error);
    return arrived(vcpu->machine, SECTION_CPU + vcpu->index, error);
}

const VmfDeviceState vmf_kvm_cpu_state = {
    .size = sizeof(VmfDeviceState),
    .name = "cpu",
    .version = 1,
    .minimum_version = 1,
    .fields = cpu_fields,
    .post_load = cpu_post_load,
};

/* ---- all of them ------------------------------------------------------------------------------------------------- */

bool vmf_kvm_add_devices(VmfMachine *m, GError **error)
{
    VmfKvm *k = m->kvm;

    k->wire.machine = m;
    for (unsigned i = 0; i < G_N_ELEMENTS(vmf_kvm_vm_states); i++) {
        if (!vmf_guest_add_device(m->guest, vmf_kvm_vm_states[i], 0, &k->wire, error))
            return false;
    }
    for (unsigned i = 0; i < k->n_vcpus; i++) {
        if (!vmf_guest_add_device(m->guest, &vmf_kvm_cpu_state, i, &k->vcpus[i], error))
            return false;
    }
    return vmf_guest_add_device(m->guest, &vmf_console_state, 0, &m->wire_console, error) &&
           vmf_guest_add_device(m->guest, &vmf_beat_state, 0, &m->wire_beat, error) && vmf_disks_add_devices(m, error);
}

/* Of a vCPU what only its own instructions change; the rest has time in it. */
bool vmf_kvm_append_state(VmfMachine *m, GByteArray *bytes, GError **error)
{
    for (unsigned i = 0; i < m->kvm->n_vcpus; i++) {
        VmfKvmCpuState *s = &m->kvm->vcpus[i].wire;

        if (!vmf_kvm_read_registers(&m->kvm->vcpus[i], error))
            return false;
        g_byte_array_append(bytes, (const uint8_t *)s->general, sizeof(s->general));
        const uint64_t own[] = {s->rip, s->rflags, s->cr0, s->cr2, s->cr3, s->cr4, s->efer, s->xcr0};
        g_byte_array_append(bytes, (const uint8_t *)own, sizeof(own));
    }
    if (!vmf_machine_append_device(&vmf_console_state, &m->wire_console, bytes, error))
        return false;
    vmf_machine_append_beat(m, bytes);
    return vmf_disks_append_state(m, bytes, error);
}
