/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A group is an array in a sparse mapping, or a list: the words that are not 0 with their places. 32 neighbours share
 * one list, a cluster, ordered by place, so that a guest with a page here and there pays for its pages and not for one allocation each.
 * A word of a list that becomes 0 keeps its entry until the list needs room: it is likely to be set again.
 *
 * Lists are changed and read under one of a few locks. That a group is an array is a bit that is set under the lock, after its words were
 * copied, and never cleared: who sees it needs no lock, who does not looks again under the lock.
 *
 * A cluster without a list has no word in one. Its pointer is looked at without the lock, and like words and that bit in sequentially
 * consistent order: the dirty bitmap relies on it (bitmap.c).
 */
#include "ram/sparse-words.h"

#include <pthread.h>
#include <stdatomic.h>

#include "ram/sparse-array.h"

#define CLUSTER_GROUPS 32u
#define CLUSTER_WORDS (CLUSTER_GROUPS * VMF_WORD_GROUP)
#define N_LOCKS 16u
#define STORE_MAX 384u /* words of a group in a list: more cost as much as an array */
#define OR_MAX 128u    /* the same where words come one by one: each moves those above it */
#define ENTRY_BYTES (sizeof(uint64_t) + sizeof(uint16_t))
#define ALLOCATION_BYTES 16u /* the allocator's grain; of each piece it keeps 8 for itself */

typedef struct {
    _Atomic(uint64_t *) values; /* room for @capacity of them, then for their places in the cluster (uint16_t) */
    _Atomic uint32_t arrays;    /* a bit a group */
    uint16_t n, capacity;
} Cluster;

struct VmfSparseWords {
    uint64_t n_words, n_clusters;
    _Atomic uint64_t *array; /* by word */
    Cluster *clusters;
    pthread_mutex_t locks[N_LOCKS];
    _Atomic uint64_t bytes;
};

static uint64_t div_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

VmfSparseWords *vmf_sparse_words_new(uint64_t n_words, const char *what, GError **error)
{
    g_autoptr(VmfSparseWords) words = g_new0(VmfSparseWords, 1);

    for (unsigned i = 0; i < N_LOCKS; i++)
        pthread_mutex_init(&words->locks[i], NULL);
    words->n_words = n_words;
    words->n_clusters = div_up(n_words, CLUSTER_WORDS);
    words->array = vmf_sparse_array_new(n_words, sizeof(uint64_t), what, error);
    if (!words->array)
        return NULL;
    words->clusters = vmf_sparse_array_new(words->n_clusters, sizeof(Cluster), what, error);
    return words->clusters ? g_steal_pointer(&words) : NULL;
}

/* Clusters without a list are left untouched. */
static void free_lists(VmfSparseWords *words)
{
    for (uint64_t c = 0; c < words->n_clusters; c++)
        if (atomic_load_explicit(&words->clusters[c].values, memory_order_relaxed))
            g_free(atomic_load_explicit(&words->clusters[c].values, memory_order_relaxed));
}

void vmf_sparse_words_free(VmfSparseWords *words)
{
    if (!words)
        return;
    if (words->clusters)
        free_lists(words);
    vmf_sparse_array_free(words->clusters, words->n_clusters, sizeof(Cluster));
    vmf_sparse_array_free((void *)words->array, words->n_words, sizeof(uint64_t));
    for (unsigned i = 0; i < N_LOCKS; i++)
        pthread_mutex_destroy(&words->locks[i]);
    g_free(words);
}

static Cluster *cluster_of(const VmfSparseWords *words, uint64_t group)
{
    return &words->clusters[group / CLUSTER_GROUPS];
}

static pthread_mutex_t *lock_of(const VmfSparseWords *words, uint64_t group)
{
    return (pthread_mutex_t *)&words->locks[group / CLUSTER_GROUPS % N_LOCKS];
}

static bool is_array(const Cluster *cluster, uint64_t group)
{
    return atomic_load(&cluster->arrays) >> group % CLUSTER_GROUPS & 1;
}

/* ---- lists; under the lock ---------------------------------------------------------------------------------------------------------- */

static uint64_t *values_of(const Cluster *cluster)
{
    return atomic_load_explicit(&cluster->values, memory_order_relaxed);
}

static uint16_t *places_of(const Cluster *cluster)
{
    return (uint16_t *)(values_of(cluster) + cluster->capacity);
}

