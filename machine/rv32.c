/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * run_span() is the fast loop: computation, branches, and aligned loads and stores of the first memory region. Whatever
 * else an instruction may be (other memory, devices, CSRs, atomics, WFI, an error) leaves the loop for slow_step(),
 * which executes this one instruction or traps. So the loop holds its state in registers, and only slow_step() can
 * change when the next interrupt is due: vmf_rv32_run() works that out anew after each span, which makes the timer free
 * of cost inside one.
 *
 * Every instruction counts one, one that traps too, so no guest can keep a span from ending. Taking an interrupt counts
 * nothing.
 *
 * Guest memory is read by the engine while the guest writes it. That race is the nature of live migration: what is torn
 * or stale is dirty and sent again. ThreadSanitizer is told so by GUEST_MEMORY on each function that touches guest
 * memory; the accesses are volatile, so the compiler makes each of them one access and does not move it across the
 * dirty mark.
 */
#include "machine/rv32.h"
#include <glib.h>
#include "machine/rv32-decode.h"
#include "machine/rv32-system.h"

/* ---- guest memory ------------------------------------------------------------------------------------------------ */

/* Aligned, within the region. */
INLINE uint32_t peek(const uint8_t *host, unsigned size)
{
    switch (size) {
    case 1:
        return *(const volatile uint8_t *)host;
    case 2:
        return GUINT16_FROM_LE(*(const volatile uint16_t *)host);
    default:
        return GUINT32_FROM_LE(*(const volatile uint32_t *)host);
    }
}

/* The one gate for stores of the guest: first the store, then its dirty bit (dirty-log.c says why in this order). */
INLINE void poke(const VmfRv32Region *region, uint32_t offset, unsigned size, uint32_t value)
{
    uint8_t *host = region->host + offset;

    switch (size) {
    case 1:
        *(volatile uint8_t *)host = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)host = GUINT16_TO_LE((uint16_t)value);
        break;
    default:
        *(volatile uint32_t *)host = GUINT32_TO_LE(value);
        break;
    }
    if (region->dirty)
        vmf_log_bitmap_mark(region->dirty, offset / 4096);
}

INLINE bool hits(const VmfRv32Region *region, uint32_t address, unsigned size)
{
    return address - region->base < region->size && (address & (size - 1)) == 0;
}

INLINE bool load_fast(const VmfRv32Region *region, uint32_t insn, uint32_t a, uint32_t *out)
{
    uint32_t address = a + immediate_i(insn);
    unsigned kind = funct3(insn);

    if (kind == 3 || kind > 5 || !hits(region, address, 1u << (kind & 3)))
        return false;
    const uint8_t *host = region->host + (address - region->base);
    switch (kind) {
    case 0:
        *out = (uint32_t)(int8_t)peek(host, 1);
        return true;
    case 1:
        *out = (uint32_t)(int16_t)peek(host, 2);
        return true;
    case 2:
        *out = peek(host, 4);
        return true;
    case 4:
        *out = peek(host, 1);
        return true;
    default:
        *out = peek(host, 2);
        return true;
    }
}

INLINE bool store_fast(const VmfRv32Region *region, uint32_t insn, uint32_t a, uint32_t b)
{
    uint32_t address = a + immediate_s(insn);
    unsigned kind = funct3(insn);

    if (kind > 2 || !hits(region, address, 1u << kind))
        return false;
    poke(region, address - region->base, 1u << kind, b);
    return true;
}

static VmfRv32Region *find_region(VmfRv32 *cpu, uint32_t address)
{
    for (unsigned i = 0; i < VMF_RV32_REGIONS; i++) {
        if (address - cpu->regions[i].base < cpu->regions[i].size)
            return &cpu->regions[i];
    }
    return NULL;
}

/* ---- one instruction, the long way ------------------------------------------------------------------------------- */

GUEST_MEMORY static void execute_load(VmfRv32 *cpu, uint32_t insn)
{
    VmfRv32State *s = &cpu->state;
    uint32_t address = s->x[insn >> 15 & 31] + immediate_i(insn);
    unsigned kind = funct3(insn);
    unsigned size = 1u << (kind & 3);
    uint32_t value = 0;

    if (kind == 3 || kind > 5) {
        vmf_rv32_trap(s, CAUSE_ILLEGAL, insn);
        return;
    }
    if (address & (size - 1)) {
        vmf_rv32_trap(s, CAUSE_LOAD_MISALIGNED, address);
        return;
    }
    VmfRv32Region *region = find_region(cpu, address);
    if (region) {
        value = peek(region->host + (address - region->base), size);
    } else if (!cpu->mmio_read(cpu->opaque, address, size, &value)) {
        vmf_rv32_trap(s, CAUSE_LOAD_FAULT, address);
        return;
    }
    if (kind == 0)
        value = (uint32_t)(int8_t)value;
    else if (kind == 1)
        value = (uint32_t)(int16_t)value;
    s->x[insn >> 7 & 31] = value;
    s->pc += 4;
}

