/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A vCPU's own state, between the kernel's structs and VmfKvmCpuState.
 *
 * The order of reading: the run state first, since asking for it lets pending start-up requests take effect; pending
 * events last. The order of applying: the local APIC after the special registers, which say where it is; MSRs after the
 * local APIC, since its mode decides whether the deadline of the TSC timer is taken or ignored; events last.
 */
#include "machine/kvm.h"
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <vmferry/error.h>

#define MSR_TSC 0x10u
#define MSR_SYSTEM_TIME 0x4b564d01u /* kvmclock's */
#define SYSTEM_TIME_ENABLED 1ull

static bool get(VmfKvmVcpu *vcpu, unsigned long request, void *argument, const char *what, GError **error)
{
    return vmf_kvm_call(vcpu->machine, vcpu->fd, request, argument, what, error);
}

/* What the peer sent is refused by KVM. */
static bool set(VmfKvmVcpu *vcpu, unsigned long request, const void *argument, const char *what, GError **error)
{
    if (vmf_kvm_ioctl(vcpu->fd, request, (void *)argument) >= 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: cpu %u: load: %s: KVM refuses it: %s",
                vcpu->machine->name, vcpu->index, what, g_strerror(errno));
    return false;
}

/* ---- general registers ------------------------------------------------------------------------------------------- */

/* X(kernel's name, our index) */
#define GENERAL(X)                                                                                                     \
    X(rax, 0)                                                                                                          \
    X(rbx, 1)                                                                                                          \
    X(rcx, 2) X(rdx, 3) X(rsi, 4) X(rdi, 5) X(rsp, 6) X(rbp, 7) X(r8, 8) X(r9, 9) X(r10, 10) X(r11, 11) X(r12, 12)     \
        X(r13, 13) X(r14, 14) X(r15, 15)

static bool read_general(VmfKvmVcpu *vcpu, GError **error)
{
    VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_regs r;

    if (!get(vcpu, KVM_GET_REGS, &r, "read registers", error))
        return false;
#define X(name, index) s->general[index] = r.name;
    GENERAL(X)
#undef X
    s->rip = r.rip;
    s->rflags = r.rflags;
    return true;
}

static bool apply_general(VmfKvmVcpu *vcpu, GError **error)
{
    const VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_regs r = {.rip = s->rip, .rflags = s->rflags};

#define X(name, index) r.name = s->general[index];
    GENERAL(X)
#undef X
    return set(vcpu, KVM_SET_REGS, &r, "registers", error);
}

/* ---- segments and control registers ------------------------------------------------------------------------------ */

static void read_segment(VmfKvmCpuState *s, unsigned index, const struct kvm_segment *from)
{
    s->segment_base[index] = from->base;
    s->segment_limit[index] = from->limit;
    s->segment_selector[index] = from->selector;
    s->segment_attributes[index] =
        (uint16_t)(from->type | from->s << 4 | from->dpl << 5 | from->present << 7 | from->avl << 8 | from->l << 9 |
                   from->db << 10 | from->g << 11 | from->unusable << 12);
}

static struct kvm_segment segment_of(const VmfKvmCpuState *s, unsigned index)
{
    unsigned a = s->segment_attributes[index];

    return (struct kvm_segment){
        .base = s->segment_base[index],
        .limit = s->segment_limit[index],
        .selector = s->segment_selector[index],
        .type = a & 15,
        .s = a >> 4 & 1,
        .dpl = a >> 5 & 3,
        .present = a >> 7 & 1,
        .avl = a >> 8 & 1,
        .l = a >> 9 & 1,
        .db = a >> 10 & 1,
        .g = a >> 11 & 1,
        .unusable = a >> 12 & 1,
    };
}

/* X(our index, kernel's name) */
#define SEGMENTS(X)                                                                                                    \
    X(VMF_SEG_CS, cs)                                                                                                  \
    X(VMF_SEG_DS, ds)                                                                                                  \
    X(VMF_SEG_ES, es) X(VMF_SEG_FS, fs) X(VMF_SEG_GS, gs) X(VMF_SEG_SS, ss) X(VMF_SEG_TR, tr) X(VMF_SEG_LDT, ldt)
