/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation: KVM's dirty ring.
 *
 * Each vCPU has a ring to which KVM adds a page before the vCPU may write it. Collecting takes the entries off,
 * KVM_RESET_DIRTY_RINGS protects their pages again, and only then are their bits set in bitmaps of our own, which the
 * engine harvests and clears. The order is what keeps writes:
 *
 *   collect;  reset;  set bits                                 engine:  clear bit;  read page
 *
 * Between collect and reset a page is still writable and its writes leave no trace. Were its bit set by then, the
 * engine could clear it and read the page in that time, and a write after that would be lost. As it is, the bit is set
 * after the reset: a write before the reset is covered by that bit, one after it by a new entry.
 *
 * All of it happens under one lock, by the engine's harvest or by a vCPU that left the guest because its ring is full;
 * a harvest that waits for the lock finds the bits of what another one has collected.
 *
 * Where KVM's emulation of an instruction writes memory, the entry follows the write; so a harvest first lets the vCPUs
 * get past it. Some hosts lose entries altogether: the probe finds out.
 */
#include "machine/kvm-log.h"
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <vmferry/error.h>
#include "machine/kvm-probe.h"

#define RING_ENTRIES 16384u
#define RING_STUCK_MAX 100u

/* ---- making it --------------------------------------------------------------------------------------------------- */

bool vmf_kvm_ring_open(VmfKvmLog *log, GError **error)
{
    struct kvm_enable_cap enable = {
        .cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        .args = {RING_ENTRIES * sizeof(struct kvm_dirty_gfn)},
    };

    if (!vmf_kvm_probe(true, error))
        return false;
    if (vmf_kvm_ioctl(log->machine->kvm->vm_fd, KVM_ENABLE_CAP, &enable) < 0)
        return vmf_kvm_log_fail(error, "enable", errno);
    log->ring_entries = RING_ENTRIES;
    return true;
}

bool vmf_kvm_ring_map(VmfKvmLog *log, GError **error)
{
    VmfKvm *k = log->machine->kvm;

    log->collected = g_array_new(false, false, sizeof(struct kvm_dirty_gfn));
    for (unsigned i = 0; i < k->n_vcpus; i++) {
        void *ring = mmap(NULL, RING_ENTRIES * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED,
                          k->vcpus[i].fd, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);

        if (ring == MAP_FAILED)
            return vmf_kvm_log_fail(error, "map a ring", errno);
        k->vcpus[i].ring = ring;
    }
    return true;
}

void vmf_kvm_ring_unmap(VmfKvmLog *log)
{
    VmfKvm *k = log->machine->kvm;

    for (unsigned i = 0; i < k->n_vcpus; i++) {
        if (k->vcpus[i].ring)
            munmap(k->vcpus[i].ring, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
    }
    if (log->collected)
        g_array_unref(log->collected);
}

/* ---- collecting, under ring_lock --------------------------------------------------------------------------------- */

static void collect_vcpu(VmfKvmLog *log, VmfKvmVcpu *vcpu)
{
    for (;;) {
        struct kvm_dirty_gfn *entry = &vcpu->ring[vcpu->ring_next % RING_ENTRIES];

        if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            return;
        g_array_append_val(log->collected, *entry);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        vcpu->ring_next++;
    }
}

static void set_bits(VmfKvmLog *log)
{
    for (guint i = 0; i < log->collected->len; i++) {
        const struct kvm_dirty_gfn *entry = &g_array_index(log->collected, struct kvm_dirty_gfn, i);

        if (entry->slot < N_BLOCKS && entry->offset < log->bitmaps[entry->slot].n_pages)
            vmf_log_bitmap_mark(&log->bitmaps[entry->slot], entry->offset);
    }
    g_array_set_size(log->collected, 0);
}

static void collect_locked(VmfKvmLog *log)
{
    VmfKvm *k = log->machine->kvm;

    for (unsigned i = 0; i < k->n_vcpus; i++)
        collect_vcpu(log, &k->vcpus[i]);
    if (log->collected->len && vmf_kvm_ioctl(k->vm_fd, KVM_RESET_DIRTY_RINGS, NULL) < 0)
        atomic_store(&log->failure, errno);
    set_bits(log);
}

void vmf_kvm_ring_collect(VmfKvmLog *log)
{
    pthread_mutex_lock(&log->ring_lock);
    collect_locked(log);
    pthread_mutex_unlock(&log->ring_lock);
}

bool vmf_kvm_log_ring_full(VmfKvmVcpu *vcpu)
{
    VmfKvmLog *log = vcpu->machine->kvm->log;
    uint32_t before;
    bool works;

    pthread_mutex_lock(&log->ring_lock);
    before = vcpu->ring_next;
    collect_locked(log);
    /* Another thread may have taken the entries off between the exit and here, but not time and again. */
    vcpu->ring_stuck = vcpu->ring_next != before ? 0 : vcpu->ring_stuck + 1;
    works = vcpu->ring_stuck < RING_STUCK_MAX;
    pthread_mutex_unlock(&log->ring_lock);
    return works;
}

/* ---- the log ----------------------------------------------------------------------------------------------------- */

static bool ring_start(void *opaque, GError **error)
{
    VmfKvmLog *log = opaque;

    atomic_store(&log->failure, 0);
    pthread_mutex_lock(&log->ring_lock);
    bool started = vmf_kvm_log_attach(log, error);
    pthread_mutex_unlock(&log->ring_lock);
    if (!started)
        return false;
    if (vmf_kvm_set_memory(log->machine, true, error))
        return true;
    pthread_mutex_lock(&log->ring_lock);
    vmf_kvm_log_detach(log);
    pthread_mutex_unlock(&log->ring_lock);
    return false;
}

static void ring_stop(void *opaque)
{
    VmfKvmLog *log = opaque;

    vmf_kvm_set_memory(log->machine, false, NULL);
    pthread_mutex_lock(&log->ring_lock);
    collect_locked(log); /* an entry left behind would be taken for one of the next migration */
    vmf_kvm_log_detach(log);
    pthread_mutex_unlock(&log->ring_lock);
}

static bool ring_harvest(void *opaque, unsigned block, VmfLogBitmapReport report, void *report_opaque, GError **error)
{
    VmfKvmLog *log = opaque;

    vmf_vcpu_pass(log->machine);
    vmf_kvm_ring_collect(log);
    vmf_log_bitmap_report(&log->bitmaps[block], report, report_opaque);
    return vmf_kvm_log_check(log, error);
}

static void ring_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfKvmLog *log = opaque;

    vmf_log_bitmap_clear(&log->bitmaps[block], first_page, n_pages, words);
}

const VmfDirtyLogOps vmf_kvm_ring_ops = {
    .size = sizeof(VmfDirtyLogOps),
    .name = "kvm-ring",
    .start = ring_start,
    .stop = ring_stop,
    .harvest = ring_harvest,
    .clear = ring_clear,
};
