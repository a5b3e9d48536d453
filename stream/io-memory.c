/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/io-memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_SIZE ((size_t)4096)
#define HUGE_PAGE_SIZE ((size_t)2 << 20)

void *vmf_io_memory_new(size_t size)
{
    size_t unit = size < HUGE_PAGE_SIZE ? PAGE_SIZE : HUGE_PAGE_SIZE, whole;

    if (size == 0 || __builtin_add_overflow(size, unit - 1, &whole))
        return NULL;
    whole -= whole % unit;
    void *memory = aligned_alloc(unit, whole);
    if (!memory)
        return NULL;
    if (unit == HUGE_PAGE_SIZE)
        madvise(memory, whole, MADV_HUGEPAGE); /* without it small pages do */
    /* A first touch from within a direct read would be taken to a thread of the kernel's. */
    for (size_t at = 0; at < whole; at += PAGE_SIZE)
        *((volatile uint8_t *)memory + at) = 0;
    return memory;
}