/* X(name in both) */
#define CONTROL(X) X(cr0) X(cr2) X(cr3) X(cr4) X(cr8) X(efer) X(apic_base)

static bool read_special(VmfKvmVcpu *vcpu, GError **error)
{
    VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_sregs r;

    if (!get(vcpu, KVM_GET_SREGS, &r, "read special registers", error))
        return false;
#define X(index, name) read_segment(s, index, &r.name);
    SEGMENTS(X)
#undef X
#define X(name) s->name = r.name;
    CONTROL(X)
#undef X
    s->gdt_base = r.gdt.base;
    s->gdt_limit = r.gdt.limit;
    s->idt_base = r.idt.base;
    s->idt_limit = r.idt.limit;
    memcpy(s->interrupt_bitmap, r.interrupt_bitmap, sizeof(s->interrupt_bitmap));
    return true;
}

static bool apply_special(VmfKvmVcpu *vcpu, GError **error)
{
    const VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_sregs r = {
        .gdt = {.base = s->gdt_base, .limit = s->gdt_limit},
        .idt = {.base = s->idt_base, .limit = s->idt_limit},
    };

#define X(index, name) r.name = segment_of(s, index);
    SEGMENTS(X)
#undef X
#define X(name) r.name = s->name;
    CONTROL(X)
#undef X
    memcpy(r.interrupt_bitmap, s->interrupt_bitmap, sizeof(s->interrupt_bitmap));
    return set(vcpu, KVM_SET_SREGS, &r, "special registers", error);
}

/* ---- extended, debug, local APIC, run state ---------------------------------------------------------------------- */

_Static_assert(sizeof(struct kvm_xsave) == VMF_KVM_XSAVE_SIZE, "the area of KVM_GET_XSAVE");
_Static_assert(sizeof(struct kvm_lapic_state) == VMF_KVM_LAPIC_SIZE, "the local APIC's registers");

static bool read_extended(VmfKvmVcpu *vcpu, GError **error)
{
    VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug;

    if (!get(vcpu, KVM_GET_XSAVE, s->xsave, "read the XSAVE area", error) ||
        !get(vcpu, KVM_GET_XCRS, &xcrs, "read XCRs", error) ||
        !get(vcpu, KVM_GET_DEBUGREGS, &debug, "read debug registers", error) ||
        !get(vcpu, KVM_GET_LAPIC, s->lapic, "read the local APIC", error))
        return false;
    s->xcr0 = 1;
    for (uint32_t i = 0; i < MIN(xcrs.nr_xcrs, KVM_MAX_XCRS); i++)
        s->xcr0 = xcrs.xcrs[i].xcr == 0 ? xcrs.xcrs[i].value : s->xcr0;
    memcpy(s->debug_address, debug.db, sizeof(s->debug_address));
    s->debug_status = debug.dr6;
    s->debug_control = debug.dr7;
    return true;
}

static bool apply_extended(VmfKvmVcpu *vcpu, GError **error)
{
    const VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = s->xcr0}}};
    struct kvm_debugregs debug = {.dr6 = s->debug_status, .dr7 = s->debug_control};

    memcpy(debug.db, s->debug_address, sizeof(s->debug_address));
    return set(vcpu, KVM_SET_XCRS, &xcrs, "XCRs", error) && set(vcpu, KVM_SET_XSAVE, s->xsave, "XSAVE area", error) &&
           set(vcpu, KVM_SET_DEBUGREGS, &debug, "debug registers", error) &&
           set(vcpu, KVM_SET_LAPIC, s->lapic, "local APIC", error);
}

static bool read_run_state(VmfKvmVcpu *vcpu, GError **error)
{
    struct kvm_mp_state state;

    if (!get(vcpu, KVM_GET_MP_STATE, &state, "read the run state", error))
        return false;
    vcpu->wire.mp_state = state.mp_state;
    return true;
}

static bool apply_run_state(VmfKvmVcpu *vcpu, GError **error)
{
    struct kvm_mp_state state = {vcpu->wire.mp_state};

    return set(vcpu, KVM_SET_MP_STATE, &state, "run state", error);
}

/* ---- MSRs, one by one: KVM stops a list at the first it does not like -------------------------------------------- */

