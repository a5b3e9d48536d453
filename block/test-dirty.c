/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "block/dirty.h"

#define GRANULE ((uint64_t)VMF_DISK_GRANULE_BYTES)

static void test_range_sets_what_it_touches(void **state)
{
    static const struct {
        uint64_t offset, length, first, n;
    } cases[] = {
        {0, 1, 0, 1},
        {GRANULE - 1, 1, 0, 1},
        {GRANULE - 1, 2, 0, 2},
        {GRANULE, GRANULE, 1, 1},
        {63 * GRANULE, 2 * GRANULE, 63, 2},
        {GRANULE + 512, 130 * GRANULE, 1, 131},
        {199 * GRANULE, 512, 199, 1}, /* a tail */
        {5 * GRANULE, 0, 0, 0},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmfDiskDirty) dirty = vmf_disk_dirty_new(199 * GRANULE + 512, NULL);

        assert_int_equal(vmf_disk_dirty_granules(dirty), 200);
        vmf_disk_dirty_mark(dirty, cases[i].offset, cases[i].length);
        assert_int_equal(vmf_disk_dirty_count(dirty), cases[i].n);
        for (uint64_t granule = 0; granule < 200; granule++)
            assert_int_equal(vmf_disk_dirty_is_set(dirty, granule),
                             granule >= cases[i].first && granule < cases[i].first + cases[i].n);
    }
}

/* Against a simple model: an octet for each granule. */
static void test_ten_thousand_operations_on_a_model(void **state)
{
    enum { N = 700 };
    g_autoptr(VmfDiskDirty) dirty = vmf_disk_dirty_new(N * GRANULE - 1024, NULL);
    g_autoptr(GRand) random = g_rand_new_with_seed(61);
    uint8_t model[N] = {0};

    for (unsigned step = 0; step < 10000; step++) {
        if (g_rand_boolean(random)) {
            uint64_t offset = (uint64_t)(g_rand_double(random) * (N * GRANULE - 1024));
            uint64_t length = (uint64_t)g_rand_int_range(random, 1, 4 * GRANULE);
            length = MIN(length, N * GRANULE - 1024 - offset);
            vmf_disk_dirty_mark(dirty, offset, length);
            memset(&model[offset / GRANULE], 1, (offset + length - 1) / GRANULE - offset / GRANULE + 1);
        } else {
            uint64_t from = (uint64_t)g_rand_int_range(random, 0, N), first,
                     max = (uint64_t)g_rand_int_range(random, 1, 100);
            uint64_t expected = from, n = 0;
            while (expected < N && !model[expected])
                expected++;
            while (n < max && expected + n < N && model[expected + n])
                model[expected + n++] = 0;
            assert_int_equal(vmf_disk_dirty_take(dirty, from, max, &first), n);
            if (n)
                assert_int_equal(first, expected);
        }
        unsigned sum = 0;
        for (unsigned i = 0; i < N; i++)
            sum += model[i];
        assert_int_equal(vmf_disk_dirty_count(dirty), sum);
    }
}

typedef struct {
    VmfDiskDirty *dirty;
    atomic_uint values[256]; /* what the disk holds, for each granule */
    atomic_bool end;
} Race;

/* As disk-io.c does: mark, change, mark. */
static void *writer_main(void *opaque)
{
    Race *race = opaque;

    for (unsigned step = 1; step < 200000; step++) {
        unsigned granule = step * 2654435761u >> 24;
        vmf_disk_dirty_mark(race->dirty, granule * GRANULE, 512);
        atomic_store(&race->values[granule], step);
        vmf_disk_dirty_mark(race->dirty, granule * GRANULE, 512);
    }
    atomic_store(&race->end, true);
    return NULL;
}

/* Who takes bits and then reads has everything in the end. */
static void test_taker_beside_a_writer_misses_nothing(void **state)
{
    Race race = {.dirty = vmf_disk_dirty_new(256 * GRANULE, NULL)};
    unsigned copy[256] = {0};
    pthread_t writer;

    assert_int_equal(pthread_create(&writer, NULL, writer_main, &race), 0);
    for (bool last = false; !last;) {
        last = atomic_load(&race.end);
        for (uint64_t first, n, at = 0; (n = vmf_disk_dirty_take(race.dirty, at, 16, &first)); at = first + n)
            for (uint64_t i = first; i < first + n; i++)
                copy[i] = atomic_load(&race.values[i]);
    }
    pthread_join(writer, NULL);
    assert_int_equal(vmf_disk_dirty_count(race.dirty), 0);
    for (unsigned i = 0; i < 256; i++)
        assert_int_equal(copy[i], atomic_load(&race.values[i]));
    vmf_disk_dirty_free(race.dirty);
}

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        cmocka_unit_test(test_range_sets_what_it_touches),
        cmocka_unit_test(test_ten_thousand_operations_on_a_model),
        cmocka_unit_test(test_taker_beside_a_writer_misses_nothing),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
