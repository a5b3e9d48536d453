/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a vCPU begins: in 64-bit mode at CPL0 at the start of the ROM, its number in rdi, all memory below 4 GiB mapped
 * to itself for user code too.
 *
 * The page tables lie in the ROM. Accessed and dirty are set in all of them, so that nobody ever has to write there.
 */
#include "machine/kvm.h"
#include <string.h>

#define PAGE_SIZE 4096u
#define LARGE_PAGE (2u << 20)
#define N_DIRECTORIES 4u

#define PRESENT_WRITE_USER_ACCESSED 0x27u
#define DIRTY_LARGE 0xc0u

#define CR0_LONG_MODE 0x80010033u  /* PG, WP, NE, ET, MP, PE */
#define CR4_LONG_MODE 0x00000620u  /* OSXMMEXCPT, OSFXSR, PAE */
#define EFER_LONG_MODE 0x00000d00u /* NXE, LMA, LME */

static void put_entry(uint8_t *table, unsigned index, uint64_t value)
{
    value = GUINT64_TO_LE(value);
    memcpy(table + index * sizeof(value), &value, sizeof(value));
}

/* One page each: the root, the level below it, and four directories of 2 MiB pages. */
void vmf_kvm_write_page_tables(uint8_t *rom)
{
    const uint64_t base = GUEST_ROM_BASE + GUEST_PAGE_TABLES_OFFSET;
    uint8_t *tables = rom + GUEST_PAGE_TABLES_OFFSET;

    put_entry(tables, 0, (base + PAGE_SIZE) | PRESENT_WRITE_USER_ACCESSED);
    for (unsigned i = 0; i < N_DIRECTORIES; i++)
        put_entry(tables + PAGE_SIZE, i, (base + (2 + i) * PAGE_SIZE) | PRESENT_WRITE_USER_ACCESSED);
    for (uint64_t i = 0; i < N_DIRECTORIES * 512; i++)
        put_entry(tables + 2 * PAGE_SIZE, (unsigned)i, i * LARGE_PAGE | PRESENT_WRITE_USER_ACCESSED | DIRTY_LARGE);
}
_Static_assert(GUEST_PAGE_TABLES_OFFSET + (2 + N_DIRECTORIES) * PAGE_SIZE <= GUEST_PARAMETERS_OFFSET,
               "they fit in the ROM");

static void set_segments(struct kvm_sregs *s)
{
    const struct kvm_segment data = {
        .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};

    s->ds = s->es = s->fs = s->gs = s->ss = data;
    s->cs = data;
    s->cs.selector = 0x08;
    s->cs.type = 11;
    s->cs.db = 0;
    s->cs.l = 1;
}

static bool set_special(VmfKvmVcpu *vcpu, GError **error)
{
    const VmfMachine *m = vcpu->machine;
    struct kvm_sregs s;

    if (!vmf_kvm_call(m, vcpu->fd, KVM_GET_SREGS, &s, "read special registers", error))
        return false;
    set_segments(&s);
    s.cr0 = CR0_LONG_MODE;
    s.cr3 = GUEST_ROM_BASE + GUEST_PAGE_TABLES_OFFSET;
    s.cr4 = CR4_LONG_MODE;
    s.efer = EFER_LONG_MODE;
    return vmf_kvm_call(m, vcpu->fd, KVM_SET_SREGS, &s, "set special registers", error);
}

/* All vCPUs run from the start: nobody has to send the others a start-up interrupt. */
bool vmf_kvm_reset_vcpu(VmfKvmVcpu *vcpu, GError **error)
{
    struct kvm_regs regs = {.rip = GUEST_ROM_BASE, .rflags = 2, .rdi = vcpu->index};
    struct kvm_mp_state state = {KVM_MP_STATE_RUNNABLE};

    return set_special(vcpu, error) &&
           vmf_kvm_call(vcpu->machine, vcpu->fd, KVM_SET_REGS, &regs, "set registers", error) &&
           vmf_kvm_call(vcpu->machine, vcpu->fd, KVM_SET_MP_STATE, &state, "set the run state", error);
}
