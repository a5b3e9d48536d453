/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The device registers of guest/boot.h, as the vCPU thread meets them: timer, console, beat. All but the timer, which
 * belongs to the vCPU, is guarded by the machine's lock.
 */
#include "machine/machine-private.h"
#include <string.h>
#include <unistd.h>

/* ---- console: a line at a time ----------------------------------------------------------------------------------- */

static void console_flush(VmfMachine *m)
{
    VmfConsole *console = &m->console;
    uint32_t length = console->length;

    console->length = 0;
    if (m->console_fd >= 0 && write(m->console_fd, console->text, length) != (ssize_t)length)
        m->console_lines_lost++;
    /* The digest covers the buffer: nothing of the past may stay in it. */
    memset(console->text, 0, sizeof(console->text));
}

static void console_put(VmfMachine *m, uint8_t c)
{
    VmfConsole *console = &m->console;

    console->text[console->length++] = c;
    if (c == '\n')
        console->lines++;
    if (c == '\n' || console->length == sizeof(console->text))
        console_flush(m);
}

/* ---- beat: the guest's sign of life ------------------------------------------------------------------------------ */

/* Since the latest beat, which another host may have seen; false: not known. */
static bool gap_since_beat(const VmfMachine *m, uint64_t monotonic_ns, uint64_t realtime_ns, uint64_t *gap_ns)
{
    bool same_host = memcmp(m->boot_id, m->beat.boot_id, sizeof(m->boot_id)) == 0;
    uint64_t last_ns = same_host ? m->beat.last_monotonic_ns : m->beat.last_realtime_ns;
    uint64_t now_ns = same_host ? monotonic_ns : realtime_ns;

    *gap_ns = now_ns - last_ns;
    return last_ns != 0 && now_ns >= last_ns;
}

static void beat(VmfMachine *m, uint32_t pages_written)
{
    VmfBeat *b = &m->beat;
    uint64_t monotonic_ns = vmf_machine_clock_ns(CLOCK_MONOTONIC);
    uint64_t realtime_ns = vmf_machine_clock_ns(CLOCK_REALTIME);
    uint64_t gap_ns;
    bool known = gap_since_beat(m, monotonic_ns, realtime_ns, &gap_ns);

    if (known)
        b->gap_max_ns = MAX(b->gap_max_ns, gap_ns);
    b->beats++;
    b->pages_written += pages_written - (uint32_t)b->pages_written;
    b->last_monotonic_ns = monotonic_ns;
    b->last_realtime_ns = realtime_ns;
    memcpy(b->boot_id, m->boot_id, sizeof(b->boot_id));
    if (m->beats_since_start++)
        return;
    m->gap_known = known;
    m->gap_ns = gap_ns;
    pthread_cond_broadcast(&m->changed);
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

/* Registers below the disks' wrap round to offsets that no disk has. */
bool vmf_machine_disk_register_read(VmfMachine *m, uint32_t offset, uint32_t *value)
{
    pthread_mutex_lock(&m->lock);
    bool exists = vmf_disks_register_read(m, offset - GUEST_DISK_BASE, value);
    pthread_mutex_unlock(&m->lock);
    return exists;
}

bool vmf_machine_disk_register_write(VmfMachine *m, uint32_t offset, uint32_t value)
{
    pthread_mutex_lock(&m->lock);
    bool exists = vmf_disks_register_write(m, offset - GUEST_DISK_BASE, value);
    pthread_mutex_unlock(&m->lock);
    return exists;
}

bool vmf_machine_mmio_read(void *opaque, uint32_t address, unsigned size, uint32_t *value)
{
    const VmfRv32State *state = &((VmfMachine *)opaque)->cpu.state;

    if (size != 4)
        return false;
    switch (address - GUEST_MMIO_BASE) {
    case GUEST_REG_TIME_LOW:
        *value = (uint32_t)state->instructions;
        return true;
    case GUEST_REG_TIME_HIGH:
        *value = (uint32_t)(state->instructions >> 32);
        return true;
    case GUEST_REG_TIMER_LOW:
        *value = (uint32_t)state->timer_compare;
        return true;
    case GUEST_REG_TIMER_HIGH:
        *value = (uint32_t)(state->timer_compare >> 32);
        return true;
    default:
        return vmf_machine_disk_register_read(opaque, address - GUEST_MMIO_BASE, value);
    }
}

static bool write_timer(VmfRv32State *state, uint32_t offset, uint32_t value)
{
    if (offset == GUEST_REG_TIMER_LOW)
        state->timer_compare = (state->timer_compare & 0xffffffff00000000) | value;
    else
        state->timer_compare = (uint64_t)value << 32 | (uint32_t)state->timer_compare;
    return true;
}

static bool write_device_locked(VmfMachine *m, uint32_t offset, uint32_t value)
{
    switch (offset) {
    case GUEST_REG_BEAT:
        beat(m, value);
        return true;
    case GUEST_REG_ERROR:
        m->beat.errors++;
        m->beat.error_address = value;
        return true;
    case GUEST_REG_CONSOLE:
        console_put(m, (uint8_t)value);
        return true;
    default:
        return false;
    }
}

bool vmf_machine_device_write(VmfMachine *m, uint32_t offset, uint32_t value)
{
    bool exists;

    pthread_mutex_lock(&m->lock);
    exists = write_device_locked(m, offset, value);
    pthread_mutex_unlock(&m->lock);
    return exists;
}

bool vmf_machine_mmio_write(void *opaque, uint32_t address, unsigned size, uint32_t value)
{
    VmfMachine *m = opaque;
    uint32_t offset = address - GUEST_MMIO_BASE;

    if (size != 4)
        return false;
    if (offset == GUEST_REG_TIMER_LOW || offset == GUEST_REG_TIMER_HIGH)
        return write_timer(&m->cpu.state, offset, value);
    if (offset >= GUEST_DISK_BASE)
        return vmf_machine_disk_register_write(m, offset, value);
    return vmf_machine_device_write(m, offset, value);
}
