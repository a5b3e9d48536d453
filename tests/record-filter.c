/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/record-filter.h"

#include <stdio.h>
#include <string.h>

#include "stream/filter-pass.h"

#define PIECE (256u << 10) /* so much is copied before it is sent */

typedef struct {
    VmfFilter filter;
    FILE *written, *read;
    uint8_t *piece;
} RecordFilter;

static void note(FILE *file, const struct iovec *iov, int n, size_t length)
{
    for (int i = 0; file && i < n && length > 0; i++) {
        size_t part = MIN(iov[i].iov_len, length);
        g_assert(fwrite(iov[i].iov_base, 1, part, file) == part);
        length -= part;
    }
}

static ssize_t record_readv(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    ssize_t got = vmf_filter_pass_readv(channel, iov, n, error);

    if (got > 0)
        note(((RecordFilter *)channel)->read, iov, n, (size_t)got);
    return got;
}

/* A guest may be writing what is sent: copied first, so that what is noted is what went. */
static ssize_t record_writev(VmfChannel *channel, const struct iovec *iov, int n, GError **error)
{
    RecordFilter *record = (RecordFilter *)channel;
    size_t length = 0;

    for (int i = 0; i < n && length < PIECE; i++) {
        size_t part = MIN(iov[i].iov_len, PIECE - length);
        memcpy(record->piece + length, iov[i].iov_base, part);
        length += part;
    }
    struct iovec piece = {record->piece, length};
    ssize_t sent = vmf_filter_pass_writev(channel, &piece, 1, error);
    if (sent > 0)
        note(record->written, &piece, 1, (size_t)sent);
    return sent;
}

static void record_free(VmfChannel *channel)
{
    RecordFilter *record = (RecordFilter *)channel;

    if (record->written)
        fclose(record->written);
    if (record->read)
        fclose(record->read);
    g_free(record->piece);
    vmf_filter_pass_free(channel);
}

static const VmfChannelOps record_ops = {
    .kind = "record",
    .readv = record_readv,
    .writev = record_writev,
    .wait_readable = vmf_filter_pass_wait_readable,
    .unsent_bytes = vmf_filter_pass_unsent_bytes,
    .finish = vmf_filter_pass_finish,
    .shutdown = vmf_filter_pass_shutdown,
    .free = record_free,
};

VmfChannel *vmf_filter_record(VmfChannel *below, const char *written, const char *read)
{
    RecordFilter *record = g_new0(RecordFilter, 1);

    vmf_filter_init(&record->filter, &record_ops, below);
    record->piece = g_malloc(PIECE);
    if (written)
        record->written = fopen(written, "w");
    if (read)
        record->read = fopen(read, "w");
    g_assert(!written == !record->written && !read == !record->read);
    return &record->filter.base;
}
