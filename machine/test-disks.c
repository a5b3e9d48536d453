/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks' device, register by register, on a machine whose vCPU stands. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "machine/machine-private.h"

#define DISK_BYTES (1u << 20)
#define BUFFER (GUEST_RAM_BASE + 0x20000u)

typedef struct {
    char *path;
    VmfMachine *machine, *other;
} Rig;

static VmfMachine *new_machine(const char *path)
{
    g_autofree char *uri = g_strconcat("file:", path, NULL);
    VmfMachineDiskConfig disk = {.name = "root", .uri = uri};
    VmfMachineConfig config = {.name = "test", .memory_bytes = 1u << 20, .disks = &disk, .n_disks = 1, .unpaced = true};
    g_autoptr(GError) error = NULL;
    VmfMachine *machine = vmf_machine_new(&config, &error);

    if (!machine)
        g_error("%s", error->message);
    return machine;
}

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);
    int fd = g_file_open_tmp("vmferry-XXXXXX", &rig->path, NULL);

    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    close(fd);
    rig->machine = new_machine(rig->path);
    rig->other = new_machine(rig->path);
    assert_true(vmf_machine_hold_storage(rig->machine, NULL));
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_machine_free(rig->machine);
    vmf_machine_free(rig->other);
    g_unlink(rig->path);
    g_free(rig->path);
    g_free(rig);
    return 0;
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

static void put(VmfMachine *m, unsigned slot, uint32_t reg, uint32_t value)
{
    assert_true(vmf_machine_mmio_write(m, GUEST_MMIO_BASE + GUEST_DISK_BASE + slot * GUEST_DISK_SLOT_STRIDE + reg, 4, value));
}

static uint32_t get(VmfMachine *m, unsigned slot, uint32_t reg)
{
    uint32_t value;

    assert_true(vmf_machine_mmio_read(m, GUEST_MMIO_BASE + GUEST_DISK_BASE + slot * GUEST_DISK_SLOT_STRIDE + reg, 4, &value));
    return value;
}

static void command(VmfMachine *m, unsigned slot, uint32_t what, uint32_t address, uint32_t length, uint64_t sector)
{
    put(m, slot, GUEST_DISK_ADDRESS, address);
    put(m, slot, GUEST_DISK_LENGTH, length);
    put(m, slot, GUEST_DISK_SECTOR_LOW, (uint32_t)sector);
    put(m, slot, GUEST_DISK_SECTOR_HIGH, (uint32_t)(sector >> 32));
    put(m, slot, GUEST_DISK_COMMAND, what);
}

/* As if the guest had executed so many instructions, between two of which it is told what is due. */
static void pass(VmfMachine *m, uint64_t instructions)
{
    vmf_disk_drain(m->disks[0].disk);
    m->cpu.state.instructions += instructions;
    pthread_mutex_lock(&m->lock);
    assert_false(vmf_disks_hold_up(m));
    assert_true(vmf_disks_settle(m));
    pthread_mutex_unlock(&m->lock);
}

