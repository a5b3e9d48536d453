/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Migrations of guests whose dirty log loses one write, and who found it. Used by test-lost-writes.c, and by lost-writes.c to
 * measure.
 *
 * Whether the lost write matters is not guessed: the target does not start its guest, so where nobody found anything the memories of
 * both ends are compared. A write that the guest made just before its page was sent, or whose page it wrote once more, is harmless.
 */
#ifndef TESTS_LOST_WRITES_H
#define TESTS_LOST_WRITES_H

#include "tests/world.h"

typedef struct {
    VmfMachineConfig machine; /* a machine with a write to lose has this one's configuration and a seed */
    VmfAudit audit;
    unsigned minimum_rounds;
    uint64_t max_bandwidth; /* 0: no limit */
} VmfLostWriteSetting;

/* The order is that of vmf_finding_words. */
typedef enum {
    VMF_FOUND_BY_LOG_AUDIT,
    VMF_FOUND_BY_FULL_AUDIT,
    VMF_FOUND_BY_SUM,   /* written just while it was sent: the target's sum differed, and the chunk was sent again */
    VMF_FOUND_HARMLESS, /* nothing found, and both memories are the same */
    VMF_FOUND_NOTHING_LOST,
    VMF_FOUND_WRONG, /* missed, misnamed, or the guest is not where it should be */
    VMF_FINDING_N
} VmfFinding;
extern const char *const vmf_finding_words[VMF_FINDING_N];

typedef struct {
    VmfFinding finding;
    char *text; /* what was said, or what is wrong; owned by the caller */
    uint64_t log_audit_cpu_ns, log_audit_pages, rounds_ns, pages;
    unsigned rounds;
} VmfLostWriteRun;

/* One migration with the write of @seed lost (0: of none), over loopback TCP. */
VmfLostWriteRun vmf_lose_write(const VmfLostWriteSetting *setting, uint64_t seed);

#endif
