/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine with its guest program: determinism, the guest's check of itself, run control, what it tells the engine.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>
#include "machine/guest/boot.h"
#include <vmferry/error.h>
#include "machine/machine-private.h"
#include <vmferry/device-state.h>

#define MILLISECOND ((uint64_t)GUEST_TICK)

static const VmfMachineConfig busy = {
    .name = "busy",
    .memory_bytes = 2 << 20,
    .dirty_bytes_per_second = 64 << 20,
    .set_bytes = 1 << 20,
    .seed = 7,
    .unpaced = true,
};

static VmfMachine *new_machine(const VmfMachineConfig *config)
{
    g_autoptr(GError) error = NULL;
    VmfMachine *m = vmf_machine_new(config, &error);

    if (!m)
        fail_msg("%s", error->message);
    return m;
}

static void run_to(VmfMachine *m, uint64_t instruction)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_run_to(m, instruction, &error))
        fail_msg("%s", error->message);
}

static VmfMachineInfo info_of(VmfMachine *m)
{
    VmfMachineInfo info;

    vmf_machine_get_info(m, &info);
    return info;
}

static uint64_t hash_of(VmfMachine *m)
{
    uint8_t hash[16];
    uint64_t result;

    assert_true(vmf_machine_hash(m, hash, NULL));
    memcpy(&result, hash, sizeof(result));
    return result;
}

static uint8_t *memory_of(VmfMachine *m, unsigned block)
{
    return vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(m), block));
}

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

/* ---- determinism ------------------------------------------------------------------------------------------------- */

static uint64_t uncut_hash(const VmfMachineConfig *config, uint64_t instructions)
{
    g_autoptr(VmfMachine) m = new_machine(config);

    run_to(m, instructions);
    assert_int_equal(info_of(m).instructions, instructions);
    assert_int_equal(info_of(m).guest_errors, 0);
    return hash_of(m);
}

static void test_cut_run_ends_as_the_uncut(void **state)
{
    const uint64_t end = 300 * MILLISECOND + 12345;
    uint64_t expected = uncut_hash(&busy, end);
    g_autoptr(VmfMachine) m = new_machine(&busy);
    uint32_t random = 42;

    for (uint64_t at = 0; at < end; at = MIN(end, at + next_random(&random) % 400000))
        run_to(m, at);
    run_to(m, end);
    assert_true(hash_of(m) == expected);
    assert_true(uncut_hash(&busy, end - 1) != expected);
}

/* Stopped by the clock of the host, throttled, paced, with the dirty log on and off: nothing that the guest could see.
 */
static void test_host_is_not_visible(void **state)
{
    const uint64_t end = 60 * MILLISECOND + 999;
    VmfMachineConfig config = busy;
    config.unpaced = false;
    g_autoptr(VmfMachine) m = new_machine(&config);

    assert_true(vmf_machine_stop_at(m, end, NULL));
    for (unsigned i = 0; info_of(m).instructions < end; i++) {
        assert_true(vmf_machine_guest_ops.start(m, NULL));
        if (i % 2)
            assert_true(vmf_rv32_log_ops.start(m->dirty_log, NULL));
        vmf_machine_guest_ops.throttle(m, i % 3 * 40);
        g_usleep(3000);
        if (i % 2)
            vmf_rv32_log_ops.stop(m->dirty_log);
        if (info_of(m).instructions < end / 2)
            continue;
        assert_true(vmf_machine_guest_ops.stop(m, NULL));
    }
    assert_true(vmf_machine_stop(m, NULL));
    assert_int_equal(info_of(m).instructions, end);
    assert_true(hash_of(m) == uncut_hash(&busy, end));
}

static void test_seed_and_rate_matter(void **state)
{
    VmfMachineConfig other = busy;
    uint64_t hash = uncut_hash(&busy, 50 * MILLISECOND);

    other.seed++;
    assert_true(uncut_hash(&other, 50 * MILLISECOND) != hash);
    other = busy;
    other.dirty_bytes_per_second = 0;
    assert_true(uncut_hash(&other, 50 * MILLISECOND) != hash);
    other = busy;
    other.ram_backend = VMF_RAM_MEMFD;
    assert_true(uncut_hash(&other, 50 * MILLISECOND) == hash);
}

