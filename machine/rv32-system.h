/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Machine mode: traps, the timer interrupt, CSRs. */
#ifndef MACHINE_RV32_SYSTEM_H
#define MACHINE_RV32_SYSTEM_H

#include "machine/rv32.h"

enum {
    CAUSE_FETCH_MISALIGNED = 0,
    CAUSE_FETCH_FAULT = 1,
    CAUSE_ILLEGAL = 2,
    CAUSE_BREAKPOINT = 3,
    CAUSE_LOAD_MISALIGNED = 4,
    CAUSE_LOAD_FAULT = 5,
    CAUSE_STORE_MISALIGNED = 6,
    CAUSE_STORE_FAULT = 7,
    CAUSE_ECALL = 11,
    CAUSE_TIMER = (int)0x80000007,
};

#define MSTATUS_MIE 0x8u
#define MSTATUS_MPIE 0x80u
#define MSTATUS_MPP 0x1800u
#define MIE_MTIE 0x80u
#define MISA 0x40001101u /* 32 bits; A, I, M */

/* Enters the handler; the instruction at pc is not done (or, for an interrupt, is the next one). */
void vmf_rv32_trap(VmfRv32State *s, uint32_t cause, uint32_t value);

static inline bool vmf_rv32_timer_pending(const VmfRv32State *s)
{
    return s->instructions >= s->timer_compare;
}

/* Stands in WFI until the timer's count, or as far as this run goes; without an enabled interrupt that is for ever. */
void vmf_rv32_wait(VmfRv32State *s, uint64_t limit);

/* An instruction of opcode SYSTEM: done, or trapped. */
void vmf_rv32_execute_system(VmfRv32State *s, uint32_t insn);

#endif
