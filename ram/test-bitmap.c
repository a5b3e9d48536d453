/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <vmferry/error.h>

#include "ram/bitmap.h"

#define N_PAGES (40 * VMF_CHUNK_PAGES + 77)
#define N_WORDS ((N_PAGES + 63) / 64)
#define N_CHUNKS 41

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* The model: a byte a page. */
typedef struct {
    VmfDirtyBitmap *bitmap;
    bool dirty[N_PAGES];
    uint64_t seed;
} Pair;

static void random_or(Pair *pair)
{
    uint64_t first_word = next_random(&pair->seed) % (N_WORDS + 2), words[20];
    size_t n_words = next_random(&pair->seed) % 20;

    for (size_t i = 0; i < n_words; i++)
        words[i] = next_random(&pair->seed) % 3 ? next_random(&pair->seed) & next_random(&pair->seed) : 0;
    vmf_dirty_bitmap_or_words(pair->bitmap, first_word, words, n_words);
    for (size_t i = 0; i < n_words * 64; i++) {
        if (first_word * 64 + i < N_PAGES && words[i / 64] >> (i % 64) & 1)
            pair->dirty[first_word * 64 + i] = true;
    }
}

static void random_range(Pair *pair)
{
    uint64_t first = next_random(&pair->seed) % (N_PAGES + 100), n_pages = next_random(&pair->seed) % 1000;

    if (next_random(&pair->seed) % 50 == 0)
        n_pages = UINT64_MAX - n_pages; /* far past the end, also by overflow */
    vmf_dirty_bitmap_set_range(pair->bitmap, first, n_pages);
    for (uint64_t i = 0; i < n_pages && first + i < N_PAGES; i++)
        pair->dirty[first + i] = true;
}

static void random_take(Pair *pair)
{
    bool whole_chunks = next_random(&pair->seed) % 2;
    uint64_t first_word = next_random(&pair->seed) % N_WORDS, out[40], n_dirty = 0;
    size_t n_words = 1 + next_random(&pair->seed) % 39;

    if (whole_chunks) {
        first_word -= first_word % 8;
        n_words = 8;
    }
    unsigned taken = vmf_dirty_bitmap_take(pair->bitmap, first_word, n_words, out);
    for (size_t i = 0; i < n_words * 64; i++) {
        uint64_t page = first_word * 64 + i;
        bool expected = page < N_PAGES && pair->dirty[page];
        assert_int_equal(out[i / 64] >> (i % 64) & 1, expected);
        n_dirty += expected;
        if (page < N_PAGES)
            pair->dirty[page] = false;
    }
    assert_int_equal(taken, n_dirty);
}

static bool model_chunk_is_dirty(const Pair *pair, uint64_t chunk)
{
    for (uint64_t page = chunk * VMF_CHUNK_PAGES; page < MIN(N_PAGES, (chunk + 1) * VMF_CHUNK_PAGES); page++) {
        if (pair->dirty[page])
            return true;
    }
    return false;
}

static void compare(const Pair *pair)
{
    uint64_t count = 0, chunk;

    for (uint64_t page = 0; page < N_PAGES; page++) {
        count += pair->dirty[page];
        assert_int_equal(vmf_dirty_bitmap_test(pair->bitmap, page), pair->dirty[page]);
    }
    assert_int_equal(vmf_dirty_bitmap_count(pair->bitmap), count);
    for (uint64_t from = 0; from < N_CHUNKS + 2; from++) {
        uint64_t expected = from;
        while (expected < N_CHUNKS && !model_chunk_is_dirty(pair, expected))
            expected++;
        bool found = vmf_dirty_bitmap_next_chunk(pair->bitmap, from, &chunk);
        assert_int_equal(found, expected < N_CHUNKS);
        if (found)
            assert_int_equal(chunk, expected);
    }
}

