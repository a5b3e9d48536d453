/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The instruction set: each test assembles a few words into a small memory and looks at the registers afterwards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "machine/rv32.h"

#define RAM 0x80000000u
#define ROM 0x20000000u
#define DEVICE 0x10000000u
#define HANDLER (RAM + 0x1000)
#define DATA (RAM + 0x2000)

enum { ZERO, RA, SP, GP, TP, T0, T1, T2, S0, S1, A0, A1, A2, A3 };

static uint8_t ram[0x4000], rom[0x1000], small[0x1000];
static uint32_t device_value;

/* ---- a small assembler ------------------------------------------------------------------------------------------- */

static uint32_t type_r(unsigned opcode, unsigned f3, unsigned f7, unsigned rd, unsigned rs1, unsigned rs2)
{
    return f7 << 25 | rs2 << 20 | rs1 << 15 | f3 << 12 | rd << 7 | opcode;
}

static uint32_t type_i(unsigned opcode, unsigned f3, unsigned rd, unsigned rs1, int32_t immediate)
{
    return (uint32_t)immediate << 20 | rs1 << 15 | f3 << 12 | rd << 7 | opcode;
}

static uint32_t store(unsigned f3, unsigned rs2, unsigned rs1, int32_t immediate)
{
    return ((uint32_t)immediate >> 5 & 127) << 25 | rs2 << 20 | rs1 << 15 | f3 << 12 | ((uint32_t)immediate & 31) << 7 |
           0x23;
}

static uint32_t branch(unsigned f3, unsigned rs1, unsigned rs2, int32_t to)
{
    uint32_t u = (uint32_t)to;

    return (u >> 12 & 1) << 31 | (u >> 5 & 63) << 25 | rs2 << 20 | rs1 << 15 | f3 << 12 | (u >> 1 & 15) << 8 |
           (u >> 11 & 1) << 7 | 0x63;
}

static uint32_t jal(unsigned rd, int32_t to)
{
    uint32_t u = (uint32_t)to;

    return (u >> 20 & 1) << 31 | (u >> 1 & 1023) << 21 | (u >> 11 & 1) << 20 | (u >> 12 & 255) << 12 | rd << 7 | 0x6f;
}

#define OP(f3, f7, rd, a, b) type_r(0x33, f3, f7, rd, a, b)
#define IMMEDIATE(f3, rd, a, i) type_i(0x13, f3, rd, a, i)
#define LOAD(f3, rd, a, i) type_i(0x03, f3, rd, a, i)
#define JALR(rd, a, i) type_i(0x67, 0, rd, a, i)
#define AMO(f5, rd, address, b) type_r(0x2f, 2, (f5) << 2, rd, address, b)
#define CSR(f3, rd, csr, source) type_i(0x73, f3, rd, source, csr)
#define LUI(rd, value) ((value)&0xfffff000u) | (rd) << 7 | 0x37
#define AUIPC(rd, value) ((value)&0xfffff000u) | (rd) << 7 | 0x17
#define NOP IMMEDIATE(0, 0, 0, 0)
#define WFI 0x10500073u
#define MRET 0x30200073u

/* ---- the machine around it --------------------------------------------------------------------------------------- */

static bool read_device(void *opaque, uint32_t address, unsigned size, uint32_t *value)
{
    *value = device_value;
    return address == DEVICE;
}

static bool write_device(void *opaque, uint32_t address, unsigned size, uint32_t value)
{
    device_value = value;
    return address == DEVICE;
}

static VmfRv32 load_program(const uint32_t *words, size_t n)
{
    VmfRv32 cpu = {
        .regions = {{.host = ram, .base = RAM, .size = sizeof(ram)},
                    {.host = rom, .base = ROM, .size = sizeof(rom), .read_only = true},
                    {.host = small, .base = 0x40000000, .size = sizeof(small)}},
        .mmio_read = read_device,
        .mmio_write = write_device,
    };

    memset(ram, 0, sizeof(ram));
    memcpy(ram, words, n * 4);
    vmf_rv32_reset(&cpu.state, RAM);
    cpu.state.mtvec = HANDLER;
    return cpu;
}

#define PROGRAM(...) load_program((const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / 4)

