/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a device of user space writes into guest memory is harvested, whatever the dirty log; and the negative: where the log is KVM's
 * own, a write that goes past the gate is not, so the mark is what the test sees.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <vmferry/error.h>
#include "machine/dirty-log.h"
#include "machine/machine-private.h"
#include "tests/huge-pages.h"
#ifdef HAS_KVM
#include "machine/kvm-log.h"
#endif

#define MIB (1u << 20)
#define MEMORY (16 * MIB)
/* The guest has a working set of 4 MiB and does not come here. */
#define FREE (GUEST_RAM_BASE + 12 * MIB + 4096 * 3)
#define FREE_PAGE ((FREE - GUEST_RAM_BASE) / 4096)

typedef struct {
    const char *backend, *dirty_log;
    VmfRamBackend ram;
    bool sees_all; /* the log itself sees what this process writes */
} Kind;

static const Kind kinds[] = {
    {"rv32", "rv32", VMF_RAM_ANON, false},         {"kvm", "kvm-bitmap", VMF_RAM_ANON, false},
    {"kvm", "kvm-bitmap", VMF_RAM_MEMFD, false},   {"kvm", "kvm-bitmap", VMF_RAM_HUGETLB, false},
    {"kvm", "kvm-ring", VMF_RAM_ANON, false},      {"kvm", "uffd-wp", VMF_RAM_ANON, true},
    {"kvm", "uffd-wp", VMF_RAM_MEMFD, true},       {"kvm", "uffd-wp", VMF_RAM_HUGETLB, true},
};

static bool has_huge_pages;

static VmfMachine *make(const Kind *kind)
{
    g_autoptr(GError) error = NULL;
    VmfMachineConfig config = {
        .name = "guest",
        .backend = kind->backend,
        .dirty_log = kind->dirty_log,
        .memory_bytes = MEMORY,
        .ram_backend = kind->ram,
        .dirty_bytes_per_second = 16 * MIB,
        .set_bytes = 4 * MIB,
        .seed = 7,
    };

    if (kind->ram == VMF_RAM_HUGETLB && !has_huge_pages)
        skip();
    VmfMachine *m = vmf_machine_new(&config, &error);
    if (m || !g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED)) {
        assert_non_null(m);
        return m;
    }
    print_message("skip: %s\n", error->message);
    g_clear_error(&error); /* skip() does not return */
    skip();
    return NULL;
}

/* ---- the log, as the engine uses it ------------------------------------------------------------------------------ */

typedef struct {
    const VmfDirtyLogOps *ops;
    void *opaque;
} Log;

static Log log_of(VmfMachine *m)
{
#ifdef HAS_KVM
    if (m->kvm)
        return (Log){m->kvm->log->ops, m->kvm->log};
#endif
    return (Log){&vmf_rv32_log_ops, m->dirty_log};
}

typedef struct {
    uint64_t words[MEMORY / 4096 / 64];
} Harvest;

static void take(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    Harvest *harvest = opaque;

    for (size_t i = 0; i < n_words; i++)
        harvest->words[first_word + i] |= words[i];
}

static bool harvested(Log log, uint64_t page)
{
    Harvest harvest = {{0}};

    assert_true(log.ops->harvest(log.opaque, BLOCK_RAM, take, &harvest, NULL));
    return harvest.words[page / 64] >> (page % 64) & 1;
}

/* Returns whether the chunk's clear() says that the page was dirty. */
static bool cleared(Log log, uint64_t page)
{
    uint64_t words[8] = {0};

    log.ops->clear(log.opaque, BLOCK_RAM, page / 512 * 512, 512, words);
    return words[page % 512 / 64] >> (page % 64) & 1;
}

