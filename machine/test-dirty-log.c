/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The dirty log as the engine meets it, and against a writer that does not wait. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "machine/dirty-log.h"

#define PAGES 10000u

static VmfLogBitmap *attached;

static unsigned passes;

static void pass(void *opaque)
{
    passes++;
}

static void attach(void *opaque, VmfLogBitmap *bitmaps)
{
    attached = bitmaps;
}

static VmfRv32Log *start_log(void)
{
    const uint64_t n_pages[] = {70, PAGES};
    VmfRv32Log *log = vmf_rv32_log_new(n_pages, 2, attach, pass, NULL);

    assert_true(vmf_rv32_log_ops.start(log, NULL));
    assert_non_null(attached);
    return log;
}

static void stop_log(VmfRv32Log *log)
{
    vmf_rv32_log_ops.stop(log);
    assert_null(attached);
    vmf_rv32_log_free(log);
}

typedef struct {
    uint64_t words[(PAGES + 63) / 64];
    size_t n_words; /* reported */
} Harvest;

static void take(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    Harvest *harvest = opaque;

    assert_true(first_word + n_words <= (PAGES + 63) / 64);
    for (size_t i = 0; i < n_words; i++)
        harvest->words[first_word + i] |= words[i];
    harvest->n_words += n_words;
}

static Harvest harvest(VmfRv32Log *log, unsigned block)
{
    Harvest result = {{0}, 0};

    assert_true(vmf_rv32_log_ops.harvest(log, block, take, &result, NULL));
    return result;
}

static bool has(const Harvest *h, uint64_t page)
{
    return h->words[page / 64] >> (page % 64) & 1;
}

static void test_harvest_does_not_clear(void **state)
{
    VmfRv32Log *log = start_log();

    vmf_log_bitmap_mark(&attached[1], 0);
    vmf_log_bitmap_mark(&attached[1], PAGES - 1);
    for (int i = 0; i < 2; i++) {
        Harvest h = harvest(log, 1);
        assert_true(has(&h, 0) && has(&h, PAGES - 1) && !has(&h, 1));
    }
    assert_int_equal(harvest(log, 0).n_words, 0);
    stop_log(log);
}

static void test_cost_is_what_is_dirty(void **state)
{
    VmfRv32Log *log = start_log();

    passes = 0;
    assert_int_equal(harvest(log, 1).n_words, 0);
    assert_int_equal(passes, 1);
    vmf_log_bitmap_mark(&attached[1], 5000);
    assert_int_equal(harvest(log, 1).n_words, 1);
    stop_log(log);
}

static void test_clear_adds_what_it_cleared(void **state)
{
    VmfRv32Log *log = start_log();
    uint64_t words[8] = {1};

    vmf_log_bitmap_mark(&attached[1], 512 + 3);
    vmf_log_bitmap_mark(&attached[1], 512 + 64);
    vmf_log_bitmap_mark(&attached[1], 511);
    vmf_rv32_log_ops.clear(log, 1, 512, 512, words);
    assert_int_equal(words[0], 1 | 1 << 3);
    assert_int_equal(words[1], 1);
    Harvest h = harvest(log, 1);
    assert_true(has(&h, 511) && !has(&h, 515) && !has(&h, 576));
    vmf_log_bitmap_mark(&attached[1], 515);
    h = harvest(log, 1);
    assert_true(has(&h, 515));
    stop_log(log);
}

static void test_partial_words(void **state)
{
    VmfRv32Log *log = start_log();
    uint64_t words[2] = {0};

    for (unsigned page = 60; page < 70; page++)
        vmf_log_bitmap_mark(&attached[0], page);
    vmf_rv32_log_ops.clear(log, 0, 0, 62, words); /* not to the end of the block: the rest of the word stays */
    assert_int_equal(words[0], 3ull << 60);
    Harvest h = harvest(log, 0);
    assert_true(!has(&h, 61) && has(&h, 62) && has(&h, 69));
    vmf_rv32_log_ops.clear(log, 0, 64, 6, words);
    assert_int_equal(words[0], 3ull << 60 | 0x3f);
    stop_log(log);
}

static void test_start_begins_empty(void **state)
{
    VmfRv32Log *log = start_log();

    vmf_log_bitmap_mark(&attached[1], 7);
    vmf_rv32_log_ops.stop(log);
    assert_true(vmf_rv32_log_ops.start(log, NULL));
    assert_int_equal(harvest(log, 1).n_words, 0);
    stop_log(log);
}

static void test_harvest_of_a_stopped_log_fails(void **state)
{
    VmfRv32Log *log = start_log();
    g_autoptr(GError) error = NULL;

    vmf_rv32_log_ops.stop(log);
    assert_false(vmf_rv32_log_ops.harvest(log, 1, take, NULL, &error));
    assert_non_null(error);
    vmf_rv32_log_free(log);
}