/* One register form of @f3, @f7 on @a and @b. */
static uint32_t compute(unsigned f3, unsigned f7, uint32_t a, uint32_t b)
{
    VmfRv32 cpu = PROGRAM(OP(f3, f7, A0, A1, A2));

    cpu.state.x[A1] = a;
    cpu.state.x[A2] = b;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.pc, RAM + 4);
    assert_int_equal(cpu.state.instructions, 1);
    return cpu.state.x[A0];
}

static uint32_t compute_immediate(unsigned f3, uint32_t a, int32_t immediate)
{
    VmfRv32 cpu = PROGRAM(IMMEDIATE(f3, A0, A1, immediate));

    cpu.state.x[A1] = a;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.pc, RAM + 4);
    return cpu.state.x[A0];
}

static void assert_trapped(const VmfRv32 *cpu, uint32_t cause, uint32_t pc, uint32_t value)
{
    assert_int_equal(cpu->state.pc, HANDLER);
    assert_int_equal(cpu->state.mcause, cause);
    assert_int_equal(cpu->state.mepc, pc);
    assert_int_equal(cpu->state.mtval, value);
}

/* A program of one word that traps. */
static void assert_traps(uint32_t word, uint32_t a1, uint32_t cause, uint32_t value)
{
    VmfRv32 cpu = PROGRAM(word);

    cpu.state.x[A0] = 77;
    cpu.state.x[A1] = a1;
    vmf_rv32_run(&cpu, 1);
    assert_trapped(&cpu, cause, RAM, value);
    assert_int_equal(cpu.state.x[A0], 77);
    assert_int_equal(cpu.state.instructions, 1);
}

/* ---- computation ------------------------------------------------------------------------------------------------- */

static void test_arithmetic(void **state)
{
    assert_int_equal(compute(0, 0, 0xffffffff, 2), 1);
    assert_int_equal(compute(0, 0x20, 1, 2), 0xffffffff);
    assert_int_equal(compute(1, 0, 1, 33), 2);
    assert_int_equal(compute(2, 0, 0xffffffff, 1), 1);
    assert_int_equal(compute(3, 0, 0xffffffff, 1), 0);
    assert_int_equal(compute(4, 0, 0xf0f0, 0xff00), 0x0ff0);
    assert_int_equal(compute(5, 0, 0x80000000, 31), 1);
    assert_int_equal(compute(5, 0x20, 0x80000000, 31), 0xffffffff);
    assert_int_equal(compute(6, 0, 0xf0, 0x0f), 0xff);
    assert_int_equal(compute(7, 0, 0xf0, 0x3c), 0x30);
}

static void test_immediates(void **state)
{
    assert_int_equal(compute_immediate(0, 1, -2048), 1u - 2048);
    assert_int_equal(compute_immediate(2, 0xfffffffe, -1), 1);
    assert_int_equal(compute_immediate(3, 5, -1), 1);
    assert_int_equal(compute_immediate(4, 0, -1), 0xffffffff);
    assert_int_equal(compute_immediate(6, 1, 0x7f0), 0x7f1);
    assert_int_equal(compute_immediate(7, 0xffffffff, 0x7f0), 0x7f0);
    assert_int_equal(compute_immediate(1, 1, 31), 0x80000000);
    assert_int_equal(compute_immediate(5, 0x80000000, 4), 0x08000000);
    assert_int_equal(compute_immediate(5, 0x80000000, 0x400 | 4), 0xf8000000);
}

static void test_multiply(void **state)
{
    assert_int_equal(compute(0, 1, 0x10001, 0x10001), 0x20001);
    assert_int_equal(compute(1, 1, 0xffffffff, 0xffffffff), 0);
    assert_int_equal(compute(1, 1, 0x80000000, 0x80000000), 0x40000000);
    assert_int_equal(compute(2, 1, 0xffffffff, 0xffffffff), 0xffffffff);
    assert_int_equal(compute(2, 1, 0x80000000, 0xffffffff), 0x80000000);
    assert_int_equal(compute(3, 1, 0xffffffff, 0xffffffff), 0xfffffffe);
}

static void test_divide(void **state)
{
    assert_int_equal(compute(4, 1, (uint32_t)-7, 2), (uint32_t)-3);
    assert_int_equal(compute(5, 1, (uint32_t)-7, 2), 0x7ffffffc);
    assert_int_equal(compute(6, 1, (uint32_t)-7, 2), (uint32_t)-1);
    assert_int_equal(compute(7, 1, (uint32_t)-7, 2), 1);
}

