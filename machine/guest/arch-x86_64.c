/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guest program on x86-64.
 *
 * Set-up and interrupts run at CPL0, all else at CPL3: there are hosts whose KVM emulates supervisor code, at a
 * microsecond an instruction, and runs user code as it is. Each CPU starts at `start` in 64-bit mode at CPL0 with its
 * number in rdi and a map of virtual to equal physical addresses, user pages, made by the VMM. It builds its tables,
 * drops to CPL3 and comes back only for interrupts and for three calls: start the timer, wait, halt. Such a call is UD2
 * with a number in eax, since on those hosts neither SYSCALL nor INT gets to CPL0; an exception does everywhere.
 *
 * Ports are open to CPL3 by the I/O bitmap of the TSS (IOPL is lost on such hosts). Memory is zero at the start.
 */
#include "machine/guest/arch.h"

#define KERNEL_STACK 2048u
#define USER_STACK 4096u

#define SELECTOR_CODE 0x08u
#define SELECTOR_USER_DATA 0x1bu
#define SELECTOR_USER_CODE 0x23u
#define SELECTOR_TSS 0x28u

#define VECTOR_TIMER 0x20u
#define VECTOR_SPURIOUS 0x2fu
#define N_VECTORS 0x30u
#define N_EXCEPTIONS 32u
#define VECTOR_UNDEFINED 6u

/* Calls: numbers that eax hardly ever has when something goes wrong. */
#define CALL_START_TIMER 0x5ca11001u
#define CALL_WAIT 0x5ca11002u
#define CALL_HALT 0x5ca11003u

#define APIC_BASE 0xfee00000u
#define APIC_EOI 0x0b0u
#define APIC_SPURIOUS 0x0f0u
#define APIC_LVT_TIMER 0x320u
#define APIC_INITIAL_COUNT 0x380u
#define APIC_DIVIDE 0x3e0u
#define APIC_PERIODIC 0x20000u
#define APIC_TICK 1000000u /* KVM's local APIC counts nanoseconds */

#define MSR_KVM_SYSTEM_TIME 0x4b564d01u
#define PORT_BITMAP ((GUEST_PORT_END + 7) / 8)

struct task_state {
    uint32_t reserved0;
    uint64_t stacks[3];
    uint64_t reserved1;
    uint64_t interrupt_stacks[7];
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t bitmap_offset;
    uint8_t bitmap[PORT_BITMAP + 1];
} __attribute__((packed));

struct gate {
    uint16_t offset_0;
    uint16_t selector;
    uint16_t attributes;
    uint16_t offset_16;
    uint32_t offset_32;
    uint32_t reserved;
};

