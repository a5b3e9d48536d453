/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine on KVM: what it tells the engine, what a guest does not notice, what a peer may not say. Moves: tests/.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <vmferry/device-state.h>
#include <vmferry/error.h>
#include "machine/kvm-log.h"
#include "machine/kvm-probe.h"

static const VmfMachineConfig two = {
    .name = "two",
    .backend = "kvm",
    .vcpus = 2,
    .memory_bytes = 16 << 20,
    .dirty_bytes_per_second = 64 << 20,
    .set_bytes = 8 << 20,
    .seed = 7,
};

static VmfMachine *new_machine(const VmfMachineConfig *config)
{
    g_autoptr(GError) error = NULL;
    VmfMachine *m = vmf_machine_new(config, &error);

    if (!m)
        fail_msg("%s", error->message);
    return m;
}

static VmfMachineInfo info_of(VmfMachine *m)
{
    VmfMachineInfo info;

    vmf_machine_get_info(m, &info);
    return info;
}

static void let_live(VmfMachine *m, uint64_t beats)
{
    uint64_t until = info_of(m).beats + beats;

    while (info_of(m).beats < until) {
        assert_true(vmf_machine_is_running(m));
        g_usleep(1000);
    }
}

static void engine_stops(VmfMachine *m)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_guest_ops.stop(m, &error))
        fail_msg("%s", error->message);
}

static void engine_starts(VmfMachine *m)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_guest_ops.start(m, &error))
        fail_msg("%s", error->message);
}

/* ---- moving by hand ---------------------------------------------------------------------------------------------- */

/* Every section in the order in which the machine adds them, with the device behind each. */
typedef struct {
    const VmfDeviceState *state;
    void *device;
} Section;

#define SECTIONS_MAX (3 + VMF_VCPUS_MAX + 2)

static unsigned sections_of(VmfMachine *m, Section sections[SECTIONS_MAX])
{
    unsigned n = 0;

    for (unsigned i = 0; i < 3; i++)
        sections[n++] = (Section){vmf_kvm_vm_states[i], &m->kvm->wire};
    for (unsigned i = 0; i < m->kvm->n_vcpus; i++)
        sections[n++] = (Section){&vmf_kvm_cpu_state, &m->kvm->vcpus[i]};
    sections[n++] = (Section){&vmf_console_state, &m->wire_console};
    sections[n++] = (Section){&vmf_beat_state, &m->wire_beat};
    return n;
}

static void copy_memory(VmfMachine *from, VmfMachine *to)
{
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        VmfRamBlock *block = vmf_guest_ram(vmf_machine_guest(from), i);

        memcpy(vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(to), i)), vmf_ram_block_host(block),
               vmf_ram_block_size(block));
    }
}

/* The engine has stopped @from. False with @error: a section was refused. */
static bool move_state(VmfMachine *from, VmfMachine *to, GError **error)
{
    Section out[SECTIONS_MAX], in[SECTIONS_MAX];
    unsigned n = sections_of(from, out);

    assert_int_equal(sections_of(to, in), n);
    for (unsigned i = 0; i < n; i++) {
        g_autoptr(GByteArray) bytes = vmf_device_state_save(out[i].state, out[i].device, NULL);

        assert_non_null(bytes);
        if (!vmf_device_state_load(in[i].state, in[i].device, out[i].state->version, bytes->data, bytes->len, false,
                                   error))
            return false;
    }
    return true;
}

static void move(VmfMachine *from, VmfMachine *to)
{
    g_autoptr(GError) error = NULL;

    copy_memory(from, to);
    if (!move_state(from, to, &error))
        fail_msg("%s", error->message);
}

/* ---- what the guest does not notice ------------------------------------------------------------------------------ */

static void set_msr(VmfKvmVcpu *vcpu, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs header;
        struct kvm_msr_entry entry;
    } msr = {.header.nmsrs = 1, .entry = {.index = index, .data = value}};

    assert_int_equal(ioctl(vcpu->fd, KVM_SET_MSRS, &msr), 1);
}

