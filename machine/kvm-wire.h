/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state of a KVM machine in the layout in which it travels: our own, not the kernel's structs. Three areas stay as
 * the processor has them, since that is where their layout is defined: the local APIC's register page, the XSAVE area,
 * and the PICs' registers in the order of KVM's interface.
 */
#ifndef MACHINE_KVM_WIRE_H
#define MACHINE_KVM_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#define VMF_KVM_MSRS_MAX 128
#define VMF_KVM_XSAVE_SIZE                                                                                             \
    4096 /* all that CPUID shows to the guest fits; larger states need a permission that is not asked for */
#define VMF_KVM_LAPIC_SIZE 1024

/* In the order of VmfKvmCpuState.segment_*. */
enum { VMF_SEG_CS, VMF_SEG_DS, VMF_SEG_ES, VMF_SEG_FS, VMF_SEG_GS, VMF_SEG_SS, VMF_SEG_TR, VMF_SEG_LDT, VMF_N_SEGS };

typedef struct {
    uint64_t general[16]; /* rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 */
    uint64_t rip, rflags;

    uint64_t segment_base[VMF_N_SEGS];
    uint32_t segment_limit[VMF_N_SEGS];
    uint16_t segment_selector[VMF_N_SEGS];
    uint16_t segment_attributes[VMF_N_SEGS]; /* bits: 0-3 type, 4 s, 5-6 dpl, 7 present, 8 avl, 9 l, 10 db, 11 g, 12
                                                unusable */
    uint64_t gdt_base, idt_base;
    uint16_t gdt_limit, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    uint64_t interrupt_bitmap[4];
    uint64_t xcr0;

    uint64_t debug_address[4], debug_status, debug_control;
    uint32_t mp_state;

    /* In the order of struct kvm_vcpu_events; what an event is about to do. */
    uint8_t exception[5]; /* injected, vector, has error code, pending, has payload */
    uint32_t exception_error;
    uint64_t exception_payload;
    uint8_t interrupt[4]; /* injected, vector, soft, shadow */
    uint8_t nmi[3];       /* injected, pending, masked */
    uint8_t smi[4];       /* in SMM, pending, SMM inside NMI, latched INIT */
    uint32_t sipi_vector;
    uint32_t event_flags;

    bool has_tsc_offset;
    uint64_t tsc, tsc_offset;
    uint32_t n_msrs;
    uint32_t msr_index[VMF_KVM_MSRS_MAX];
    uint64_t msr_value[VMF_KVM_MSRS_MAX];
    uint8_t lapic[VMF_KVM_LAPIC_SIZE];
    uint8_t xsave[VMF_KVM_XSAVE_SIZE];
} VmfKvmCpuState;

#define VMF_PIC_SIZE 16
#define VMF_PIT_REGISTERS 10
#define VMF_IOAPIC_PINS 24

typedef struct {
    uint8_t pic[2 * VMF_PIC_SIZE];
    uint64_t ioapic_base;
    uint32_t ioapic_select, ioapic_id, ioapic_requests;
    uint64_t ioapic_redirect[VMF_IOAPIC_PINS];
} VmfKvmChips;

typedef struct {
    uint32_t count[3];
    uint16_t latched_count[3];
    uint8_t registers[3 * VMF_PIT_REGISTERS];
    uint64_t load_time[3];
    uint32_t flags;
} VmfKvmPit;

typedef struct {
    uint64_t clock_ns;
    uint64_t realtime_ns; /* CLOCK_REALTIME at that moment; 0: not known */
    uint64_t host_tsc;    /* at that moment; 0: not known */
    uint8_t boot_id[16];  /* of the host that was read */
} VmfKvmClock;

#endif