GUEST_MEMORY static void execute_store(VmfRv32 *cpu, uint32_t insn)
{
    VmfRv32State *s = &cpu->state;
    uint32_t address = s->x[insn >> 15 & 31] + immediate_s(insn);
    uint32_t value = s->x[insn >> 20 & 31];
    unsigned size = 1u << funct3(insn);

    if (funct3(insn) > 2) {
        vmf_rv32_trap(s, CAUSE_ILLEGAL, insn);
        return;
    }
    if (address & (size - 1)) {
        vmf_rv32_trap(s, CAUSE_STORE_MISALIGNED, address);
        return;
    }
    VmfRv32Region *region = find_region(cpu, address);
    if (region ? region->read_only : !cpu->mmio_write(cpu->opaque, address, size, value)) {
        vmf_rv32_trap(s, CAUSE_STORE_FAULT, address);
        return;
    }
    if (region)
        poke(region, address - region->base, size, value);
    s->pc += 4;
}

/* clang-format off */
/* What an AMO stores for @old in memory and the register @operand; false: no such operation. */
static bool amo_result(unsigned function, uint32_t old, uint32_t operand, uint32_t *result)
{
    switch (function) {
    case 0x00: *result = old + operand; return true;
    case 0x01: *result = operand; return true;
    case 0x04: *result = old ^ operand; return true;
    case 0x08: *result = old | operand; return true;
    case 0x0c: *result = old & operand; return true;
    case 0x10: *result = (int32_t)old < (int32_t)operand ? old : operand; return true;
    case 0x14: *result = (int32_t)old > (int32_t)operand ? old : operand; return true;
    case 0x18: *result = old < operand ? old : operand; return true;
    case 0x1c: *result = old > operand ? old : operand; return true;
    default: return false;
    }
}

/* clang-format on */

#define AMO_LR 0x02u
#define AMO_SC 0x03u

static bool amo_is_legal(uint32_t insn)
{
    unsigned function = insn >> 27;
    uint32_t ignored;

    if (funct3(insn) != 2)
        return false;
    if (function == AMO_LR)
        return (insn >> 20 & 31) == 0;
    return function == AMO_SC || amo_result(function, 0, 0, &ignored);
}

/* With one hart nothing comes between the load and the store of an AMO, and nothing but SC ends a reservation. */
GUEST_MEMORY static void perform_amo(VmfRv32State *s, VmfRv32Region *region, uint32_t address, uint32_t insn)
{
    uint32_t offset = address - region->base;
    uint32_t operand = s->x[insn >> 20 & 31];
    uint32_t old = peek(region->host + offset, 4);
    uint32_t result;

    if (insn >> 27 == AMO_LR) {
        s->reserved = true;
        s->reserved_address = address;
    } else if (insn >> 27 == AMO_SC) {
        bool kept = s->reserved && s->reserved_address == address;

        if (kept)
            poke(region, offset, 4, operand);
        s->reserved = false;
        old = !kept;
    } else if (amo_result(insn >> 27, old, operand, &result)) {
        poke(region, offset, 4, result);
    }
    s->x[insn >> 7 & 31] = old;
    s->pc += 4;
}

static void execute_amo(VmfRv32 *cpu, uint32_t insn)
{
    VmfRv32State *s = &cpu->state;
    uint32_t address = s->x[insn >> 15 & 31];
    bool loads = insn >> 27 == AMO_LR;

    if (!amo_is_legal(insn)) {
        vmf_rv32_trap(s, CAUSE_ILLEGAL, insn);
        return;
    }
    if (address & 3) {
        vmf_rv32_trap(s, loads ? CAUSE_LOAD_MISALIGNED : CAUSE_STORE_MISALIGNED, address);
        return;
    }
    VmfRv32Region *region = find_region(cpu, address);
    if (!region || (region->read_only && !loads)) {
        vmf_rv32_trap(s, loads ? CAUSE_LOAD_FAULT : CAUSE_STORE_FAULT, address);
        return;
    }
    perform_amo(s, region, address, insn);
}

/* A jump or branch that the fast loop gave up: its target is misaligned, or there is no such instruction. */
static void execute_bad_jump(VmfRv32State *s, uint32_t insn)
{
    uint32_t a = s->x[insn >> 15 & 31];
    bool taken;

    if (is_slot(insn, OPCODE_JAL))
        vmf_rv32_trap(s, CAUSE_FETCH_MISALIGNED, s->pc + immediate_j(insn));
    else if (is_slot(insn, OPCODE_JALR) && funct3(insn) == 0)
        vmf_rv32_trap(s, CAUSE_FETCH_MISALIGNED, (a + immediate_i(insn)) & ~1u);
    else if (is_slot(insn, OPCODE_BRANCH) && branch_taken(insn, a, s->x[insn >> 20 & 31], &taken))
        vmf_rv32_trap(s, CAUSE_FETCH_MISALIGNED, s->pc + immediate_b(insn));
    else
        vmf_rv32_trap(s, CAUSE_ILLEGAL, insn);
}