/* Moved by its device state and a copy of its memory, as an engine does it, in the middle of things. */
static void move(VmfMachine *from, VmfMachine *to);

static void test_moved_run_ends_as_the_uncut(void **state)
{
    const uint64_t end = 200 * MILLISECOND + 77;
    VmfMachine *here = new_machine(&busy);
    uint32_t random = 9;

    for (uint64_t at = 1000; at < end; at += next_random(&random) % 2000000) {
        VmfMachine *there = new_machine(&busy);
        run_to(here, at);
        move(here, there);
        vmf_machine_free(here);
        here = there;
    }
    run_to(here, end);
    assert_true(hash_of(here) == uncut_hash(&busy, end));
    vmf_machine_free(here);
}

/* ---- device state ------------------------------------------------------------------------------------------------ */

static void move_device(VmfMachine *from, VmfMachine *to, unsigned i)
{
    const VmfDeviceState *device = vmf_machine_device_states[i];
    g_autoptr(GByteArray) bytes = vmf_device_state_save(device, vmf_machine_device(from, i), NULL);

    assert_non_null(bytes);
    assert_true(vmf_device_state_load(device, vmf_machine_device(to, i), device->version, bytes->data, bytes->len,
                                      false, NULL));
}

static void move(VmfMachine *from, VmfMachine *to)
{
    for (unsigned i = 0; i < N_BLOCKS; i++)
        memcpy(memory_of(to, i), memory_of(from, i), vmf_ram_block_size(vmf_guest_ram(vmf_machine_guest(to), i)));
    for (unsigned i = 0; i < VMF_MACHINE_DEVICES; i++)
        move_device(from, to, i);
}

/* A value of its own for each field: one that is left behind shows. */
static void test_every_field_travels(void **state)
{
    g_autoptr(VmfMachine) from = new_machine(&busy);
    g_autoptr(VmfMachine) to = new_machine(&busy);
    VmfRv32State *s = &from->cpu.state;
    const VmfRv32State cpu = {
        .pc = GUEST_RAM_BASE + 0x104,
        .mstatus = 0x80,
        .mie = 0x80,
        .mtvec = 0x200,
        .mscratch = 0x301,
        .mepc = 0x404,
        .mcause = 5,
        .mtval = 0x606,
        .reserved_address = 0x708,
        .reserved = true,
        .waiting = true,
        .instructions = 1ull << 40,
        .timer_compare = 1ull << 41,
    };

    memcpy(s, &cpu, sizeof(cpu));
    for (unsigned i = 1; i < 32; i++)
        s->x[i] = 0x1000 + i;
    memcpy(&from->console, &(VmfConsole){.lines = 3, .length = 5, .text = "guest"}, sizeof(from->console));
    memcpy(&from->beat, &(VmfBeat){11, 12, 13, 14, 15, 16, 17, {18, 19}}, sizeof(from->beat));
    move(from, to);
    assert_memory_equal(&to->cpu.state, s, sizeof(*s));
    assert_memory_equal(&to->console, &from->console, sizeof(to->console));
    assert_memory_equal(&to->beat, &from->beat, sizeof(to->beat));
    assert_int_equal(info_of(to).instructions, 1ull << 40);
}

static void test_device_state_of_a_peer_is_checked(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    g_autoptr(GError) error = NULL;
    uint64_t before = hash_of(m);

    m->wire_cpu = m->cpu.state;
    m->wire_cpu.pc = 0x3000; /* aligned, but no memory */
    assert_false(vmf_machine_device_states[0]->post_load(&m->wire_cpu, &error));
    assert_non_null(strstr(error->message, "pc is outside memory"));
    m->wire_cpu.pc = GUEST_RAM_BASE + 2;
    assert_false(vmf_machine_device_states[0]->post_load(&m->wire_cpu, NULL));
    m->wire_console.length = sizeof(m->wire_console.text);
    assert_false(vmf_machine_device_states[2]->post_load(&m->wire_console, NULL));
    assert_true(hash_of(m) == before);
}

/* ---- the guest's check of itself --------------------------------------------------------------------------------- */

