/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A KVM guest that moves under full dirtying. Numbers of vCPUs, dirty logs, kinds of memory and numbers of channels are combined so that
 * each log meets each memory, and each of the others each other; scripts/chains has the whole product. Then: devices that write while
 * the guest moves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <vmferry/error.h>

#include "machine/machine-private.h"
#include "tests/kvm-chain.h"

/* A sanitizer makes the engine up to ten times slower, and sees all that it can in a few moves. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define CHAIN 4
#define MOVES 1
#else
#define CHAIN 20
#define MOVES 2
#endif

static void go(const VmfChainKind *kind, unsigned moves)
{
    g_autofree char *what = vmf_chain_describe(kind);
    g_autoptr(GError) error = NULL;
    VmfChainResult result;

    if (vmf_chain_run(kind, moves, &result, &error))
        return;
    if (!vmf_chain_is_skip(error))
        fail_msg("%s: move %u: %s", what, result.moves, error->message);
    print_message("skip: %s: %s\n", what, error->message);
    g_clear_error(&error); /* skip() does not return */
    g_clear_pointer(&what, g_free);
    skip();
}

static void test_kind(void **state)
{
    go(*state, MOVES);
}

static void test_chain(void **state)
{
    go(*state, CHAIN);
}

/* Beside other tests on a small host; the chains below leave the guest no time to rest. */
#define RATE (UINT64_C(300) << 20)
static VmfChainKind kinds[] = {
    {1, "kvm-bitmap", VMF_RAM_ANON, VMF_RAM_ANON, true, 1, RATE},
    {2, "kvm-bitmap", VMF_RAM_ANON, VMF_RAM_ANON, false, 4, RATE},
    {1, "kvm-bitmap", VMF_RAM_MEMFD, VMF_RAM_MEMFD, true, 2, RATE},
    {2, "kvm-bitmap", VMF_RAM_HUGETLB, VMF_RAM_HUGETLB, true, 1, RATE},
    {2, "uffd-wp", VMF_RAM_ANON, VMF_RAM_ANON, true, 2, RATE},
    {1, "uffd-wp", VMF_RAM_ANON, VMF_RAM_ANON, false, 1, RATE},
    {2, "uffd-wp", VMF_RAM_MEMFD, VMF_RAM_MEMFD, true, 4, RATE},
    {1, "uffd-wp", VMF_RAM_HUGETLB, VMF_RAM_HUGETLB, true, 4, RATE},
    {1, "kvm-ring", VMF_RAM_ANON, VMF_RAM_ANON, true, 4, RATE},
    {2, "kvm-ring", VMF_RAM_MEMFD, VMF_RAM_HUGETLB, false, 2, RATE},
    {1, "kvm-bitmap", VMF_RAM_HUGETLB, VMF_RAM_ANON, false, 2, RATE},
    {2, "uffd-wp", VMF_RAM_HUGETLB, VMF_RAM_MEMFD, true, 1, RATE},
};

static VmfChainKind chains[] = {
    {2, "kvm-bitmap", VMF_RAM_ANON, VMF_RAM_ANON, true, 2, 0},
    {1, "uffd-wp", VMF_RAM_ANON, VMF_RAM_MEMFD, false, 4, 0},
};

/* ---- devices ----------------------------------------------------------------------------------------------------- */

#define MIB (UINT64_C(1) << 20)
#define FREE (GUEST_RAM_BASE + 24 * MIB) /* the guest does not come here */
#define FREE_PAGES 512u

static VmfMachine *make(const char *dirty_log)
{
    g_autoptr(GError) error = NULL;
    VmfMachineConfig config = {.name = "guest",
                               .backend = "kvm",
                               .dirty_log = dirty_log,
                               .memory_bytes = 32 * MIB,
                               .dirty_bytes_per_second = 100 * MIB,
                               .set_bytes = 16 * MIB};
    VmfMachine *m = vmf_machine_new(&config, &error);

    if (!m && vmf_chain_is_skip(error)) {
        print_message("skip: %s\n", error->message);
        g_clear_error(&error); /* skip() does not return */
        skip();
    }
    assert_non_null(m);
    return m;
}

