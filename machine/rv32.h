/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RV32IMA, machine mode only, one hart. Everything the guest can observe is a function of the instructions it has
 * executed: the counter below is its clock, and WFI moves it ahead to the next timer event.
 */
#ifndef MACHINE_RV32_H
#define MACHINE_RV32_H

#include <stdbool.h>
#include <stdint.h>
#include "machine/dirty-log.h"

#define VMF_RV32_REGIONS 3

/* What an embedder saves, and all of it. */
typedef struct {
    uint32_t x[32]; /* x[0] is zero between instructions */
    uint32_t pc;
    uint32_t mstatus; /* MIE and MPIE; MPP reads as machine mode */
    uint32_t mie;     /* MTIE */
    uint32_t mtvec;
    uint32_t mscratch;
    uint32_t mepc;
    uint32_t mcause;
    uint32_t mtval;
    uint32_t reserved_address; /* of LR */
    bool reserved;
    bool waiting;           /* in WFI */
    uint64_t instructions;  /* mcycle, minstret and time; the timer compares with it */
    uint64_t timer_compare; /* the timer interrupt is pending from this count on */
} VmfRv32State;

/* Memory: an aligned access within it never fails. The first region is the fast one. */
typedef struct {
    uint8_t *host;
    uint32_t base;
    uint32_t size; /* bytes, a multiple of 4096 */
    bool read_only;
    VmfLogBitmap *dirty; /* NULL: writes are not recorded. Changes only while the hart stands */
} VmfRv32Region;

typedef struct {
    VmfRv32State state;
    VmfRv32Region regions[VMF_RV32_REGIONS];
    uint64_t due; /* vmf_rv32_run() returns at this count, however far it was to go; 0: none. May be set by mmio_write */

    /* Aligned accesses outside memory; false is an access fault. state.instructions is current; write may change
     * timer_compare. */
    bool (*mmio_read)(void *opaque, uint32_t address, unsigned size, uint32_t *value);
    bool (*mmio_write)(void *opaque, uint32_t address, unsigned size, uint32_t value);
    void *opaque;
} VmfRv32;

void vmf_rv32_reset(VmfRv32State *state, uint32_t pc);

/* Executes until state.instructions is @limit, or due. How a run is cut into calls makes no difference to the guest. */
void vmf_rv32_run(VmfRv32 *cpu, uint64_t limit);

/* Whether @state could be the state of a hart: what a peer sends is checked with it. NULL, or what is wrong. */
const char *vmf_rv32_state_problem(const VmfRv32State *state);

/* Whether an instruction could be fetched from @address. */
bool vmf_rv32_is_memory(VmfRv32 *cpu, uint32_t address);

#endif