static void test_divide_by_zero_and_overflow(void **state)
{
    for (unsigned f3 = 4; f3 <= 5; f3++)
        assert_int_equal(compute(f3, 1, 5, 0), 0xffffffff);
    for (unsigned f3 = 6; f3 <= 7; f3++)
        assert_int_equal(compute(f3, 1, 5, 0), 5);
    assert_int_equal(compute(4, 1, 0x80000000, 0xffffffff), 0x80000000);
    assert_int_equal(compute(6, 1, 0x80000000, 0xffffffff), 0);
}

static void test_upper_immediates_and_x0(void **state)
{
    VmfRv32 cpu =
        PROGRAM(LUI(A0, 0xabcde000), AUIPC(A1, 0x1000), IMMEDIATE(0, ZERO, ZERO, 5), OP(0, 0, A2, ZERO, ZERO));

    cpu.state.x[A2] = 9;
    vmf_rv32_run(&cpu, 4);
    assert_int_equal(cpu.state.x[A0], 0xabcde000);
    assert_int_equal(cpu.state.x[A1], RAM + 0x1004);
    assert_int_equal(cpu.state.x[0], 0);
    assert_int_equal(cpu.state.x[A2], 0);
}

/* ---- control flow ------------------------------------------------------------------------------------------------ */

static bool takes_branch(unsigned f3, uint32_t a, uint32_t b)
{
    VmfRv32 cpu = PROGRAM(NOP, NOP, branch(f3, A0, A1, -8));

    cpu.state.x[A0] = a;
    cpu.state.x[A1] = b;
    vmf_rv32_run(&cpu, 3);
    assert_true(cpu.state.pc == RAM || cpu.state.pc == RAM + 12);
    return cpu.state.pc == RAM;
}

static void test_branches(void **state)
{
    assert_true(takes_branch(0, 5, 5) && !takes_branch(0, 5, 6));
    assert_true(takes_branch(1, 5, 6) && !takes_branch(1, 5, 5));
    assert_true(takes_branch(4, 0xffffffff, 0) && !takes_branch(4, 0, 0xffffffff) && !takes_branch(4, 3, 3));
    assert_true(takes_branch(5, 0, 0xffffffff) && takes_branch(5, 3, 3) && !takes_branch(5, 0xffffffff, 0));
    assert_true(takes_branch(6, 0, 0xffffffff) && !takes_branch(6, 0xffffffff, 0) && !takes_branch(6, 3, 3));
    assert_true(takes_branch(7, 0xffffffff, 0) && takes_branch(7, 3, 3) && !takes_branch(7, 0, 0xffffffff));
}

static void test_jumps(void **state)
{
    VmfRv32 cpu = PROGRAM(jal(RA, 12), NOP, NOP, JALR(T0, RA, 1));

    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.pc, RAM + 12);
    assert_int_equal(cpu.state.x[RA], RAM + 4);
    vmf_rv32_run(&cpu, 2); /* the lowest bit of a JALR's target is dropped */
    assert_int_equal(cpu.state.pc, RAM + 4);
    assert_int_equal(cpu.state.x[T0], RAM + 16);
}

static void test_jalr_to_its_own_link_register(void **state)
{
    VmfRv32 cpu = PROGRAM(JALR(A0, A0, 8));

    cpu.state.x[A0] = RAM + 0x100;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.pc, RAM + 0x108);
    assert_int_equal(cpu.state.x[A0], RAM + 4);
}

static void test_misaligned_jumps_trap_at_the_jump(void **state)
{
    assert_traps(jal(A0, 6), 0, 0, RAM + 6);
    assert_traps(JALR(A0, A1, 2), RAM, 0, RAM + 2);
    assert_traps(branch(1, A1, ZERO, 6), 1, 0, RAM + 6);
    assert_false(takes_branch(0, 0, 1)); /* not taken: nothing to complain of */
}

static void test_fetch_outside_memory(void **state)
{
    VmfRv32 cpu = PROGRAM(JALR(ZERO, A1, 0));

    cpu.state.x[A1] = 0x1000;
    vmf_rv32_run(&cpu, 2);
    assert_trapped(&cpu, 1, 0x1000, 0x1000);
}