/* ---- a writer that does not wait: each page holds a number that only grows --------------------------------------- */

#define RACE_PAGES 1024u
#define RACE_WRITES 400000u

typedef struct {
    VmfLogBitmap *bitmap;
    _Atomic uint32_t pages[RACE_PAGES];
    atomic_bool done;
} Race;

static void *race_writer(void *opaque)
{
    Race *race = opaque;
    uint32_t random = 1;

    for (uint32_t i = 1; i <= RACE_WRITES; i++) {
        random = random * 1664525 + 1013904223;
        uint32_t page = random >> 22;
        atomic_store_explicit(&race->pages[page], i, memory_order_relaxed);
        vmf_log_bitmap_mark(race->bitmap, page);
    }
    atomic_store(&race->done, true);
    return NULL;
}

/* Copies what is dirty, as the engine does, until a round after the writer's end; then the copy must be the original.
 */
static void test_no_write_is_lost(void **state)
{
    static Race race;
    static uint32_t copy[RACE_PAGES];
    VmfRv32Log *log = start_log();
    pthread_t thread;
    bool last;

    race.bitmap = &attached[1];
    pthread_create(&thread, NULL, race_writer, &race);
    do {
        last = atomic_load(&race.done);
        Harvest h = harvest(log, 1);
        for (uint64_t chunk = 0; chunk < RACE_PAGES; chunk += 512) {
            uint64_t words[8];
            memcpy(words, h.words + chunk / 64, sizeof(words));
            vmf_rv32_log_ops.clear(log, 1, chunk, 512, words);
            for (unsigned i = 0; i < 512; i++) {
                if (words[i / 64] >> (i % 64) & 1)
                    copy[chunk + i] = atomic_load_explicit(&race.pages[chunk + i], memory_order_relaxed);
            }
        }
    } while (!last);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < RACE_PAGES; i++)
        assert_int_equal(copy[i], race.pages[i]);
    stop_log(log);
}

/* ---- the moment itself: one write against one clear, again and again ----------------------------------------------
 */

#define DUELS 60000u

/* On lines of their own, so that a store to one and a load of another can pass each other. */
typedef struct {
    _Alignas(128) VmfLogBitmap *bitmap;
    _Alignas(128) _Atomic uint32_t page;
    _Alignas(128) _Atomic uint32_t turn;
    _Alignas(128) _Atomic uint32_t done;
} Duel;

static void wait_for(_Atomic uint32_t *number, uint32_t value)
{
    for (unsigned spins = 0; atomic_load_explicit(number, memory_order_acquire) != value; spins++) {
        if (spins > 1000)
            sched_yield();
    }
}

static void *duel_writer(void *opaque)
{
    Duel *duel = opaque;

    for (uint32_t i = 1; i <= DUELS; i++) {
        wait_for(&duel->turn, i);
        atomic_store_explicit(&duel->page, i, memory_order_relaxed);
        vmf_log_bitmap_mark(duel->bitmap, 5);
        atomic_store_explicit(&duel->done, i, memory_order_release);
    }
    return NULL;
}

/* The page is dirty already; while it is written again it is cleared and read. Read new, or dirty again: never neither.
 */
static void test_write_that_meets_a_clear_is_not_lost(void **state)
{
    static Duel duel;
    VmfRv32Log *log = start_log();
    pthread_t thread;

    duel.bitmap = &attached[1];
    pthread_create(&thread, NULL, duel_writer, &duel);
    for (uint32_t i = 1; i <= DUELS; i++) {
        uint64_t word = 0, still = 0;

        vmf_log_bitmap_mark(duel.bitmap, 5);
        atomic_store_explicit(&duel.turn, i, memory_order_release);
        for (volatile unsigned delay = i % 64; delay; delay--)
            continue;
        vmf_rv32_log_ops.clear(log, 1, 0, 64, &word);
        uint32_t seen = atomic_load_explicit(&duel.page, memory_order_relaxed);
        wait_for(&duel.done, i);
        vmf_rv32_log_ops.clear(log, 1, 0, 64, &still);
        assert_true(seen == i || still & 1 << 5);
    }
    pthread_join(thread, NULL);
    stop_log(log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_harvest_does_not_clear),     cmocka_unit_test(test_cost_is_what_is_dirty),
        cmocka_unit_test(test_clear_adds_what_it_cleared), cmocka_unit_test(test_partial_words),
        cmocka_unit_test(test_start_begins_empty),         cmocka_unit_test(test_harvest_of_a_stopped_log_fails),
        cmocka_unit_test(test_no_write_is_lost),           cmocka_unit_test(test_write_that_meets_a_clear_is_not_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
