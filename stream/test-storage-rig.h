/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests of storage: requests with buffers of their own, patterns that know their place, a directory. */
#ifndef STREAM_TEST_STORAGE_RIG_H
#define STREAM_TEST_STORAGE_RIG_H

#include "stream/storage-private.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define KIB (1u << 10)
#define MIB (1u << 20)

/* A request and what became of it. Its buffer is aligned to a page and cut into pieces. */
typedef struct {
    VmfStorageRequest request;
    struct iovec pieces[16];
    uint8_t *data;
    size_t capacity;
    bool pending;
    GError *error;   /* of the last time; owned */
    unsigned *ended; /* NULL, or counts */
} Job;

Job *job_new(size_t capacity);
void job_free(Job *job);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Job, job_free)
/* Cuts @length bytes of the buffer into @n_pieces at multiples of @alignment, and submits. Not while it is pending. */
void job_submit(Job *job, VmfStorageQueue *queue, VmfRequestKind kind, uint64_t offset, uint64_t length,
                unsigned n_pieces, uint32_t alignment);
/* Submits, drains and returns the error, which stays the job's. */
GError *job_run(Job *job, VmfStorageQueue *queue, VmfRequestKind kind, uint64_t offset, uint64_t length);

/* Writes and reads at the start of @storage by pieces that lie in memory in another order than on it. @unit: the
 * alignment. */
void check_scattered(VmfStorage *storage, uint32_t unit);

/* Each 8 bytes say which place of which version they are. @offset, @length: multiples of 8. */
void pattern_fill(void *data, uint64_t offset, size_t length, uint32_t version);
void assert_pattern(const void *data, uint64_t offset, size_t length, uint32_t version);
void assert_zeros(const void *data, size_t length);

/* A directory below @parent that is removed with all that is in it. */
char *directory_new(const char *parent);
void directory_remove(char *directory);

/* Opens, or fails the test. @name: in @directory. */
VmfStorage *storage_at(const char *directory, const char *name, VmfStorageMode mode, const char *backend,
                       bool buffered);
/* "file:DIRECTORY/NAME", to free */
char *uri_at(const char *directory, const char *name);

#define assert_error(error, wanted)                                                                                    \
    do {                                                                                                               \
        assert_non_null(error);                                                                                        \
        if (!g_error_matches(error, VMF_ERROR, wanted))                                                                \
            fail_msg("%s: %s", vmf_error_id(error), (error)->message);                                                 \
        assert_true(strlen((error)->message) > 0);                                                                     \
        g_clear_error(&(error));                                                                                       \
    } while (0)

/* Fails with the error's words. */
#define assert_good(call, error)                                                                                       \
    do {                                                                                                               \
        if (!(call))                                                                                                   \
            fail_msg("%s: %s", #call, (error) ? (error)->message : "no error");                                        \
    } while (0)

#endif
