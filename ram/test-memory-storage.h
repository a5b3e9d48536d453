/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests: storage in memory that does whatever real storage may do. Requests fetch their octets and put them in
 * place at any two moments between their submission and their end, in any order; what was not flushed is lost in a
 * crash, or not, block by block; any operation can be made to fail. Where it wants stable writes, it fails the test
 * when memory changes under one.
 */
#ifndef RAM_TEST_MEMORY_STORAGE_H
#define RAM_TEST_MEMORY_STORAGE_H

#include "stream/storage-private.h"

typedef enum { OP_SET_SIZE, OP_WRITE, OP_ZERO, OP_FLUSH, OP_COMMIT, OP_ALLOCATE } MemoryOpKind;

typedef struct {
    MemoryOpKind kind;
    uint64_t offset, length;
} MemoryOp;

typedef struct {
    VmfStorage base;
    uint8_t *octets;  /* as a reader sees it now */
    uint8_t *durable; /* as it was at the last flush */
    uint64_t capacity;
    uint64_t seed;
    GArray *ops;      /* MemoryOp, executed */
    GArray *unsaved;  /* MemoryOp, since the last flush */
    unsigned fail_at; /* the operation of this number, from 1, fails; 0: none */
    int fail_errno;
    unsigned crash_at; /* from this operation on nothing is executed any more, and all fails */
    bool committed;
    unsigned n_queues;
} MemoryStorage;

/* As a new file, or as a device (@in_place) of @capacity octets, full of 0x5a. */
MemoryStorage *memory_storage_new(uint64_t capacity, bool in_place, uint64_t seed);
/* What is found after the crash: a new buffer of capacity octets. */
uint8_t *memory_storage_after_crash(MemoryStorage *storage);

#endif
