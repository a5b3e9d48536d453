/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty bitmap of a server that lies, stops or goes away, and what is read of a server that falls silent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>
#include <vmferry/image.h>
#include <vmferry/restore.h>

#include "stream/clock.h"
#include "stream/storage.h"
#include "stream/test-nbd-server.h"

#define MIB (1u << 20)
#define EXPORT_BYTES (UINT64_C(3) << 30) /* three questions */
#define EXTENTS_MAX 4

/* What is said to each question. Length 0 in the first extent of @again: there is no second chunk. */
typedef struct {
    const char *name;
    uint32_t extents[EXTENTS_MAX][2];
    size_t n;
    uint32_t again[1][2];
    VmfErrorCode code;
    const char *says; /* in the error */
} Lie;

static const Lie lies[] = {
    {"no extent", {{0}}, 0, {{0}}, VMF_ERROR_PEER, "nothing"},
    {"an extent of no length", {{4096, 1}, {0, 1}}, 2, {{0}}, VMF_ERROR_PEER, "no length"},
    {"nothing but extents of no length", {{0, 0}, {0, 0}}, 2, {{0}}, VMF_ERROR_PEER, "no length"},
    {"extents beyond the question", {{1u << 30, 0}, {4096, 1}}, 2, {{0}}, VMF_ERROR_PEER, "beyond"},
    {"past the end of the export", {{0xfffffe00u, 1}}, 1, {{0}}, VMF_ERROR_PEER, "past the end"},
    {"unknown flags", {{MIB, 3}}, 1, {{0}}, VMF_ERROR_PEER, "unknown flags"},
    {"all flags", {{MIB, 0xffffffffu}}, 1, {{0}}, VMF_ERROR_PEER, "unknown flags"},
    {"a second chunk over the first", {{MIB, 0}}, 1, {{MIB, 1}}, VMF_ERROR_PEER, "twice"},
    {"a sector at a time", {{512, 1}}, 1, {{0}}, VMF_ERROR_PEER, "do not get on"},
};

typedef struct {
    uint64_t told_bytes, end;
} Told;

static bool take(void *opaque, uint64_t offset, uint64_t length)
{
    Told *told = opaque;

    assert_true(offset >= told->end && length > 0 && offset + length <= EXPORT_BYTES);
    told->end = offset + length;
    told->told_bytes += length;
    return true;
}

static GError *read_of(const VmfTestNbdServer *server, Told *told)
{
    GError *error = NULL;
    uint64_t size = 0;

    *told = (Told){0};
    bool done = vmf_read_export_bitmap(vmf_test_nbd_server_uri(server), 0, "b", take, told, &size, &error);
    assert_true(done == !error && size == EXPORT_BYTES);
    return error;
}

static bool lie(void *opaque, const VmfTestNbdCommand *command)
{
    const Lie *of = opaque;
    bool again = of->again[0][0] > 0;

    vmf_test_nbd_tell(command, of->extents, of->n, !again);
    if (again)
        vmf_test_nbd_tell(command, of->again, 1, true);
    return true;
}

/* libnbd finds some of it itself: then it is an error of the connection. */
static void test_lies(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(lies); i++) {
        VmfTestNbdServer *server = vmf_test_nbd_server_new(EXPORT_BYTES, lie, (void *)&lies[i]);
        Told told;
        g_autoptr(GError) error = read_of(server, &told);

        if (!error)
            fail_msg("%s: it is taken for good", lies[i].name);
        print_message("%s: %s\n", lies[i].name, error->message);
        assert_true(error->code == (int)lies[i].code || error->code == VMF_ERROR_IO);
        assert_true(error->code == VMF_ERROR_IO || strstr(error->message, lies[i].says));
        assert_true(told.told_bytes <= 1024 * 512);
        vmf_test_nbd_server_free(server);
    }
}

/* The last extent of an answer may reach past the question: it is cut off there, and told once. */
static bool tell_much(void *opaque, const VmfTestNbdCommand *command)
{
    const uint32_t extents[][2] = {{MIB, 1}, {MIN(UINT64_C(0x7ff00000), EXPORT_BYTES - command->offset - MIB), 0}};

    vmf_test_nbd_tell(command, extents, 2, true);
    return true;
}