/* The first entry at or above @place. */
static unsigned find(const Cluster *cluster, unsigned place)
{
    const uint16_t *places = cluster->n ? places_of(cluster) : NULL;
    unsigned from = 0, to = cluster->n;

    while (from < to) {
        unsigned middle = (from + to) / 2;
        if (places[middle] < place)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

static bool holds(const Cluster *cluster, unsigned entry, unsigned place)
{
    return entry < cluster->n && places_of(cluster)[entry] == place;
}

static size_t bytes_of(unsigned capacity)
{
    return capacity ? capacity * ENTRY_BYTES + sizeof(uint64_t) : 0;
}

/* So many entries that the allocator wastes nothing, and an eighth to grow. */
static unsigned capacity_for(unsigned n)
{
    size_t bytes = (n + n / 8) * ENTRY_BYTES + sizeof(uint64_t);

    return (unsigned)((div_up(bytes, ALLOCATION_BYTES) * ALLOCATION_BYTES - sizeof(uint64_t)) / ENTRY_BYTES);
}

static unsigned n_live(const Cluster *cluster)
{
    unsigned live = 0;

    for (unsigned i = 0; i < cluster->n; i++)
        live += values_of(cluster)[i] != 0;
    return live;
}

/* Another list, without the zeros, that has room for @n; 0: none. */
static bool reshape(VmfSparseWords *words, Cluster *cluster, unsigned n)
{
    unsigned capacity = n ? MIN(capacity_for(n), CLUSTER_WORDS) : 0, kept = 0;
    uint64_t *values = n ? g_try_malloc(capacity * ENTRY_BYTES) : NULL;

    if (n && !values)
        return false;
    uint16_t *places = (uint16_t *)(values + capacity);
    for (unsigned i = 0; i < cluster->n && n; i++) {
        if (values_of(cluster)[i] == 0)
            continue;
        values[kept] = values_of(cluster)[i];
        places[kept++] = places_of(cluster)[i];
    }
    g_free(values_of(cluster));
    atomic_fetch_add_explicit(&words->bytes, bytes_of(capacity) - bytes_of(cluster->capacity), memory_order_relaxed);
    atomic_store(&cluster->values, values);
    cluster->n = (uint16_t)kept;
    cluster->capacity = (uint16_t)capacity;
    return true;
}

/* For @more entries; others may move. */
static bool make_room(VmfSparseWords *words, Cluster *cluster, unsigned more)
{
    return cluster->n + more <= cluster->capacity || reshape(words, cluster, n_live(cluster) + more);
}

static void give_back_room(VmfSparseWords *words, Cluster *cluster)
{
    unsigned live = n_live(cluster);

    if (capacity_for(live) <= cluster->capacity / 2)
        reshape(words, cluster, live);
}

/* Moves entries [from, n) to begin at @to; there is room. */
static void move_tail(Cluster *cluster, unsigned from, unsigned to)
{
    unsigned n = cluster->n - from;

    memmove(values_of(cluster) + to, values_of(cluster) + from, n * sizeof(uint64_t));
    memmove(places_of(cluster) + to, places_of(cluster) + from, n * sizeof(uint16_t));
    cluster->n = (uint16_t)(to + n);
}

static unsigned group_place(uint64_t group)
{
    return (unsigned)(group % CLUSTER_GROUPS) * VMF_WORD_GROUP;
}

/* The entries of @group, [return value, *end). */
static unsigned find_group(const Cluster *cluster, uint64_t group, unsigned *end)
{
    *end = find(cluster, group_place(group) + VMF_WORD_GROUP);
    return find(cluster, group_place(group));
}

static void make_array(VmfSparseWords *words, Cluster *cluster, uint64_t group)
{
    _Atomic uint64_t *array = &words->array[group * VMF_WORD_GROUP];
    unsigned end;

    if (is_array(cluster, group))
        return;
    for (unsigned i = find_group(cluster, group, &end); i < end; i++) {
        atomic_store_explicit(&array[places_of(cluster)[i] % VMF_WORD_GROUP], values_of(cluster)[i], memory_order_relaxed);
        values_of(cluster)[i] = 0;
    }
    atomic_fetch_add_explicit(&words->bytes, VMF_WORD_GROUP * sizeof(uint64_t), memory_order_relaxed);
    atomic_fetch_or(&cluster->arrays, UINT32_C(1) << group % CLUSTER_GROUPS);
    give_back_room(words, cluster);
}

/* ---- what a group is ---------------------------------------------------------------------------------------------------------------- */

/* In this order: a list that is filled in between, or becomes an array, was empty at the first look. */
bool vmf_sparse_words_is_void(const VmfSparseWords *words, uint64_t group)
{
    const Cluster *cluster = cluster_of(words, group);

    return !atomic_load(&cluster->values) && !is_array(cluster, group);
}

bool vmf_sparse_words_is_array(const VmfSparseWords *words, uint64_t group)
{
    return is_array(cluster_of(words, group), group);
}

/* ---- one word ----------------------------------------------------------------------------------------------------------------------- */

uint64_t vmf_sparse_words_get(const VmfSparseWords *words, uint64_t word)
{
    uint64_t group = word / VMF_WORD_GROUP, value = 0;
    const Cluster *cluster = cluster_of(words, group);
    unsigned place = word % CLUSTER_WORDS;

    if (is_array(cluster, group))
        return atomic_load(&words->array[word]);
    if (vmf_sparse_words_is_void(words, group))
        return 0;
    pthread_mutex_lock(lock_of(words, group));
    unsigned entry = find(cluster, place);
    if (is_array(cluster, group))
        value = atomic_load(&words->array[word]);
    else if (holds(cluster, entry, place))
        value = values_of(cluster)[entry];
    pthread_mutex_unlock(lock_of(words, group));
    return value;
}

/* Its entry, made at need; NULL: it takes an array. */
static uint64_t *entry_for(VmfSparseWords *words, Cluster *cluster, uint64_t group, unsigned place)
{
    unsigned entry = find(cluster, place), end;

    if (holds(cluster, entry, place))
        return &values_of(cluster)[entry];
    unsigned first = find_group(cluster, group, &end);
    if (end - first >= OR_MAX || !make_room(words, cluster, 1))
        return NULL;
    entry = find(cluster, place);
    move_tail(cluster, entry, entry + 1);
    values_of(cluster)[entry] = 0;
    places_of(cluster)[entry] = (uint16_t)place;
    return &values_of(cluster)[entry];
}

uint64_t vmf_sparse_words_or(VmfSparseWords *words, uint64_t word, uint64_t bits)
{
    uint64_t group = word / VMF_WORD_GROUP, old = 0;
    Cluster *cluster = cluster_of(words, group);

    if (is_array(cluster, group))
        return atomic_fetch_or(&words->array[word], bits);
    pthread_mutex_lock(lock_of(words, group));
    uint64_t *value = is_array(cluster, group) ? NULL : entry_for(words, cluster, group, word % CLUSTER_WORDS);
    if (value) {
        old = *value;
        *value |= bits;
    } else {
        make_array(words, cluster, group);
        old = atomic_fetch_or(&words->array[word], bits);
    }
    pthread_mutex_unlock(lock_of(words, group));
    return old;
}

/* Reading first keeps words that are 0 in shared cache lines, and untouched memory untouched. */
static uint64_t take_from_array(VmfSparseWords *words, uint64_t word)
{
    return atomic_load(&words->array[word]) ? atomic_exchange(&words->array[word], 0) : 0;
}

uint64_t vmf_sparse_words_take(VmfSparseWords *words, uint64_t word)
{
    uint64_t group = word / VMF_WORD_GROUP, old = 0;
    Cluster *cluster = cluster_of(words, group);

    if (is_array(cluster, group))
        return take_from_array(words, word);
    if (vmf_sparse_words_is_void(words, group))
        return 0;
    pthread_mutex_lock(lock_of(words, group));
    if (is_array(cluster, group)) {
        old = take_from_array(words, word);
    } else {
        unsigned entry = find(cluster, word % CLUSTER_WORDS);
        if (holds(cluster, entry, word % CLUSTER_WORDS))
            old = values_of(cluster)[entry];
        if (old)
            values_of(cluster)[entry] = 0;
    }
    pthread_mutex_unlock(lock_of(words, group));
    return old;
}

/* ---- a group ------------------------------------------------------------------------------------------------------------------------ */

static const VmfPageSet all_words = {{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}};

/* As far as there are words. */
static VmfPageSet in_range(const VmfSparseWords *words, uint64_t group, const VmfPageSet *which)
{
    uint64_t left = words->n_words - group * VMF_WORD_GROUP;

    return vmf_page_set_slice(which, 0, (unsigned)MIN(left, VMF_WORD_GROUP));
}

static void read_array(const VmfSparseWords *words, uint64_t group, const VmfPageSet *which, uint64_t *out)
{
    const _Atomic uint64_t *array = &words->array[group * VMF_WORD_GROUP];

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = which->words[w]; left; left &= left - 1) {
            unsigned word = w * 64 + (unsigned)__builtin_ctzll(left);
            out[word] = atomic_load_explicit(&array[word], memory_order_relaxed);
        }
}

/* Words that are not asked for as well, for simplicity: @out has room. */
static void read_list(const Cluster *cluster, uint64_t group, uint64_t *out)
{
    unsigned end;

    memset(out, 0, VMF_WORD_GROUP * sizeof(*out));
    for (unsigned i = find_group(cluster, group, &end); i < end; i++)
        out[places_of(cluster)[i] % VMF_WORD_GROUP] = values_of(cluster)[i];
}

void vmf_sparse_words_read(const VmfSparseWords *words, uint64_t group, const VmfPageSet *which, uint64_t *out)
{
    const Cluster *cluster = cluster_of(words, group);
    VmfPageSet wanted = in_range(words, group, which ? which : &all_words);
    bool array = is_array(cluster, group);

    if (!array) {
        pthread_mutex_lock(lock_of(words, group));
        array = is_array(cluster, group);
        if (!array)
            read_list(cluster, group, out);
        pthread_mutex_unlock(lock_of(words, group));
    }
    if (array)
        read_array(words, group, &wanted, out);
}

/* The words of a group with places, as they are to be: those that are not 0. */
typedef struct {
    unsigned n;
    uint64_t values[VMF_WORD_GROUP];
    uint16_t places[VMF_WORD_GROUP];
} List;

static void merge(const Cluster *cluster, uint64_t group, const VmfPageSet *which, const uint64_t *values, List *list)
{
    uint64_t all[VMF_WORD_GROUP];

    read_list(cluster, group, all);
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = which->words[w]; left; left &= left - 1) {
            unsigned word = w * 64 + (unsigned)__builtin_ctzll(left);
            all[word] = values ? values[word] : 0;
        }
    list->n = 0;
    for (unsigned word = 0; word < VMF_WORD_GROUP; word++) {
        list->values[list->n] = all[word];
        list->places[list->n] = (uint16_t)(group_place(group) + word);
        list->n += all[word] != 0;
    }
}

