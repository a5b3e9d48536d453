/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * A vCPU's thread calls KVM_RUN, which returns for a device access, or because the vCPU was kicked. A kick sets
 * immediate_exit and sends a signal whose handler does nothing: the signal ends a KVM_RUN that is under way, and
 * immediate_exit one that is about to begin. Both happen under the machine's lock, under which the thread also resets
 * immediate_exit before it goes into a slice; so no kick is lost.
 *
 * An access to a device is complete only with the next KVM_RUN (an IN would lose its value, an OUT would be repeated).
 * So before the thread stands it calls KVM_RUN once more with immediate_exit set, which completes and does not enter
 * the guest.
 *
 * Throttling: the vCPUs rest for a share of each THROTTLE_PERIOD_NS, all at the same time. A thread of its own, which
 * begins with the first request, keeps the periods. On a host whose processors they fill, it is late in waking up to end
 * their slice, by more than a slice of the highest degrees lasts. So it measures how long they ran until the last of them
 * stood, and makes the rest as long as befits that.
 *
 * Memory that cannot be had (guest.h, memory_lost) makes KVM_RUN fail with EFAULT where the processor's own paging met it. Where KVM
 * carries out an instruction for the guest, it takes such memory for a device's; nothing runs after that exit, since memory_lost was
 * set before the memory became inaccessible. Either way the guest stands: it has not failed.
 *
 * Time does not stand while a guest rests or is stopped: the timer's interrupt waits for it, one of them at most.
 */
#include "machine/kvm.h"
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <vmferry/error.h>
#include "machine/kvm-log.h"

#define KICK_SIGNAL (SIGRTMIN + 5)
#define THROTTLE_PERIOD_NS 10000000ull
#define THROTTLE_REST_MOST_NS 1000000000ull

#define SERIAL_LINE_STATUS 5
#define SERIAL_EMPTY 0x60 /* whatever is sent is gone at once */

/* ---- device accesses --------------------------------------------------------------------------------------------- */

static bool port_write(VmfMachine *m, uint16_t port, uint32_t value)
{
    switch (port) {
    case GUEST_PORT_SERIAL:
        return vmf_machine_device_write(m, GUEST_REG_CONSOLE, value & 0xff);
    case GUEST_PORT_BEAT:
        return vmf_machine_device_write(m, GUEST_REG_BEAT, value);
    case GUEST_PORT_ERROR:
        return vmf_machine_device_write(m, GUEST_REG_ERROR, value);
    default:
        if (port >= GUEST_PORT_DISK)
            vmf_machine_disk_register_write(m, port - GUEST_PORT_DISK + GUEST_DISK_BASE, value);
        return true; /* nobody there: as on a bus */
    }
}

static uint32_t port_read(VmfMachine *m, uint16_t port)
{
    uint32_t value = 0xffffffff;

    if (port == GUEST_PORT_SERIAL + SERIAL_LINE_STATUS)
        value = SERIAL_EMPTY;
    else if (port >= GUEST_PORT_DISK)
        vmf_machine_disk_register_read(m, port - GUEST_PORT_DISK + GUEST_DISK_BASE, &value);
    return value;
}

static void handle_port(VmfKvmVcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    size_t size = MIN(run->io.size, 4);

    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint32_t value = 0;

        if (run->io.direction == KVM_EXIT_IO_IN) {
            value = port_read(vcpu->machine, run->io.port);
            memcpy(data, &value, size);
            continue;
        }
        memcpy(&value, data, size);
        port_write(vcpu->machine, run->io.port, value);
    }
}

static void lose_memory(VmfMachine *m)
{
    pthread_mutex_lock(&m->lock);
    vmf_vcpu_lose_memory(m);
    vmf_kvm_kick(m);
    pthread_mutex_unlock(&m->lock);
}

static void handle_mmio(struct kvm_run *run)
{
    if (!run->mmio.is_write)
        memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
}

/* The guest cannot go on. */
static void fail(VmfKvmVcpu *vcpu, const char *what, unsigned long detail)
{
    VmfMachine *m = vcpu->machine;

    if (m->memory_lost) {
        lose_memory(m);
        return;
    }
    pthread_mutex_lock(&m->lock);
    m->beat.errors++;
    if (!m->failure)
        m->failure = detail ? g_strdup_printf("vCPU %u: %s (%lu)", vcpu->index, what, detail)
                            : g_strdup_printf("vCPU %u: %s", vcpu->index, what);
    m->want_run = false;
    pthread_cond_broadcast(&m->changed);
    vmf_kvm_kick(m);
    pthread_mutex_unlock(&m->lock);
}

static void handle_exit(VmfKvmVcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        handle_port(vcpu);
        vcpu->unsettled = true;
        break;
    case KVM_EXIT_MMIO:
        handle_mmio(run);
        vcpu->unsettled = true;
        break;
    case KVM_EXIT_INTR:
        break;
    case KVM_EXIT_DIRTY_RING_FULL:
        if (!vmf_kvm_log_ring_full(vcpu))
            fail(vcpu, "the dirty ring overflowed", KVM_EXIT_DIRTY_RING_FULL);
        break;
    case KVM_EXIT_SHUTDOWN:
        fail(vcpu, "shut down by an exception that nobody handles", 0);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        fail(vcpu, "KVM cannot enter the guest", run->fail_entry.hardware_entry_failure_reason);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        fail(vcpu, "KVM has an internal error", run->internal.suberror);
        break;
    default:
        fail(vcpu, "KVM returned for an unknown reason", run->exit_reason);
    }
}

/* ---- the vCPU's thread ------------------------------------------------------------------------------------------- */