/* Plants a damage at @offset of @block once the guest has filled its set, and returns how many errors it finds. */
static uint64_t errors_after_flip(const VmfMachineConfig *config, unsigned block, uint64_t offset)
{
    g_autoptr(VmfMachine) m = new_machine(config);

    run_to(m, 100 * MILLISECOND);
    assert_int_equal(info_of(m).guest_errors, 0);
    memory_of(m, block)[offset] ^= 0x10;
    run_to(m, 700 * MILLISECOND);
    return info_of(m).guest_errors;
}

/* The last page of the set: nothing but the set ever lies so high in memory. */
static uint64_t last_set_page(const VmfMachineConfig *config)
{
    g_autoptr(VmfMachine) m = new_machine(config);
    const uint8_t *ram = memory_of(m, BLOCK_RAM);
    uint64_t offset = config->memory_bytes - 4096;

    run_to(m, 100 * MILLISECOND);
    while (ram[offset + 64 * 63 + 1] == 0 && ram[offset + 64 * 63 + 2] == 0)
        offset -= 4096;
    assert_true(offset > config->memory_bytes / 2);
    return offset;
}

static void test_flipped_byte_is_found(void **state)
{
    VmfMachineConfig quiet = busy;
    quiet.set_bytes = quiet.memory_bytes;
    uint64_t last = last_set_page(&quiet);
    const uint64_t offsets[] = {0, 3, 64 * 7 + 1, 64 * 63 + 2};

    for (unsigned rate = 0; rate < 2; rate++) {
        quiet.dirty_bytes_per_second = rate ? 64 << 20 : 0;
        for (unsigned i = 0; i < G_N_ELEMENTS(offsets); i++)
            assert_int_equal(errors_after_flip(&quiet, BLOCK_RAM, last - 4096 * i + offsets[i]), 1);
    }
    assert_int_equal(errors_after_flip(&quiet, BLOCK_VRAM, 4096 * 5 + 64), 1);
    assert_true(errors_after_flip(&quiet, BLOCK_ROM, 0x8000) >= 1);
}

/* A page that is a former version of itself, whole, is found too. */
static void test_stale_page_is_found(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    uint8_t *ram = memory_of(m, BLOCK_RAM);
    g_autofree uint8_t *former = NULL;
    uint64_t offset = 0;

    run_to(m, 100 * MILLISECOND);
    former = g_memdup2(ram, busy.memory_bytes);
    run_to(m, 200 * MILLISECOND);
    /* The set lies behind the first 64 KiB. */
    for (offset = 65536; memcmp(former + offset, ram + offset, 4096) == 0; offset += 4096)
        assert_true(offset < busy.memory_bytes - 4096);
    memcpy(ram + offset, former + offset, 4096);
    run_to(m, 400 * MILLISECOND);
    assert_int_equal(info_of(m).guest_errors, 1);
    assert_in_range(info_of(m).guest_error_address, GUEST_RAM_BASE + offset, GUEST_RAM_BASE + offset + 4095);
}

static void test_error_is_named_on_the_console(void **state)
{
    g_autofree char *path = g_strdup_printf("%s/vmferry-test-console-%d", g_get_tmp_dir(), (int)getpid());
    g_autofree char *text = NULL;
    VmfMachineConfig config = busy;
    config.console_path = path;
    VmfMachine *m = new_machine(&config);

    run_to(m, 1001 * MILLISECOND);
    memory_of(m, BLOCK_VRAM)[0] ^= 1;
    run_to(m, 2001 * MILLISECOND);
    assert_int_equal(info_of(m).console_lines, 4);
    assert_int_equal(info_of(m).console_lines_lost, 0);
    vmf_machine_free(m);
    assert_true(g_file_get_contents(path, &text, NULL, NULL));
    unlink(path);
    assert_non_null(strstr(text, "guest: line 1: 1000 ms, "));
    assert_non_null(strstr(text, "guest: line 2: error: page at 0x40000000\n"));
    assert_non_null(strstr(text, ", 1 errors\n"));
}

/* ---- rate, beats, time ------------------------------------------------------------------------------------------- */

