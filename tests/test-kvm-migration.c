/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A KVM guest that moves under full dirtying: numbers of vCPUs, dirty logs, kinds of memory, channels; long chains. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <unistd.h>

#include "machine/machine-private.h"
#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)
/* The thread sanitizer makes the engine some ten times slower, and sees all that it can in a few moves. */
#ifdef __SANITIZE_THREAD__
#define CHAIN 4
#define MOVES 1
#else
#define CHAIN 20
#define MOVES 2
#endif
#define LIFE_MS 120 /* how long the guest runs at each stop */

/* What a guest is made of. */
typedef struct {
    unsigned vcpus;
    const char *dirty_log;
    VmfRamBackend ram;
    bool huge_pages;
    unsigned channels;
} Kind;

static void say_why(const VmfTrip *trip)
{
    if (trip->source_error)
        print_message("source: %s\n", trip->source_error->message);
    if (trip->target_error)
        print_message("target: %s\n", trip->target_error->message);
    print_message("%s", trip->events);
}

static VmfMachine *make(const Kind *kind, const char *console, GError **error)
{
    VmfMachineConfig config = {
        .name = "guest",
        .backend = "kvm",
        .vcpus = kind->vcpus,
        .dirty_log = kind->dirty_log,
        .memory_bytes = 96 * MIB,
        .ram_backend = kind->ram,
        .huge_pages = kind->huge_pages,
        .dirty_bytes_per_second = 400 * MIB,
        .set_bytes = 64 * MIB,
        .seed = 7,
        .console_path = console,
    };

    return vmf_machine_new(&config, error);
}

static VmfMachine *made(const Kind *kind, const char *console)
{
    g_autoptr(GError) error = NULL;
    VmfMachine *m = make(kind, console, &error);

    if (!m)
        fail_msg("%s", error->message);
    return m;
}

static VmfMachineInfo info_of(VmfMachine *m)
{
    VmfMachineInfo info;

    vmf_machine_get_info(m, &info);
    return info;
}

/* Waits until the guest has lived @beats more milliseconds. */
static void let_live(VmfMachine *m, uint64_t beats)
{
    uint64_t until = info_of(m).beats + beats;

    while (info_of(m).beats < until) {
        assert_true(vmf_machine_is_running(m));
        g_usleep(1000);
    }
}

/* Moves the guest and frees where it came from. */
static VmfMachine *move(VmfMachine *from, const Kind *kind, const char *console)
{
    VmfMachine *to = made(kind, console);
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.listen_uri = "tcp:127.0.0.1:0";
    trip.source_parameters.channels = kind->channels;
    trip.source_parameters.minimum_rounds = 3;
    bool done = vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to));
    if (!done)
        say_why(&trip);
    assert_true(done);
    assert_int_equal(trip.source.verified, VMF_VERIFIED_FULL);
    assert_int_equal(trip.source.chunks_mended, 0);
    assert_true(trip.source.live_rounds_resent >= 1);
    assert_false(vmf_machine_is_running(from));
    assert_true(vmf_machine_is_running(to));
    vmf_trip_clear(&trip);
    vmf_machine_free(from);
    return to;
}

/* Every line of the guest has the number after that of the line before. */
static void check_console(const char *path, uint64_t lines)
{
    g_autofree char *text = NULL;
    uint64_t expected = 0;

    assert_true(g_file_get_contents(path, &text, NULL, NULL));
    for (const char *at = text; (at = strstr(at, "guest: line ")); expected++) {
        at += strlen("guest: line ");
        assert_int_equal(strtoull(at, NULL, 10), expected);
    }
    assert_true(expected == lines || expected == lines + 1); /* one may be under way */
}

static void go_round(const Kind *kind, unsigned times)
{
    g_autofree char *console = g_strdup_printf("%s/vmferry-test-kvm-%d", g_get_tmp_dir(), (int)getpid());
    VmfMachine *m = made(kind, console);

    assert_true(vmf_machine_start(m, NULL));
    let_live(m, 200);
    for (unsigned i = 0; i < times; i++) {
        m = move(m, kind, console);
        let_live(m, LIFE_MS);
    }
    assert_true(vmf_machine_stop(m, NULL));
    VmfMachineInfo info = info_of(m);
    assert_int_equal(info.guest_errors, 0);
    assert_int_equal(info.vcpus, kind->vcpus);
    assert_true(info.pages_written > 64 * MIB / 4096);
    check_console(console, info.console_lines);
    vmf_machine_free(m);
    unlink(console);
}

/* ---- kinds ------------------------------------------------------------------------------------------------------- */

static bool works(const Kind *kind)
{
    g_autoptr(GError) error = NULL;
    VmfMachine *m = make(kind, NULL, &error);

    if (!m)
        print_message("skip: %s\n", error->message);
    vmf_machine_free(m);
    return m != NULL;
}

static void test_log(const char *name)
{
    const Kind kinds[] = {
        {1, name, VMF_RAM_ANON, true, 1},   {2, name, VMF_RAM_ANON, true, 2},  {1, name, VMF_RAM_ANON, false, 4},
        {2, name, VMF_RAM_MEMFD, false, 1}, {1, name, VMF_RAM_MEMFD, true, 2}, {2, name, VMF_RAM_MEMFD, true, 4},
    };

    if (!works(&kinds[0]))
        skip();
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        go_round(&kinds[i], MOVES);
}

static void test_bitmap(void **state)
{
    test_log("kvm-bitmap");
}

static void test_uffd(void **state)
{
    test_log("uffd-wp");
}

static void test_ring(void **state)
{
    test_log("kvm-ring");
}

static void test_chain(void **state)
{
    const Kind one = {1, "auto", VMF_RAM_ANON, true, 2}, two = {2, "auto", VMF_RAM_ANON, true, 2};

    go_round(&one, CHAIN);
    go_round(&two, CHAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bitmap),
        cmocka_unit_test(test_uffd),
        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_chain),
    };
    g_autoptr(GError) error = NULL;

    if (!vmf_kvm_works(&error)) {
        print_message("skip: %s\n", error->message);
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
