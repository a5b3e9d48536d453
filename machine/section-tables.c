/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/section-tables.h"

#include <string.h>

#include "machine/machine-private.h"
#ifdef HAVE_KVM_TABLES
#include "machine/kvm.h"
#endif

static const VmfDeviceState *find(const VmfDeviceState *const *states, unsigned n, const char *name)
{
    for (unsigned i = 0; i < n; i++)
        if (strcmp(states[i]->name, name) == 0)
            return states[i];
    return NULL;
}

const VmfDeviceState *vmf_machine_section_table(const char *architecture, const char *name)
{
    if (strcmp(name, vmf_disk_state.name) == 0)
        return &vmf_disk_state;
    if (strcmp(architecture, "rv32") == 0)
        return find(vmf_machine_device_states, VMF_MACHINE_DEVICES, name);
#ifdef HAVE_KVM_TABLES
    if (strcmp(architecture, "x86_64") == 0) {
        const VmfDeviceState *const others[] = {&vmf_kvm_cpu_state, &vmf_console_state, &vmf_beat_state};
        const VmfDeviceState *state = find(vmf_kvm_vm_states, G_N_ELEMENTS(vmf_kvm_vm_states), name);
        return state ? state : find(others, G_N_ELEMENTS(others), name);
    }
#endif
    return NULL;
}
