/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest program on RV32IMA, machine mode. */
#include "machine/guest/arch.h"

__asm__(".section .start, \"ax\"\n"
        ".globl start\n"
        "start:\n"
        "  la sp, guest_stack_end\n"
        "  la a0, guest_bss\n"
        "  la a1, guest_bss_end\n"
        "1: bgeu a0, a1, 2f\n"
        "  sw zero, 0(a0)\n"
        "  addi a0, a0, 4\n"
        "  j 1b\n"
        "2: la a0, trap_entry\n"
        "  csrw mtvec, a0\n"
        "  li a0, 0\n"
        "  j guest_main\n");

#define TIMER_INTERRUPT 0x80000007u
#define MSTATUS_MIE "8"

static volatile uint32_t *reg(unsigned offset)
{
    return (volatile uint32_t *)(uintptr_t)(GUEST_MMIO_BASE + offset);
}

const struct guest_parameters *arch_parameters(void)
{
    return (const struct guest_parameters *)(uintptr_t)(GUEST_ROM_BASE + GUEST_PARAMETERS_OFFSET);
}

uint8_t *arch_free_memory(void)
{
    extern uint8_t guest_free[];

    return guest_free;
}

static void advance_timer(void)
{
    uint64_t next = ((uint64_t)*reg(GUEST_REG_TIMER_HIGH) << 32 | *reg(GUEST_REG_TIMER_LOW)) + GUEST_TICK;

    /* High half first at its greatest: between the two writes the timer must not be due. */
    *reg(GUEST_REG_TIMER_HIGH) = 0xffffffff;
    *reg(GUEST_REG_TIMER_LOW) = (uint32_t)next;
    *reg(GUEST_REG_TIMER_HIGH) = (uint32_t)(next >> 32);
}

static __attribute__((interrupt("machine"), aligned(4), used)) void trap_entry(void)
{
    uint32_t cause, address;

    __asm__ volatile("csrr %0, mcause" : "=r"(cause));
    if (cause != TIMER_INTERRUPT) {
        __asm__ volatile("csrr %0, mepc" : "=r"(address));
        guest_exception(0, cause, address);
    }
    advance_timer();
    guest_tick(0);
}

void arch_start_timer(void)
{
    *reg(GUEST_REG_TIMER_LOW) = GUEST_TICK;
    *reg(GUEST_REG_TIMER_HIGH) = 0;
    __asm__ volatile("csrw mie, %0" ::"r"(0x80));
    __asm__ volatile("csrsi mstatus, " MSTATUS_MIE ::: "memory");
}

void arch_wait(const volatile uint32_t *ticks, uint32_t seen)
{
    /* WFI returns for a pending interrupt that is masked too; so the tick cannot slip in between the test and the wait.
     */
    __asm__ volatile("csrci mstatus, " MSTATUS_MIE ::: "memory");
    if (*ticks == seen)
        __asm__ volatile("wfi" ::: "memory");
    __asm__ volatile("csrsi mstatus, " MSTATUS_MIE ::: "memory");
}

void arch_beat(uint32_t pages_written)
{
    *reg(GUEST_REG_BEAT) = pages_written;
}

void arch_error(uint32_t address)
{
    *reg(GUEST_REG_ERROR) = address;
}

void arch_console(char c)
{
    *reg(GUEST_REG_CONSOLE) = (uint8_t)c;
}

static volatile uint32_t *disk_reg(uint32_t disk, uint32_t slot, uint32_t offset)
{
    return reg(GUEST_DISK_BASE + disk * GUEST_DISK_STRIDE + slot * GUEST_DISK_SLOT_STRIDE + offset);
}

void arch_disk_write(uint32_t disk, uint32_t slot, uint32_t offset, uint32_t value)
{
    __asm__ volatile("" ::: "memory");
    *disk_reg(disk, slot, offset) = value;
}

uint32_t arch_disk_read(uint32_t disk, uint32_t slot, uint32_t offset)
{
    uint32_t value = *disk_reg(disk, slot, offset);

    __asm__ volatile("" ::: "memory");
    return value;
}

_Noreturn void arch_halt(void)
{
    __asm__ volatile("csrw mie, zero");
    for (;;)
        __asm__ volatile("wfi");
}
