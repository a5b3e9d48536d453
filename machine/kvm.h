/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kvm backend's parts: kvm.c assembles them, kvm-boot.c and kvm-cpuid.c say how a vCPU begins, kvm-vcpu.c runs it,
 * kvm-state.c and kvm-registers.c read and apply its state, kvm-device-state.c has that as sections, kvm-log*.c are the
 * dirty logs and kvm-probe.c tries what a host's KVM can do.
 */
#ifndef MACHINE_KVM_H
#define MACHINE_KVM_H

#include <linux/kvm.h>
#include "machine/kvm-wire.h"
#include "machine/machine-private.h"

typedef struct VmfKvm VmfKvm;

typedef struct {
    VmfMachine *machine;
    unsigned index; /* its number, and its local APIC's */
    int fd;
    struct kvm_run *run;
    bool unsettled;             /* the latest exit is completed by the next KVM_RUN; its thread's */
    uint64_t system_time;       /* what that MSR is to be from the next entry on; 0: what it is */
    VmfKvmCpuState wire;        /* read by guest_stop, or come from a peer */
    struct kvm_dirty_gfn *ring; /* NULL: the log is another one */
    uint32_t ring_next;         /* the log's */
    unsigned ring_stuck;        /* how often it was full and had nothing to take off; under the log's lock */
} VmfKvmVcpu;

/* What belongs to no vCPU; read and come in as theirs. */
typedef struct {
    VmfMachine *machine;
    VmfKvmChips chips;
    VmfKvmPit pit;
    VmfKvmClock clock;
} VmfKvmVmState;

typedef struct VmfKvmLog VmfKvmLog;

struct VmfKvm {
    int system_fd;
    int vm_fd;
    size_t run_size;
    unsigned n_vcpus;
    VmfKvmVcpu vcpus[VMF_VCPUS_MAX];
    struct kvm_msr_list *msrs; /* that this host's KVM saves */
    uint32_t tsc_khz;

    /* Slowing down: guarded by the machine's lock. */
    bool resting; /* the vCPUs are to stand until the slice of rest is over */
    uint64_t throttled_ran_ns, throttled_rest_ns; /* in whole periods of throttling */
    pthread_t throttler;
    bool has_throttler;

    uint64_t loaded; /* bit n: section n came in and is not applied yet */
    VmfKvmVmState wire;

    VmfKvmLog *log;
};

/* kvm.c: an ioctl that a signal does not end. -1 with errno. */
int vmf_kvm_ioctl(int fd, unsigned long request, void *argument);
/* The same; false with @error "MACHINE: kvm: WHAT: cause". */
bool vmf_kvm_call(const VmfMachine *machine, int fd, unsigned long request, void *argument, const char *what,
                  GError **error);
/* Shows all RAM blocks to the VM, their writes recorded by KVM or not. */
bool vmf_kvm_set_memory(VmfMachine *machine, bool log, GError **error);

/* kvm-boot.c */
void vmf_kvm_write_page_tables(uint8_t *rom);
bool vmf_kvm_reset_vcpu(VmfKvmVcpu *vcpu, GError **error);

/* kvm-cpuid.c: gives each vCPU its CPUID; adds the properties that say what it is. */
bool vmf_kvm_set_cpuid(VmfMachine *machine, GError **error);

/* kvm-vcpu.c */
bool vmf_kvm_create_threads(VmfMachine *machine, GError **error);
void vmf_kvm_throttle(VmfMachine *machine);
void vmf_kvm_end_throttler(VmfMachine *machine);
void vmf_kvm_kick(VmfMachine *machine);

/* kvm-state.c: all vCPUs stand. */
bool vmf_kvm_read_state(VmfMachine *machine, GError **error);
bool vmf_kvm_apply_state(VmfMachine *machine, GError **error);
/* kvm-registers.c */
bool vmf_kvm_read_registers(VmfKvmVcpu *vcpu, GError **error);
bool vmf_kvm_apply_registers(VmfKvmVcpu *vcpu, GError **error);
/* Ahead of each entry, by the vCPU's thread: KVM keeps the guest's clock in its memory from here on. False: it refuses to. */
bool vmf_kvm_begin_system_time(VmfKvmVcpu *vcpu);

/* kvm-device-state.c */
bool vmf_kvm_add_devices(VmfMachine *machine, GError **error);
bool vmf_kvm_append_state(VmfMachine *machine, GByteArray *bytes, GError **error);
/* The descriptions of irqchip, pit and clock; the device is VmfKvm.wire. For tests. */
extern const VmfDeviceState *const vmf_kvm_vm_states[3];
/* The description of a vCPU's section; the device is a VmfKvmVcpu. For tests. */
extern const VmfDeviceState vmf_kvm_cpu_state;

#endif
