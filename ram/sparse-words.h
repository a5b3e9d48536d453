/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A long array of 64-bit words of which most are 0: the backing of tables over a guest that may be sparse. What is 0 costs nothing, few
 * words among many zeros ten octets each and a little for their neighbourhood, a group with many of them the 4 KiB that it occupies in
 * an ordinary array. Words go in groups of 512, which are what changes from one form to the other; it never changes back.
 *
 * Every call may come from several threads at once, and each word is read and changed as a whole. Where a group is an ordinary array,
 * nobody waits for anybody.
 */
#ifndef RAM_SPARSE_WORDS_H
#define RAM_SPARSE_WORDS_H

#include "ram/page-set.h"

#define VMF_WORD_GROUP VMF_CHUNK_PAGES /* a group's words are counted by the bits of a page set */

typedef struct VmfSparseWords VmfSparseWords;

/* All 0. NULL with VMF_ERROR_MEMORY, which names @what. */
VmfSparseWords *vmf_sparse_words_new(uint64_t n_words, const char *what, GError **error);
void vmf_sparse_words_free(VmfSparseWords *words);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfSparseWords, vmf_sparse_words_free)

/* ---- one word; @word is below the number of words ------------------------------------------------------------------------------- */

uint64_t vmf_sparse_words_get(const VmfSparseWords *words, uint64_t word);
/* Returns what it was before. */
uint64_t vmf_sparse_words_or(VmfSparseWords *words, uint64_t word, uint64_t bits);
/* Makes it 0 and returns what it was. */
uint64_t vmf_sparse_words_take(VmfSparseWords *words, uint64_t word);

/* ---- a group ---------------------------------------------------------------------------------------------------------------------- */

/* True: all of the group's words are 0. False: perhaps not. */
bool vmf_sparse_words_is_void(const VmfSparseWords *words, uint64_t group);
/* Whether it is an ordinary array. */
bool vmf_sparse_words_is_array(const VmfSparseWords *words, uint64_t group);
/* Those words of @group that @which names (NULL: all), into their places in @out, which has room for a group. */
void vmf_sparse_words_read(const VmfSparseWords *words, uint64_t group, const VmfPageSet *which, uint64_t *out);
/*
 * Sets those words of @group that @which names from their places in @values (NULL: to 0). False, and nothing is changed, where that takes
 * an array and the group is none: call vmf_sparse_words_store_array() then. One thread at a time for a group that is not an array.
 */
bool vmf_sparse_words_store(VmfSparseWords *words, uint64_t group, const VmfPageSet *which, const uint64_t *values);
/* The same; makes it an array first. */
void vmf_sparse_words_store_array(VmfSparseWords *words, uint64_t group, const VmfPageSet *which, const uint64_t *values);

/* Memory occupied by words, in bytes. */
uint64_t vmf_sparse_words_bytes(const VmfSparseWords *words);

#endif
