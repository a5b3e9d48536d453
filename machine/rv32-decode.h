/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RV32IM: the fields of an instruction, and what those compute that touch nothing but registers. Inlined into the loop
 * of rv32.c.
 */
#ifndef MACHINE_RV32_DECODE_H
#define MACHINE_RV32_DECODE_H

#include <stdbool.h>
#include <stdint.h>

/* See the Theory of Operation in rv32.c: such a function touches guest memory, or is inlined where that is done. */
#define GUEST_MEMORY __attribute__((no_sanitize("thread")))
#define INLINE static inline __attribute__((always_inline)) GUEST_MEMORY

enum {
    OPCODE_LOAD = 0,
    OPCODE_FENCE = 3,
    OPCODE_OP_IMM = 4,
    OPCODE_AUIPC = 5,
    OPCODE_STORE = 8,
    OPCODE_AMO = 11,
    OPCODE_OP = 12,
    OPCODE_LUI = 13,
    OPCODE_BRANCH = 24,
    OPCODE_JALR = 25,
    OPCODE_JAL = 27,
    OPCODE_SYSTEM = 28,
};

/* ---- fields of an instruction ------------------------------------------------------------------------------------ */

INLINE uint32_t immediate_i(uint32_t insn)
{
    return (uint32_t)((int32_t)insn >> 20);
}

INLINE uint32_t immediate_s(uint32_t insn)
{
    return (uint32_t)((int32_t)(insn & 0xfe000000) >> 20) | (insn >> 7 & 31);
}

INLINE uint32_t immediate_b(uint32_t insn)
{
    return (uint32_t)((int32_t)(insn & 0x80000000) >> 19) | (insn << 4 & 0x800) | (insn >> 20 & 0x7e0) |
           (insn >> 7 & 0x1e);
}

INLINE uint32_t immediate_j(uint32_t insn)
{
    return (uint32_t)((int32_t)(insn & 0x80000000) >> 11) | (insn & 0xff000) | (insn >> 9 & 0x800) |
           (insn >> 20 & 0x7fe);
}

INLINE unsigned funct3(uint32_t insn)
{
    return insn >> 12 & 7;
}

INLINE bool is_slot(uint32_t insn, unsigned opcode)
{
    return (insn & 0x7f) == (opcode << 2 | 3);
}

/* ---- computation ------------------------------------------------------------------------------------------------- */

/* clang-format off */

/* Division never traps: by zero it gives all ones and the dividend, and the one overflow wraps. */
INLINE uint32_t divide_signed(uint32_t a, uint32_t b)
{
    if (b == 0)
        return UINT32_MAX;
    return a == 0x80000000 && b == UINT32_MAX ? a : (uint32_t)((int32_t)a / (int32_t)b);
}

INLINE uint32_t remainder_signed(uint32_t a, uint32_t b)
{
    if (b == 0)
        return a;
    return a == 0x80000000 && b == UINT32_MAX ? 0 : (uint32_t)((int32_t)a % (int32_t)b);
}

/* The register forms; false: no such instruction. */
INLINE bool compute(uint32_t insn, uint32_t a, uint32_t b, uint32_t *out)
{
    switch (insn >> 25 << 3 | funct3(insn)) {
    case 0x000: *out = a + b; return true;
    case 0x100: *out = a - b; return true;
    case 0x001: *out = a << (b & 31); return true;
    case 0x002: *out = (int32_t)a < (int32_t)b; return true;
    case 0x003: *out = a < b; return true;
    case 0x004: *out = a ^ b; return true;
    case 0x005: *out = a >> (b & 31); return true;
    case 0x105: *out = (uint32_t)((int32_t)a >> (b & 31)); return true;
    case 0x006: *out = a | b; return true;
    case 0x007: *out = a & b; return true;
    case 0x008: *out = a * b; return true;
    case 0x009: *out = (uint32_t)((int64_t)(int32_t)a * (int32_t)b >> 32); return true;
    case 0x00a: *out = (uint32_t)((int64_t)(int32_t)a * (int64_t)b >> 32); return true;
    case 0x00b: *out = (uint32_t)((uint64_t)a * b >> 32); return true;
    case 0x00c: *out = divide_signed(a, b); return true;
    case 0x00d: *out = b ? a / b : UINT32_MAX; return true;
    case 0x00e: *out = remainder_signed(a, b); return true;
    case 0x00f: *out = b ? a % b : a; return true;
    default: return false;
    }
}

/* The immediate forms: shifts have a function field where the others have high bits of the immediate. */
INLINE bool compute_immediate(uint32_t insn, uint32_t a, uint32_t *out)
{
    uint32_t b = immediate_i(insn);

    if ((funct3(insn) == 1 && insn >> 25) || (funct3(insn) == 5 && (insn >> 25 & ~0x20u)))
        return false;
    switch (funct3(insn)) {
    case 0: *out = a + b; return true;
    case 1: *out = a << (b & 31); return true;
    case 2: *out = (int32_t)a < (int32_t)b; return true;
    case 3: *out = a < b; return true;
    case 4: *out = a ^ b; return true;
    case 5: *out = b & 0x400 ? (uint32_t)((int32_t)a >> (b & 31)) : a >> (b & 31); return true;
    case 6: *out = a | b; return true;
    default: *out = a & b; return true;
    }
}

/* False: no such branch. */
INLINE bool branch_taken(uint32_t insn, uint32_t a, uint32_t b, bool *taken)
{
    switch (funct3(insn)) {
    case 0: *taken = a == b; return true;
    case 1: *taken = a != b; return true;
    case 4: *taken = (int32_t)a < (int32_t)b; return true;
    case 5: *taken = (int32_t)a >= (int32_t)b; return true;
    case 6: *taken = a < b; return true;
    case 7: *taken = a >= b; return true;
    default: return false;
    }
}

/* clang-format on */

#endif