struct table_register {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

/* What the processor pushes on an interrupt. */
struct interrupt_frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

struct cpu_tables {
    uint64_t segments[7];
    struct gate gates[N_VECTORS];
    struct task_state task;
};

static struct cpu_tables tables[GUEST_CPUS_MAX];
static uint8_t kernel_stacks[GUEST_CPUS_MAX][KERNEL_STACK] __attribute__((aligned(16), used));
static uint8_t user_stacks[GUEST_CPUS_MAX][USER_STACK] __attribute__((aligned(16)));
/* Written by KVM. */
static struct {
    uint8_t bytes[64];
} clocks[GUEST_CPUS_MAX] __attribute__((aligned(64)));

__asm__(".section .start, \"ax\"\n"
        ".globl start\n"
        "start:\n"
        "  leaq 1(%rdi), %rsp\n"
        "  imulq $2048, %rsp\n"
        "  movabsq $kernel_stacks, %rax\n"
        "  addq %rax, %rsp\n"
        "  call set_up\n"
        "  ud2\n"
        ".section .text\n"
        "undefined_entry:\n"
        "  testb $3, 8(%rsp)\n"
        "  jz undefined\n"
        "  cmpl $0x5ca11002, %eax\n"
        "  je wait\n"
        "  cmpl $0x5ca11001, %eax\n"
        "  je start_timer\n"
        "  cmpl $0x5ca11003, %eax\n"
        "  je halt\n"
        "undefined:\n"
        "  jmp exception_entries + 16 * 6\n"
        /* The caller's ticks are at rdi, those seen in esi. No tick slips in between the test and the wait: the gate
         * clears the interrupt flag, and STI lets nothing in before the next instruction. */
        "wait:\n"
        "  addq $2, (%rsp)\n"
        "  cmpl %esi, (%rdi)\n"
        "  jne 1f\n"
        "  sti\n"
        "  hlt\n"
        "1: iretq\n"
        "start_timer:\n"
        "  addq $2, (%rsp)\n"
        "  jmp start_timer_entry\n"
        "halt:\n"
        "  hlt\n"
        "  jmp halt\n"
        /* Entries of 16 bytes: the vector and an error code, where the processor does not push one. */
        ".balign 16\n"
        "exception_entries:\n"
        ".set vector, 0\n"
        ".rept 32\n"
        "  .balign 16\n"
        "  .if (0x60227d00 >> vector) & 1 == 0\n"
        "    pushq $0\n"
        "  .endif\n"
        "  pushq $vector\n"
        "  jmp exception_common\n"
        "  .set vector, vector + 1\n"
        ".endr\n"
        "exception_common:\n"
        "  movq %rsp, %rdi\n"
        "  andq $-16, %rsp\n"
        "  call exception\n"
        "  ud2\n");
_Static_assert(KERNEL_STACK == 2048 && VECTOR_UNDEFINED == 6, "as above");
_Static_assert(CALL_START_TIMER == 0x5ca11001 && CALL_WAIT == 0x5ca11002 && CALL_HALT == 0x5ca11003, "as above");

static void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

static volatile uint32_t *apic(uint32_t offset)
{
    return (volatile uint32_t *)(uintptr_t)(APIC_BASE + offset);
}

static uint32_t in32(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* Each CPU has its own kernel stack, so an address on it tells which one this is. */
static unsigned cpu_of_stack(const void *at)
{
    return (unsigned)(((uintptr_t)at - (uintptr_t)kernel_stacks) / KERNEL_STACK);
}

/* ---- CPL0: interrupts and gates ---------------------------------------------------------------------------------- */

__attribute__((interrupt)) static void timer_entry(struct interrupt_frame *frame)
{
    guest_tick(cpu_of_stack(frame));
    *apic(APIC_EOI) = 0;
}

__attribute__((interrupt)) static void spurious_entry(struct interrupt_frame *frame)
{
    (void)frame;
}

__attribute__((interrupt)) void start_timer_entry(struct interrupt_frame *frame);
__attribute__((interrupt)) void start_timer_entry(struct interrupt_frame *frame)
{
    (void)frame;
    *apic(APIC_SPURIOUS) = 0x100 | VECTOR_SPURIOUS;
    *apic(APIC_DIVIDE) = 0xb; /* by one */
    *apic(APIC_LVT_TIMER) = APIC_PERIODIC | VECTOR_TIMER;
    *apic(APIC_INITIAL_COUNT) = APIC_TICK;
}

struct exception_frame {
    uint64_t vector, error;
    struct interrupt_frame frame;
};

_Noreturn void exception(struct exception_frame *e);
_Noreturn void exception(struct exception_frame *e)
{
    guest_exception(cpu_of_stack(e), (uint32_t)e->vector, (uint32_t)e->frame.rip);
}

/* ---- CPL0: set-up ------------------------------------------------------------------------------------------------ */

static void set_gate(struct cpu_tables *t, unsigned vector, const void *entry)
{
    uint64_t at = (uintptr_t)entry;

    t->gates[vector] = (struct gate){
        .offset_0 = (uint16_t)at,
        .selector = SELECTOR_CODE,
        .attributes = 0x8e00,
        .offset_16 = (uint16_t)(at >> 16),
        .offset_32 = (uint32_t)(at >> 32),
    };
}

static void set_gates(struct cpu_tables *t)
{
    extern const uint8_t exception_entries[], undefined_entry[];

    for (unsigned vector = 0; vector < N_EXCEPTIONS; vector++)
        set_gate(t, vector, exception_entries + 16 * vector);
    set_gate(t, VECTOR_UNDEFINED, undefined_entry);
    set_gate(t, VECTOR_TIMER, (const void *)timer_entry);
    set_gate(t, VECTOR_SPURIOUS, (const void *)spurious_entry);
}

static void set_segments(struct cpu_tables *t, unsigned cpu)
{
    uint64_t task = (uintptr_t)&t->task;

    t->segments[1] = 0x00af9b000000ffff; /* 64-bit code, CPL0 */
    t->segments[2] = 0x00cf93000000ffff; /* data, CPL0 */
    t->segments[3] = 0x00cff3000000ffff; /* data, CPL3 */
    t->segments[4] = 0x00affb000000ffff; /* 64-bit code, CPL3 */
    t->segments[5] = (sizeof(t->task) - 1) | (task & 0xffffff) << 16 | 0x89ull << 40 | (task >> 24 & 0xff) << 56;
    t->segments[6] = task >> 32;
    t->task.stacks[0] = (uintptr_t)kernel_stacks[cpu + 1];
    t->task.bitmap_offset = __builtin_offsetof(struct task_state, bitmap);
    for (unsigned i = 0; i < sizeof(t->task.bitmap); i++)
        t->task.bitmap[i] = 0xff;
    t->task.bitmap[GUEST_PORT_SERIAL / 8] = 0;
    t->task.bitmap[GUEST_PORT_BEAT / 8] = 0;
    for (unsigned port = GUEST_PORT_DISK; port < GUEST_PORT_END; port += 8)
        t->task.bitmap[port / 8] = 0;
}
_Static_assert(GUEST_PORT_SERIAL % 8 == 0 && GUEST_PORT_BEAT % 8 == 0, "each has an octet of the bitmap");
_Static_assert(GUEST_PORT_ERROR == GUEST_PORT_BEAT + 4, "both in one octet of the bitmap");

static void load_tables(const struct cpu_tables *t)
{
    struct table_register segments = {sizeof(t->segments) - 1, (uintptr_t)t->segments};
    struct table_register gates = {sizeof(t->gates) - 1, (uintptr_t)t->gates};

    __asm__ volatile("lgdt %0" ::"m"(segments));
    __asm__ volatile("lidt %0" ::"m"(gates));
    __asm__ volatile("ltr %w0" ::"r"(SELECTOR_TSS));
}

static void write_msr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

/* No interrupt of the old chips is wanted; the timer among them runs all the same, as it would after any firmware. */
static void set_up_chips(void)
{
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    out8(0x43, 0x34);
    out8(0x40, 0x9b);
    out8(0x40, 0x2e);
}

/* @entry gets @cpu in rdi, at CPL3 with interrupts on. */
static _Noreturn void drop_to_user(unsigned cpu, void (*entry)(unsigned))
{
    uint64_t stack = (uintptr_t)user_stacks[cpu + 1] - 8; /* as after a call */

    __asm__ volatile("pushq %0\n pushq %1\n pushq $0x202\n pushq %2\n pushq %3\n iretq" ::"i"(SELECTOR_USER_DATA),
                     "r"(stack), "i"(SELECTOR_USER_CODE), "r"(entry), "D"((uint64_t)cpu)
                     : "memory");
    __builtin_unreachable();
}

_Noreturn void set_up(uint64_t cpu);
_Noreturn void set_up(uint64_t cpu)
{
    struct cpu_tables *t = &tables[cpu];

    set_segments(t, (unsigned)cpu);
    set_gates(t);
    load_tables(t);
    if (cpu == 0)
        set_up_chips();
    write_msr(MSR_KVM_SYSTEM_TIME, (uintptr_t)&clocks[cpu] | 1);
    drop_to_user((unsigned)cpu, (void (*)(unsigned))guest_main);
}

/* ---- CPL3 -------------------------------------------------------------------------------------------------------- */

const struct guest_parameters *arch_parameters(void)
{
    return (const struct guest_parameters *)(uintptr_t)(GUEST_ROM_BASE + GUEST_PARAMETERS_OFFSET);
}

uint8_t *arch_free_memory(void)
{
    extern uint8_t guest_free[];

    return guest_free;
}

void arch_start_timer(void)
{
    __asm__ volatile("ud2" ::"a"(CALL_START_TIMER) : "memory");
}

void arch_wait(const volatile uint32_t *ticks, uint32_t seen)
{
    __asm__ volatile("ud2" ::"a"(CALL_WAIT), "D"(ticks), "S"(seen) : "memory", "cc");
}

void arch_beat(uint32_t pages_written)
{
    out32(GUEST_PORT_BEAT, pages_written);
}

void arch_error(uint32_t address)
{
    out32(GUEST_PORT_ERROR, address);
}

void arch_console(char c)
{
    out8(GUEST_PORT_SERIAL, (uint8_t)c);
}

static uint16_t disk_port(uint32_t disk, uint32_t slot, uint32_t reg)
{
    return (uint16_t)(GUEST_PORT_DISK + disk * GUEST_DISK_STRIDE + slot * GUEST_DISK_SLOT_STRIDE + reg);
}

void arch_disk_write(uint32_t disk, uint32_t slot, uint32_t reg, uint32_t value)
{
    __asm__ volatile("" ::: "memory");
    out32(disk_port(disk, slot, reg), value);
}

uint32_t arch_disk_read(uint32_t disk, uint32_t slot, uint32_t reg)
{
    return in32(disk_port(disk, slot, reg));
}

/* From CPL3 or, after an exception, from CPL0. */
_Noreturn void arch_halt(void)
{
    uint16_t code;

    __asm__ volatile("movw %%cs, %0" : "=r"(code));
    for (;;) {
        if (code & 3)
            __asm__ volatile("ud2" ::"a"(CALL_HALT));
        else
            __asm__ volatile("cli\n hlt");
    }
}
