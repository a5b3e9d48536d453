/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The vCPU thread runs slices of a quarter of a guest millisecond and looks between them, under the lock, at what is
 * asked of it; so a stop takes the time of a slice at most. Standing still, it waits on the condition variable.
 *
 * Time: guest milliseconds end at multiples of GUEST_TICK instructions, and the thread sleeps there until the real
 * millisecond ends too. Throttling makes the real one longer. Nothing of this can be seen by the guest, whose clock
 * counts instructions. A thread that has fallen behind catches up, but not by more than LAG_MAX_NS: after a pause there
 * is no burst.
 */
#include "machine/machine-private.h"
#include <time.h>
#include <vmferry/error.h>

#define NS_PER_SECOND 1000000000ull
#define TICK_NS 1000000ull
#define LAG_MAX_NS (10 * TICK_NS)
#define SLICE (GUEST_TICK / 4)

uint64_t vmf_machine_clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* Waits for a change until @due_ns; false once that is past. */
static bool wait_change(VmfMachine *m, uint64_t due_ns)
{
    struct timespec due = {.tv_sec = (time_t)(due_ns / NS_PER_SECOND), .tv_nsec = (long)(due_ns % NS_PER_SECOND)};

    return pthread_cond_timedwait(&m->changed, &m->lock, &due) == 0;
}

/* ---- the vCPU thread, with the lock held unless stated ----------------------------------------------------------- */

static bool may_run(VmfMachine *m)
{
    if (m->stop_at && m->cpu.state.instructions >= m->stop_at) {
        m->finishing = false;
        return false;
    }
    return !m->holds && (m->want_run || m->finishing);
}

static void stand(VmfMachine *m)
{
    m->standing = true;
    pthread_cond_broadcast(&m->changed);
    pthread_cond_wait(&m->changed, &m->lock);
    m->standing = false;
}

/* Runs to the end of the slice, or to the point where it is to stop. */
static void run_slice(VmfMachine *m)
{
    uint64_t limit = (m->cpu.state.instructions / SLICE + 1) * SLICE;

    if (m->stop_at && limit > m->stop_at)
        limit = m->stop_at;
    m->executing = true;
    pthread_mutex_unlock(&m->lock);
    vmf_rv32_run(&m->cpu, limit);
    pthread_mutex_lock(&m->lock);
    m->executing = false;
    m->slices++;
    if (m->passing)
        pthread_cond_broadcast(&m->changed);
    m->instructions = m->cpu.state.instructions;
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
        if (!wait_change(m, m->due_ns))
            break;
        now_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);
    }
    m->tick_began_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);
}

static void *vcpu_main(void *opaque)
{
    VmfMachine *m = opaque;

    pthread_mutex_lock(&m->lock);
    while (!m->quit) {
        if (!may_run(m)) {
            stand(m);
            continue;
        }
        run_slice(m);
        pace(m);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* ---- other threads ----------------------------------------------------------------------------------------------- */

void vmf_vcpu_init(VmfMachine *m)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&m->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

bool vmf_vcpu_create(VmfMachine *m, GError **error)
{
    int result = pthread_create(&m->thread, NULL, vcpu_main, m);
    m->has_thread = result == 0;
    if (!m->has_thread)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "machine: vCPU thread: %s", g_strerror(result));
    return m->has_thread;
}

void vmf_vcpu_destroy(VmfMachine *m)
{
    if (m->has_thread) {
        pthread_mutex_lock(&m->lock);
        m->quit = true;
        pthread_cond_broadcast(&m->changed);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
    }
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
}

void vmf_vcpu_hold(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    m->holds++;
    pthread_cond_broadcast(&m->changed);
    while (!m->standing)
        pthread_cond_wait(&m->changed, &m->lock);
}

void vmf_vcpu_unhold(VmfMachine *m)
{
    m->holds--;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

void vmf_vcpu_pass(void *opaque)
{
    VmfMachine *m = opaque;

    pthread_mutex_lock(&m->lock);
    uint64_t slice = m->slices;
    m->passing++;
    while (m->executing && m->slices == slice)
        pthread_cond_wait(&m->changed, &m->lock);
    m->passing--;
    pthread_mutex_unlock(&m->lock);
}

static void begin_to_run(VmfMachine *m, bool by_owner)
{
    m->want_run = true;
    m->due_ns = 0;
    m->beats_since_start = 0;
    m->gap_known = false;
    if (by_owner)
        m->beat.last_monotonic_ns = m->beat.last_realtime_ns = 0;
    pthread_cond_broadcast(&m->changed);
}

bool vmf_vcpu_start(VmfMachine *m, bool by_owner, GError **error)
{
    pthread_mutex_lock(&m->lock);
    const char *why = m->released            ? "the guest has moved away and its memory is released"
                      : by_owner && m->taken ? "the guest is being handed over"
                                             : NULL;
    if (!why) {
        if (by_owner)
            m->kept = false;
        else
            m->taken = false;
        if (!m->want_run && !m->kept)
            begin_to_run(m, by_owner);
    }
    pthread_mutex_unlock(&m->lock);
    if (why)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "%s: start: %s", m->name, why);
    return !why;
}

void vmf_vcpu_stop(VmfMachine *m, bool by_owner)
{
    pthread_mutex_lock(&m->lock);
    m->kept |= m->lent && by_owner;
    m->taken |= m->lent && !by_owner;
    m->finishing = m->want_run && m->stop_at;
    m->want_run = false;
    pthread_cond_broadcast(&m->changed);
    while (!m->standing || m->finishing)
        pthread_cond_wait(&m->changed, &m->lock);
    m->stop_at = 0;
    pthread_mutex_unlock(&m->lock);
}

void vmf_machine_lend(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    m->lent = true;
    pthread_mutex_unlock(&m->lock);
}

void vmf_machine_take_back(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    m->lent = m->taken = m->kept = false;
    pthread_mutex_unlock(&m->lock);
}

bool vmf_machine_is_running(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    bool running = m->want_run;
    pthread_mutex_unlock(&m->lock);
    return running;
}

bool vmf_machine_stop_at(VmfMachine *m, uint64_t instruction, GError **error)
{
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

/* ---- what the engine calls --------------------------------------------------------------------------------------- */

static bool guest_stop(void *opaque, GError **error)
{
    vmf_vcpu_stop(opaque, false);
    return true;
}

static bool guest_start(void *opaque, GError **error)
{
    return vmf_vcpu_start(opaque, false, error);
}

static bool guest_is_running(void *opaque)
{
    return vmf_machine_is_running(opaque);
}

static void guest_throttle(void *opaque, unsigned percent)
{
    VmfMachine *m = opaque;

    pthread_mutex_lock(&m->lock);
    m->throttle_percent = MIN(percent, 99);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

static bool guest_gap(void *opaque, int64_t timeout_ns, uint64_t *gap_ns)
{
    VmfMachine *m = opaque;
    uint64_t due_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC) + (uint64_t)MAX(timeout_ns, 0);

    pthread_mutex_lock(&m->lock);
    while (!m->beats_since_start && m->want_run && wait_change(m, due_ns))
        continue;
    bool known = m->beats_since_start && m->gap_known;
    *gap_ns = known ? m->gap_ns : 0;
    pthread_mutex_unlock(&m->lock);
    return known;
}

const VmfGuestOps vmf_machine_guest_ops = {
    .size = sizeof(VmfGuestOps),
    .stop = guest_stop,
    .start = guest_start,
    .is_running = guest_is_running,
    .throttle = guest_throttle,
    .guest_gap = guest_gap,
};