static uint8_t *memory_at(VmfMachine *m, uint32_t address)
{
    return (uint8_t *)vmf_ram_block_host(vmf_guest_ram(m->guest, BLOCK_RAM)) + (address - GUEST_RAM_BASE);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void test_guest_is_told_at_its_count_and_not_before(void **state)
{
    VmfMachine *m = ((Rig *)*state)->machine;

    memset(memory_at(m, BUFFER), 0x5a, 8192);
    command(m, 0, GUEST_DISK_WRITE, BUFFER, 8192, 8);
    memset(memory_at(m, BUFFER), 0, 8192); /* the data was taken at the command */
    pass(m, GUEST_DISK_DELAY);
    assert_int_equal(get(m, 0, GUEST_DISK_STATUS), GUEST_DISK_DONE);
    command(m, 3, GUEST_DISK_READ, BUFFER, 8192, 8);
    pass(m, GUEST_DISK_DELAY - 1);
    assert_int_equal(get(m, 3, GUEST_DISK_STATUS), GUEST_DISK_BUSY);
    assert_int_equal(memory_at(m, BUFFER)[0], 0);
    pass(m, 1);
    assert_int_equal(get(m, 3, GUEST_DISK_STATUS), GUEST_DISK_DONE);
    for (unsigned i = 0; i < 8192; i++)
        assert_int_equal(memory_at(m, BUFFER)[i], 0x5a);
    assert_int_equal(vmf_disks_due(m), 0);
}

static void test_what_cannot_be_fails_in_its_time(void **state)
{
    VmfMachine *m = ((Rig *)*state)->machine;
    const struct {
        uint32_t command, address, length;
        uint64_t sector;
    } bad[] = {
        {0, BUFFER, 512, 0},
        {GUEST_DISK_DISCARD + 1, BUFFER, 512, 0},
        {GUEST_DISK_READ, BUFFER, 0, 0},
        {GUEST_DISK_READ, BUFFER, GUEST_DISK_LENGTH_MAX + 512, 0},
        {GUEST_DISK_WRITE, BUFFER, 100, 0},
        {GUEST_DISK_READ, GUEST_ROM_BASE, 512, 0}, /* cannot be written */
        {GUEST_DISK_WRITE, GUEST_RAM_BASE + (1u << 20) - 256, 512, 0},
        {GUEST_DISK_WRITE, 0xffffff00u, 512, 0},
        {GUEST_DISK_WRITE, BUFFER, 1024, DISK_BYTES / 512 - 1},
        {GUEST_DISK_WRITE, BUFFER, 512, ~0ull},
        {GUEST_DISK_WRITE, BUFFER, 512, ~0ull / 512},
        {GUEST_DISK_ZERO, 0, 0xfffffe00u, 0},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        command(m, 1, bad[i].command, bad[i].address, bad[i].length, bad[i].sector);
        assert_int_equal(get(m, 1, GUEST_DISK_STATUS), GUEST_DISK_BUSY);
        pass(m, GUEST_DISK_DELAY);
        assert_int_equal(get(m, 1, GUEST_DISK_STATUS), GUEST_DISK_FAILED);
    }
    command(m, 1, GUEST_DISK_WRITE, GUEST_ROM_BASE, 512, DISK_BYTES / 512 - 1); /* from the ROM, to the last sector */
    pass(m, GUEST_DISK_DELAY);
    assert_int_equal(get(m, 1, GUEST_DISK_STATUS), GUEST_DISK_DONE);
}

static void test_busy_slot_keeps_its_request(void **state)
{
    VmfMachine *m = ((Rig *)*state)->machine;

    command(m, 2, GUEST_DISK_READ, BUFFER, 4096, 0);
    command(m, 2, GUEST_DISK_WRITE, GUEST_RAM_BASE, 512, 7);
    assert_int_equal(get(m, 2, GUEST_DISK_ADDRESS), BUFFER);
    assert_int_equal(get(m, 2, GUEST_DISK_LENGTH), 4096);
    assert_int_equal(get(m, 2, GUEST_DISK_COMMAND), GUEST_DISK_READ);
    pass(m, GUEST_DISK_DELAY);
    assert_int_equal(get(m, 2, GUEST_DISK_STATUS), GUEST_DISK_DONE);
}

static void test_registers_that_are_not_there(void **state)
{
    VmfMachine *m = ((Rig *)*state)->machine;
    uint32_t base = GUEST_MMIO_BASE + GUEST_DISK_BASE, value;

    assert_false(vmf_machine_mmio_read(m, base + GUEST_DISK_STRIDE, 4, &value)); /* of a second disk */
    assert_false(vmf_machine_mmio_write(m, base + GUEST_DISK_STRIDE + GUEST_DISK_COMMAND, 4, 1));
    assert_false(vmf_machine_mmio_read(m, base + 0x18, 4, &value));
    assert_false(vmf_machine_mmio_write(m, base + GUEST_DISK_STATUS, 4, 0));
    assert_false(vmf_machine_mmio_read(m, base + GUEST_DISK_STATUS, 2, &value));
    assert_false(vmf_machine_mmio_read(m, base - 4, 4, &value));
}

static GByteArray *saved(VmfMachine *m)
{
    GByteArray *bytes = vmf_device_state_save(&vmf_disk_state, &m->disks[0].wire, NULL);

    assert_non_null(bytes);
    return bytes;
}

static bool load(VmfMachine *m, const GByteArray *bytes, GError **error)
{
    return vmf_device_state_load(&vmf_disk_state, &m->disks[0].wire, 1, bytes->data, bytes->len, false, error);
}

/* A read that ended at one host is told at another, with the data of then. */
static void test_request_under_way_travels(void **state)
{
    Rig *rig = *state;
    VmfMachine *from = rig->machine, *to = rig->other;

    memset(memory_at(from, BUFFER), 0x33, 4096);
    command(from, 0, GUEST_DISK_WRITE, BUFFER, 4096, 16);
    pass(from, GUEST_DISK_DELAY);
    command(from, 5, GUEST_DISK_READ, BUFFER + 4096, 4096, 16);
    command(from, 6, GUEST_DISK_READ, BUFFER + 4096, 4096, ~0ull); /* one that fails */
    g_autoptr(GByteArray) bytes = saved(from);
    to->cpu.state.instructions = from->cpu.state.instructions + 7;
    assert_true(load(to, bytes, NULL));
    assert_int_equal(get(to, 0, GUEST_DISK_STATUS), GUEST_DISK_DONE);
    assert_int_equal(get(to, 5, GUEST_DISK_STATUS), GUEST_DISK_BUSY);
    pass(to, GUEST_DISK_DELAY - 7);
    assert_int_equal(get(to, 5, GUEST_DISK_STATUS), GUEST_DISK_DONE);
    assert_int_equal(get(to, 6, GUEST_DISK_STATUS), GUEST_DISK_FAILED);
    assert_memory_equal(memory_at(to, BUFFER + 4096), memory_at(from, BUFFER), 4096);
}

static void test_state_of_a_peer_is_checked(void **state)
{
    Rig *rig = *state;
    VmfMachine *from = rig->machine, *to = rig->other;
    VmfDiskSlotState good = {.address = BUFFER, .length = 512, .command = GUEST_DISK_READ, .status = GUEST_DISK_BUSY, .due = 5};
    VmfDiskSlotState bad[] = {good, good, good, good, good};

    bad[0].status = GUEST_DISK_FAILED + 1;
    bad[1].due = GUEST_DISK_DELAY + 1;
    bad[2].address = GUEST_ROM_BASE;
    bad[3].length = GUEST_DISK_LENGTH_MAX + 512;
    bad[4].address = 0xffffffffu;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        VmfDiskWire *wire = &to->disks[0].wire;
        *wire = (VmfDiskWire){0};
        wire->address[4] = bad[i].address;
        wire->length[4] = bad[i].length;
        wire->command[4] = bad[i].command;
        wire->status[4] = bad[i].status;
        wire->due[4] = bad[i].due;
        assert_false(vmf_disk_state.post_load(wire, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE));
        assert_int_equal(get(to, 4, GUEST_DISK_STATUS), GUEST_DISK_IDLE);
    }
    from->disks[0].slots[4].live = good;
    g_autoptr(GByteArray) bytes = saved(from);
    assert_true(load(to, bytes, NULL));
    from->disks[0].slots[4].live = (VmfDiskSlotState){0};
}

