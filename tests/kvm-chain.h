/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A KVM guest that moves from host to host, live and under full dirtying, and what must be true of each move and of all of them. */
#ifndef TESTS_KVM_CHAIN_H
#define TESTS_KVM_CHAIN_H

#include "tests/world.h"

/* What the hosts of a chain give their guest. */
typedef struct {
    unsigned vcpus;
    const char *dirty_log;
    VmfRamBackend ram;   /* of every host, or */
    VmfRamBackend other; /* of every second one */
    bool huge_pages;     /* transparent ones, where it is anon */
    unsigned channels;
    uint64_t dirty_bytes_per_second; /* 0: more than there is time for */
} VmfChainKind;

/* Memory that a host of a chain takes, in huge pages; two hosts are there at a time. */
#define VMF_CHAIN_HUGE_PAGES 32u

typedef struct {
    unsigned moves;
    uint64_t lines;           /* on all consoles together */
    uint64_t cut_lines;       /* that began at one host and ended at the next */
    uint64_t pages_written;
    uint64_t pages_resent;
    uint64_t downtime_max_ns;
    uint64_t guest_gap_max_ns;
} VmfChainResult;

/*
 * Moves a guest @moves times, with all memory compared at both ends before it runs on (audit before). True: every move was verified in
 * full, mended nothing and did not touch what the guest never touched; the guest found no error; its clock did not step back; and the
 * consoles of all hosts, one after the other, are its numbered lines, each once and whole. False with @error: what was not so;
 * VMF_ERROR_UNSUPPORTED or VMF_ERROR_HUGE_PAGES where this host cannot make such a guest.
 */
bool vmf_chain_run(const VmfChainKind *kind, unsigned moves, VmfChainResult *result, GError **error);

/* Whether @error says that it cannot be tried here. */
bool vmf_chain_is_skip(const GError *error);
/* "1 vCPU, kvm-bitmap, anon-huge, 2 channels". Owned by the caller. */
char *vmf_chain_describe(const VmfChainKind *kind);

#endif