static bool replace_group(VmfSparseWords *words, Cluster *cluster, uint64_t group, const List *list)
{
    unsigned end, first = find_group(cluster, group, &end), live = 0;

    for (unsigned i = first; i < end; i++)
        live += values_of(cluster)[i] != 0; /* the others go where room is made */
    if (list->n > live && !make_room(words, cluster, list->n - live))
        return false;
    if (!values_of(cluster))
        return true;
    first = find_group(cluster, group, &end);
    move_tail(cluster, end, first + list->n);
    memcpy(values_of(cluster) + first, list->values, list->n * sizeof(uint64_t));
    memcpy(places_of(cluster) + first, list->places, list->n * sizeof(uint16_t));
    return true;
}

bool vmf_sparse_words_store(VmfSparseWords *words, uint64_t group, const VmfPageSet *which, const uint64_t *values)
{
    Cluster *cluster = cluster_of(words, group);
    VmfPageSet wanted = in_range(words, group, which);
    List list;

    if (is_array(cluster, group)) {
        vmf_sparse_words_store_array(words, group, which, values);
        return true;
    }
    if (!values && vmf_sparse_words_is_void(words, group))
        return true;
    pthread_mutex_lock(lock_of(words, group));
    merge(cluster, group, &wanted, values, &list);
    bool stored = list.n <= STORE_MAX && replace_group(words, cluster, group, &list);
    pthread_mutex_unlock(lock_of(words, group));
    return stored;
}

void vmf_sparse_words_store_array(VmfSparseWords *words, uint64_t group, const VmfPageSet *which, const uint64_t *values)
{
    Cluster *cluster = cluster_of(words, group);
    _Atomic uint64_t *array = &words->array[group * VMF_WORD_GROUP];
    VmfPageSet wanted = in_range(words, group, which);

    if (!is_array(cluster, group)) {
        pthread_mutex_lock(lock_of(words, group));
        make_array(words, cluster, group);
        pthread_mutex_unlock(lock_of(words, group));
    }
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = wanted.words[w]; left; left &= left - 1) {
            unsigned word = w * 64 + (unsigned)__builtin_ctzll(left);
            atomic_store_explicit(&array[word], values ? values[word] : 0, memory_order_relaxed);
        }
}

uint64_t vmf_sparse_words_bytes(const VmfSparseWords *words)
{
    return atomic_load_explicit(&words->bytes, memory_order_relaxed);
}
