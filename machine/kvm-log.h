/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The dirty logs of the kvm backend: kvm-log-bitmap.c, kvm-log-ring.c, kvm-log-uffd.c; kvm-log.c chooses. */
#ifndef MACHINE_KVM_LOG_H
#define MACHINE_KVM_LOG_H

#include <pthread.h>
#include <stdatomic.h>
#include "machine/dirty-log.h"
#include "machine/kvm.h"

/* The opaque of VmfDirtyLogOps. */
struct VmfKvmLog {
    VmfMachine *machine;
    const VmfDirtyLogOps *ops;
    _Atomic int failure; /* errno of a clear(), which cannot fail: the next harvest does. 0: none */

    /* What devices wrote, which KVM does not record, and what a log notes of its own; not cleared yet. Empty while it is stopped. */
    VmfLogBitmap bitmaps[N_BLOCKS];

    /* kvm-ring: what was collected is in the bitmaps as well */
    uint32_t ring_entries;
    pthread_mutex_t ring_lock; /* over collecting, resetting and setting bits; taken with the machine's lock free */
    GArray *collected;              /* struct kvm_dirty_gfn, between collecting and setting bits */

    /* uffd-wp */
    int uffd;
    int pagemap_fd;
};

/* @name: NULL or "auto" for the first that works. Before vCPUs are made. */
bool vmf_kvm_log_create(VmfMachine *machine, const char *name, GError **error);
/* The vCPUs are made: the log is the guest's. */
bool vmf_kvm_log_add_vcpus(VmfMachine *machine, GError **error);
void vmf_kvm_log_destroy(VmfMachine *machine);
/* A vCPU's ring is full. From its thread, machine's lock free. False: it stays full whatever is taken off. */
bool vmf_kvm_log_ring_full(VmfKvmVcpu *vcpu);

/* Whether this host has it, and what it needs. @log is new. */
bool vmf_kvm_bitmap_open(VmfKvmLog *log, GError **error);
bool vmf_kvm_ring_open(VmfKvmLog *log, GError **error);
bool vmf_kvm_uffd_open(VmfKvmLog *log, GError **error);
void vmf_kvm_uffd_close(VmfKvmLog *log);
bool vmf_kvm_ring_map(VmfKvmLog *log, GError **error);
void vmf_kvm_ring_unmap(VmfKvmLog *log);
void vmf_kvm_ring_collect(VmfKvmLog *log);

extern const VmfDirtyLogOps vmf_kvm_bitmap_ops, vmf_kvm_ring_ops, vmf_kvm_uffd_ops;

/* Makes the bitmaps, and from the return on devices mark what they write; the end of that. */
bool vmf_kvm_log_attach(VmfKvmLog *log, GError **error);
void vmf_kvm_log_detach(VmfKvmLog *log);
/* False with @error once clear() has failed. */
bool vmf_kvm_log_check(VmfKvmLog *log, GError **error);
bool vmf_kvm_log_fail(GError **error, const char *what, int cause);
uint64_t vmf_kvm_log_pages(const VmfKvmLog *log, unsigned block);

#endif
