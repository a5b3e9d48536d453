/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * A device of user space writes guest memory through the one gate below, which checks the range and marks the pages in
 * the dirty log. KVM's own logs see only what vCPUs write, so the mark is all that the engine learns of it; where a log
 * sees the write too (userfaultfd, the interpreter's own bitmap) the mark says it twice.
 *
 *   device:  store;  mark                      engine:  clear mark;  read page
 *
 * The order is that of a vCPU (dirty-log.c), and so is the reason. Both steps happen under the machine's lock. A harvest
 * takes that lock before it looks at the marks, so a write that shows in memory by then is marked; and a stop, which
 * ends under it, finds no write half done. From then on until the guest runs again the gate is shut: a device keeps what
 * it has to write.
 */
#include "machine/machine-private.h"
#include "machine/memory-guard.h"
#include <string.h>
#include <vmferry/error.h>

#define PAGE_SIZE 4096u

void vmf_machine_set_marks(VmfMachine *m, VmfLogBitmap *bitmaps)
{
    pthread_mutex_lock(&m->lock);
    for (unsigned block = 0; block < N_BLOCKS; block++)
        m->marks[block] = bitmaps ? &bitmaps[block] : NULL;
    pthread_mutex_unlock(&m->lock);
}

/* The block in which all of [address, address + length) lies, N_BLOCKS: none. */
static unsigned find_block(const VmfMachine *m, uint64_t address, size_t length)
{
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        const VmfRamBlock *block = vmf_guest_ram(m->guest, i);
        uint64_t base = vmf_ram_block_guest_address(block), size = vmf_ram_block_size(block);

        if (address >= base && address - base < size && length <= size - (address - base))
            return i;
    }
    return N_BLOCKS;
}

/* vCPUs of the interpreter read and write the same memory without a lock, as processors do. */
__attribute__((no_sanitize("thread"))) static void store(uint8_t *to, const uint8_t *from, size_t length)
{
    for (size_t i = 0; i < length; i++)
        ((volatile uint8_t *)to)[i] = from[i];
}

typedef struct {
    VmfMachine *machine;
    unsigned block;
    uint64_t offset; /* in it */
    const void *data;
    size_t length;
} Store;

static void store_and_mark(void *opaque)
{
    const Store *s = opaque;
    VmfLogBitmap *marks = s->machine->marks[s->block];

    store((uint8_t *)vmf_ram_block_host(vmf_guest_ram(s->machine->guest, s->block)) + s->offset, s->data, s->length);
    for (uint64_t page = s->offset / PAGE_SIZE; marks && page <= (s->offset + s->length - 1) / PAGE_SIZE; page++)
        vmf_log_bitmap_mark(marks, page);
}

bool vmf_machine_has_memory(const VmfMachine *m, uint64_t address, size_t length, bool writable)
{
    unsigned block = find_block(m, address, length);

    return block != N_BLOCKS && (!writable || block != BLOCK_ROM);
}

bool vmf_machine_load(VmfMachine *m, uint64_t address, void *data, size_t length)
{
    const VmfRamBlock *block = vmf_guest_ram(m->guest, find_block(m, address, length));

    const uint8_t *from = (const uint8_t *)vmf_ram_block_host(block) + (address - vmf_ram_block_guest_address(block));

    return vmf_memory_guard_copy(m, data, from, length);
}

bool vmf_machine_store(VmfMachine *m, uint64_t address, const void *data, size_t length)
{
    unsigned block = find_block(m, address, length);
    uint64_t offset = address - vmf_ram_block_guest_address(vmf_guest_ram(m->guest, block));

    return vmf_memory_guard(m, store_and_mark, &(Store){m, block, offset, data, length});
}

/* Lock held. A vCPU that is still on its way to a stop may have an access under way that writes. */
static bool may_write(const VmfMachine *m)
{
    return m->want_run || m->n_standing < m->n_vcpus;
}

bool vmf_machine_write_memory(VmfMachine *m, uint64_t address, const void *data, size_t length, GError **error)
{
    unsigned block = find_block(m, address, length);
    bool open, written;

    if (block == N_BLOCKS || block == BLOCK_ROM) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE,
                    "%s: device: write of %zu bytes at 0x%" G_GINT64_MODIFIER "x: not in memory that can be written",
                    m->name, length, address);
        return false;
    }
    uint64_t offset = address - vmf_ram_block_guest_address(vmf_guest_ram(m->guest, block));
    pthread_mutex_lock(&m->lock);
    open = may_write(m);
    written = open && (length == 0 || vmf_memory_guard(m, store_and_mark, &(Store){m, block, offset, data, length}));
    pthread_mutex_unlock(&m->lock);
    if (!written)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "%s: device: write: %s", m->name,
                    open ? "a page of the guest's memory cannot be had" : "the guest stands");
    return written;
}