static void test_run_off_the_end_of_memory(void **state)
{
    VmfRv32 cpu = PROGRAM(NOP);

    memcpy(ram + sizeof(ram) - 4, (const uint32_t[]){NOP}, 4);
    cpu.state.pc = RAM + sizeof(ram) - 4;
    vmf_rv32_run(&cpu, 2);
    assert_trapped(&cpu, 1, RAM + sizeof(ram), RAM + sizeof(ram));
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static uint32_t load(unsigned f3, uint32_t address)
{
    VmfRv32 cpu = PROGRAM(LOAD(f3, A0, A1, -4));
    const uint8_t bytes[] = {0x80, 0x91, 0xa2, 0xb3};

    memcpy(ram + 0x2000, bytes, 4);
    memcpy(rom, bytes, 4);
    cpu.state.x[A1] = address + 4;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.pc, RAM + 4);
    return cpu.state.x[A0];
}

static void test_loads(void **state)
{
    const uint32_t at[] = {DATA, ROM};

    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(load(0, at[i]), 0xffffff80);
        assert_int_equal(load(0, at[i] + 3), 0xffffffb3);
        assert_int_equal(load(1, at[i]), 0xffff9180);
        assert_int_equal(load(1, at[i] + 2), 0xffffb3a2);
        assert_int_equal(load(2, at[i]), 0xb3a29180);
        assert_int_equal(load(4, at[i] + 1), 0x91);
        assert_int_equal(load(5, at[i] + 2), 0xb3a2);
    }
}

static void test_stores(void **state)
{
    VmfRv32 cpu = PROGRAM(store(0, A0, A1, -1), store(1, A0, A1, 2), store(2, A0, A1, 4));

    cpu.state.x[A0] = 0x12345678;
    cpu.state.x[A1] = DATA;
    vmf_rv32_run(&cpu, 3);
    assert_memory_equal(ram + 0x1fff, "\x78\x00\x00\x78\x56\x78\x56\x34\x12\x00", 10);
}

static void test_misaligned_access_traps(void **state)
{
    assert_traps(LOAD(2, A0, A1, 0), DATA + 2, 4, DATA + 2);
    assert_traps(LOAD(1, A0, A1, 0), DATA + 1, 4, DATA + 1);
    assert_traps(LOAD(5, A0, A1, 0), ROM + 3, 4, ROM + 3);
    assert_traps(store(2, A0, A1, 0), DATA + 1, 6, DATA + 1);
    assert_traps(store(1, A0, A1, 0), DATA + 1, 6, DATA + 1);
    assert_traps(LOAD(2, A0, A1, 0), RAM + sizeof(ram) - 2, 4, RAM + sizeof(ram) - 2);
}

static void test_access_outside_memory_traps(void **state)
{
    assert_traps(LOAD(2, A0, A1, 0), RAM + sizeof(ram), 5, RAM + sizeof(ram));
    assert_traps(LOAD(0, A0, A1, 0), 0, 5, 0);
    assert_traps(store(2, A0, A1, 0), RAM - 4, 7, RAM - 4);
    assert_traps(store(0, A0, A1, 0), DEVICE + 1, 7, DEVICE + 1);
}

static void test_rom_is_read_only(void **state)
{
    rom[0] = 0x55;
    assert_traps(store(0, A0, A1, 0), ROM, 7, ROM);
    assert_traps(AMO(0, A0, A1, A2), ROM, 7, ROM);
    assert_int_equal(rom[0], 0x55);
}

static void test_device(void **state)
{
    VmfRv32 cpu = PROGRAM(store(2, A0, A1, 0), LOAD(2, A2, A1, 0));

    cpu.state.x[A0] = 0xfeed;
    cpu.state.x[A1] = DEVICE;
    vmf_rv32_run(&cpu, 2);
    assert_int_equal(device_value, 0xfeed);
    assert_int_equal(cpu.state.x[A2], 0xfeed);
}

