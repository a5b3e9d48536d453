/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See rv32-system.h. */
#include "machine/rv32-system.h"
#include "machine/rv32-decode.h"

/* 5,800 years at a hundred million a second: beyond it the arithmetic below could overflow. */
#define INSTRUCTIONS_MAX (1ull << 62)

/* ---- traps and interrupts ---------------------------------------------------------------------------------------- */

void vmf_rv32_trap(VmfRv32State *s, uint32_t cause, uint32_t value)
{
    s->mepc = s->pc;
    s->mcause = cause;
    s->mtval = value;
    s->mstatus = s->mstatus & MSTATUS_MIE ? MSTATUS_MPIE : 0;
    s->pc = s->mtvec;
}

void vmf_rv32_wait(VmfRv32State *s, uint64_t limit)
{
    bool wakes = s->mie & MIE_MTIE && s->timer_compare <= limit;

    if (!wakes)
        s->instructions = limit;
    else if (!vmf_rv32_timer_pending(s))
        s->instructions = s->timer_compare;
    s->waiting = !wakes;
}

/* ---- CSRs -------------------------------------------------------------------------------------------------------- */

/* clang-format off */

static bool csr_read(const VmfRv32State *s, unsigned csr, uint32_t *value)
{
    switch (csr) {
    case 0x300: *value = s->mstatus | MSTATUS_MPP; return true;
    case 0x301: *value = MISA; return true;
    case 0x304: *value = s->mie; return true;
    case 0x305: *value = s->mtvec; return true;
    case 0x340: *value = s->mscratch; return true;
    case 0x341: *value = s->mepc; return true;
    case 0x342: *value = s->mcause; return true;
    case 0x343: *value = s->mtval; return true;
    case 0x344: *value = vmf_rv32_timer_pending(s) ? MIE_MTIE : 0; return true;
    case 0xb00:
    case 0xb02:
    case 0xc00:
    case 0xc01:
    case 0xc02: *value = (uint32_t)s->instructions; return true;
    case 0xb80:
    case 0xb82:
    case 0xc80:
    case 0xc81:
    case 0xc82: *value = s->instructions >> 32; return true;
    case 0xf11:
    case 0xf12:
    case 0xf13:
    case 0xf14: *value = 0; return true;
    default: return false;
    }
}

/* Counters and misa ignore writes, as the architecture lets them. */
static bool csr_write(VmfRv32State *s, unsigned csr, uint32_t value)
{
    switch (csr) {
    case 0x300: s->mstatus = value & (MSTATUS_MIE | MSTATUS_MPIE); break;
    case 0x304: s->mie = value & MIE_MTIE; break;
    case 0x305: s->mtvec = value & ~3u; break;
    case 0x340: s->mscratch = value; break;
    case 0x341: s->mepc = value & ~3u; break;
    case 0x342: s->mcause = value; break;
    case 0x343: s->mtval = value; break;
    }
    return csr >> 10 != 3; /* the last quarter is read-only */
}

/* clang-format on */

static bool execute_csr(VmfRv32State *s, uint32_t insn)
{
    unsigned csr = insn >> 20;
    unsigned source = insn >> 15 & 31;
    uint32_t operand = insn & 0x4000 ? source : s->x[source];
    uint32_t old;

    if (!csr_read(s, csr, &old))
        return false;
    switch (funct3(insn) & 3) {
    case 1:
        if (!csr_write(s, csr, operand))
            return false;
        break;
    case 2:
        if (source && !csr_write(s, csr, old | operand))
            return false;
        break;
    default:
        if (source && !csr_write(s, csr, old & ~operand))
            return false;
        break;
    }
    s->x[insn >> 7 & 31] = old;
    s->pc += 4;
    return true;
}

void vmf_rv32_execute_system(VmfRv32State *s, uint32_t insn)
{
    if (insn == 0x00000073) {
        vmf_rv32_trap(s, CAUSE_ECALL, 0);
    } else if (insn == 0x00100073) {
        vmf_rv32_trap(s, CAUSE_BREAKPOINT, s->pc);
    } else if (insn == 0x30200073) { /* mret */
        s->mstatus = (s->mstatus & MSTATUS_MPIE ? MSTATUS_MIE : 0) | MSTATUS_MPIE;
        s->pc = s->mepc;
    } else if (insn == 0x10500073) { /* wfi */
        s->waiting = true;
        s->pc += 4;
    } else if ((funct3(insn) & 3) == 0 || !execute_csr(s, insn)) {
        vmf_rv32_trap(s, CAUSE_ILLEGAL, insn);
    }
}

void vmf_rv32_reset(VmfRv32State *state, uint32_t pc)
{
    *state = (VmfRv32State){.pc = pc, .timer_compare = UINT64_MAX};
}

const char *vmf_rv32_state_problem(const VmfRv32State *state)
{
    if (state->pc & 3)
        return "pc is not aligned";
    if (state->x[0])
        return "x0 is not zero";
    if (state->mstatus & ~(MSTATUS_MIE | MSTATUS_MPIE))
        return "mstatus has bits that do not exist";
    if (state->mie & ~MIE_MTIE)
        return "mie has bits that do not exist";
    if (state->mtvec & 3 || state->mepc & 3)
        return "mtvec or mepc is not aligned";
    if (state->reserved_address & 3)
        return "the reservation is not aligned";
    if (state->instructions > INSTRUCTIONS_MAX)
        return "the instruction count is out of range";
    return NULL;
}