static void test_names_and_numbers_of_disks(void **state)
{
    Rig *rig = *state;
    g_autofree char *uri = g_strconcat("file:", rig->path, NULL);
    VmfMachineDiskConfig disks[GUEST_DISKS_MAX + 1];
    VmfMachineConfig config = {.name = "test", .memory_bytes = 1u << 20, .disks = disks, .n_disks = 1};
    static const char *const names[] = {"", "a b", "this-name-is-longer-than-31-octets", "a/b"};

    for (size_t i = 0; i < G_N_ELEMENTS(disks); i++)
        disks[i] = (VmfMachineDiskConfig){.name = "root", .uri = uri, .read_only = true};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        disks[0].name = names[i];
        assert_null(vmf_machine_new(&config, NULL));
    }
    disks[0].name = "root";
    config.n_disks = GUEST_DISKS_MAX + 1;
    assert_null(vmf_machine_new(&config, NULL));
    config.n_disks = 2;
    disks[0].read_only = disks[1].read_only = false;
    assert_null(vmf_machine_new(&config, NULL)); /* one name twice */
    config.n_disks = 1;
    config.disk_bytes_per_second = 1;
    config.disk_set_bytes = DISK_BYTES;
    config.memory_bytes = GUEST_RAM_SIZE_MIN;
    assert_null(vmf_machine_new(&config, NULL)); /* no room for the program's buffers */
}

/* In each other's file they would write each other away. */
static void test_one_file_of_bitmaps_is_of_one_disk(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmferry-XXXXXX", NULL), *link_path = g_strconcat(directory, "-link", NULL);
    g_autofree char *file = g_build_filename(directory, "map", NULL), *same = g_build_filename(link_path, "map", NULL);
    g_autofree char *root = g_strdup_printf("file:%s/root", directory), *data = g_strdup_printf("file:%s/data", directory);
    g_autofree char *beside = g_build_filename(directory, "root.bitmaps", NULL);
    VmfMachineDiskConfig disks[2] = {{.name = "root", .uri = root, .create_bytes = DISK_BYTES},
                                     {.name = "data", .uri = data, .create_bytes = DISK_BYTES}};
    VmfMachineConfig config = {.name = "test", .memory_bytes = 1u << 20, .disks = disks, .n_disks = 2};
    const char *const pairs[][2] = {{file, file}, {file, same}, {NULL, beside}, {file, beside}, {NULL, NULL}};

    assert_int_equal(symlink(directory, link_path), 0);
    for (size_t i = 0; i < G_N_ELEMENTS(pairs); i++) {
        g_autoptr(GError) error = NULL;

        disks[0].bitmaps = pairs[i][0];
        disks[1].bitmaps = pairs[i][1];
        g_autoptr(VmfMachine) machine = vmf_machine_new(&config, &error);
        assert_int_equal(machine != NULL, i >= 3);
        assert_true(machine || g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    }
    g_unlink(link_path);
    g_rmdir(directory);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_guest_is_told_at_its_count_and_not_before),
        rig_test(test_what_cannot_be_fails_in_its_time),
        rig_test(test_busy_slot_keeps_its_request),
        rig_test(test_registers_that_are_not_there),
        rig_test(test_request_under_way_travels),
        rig_test(test_state_of_a_peer_is_checked),
        rig_test(test_names_and_numbers_of_disks),
        rig_test(test_one_file_of_bitmaps_is_of_one_disk),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