static void device_writes(VmfMachine *m, uint64_t address, uint32_t value)
{
    assert_true(vmf_machine_write_memory(m, address, &value, sizeof(value), NULL));
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void a_device_write_is_harvested(void **state)
{
    VmfMachine *m = make(*state);
    const uint8_t *host = vmf_ram_block_host(vmf_guest_ram(m->guest, BLOCK_RAM));
    Log log = log_of(m);
    uint32_t there;

    assert_true(vmf_machine_start(m, NULL));
    device_writes(m, FREE, 1); /* nobody records yet */
    assert_true(log.ops->start(log.opaque, NULL));
    cleared(log, FREE_PAGE);
    assert_false(harvested(log, FREE_PAGE));
    for (uint32_t round = 2; round < 5; round++) {
        device_writes(m, FREE + 4092, round); /* the last word */
        memcpy(&there, host + FREE_PAGE * 4096 + 4092, sizeof(there));
        assert_int_equal(there, round);
        assert_true(harvested(log, FREE_PAGE) && harvested(log, FREE_PAGE)); /* reporting clears nothing */
        assert_true(cleared(log, FREE_PAGE));
        assert_false(harvested(log, FREE_PAGE));
    }
    log.ops->stop(log.opaque);
    device_writes(m, FREE, 5);
    vmf_machine_free(m);
}

/* The same without the mark: a log that is fed by vCPUs alone has nothing to report. */
static void a_write_past_the_gate_is_not(void **state)
{
    const Kind *kind = *state;
    VmfMachine *m = make(kind);
    volatile uint8_t *host = vmf_ram_block_host(vmf_guest_ram(m->guest, BLOCK_RAM));
    Log log = log_of(m);

    host[FREE_PAGE * 4096] = 1;
    assert_true(vmf_machine_start(m, NULL));
    assert_true(log.ops->start(log.opaque, NULL));
    cleared(log, FREE_PAGE);
    host[FREE_PAGE * 4096] = 2;
    assert_int_equal(harvested(log, FREE_PAGE), kind->sees_all);
    log.ops->stop(log.opaque);
    vmf_machine_free(m);
}

/* Two pages by one write; a chunk's clear leaves the next chunk's mark alone. */
static void a_write_may_cross_pages(void **state)
{
    VmfMachine *m = make(*state);
    const uint64_t border = GUEST_RAM_BASE + 14 * MIB, page = 14 * MIB / 4096;
    Log log = log_of(m);

    assert_true(vmf_machine_start(m, NULL));
    assert_true(log.ops->start(log.opaque, NULL));
    device_writes(m, border - 2, 0x01020304);
    assert_true(harvested(log, page - 1) && harvested(log, page));
    assert_true(cleared(log, page - 1));
    assert_true(harvested(log, page));
    assert_true(cleared(log, page));
    log.ops->stop(log.opaque);
    vmf_machine_free(m);
}

static void the_gate_is_shut_while_the_guest_stands(void **state)
{
    VmfMachine *m = make(*state);
    const uint8_t byte = 9;
    g_autoptr(GError) error = NULL;

    assert_true(vmf_machine_start(m, NULL));
    assert_true(vmf_machine_guest_ops.stop(m, NULL));
    assert_false(vmf_machine_write_memory(m, FREE, &byte, 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_STATE));
    assert_true(vmf_machine_guest_ops.start(m, NULL));
    assert_true(vmf_machine_write_memory(m, FREE, &byte, 1, NULL));
    vmf_machine_free(m);
}

static void what_is_no_memory_is_refused(void **state)
{
    static const uint8_t bytes[8192];
    VmfMachine *m = make(*state);
    const struct {
        uint64_t address;
        size_t length;
    } bad[] = {{0, 1}, {GUEST_ROM_BASE, 1}, {GUEST_RAM_BASE + MEMORY, 1}, {GUEST_RAM_BASE + MEMORY - 4096, 8192},
               {GUEST_RAM_BASE - 1, 2}, {UINT64_MAX, 8192}, {GUEST_VRAM_BASE + GUEST_VRAM_SIZE - 1, 2}};

    assert_true(vmf_machine_start(m, NULL));
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        assert_false(vmf_machine_write_memory(m, bad[i].address, bytes, bad[i].length, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_RANGE));
    }
    assert_true(vmf_machine_write_memory(m, FREE, bytes, sizeof(bytes), NULL));
    assert_true(vmf_machine_write_memory(m, FREE, bytes, 0, NULL));
    vmf_machine_free(m);
}

/* ---- a device that does not wait ---------------------------------------------------------------------------------- */

#define RACE_PAGES 64u
#define RACE_WRITES 200000u

typedef struct {
    VmfMachine *machine;
    atomic_bool done;
} Device;

/* Each page's first word only grows. */
static void *device_main(void *opaque)
{
    Device *device = opaque;
    uint32_t random = 1;

    for (uint32_t i = 1; i <= RACE_WRITES; i++) {
        random = random * 1664525 + 1013904223;
        device_writes(device->machine, FREE + (random >> 26) * 4096, i);
    }
    atomic_store(&device->done, true);
    return NULL;
}

__attribute__((no_sanitize("thread"))) static uint32_t first_word(const uint8_t *page)
{
    return *(const volatile uint32_t *)page;
}

/* Copies what is dirty as the engine does, until a round after the device's end: then the copy is the original. */
static void no_device_write_is_lost(void **state)
{
    VmfMachine *m = make(*state);
    const uint8_t *host = vmf_ram_block_host(vmf_guest_ram(m->guest, BLOCK_RAM));
    Log log = log_of(m);
    uint32_t copy[RACE_PAGES] = {0};
    Device device = {.machine = m};
    pthread_t thread;
    bool last;

    assert_true(vmf_machine_start(m, NULL));
    assert_true(log.ops->start(log.opaque, NULL));
    pthread_create(&thread, NULL, device_main, &device);
    do {
        last = atomic_load(&device.done);
        uint64_t words[8] = {0};
        log.ops->clear(log.opaque, BLOCK_RAM, FREE_PAGE / 512 * 512, 512, words);
        for (unsigned i = 0; i < RACE_PAGES; i++) {
            unsigned page = FREE_PAGE % 512 + i;
            if (words[page / 64] >> (page % 64) & 1)
                copy[i] = first_word(host + (FREE_PAGE + i) * 4096);
        }
    } while (!last);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < RACE_PAGES; i++)
        assert_int_equal(copy[i], first_word(host + (FREE_PAGE + i) * 4096));
    log.ops->stop(log.opaque);
    vmf_machine_free(m);
}

#define FOR_KIND(test, i)                                                                                              \
    {                                                                                                                  \
#test "/" #i, test, NULL, NULL, (void *)&kinds[i]                                                              \
    }
#define FOR_ALL(test)                                                                                                  \
    FOR_KIND(test, 0), FOR_KIND(test, 1), FOR_KIND(test, 2), FOR_KIND(test, 3), FOR_KIND(test, 4), FOR_KIND(test, 5),  \
        FOR_KIND(test, 6), FOR_KIND(test, 7)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOR_ALL(a_device_write_is_harvested),
        FOR_ALL(a_write_past_the_gate_is_not),
        FOR_ALL(a_write_may_cross_pages),
        FOR_ALL(no_device_write_is_lost),
        FOR_KIND(the_gate_is_shut_while_the_guest_stands, 0),
        FOR_KIND(the_gate_is_shut_while_the_guest_stands, 1),
        FOR_KIND(what_is_no_memory_is_refused, 0),
    };

    _Static_assert(G_N_ELEMENTS(kinds) == 8, "FOR_ALL has them all");
    has_huge_pages = vmf_test_huge_pages(MEMORY / (2 * MIB));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