static void test_stores_reach_the_dirty_log(void **state)
{
    VmfRv32 cpu = PROGRAM(store(0, A0, A1, 0), AMO(0, A0, A1, A2), LOAD(0, A0, A2, 0), store(2, A0, A3, 0));
    VmfLogBitmap main_memory, other;

    assert_true(vmf_log_bitmap_init(&main_memory, 4, NULL) && vmf_log_bitmap_init(&other, 1, NULL));
    cpu.regions[0].dirty = &main_memory;
    cpu.regions[2].dirty = &other;
    cpu.state.x[A1] = DATA;
    cpu.state.x[A2] = RAM + 0x3000;
    cpu.state.x[A3] = 0x40000000;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(main_memory.words[0], 1 << 2);
    main_memory.words[0] = 0;
    vmf_rv32_run(&cpu, 3);
    assert_int_equal(main_memory.words[0], 1 << 2);
    assert_int_equal(other.words[0], 0);
    vmf_rv32_run(&cpu, 4);
    assert_int_equal(other.words[0], 1);
    vmf_log_bitmap_destroy(&main_memory);
    vmf_log_bitmap_destroy(&other);
}

/* ---- atomics ----------------------------------------------------------------------------------------------------- */

/* What an AMO leaves in memory; the register gets the old value. */
static uint32_t amo(unsigned f5, uint32_t old, uint32_t operand)
{
    VmfRv32 cpu = PROGRAM(AMO(f5, A0, A1, A2));
    uint32_t result;

    memcpy(ram + 0x2000, &old, 4);
    cpu.state.x[A1] = DATA;
    cpu.state.x[A2] = operand;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.x[A0], old);
    memcpy(&result, ram + 0x2000, 4);
    return result;
}

static void test_amo(void **state)
{
    assert_int_equal(amo(0x00, 5, 7), 12);
    assert_int_equal(amo(0x01, 5, 7), 7);
    assert_int_equal(amo(0x04, 0xff, 0x0f), 0xf0);
    assert_int_equal(amo(0x08, 0xf0, 0x0f), 0xff);
    assert_int_equal(amo(0x0c, 0xf0, 0x3c), 0x30);
    assert_int_equal(amo(0x10, (uint32_t)-1, 1), (uint32_t)-1);
    assert_int_equal(amo(0x14, (uint32_t)-1, 1), 1);
    assert_int_equal(amo(0x18, (uint32_t)-1, 1), 1);
    assert_int_equal(amo(0x1c, (uint32_t)-1, 1), (uint32_t)-1);
}

static void test_amo_that_overwrites_its_address(void **state)
{
    VmfRv32 cpu = PROGRAM(AMO(0, A1, A1, A1));
    uint32_t result;

    cpu.state.x[A1] = DATA;
    vmf_rv32_run(&cpu, 1);
    memcpy(&result, ram + 0x2000, 4);
    assert_int_equal(result, DATA);
    assert_int_equal(cpu.state.x[A1], 0);
}

static void test_reservation(void **state)
{
    VmfRv32 cpu = PROGRAM(AMO(3, A0, A1, A2), AMO(2, A3, A1, 0), AMO(3, T0, A1, A2), AMO(3, T1, A1, A2));
    uint32_t result;

    cpu.state.x[A1] = DATA;
    cpu.state.x[A2] = 9;
    vmf_rv32_run(&cpu, 1);
    memcpy(&result, ram + 0x2000, 4);
    assert_int_equal(cpu.state.x[A0], 1); /* no reservation: fails, stores nothing */
    assert_int_equal(result, 0);
    vmf_rv32_run(&cpu, 4);
    memcpy(&result, ram + 0x2000, 4);
    assert_int_equal(cpu.state.x[T0], 0);
    assert_int_equal(result, 9);
    assert_int_equal(cpu.state.x[T1], 1); /* it holds for one SC */
}

static void test_bad_atomics_trap(void **state)
{
    assert_traps(AMO(2, A0, A1, 0), DATA + 2, 4, DATA + 2);
    assert_traps(AMO(3, A0, A1, A2), DATA + 1, 6, DATA + 1);
    assert_traps(AMO(0, A0, A1, A2), DEVICE, 7, DEVICE);
    assert_traps(AMO(2, A0, A1, 0), DEVICE, 5, DEVICE);
    assert_traps(AMO(2, A0, A1, 1), DATA, 2, AMO(2, A0, A1, 1));
    assert_traps(AMO(5, A0, A1, A2), DATA, 2, AMO(5, A0, A1, A2));
    assert_traps(type_r(0x2f, 3, 0, A0, A1, A2), DATA, 2, type_r(0x2f, 3, 0, A0, A1, A2));
}

