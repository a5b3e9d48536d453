/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Callback tables that can grow.
 *
 * A table of the embedder begins with its size as the embedder was compiled; a member beyond that size is not there,
 * and reading it would read whatever lies behind the table. Two ways to stay inside, and no third:
 *  - a table that is kept is copied once into one of our own size, where what is not there reads as NULL
 * (vmf_ops_copy);
 *  - a table that is used in passing is asked member by member (VMF_OPS_HAS).
 */
#ifndef VMFERRY_MIGRATION_OPS_H
#define VMFERRY_MIGRATION_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Size of a table that ends with @member: what a table of the first release has at least. */
#define VMF_SIZE_UP_TO(type, member) (offsetof(type, member) + sizeof(((type *)0)->member))

/* Whether the embedder's table, possibly a smaller one than ours, has this callback. */
#define VMF_OPS_HAS(ops, member) ((ops)->size >= VMF_SIZE_UP_TO(__typeof__(*(ops)), member) && (ops)->member != NULL)

/*
 * Copies the table @theirs into @own (of @own_size bytes), zeros where theirs is shorter; own->size becomes @own_size.
 * Both begin with their size. False, with @own all zeros, when theirs is shorter than @least.
 */
static inline bool vmf_ops_copy(void *own, size_t own_size, const void *theirs, size_t least)
{
    size_t size;

    memset(own, 0, own_size);
    memcpy(&size, theirs, sizeof(size));
    if (size < least)
        return false;
    memcpy(own, theirs, size < own_size ? size : own_size);
    memcpy(own, &own_size, sizeof(own_size));
    return true;
}

#endif