typedef struct {
    struct kvm_msrs header;
    struct kvm_msr_entry entry;
} OneMsr;

static bool transfer_msr(VmfKvmVcpu *vcpu, unsigned long request, uint32_t index, uint64_t *value)
{
    OneMsr msr = {.header.nmsrs = 1, .entry = {.index = index, .data = *value}};
    bool done = vmf_kvm_ioctl(vcpu->fd, request, &msr) == 1;

    *value = msr.entry.data;
    return done;
}

/*
 * The TSC has fields of its own. The wall clock's MSRs are orders to write guest memory at once, which nobody may do
 * between the last page and the guest's start; the old number of the system time is another name of the new one, and
 * changes more than its value.
 */
static bool travels(uint32_t index)
{
    return index != MSR_TSC && index != 0x11 && index != 0x12 && index != 0x4b564d00;
}

static bool read_msrs(VmfKvmVcpu *vcpu, GError **error)
{
    VmfKvmCpuState *s = &vcpu->wire;
    const struct kvm_msr_list *all = vcpu->machine->kvm->msrs;

    s->n_msrs = 0;
    memset(s->msr_index, 0, sizeof(s->msr_index));
    memset(s->msr_value, 0, sizeof(s->msr_value));
    for (uint32_t i = 0; i < all->nmsrs; i++) {
        uint64_t value = 0;

        if (!travels(all->indices[i]) || !transfer_msr(vcpu, KVM_GET_MSRS, all->indices[i], &value))
            continue;
        if (s->n_msrs == VMF_KVM_MSRS_MAX) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: cpu %u: save: this host's KVM has more than %u MSRs to save",
                        vcpu->machine->name, vcpu->index, VMF_KVM_MSRS_MAX);
            return false;
        }
        if (all->indices[i] == MSR_SYSTEM_TIME && vcpu->system_time)
            value = vcpu->system_time; /* it has not run since it came */
        s->msr_index[s->n_msrs] = all->indices[i];
        s->msr_value[s->n_msrs++] = value;
    }
    return true;
}

/* One that cannot be set is fine where it has the value already. */
static bool apply_msr(VmfKvmVcpu *vcpu, uint32_t index, uint64_t value, GError **error)
{
    uint64_t wanted = value, here = 0;

    if (transfer_msr(vcpu, KVM_SET_MSRS, index, &value) ||
        (transfer_msr(vcpu, KVM_GET_MSRS, index, &here) && here == wanted))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE,
                "%s: cpu %u: load: MSR 0x%x: KVM refuses the value 0x%" G_GINT64_MODIFIER "x", vcpu->machine->name,
                vcpu->index, index, wanted);
    return false;
}

/*
 * Where KVM is to keep the guest's clock. Some hosts' KVM writes it there at once; but the last pages come while this is loaded, and are
 * then compared with the source's. So KVM learns the place here, which tells whether it takes it, and to write there when the guest runs.
 */
static bool apply_system_time(VmfKvmVcpu *vcpu, uint64_t value, GError **error)
{
    vcpu->system_time = value & SYSTEM_TIME_ENABLED ? value : 0;
    return apply_msr(vcpu, MSR_SYSTEM_TIME, value & ~SYSTEM_TIME_ENABLED, error);
}

/* The last step tells the guest, where it asks, that it was stopped. */
bool vmf_kvm_begin_system_time(VmfKvmVcpu *vcpu)
{
    uint64_t value = vcpu->system_time;

    if (!value)
        return true;
    vcpu->system_time = 0;
    if (!transfer_msr(vcpu, KVM_SET_MSRS, MSR_SYSTEM_TIME, &value))
        return false;
    (void)vmf_kvm_ioctl(vcpu->fd, KVM_KVMCLOCK_CTRL, NULL);
    return true;
}

static bool apply_msrs(VmfKvmVcpu *vcpu, GError **error)
{
    const VmfKvmCpuState *s = &vcpu->wire;

    for (uint32_t i = 0; i < s->n_msrs; i++) {
        bool applied = s->msr_index[i] == MSR_SYSTEM_TIME ? apply_system_time(vcpu, s->msr_value[i], error)
                                                          : apply_msr(vcpu, s->msr_index[i], s->msr_value[i], error);

        if (!applied)
            return false;
    }
    return true;
}