/* ---- system ------------------------------------------------------------------------------------------------------ */

static void test_illegal_instructions_trap(void **state)
{
    const uint32_t illegal[] = {
        0x00000000,
        0xffffffff,
        0x00000012, /* not a 32-bit instruction */
        OP(0, 2, A0, A1, A2),
        OP(1, 0x20, A0, A1, A2),
        OP(4, 0x21, A0, A1, A2),
        IMMEDIATE(1, A0, A1, 0x400),
        IMMEDIATE(5, A0, A1, 0x200),
        IMMEDIATE(1, A0, A1, 32),
        LOAD(3, A0, A1, 0),
        LOAD(6, A0, A1, 0),
        LOAD(7, A0, A1, 0),
        store(3, A0, A1, 0),
        store(7, A0, A1, 0),
        branch(2, A0, A1, 8),
        branch(3, A0, A1, 8),
        type_i(0x67, 1, A0, A1, 0),
        type_i(0x0f, 2, A0, A1, 0),
        type_i(0x1b, 0, A0, A1, 0),
        CSR(1, A0, 0x7c0, A1),
        CSR(1, A0, 0xc00, A1),
        CSR(2, A0, 0xf14, A1),
        CSR(4, A0, 0x340, A1),
        0x10200073,
    };

    for (size_t i = 0; i < sizeof(illegal) / sizeof(illegal[0]); i++)
        assert_traps(illegal[i], DATA, 2, illegal[i]);
}

static void test_environment_calls(void **state)
{
    assert_traps(0x00000073, 0, 11, 0);
    assert_traps(0x00100073, 0, 3, RAM);
}

static void test_csr_forms(void **state)
{
    VmfRv32 cpu = PROGRAM(CSR(1, A0, 0x340, A1), CSR(2, A2, 0x340, A3), CSR(3, T0, 0x340, A1), CSR(5, T1, 0x340, 21),
                          CSR(6, T2, 0x340, 10), CSR(7, S0, 0x340, 1), CSR(2, S1, 0x340, ZERO));

    cpu.state.x[A1] = 0xf0;
    cpu.state.x[A3] = 0x0f;
    vmf_rv32_run(&cpu, 7);
    assert_int_equal(cpu.state.x[A0], 0);
    assert_int_equal(cpu.state.x[A2], 0xf0);
    assert_int_equal(cpu.state.x[T0], 0xff);
    assert_int_equal(cpu.state.x[T1], 0x0f);
    assert_int_equal(cpu.state.x[T2], 21);
    assert_int_equal(cpu.state.x[S0], 31);
    assert_int_equal(cpu.state.x[S1], 30);
}

static void test_csr_masks(void **state)
{
    VmfRv32 cpu = PROGRAM(CSR(1, A0, 0x300, A1), CSR(1, A0, 0x304, A1), CSR(1, A0, 0x305, A1), CSR(1, A0, 0x341, A1),
                          CSR(1, A0, 0x344, A1), CSR(2, A2, 0x300, ZERO), CSR(2, A3, 0x344, ZERO));

    cpu.state.x[A1] = 0xffffffff;
    vmf_rv32_run(&cpu, 7);
    assert_int_equal(cpu.state.x[A2], 0x1888);
    assert_int_equal(cpu.state.x[A3], 0);
    assert_int_equal(cpu.state.mie, 0x80);
    assert_int_equal(cpu.state.mtvec, 0xfffffffc);
    assert_int_equal(cpu.state.mepc, 0xfffffffc);
    assert_null(vmf_rv32_state_problem(&cpu.state));
}

static void test_counters_count_instructions(void **state)
{
    VmfRv32 cpu = PROGRAM(NOP, CSR(2, A0, 0xc00, ZERO), CSR(2, A1, 0xc01, ZERO), CSR(2, A2, 0xb02, ZERO),
                          CSR(2, A3, 0xc82, ZERO));

    cpu.state.instructions = 0x5fffffff0;
    cpu.state.timer_compare = UINT64_MAX;
    vmf_rv32_run(&cpu, 0x5fffffff0 + 5);
    assert_int_equal(cpu.state.x[A0], 0xfffffff1);
    assert_int_equal(cpu.state.x[A1], 0xfffffff2);
    assert_int_equal(cpu.state.x[A2], 0xfffffff3);
    assert_int_equal(cpu.state.x[A3], 5);
}