/* Different on each vCPU, and unlike what a vCPU begins with. */
static void make_peculiar(VmfKvmVcpu *vcpu)
{
    const uint64_t salt = 0x1000 * (vcpu->index + 1);
    struct kvm_debugregs debug = {.db = {salt, salt + 8, salt + 16, salt + 24}, .dr6 = 0xffff0ff0, .dr7 = 0x400};
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = 3}}};
    struct kvm_mp_state run_state = {vcpu->index == 1 ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE};

    assert_int_equal(ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug), 0);
    assert_int_equal(ioctl(vcpu->fd, KVM_GET_XSAVE, &xsave), 0);
    xsave.region[0] = 0x027f;          /* FCW */
    xsave.region[6] = 0x1f80;          /* MXCSR */
    xsave.region[40] = (uint32_t)salt; /* XMM0 */
    xsave.region[128] |= 3;            /* XSTATE_BV: x87, SSE */
    assert_int_equal(ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs), 0);
    assert_int_equal(ioctl(vcpu->fd, KVM_SET_XSAVE, &xsave), 0);
    set_msr(vcpu, 0xc0000082, 0xffffffff80000000 + salt); /* LSTAR */
    set_msr(vcpu, 0xc0000081, 0x0023001000000000);        /* STAR */
    set_msr(vcpu, 0xc0000102, salt);                      /* KERNEL_GS_BASE */
    set_msr(vcpu, 0x175, salt);                           /* SYSENTER_ESP */
    set_msr(vcpu, 0x277, 0x0007010600070106);             /* PAT: write-combining where it was write-through */
    assert_int_equal(ioctl(vcpu->fd, KVM_SET_MP_STATE, &run_state), 0);
}

#define CLOCK_AHEAD_NS UINT64_C(5000000000000)

/* Chips that the guest leaves as they begin, and a clock that is not that of a VM just made. */
static void make_chips_peculiar(VmfMachine *m)
{
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
    struct kvm_pit_state2 pit;
    struct kvm_clock_data clock = {.clock = CLOCK_AHEAD_NS};

    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_SET_CLOCK, &clock), 0);
    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_GET_IRQCHIP, &chip), 0);
    chip.chip.ioapic.redirtbl[5].bits = 0x0100000000010045; /* masked */
    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_SET_IRQCHIP, &chip), 0);
    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_GET_PIT2, &pit), 0);
    assert_int_equal(pit.channels[0].mode, 2); /* as the guest programmed it */
    pit.channels[2].count = 1234;
    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_SET_PIT2, &pit), 0);
}

static uint64_t msr_of(const VmfKvmCpuState *s, uint32_t index)
{
    for (uint32_t i = 0; i < s->n_msrs; i++) {
        if (s->msr_index[i] == index)
            return s->msr_value[i];
    }
    fail_msg("MSR 0x%x is not among them", index);
    return 0;
}

static void check_peculiar(const VmfKvmVcpu *vcpu)
{
    const uint64_t salt = 0x1000 * (vcpu->index + 1);
    const VmfKvmCpuState *s = &vcpu->wire;
    uint32_t xmm0;

    memcpy(&xmm0, s->xsave + 160, sizeof(xmm0));
    assert_int_equal(s->debug_address[3], salt + 24);
    assert_int_equal(xmm0, salt);
    assert_int_equal(s->xcr0, 3);
    assert_int_equal(msr_of(s, 0xc0000082), 0xffffffff80000000 + salt);
    assert_int_equal(msr_of(s, 0xc0000102), salt);
    assert_int_equal(msr_of(s, 0x175), salt);
    assert_int_equal(s->mp_state, vcpu->index == 1 ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE);
}

#define SAME(member) assert_memory_equal(&a->member, &b->member, sizeof(a->member))

/* All but time: the TSC's value, and what of the local APIC counts down. */
static void check_same_cpu(const VmfKvmCpuState *a, const VmfKvmCpuState *b)
{
    const unsigned current_count = 0x390;

    SAME(general), SAME(rip), SAME(rflags), SAME(segment_base), SAME(segment_limit), SAME(segment_selector);
    SAME(segment_attributes), SAME(gdt_base), SAME(idt_base), SAME(gdt_limit), SAME(idt_limit), SAME(cr0), SAME(cr2),
        SAME(cr3);
    SAME(cr4), SAME(cr8), SAME(efer), SAME(apic_base), SAME(interrupt_bitmap), SAME(xcr0), SAME(debug_address);
    SAME(debug_status), SAME(debug_control), SAME(mp_state), SAME(exception), SAME(exception_error),
        SAME(exception_payload);
    SAME(interrupt), SAME(nmi), SAME(smi), SAME(event_flags), SAME(has_tsc_offset), SAME(tsc_offset), SAME(n_msrs);
    SAME(msr_index), SAME(msr_value), SAME(xsave);
    assert_memory_equal(a->lapic, b->lapic, current_count);
    assert_memory_equal(a->lapic + current_count + 4, b->lapic + current_count + 4,
                        VMF_KVM_LAPIC_SIZE - current_count - 4);
}

