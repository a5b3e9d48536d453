/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The signal comes in the very thread that made the access, at the access. Where that thread is under a guard, and the
 * address is in the guarded machine's memory, the handler jumps out to the guard; anything else is a defect of this
 * program, and the handler steps aside, so that the access is tried again and ends as it would have without it.
 *
 * Nothing is saved and restored by the jump but registers: the mask of signals is not (a system call for each slice of
 * a vCPU), as the handler does not block its own signal. But the thread sanitizer's does, around ours, and blocks all.
 */
#include "machine/memory-guard.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include "machine/machine-private.h"

#ifdef __SANITIZE_THREAD__
#define SAVES_MASK 1
#else
#define SAVES_MASK 0
#endif

typedef struct Guard Guard;
struct Guard {
    sigjmp_buf out;
    VmfMachine *machine;
    Guard *outer;
};

/* Read by a handler that interrupts its own thread. */
static _Thread_local Guard *volatile innermost;

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before; /* our own: written under the lock, ahead of the first signal that comes to us */

static bool is_guest_memory(VmfMachine *m, const void *address)
{
    for (unsigned i = 0; i < vmf_guest_n_ram(m->guest); i++) {
        const VmfRamBlock *block = vmf_guest_ram(m->guest, i);
        uintptr_t offset = (uintptr_t)address - (uintptr_t)vmf_ram_block_host(block);

        if (offset < vmf_ram_block_size(block))
            return true;
    }
    return false;
}

static void on_segv(int number, siginfo_t *info, void *context)
{
    Guard *guard = innermost;

    (void)context;
    if (guard && is_guest_memory(guard->machine, info->si_addr))
        siglongjmp(guard->out, 1);
    sigaction(number, &before, NULL);
}

void vmf_memory_guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER}, current;

    sigemptyset(&action.sa_mask);
    pthread_mutex_lock(&install_lock);
    sigaction(SIGSEGV, NULL, &current);
    if (current.sa_sigaction != on_segv) {
        before = current;
        sigaction(SIGSEGV, &action, NULL);
    }
    pthread_mutex_unlock(&install_lock);
}

bool vmf_memory_guard(VmfMachine *machine, void (*body)(void *opaque), void *opaque)
{
    Guard guard = {.machine = machine, .outer = innermost};
    bool whole = sigsetjmp(guard.out, SAVES_MASK) == 0;

    if (whole) {
        innermost = &guard;
        body(opaque);
    }
    innermost = guard.outer;
    return whole;
}

typedef struct {
    void *to;
    const void *from;
    size_t length;
} Copy;

static void copy(void *opaque)
{
    const Copy *c = opaque;

    memcpy(c->to, c->from, c->length);
}

bool vmf_memory_guard_copy(VmfMachine *machine, void *to, const void *from, size_t length)
{
    Copy c = {to, from, length};

    return vmf_memory_guard(machine, copy, &c);
}
