/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kvm backend: a VM on /dev/kvm, assembled on the machine's memory. */
#include "machine/kvm.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmferry/error.h>
#include "machine/guest-image.h"
#include "machine/kvm-log.h"

#define API_VERSION 12
/* Three pages that Intel's virtualization needs of guest physical memory, and one more: below the firmware's place. */
#define TSS_ADDRESS 0xfffbd000ul
#define IDENTITY_MAP_ADDRESS 0xfffbc000ull

int vmf_kvm_ioctl(int fd, unsigned long request, void *argument)
{
    int result;

    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result;
}

bool vmf_kvm_call(const VmfMachine *m, int fd, unsigned long request, void *argument, const char *what, GError **error)
{
    if (vmf_kvm_ioctl(fd, request, argument) >= 0)
        return true;
    g_set_error(error, VMF_ERROR, errno == ENOMEM ? VMF_ERROR_MEMORY : VMF_ERROR_UNSUPPORTED, "%s: kvm: %s: %s",
                m->name, what, g_strerror(errno));
    return false;
}

/* ---- the VM ------------------------------------------------------------------------------------------------------ */

static bool open_system(VmfMachine *m, GError **error)
{
    VmfKvm *k = m->kvm;

    k->system_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (k->system_fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: kvm: /dev/kvm: %s", m->name, g_strerror(errno));
        return false;
    }
    int version = ioctl(k->system_fd, KVM_GET_API_VERSION, 0);
    if (version != API_VERSION) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: kvm: its API has version %d, %d is needed", m->name,
                    version, API_VERSION);
        return false;
    }
    k->run_size = (size_t)MAX(ioctl(k->system_fd, KVM_GET_VCPU_MMAP_SIZE, 0), 4096);
    return true;
}

static bool check_extensions(VmfMachine *m, GError **error)
{
    static const struct {
        int number;
        const char *name;
    } needed[] = {
        {KVM_CAP_IRQCHIP, "irqchip"},
        {KVM_CAP_PIT2, "pit2"},
        {KVM_CAP_READONLY_MEM, "readonly-mem"},
        {KVM_CAP_XSAVE, "xsave"},
        {KVM_CAP_XCRS, "xcrs"},
        {KVM_CAP_IMMEDIATE_EXIT, "immediate-exit"},
        {KVM_CAP_DEBUGREGS, "debugregs"},
        {KVM_CAP_MP_STATE, "mp-state"},
        {KVM_CAP_VCPU_EVENTS, "vcpu-events"},
        {KVM_CAP_EXT_CPUID, "ext-cpuid"},
        {KVM_CAP_ADJUST_CLOCK, "adjust-clock"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(needed); i++) {
        if (ioctl(m->kvm->system_fd, KVM_CHECK_EXTENSION, needed[i].number) > 0)
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: kvm: this host's has no %s", m->name, needed[i].name);
        return false;
    }
    return true;
}

static bool create_vm(VmfMachine *m, GError **error)
{
    VmfKvm *k = m->kvm;
    uint64_t identity_map = IDENTITY_MAP_ADDRESS;
    struct kvm_pit_config pit = {0};

    k->vm_fd = vmf_kvm_ioctl(k->system_fd, KVM_CREATE_VM, 0);
    if (k->vm_fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: kvm: create a VM: %s", m->name, g_strerror(errno));
        return false;
    }
    return vmf_kvm_call(m, k->vm_fd, KVM_SET_TSS_ADDR, (void *)TSS_ADDRESS, "set the TSS address", error) &&
           vmf_kvm_call(m, k->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map, "set the identity map", error) &&
           vmf_kvm_call(m, k->vm_fd, KVM_CREATE_IRQCHIP, NULL, "create the interrupt chips", error) &&
           vmf_kvm_call(m, k->vm_fd, KVM_CREATE_PIT2, &pit, "create the PIT", error);
}

bool vmf_kvm_set_memory(VmfMachine *m, bool log, GError **error)
{
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        VmfRamBlock *block = vmf_guest_ram(m->guest, i);
        struct kvm_userspace_memory_region region = {
            .slot = i,
            .flags = i == BLOCK_ROM ? KVM_MEM_READONLY
                     : log          ? KVM_MEM_LOG_DIRTY_PAGES
                                    : 0,
            .guest_phys_addr = vmf_ram_block_guest_address(block),
            .memory_size = vmf_ram_block_size(block),
            .userspace_addr = (uintptr_t)vmf_ram_block_host(block),
        };

        if (!vmf_kvm_call(m, m->kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region, "set a memory slot", error))
            return false;
    }
    return true;
}

