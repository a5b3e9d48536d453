/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The golden streams are loaded for ever: each version in each byte order, into a guest of that layout, and what arrives is what
 * tests/golden/README.rst says. They were written by the independent writer, so this is also where the two understandings of the format
 * meet. Then each of them is damaged in every place: it fails with one clear error, and nothing of it is left.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <vmferry/vmferry.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define PAGE 4096u

static const char *const names[] = {"v2-le.vmf", "v2-be.vmf", "v3-le.vmf", "v3-be.vmf"};

/* ---- the guest ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t value;
    uint64_t stamp;
    bool flag;
    uint8_t bytes[4];
    uint16_t level;
} Counter;

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
static const VmfDeviceState counter_state = {
    .size = sizeof(VmfDeviceState),
    .name = "counter",
    .version = 2,
    .minimum_version = 1,
    .fields = counter_fields,
    .subsections = counter_subsections,
};
/* As a machine that never had the subsection. */
static const VmfDeviceState plain_counter_state = {
    .size = sizeof(VmfDeviceState),
    .name = "counter",
    .version = 2,
    .minimum_version = 1,
    .fields = counter_fields,
};

typedef struct {
    VmfGuest *guest;
    bool running;
    Counter counter;
    GByteArray *blob;
    unsigned blob_ends, setups, cleanups;
    VmfMissing missing;
} Golden;

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

static const VmfGuestOps guest_ops = {
    .size = sizeof(VmfGuestOps), .stop = guest_stop, .start = guest_start, .is_running = guest_is_running};

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

static Golden *golden_new(const VmfDeviceState *state)
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

static void golden_free(Golden *golden)
{
    vmf_guest_free(golden->guest);
    g_byte_array_unref(golden->blob);
    g_free(golden);
}

/* ---- loading --------------------------------------------------------------------------------------------------------------- */

static bool load(Golden *golden, const char *path, VmfStatistics *statistics, GError **error)
{
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autoptr(VmfListener) listener = vmf_listener_new(uri, 0, NULL);
    VmfParameters parameters;

    assert_non_null(listener);
    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session = vmf_session_new_target(golden->guest, listener, &parameters, NULL, NULL);
    bool done = vmf_session_run(session, error);
    statistics->size = sizeof(*statistics);
    vmf_session_get_statistics(session, statistics);
    return done;
}

static void make_page(uint8_t out[PAGE], unsigned seed)
{
    for (unsigned n = 0; n < PAGE; n++)
        out[n] = (uint8_t)(seed + n + (n >> 8));
}

static unsigned seed_of(unsigned block, unsigned page)
{
    static const struct {
        unsigned block, page, seed;
    } rows[] = {{0, 3, 6}, {0, 514, 3}, {1, 1, 4}, {2, 0, 5}};

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        if (rows[i].block == block && rows[i].page == page)
            return rows[i].seed;
    return 0;
}

static void check_memory(const Golden *golden)
{
    for (unsigned b = 0; b < 3; b++) {
        VmfRamBlock *block = vmf_guest_ram(golden->guest, b);
        const uint8_t *host = vmf_ram_block_host(block);
        for (unsigned page = 0; page < vmf_ram_block_size(block) / PAGE; page++) {
            uint8_t expected[PAGE] = {0};
            if (seed_of(b, page))
                make_page(expected, seed_of(b, page));
            assert_memory_equal(host + (size_t)page * PAGE, expected, PAGE);
        }
    }
}

static void check_state(const Golden *golden, bool extra)
{
    assert_int_equal(golden->counter.value, 0x01020304);
    assert_true(golden->counter.stamp == UINT64_C(0x1122334455667788));
    assert_true(golden->counter.flag);
    assert_memory_equal(golden->counter.bytes, "\xde\xad\xbe\xef", 4);
    assert_int_equal(golden->counter.level, extra ? 0xBEEF : 0);
    assert_int_equal(golden->blob->len, 1000);
    for (unsigned n = 0; n < 1000; n++)
        assert_int_equal(golden->blob->data[n], n * 7 & 0xFF);
    assert_int_equal(golden->blob_ends, 1);
    assert_int_equal(golden->setups, 1);
    assert_int_equal(golden->cleanups, 1);
}

