/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory of which a part may be lost: a guest that is restored while it runs can touch a page that cannot be had
 * (guest.h, memory_lost). The access then ends with SIGSEGV, in whatever thread makes it. Whoever touches guest memory
 * that may still be on its way does it under this guard.
 */
#ifndef MACHINE_MEMORY_GUARD_H
#define MACHINE_MEMORY_GUARD_H

#include "machine/machine.h"

/* Installs the handler of the process, unless it is in force. Other faults go where they went before. Any thread. */
void vmf_memory_guard_install(void);

/*
 * Calls @body. False: it touched memory of @machine that cannot be had, and was left right there, by a jump: so it
 * holds no lock and owns nothing at any point where it touches guest memory.
 */
bool vmf_memory_guard(VmfMachine *machine, void (*body)(void *opaque), void *opaque);

/* memcpy() from or to guest memory, under the guard. */
bool vmf_memory_guard_copy(VmfMachine *machine, void *to, const void *from, size_t length);

#endif
