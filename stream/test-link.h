/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests of the stream layer: a writer and a reader joined by a memory channel, and bodies in memory of exactly their size. */
#ifndef STREAM_TEST_LINK_H
#define STREAM_TEST_LINK_H

#include "stream/record.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

typedef struct {
    VmfChannel *near, *far;
    VmfRecordWriter *writer; /* into near */
    VmfRecordReader *reader; /* from far */
} Link;

/* Room for the largest record, so that one thread can write and then read. */
static inline Link link_new(bool swap)
{
    VmfStreamFormat format = {.version = 3, .swap = swap};
    Link link;

    vmf_channel_memory_pair(6u << 20, &link.near, &link.far);
    link.writer = vmf_record_writer_new(link.near, format);
    link.reader = vmf_record_reader_new(link.far, format);
    return link;
}

static inline void link_free(Link *link)
{
    vmf_record_writer_free(link->writer);
    vmf_record_reader_free(link->reader);
    vmf_channel_free(link->near);
    vmf_channel_free(link->far);
}

/* What was written so far, and no more will be: the octets. */
static inline GByteArray *link_take(Link *link)
{
    GByteArray *bytes = g_byte_array_new();
    uint8_t octet;
    bool ended = false;

    assert_true(vmf_record_flush(link->writer, NULL));
    vmf_channel_shutdown(link->near);
    while (vmf_channel_read_all_or_end(link->far, &octet, 1, &ended, NULL) && !ended)
        g_byte_array_append(bytes, &octet, 1);
    return bytes;
}

/* A link whose reader finds @length octets and then the end. */
static inline Link link_with(const uint8_t *octets, size_t length, bool swap)
{
    Link link = link_new(swap);

    if (length > 0)
        assert_true(vmf_channel_write_all(link.near, octets, length, NULL));
    vmf_channel_shutdown(link.near);
    return link;
}

#define assert_error(error, wanted)                                                                                             \
    do {                                                                                                                        \
        assert_non_null(error);                                                                                                 \
        if (!g_error_matches(error, VMF_ERROR, wanted))                                                                         \
            fail_msg("%s: %s", vmf_error_id(error), (error)->message);                                                          \
        assert_true(strlen((error)->message) > 0);                                                                              \
        g_clear_error(&error);                                                                                                  \
    } while (0)

/*
 * Decodes every truncation of @body, every value in which one octet differs, and @body with one octet more. Each copy has exactly its
 * size, so that a sanitizer sees a read beyond it. A decoder must fail with an error or succeed without one; truncations must fail.
 */
typedef bool (*TryDecode)(const VmfRecord *record, bool swap, void *opaque, GError **error);

static inline bool try_once(TryDecode decode, uint32_t type, const uint8_t *body, size_t length, bool swap, void *opaque)
{
    g_autofree uint8_t *copy = length ? g_memdup2(body, length) : NULL;
    VmfRecord record = {.type = type, .length = (uint32_t)length, .body = copy, .checked = (uint32_t)length};
    g_autoptr(GError) error = NULL;

    bool good = decode(&record, swap, opaque, &error);
    assert_true(good == !error);
    if (!good)
        assert_true(error->domain == VMF_ERROR);
    return good;
}

static inline void try_everything(TryDecode decode, uint32_t type, const uint8_t *body, size_t length, bool swap, void *opaque)
{
    g_autofree uint8_t *changed = g_malloc0(length + 1);

    memcpy(changed, body, length);
    assert_true(try_once(decode, type, body, length, swap, opaque));
    for (size_t n = 0; n < length; n++)
        assert_false(try_once(decode, type, body, n, swap, opaque));
    assert_false(try_once(decode, type, changed, length + 1, swap, opaque));
    for (size_t at = 0; at < length; at++)
        for (unsigned bit = 0; bit <= 8; bit++) {
            changed[at] = bit < 8 ? body[at] ^ (uint8_t)(1u << bit) : (uint8_t)~body[at];
            try_once(decode, type, changed, length, swap, opaque);
            changed[at] = body[at];
        }
}

#endif