static void load_golden(const char *name, const VmfDeviceState *state)
{
    g_autofree char *path = g_build_filename(GOLDEN_DIRECTORY, name, NULL);
    Golden *golden = golden_new(state);
    VmfStatistics statistics;
    GError *error = NULL;

    if (!load(golden, path, &statistics, &error))
        fail_msg("%s: %s", name, error->message);
    check_memory(golden);
    check_state(golden, state->subsections != NULL);
    assert_false(golden->running); /* its switchover says paused */
    assert_int_equal(statistics.outcome, VMF_OUTCOME_COMPLETED);
    assert_int_equal(statistics.verified, VMF_VERIFIED_TRANSPORT);
    assert_int_equal(golden->missing, name[1] == '2' ? VMF_MISSING_STATIC_END | VMF_MISSING_FEATURES : 0);
    golden_free(golden);
}

static void test_load(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        load_golden(names[i], &counter_state);
}

static void test_load_where_the_subsection_is_not_known(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        load_golden(names[i], &plain_counter_state);
}

/* ---- damage ---------------------------------------------------------------------------------------------------------------- */

static bool is_zero(VmfRamBlock *block)
{
    const uint8_t *host = vmf_ram_block_host(block);

    for (uint64_t n = 0; n < vmf_ram_block_size(block); n++)
        if (host[n])
            return false;
    return true;
}

static void write_file(const char *path, const char *octets, size_t length)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_int_equal(fwrite(octets, 1, length, file), length);
    fclose(file);
}

/* The first version of a page that is sent again: what happens to it on the way makes no difference. */
static bool is_superseded(size_t at, const char *octets)
{
    uint8_t page[PAGE];

    for (unsigned seed = 1; seed <= 2; seed++) {
        make_page(page, seed);
        for (size_t start = at > PAGE ? at - PAGE : 0; start <= at; start++)
            if (memcmp(octets + start, page, PAGE) == 0)
                return true;
    }
    return false;
}

/* A damaged stream does not load, says why, and leaves neither a guest nor its memory. */
static void expect_failure(Golden *golden, const char *path, size_t at)
{
    g_autoptr(GError) error = NULL;
    VmfStatistics statistics;

    golden->setups = golden->cleanups = 0;
    if (load(golden, path, &statistics, &error))
        fail_msg("loads, though octet %zu is wrong", at);
    assert_non_null(error);
    assert_true(error->domain == VMF_ERROR && strlen(error->message) > 10);
    assert_int_not_equal(error->code, VMF_ERROR_INTERNAL);
    assert_int_equal(statistics.outcome, VMF_OUTCOME_FAILED);
    assert_false(golden->running);
    assert_int_equal(golden->setups, golden->cleanups);
    if (golden->setups > 0)
        assert_true(is_zero(vmf_guest_ram(golden->guest, 0)) && is_zero(vmf_guest_ram(golden->guest, 1)));
    g_byte_array_set_size(golden->blob, 0);
}

/* Payload looks the same everywhere: a part of it is enough there. */
static bool looks_like_its_neighbours(const char *octets, size_t length, size_t at)
{
    static const char zeros[8];

    return at > 64 && at + 64 < length && at % 89 != 0 &&
           (memcmp(octets + at - at % 8, zeros, 8) == 0 || (uint8_t)octets[at + 1] == (uint8_t)(octets[at] + 1));
}

static void damage(const char *name, const char *scratch, size_t step)
{
    g_autofree char *path = g_build_filename(GOLDEN_DIRECTORY, name, NULL), *octets = NULL;
    Golden *golden = golden_new(&counter_state);
    gsize length;

    assert_true(g_file_get_contents(path, &octets, &length, NULL));
    for (size_t at = step / 2; at < length; at += step) {
        if (looks_like_its_neighbours(octets, length, at) || (at + PAGE < length && is_superseded(at, octets)))
            continue;
        octets[at] ^= 1 << at % 8;
        write_file(scratch, octets, length);
        octets[at] ^= 1 << at % 8;
        expect_failure(golden, scratch, at);
    }
    for (size_t at = 0; at < length; at += at < 700 ? step : step * 67) {
        write_file(scratch, octets, at);
        expect_failure(golden, scratch, at);
    }
    golden_free(golden);
}

/* The thread sanitizer has nothing to find in one thread that reads a file, and takes its time. */
#ifdef __SANITIZE_THREAD__
#define SPARSE 16
#else
#define SPARSE 1
#endif

static void test_damage(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmf-golden-XXXXXX", NULL), *scratch = g_build_filename(directory, "stream", NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        damage(names[i], scratch, SPARSE * (i == 1 || i == 2 ? 3 : 19)); /* one of each version and order thoroughly */
    unlink(scratch);
    rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load),
        cmocka_unit_test(test_load_where_the_subsection_is_not_known),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
