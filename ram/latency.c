/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/latency.h"

#include <glib.h>

/* Counter of @ns: its three bits below the leading one, and how far up that is. */
static unsigned counter_of(uint64_t ns)
{
    if (ns < VMF_LATENCY_STEPS)
        return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - 3;
    return (shift + 1) * VMF_LATENCY_STEPS + (unsigned)(ns >> shift) % VMF_LATENCY_STEPS;
}

/* The longest duration that is counted there. */
static uint64_t longest(unsigned counter)
{
    if (counter < VMF_LATENCY_STEPS)
        return counter;
    unsigned shift = counter / VMF_LATENCY_STEPS - 1;
    uint64_t first = (uint64_t)(VMF_LATENCY_STEPS + counter % VMF_LATENCY_STEPS) << shift;
    return first + ((UINT64_C(1) << shift) - 1);
}

void vmf_latency_add(VmfLatency *latency, uint64_t ns)
{
    uint64_t max_ns = atomic_load_explicit(&latency->max_ns, memory_order_relaxed);

    while (ns > max_ns && !atomic_compare_exchange_weak(&latency->max_ns, &max_ns, ns))
        continue;
    atomic_fetch_add_explicit(&latency->counters[counter_of(ns)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&latency->n, 1, memory_order_release);
}

uint64_t vmf_latency_quantile_ns(const VmfLatency *latency, unsigned permille)
{
    uint64_t n = atomic_load_explicit(&latency->n, memory_order_acquire), max_ns = atomic_load(&latency->max_ns),
             seen = 0;
    uint64_t wanted = n / 1000 * permille + (n % 1000 * permille + 999) / 1000;

    for (unsigned i = 0; n > 0 && i < VMF_LATENCY_COUNTERS; i++) {
        seen += atomic_load_explicit(&latency->counters[i], memory_order_relaxed);
        if (seen >= MAX(wanted, 1))
            return MIN(longest(i), max_ns);
    }
    return max_ns;
}