static void check_same_vm(const VmfKvmVmState *a, const VmfKvmVmState *b)
{
    SAME(chips), SAME(pit.count), SAME(pit.latched_count), SAME(pit.registers), SAME(pit.flags), SAME(clock.boot_id);
    assert_true(b->clock.clock_ns >= a->clock.clock_ns && a->clock.clock_ns >= CLOCK_AHEAD_NS);
    assert_true(b->clock.clock_ns - a->clock.clock_ns < UINT64_C(100000000000));
}

static void check_same_cpuid(const VmfKvmVcpu *a, const VmfKvmVcpu *b)
{
    enum { ENTRIES = 256 };
    const size_t size = sizeof(struct kvm_cpuid2) + ENTRIES * sizeof(struct kvm_cpuid_entry2);
    g_autofree struct kvm_cpuid2 *here = g_malloc0(size), *there = g_malloc0(size);

    here->nent = there->nent = ENTRIES;
    assert_int_equal(ioctl(a->fd, KVM_GET_CPUID2, here), 0);
    assert_int_equal(ioctl(b->fd, KVM_GET_CPUID2, there), 0);
    assert_int_equal(here->nent, there->nent);
    assert_memory_equal(here, there, sizeof(*here) + here->nent * sizeof(here->entries[0]));
}

/*
 * A fault that is pending and not delivered is raised again by its instruction, and KVM reports it or not: the state is compared at an
 * instant without one.
 */
static void stop_between_faults(VmfMachine *machine)
{
    bool pending = true;

    for (unsigned i = 0; i < 1000 && pending; i++) {
        engine_starts(machine);
        g_usleep(1000);
        engine_stops(machine);
        pending = machine->kvm->vcpus[0].wire.exception[3] || machine->kvm->vcpus[1].wire.exception[3];
    }
    assert_false(pending);
}

static void test_all_state_is_the_same_there(void **state)
{
    g_autoptr(VmfMachine) a = new_machine(&two);
    g_autoptr(VmfMachine) b = new_machine(&two);

    assert_true(vmf_machine_start(a, NULL));
    let_live(a, 50);
    engine_stops(a);
    stop_between_faults(a);
    for (unsigned i = 0; i < 2; i++)
        make_peculiar(&a->kvm->vcpus[i]);
    make_chips_peculiar(a);
    engine_stops(a); /* reads it all anew */
    g_autofree VmfKvm *sent = g_memdup2(a->kvm, sizeof(*sent));
    move(a, b);
    engine_stops(b);
    for (unsigned i = 0; i < 2; i++) {
        check_peculiar(&b->kvm->vcpus[i]);
        check_same_cpu(&sent->vcpus[i].wire, &b->kvm->vcpus[i].wire);
        check_same_cpuid(&a->kvm->vcpus[i], &b->kvm->vcpus[i]);
    }
    check_same_vm(&sent->wire, &b->kvm->wire);
    assert_int_equal(b->kvm->wire.chips.ioapic_redirect[5], 0x0100000000010045);
    assert_int_equal(b->kvm->wire.pit.count[2], 1234);
    assert_int_equal(b->kvm->wire.chips.pic[2], 0xff); /* its mask, as the guest programmed it */
    assert_memory_equal(&a->console, &b->console, sizeof(a->console));
    assert_memory_equal(&a->beat, &b->beat, sizeof(a->beat));
}

/* ---- the same once more, read from KVM by the test itself: what the machine forgot to read it cannot compare ------------- */

#define SYSTEM_TIME_MSR 0x4b564d01u

/* MSRs that are time, or follow from it: TSC, kvmclock's wall clock (orders, not state). */
static bool is_time(uint32_t index)
{
    return index == 0x10 || index == 0x11 || index == 0x12 || index == 0x4b564d00;
}

