/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void vmf_fuzz_violated(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: violated: %s\n", file, line, condition);
    abort();
}
