/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <vmferry/error.h>

#include "ram/sparse-words.h"

#define N_GROUPS 40 /* more than share a list */
#define N_WORDS ((N_GROUPS - 1) * VMF_WORD_GROUP + 10)

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void compare(const VmfSparseWords *words, const uint64_t *model)
{
    uint64_t group[VMF_WORD_GROUP];

    for (uint64_t word = 0; word < N_WORDS; word++) {
        if (word % VMF_WORD_GROUP == 0)
            vmf_sparse_words_read(words, word / VMF_WORD_GROUP, NULL, group);
        assert_true(vmf_sparse_words_get(words, word) == model[word]);
        assert_true(group[word % VMF_WORD_GROUP] == model[word]);
    }
}

static void change_one(VmfSparseWords *words, uint64_t *model, uint64_t *seed)
{
    uint64_t word = next_random(seed) % N_WORDS, bits = next_random(seed);

    if (next_random(seed) % 3 == 0) {
        assert_true(vmf_sparse_words_take(words, word) == model[word]);
        model[word] = 0;
    } else {
        assert_true(vmf_sparse_words_or(words, word, bits) == model[word]);
        model[word] |= bits;
    }
}

/* A tenth of the group's words, and now and then all of them. */
static void change_group(VmfSparseWords *words, uint64_t *model, uint64_t *seed)
{
    uint64_t group = next_random(seed) % N_GROUPS, values[VMF_WORD_GROUP];
    bool all = next_random(seed) % 50 == 0, zero = next_random(seed) % 4 == 0;
    VmfPageSet which = {{0}};

    for (unsigned i = 0; i < VMF_WORD_GROUP; i++) {
        values[i] = next_random(seed) % 4 ? next_random(seed) : 0;
        if (all || next_random(seed) % 10 == 0)
            vmf_page_set_add(&which, i);
    }
    if (!vmf_sparse_words_store(words, group, &which, zero ? NULL : values)) {
        assert_false(vmf_sparse_words_is_array(words, group));
        vmf_sparse_words_store_array(words, group, &which, zero ? NULL : values);
        assert_true(vmf_sparse_words_is_array(words, group));
    }
    for (unsigned i = 0; i < VMF_WORD_GROUP; i++)
        if (vmf_page_set_test(&which, i) && group * VMF_WORD_GROUP + i < N_WORDS)
            model[group * VMF_WORD_GROUP + i] = zero ? 0 : values[i];
}

static void random_changes_agree_with_a_model(void **state)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(N_WORDS, "words", NULL);
        g_autofree uint64_t *model = g_new0(uint64_t, N_GROUPS * VMF_WORD_GROUP);
        uint64_t random = seed;
        for (unsigned i = 0; i < 400; i++) {
            for (unsigned n = next_random(&random) % 20; n > 0; n--)
                change_one(words, model, &random);
            change_group(words, model, &random);
            if (i % 20 == 0)
                compare(words, model);
        }
        compare(words, model);
    }
}

static void what_is_read_is_what_was_asked_for(void **state)
{
    g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(N_WORDS, "words", NULL);
    uint64_t values[VMF_WORD_GROUP], out[VMF_WORD_GROUP];
    VmfPageSet all = {{0}}, some = {{0}};

    vmf_page_set_add_range(&all, 0, VMF_WORD_GROUP);
    vmf_page_set_add(&some, 7);
    vmf_page_set_add(&some, 500);
    for (unsigned i = 0; i < VMF_WORD_GROUP; i++)
        values[i] = i + 1;
    assert_true(vmf_sparse_words_is_void(words, 3));
    assert_true(vmf_sparse_words_store(words, 3, &some, values));
    assert_false(vmf_sparse_words_is_void(words, 3));
    vmf_sparse_words_read(words, 3, &some, out);
    assert_true(out[7] == 8 && out[500] == 501);
    vmf_sparse_words_store_array(words, 3, &all, values);
    memset(out, 0, sizeof(out));
    vmf_sparse_words_read(words, 3, &some, out);
    assert_true(out[7] == 8 && out[500] == 501 && out[8] == 0);
    assert_int_equal(vmf_sparse_words_get(words, 3 * VMF_WORD_GROUP - 1), 0);
    assert_int_equal(vmf_sparse_words_get(words, 4 * VMF_WORD_GROUP), 0);
}

/* As a map of what is under way sees it: many places one after the other, few of them at a time. */
static void places_that_come_and_go_take_the_memory_of_those_that_are_there(void **state)
{
    g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(32 * VMF_WORD_GROUP, "words", NULL);

    for (uint64_t word = 0; word < 32 * VMF_WORD_GROUP; word++) {
        vmf_sparse_words_or(words, word, 1);
        if (word >= 10)
            assert_int_equal(vmf_sparse_words_take(words, word - 10), 1);
        assert_true(vmf_sparse_words_bytes(words) <= 300);
    }
}

