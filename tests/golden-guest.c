/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "tests/golden-guest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define PAGE GOLDEN_PAGE

static const VmfField counter_fields[] = {
    VMF_FIELD(Counter, value, VMF_FIELD_U32, 1),
    VMF_FIELD(Counter, stamp, VMF_FIELD_U64, 1),
    VMF_FIELD(Counter, flag, VMF_FIELD_BOOL, 2),
    VMF_FIELD_ARRAY(Counter, bytes, VMF_FIELD_U8, 2),
    VMF_FIELD_END,
};
static const VmfField extra_fields[] = {VMF_FIELD(Counter, level, VMF_FIELD_U16, 1), VMF_FIELD_END};
static const VmfSubsection counter_subsections[] = {
    {.name = "extra", .version = 1, .minimum_version = 1, .optional = true, .fields = extra_fields},
    {.name = NULL},
};
const VmfDeviceState golden_counter_state = {
    .size = sizeof(VmfDeviceState),
    .name = "counter",
    .version = 2,
    .minimum_version = 1,
    .fields = counter_fields,
    .subsections = counter_subsections,
};
const VmfDeviceState golden_plain_counter_state = {
    .size = sizeof(VmfDeviceState),
    .name = "counter",
    .version = 2,
    .minimum_version = 1,
    .fields = counter_fields,
};

static bool guest_stop(void *opaque, GError **error)
{
    ((Golden *)opaque)->running = false;
    return true;
}

static bool guest_start(void *opaque, GError **error)
{
    ((Golden *)opaque)->running = true;
    return true;
}

static bool guest_is_running(void *opaque)
{
    return ((Golden *)opaque)->running;
}

static bool guest_storage_release(void *opaque, GError **error)
{
    Golden *golden = opaque;
    bool done = true;

    for (size_t i = 0; i < G_N_ELEMENTS(golden->disks); i++)
        done = (!golden->disks[i] || vmf_disk_release(golden->disks[i], done ? error : NULL)) && done;
    return done;
}

static bool guest_storage_acquire(void *opaque, GError **error)
{
    Golden *golden = opaque;

    for (size_t i = 0; i < G_N_ELEMENTS(golden->disks); i++)
        if (golden->disks[i] && !vmf_disk_acquire(golden->disks[i], error))
            return false;
    return true;
}

static const VmfGuestOps guest_ops = {.size = sizeof(VmfGuestOps),
                                      .stop = guest_stop,
                                      .start = guest_start,
                                      .is_running = guest_is_running,
                                      .storage_release = guest_storage_release,
                                      .storage_acquire = guest_storage_acquire};

static bool blob_setup(void *opaque, GError **error)
{
    ((Golden *)opaque)->setups++;
    return true;
}

static bool blob_static_data_done(void *opaque, VmfMissing missing, GError **error)
{
    ((Golden *)opaque)->missing = missing;
    return true;
}

static bool blob_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    Golden *golden = opaque;

    assert_int_equal(version, 1);
    g_byte_array_append(golden->blob, data, (guint)length);
    golden->blob_ends += last;
    return true;
}

static void blob_cleanup(void *opaque)
{
    ((Golden *)opaque)->cleanups++;
}

static const VmfSaveHandlers blob_handlers = {
    .size = sizeof(VmfSaveHandlers),
    .load_setup = blob_setup,
    .static_data_done = blob_static_data_done,
    .load_state = blob_load,
    .load_cleanup = blob_cleanup,
};

static void add_ram(VmfGuest *guest, const char *name, unsigned pages, uint64_t address, VmfRamFlags flags)
{
    VmfRamBlock *block = vmf_ram_block_new(name, (uint64_t)pages * PAGE, VMF_RAM_ANON, flags, address, NULL);

    assert_true(vmf_guest_add_ram(guest, block, NULL, NULL));
}

Golden *golden_new(const VmfDeviceState *state)
{
    static const uint8_t uuid[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                     0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    Golden *golden = g_new0(Golden, 1);

    golden->blob = g_byte_array_new();
    golden->guest = vmf_guest_new("golden", uuid, &guest_ops, golden);
    vmf_guest_set_property(golden->guest, "cpu", "golden-1");
    vmf_guest_set_property(golden->guest, "timebase", "100000000");
    add_ram(golden->guest, "ram0", 515, 0x80000000, 0);
    add_ram(golden->guest, "ram1", 8, 0x90000000, 0);
    add_ram(golden->guest, "rom", 2, 0x1000, VMF_RAM_ROM);
    memset(vmf_ram_block_host(vmf_guest_ram(golden->guest, 2)), 0x5a, 2 * PAGE); /* a ROM of its own */
    assert_true(vmf_guest_add_device(golden->guest, state, 0, &golden->counter, NULL));
    assert_true(vmf_guest_add_handlers(golden->guest, "blob", 0, 1, &blob_handlers, golden, NULL));
    return golden;
}

void golden_free(Golden *golden)
{
    vmf_guest_free(golden->guest);
    g_byte_array_unref(golden->blob);
    g_free(golden);
}

/* ---- what arrives ---------------------------------------------------------- */

void golden_make_page(uint8_t out[PAGE], unsigned seed)
{
    for (unsigned n = 0; n < PAGE; n++)
        out[n] = (uint8_t)(seed + n + (n >> 8));
}

/* Of the page, as README.rst has it; 0: zeros. */
static unsigned seed_of(unsigned block, unsigned page, bool layer)
{
    static const struct {
        unsigned block, page, seed;
    } rows[] = {{0, 3, 6}, {0, 514, 3}, {1, 1, 4}, {2, 0, 5}, {0, 4, 7}, {0, 514, 8}, {1, 7, 9}};

    for (size_t i = layer ? 4 : 0; i < (layer ? G_N_ELEMENTS(rows) : 4); i++)
        if (rows[i].block == block && rows[i].page == page)
            return rows[i].seed;
    return 0;
}

void golden_check_memory(const Golden *golden, bool layer)
{
    for (unsigned b = 0; b < 3; b++) {
        VmfRamBlock *block = vmf_guest_ram(golden->guest, b);
        const uint8_t *host = vmf_ram_block_host(block);
        for (unsigned page = 0; page < vmf_ram_block_size(block) / PAGE; page++) {
            uint8_t expected[PAGE] = {0};
            if (seed_of(b, page, layer))
                golden_make_page(expected, seed_of(b, page, layer));
            assert_memory_equal(host + (size_t)page * PAGE, expected, PAGE);
        }
    }
}

void golden_check_state(const Golden *golden, bool extra, bool layer)
{
    assert_int_equal(golden->counter.value, 0x01020304);
    assert_true(golden->counter.stamp == UINT64_C(0x1122334455667788));
    assert_true(golden->counter.flag);
    assert_memory_equal(golden->counter.bytes, "\xde\xad\xbe\xef", 4);
    assert_int_equal(golden->counter.level, extra ? 0xBEEF : 0);
    assert_int_equal(golden->blob->len, 1000);
    for (unsigned n = 0; n < 1000; n++)
        assert_int_equal(golden->blob->data[n], n * (layer ? 11 : 7) & 0xFF);
    assert_int_equal(golden->blob_ends, 1);
    assert_int_equal(golden->setups, 1);
    assert_int_equal(golden->cleanups, 1);
}