static bool get_msr(const VmfKvmVcpu *vcpu, uint32_t index, uint64_t *value)
{
    struct {
        struct kvm_msrs header;
        struct kvm_msr_entry entry;
    } msr = {.header.nmsrs = 1, .entry.index = index};
    bool known = ioctl(vcpu->fd, KVM_GET_MSRS, &msr) == 1;

    *value = msr.entry.data;
    if (index == SYSTEM_TIME_MSR && vcpu->system_time) { /* enabled when the guest runs */
        assert_int_equal(vcpu->system_time, *value | 1);
        *value = vcpu->system_time;
    }
    return known;
}

static void compare_msrs(const VmfKvmVcpu *a, const VmfKvmVcpu *b)
{
    const struct kvm_msr_list *all = a->machine->kvm->msrs;
    unsigned n = 0;

    for (uint32_t i = 0; i < all->nmsrs; i++) {
        uint64_t here, there;

        if (is_time(all->indices[i]) || !get_msr(a, all->indices[i], &here))
            continue;
        if (!get_msr(b, all->indices[i], &there) || here != there)
            fail_msg("vCPU %u: MSR 0x%x: 0x%" G_GINT64_MODIFIER "x here, 0x%" G_GINT64_MODIFIER "x there", a->index,
                     all->indices[i], here, there);
        n++;
    }
    assert_true(n > 20);
}

static void *read_state(int fd, unsigned long request, size_t size)
{
    void *state = g_malloc0(size);

    assert_true(ioctl(fd, request, state) >= 0);
    return state;
}

static void compare_ioctl(const VmfKvmVcpu *a, const VmfKvmVcpu *b, unsigned long request, size_t size, const char *what)
{
    g_autofree uint8_t *here = read_state(a->fd, request, size), *there = read_state(b->fd, request, size);

    for (size_t i = 0; i < size; i++) {
        if (here[i] != there[i])
            fail_msg("vCPU %u: %s: octet %zu: 0x%x here, 0x%x there", a->index, what, i, here[i], there[i]);
    }
}

static void compare_lapic(const VmfKvmVcpu *a, const VmfKvmVcpu *b)
{
    g_autofree struct kvm_lapic_state *here = read_state(a->fd, KVM_GET_LAPIC, sizeof(*here));
    g_autofree struct kvm_lapic_state *there = read_state(b->fd, KVM_GET_LAPIC, sizeof(*there));
    const size_t counts_down = 0x390;

    memset(here->regs + counts_down, 0, 4);
    memset(there->regs + counts_down, 0, 4);
    assert_memory_equal(here->regs, there->regs, sizeof(here->regs));
}

static void compare_chips(int a, int b)
{
    for (uint32_t id = 0; id < 3; id++) {
        struct kvm_irqchip here = {.chip_id = id}, there = {.chip_id = id};

        assert_int_equal(ioctl(a, KVM_GET_IRQCHIP, &here), 0);
        assert_int_equal(ioctl(b, KVM_GET_IRQCHIP, &there), 0);
        assert_memory_equal(&here, &there, sizeof(here));
    }
}

#define COMPARE(request, type) compare_ioctl(x, y, request, sizeof(type), #request)

/* The guest has moved and has not run: KVM says the same of it at both ends. */
static void test_kvm_says_the_same_at_both_ends(void **state)
{
    g_autoptr(VmfMachine) a = new_machine(&two);
    g_autoptr(VmfMachine) b = new_machine(&two);

    assert_true(vmf_machine_start(a, NULL));
    let_live(a, 50);
    engine_stops(a);
    stop_between_faults(a);
    for (unsigned i = 0; i < 2; i++)
        make_peculiar(&a->kvm->vcpus[i]);
    make_chips_peculiar(a);
    engine_stops(a);
    move(a, b);
    for (unsigned i = 0; i < 2; i++) {
        const VmfKvmVcpu *x = &a->kvm->vcpus[i], *y = &b->kvm->vcpus[i];

        check_same_cpuid(x, y);
        compare_msrs(x, y);
        COMPARE(KVM_GET_REGS, struct kvm_regs);
        COMPARE(KVM_GET_SREGS, struct kvm_sregs);
        COMPARE(KVM_GET_XCRS, struct kvm_xcrs);
        COMPARE(KVM_GET_XSAVE, struct kvm_xsave);
        COMPARE(KVM_GET_DEBUGREGS, struct kvm_debugregs);
        COMPARE(KVM_GET_MP_STATE, struct kvm_mp_state);
        COMPARE(KVM_GET_VCPU_EVENTS, struct kvm_vcpu_events);
        compare_lapic(x, y);
        assert_int_equal(ioctl(x->fd, KVM_GET_TSC_KHZ, 0), ioctl(y->fd, KVM_GET_TSC_KHZ, 0));
    }
    compare_chips(a->kvm->vm_fd, b->kvm->vm_fd);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

/* Where the guest has told KVM to keep its clock. */
static uint64_t clock_page_address(VmfMachine *m)
{
    uint64_t value;

    assert_true(get_msr(&m->kvm->vcpus[0], SYSTEM_TIME_MSR, &value));
    assert_true(value & 1);
    return value & ~UINT64_C(1);
}

/* What the guest's clock was when KVM wrote the page last. */
static uint64_t clock_page_ns(VmfMachine *m)
{
    const uint8_t *ram = vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(m), BLOCK_RAM));
    uint64_t system_time;

    memcpy(&system_time, ram + (clock_page_address(m) - GUEST_RAM_BASE) + 16, sizeof(system_time));
    return system_time;
}