static void random_operations_agree_with_a_model(void **state)
{
    g_autofree Pair *pair = g_new0(Pair, 1);
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(N_PAGES, NULL);

    pair->bitmap = bitmap;
    pair->seed = 42;
    for (unsigned i = 0; i < 10000; i++) {
        switch (next_random(&pair->seed) % 8) {
        case 0:
            random_or(pair);
            break;
        case 1:
            random_range(pair);
            break;
        default:
            random_take(pair);
        }
        if (i % 50 == 0)
            compare(pair);
    }
    compare(pair);
}

static void chunks_are_taken_and_looked_at_whole(void **state)
{
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(N_PAGES, NULL);
    VmfPageSet set;

    vmf_dirty_bitmap_set_range(bitmap, 40 * VMF_CHUNK_PAGES, 1000);
    assert_int_equal(vmf_dirty_bitmap_peek_chunk(bitmap, 40, &set), 77);
    assert_int_equal(vmf_dirty_bitmap_peek_chunk(bitmap, 41, &set), 0);
    assert_int_equal(vmf_dirty_bitmap_take_chunk(bitmap, 40, &set), 77);
    assert_true(vmf_page_set_test(&set, 76));
    assert_int_equal(vmf_dirty_bitmap_take_chunk(bitmap, 40, &set), 0);
    assert_true(vmf_page_set_is_empty(&set));
    assert_false(vmf_dirty_bitmap_test(bitmap, N_PAGES));
}

/*
 * Several threads set pages, others walk and take. A page is set only by whoever marks it pending, and is pending until
 * its bit was taken: so every bit set has to come out exactly once.
 */
#define THREADS 3
#define SETS 5000 /* by each thread, to about 500 pages: most have to be taken many times before it is through */

typedef struct {
    VmfDirtyBitmap *bitmap;
    _Atomic bool pending[N_PAGES];
    _Atomic uint64_t n_set;
    _Atomic uint64_t n_taken;
    _Atomic uint64_t n_twice; /* taken though nobody had set them */
    _Atomic unsigned setters_left;
} Race;

typedef struct {
    Race *race;
    uint64_t seed;
} Racer;

static void *set_pages(void *opaque)
{
    Racer *racer = opaque;
    Race *race = racer->race;

    for (unsigned i = 0; i < SETS;) {
        /* Few words, so that threads meet. */
        uint64_t page = next_random(&racer->seed) % 4 * VMF_CHUNK_PAGES + next_random(&racer->seed) % 130;
        uint64_t word = UINT64_C(1) << (page % 64);
        if (atomic_exchange(&race->pending[page], true)) {
            sched_yield();
            continue;
        }
        if (i++ % 2)
            vmf_dirty_bitmap_or_words(race->bitmap, page / 64, &word, 1);
        else
            vmf_dirty_bitmap_set_range(race->bitmap, page, 1);
        atomic_fetch_add(&race->n_set, 1);
    }
    atomic_fetch_sub(&race->setters_left, 1);
    return NULL;
}

static void settle(Race *race, uint64_t chunk, const VmfPageSet *set)
{
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        if (!vmf_page_set_test(set, page))
            continue;
        atomic_fetch_add(&race->n_taken, 1);
        if (!atomic_exchange(&race->pending[chunk * VMF_CHUNK_PAGES + page], false))
            atomic_fetch_add(&race->n_twice, 1);
    }
}

static void take_all(Race *race, uint64_t *seed)
{
    VmfPageSet set;
    uint64_t chunk;

    for (uint64_t from = 0; vmf_dirty_bitmap_next_chunk(race->bitmap, from, &chunk); from = chunk + 1) {
        vmf_page_set_clear(&set);
        if (next_random(seed) % 4 == 0)
            vmf_dirty_bitmap_take(race->bitmap, chunk * VMF_CHUNK_WORDS, 2, set.words);
        else
            vmf_dirty_bitmap_take_chunk(race->bitmap, chunk, &set);
        settle(race, chunk, &set);
    }
}

static void *take_pages(void *opaque)
{
    Racer *racer = opaque;

    while (atomic_load(&racer->race->setters_left) > 0)
        take_all(racer->race, &racer->seed);
    return NULL;
}