static void test_beats_and_rate_follow_guest_time(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);

    run_to(m, 1000 * MILLISECOND + 5000);
    VmfMachineInfo at_1s = info_of(m);
    run_to(m, 3000 * MILLISECOND + 5000);
    VmfMachineInfo at_3s = info_of(m);
    assert_int_equal(at_1s.beats, 1000);
    assert_int_equal(at_3s.beats, 3000);
    /* 64 MiB a second are 16,384 pages; and one of video memory each 16 ms. */
    assert_in_range(at_3s.pages_written - at_1s.pages_written, 2 * (16384 + 62) - 20, 2 * (16384 + 63) + 20);
}

static void test_memory_outside_the_set_is_not_touched(void **state)
{
    VmfMachineConfig config = busy;
    config.memory_bytes = 8 << 20;
    g_autoptr(VmfMachine) m = new_machine(&config);
    const uint8_t *ram = memory_of(m, BLOCK_RAM);

    run_to(m, 300 * MILLISECOND);
    for (uint64_t i = (1 << 20) + 65536; i < config.memory_bytes; i++)
        assert_int_equal(ram[i], 0);
}

static void test_smallest_and_odd_sizes(void **state)
{
    const uint64_t sizes[] = {GUEST_RAM_SIZE_MIN, GUEST_RAM_SIZE_MIN + 4096, (3 << 20) + 4096};

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        VmfMachineConfig config = busy;
        config.memory_bytes = config.set_bytes = sizes[i];
        uncut_hash(&config, 200 * MILLISECOND);
        config.set_bytes = 4096;
        uncut_hash(&config, 20 * MILLISECOND);
        config.set_bytes = 0;
        uncut_hash(&config, 20 * MILLISECOND);
    }
}

static void test_bad_configurations_are_refused(void **state)
{
    VmfMachineConfig bad[5] = {busy, busy, busy, busy, busy};

    bad[0].memory_bytes = GUEST_RAM_SIZE_MIN - 4096;
    bad[1].memory_bytes += 1;
    bad[2].memory_bytes = (uint64_t)GUEST_RAM_SIZE_MAX + 4096;
    bad[3].set_bytes = bad[3].memory_bytes + 1;
    bad[4].console_path = "/nowhere/at/all";
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(vmf_machine_new(&bad[i], &error));
        assert_non_null(error);
    }
}

/* ---- run control ------------------------------------------------------------------------------------------------- */

static void test_start_and_stop(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    uint8_t hash[16];

    assert_false(vmf_machine_is_running(m));
    assert_true(vmf_machine_stop(m, NULL));
    assert_int_equal(info_of(m).instructions, 0);
    assert_true(vmf_machine_start(m, NULL));
    assert_true(vmf_machine_is_running(m));
    assert_false(vmf_machine_hash(m, hash, NULL));
    assert_false(vmf_machine_release_ram(m, NULL));
    assert_true(vmf_machine_stop(m, NULL));
    uint64_t there = info_of(m).instructions;
    g_usleep(2000);
    assert_int_equal(info_of(m).instructions, there);
    assert_false(vmf_machine_is_running(m));
}

static void test_stop_at_is_exact(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    const uint64_t at = 20 * MILLISECOND + 31;

    assert_true(vmf_machine_start(m, NULL));
    while (info_of(m).instructions < MILLISECOND)
        g_usleep(100);
    assert_false(vmf_machine_stop_at(m, 1, NULL));
    uint64_t point = info_of(m).instructions + at;
    assert_true(vmf_machine_stop_at(m, point, NULL));
    assert_true(vmf_machine_stop(m, NULL));
    assert_int_equal(info_of(m).instructions, point);
    assert_true(vmf_machine_start(m, NULL)); /* the point is used up */
    while (info_of(m).instructions < point + MILLISECOND)
        g_usleep(100);
    assert_true(vmf_machine_stop(m, NULL));
}

static void test_released_memory_cannot_run(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    g_autoptr(VmfMachine) back = new_machine(&busy);
    g_autoptr(GError) error = NULL;

    run_to(m, 50 * MILLISECOND);
    move(m, back);
    assert_true(vmf_machine_release_ram(m, NULL));
    assert_int_equal(memory_of(m, BLOCK_ROM)[0] | memory_of(m, BLOCK_RAM)[0], 0);
    assert_false(vmf_machine_start(m, &error));
    assert_non_null(strstr(error->message, "moved away"));
    move(back, m);
    run_to(m, 100 * MILLISECOND);
    assert_true(hash_of(m) == uncut_hash(&busy, 100 * MILLISECOND));
}

