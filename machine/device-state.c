/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine's devices as the stream has them. pre_save copies the live state out, post_load checks what a peer sent
 * and only then copies it in; both under the lock, with the vCPU standing.
 */
#include "machine/machine-private.h"
#include <stddef.h>
#include <string.h>
#include <vmferry/device-state.h>
#include <vmferry/error.h>

#define MACHINE_OF(device, member) ((VmfMachine *)((char *)(device)-offsetof(VmfMachine, member)))

static bool refuse(const VmfMachine *m, const char *device, const char *problem, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: %s: load: %s", m->name, device, problem);
    return false;
}

/* ---- cpu --------------------------------------------------------------------------------------------------------- */

static const VmfField cpu_fields[] = {
    VMF_FIELD_ARRAY(VmfRv32State, x, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, pc, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mstatus, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mie, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mtvec, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mscratch, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mepc, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mcause, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, mtval, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, reserved_address, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfRv32State, reserved, VMF_FIELD_BOOL, 1),
    VMF_FIELD(VmfRv32State, waiting, VMF_FIELD_BOOL, 1),
    VMF_FIELD(VmfRv32State, instructions, VMF_FIELD_U64, 1),
    VMF_FIELD_END,
};

static void cpu_pre_save(void *device)
{
    VmfMachine *m = MACHINE_OF(device, wire_cpu);

    vmf_vcpu_hold(m);
    m->wire_cpu = m->cpu.state;
    vmf_vcpu_unhold(m);
}

static bool cpu_post_load(void *device, GError **error)
{
    VmfMachine *m = MACHINE_OF(device, wire_cpu);
    const char *problem = vmf_rv32_state_problem(&m->wire_cpu);

    if (!problem && !vmf_rv32_is_memory(&m->cpu, m->wire_cpu.pc))
        problem = "pc is outside memory";
    if (problem)
        return refuse(m, "cpu", problem, error);
    vmf_vcpu_hold(m);
    m->wire_cpu.timer_compare = m->cpu.state.timer_compare;
    m->cpu.state = m->wire_cpu;
    m->instructions = m->wire_cpu.instructions;
    m->released = false;
    m->memory_lost = false;
    vmf_vcpu_unhold(m);
    return true;
}

static const VmfDeviceState cpu_state = {
    .size = sizeof(VmfDeviceState),
    .name = "cpu",
    .version = 1,
    .minimum_version = 1,
    .fields = cpu_fields,
    .pre_save = cpu_pre_save,
    .post_load = cpu_post_load,
};

/* ---- timer ------------------------------------------------------------------------------------------------------- */

static const VmfField timer_fields[] = {
    VMF_FIELD(VmfTimer, compare, VMF_FIELD_U64, 1),
    VMF_FIELD_END,
};

static void timer_pre_save(void *device)
{
    VmfMachine *m = MACHINE_OF(device, wire_timer);

    vmf_vcpu_hold(m);
    m->wire_timer.compare = m->cpu.state.timer_compare;
    vmf_vcpu_unhold(m);
}

/* Any count will do. */
static bool timer_post_load(void *device, GError **error)
{
    VmfMachine *m = MACHINE_OF(device, wire_timer);

    vmf_vcpu_hold(m);
    m->cpu.state.timer_compare = m->wire_timer.compare;
    vmf_vcpu_unhold(m);
    return true;
}

static const VmfDeviceState timer_state = {
    .size = sizeof(VmfDeviceState),
    .name = "timer",
    .version = 1,
    .minimum_version = 1,
    .fields = timer_fields,
    .pre_save = timer_pre_save,
    .post_load = timer_post_load,
};

/* ---- console ----------------------------------------------------------------------------------------------------- */

static const VmfField console_fields[] = {
    VMF_FIELD(VmfConsole, lines, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfConsole, length, VMF_FIELD_U32, 1),
    VMF_FIELD_ARRAY(VmfConsole, text, VMF_FIELD_U8, 1),
    VMF_FIELD_END,
};

static void console_pre_save(void *device)
{
    VmfMachine *m = MACHINE_OF(device, wire_console);

    vmf_vcpu_hold(m);
    m->wire_console = m->console;
    vmf_vcpu_unhold(m);
}