/* Writes until the guest stands: the device keeps the rest. */
static void *device_main(void *opaque)
{
    g_autoptr(GError) error = NULL;

    for (uint64_t i = 0;; i++) {
        uint64_t at = FREE + i * 7919 % FREE_PAGES * 4096 + i % 500 * 8;

        if (!vmf_machine_write_memory(opaque, at, &i, sizeof(i), &error))
            break;
        if (i % 64 == 0)
            g_usleep(50);
    }
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_STATE));
    return NULL;
}

static void test_devices_write_while_it_moves(void **state)
{
    g_autoptr(VmfMachine) from = make(*state);
    g_autoptr(VmfMachine) to = make(*state);
    pthread_t device;
    VmfTrip trip;

    assert_true(vmf_machine_start(from, NULL));
    pthread_create(&device, NULL, device_main, from);
    vmf_trip_init(&trip);
    trip.source_parameters.minimum_rounds = 5;
    bool done = vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to));
    pthread_join(device, NULL);
    if (!done)
        print_message("%s\n%s", trip.source_error ? trip.source_error->message : "", trip.events);
    assert_true(done);
    assert_int_equal(trip.source.verified, VMF_VERIFIED_FULL);
    assert_memory_equal((uint8_t *)vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(from), BLOCK_RAM)) + 24 * MIB,
                        (uint8_t *)vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(to), BLOCK_RAM)) + 24 * MIB, FREE_PAGES * 4096);
    vmf_trip_clear(&trip);
}

static void wait_for_status(VmfSession *session, VmfStatus status)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    do {
        g_usleep(1000);
        vmf_session_get_statistics(session, &statistics);
    } while (statistics.status < status);
}

/* One write past the gate, once its page has been sent: with a log that is fed by vCPUs alone the guest must not get away with it. */
static void test_a_write_without_its_mark_is_caught(void **state)
{
    g_autoptr(VmfMachine) from = make("kvm-bitmap");
    g_autoptr(VmfMachine) to = make("kvm-bitmap");
    volatile uint8_t *host = vmf_ram_block_host(vmf_guest_ram(vmf_machine_guest(from), BLOCK_RAM));
    VmfTrip trip;

    host[24 * MIB] = 1;
    assert_true(vmf_machine_start(from, NULL));
    vmf_trip_init(&trip);
    trip.source_parameters.pause_before_switchover = true;
    VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(from), vmf_machine_guest(to));
    wait_for_status(vmf_trip_source(running), VMF_STATUS_PRE_SWITCHOVER);
    host[24 * MIB] = 2;
    vmf_session_continue(vmf_trip_source(running), NULL);
    assert_false(vmf_trip_finish(running));
    assert_true(g_error_matches(trip.source_error, VMF_ERROR, VMF_ERROR_RAM_AUDIT));
    assert_true(vmf_machine_is_running(from));
    assert_false(vmf_machine_is_running(to));
    vmf_trip_clear(&trip);
}

#define KIND(i)                                                                                                        \
    {                                                                                                                  \
        "kind/" #i, test_kind, NULL, NULL, &kinds[i]                                                                   \
    }
#define CHAIN_OF(i)                                                                                                    \
    {                                                                                                                  \
        "chain/" #i, test_chain, NULL, NULL, &chains[i]                                                                \
    }
#define DEVICES(log)                                                                                                   \
    {                                                                                                                  \
        "devices/" log, test_devices_write_while_it_moves, NULL, NULL, log                                             \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIND(0), KIND(1), KIND(2), KIND(3), KIND(4), KIND(5), KIND(6), KIND(7), KIND(8), KIND(9), KIND(10), KIND(11),
        CHAIN_OF(0), CHAIN_OF(1),
        DEVICES("kvm-bitmap"), DEVICES("uffd-wp"), DEVICES("kvm-ring"),
        cmocka_unit_test(test_a_write_without_its_mark_is_caught),
    };
    g_autoptr(GError) error = NULL;

    _Static_assert(G_N_ELEMENTS(kinds) == 12, "each has its KIND()");
    if (!vmf_kvm_works(&error)) {
        print_message("skip: %s\n", error->message);
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
