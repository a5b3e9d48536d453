/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * Run control, whatever executes the guest. Each vCPU has a thread that belongs to the backend; it runs slices and
 * looks between them, under the lock, at what is asked of it. Standing still, it waits on the condition variable.
 * Whoever needs the guest to stand says so in a field, kicks the vCPUs (a backend whose slices end by themselves needs
 * no kick) and waits until all stand.
 */
#include "machine/machine-private.h"
#include <string.h>
#include <time.h>
#include <vmferry/error.h>

#define NS_PER_SECOND 1000000000ull

uint64_t vmf_machine_clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

bool vmf_machine_wait(VmfMachine *m, uint64_t due_ns)
{
    struct timespec due = {.tv_sec = (time_t)(due_ns / NS_PER_SECOND), .tv_nsec = (long)(due_ns % NS_PER_SECOND)};

    return pthread_cond_timedwait(&m->changed, &m->lock, &due) == 0;
}

/* ---- vCPU threads, with the lock held ---------------------------------------------------------------------------- */

/*
 * One broadcast for each time a vCPU comes to stand, none while it goes on standing: vCPUs that woke each other with it
 * would never be quiet.
 */
void vmf_vcpu_stand(VmfMachine *m, bool (*may_run)(VmfMachine *))
{
    m->n_standing++;
    pthread_cond_broadcast(&m->changed);
    do
        pthread_cond_wait(&m->changed, &m->lock);
    while (!m->quit && !may_run(m));
    m->n_standing--;
}

static bool all_stand(const VmfMachine *m)
{
    return m->n_standing == m->n_vcpus;
}

/* Something changed that a vCPU should look at. */
static void tell_vcpus(VmfMachine *m)
{
    pthread_cond_broadcast(&m->changed);
    if (m->backend->kick)
        m->backend->kick(m);
}

void vmf_vcpu_enter(VmfMachine *m, unsigned vcpu)
{
    m->turns[vcpu].executing = true;
    pthread_mutex_unlock(&m->lock);
}

void vmf_vcpu_leave(VmfMachine *m, unsigned vcpu)
{
    pthread_mutex_lock(&m->lock);
    m->turns[vcpu].executing = false;
    m->turns[vcpu].slices++;
    if (m->passing)
        pthread_cond_broadcast(&m->changed);
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

bool vmf_vcpu_create(VmfMachine *m, void *(*vcpu_main)(void *), void *opaque, GError **error)
{
    unsigned vcpu = m->n_vcpus;
    int result = pthread_create(&m->turns[vcpu].thread, NULL, vcpu_main, opaque);

    if (result == 0)
        m->n_vcpus++;
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "machine: vCPU thread: %s", g_strerror(result));
    return result == 0;
}

void vmf_vcpu_destroy(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    m->quit = true;
    tell_vcpus(m);
    pthread_mutex_unlock(&m->lock);
    for (unsigned vcpu = 0; vcpu < m->n_vcpus; vcpu++)
        pthread_join(m->turns[vcpu].thread, NULL);
}

void vmf_vcpu_clear(VmfMachine *m)
{
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
}

void vmf_vcpu_hold(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    m->holds++;
    tell_vcpus(m);
    while (!all_stand(m))
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
    VmfVcpuTurn before[VMF_VCPUS_MAX];
    memcpy(before, m->turns, sizeof(before));
    m->passing++;
    if (m->backend->kick)
        m->backend->kick(m);
    for (unsigned i = 0; i < m->n_vcpus; i++) {
        /* One that was between two slices is past already, and was not kicked. */
        while (before[i].executing && m->turns[i].executing && m->turns[i].slices == before[i].slices)
            pthread_cond_wait(&m->changed, &m->lock);
    }
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
    const char *why = m->failure             ? m->failure
                      : m->memory_lost       ? "a part of its memory or of a disk cannot be had"
                      : m->released          ? "the guest has moved away and its memory is released"
                      : by_owner && m->taken ? "the guest is being handed over"
                                             : NULL;
    bool may_run = !why && vmf_machine_hold_storage(m, error);
    if (may_run) {
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
    return may_run;
}

void vmf_vcpu_stop(VmfMachine *m, bool by_owner)
{
    pthread_mutex_lock(&m->lock);
    m->kept |= m->lent && by_owner;
    m->taken |= m->lent && !by_owner;
    m->finishing = m->want_run && m->stop_at;
    m->want_run = false;
    tell_vcpus(m);
    while (!all_stand(m) || m->finishing || vmf_disks_busy(m))
        pthread_cond_wait(&m->changed, &m->lock);
    m->stop_at = 0;
    pthread_mutex_unlock(&m->lock);
}

void vmf_vcpu_lose_memory(VmfMachine *m)
{
    m->memory_lost = true;
    m->want_run = m->finishing = false;
    pthread_cond_broadcast(&m->changed);
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

/* ---- what the engine calls --------------------------------------------------------------------------------------- */

static bool guest_stop(void *opaque, GError **error)
{
    VmfMachine *m = opaque;

    bool was_running = vmf_machine_is_running(m);
    vmf_vcpu_stop(m, false);
    if (!m->backend->stopped || m->backend->stopped(m, error))
        return true;
    if (was_running)
        vmf_vcpu_start(m, false, NULL);
    return false;
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
    if (m->backend->throttle)
        m->backend->throttle(m);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

static bool guest_gap(void *opaque, int64_t timeout_ns, uint64_t *gap_ns)
{
    VmfMachine *m = opaque;
    uint64_t due_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC) + (uint64_t)MAX(timeout_ns, 0);

    pthread_mutex_lock(&m->lock);
    while (!m->beats_since_start && m->want_run && vmf_machine_wait(m, due_ns))
        continue;
    bool known = m->beats_since_start && m->gap_known;
    *gap_ns = known ? m->gap_ns : 0;
    pthread_mutex_unlock(&m->lock);
    return known;
}

/* The stopped guest has no more to write: the console's file is its host's own. */
static bool storage_release(void *opaque, GError **error)
{
    VmfMachine *m = opaque;

    return vmf_disks_release(m, error) && (!m->storage || vmf_storage_lock_release(m->storage, error));
}

static bool storage_acquire(void *opaque, GError **error)
{
    VmfMachine *m = opaque;

    return vmf_machine_hold_storage(m, error);
}

/* Without the lock: a device may wait for the page while it holds it. The engine's stop() follows. */
static bool memory_lost(void *opaque)
{
    VmfMachine *m = opaque;

    m->memory_lost = true;
    return true;
}

/* What it has asked for fails from here on, and is not told (disk-device.c). */
static void disk_lost(void *opaque)
{
    VmfMachine *m = opaque;

    m->memory_lost = true;
}

const VmfGuestOps vmf_machine_guest_ops = {
    .size = sizeof(VmfGuestOps),
    .stop = guest_stop,
    .start = guest_start,
    .is_running = guest_is_running,
    .throttle = guest_throttle,
    .guest_gap = guest_gap,
    .storage_release = storage_release,
    .storage_acquire = storage_acquire,
    .memory_lost = memory_lost,
    .disk_lost = disk_lost,
};