static void slow_step(VmfRv32 *cpu, uint32_t insn)
{
    VmfRv32State *s = &cpu->state;

    if (is_slot(insn, OPCODE_LOAD))
        execute_load(cpu, insn);
    else if (is_slot(insn, OPCODE_STORE))
        execute_store(cpu, insn);
    else if (is_slot(insn, OPCODE_AMO))
        execute_amo(cpu, insn);
    else if (is_slot(insn, OPCODE_SYSTEM))
        vmf_rv32_execute_system(s, insn);
    else if (is_slot(insn, OPCODE_FENCE) && funct3(insn) <= 1)
        s->pc += 4;
    else
        execute_bad_jump(s, insn);
    s->x[0] = 0;
    s->instructions++;
}

/* ---- the fast loop ----------------------------------------------------------------------------------------------- */

/* Executes what run_span() can; false leaves all as it was. */
INLINE bool fast_step(const VmfRv32Region *ram, uint32_t *x, uint32_t insn, uint32_t pc, uint32_t *next)
{
    uint32_t *rd = &x[insn >> 7 & 31];
    uint32_t a = x[insn >> 15 & 31];
    uint32_t b = x[insn >> 20 & 31];
    uint32_t target;
    bool taken;

    switch (insn & 0x7f) {
    case OPCODE_OP << 2 | 3:
        return compute(insn, a, b, rd);
    case OPCODE_OP_IMM << 2 | 3:
        return compute_immediate(insn, a, rd);
    case OPCODE_LOAD << 2 | 3:
        return load_fast(ram, insn, a, rd);
    case OPCODE_STORE << 2 | 3:
        return store_fast(ram, insn, a, b);
    case OPCODE_BRANCH << 2 | 3:
        if (!branch_taken(insn, a, b, &taken))
            return false;
        if (taken)
            *next = pc + immediate_b(insn);
        return (*next & 3) == 0;
    case OPCODE_LUI << 2 | 3:
        *rd = insn & 0xfffff000;
        return true;
    case OPCODE_AUIPC << 2 | 3:
        *rd = pc + (insn & 0xfffff000);
        return true;
    case OPCODE_JAL << 2 | 3:
    case OPCODE_JALR << 2 | 3:
        target = insn & 8 ? pc + immediate_j(insn) : (a + immediate_i(insn)) & ~1u;
        if (target & 3 || (!(insn & 8) && funct3(insn)))
            return false;
        *rd = pc + 4;
        *next = target;
        return true;
    default:
        return false;
    }
}

/* Up to @end, or to the first instruction that is not a fast one, which is executed too. */
GUEST_MEMORY static void run_span(VmfRv32 *cpu, const VmfRv32Region *code, uint64_t end)
{
    VmfRv32State *s = &cpu->state;
    const VmfRv32Region ram = cpu->regions[0];
    const uint8_t *host = code->host;
    uint32_t base = code->base, size = code->size;
    uint32_t pc = s->pc;
    uint32_t insn = 0;
    uint64_t left = end - s->instructions;
    bool fast = true;

    while (left && pc - base < size) {
        uint32_t next = pc + 4;

        insn = peek(host + (pc - base), 4);
        fast = fast_step(&ram, s->x, insn, pc, &next);
        if (!fast)
            break;
        s->x[0] = 0;
        pc = next;
        left--;
    }
    s->pc = pc;
    s->instructions = end - left;
    if (!fast)
        slow_step(cpu, insn);
}

void vmf_rv32_run(VmfRv32 *cpu, uint64_t limit)
{
    VmfRv32State *s = &cpu->state;

    for (;;) {
        uint64_t end = cpu->due ? MIN(cpu->due, limit) : limit;
        if (s->instructions >= end)
            break;
        bool enabled = s->mie & MIE_MTIE && s->mstatus & MSTATUS_MIE;

        if (s->waiting) {
            vmf_rv32_wait(s, end);
            continue;
        }
        if (enabled && vmf_rv32_timer_pending(s)) {
            vmf_rv32_trap(s, CAUSE_TIMER, 0);
            continue;
        }
        const VmfRv32Region *code = find_region(cpu, s->pc);
        if (code) {
            run_span(cpu, code, enabled ? MIN(end, s->timer_compare) : end);
        } else {
            vmf_rv32_trap(s, CAUSE_FETCH_FAULT, s->pc);
            s->instructions++;
        }
    }
}

bool vmf_rv32_is_memory(VmfRv32 *cpu, uint32_t address)
{
    return find_region(cpu, address) != NULL;
}