/* Returns whether the guest was left for a reason of its own. */
static bool run_vcpu(VmfKvmVcpu *vcpu)
{
    vcpu->unsettled = false;
    if (ioctl(vcpu->fd, KVM_RUN, 0) == 0)
        return true;
    if (errno == EFAULT)
        lose_memory(vcpu->machine);
    else if (errno != EINTR && errno != EAGAIN)
        fail(vcpu, "KVM_RUN fails", errno);
    return false;
}

static void set_immediate_exit(VmfKvmVcpu *vcpu, bool value)
{
    atomic_store((_Atomic uint8_t *)&vcpu->run->immediate_exit, value);
}

static bool may_run(VmfMachine *m)
{
    return m->want_run && !m->holds && !m->kvm->resting && !m->failure && !m->memory_lost;
}

/* Completes the latest access without going on. */
static void settle(VmfKvmVcpu *vcpu)
{
    set_immediate_exit(vcpu, true);
    vmf_vcpu_enter(vcpu->machine, vcpu->index);
    if (run_vcpu(vcpu))
        handle_exit(vcpu);
    vmf_vcpu_leave(vcpu->machine, vcpu->index);
}

static void run_slice(VmfKvmVcpu *vcpu)
{
    set_immediate_exit(vcpu, false);
    vmf_vcpu_enter(vcpu->machine, vcpu->index);
    if (!vmf_kvm_begin_system_time(vcpu))
        fail(vcpu, "KVM refuses the place of the guest's clock", 0);
    else if (run_vcpu(vcpu))
        handle_exit(vcpu);
    vmf_vcpu_leave(vcpu->machine, vcpu->index);
}

static void *vcpu_main(void *opaque)
{
    VmfKvmVcpu *vcpu = opaque;
    VmfMachine *m = vcpu->machine;

    pthread_mutex_lock(&m->lock);
    while (!m->quit) {
        if (may_run(m))
            run_slice(vcpu);
        else if (vcpu->unsettled)
            settle(vcpu);
        else
            vmf_vcpu_stand(m, may_run);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* ---- kicks ------------------------------------------------------------------------------------------------------- */

static void on_kick(int signal_number)
{
    (void)signal_number;
}

static void install_handler(void)
{
    struct sigaction action = {.sa_handler = on_kick};

    sigemptyset(&action.sa_mask);
    sigaction(KICK_SIGNAL, &action, NULL);
}

void vmf_kvm_kick(VmfMachine *m)
{
    for (unsigned i = 0; i < m->n_vcpus; i++) {
        if (!m->turns[i].executing)
            continue;
        set_immediate_exit(&m->kvm->vcpus[i], true);
        pthread_kill(m->turns[i].thread, KICK_SIGNAL);
    }
}

/* ---- throttling -------------------------------------------------------------------------------------------------- */

/* Lock held. Waits for @duration_ns, or until the throttle changes. */
static void wait_slice(VmfMachine *m, uint64_t duration_ns)
{
    uint64_t due_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC) + duration_ns;
    unsigned percent = m->throttle_percent;

    while (!m->quit && m->throttle_percent == percent && vmf_machine_wait(m, due_ns))
        continue;
}

/* Lock held. */
static void wait_until_all_stand(VmfMachine *m)
{
    unsigned percent = m->throttle_percent;

    while (!m->quit && m->throttle_percent == percent && m->n_standing < m->n_vcpus)
        pthread_cond_wait(&m->changed, &m->lock);
}

/* Lock held. Returns for how long the vCPUs might run. */
static uint64_t let_run(VmfMachine *m, unsigned percent)
{
    uint64_t begin_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);

    wait_slice(m, THROTTLE_PERIOD_NS * (100 - percent) / 100);
    m->kvm->resting = true;
    vmf_kvm_kick(m);
    wait_until_all_stand(m);
    return vmf_machine_clock_ns(CLOCK_MONOTONIC) - begin_ns;
}

/* Lock held. */
static void let_rest(VmfMachine *m, unsigned percent, uint64_t ran_ns)
{
    uint64_t rest_ns = MIN(ran_ns * percent / (100 - percent), THROTTLE_REST_MOST_NS);
    uint64_t begin_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);

    wait_slice(m, rest_ns);
    if (m->throttle_percent == percent && !m->quit) {
        m->kvm->throttled_ran_ns += ran_ns;
        m->kvm->throttled_rest_ns += vmf_machine_clock_ns(CLOCK_MONOTONIC) - begin_ns;
    }
    m->kvm->resting = false;
    pthread_cond_broadcast(&m->changed);
}

static void *throttler_main(void *opaque)
{
    VmfMachine *m = opaque;

    pthread_mutex_lock(&m->lock);
    while (!m->quit) {
        unsigned percent = m->throttle_percent;

        if (percent == 0) {
            pthread_cond_wait(&m->changed, &m->lock);
            continue;
        }
        let_rest(m, percent, let_run(m, percent));
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

void vmf_kvm_throttle(VmfMachine *m)
{
    if (!m->kvm->has_throttler && m->throttle_percent)
        m->kvm->has_throttler = pthread_create(&m->kvm->throttler, NULL, throttler_main, m) == 0;
}

void vmf_kvm_end_throttler(VmfMachine *m)
{
    if (m->kvm->has_throttler)
        pthread_join(m->kvm->throttler, NULL);
}

bool vmf_kvm_create_threads(VmfMachine *m, GError **error)
{
    install_handler();
    for (unsigned i = 0; i < m->kvm->n_vcpus; i++) {
        if (!vmf_vcpu_create(m, vcpu_main, &m->kvm->vcpus[i], error))
            return false;
    }
    return true;
}