static uint64_t vm_clock_ns(VmfMachine *m)
{
    struct kvm_clock_data clock;

    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_GET_CLOCK, &clock), 0);
    return clock.clock;
}

/* The guest uses kvmclock: through several hosts it never steps back, neither KVM's nor what the guest reads, nor runs away. */
static void test_kvmclock_does_not_step_back(void **state)
{
    const uint64_t step_max_ns = UINT64_C(30000000000);
    struct kvm_clock_data ahead = {.clock = CLOCK_AHEAD_NS};
    VmfMachine *m = new_machine(&two);

    assert_int_equal(ioctl(m->kvm->vm_fd, KVM_SET_CLOCK, &ahead), 0);
    assert_true(vmf_machine_start(m, NULL));
    for (unsigned i = 0; i < 6; i++) {
        VmfMachine *next = new_machine(&two);

        let_live(m, 30);
        engine_stops(m);
        const uint64_t address = clock_page_address(m), page_ns = clock_page_ns(m), stopped_ns = vm_clock_ns(m);
        assert_in_range(page_ns, CLOCK_AHEAD_NS, stopped_ns);
        move(m, next);
        assert_int_equal(clock_page_address(next), address);
        assert_int_equal(clock_page_ns(next), page_ns);
        assert_in_range(vm_clock_ns(next), stopped_ns, stopped_ns + step_max_ns);
        vmf_machine_free(m);
        m = next;
        engine_starts(m);
        let_live(m, 10);
        assert_in_range(clock_page_ns(m), stopped_ns, stopped_ns + step_max_ns); /* KVM has written it anew */
    }
    assert_int_equal(info_of(m).guest_errors, 0);
    vmf_machine_free(m);
}

/* From a host with another TSC: the guest's goes on from where it was, by what its clock says has passed. */
static void test_time_goes_on_at_another_host(void **state)
{
    const uint64_t begin = UINT64_C(1) << 50;
    g_autoptr(VmfMachine) a = new_machine(&two);
    g_autoptr(VmfMachine) b = new_machine(&two);

    assert_true(vmf_machine_start(a, NULL));
    let_live(a, 50);
    engine_stops(a);
    for (unsigned i = 0; i < 2; i++)
        set_msr(&a->kvm->vcpus[i], 0x10, begin);
    engine_stops(a);
    const uint64_t tsc = a->kvm->vcpus[0].wire.tsc;
    if (tsc < begin) {
        print_message("skip: this host's KVM does not let the TSC be set\n");
        skip();
    }
    memset(a->kvm->wire.clock.boot_id, 0x77, 16);
    if (a->kvm->wire.clock.host_tsc)
        a->kvm->wire.clock.host_tsc += 1000000007; /* that host's is ahead, and its offset the less */
    for (unsigned i = 0; a->kvm->wire.clock.host_tsc && i < 2; i++)
        a->kvm->vcpus[i].wire.tsc_offset -= 1000000007;
    move(a, b);
    engine_stops(b);
    for (unsigned i = 0; i < 2; i++)
        assert_in_range(b->kvm->vcpus[i].wire.tsc, tsc, tsc + 100 * 1000 * (uint64_t)b->kvm->tsc_khz);
    assert_true(vmf_machine_guest_ops.start(b, NULL));
    let_live(b, 50);
    assert_int_equal(info_of(b).guest_errors, 0);
}