/* ---- memory that cannot be had ------------------------------------------------------------------------------------ */

static void forbid(VmfMachine *m, unsigned block, uint64_t offset, uint64_t length)
{
    assert_int_equal(mprotect(memory_of(m, block) + offset, length, PROT_NONE), 0);
}

static void allow(VmfMachine *m, unsigned block)
{
    VmfRamBlock *ram = vmf_guest_ram(m->guest, block);

    assert_int_equal(mprotect(vmf_ram_block_host(ram), vmf_ram_block_size(ram), PROT_READ | PROT_WRITE), 0);
}

static void assert_held(VmfMachine *m)
{
    g_autoptr(GError) error = NULL, hash_error = NULL;
    uint8_t hash[16];

    assert_false(vmf_machine_is_running(m));
    assert_false(vmf_machine_start(m, &error));
    assert_non_null(strstr(error->message, "cannot be had"));
    assert_false(vmf_machine_hash(m, hash, &hash_error));
    assert_non_null(strstr(hash_error->message, "cannot be had"));
}

static void test_a_guest_that_touches_lost_memory_stands(void **state)
{
    const VmfGuestOps *ops = &vmf_machine_guest_ops;
    g_autoptr(VmfMachine) m = new_machine(&busy);
    g_autoptr(VmfMachine) back = new_machine(&busy);

    run_to(back, 50 * MILLISECOND);
    assert_true(vmf_machine_start(m, NULL));
    while (info_of(m).instructions < 10 * MILLISECOND)
        g_usleep(100);
    assert_true(ops->memory_lost(m)); /* as the engine does, ahead of it */
    forbid(m, BLOCK_RAM, 0, 1 << 20);
    assert_true(ops->stop(m, NULL));
    assert_held(m);
    /* Another guest can be loaded into it. */
    allow(m, BLOCK_RAM);
    move(back, m);
    run_to(m, 100 * MILLISECOND);
    assert_true(hash_of(m) == uncut_hash(&busy, 100 * MILLISECOND));
}

static void test_a_guest_on_its_way_to_a_point_stands_too(void **state)
{
    const VmfGuestOps *ops = &vmf_machine_guest_ops;
    g_autoptr(VmfMachine) m = new_machine(&busy);

    run_to(m, 10 * MILLISECOND);
    assert_true(vmf_machine_stop_at(m, UINT64_C(1) << 60, NULL));
    forbid(m, BLOCK_ROM, 0, 4096);
    forbid(m, BLOCK_RAM, 0, 2 << 20);
    assert_true(vmf_machine_start(m, NULL));
    assert_true(ops->stop(m, NULL));
    assert_held(m);
}

static void test_lost_memory_that_nobody_touched(void **state)
{
    const VmfGuestOps *ops = &vmf_machine_guest_ops;
    g_autoptr(VmfMachine) m = new_machine(&busy);

    run_to(m, 10 * MILLISECOND);
    assert_true(vmf_machine_start(m, NULL));
    assert_true(ops->memory_lost(m));
    forbid(m, BLOCK_VRAM, 0, 4096);
    assert_true(ops->stop(m, NULL));
    assert_held(m);
}

static void test_a_device_meets_lost_memory(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    uint64_t address = vmf_ram_block_guest_address(vmf_guest_ram(m->guest, BLOCK_VRAM));
    g_autoptr(GError) error = NULL;

    assert_true(vmf_machine_start(m, NULL));
    forbid(m, BLOCK_VRAM, 4096, 4096);
    assert_true(vmf_machine_write_memory(m, address, "abcd", 4, NULL));
    assert_false(vmf_machine_write_memory(m, address + 4094, "abcd", 4, &error));
    assert_non_null(strstr(error->message, "cannot be had"));
    assert_true(vmf_machine_stop(m, NULL)); /* no lock was left behind */
}