/* ---- the TSC: as an offset to the host's, where KVM can say it ----------------------------------------------------
 */

static bool transfer_tsc_offset(VmfKvmVcpu *vcpu, unsigned long request, uint64_t *offset)
{
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)offset,
    };

    return vmf_kvm_ioctl(vcpu->fd, request, &attribute) == 0;
}

static void read_tsc(VmfKvmVcpu *vcpu)
{
    VmfKvmCpuState *s = &vcpu->wire;

    s->tsc = s->tsc_offset = 0;
    s->has_tsc_offset = transfer_tsc_offset(vcpu, KVM_GET_DEVICE_ATTR, &s->tsc_offset);
    transfer_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &s->tsc);
}

/* vmf_kvm_apply_state() has made the offset one of this host's, or taken it away. */
static bool apply_tsc(VmfKvmVcpu *vcpu, GError **error)
{
    VmfKvmCpuState *s = &vcpu->wire;

    if (s->has_tsc_offset && transfer_tsc_offset(vcpu, KVM_SET_DEVICE_ATTR, &s->tsc_offset))
        return true;
    return apply_msr(vcpu, MSR_TSC, s->tsc, error);
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

static bool read_events(VmfKvmVcpu *vcpu, GError **error)
{
    VmfKvmCpuState *s = &vcpu->wire;
    struct kvm_vcpu_events e;

    if (!get(vcpu, KVM_GET_VCPU_EVENTS, &e, "read events", error))
        return false;
    const uint8_t exception[] = {e.exception.injected, e.exception.nr, e.exception.has_error_code, e.exception.pending,
                                 e.exception_has_payload};
    const uint8_t interrupt[] = {e.interrupt.injected, e.interrupt.nr, e.interrupt.soft, e.interrupt.shadow};
    const uint8_t nmi[] = {e.nmi.injected, e.nmi.pending, e.nmi.masked};
    const uint8_t smi[] = {e.smi.smm, e.smi.pending, e.smi.smm_inside_nmi, e.smi.latched_init};
    memcpy(s->exception, exception, sizeof(exception));
    memcpy(s->interrupt, interrupt, sizeof(interrupt));
    memcpy(s->nmi, nmi, sizeof(nmi));
    memcpy(s->smi, smi, sizeof(smi));
    s->exception_error = e.exception.error_code;
    s->exception_payload = e.exception_payload;
    s->sipi_vector = e.sipi_vector;
    s->event_flags = e.flags;
    return true;
}

static bool apply_events(VmfKvmVcpu *vcpu, GError **error)
{
    const VmfKvmCpuState *s = &vcpu->wire;
    const struct kvm_vcpu_events e = {
        .exception = {s->exception[0], s->exception[1], s->exception[2], s->exception[3], s->exception_error},
        .exception_has_payload = s->exception[4],
        .exception_payload = s->exception_payload,
        .interrupt = {s->interrupt[0], s->interrupt[1], s->interrupt[2], s->interrupt[3]},
        .nmi = {s->nmi[0], s->nmi[1], s->nmi[2]},
        .smi = {s->smi[0], s->smi[1], s->smi[2], s->smi[3]},
        .sipi_vector = s->sipi_vector,
        /* Read, these say what is known; set, what is to be taken over: the rest of the state they would leave alone.
         */
        .flags = s->event_flags | KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
    };

    return set(vcpu, KVM_SET_VCPU_EVENTS, &e, "events", error);
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

bool vmf_kvm_read_registers(VmfKvmVcpu *vcpu, GError **error)
{
    if (!read_run_state(vcpu, error) || !read_general(vcpu, error) || !read_special(vcpu, error) ||
        !read_extended(vcpu, error) || !read_msrs(vcpu, error))
        return false;
    read_tsc(vcpu);
    return read_events(vcpu, error);
}

bool vmf_kvm_apply_registers(VmfKvmVcpu *vcpu, GError **error)
{
    return apply_run_state(vcpu, error) && apply_general(vcpu, error) && apply_special(vcpu, error) &&
           apply_extended(vcpu, error) && apply_tsc(vcpu, error) && apply_msrs(vcpu, error) && apply_events(vcpu, error);
}
