/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Zeroed memory of which only what is written costs anything: the backing of tables over a guest that may be sparse. */
#ifndef RAM_SPARSE_ARRAY_H
#define RAM_SPARSE_ARRAY_H

#include <glib.h>
#include <stdint.h>

/* @n elements of @element_size bytes; NULL with VMF_ERROR_MEMORY, which names @what. */
void *vmf_sparse_array_new(uint64_t n, size_t element_size, const char *what, GError **error);
/* NULL is fine. */
void vmf_sparse_array_free(void *array, uint64_t n, size_t element_size);

#endif