static bool console_post_load(void *device, GError **error)
{
    VmfMachine *m = MACHINE_OF(device, wire_console);

    /* A full buffer is flushed at once, so it never travels. */
    if (m->wire_console.length >= sizeof(m->wire_console.text))
        return refuse(m, "console", "the line is longer than its buffer", error);
    vmf_vcpu_hold(m);
    m->console = m->wire_console;
    vmf_vcpu_unhold(m);
    return true;
}

const VmfDeviceState vmf_console_state = {
    .size = sizeof(VmfDeviceState),
    .name = "console",
    .version = 1,
    .minimum_version = 1,
    .fields = console_fields,
    .pre_save = console_pre_save,
    .post_load = console_post_load,
};

/* ---- beat -------------------------------------------------------------------------------------------------------- */

static const VmfField beat_fields[] = {
    VMF_FIELD(VmfBeat, beats, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfBeat, pages_written, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfBeat, errors, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfBeat, error_address, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfBeat, last_monotonic_ns, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfBeat, last_realtime_ns, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfBeat, gap_max_ns, VMF_FIELD_U64, 1),
    VMF_FIELD_ARRAY(VmfBeat, boot_id, VMF_FIELD_U8, 1),
    VMF_FIELD_END,
};

static void beat_pre_save(void *device)
{
    VmfMachine *m = MACHINE_OF(device, wire_beat);

    vmf_vcpu_hold(m);
    m->wire_beat = m->beat;
    vmf_vcpu_unhold(m);
}

/* Counters and clocks of the source: whatever they are, they only ever reach statistics. */
static bool beat_post_load(void *device, GError **error)
{
    VmfMachine *m = MACHINE_OF(device, wire_beat);

    vmf_vcpu_hold(m);
    m->beat = m->wire_beat;
    vmf_vcpu_unhold(m);
    return true;
}

const VmfDeviceState vmf_beat_state = {
    .size = sizeof(VmfDeviceState),
    .name = "beat",
    .version = 1,
    .minimum_version = 1,
    .fields = beat_fields,
    .pre_save = beat_pre_save,
    .post_load = beat_post_load,
};

/* ---- all of them ------------------------------------------------------------------------------------------------- */

const VmfDeviceState *const vmf_machine_device_states[VMF_MACHINE_DEVICES] = {&cpu_state, &timer_state,
                                                                              &vmf_console_state, &vmf_beat_state};

void *vmf_machine_device(VmfMachine *m, unsigned index)
{
    void *const devices[VMF_MACHINE_DEVICES] = {&m->wire_cpu, &m->wire_timer, &m->wire_console, &m->wire_beat};

    return devices[index];
}

bool vmf_rv32_add_devices(VmfMachine *m, GError **error)
{
    for (unsigned i = 0; i < VMF_MACHINE_DEVICES; i++) {
        if (!vmf_guest_add_device(m->guest, vmf_machine_device_states[i], 0, vmf_machine_device(m, i), error))
            return false;
    }
    return vmf_disks_add_devices(m, error);
}

bool vmf_machine_append_device(const VmfDeviceState *state, void *device, GByteArray *bytes, GError **error)
{
    g_autoptr(GByteArray) encoded = vmf_device_state_save(state, device, error);

    if (encoded)
        g_byte_array_append(bytes, encoded->data, encoded->len);
    return encoded != NULL;
}

void vmf_machine_append_beat(VmfMachine *m, GByteArray *bytes)
{
    beat_pre_save(&m->wire_beat);
    const uint64_t counters[] = {m->wire_beat.beats, m->wire_beat.pages_written, m->wire_beat.errors};

    g_byte_array_append(bytes, (const uint8_t *)counters, sizeof(counters));
}

/* All of cpu, timer and console; of the beat its counters, for the rest are clocks of hosts. */
bool vmf_rv32_append_state(VmfMachine *m, GByteArray *bytes, GError **error)
{
    for (unsigned i = 0; i < 3; i++) {
        if (!vmf_machine_append_device(vmf_machine_device_states[i], vmf_machine_device(m, i), bytes, error))
            return false;
    }
    vmf_machine_append_beat(m, bytes);
    return vmf_disks_append_state(m, bytes, error);
}
