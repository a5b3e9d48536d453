/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The thread of the RV32 hart runs slices of a quarter of a guest millisecond and looks between them, under the lock,
 * at what is asked of it; so a stop takes the time of a slice at most.
 *
 * Time: guest milliseconds end at multiples of GUEST_TICK instructions, and the thread sleeps there until the real
 * millisecond ends too. Throttling makes the real one longer. Nothing of this can be seen by the guest, whose clock
 * counts instructions. A thread that has fallen behind catches up, but not by more than LAG_MAX_NS: after a pause there
 * is no burst.
 *
 * A disk's request ends for the guest at a count of its own, where the thread leaves its slice; where the host is not done by then it
 * stands, as for a stop.
 *
 * A guest that touches a page that cannot be had is left in the middle of that instruction (memory-guard.c), with its
 * registers as of some point of the slice. That state is good for nothing but being stood still with: it is never run
 * again, and a load replaces all of it.
 */
#include "machine/machine-private.h"
#include "machine/memory-guard.h"
#include <vmferry/error.h>

#define TICK_NS 1000000ull
#define LAG_MAX_NS (10 * TICK_NS)
#define SLICE (GUEST_TICK / 4)

/* ---- the hart's thread, with the lock held ----------------------------------------------------------------------- */

static bool may_run(VmfMachine *m)
{
    if (m->stop_at && m->cpu.state.instructions >= m->stop_at) {
        if (m->finishing)
            pthread_cond_broadcast(&m->changed);
        m->finishing = false;
        return false;
    }
    return !m->holds && (m->want_run || m->finishing) && !vmf_disks_hold_up(m);
}

typedef struct {
    VmfRv32 *cpu;
    uint64_t limit; /* instructions */
} Slice;

static void execute(void *opaque)
{
    const Slice *slice = opaque;

    vmf_rv32_run(slice->cpu, slice->limit);
}

/* Runs to the end of the slice, or to the point where it is to stop. */
static void run_slice(VmfMachine *m)
{
    Slice slice = {&m->cpu, (m->cpu.state.instructions / SLICE + 1) * SLICE};

    if (m->stop_at && slice.limit > m->stop_at)
        slice.limit = m->stop_at;
    m->cpu.due = vmf_disks_due(m);
    vmf_vcpu_enter(m, 0);
    bool whole = vmf_memory_guard(m, execute, &slice);
    vmf_vcpu_leave(m, 0);
    m->instructions = m->cpu.state.instructions;
    if (!whole)
        vmf_vcpu_lose_memory(m);
}

/* When the guest millisecond that just ended is to end in real time. */
static uint64_t tick_due_ns(const VmfMachine *m, uint64_t now_ns)
{
    uint64_t share = 100 - m->throttle_percent;
    uint64_t due_ns;

    if (m->unpaced)
        return now_ns + (now_ns - m->tick_began_ns) * m->throttle_percent / share;
    due_ns = m->due_ns + TICK_NS * 100 / share;
    return m->due_ns == 0 || now_ns > due_ns + LAG_MAX_NS ? now_ns : due_ns;
}

static void pace(VmfMachine *m)
{
    unsigned percent = m->throttle_percent;
    uint64_t now_ns;

    if (m->cpu.state.instructions % GUEST_TICK || m->finishing)
        return;
    now_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);
    m->due_ns = tick_due_ns(m, now_ns);
    while (now_ns < m->due_ns && may_run(m) && !m->finishing && !m->quit && m->throttle_percent == percent) {
        if (!vmf_machine_wait(m, m->due_ns))
            break;
        now_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);
    }
    m->tick_began_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);
}

void *vmf_rv32_vcpu_main(void *opaque)
{
    VmfMachine *m = opaque;

    pthread_mutex_lock(&m->lock);
    while (!m->quit) {
        if (!may_run(m)) {
            vmf_vcpu_stand(m, may_run);
            continue;
        }
        if (!vmf_disks_settle(m))
            continue;
        run_slice(m);
        pace(m);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* ---- stopping at a point of the run ------------------------------------------------------------------------------ */

static bool counts_instructions(const VmfMachine *m, GError **error)
{
    if (m->backend == &vmf_rv32_backend)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: stop at an instruction: backend %s does not count them",
                m->name, m->backend->name);
    return false;
}

bool vmf_machine_stop_at(VmfMachine *m, uint64_t instruction, GError **error)
{
    if (!counts_instructions(m, error))
        return false;
    vmf_vcpu_hold(m);
    uint64_t count = m->cpu.state.instructions;
    bool passed = instruction && instruction < count;
    if (!passed)
        m->stop_at = instruction;
    vmf_vcpu_unhold(m);
    if (passed)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE,
                    "%s: stop at instruction %" G_GUINT64_FORMAT ": %" G_GUINT64_FORMAT " are executed", m->name,
                    instruction, count);
    return !passed;
}

bool vmf_machine_run_to(VmfMachine *m, uint64_t instruction, GError **error)
{
    if (!vmf_machine_check_stopped(m, "run", error) || !counts_instructions(m, error))
        return false;
    if (m->cpu.state.instructions == instruction)
        return true; /* and 0 would mean: do not stop anywhere */
    if (!vmf_machine_stop_at(m, instruction, error) || !vmf_machine_start(m, error))
        return false;
    return vmf_machine_stop(m, error);
}