static void test_gap_spans_the_stop(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    const VmfGuestOps *ops = &vmf_machine_guest_ops;
    uint64_t gap_ns;

    run_to(m, 5 * MILLISECOND + 1);
    g_usleep(3000);
    assert_true(ops->start(m, NULL));
    assert_true(ops->guest_gap(m, 10000000000, &gap_ns));
    assert_true(gap_ns >= 3000000);
    assert_true(ops->stop(m, NULL));
    uint64_t longest_ns = info_of(m).guest_gap_max_ns;
    assert_true(longest_ns >= gap_ns);

    g_usleep(longest_ns / 1000 + 3000); /* the owner's pause is no gap, and none can be told across it */
    assert_true(vmf_machine_start(m, NULL));
    assert_false(ops->guest_gap(m, 10000000000, &gap_ns));
    assert_true(ops->stop(m, NULL));
}

static void test_a_lent_guest(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    g_autoptr(GError) error = NULL;
    const VmfGuestOps *ops = &vmf_machine_guest_ops;

    vmf_machine_lend(m);
    assert_true(vmf_machine_start(m, NULL));
    assert_true(ops->stop(m, NULL));
    assert_false(vmf_machine_start(m, &error)); /* the session's */
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_STATE));
    assert_false(vmf_machine_is_running(m));

    assert_true(vmf_machine_stop(m, NULL)); /* the owner's, outlasts the session's start */
    assert_true(ops->start(m, NULL));
    assert_false(vmf_machine_is_running(m));
    assert_true(vmf_machine_start(m, NULL));
    assert_true(vmf_machine_is_running(m));

    assert_true(ops->stop(m, NULL));
    vmf_machine_take_back(m);
    assert_true(vmf_machine_start(m, NULL));
    assert_true(vmf_machine_stop(m, NULL));
    assert_true(ops->start(m, NULL)); /* not lent: as told last */
    assert_true(vmf_machine_is_running(m));
}

static void test_gap_across_hosts(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    g_autoptr(VmfMachine) same = new_machine(&busy);
    g_autoptr(VmfMachine) other = new_machine(&busy);
    uint64_t gap_ns;

    run_to(m, 5 * MILLISECOND + 1);
    move(m, same);
    memset(other->boot_id, 0x77, sizeof(other->boot_id));
    move(m, other);
    other->beat.last_monotonic_ns = UINT64_MAX; /* the source's clock means nothing there */
    same->beat.last_realtime_ns = UINT64_MAX;   /* and here nothing is needed but it */
    assert_true(vmf_machine_guest_ops.start(same, NULL));
    assert_true(vmf_machine_guest_ops.guest_gap(same, 10000000000, &gap_ns));
    assert_in_range(gap_ns, 1, 3600ull * 1000000000);
    assert_true(vmf_machine_guest_ops.start(other, NULL));
    assert_true(vmf_machine_guest_ops.guest_gap(other, 10000000000, &gap_ns));
    assert_in_range(gap_ns, 1, 3600ull * 1000000000);
}

static void test_dirty_log_reports_what_the_guest_writes(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    const uint64_t pages = busy.memory_bytes / 4096;
    uint8_t *ram = memory_of(m, BLOCK_RAM);
    g_autofree uint8_t *before = NULL;

    run_to(m, 50 * MILLISECOND);
    before = g_memdup2(ram, busy.memory_bytes);
    assert_true(vmf_rv32_log_ops.start(m->dirty_log, NULL));
    run_to(m, 53 * MILLISECOND);
    const VmfLogBitmap *bitmap = m->cpu.regions[0].dirty;
    unsigned n_dirty = 0;
    for (uint64_t page = 0; page < pages; page++) {
        bool dirty = bitmap->words[page / 64] >> (page % 64) & 1;
        n_dirty += dirty;
        assert_true(dirty || memcmp(before + page * 4096, ram + page * 4096, 4096) == 0);
    }
    assert_in_range(n_dirty, 3, pages / 2);
    vmf_rv32_log_ops.stop(m->dirty_log);
}

/* ---- a copy made while the guest runs ---------------------------------------------------------------------------- */

