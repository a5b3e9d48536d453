/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest runs although its memory is elsewhere: what it touches is brought at once, the rest behind its back.
 */
#ifndef RAM_FAULT_SERVER_H
#define RAM_FAULT_SERVER_H

#include "ram/page-reader.h"
#include "ram/touch-order.h"

typedef struct VmfFaultServer VmfFaultServer;

/* Calls come from the server's threads, without any lock of it. They do not wait for the guest, whose vCPU may be
 * waiting for the page; and they do not free the server. */
typedef struct VmfFaultServerOps {
    size_t size; /* sizeof(VmfFaultServerOps) */

    /*
     * Page @page of @block cannot be had (@error: damaged, an I/O error, no memory). @touched: a thread waits for it, a
     * vCPU as likely as not; otherwise it was found ahead, and the guest still runs. The guest has to be kept from
     * running on. Whoever waits for the page is never given anything else: if this returns true, its access ends with
     * SIGSEGV (in a system call EFAULT, in KVM_RUN likewise) once the call has returned, and so does any later one;
     * otherwise it waits on until the server is freed, when it gets that SIGSEGV. Can come more than once, also for one
     * page.
     */
    bool (*lost)(void *opaque, unsigned block, uint64_t page, bool touched, const GError *error);

    /*
     * Everything is there, and memory is ordinary memory again. Once, if ever: only after vmf_fault_server_fill(), and
     * not once a page was lost for good (a lost() that returned true, or that reading ahead has ended with).
     */
    void (*complete)(void *opaque);
} VmfFaultServerOps;

typedef struct {
    VmfRamBlock *const *blocks; /* all empty (vmf_ram_block_empty()); nobody populates them from now on */
    unsigned n_blocks;
    const VmfPageReaderOps *reader;
    void *source;
    const VmfTouchOrder *order; /* read ahead in this order first; NULL: none */
    bool ignore_order;          /* only measure by @order */
    VmfTouchOrder *record;      /* first touches are added to it; to be looked at once the server is freed. NULL: not */
    uint64_t record_ns; /* with @record: how long after fill() reading ahead does not begin, as it hides touches */
    const VmfFaultServerOps *ops;
    void *opaque;
} VmfFaultServerConfig;

/*
 * From its return on memory can be used, by the guest and by system calls. What @config points to (but not itself)
 * outlives the server. VMF_ERROR_UNSUPPORTED: no userfaultfd on this host.
 */
VmfFaultServer *vmf_fault_server_new(const VmfFaultServerConfig *config, GError **error);

/* Whether it also sees what the kernel touches; otherwise such accesses fail (EFAULT), KVM_RUN among them. */
bool vmf_fault_server_sees_kernel(const VmfFaultServer *server);

/* Begins to read ahead, until everything is there. Once. */
bool vmf_fault_server_fill(VmfFaultServer *server, GError **error);

/*
 * Waits until all of a chunk is there, so that what reads it next (a migration) meets no fault. Any thread. False: a
 * page of it cannot be had, which lost() is not told.
 */
bool vmf_fault_server_ensure(VmfFaultServer *server, unsigned block, uint64_t chunk, GError **error);

/*
 * Ends it, at any moment; waits for its threads. The guest does not run, though its vCPUs may be waiting for pages.
 * Unless it was complete, the memory is inaccessible afterwards (vmf_lazy_ram_free()).
 */
void vmf_fault_server_free(VmfFaultServer *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfFaultServer, vmf_fault_server_free)

typedef struct {
    bool complete;
    uint64_t n_faults;      /* served, those for pages of zeros included */
    uint64_t n_zero_faults; /* of these */
    uint64_t fault_p50_ns;  /* fault read to page in place */
    uint64_t fault_p99_ns;
    uint64_t fault_max_ns;
    uint64_t fault_bytes;    /* placed by faults, with their neighbours, zeros left out */
    uint64_t prefetch_bytes; /* placed by reading ahead */
    uint64_t first_fault_ns; /* since vmf_fault_server_new(), as are the next two; 0: not yet */
    uint64_t order_90_ns;    /* 90 % of the pages of @order were there */
    uint64_t complete_ns;
} VmfFaultStatistics;

/* Any thread. */
void vmf_fault_server_statistics(const VmfFaultServer *server, VmfFaultStatistics *out);

#endif