static void test_truth(void **state)
{
    VmfTestNbdServer *server = vmf_test_nbd_server_new(EXPORT_BYTES, tell_much, NULL);
    Told told;

    assert_null(read_of(server, &told));
    assert_int_equal(told.told_bytes, 3 * MIB);
    assert_int_equal(told.end, (UINT64_C(2) << 30) + MIB);
    vmf_test_nbd_server_free(server);
}

/* After the first answer. */
static bool tell_and_go(void *opaque, const VmfTestNbdCommand *command)
{
    const uint32_t extents[][2] = {{1u << 30, 1}};

    if (command->offset > 0)
        return false;
    vmf_test_nbd_tell(command, extents, 1, true);
    return true;
}

static void test_a_server_that_goes_away(void **state)
{
    VmfTestNbdServer *server = vmf_test_nbd_server_new(EXPORT_BYTES, tell_and_go, NULL);
    Told told;
    g_autoptr(GError) error = read_of(server, &told);

    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    assert_non_null(strstr(error->message, "gone away"));
    assert_int_equal(told.told_bytes, 1u << 30);
    vmf_test_nbd_server_free(server);
}

/* ---- silence ----------------------------------------------------------------------------------------------------- */

static bool say_nothing(void *opaque, const VmfTestNbdCommand *command)
{
    return true;
}

static void test_a_silent_server(void **state)
{
    VmfTestNbdServer *server = vmf_test_nbd_server_new(EXPORT_BYTES, say_nothing, NULL);
    Told told;
    g_autoptr(GError) error = read_of(server, &told);

    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    assert_non_null(strstr(error->message, "does not answer"));
    vmf_test_nbd_server_free(server);
}

#define SHORT_NS (VMF_NS_PER_S / 5)

static void assert_given_up(GError *error)
{
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    if (!strstr(error->message, "timed out"))
        fail_msg("%s", error->message);
    g_error_free(error);
}

/* Reads and questions for extents alike, and what comes later at once. */
static void test_storage_gives_up_a_silent_server(void **state)
{
    VmfTestNbdServer *server = vmf_test_nbd_server_new(EXPORT_BYTES, say_nothing, NULL);
    const VmfStorageOptions options = {.mode = VMF_STORAGE_READ, .silence_ns = SHORT_NS};
    VmfExtentKind kind;
    uint64_t length;
    uint8_t octets[4096];

    for (unsigned extents = 0; extents < 2; extents++) {
        VmfStorage *storage = vmf_storage_open(vmf_test_nbd_server_uri(server), &options, NULL);
        assert_non_null(storage);
        for (unsigned turn = 0; turn < 2; turn++) {
            GError *error = NULL;
            assert_false(extents ? vmf_storage_extent(storage, 0, MIB, &kind, &length, &error)
                                 : vmf_storage_read(storage, 0, octets, sizeof(octets), &error));
            assert_given_up(error);
        }
        vmf_storage_free(storage);
    }
    vmf_test_nbd_server_free(server);
}

static void test_images_give_up_a_silent_server(void **state)
{
    VmfTestNbdServer *server = vmf_test_nbd_server_new(EXPORT_BYTES, say_nothing, NULL);
    const VmfImageOptions image = {.size = sizeof(image), .silence_ns = SHORT_NS};
    const VmfRestoreOptions restore = {
        .size = sizeof(restore), .uri = vmf_test_nbd_server_uri(server), .silence_ns = SHORT_NS};
    GError *error = NULL;

    assert_null(vmf_image_open(vmf_test_nbd_server_uri(server), &image, &error));
    assert_given_up(g_steal_pointer(&error));
    assert_null(vmf_image_machine_read(&restore, &error));
    assert_given_up(g_steal_pointer(&error));
    vmf_test_nbd_server_free(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lies),
        cmocka_unit_test(test_truth),
        cmocka_unit_test(test_a_server_that_goes_away),
        cmocka_unit_test(test_a_silent_server),
        cmocka_unit_test(test_storage_gives_up_a_silent_server),
        cmocka_unit_test(test_images_give_up_a_silent_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