static void or_words(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    uint64_t *bitmap = opaque;

    for (size_t i = 0; i < n_words; i++)
        bitmap[first_word + i] |= words[i];
}

/* One round over a block, as the engine makes it: harvest; then for each chunk clear and copy what is dirty. */
static void copy_dirty(VmfMachine *m, unsigned block, uint64_t *bitmap, uint8_t *copy)
{
    uint64_t n_pages = vmf_ram_block_size(vmf_guest_ram(vmf_machine_guest(m), block)) / 4096;

    assert_true(vmf_rv32_log_ops.harvest(m->dirty_log, block, or_words, bitmap, NULL));
    for (uint64_t first = 0; first < n_pages; first += 512) {
        uint64_t *words = bitmap + first / 64;

        vmf_rv32_log_ops.clear(m->dirty_log, block, first, MIN(512, n_pages - first), words);
        for (uint64_t page = first; page < MIN(first + 512, n_pages); page++) {
            if (bitmap[page / 64] >> (page % 64) & 1)
                memcpy(copy + page * 4096, memory_of(m, block) + page * 4096, 4096);
        }
        memset(words, 0, (MIN(512, n_pages - first) + 63) / 64 * 8);
    }
}

/* Copies a running guest until 60 guest milliseconds have passed, stops it, copies the rest: nothing may be missing. */
static void test_live_copy_is_exact(void **state)
{
    g_autoptr(VmfMachine) m = new_machine(&busy);
    g_autofree uint8_t *ram = g_malloc0(busy.memory_bytes);
    g_autofree uint8_t *vram = g_malloc0(GUEST_VRAM_SIZE);
    uint64_t ram_bitmap[512 / 64], vram_bitmap[1] = {UINT64_MAX};

    memset(ram_bitmap, 0xff, sizeof(ram_bitmap));
    assert_true(vmf_machine_start(m, NULL));
    assert_true(vmf_rv32_log_ops.start(m->dirty_log, NULL));
    for (bool running = true; running;) {
        running = info_of(m).instructions < 60 * MILLISECOND;
        if (!running)
            assert_true(vmf_machine_stop(m, NULL));
        copy_dirty(m, BLOCK_RAM, ram_bitmap, ram);
        copy_dirty(m, BLOCK_VRAM, vram_bitmap, vram);
    }
    vmf_rv32_log_ops.stop(m->dirty_log);
    assert_memory_equal(ram, memory_of(m, BLOCK_RAM), busy.memory_bytes);
    assert_memory_equal(vram, memory_of(m, BLOCK_VRAM), GUEST_VRAM_SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_run_ends_as_the_uncut),
        cmocka_unit_test(test_host_is_not_visible),
        cmocka_unit_test(test_seed_and_rate_matter),
        cmocka_unit_test(test_moved_run_ends_as_the_uncut),
        cmocka_unit_test(test_every_field_travels),
        cmocka_unit_test(test_device_state_of_a_peer_is_checked),
        cmocka_unit_test(test_flipped_byte_is_found),
        cmocka_unit_test(test_stale_page_is_found),
        cmocka_unit_test(test_error_is_named_on_the_console),
        cmocka_unit_test(test_beats_and_rate_follow_guest_time),
        cmocka_unit_test(test_memory_outside_the_set_is_not_touched),
        cmocka_unit_test(test_smallest_and_odd_sizes),
        cmocka_unit_test(test_bad_configurations_are_refused),
        cmocka_unit_test(test_start_and_stop),
        cmocka_unit_test(test_stop_at_is_exact),
        cmocka_unit_test(test_released_memory_cannot_run),
        cmocka_unit_test(test_a_guest_that_touches_lost_memory_stands),
        cmocka_unit_test(test_a_guest_on_its_way_to_a_point_stands_too),
        cmocka_unit_test(test_lost_memory_that_nobody_touched),
        cmocka_unit_test(test_a_device_meets_lost_memory),
        cmocka_unit_test(test_gap_spans_the_stop),
        cmocka_unit_test(test_a_lent_guest),
        cmocka_unit_test(test_gap_across_hosts),
        cmocka_unit_test(test_dirty_log_reports_what_the_guest_writes),
        cmocka_unit_test(test_live_copy_is_exact),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