static void test_moved_guest_goes_on(void **state)
{
    VmfMachine *m = new_machine(&two);

    assert_true(vmf_machine_start(m, NULL));
    for (unsigned i = 0; i < 5; i++) {
        VmfMachine *next = new_machine(&two);

        let_live(m, 100);
        engine_stops(m);
        move(m, next);
        vmf_machine_free(m);
        m = next;
        assert_true(vmf_machine_guest_ops.start(m, NULL));
    }
    let_live(m, 300);
    assert_int_equal(info_of(m).guest_errors, 0);
    assert_true(info_of(m).pages_written > 8 * 256);
    vmf_machine_free(m);
}

/* Loading does not write guest memory: it has been compared with the source's by then. */
static void test_loading_leaves_memory_alone(void **state)
{
    g_autoptr(VmfMachine) a = new_machine(&two);
    g_autoptr(VmfMachine) b = new_machine(&two);

    assert_true(vmf_machine_start(a, NULL));
    let_live(a, 50);
    engine_stops(a);
    move(a, b);
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        VmfRamBlock *block = vmf_guest_ram(vmf_machine_guest(a), i);

        assert_memory_equal(vmf_ram_block_host(block), vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(b), i)),
                            vmf_ram_block_size(block));
    }
}

/* ---- what a peer may not say ------------------------------------------------------------------------------------- */

static void refused(VmfMachine *from, const char *why)
{
    g_autoptr(VmfMachine) to = new_machine(&two);
    g_autoptr(GError) error = NULL;

    assert_false(move_state(from, to, &error));
    if (!strstr(error->message, why))
        fail_msg("'%s' is not said by '%s'", why, error->message);
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE));
    assert_false(vmf_machine_is_running(to));
}

#define REFUSED(change, why)                                                                                           \
    do {                                                                                                               \
        engine_stops(m);                                                                                               \
        change;                                                                                                        \
        refused(m, why);                                                                                               \
    } while (0)

static void test_state_of_a_peer_is_checked(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&two);
    VmfKvmCpuState *s = &m->kvm->vcpus[1].wire;
    VmfKvmVmState *vm = &m->kvm->wire;

    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 10);
    REFUSED(s->n_msrs = VMF_KVM_MSRS_MAX + 1, "more MSRs");
    REFUSED(s->msr_index[0] = 0x12345678, "does not know");
    REFUSED(s->mp_state = 5, "run state is none");
    REFUSED(s->apic_base += 0x1000, "local APIC is not");
    REFUSED(s->lapic[0x23] = 0, "local APIC is not");
    REFUSED(s->rflags = 0, "rflags");
    REFUSED(s->xcr0 = 2, "rflags or xcr0");
    REFUSED(s->cr4 = UINT64_MAX, "cpu 1: load: special registers: KVM refuses it");
    REFUSED(s->xcr0 = 1 | 1ull << 62, "cpu 1: load: XCRs: KVM refuses it");
    REFUSED(memset(s->xsave + 512, 0xff, 64), "cpu 1: load: XSAVE area: KVM refuses it");
    REFUSED(vm->chips.ioapic_base = 0, "I/O APIC");
    REFUSED(vm->pit.count[0] = 65537, "a counter");
    REFUSED(vm->pit.registers[VMF_PIT_REGISTERS + 7] = 6, "a counter");
}

/* ---- run control ------------------------------------------------------------------------------------------------- */

static void test_a_stopped_guest_stands(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&two);
    uint8_t before[16], after[16];

    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 20);
    assert_true(vmf_machine_stop(m, NULL));
    VmfMachineInfo info = info_of(m);
    assert_true(vmf_machine_hash(m, before, NULL));
    g_usleep(20000);
    assert_true(vmf_machine_hash(m, after, NULL));
    assert_memory_equal(before, after, sizeof(before));
    assert_int_equal(info_of(m).beats, info.beats);
    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 20);
    assert_int_equal(info_of(m).guest_errors, 0);
}

static void test_many_stops(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&two);

    for (unsigned i = 0; i < 300; i++) {
        assert_true(vmf_machine_start(m, NULL));
        g_usleep(i % 5 * 300);
        vmf_vcpu_pass(m);
        assert_true(vmf_machine_stop(m, NULL));
    }
    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 20);
    assert_int_equal(info_of(m).guest_errors, 0);
}

