/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/sparse-array.h"

#include <errno.h>
#include <sys/mman.h>
#include <vmferry/error.h>

void *vmf_sparse_array_new(uint64_t n, size_t element_size, const char *what, GError **error)
{
    size_t length;

    if (n == 0 || __builtin_mul_overflow(n, element_size, &length) || length > SIZE_MAX / 2) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%s: %" G_GUINT64_FORMAT " entries: out of range", what, n);
        return NULL;
    }
    void *array = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (array == MAP_FAILED) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%s: mmap of %zu bytes: %s", what, length, g_strerror(errno));
        return NULL;
    }
    /* Where the host makes every mapping huge, one entry would cost 2 MiB. */
    (void)madvise(array, length, MADV_NOHUGEPAGE);
    return array;
}

void vmf_sparse_array_free(void *array, uint64_t n, size_t element_size)
{
    if (array)
        munmap(array, n * element_size);
}
