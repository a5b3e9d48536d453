/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Static tracepoints of provider "vmferry", listed with their arguments in docs/tracing.rst.
 *
 * Each is one instruction that does nothing, and a note in the library that says where it stands and where its arguments lie; what
 * traces puts a breakpoint there. The arguments are made whether anybody looks or not: they are integers, pointers or words that are
 * at hand. None stands where something is done for each page.
 */
#ifndef STREAM_TRACE_H
#define STREAM_TRACE_H

#ifdef VMF_TRACEPOINTS

#include <sys/sdt.h>

#define VMF_TRACE_MACRO(_1, _2, _3, _4, _5, _6, macro, ...) macro
/* VMF_TRACE(name, one to six arguments) */
#define VMF_TRACE(name, ...)                                                                                                    \
    VMF_TRACE_MACRO(__VA_ARGS__, DTRACE_PROBE6, DTRACE_PROBE5, DTRACE_PROBE4, DTRACE_PROBE3, DTRACE_PROBE2, DTRACE_PROBE1)      \
    (vmferry, name, __VA_ARGS__)

#else

/* The arguments are compiled, so that they cannot rot and what is made for them counts as used, and never evaluated. */
static inline void vmf_trace_nothing(int unused, ...)
{
}

#define VMF_TRACE(name, ...)                                                                                                    \
    do {                                                                                                                        \
        if (0)                                                                                                                  \
            vmf_trace_nothing(0, __VA_ARGS__);                                                                                  \
    } while (0)

#endif

#endif