static void test_trap_and_return(void **state)
{
    VmfRv32 cpu = PROGRAM(0x00000073, NOP);

    memcpy(ram + 0x1000, (const uint32_t[]){MRET}, 4);
    cpu.state.mstatus = 0x8;
    vmf_rv32_run(&cpu, 1);
    assert_int_equal(cpu.state.mstatus, 0x80); /* interrupts off in the handler, remembered */
    vmf_rv32_run(&cpu, 2);
    assert_int_equal(cpu.state.pc, RAM);
    assert_int_equal(cpu.state.mstatus, 0x88);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static VmfRv32 timer_program(uint32_t first, uint64_t compare)
{
    VmfRv32 cpu = PROGRAM(first, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP);

    memcpy(ram + 0x1000, (const uint32_t[]){NOP, NOP, NOP, NOP}, 16);
    cpu.state.mstatus = 0x8;
    cpu.state.mie = 0x80;
    cpu.state.timer_compare = compare;
    return cpu;
}

static void test_timer_interrupt_comes_at_its_count(void **state)
{
    VmfRv32 cpu = timer_program(NOP, 5);

    vmf_rv32_run(&cpu, 5);
    assert_int_equal(cpu.state.pc, RAM + 20); /* due, taken before the next instruction */
    vmf_rv32_run(&cpu, 6);
    assert_int_equal(cpu.state.mcause, 0x80000007);
    assert_int_equal(cpu.state.mepc, RAM + 20);
    assert_int_equal(cpu.state.pc, HANDLER + 4);
    vmf_rv32_run(&cpu, 8); /* still pending, but masked in the handler */
    assert_int_equal(cpu.state.pc, HANDLER + 12);
}

static void test_timer_interrupt_cuts_into_a_run(void **state)
{
    VmfRv32 cpu = timer_program(NOP, 5);

    vmf_rv32_run(&cpu, 7);
    assert_int_equal(cpu.state.mepc, RAM + 20);
    assert_int_equal(cpu.state.pc, HANDLER + 8);
}

static void test_masked_timer_waits(void **state)
{
    VmfRv32 cpu = timer_program(NOP, 2);

    cpu.state.mstatus = 0;
    vmf_rv32_run(&cpu, 4);
    assert_int_equal(cpu.state.pc, RAM + 16);
    cpu.state.mstatus = 8;
    vmf_rv32_run(&cpu, 5);
    assert_int_equal(cpu.state.mepc, RAM + 16);
}

static void test_wfi_skips_to_the_timer(void **state)
{
    VmfRv32 cpu = timer_program(WFI, 1000);

    vmf_rv32_run(&cpu, 500);
    assert_true(cpu.state.waiting);
    assert_int_equal(cpu.state.instructions, 500);
    vmf_rv32_run(&cpu, 1001);
    assert_int_equal(cpu.state.mepc, RAM + 4);
    assert_int_equal(cpu.state.pc, HANDLER + 4);
}

static void test_wfi_with_interrupts_masked_goes_on(void **state)
{
    VmfRv32 cpu = timer_program(WFI, 1000);

    cpu.state.mstatus = 0;
    vmf_rv32_run(&cpu, 1003);
    assert_int_equal(cpu.state.pc, RAM + 16);
    assert_int_equal(cpu.state.mcause, 0);
}

static void test_wfi_with_a_pending_timer_does_not_wait(void **state)
{
    VmfRv32 cpu = timer_program(WFI, 0);

    cpu.state.mstatus = 0;
    vmf_rv32_run(&cpu, 3);
    assert_int_equal(cpu.state.pc, RAM + 12);
}

static void test_wfi_without_a_timer_waits_for_ever(void **state)
{
    VmfRv32 cpu = timer_program(WFI, 10);

    cpu.state.mie = 0;
    vmf_rv32_run(&cpu, 1u << 30);
    assert_true(cpu.state.waiting);
    assert_int_equal(cpu.state.pc, RAM + 4);
    assert_int_equal(cpu.state.instructions, 1u << 30);
}

/* The same program, run in one piece and in pieces of each length, ends in the same state. */
static void test_cuts_make_no_difference(void **state)
{
    const uint32_t handler[] = {IMMEDIATE(0, A3, A3, 1),
                                CSR(2, T0, 0xc00, ZERO),
                                store(2, T0, A1, 0),
                                IMMEDIATE(0, T0, T0, 50),
                                CSR(1, ZERO, 0x340, T0),
                                CSR(3, ZERO, 0x304, T2),
                                MRET};

    for (unsigned piece = 1; piece < 40; piece++) {
        VmfRv32 whole = timer_program(WFI, 70), cut;

        memcpy(ram + 0x1000, handler, sizeof(handler));
        memcpy(ram + 4, (const uint32_t[]){IMMEDIATE(0, A0, A0, 1), jal(ZERO, -8)}, 8);
        whole.state.x[A1] = DATA;
        whole.state.x[T2] = 0; /* the handler leaves the timer on: it stays pending and comes again and again */
        cut = whole;
        vmf_rv32_run(&whole, 1000);
        for (uint64_t at = piece; at < 1000; at += piece)
            vmf_rv32_run(&cut, at);
        vmf_rv32_run(&cut, 1000);
        assert_memory_equal(&whole.state, &cut.state, sizeof(whole.state));
        assert_true(whole.state.x[A3] > 100);
    }
}

static void test_state_of_a_peer_is_checked(void **state)
{
    VmfRv32State good, bad;

    vmf_rv32_reset(&good, RAM);
    assert_null(vmf_rv32_state_problem(&good));
#define REFUSED(member, value) (bad = good, bad.member = (value), assert_non_null(vmf_rv32_state_problem(&bad)))
    REFUSED(pc, RAM + 2);
    REFUSED(x[0], 1);
    REFUSED(mstatus, 0x1800);
    REFUSED(mie, 8);
    REFUSED(mtvec, 1);
    REFUSED(mepc, 2);
    REFUSED(reserved_address, 3);
    REFUSED(instructions, UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arithmetic),
        cmocka_unit_test(test_immediates),
        cmocka_unit_test(test_multiply),
        cmocka_unit_test(test_divide),
        cmocka_unit_test(test_divide_by_zero_and_overflow),
        cmocka_unit_test(test_upper_immediates_and_x0),
        cmocka_unit_test(test_branches),
        cmocka_unit_test(test_jumps),
        cmocka_unit_test(test_jalr_to_its_own_link_register),
        cmocka_unit_test(test_misaligned_jumps_trap_at_the_jump),
        cmocka_unit_test(test_fetch_outside_memory),
        cmocka_unit_test(test_run_off_the_end_of_memory),
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_stores),
        cmocka_unit_test(test_misaligned_access_traps),
        cmocka_unit_test(test_access_outside_memory_traps),
        cmocka_unit_test(test_rom_is_read_only),
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_stores_reach_the_dirty_log),
        cmocka_unit_test(test_amo),
        cmocka_unit_test(test_amo_that_overwrites_its_address),
        cmocka_unit_test(test_reservation),
        cmocka_unit_test(test_bad_atomics_trap),
        cmocka_unit_test(test_illegal_instructions_trap),
        cmocka_unit_test(test_environment_calls),
        cmocka_unit_test(test_csr_forms),
        cmocka_unit_test(test_csr_masks),
        cmocka_unit_test(test_counters_count_instructions),
        cmocka_unit_test(test_trap_and_return),
        cmocka_unit_test(test_timer_interrupt_comes_at_its_count),
        cmocka_unit_test(test_timer_interrupt_cuts_into_a_run),
        cmocka_unit_test(test_masked_timer_waits),
        cmocka_unit_test(test_wfi_skips_to_the_timer),
        cmocka_unit_test(test_wfi_with_interrupts_masked_goes_on),
        cmocka_unit_test(test_wfi_with_a_pending_timer_does_not_wait),
        cmocka_unit_test(test_wfi_without_a_timer_waits_for_ever),
        cmocka_unit_test(test_cuts_make_no_difference),
        cmocka_unit_test(test_state_of_a_peer_is_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