/* ---- vCPUs ------------------------------------------------------------------------------------------------------- */

static bool create_vcpu(VmfMachine *m, unsigned index, GError **error)
{
    VmfKvm *k = m->kvm;
    VmfKvmVcpu *vcpu = &k->vcpus[index];

    vcpu->machine = m;
    vcpu->index = index;
    vcpu->fd = vmf_kvm_ioctl(k->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)index);
    if (vcpu->fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: kvm: create vCPU %u: %s", m->name, index,
                    g_strerror(errno));
        return false;
    }
    k->n_vcpus++;
    void *run = mmap(NULL, k->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%s: kvm: map vCPU %u: %s", m->name, index, g_strerror(errno));
        return false;
    }
    vcpu->run = run;
    return true;
}

static bool create_vcpus(VmfMachine *m, unsigned n_vcpus, GError **error)
{
    for (unsigned i = 0; i < n_vcpus; i++) {
        if (!create_vcpu(m, i, error))
            return false;
    }
    if (!vmf_kvm_set_cpuid(m, error))
        return false;
    for (unsigned i = 0; i < n_vcpus; i++) {
        if (!vmf_kvm_reset_vcpu(&m->kvm->vcpus[i], error))
            return false;
    }
    return true;
}

static bool list_msrs(VmfMachine *m, GError **error)
{
    VmfKvm *k = m->kvm;
    struct kvm_msr_list few = {0};

    if (ioctl(k->system_fd, KVM_GET_MSR_INDEX_LIST, &few) < 0 && errno != E2BIG)
        return vmf_kvm_call(m, k->system_fd, KVM_GET_MSR_INDEX_LIST, &few, "list MSRs", error);
    k->msrs = g_malloc0(sizeof(few) + few.nmsrs * sizeof(few.indices[0]));
    k->msrs->nmsrs = few.nmsrs;
    return vmf_kvm_call(m, k->system_fd, KVM_GET_MSR_INDEX_LIST, k->msrs, "list MSRs", error);
}

/* ---- the backend ------------------------------------------------------------------------------------------------- */

static void set_properties(VmfMachine *m)
{
    g_autofree char *vcpus = g_strdup_printf("%u", m->kvm->n_vcpus);

    vmf_guest_set_property(m->guest, "cpu.count", vcpus);
}

static bool kvm_create(VmfMachine *m, const VmfMachineConfig *config, GError **error)
{
    m->kvm = g_new0(VmfKvm, 1);
    m->kvm->system_fd = m->kvm->vm_fd = -1;
    vmf_kvm_write_page_tables(vmf_ram_block_host(vmf_guest_ram(m->guest, BLOCK_ROM)));
    if (!open_system(m, error) || !check_extensions(m, error) || !list_msrs(m, error) || !create_vm(m, error) ||
        !vmf_kvm_set_memory(m, false, error) || !vmf_kvm_log_create(m, config->dirty_log, error) ||
        !create_vcpus(m, MAX(config->vcpus, 1), error) || !vmf_kvm_log_add_vcpus(m, error))
        return false;
    set_properties(m);
    return vmf_kvm_add_devices(m, error) && vmf_kvm_create_threads(m, error);
}

static void kvm_destroy(VmfMachine *m)
{
    VmfKvm *k = m->kvm;

    if (!k)
        return;
    vmf_kvm_end_throttler(m);
    vmf_kvm_log_destroy(m);
    for (unsigned i = 0; i < k->n_vcpus; i++) {
        if (k->vcpus[i].run)
            munmap(k->vcpus[i].run, k->run_size);
        close(k->vcpus[i].fd);
    }
    if (k->vm_fd >= 0)
        close(k->vm_fd);
    if (k->system_fd >= 0)
        close(k->system_fd);
    g_free(k->msrs);
    g_clear_pointer(&m->kvm, g_free);
}

static const char *const dirty_logs[] = {"kvm-bitmap", "kvm-ring", "uffd-wp", NULL};

const VmfBackend vmf_kvm_backend = {
    .name = "kvm",
    .architecture = "x86_64",
    .machine_type = "vmferry-kvm-1",
    .memory_max = 0x70000000, /* the interrupt chips are above */
    .vcpus_max = VMF_VCPUS_MAX,
    .dirty_logs = dirty_logs,
    .image = vmf_guest_image_x86_64,
    .image_size = &vmf_guest_image_x86_64_size,
    .create = kvm_create,
    .destroy = kvm_destroy,
    .kick = vmf_kvm_kick,
    .stopped = vmf_kvm_read_state,
    .throttle = vmf_kvm_throttle,
    .append_state = vmf_kvm_append_state,
};