/* The list has entries that stand for nothing any more, which go while room is made for the others. */
static void a_group_is_replaced_in_a_list_that_is_full(void **state)
{
    g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(VMF_WORD_GROUP, "words", NULL);
    uint64_t values[VMF_WORD_GROUP];
    VmfPageSet which = {{0}};

    for (uint64_t word = 0; word < 5; word++)
        vmf_sparse_words_or(words, word, 1);
    for (uint64_t word = 0; word < 3; word++)
        vmf_sparse_words_take(words, word);
    for (unsigned i = 0; i < 8; i++) {
        vmf_page_set_add(&which, 20 + i);
        values[20 + i] = 100 + i;
    }
    assert_true(vmf_sparse_words_store(words, 0, &which, values));
    for (uint64_t word = 0; word < VMF_WORD_GROUP; word++)
        assert_int_equal(vmf_sparse_words_get(words, word), word >= 20 && word < 28 ? 80 + word : word == 3 || word == 4);
}

static void many_words_cost_an_array_and_no_more(void **state)
{
    g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(N_WORDS, "words", NULL);

    for (uint64_t word = 0; word < VMF_WORD_GROUP; word++)
        vmf_sparse_words_or(words, word, 1);
    assert_true(vmf_sparse_words_is_array(words, 0));
    assert_false(vmf_sparse_words_is_array(words, 1));
    assert_true(vmf_sparse_words_bytes(words) >= 4096);
    assert_true(vmf_sparse_words_bytes(words) <= 4096 + 128 * 12);
}

/* ---- several threads ----------------------------------------------------------------------------------------------------------------- */

#define N_THREADS 4
#define N_SETS 20000

typedef struct {
    VmfSparseWords *words;
    unsigned index;
    _Atomic unsigned *setting; /* threads that still do */
    uint64_t *count;           /* by word: how many bits were set, or taken */
} Worker;

/* Its own bit of words all over: a bit that was there already was not taken yet. */
static void *set_bits(void *opaque)
{
    Worker *worker = opaque;
    uint64_t seed = 77 + worker->index, bit = UINT64_C(1) << worker->index;

    for (unsigned i = 0; i < N_SETS; i++) {
        uint64_t word = next_random(&seed) % (i < N_SETS / 2 ? N_WORDS : VMF_WORD_GROUP);
        worker->count[word] += (vmf_sparse_words_or(worker->words, word, bit) & bit) == 0;
    }
    atomic_fetch_sub(worker->setting, 1);
    return NULL;
}

static void *take_bits(void *opaque)
{
    Worker *worker = opaque;
    bool last;

    do {
        last = atomic_load(worker->setting) == 0;
        for (uint64_t word = 0; word < N_WORDS; word++)
            worker->count[word] += (uint64_t)__builtin_popcountll(vmf_sparse_words_take(worker->words, word));
    } while (!last);
    return NULL;
}

/* While lists become arrays under them. */
static void every_bit_is_taken_once(void **state)
{
    g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(N_WORDS, "words", NULL);
    _Atomic unsigned setting = N_THREADS - 1;
    pthread_t threads[N_THREADS];
    Worker workers[N_THREADS];

    for (unsigned i = 0; i < N_THREADS; i++) {
        workers[i] = (Worker){words, i, &setting, g_new0(uint64_t, N_WORDS)};
        assert_int_equal(pthread_create(&threads[i], NULL, i ? set_bits : take_bits, &workers[i]), 0);
    }
    for (unsigned i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t word = 0; word < N_WORDS; word++)
        assert_int_equal(workers[0].count[word], workers[1].count[word] + workers[2].count[word] + workers[3].count[word]);
    assert_true(vmf_sparse_words_is_array(words, 0));
    for (unsigned i = 0; i < N_THREADS; i++)
        g_free(workers[i].count);
}

static void *fill_group(void *words)
{
    for (uint64_t word = 0; word < 200; word++)
        vmf_sparse_words_or(words, word, 1);
    return NULL;
}

/* Also in the moment in which its group becomes an array. */
static void what_was_set_is_there_to_be_taken(void **state)
{
    for (unsigned round = 0; round < 500; round++) {
        g_autoptr(VmfSparseWords) words = vmf_sparse_words_new(VMF_WORD_GROUP, "words", NULL);
        pthread_t thread;

        assert_int_equal(pthread_create(&thread, NULL, fill_group, words), 0);
        do {
            assert_int_equal(vmf_sparse_words_or(words, 300, 2), 0);
            assert_int_equal(vmf_sparse_words_get(words, 300), 2);
            assert_int_equal(vmf_sparse_words_take(words, 300), 2);
        } while (!vmf_sparse_words_is_array(words, 0));
        pthread_join(thread, NULL);
    }
}

static void an_impossible_size_is_an_error(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_sparse_words_new(UINT64_MAX / 8 + 2, "words", &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_MEMORY));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_changes_agree_with_a_model),
        cmocka_unit_test(what_is_read_is_what_was_asked_for),
        cmocka_unit_test(places_that_come_and_go_take_the_memory_of_those_that_are_there),
        cmocka_unit_test(a_group_is_replaced_in_a_list_that_is_full),
        cmocka_unit_test(many_words_cost_an_array_and_no_more),
        cmocka_unit_test(every_bit_is_taken_once),
        cmocka_unit_test(what_was_set_is_there_to_be_taken),
        cmocka_unit_test(an_impossible_size_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