/* Stopped in the middle of a device access: it is completed before the vCPU stands, not left for the next KVM_RUN. */
static void test_an_access_is_completed(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&two);

    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 20);
    pthread_mutex_lock(&m->lock);
    m->holds++;
    g_usleep(10000); /* the next beat is in its handler by then, and waits for the lock */
    bool waits = m->turns[0].executing;
    vmf_kvm_kick(m);
    pthread_mutex_unlock(&m->lock);
    vmf_vcpu_hold(m);
    assert_true(waits);
    assert_false(m->kvm->vcpus[0].unsettled);
    assert_false(m->kvm->vcpus[1].unsettled);
    m->holds--;
    vmf_vcpu_unhold(m);
    let_live(m, 20);
}

static void assert_rests(VmfMachine *m, unsigned percent)
{
    uint64_t ran_ns, rest_ns;

    pthread_mutex_lock(&m->lock);
    ran_ns = m->kvm->throttled_ran_ns;
    rest_ns = m->kvm->throttled_rest_ns;
    pthread_mutex_unlock(&m->lock);
    assert_true(ran_ns > 0);
    if (rest_ns * (100 - percent) < ran_ns * percent)
        fail_msg("throttled by %u %%: ran for %" G_GUINT64_FORMAT " ns, rested for %" G_GUINT64_FORMAT, percent, ran_ns, rest_ns);
}

/* A guest that rests nine tenths of the time beats less often: its timer's interrupts do not add up. However late somebody is in
 * ending its slices, it rests as long as it is to. */
static void test_throttling(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&two);

    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 50);
    vmf_machine_guest_ops.throttle(m, 90);
    g_usleep(50000);
    uint64_t beats = info_of(m).beats;
    g_usleep(300000);
    uint64_t slow = info_of(m).beats - beats;
    vmf_machine_guest_ops.throttle(m, 0);
    assert_in_range(slow, 1, 200);
    assert_rests(m, 90);
    let_live(m, 50);
    vmf_machine_guest_ops.throttle(m, 99);
    assert_true(vmf_machine_stop(m, NULL)); /* also while it rests */
}

static void test_configurations(void **state)
{
    VmfMachineConfig bad[4] = {two, two, two, two};

    bad[0].vcpus = VMF_VCPUS_MAX + 1;
    bad[1].dirty_log = "rv32";
    bad[2].memory_bytes = 2ull << 30;
    bad[3].backend = "vax";
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        assert_null(vmf_machine_new(&bad[i], &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    }
    VmfMachineConfig most = two;
    most.vcpus = VMF_VCPUS_MAX;
    g_autoptr(VmfMachine) m = new_machine(&most);
    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 100);
    assert_int_equal(info_of(m).guest_errors, 0);
}

/* A guest that cannot go on says why, and cannot be started. */
static void test_a_guest_that_fails(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&two);
    g_autoptr(GError) error = NULL;
    struct kvm_sregs s;

    assert_int_equal(ioctl(m->kvm->vcpus[0].fd, KVM_GET_SREGS, &s), 0);
    s.cr3 = GUEST_ROM_BASE; /* no page tables there */
    assert_int_equal(ioctl(m->kvm->vcpus[0].fd, KVM_SET_SREGS, &s), 0);
    assert_true(vmf_machine_start(m, NULL));
    while (vmf_machine_is_running(m))
        g_usleep(1000);
    assert_false(vmf_machine_start(m, &error));
    assert_non_null(strstr(error->message, "vCPU 0: "));
    assert_true(vmf_machine_stop(m, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_state_is_the_same_there),
        cmocka_unit_test(test_kvm_says_the_same_at_both_ends),
        cmocka_unit_test(test_kvmclock_does_not_step_back),
        cmocka_unit_test(test_time_goes_on_at_another_host),
        cmocka_unit_test(test_moved_guest_goes_on),
        cmocka_unit_test(test_loading_leaves_memory_alone),
        cmocka_unit_test(test_state_of_a_peer_is_checked),
        cmocka_unit_test(test_a_stopped_guest_stands),
        cmocka_unit_test(test_many_stops),
        cmocka_unit_test(test_an_access_is_completed),
        cmocka_unit_test(test_throttling),
        cmocka_unit_test(test_configurations),
        cmocka_unit_test(test_a_guest_that_fails),
    };
    g_autoptr(GError) error = NULL;

    if (!vmf_kvm_works(&error)) {
        print_message("skip: %s\n", error->message);
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
