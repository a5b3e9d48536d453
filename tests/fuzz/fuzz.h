/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fuzz targets.
 *
 * Theory of operation. A target is one file with LLVMFuzzerTestOneInput(): it feeds one input to the engine and aborts where what came
 * of it cannot be. The same file is built twice:
 *
 * - with clang's libFuzzer (meson setup -Dfuzz=enabled, or scripts/fuzz): coverage guides what is tried;
 * - with any compiler and driver.c, which plays seeds and regressions and then simple changes of them: the short run of the suite,
 *   under whatever sanitizers that build has.
 *
 * In both a fuzzer would never guess a CRC, so the programs here are linked with a copy of stream/crc32c.c that takes any for right
 * (VMF_FUZZ_ANY_CRC). The engine's own libraries never have it.
 *
 * Each execution starts from the same state and ends with all of its threads joined.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A target may have it: changes @data, @size octets in a buffer of @max_size, and returns the new size. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
/* The fuzzer's own: of libFuzzer or of driver.c. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* What must hold. Unlike g_assert() it cannot be compiled away, and says where. */
#define FUZZ_CHECK(condition)                                                                                                   \
    do {                                                                                                                        \
        if (!(condition))                                                                                                       \
            vmf_fuzz_violated(#condition, __FILE__, __LINE__);                                                                  \
    } while (0)
_Noreturn void vmf_fuzz_violated(const char *condition, const char *file, int line);

#endif