static void no_bit_is_lost_between_threads(void **state)
{
    g_autofree Race *race = g_new0(Race, 1);
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(N_PAGES, NULL);
    pthread_t threads[2 * THREADS];
    Racer racers[2 * THREADS];
    uint64_t seed = 7, chunk;

    race->bitmap = bitmap;
    race->setters_left = THREADS;
    for (unsigned i = 0; i < 2 * THREADS; i++) {
        racers[i] = (Racer){race, 1000 + i};
        assert_int_equal(pthread_create(&threads[i], NULL, i < THREADS ? set_pages : take_pages, &racers[i]), 0);
    }
    for (unsigned i = 0; i < 2 * THREADS; i++)
        pthread_join(threads[i], NULL);

    take_all(race, &seed);
    while (vmf_dirty_bitmap_next_chunk(bitmap, 0, &chunk))
        take_all(race, &seed);
    assert_int_equal(vmf_dirty_bitmap_count(bitmap), 0);
    assert_int_equal(race->n_taken, race->n_set);
    assert_int_equal(race->n_twice, 0);
    assert_int_equal(race->n_set, THREADS * SETS);
}

/* While others take parts of a chunk, a page of it that nobody takes (word 3 of chunk 0) is seen always. */
static void *take_parts(void *opaque)
{
    Race *race = opaque;
    uint64_t words[3];

    while (atomic_load(&race->setters_left) > 0)
        vmf_dirty_bitmap_take(race->bitmap, 0, 3, words);
    return NULL;
}

static void a_set_bit_is_never_invisible(void **state)
{
    g_autofree Race *race = g_new0(Race, 1);
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(N_PAGES, NULL);
    pthread_t thread;
    uint64_t chunk;

    race->bitmap = bitmap;
    race->setters_left = 1;
    vmf_dirty_bitmap_set_range(bitmap, 3 * 64, 1);
    assert_int_equal(pthread_create(&thread, NULL, take_parts, race), 0);
    for (unsigned i = 0; i < 100000; i++) {
        vmf_dirty_bitmap_set_range(bitmap, i % 192, 1);
        assert_true(vmf_dirty_bitmap_next_chunk(bitmap, 0, &chunk));
        assert_int_equal(chunk, 0);
    }
    atomic_store(&race->setters_left, 0);
    pthread_join(thread, NULL);
}

static uint64_t resident_kib(void)
{
    g_autofree char *text = NULL;
    unsigned long long size, resident;

    assert_true(g_file_get_contents("/proc/self/statm", &text, NULL, NULL));
    assert_int_equal(sscanf(text, "%llu %llu", &size, &resident), 2);
    return resident * 4;
}

static void a_sparse_terabyte_costs_what_is_dirty(void **state)
{
    uint64_t before = resident_kib(), chunk, n_chunks = 0;
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(UINT64_C(1) << 28, NULL);
    VmfPageSet set;

    for (uint64_t i = 0; i < 100; i++)
        vmf_dirty_bitmap_set_range(bitmap, i * 2654435761u % (1u << 28), 1);
    for (uint64_t from = 0; vmf_dirty_bitmap_next_chunk(bitmap, from, &chunk); from = chunk + 1)
        n_chunks += vmf_dirty_bitmap_take_chunk(bitmap, chunk, &set) > 0;
    assert_in_range(n_chunks, 90, 100);
    assert_int_equal(vmf_dirty_bitmap_count(bitmap), 0);
    /* 100 pages of words and 16 of summary, of the 32 MiB that exist; more under sanitizers, which shadow it. */
    assert_true(resident_kib() < before + 16384);
}

static void an_impossible_size_is_an_error(void **state)
{
    const uint64_t bad[] = {0, UINT64_MAX, UINT64_C(1) << 62};

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(vmf_dirty_bitmap_new(bad[i], &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_MEMORY));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_agree_with_a_model),  cmocka_unit_test(chunks_are_taken_and_looked_at_whole),
        cmocka_unit_test(no_bit_is_lost_between_threads),        cmocka_unit_test(a_set_bit_is_never_invisible),
        cmocka_unit_test(a_sparse_terabyte_costs_what_is_dirty), cmocka_unit_test(an_impossible_size_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
