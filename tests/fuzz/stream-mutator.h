/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes to streams that keep them streams: records are left out, said twice, exchanged, or changed inside, their lengths are put
 * right, and so are sometimes the things that a fuzzer cannot guess: the sums of static data and device state, sequences of pages. Some
 * changes are left to the fuzzer's own ideas.
 */
#ifndef TESTS_FUZZ_STREAM_MUTATOR_H
#define TESTS_FUZZ_STREAM_MUTATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A main channel, with what else is joined to it (link.h). */
size_t vmf_fuzz_mutate_stream(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* Records from @start on. */
size_t vmf_fuzz_mutate_records(uint8_t *data, size_t size, size_t max_size, unsigned seed, size_t start, bool swap);

#endif
