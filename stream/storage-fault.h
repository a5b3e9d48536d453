/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Storage that goes wrong in a way that is known beforehand, for tests.
 *
 * It stands before another storage and owns it. Requests are carried out one at a time, whole, by the thread that waits
 * for them; so a run with the same faults and the same requests from one thread is the same run. Queues and threads
 * share what the faults count.
 */
#ifndef STREAM_STORAGE_FAULT_H
#define STREAM_STORAGE_FAULT_H

#include "stream/storage.h"

typedef enum {
    /* Requests that touch [offset, offset + length) fail with @err. Nothing of them is carried out. */
    VMF_STORAGE_FAULT_ERROR,
    /* There is room for @after_bytes that are written (or written again), the last request's as far as they go: then
       @err. */
    VMF_STORAGE_FAULT_FULL,
    /* Requests under way are carried out and end in an order made from @seed: of two that overlap, often the later one
       first. */
    VMF_STORAGE_FAULT_REORDER,
    /*
     * The first @after_operations operations are carried out, and @after_bytes bytes of the next one if it writes; then
     * the host is gone: nothing is changed any more, and all calls fail. With @lose_unflushed what was written since
     * the last flush that ended is lost in part, by @seed. An operation is a request or call that changes something:
     * WRITE, ZERO, FLUSH, set_size, preallocate, flush; of commit both the flush and the taking of the name.
     */
    VMF_STORAGE_FAULT_CRASH,
} VmfStorageFaultKind;

#define VMF_STORAGE_FAULT_ON(request_kind) (1u << (request_kind))
#define VMF_STORAGE_FAULT_ON_COMMIT (1u << 8) /* the name cannot be taken */

typedef struct {
    VmfStorageFaultKind kind;
    unsigned
        on; /* ERROR: which, VMF_STORAGE_FAULT_ON(…) or'ed; 0: READ, WRITE and ZERO. FLUSH is of requests and calls */
    unsigned times; /* ERROR: so often; 0: always */
    int err;        /* 0: EIO, and ENOSPC of FULL */
    uint64_t offset, length;
    uint64_t after_bytes;
    uint64_t after_operations;
    uint32_t seed;
    bool lose_unflushed;
} VmfStorageFault;

/* Takes over @below, also when it fails (it may have no room for a queue). @faults are copied; one of each kind but
 * ERROR. */
VmfStorage *vmf_storage_fault_new(VmfStorage *below, const VmfStorageFault *faults, size_t n_faults, GError **error);

/* How many operations there have been, as VMF_STORAGE_FAULT_CRASH counts them: a test that tries each of them learns
 * here when it is done. */
uint64_t vmf_storage_fault_operations(VmfStorage *storage);
bool vmf_storage_fault_has_crashed(VmfStorage *storage);

#endif
