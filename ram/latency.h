/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How long something took, many times over: counters by duration, from which quantiles are read. Lock-free. */
#ifndef RAM_LATENCY_H
#define RAM_LATENCY_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * Eight counters for each power of two: a quantile is at most an eighth above the true one. Below 8 ns each value has
 * its own.
 */
#define VMF_LATENCY_STEPS 8u
#define VMF_LATENCY_COUNTERS (62u * VMF_LATENCY_STEPS)

/* Zeros: nothing yet. Any thread. */
typedef struct {
    _Atomic uint64_t counters[VMF_LATENCY_COUNTERS];
    _Atomic uint64_t n;
    _Atomic uint64_t max_ns;
} VmfLatency;

void vmf_latency_add(VmfLatency *latency, uint64_t ns);
/* The duration that @permille of a thousand did not exceed (rounded up as above, never above the longest); 0: none. */
uint64_t vmf_latency_quantile_ns(const VmfLatency *latency, unsigned permille);

#endif
