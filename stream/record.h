/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Records over a channel: framing, CRC, bounds. What bodies mean is not known here, but for the payload of PAGES, which is gathered
 * from and scattered to memory that the caller names.
 */
#ifndef VMF_STREAM_RECORD_H
#define VMF_STREAM_RECORD_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>
#include <xxhash.h>

#include "stream/channel.h"
#include "stream/pack.h"
#include "stream/wire.h"

/* How the stream is laid out; both directions share it. */
typedef struct {
    uint32_t version;
    bool swap; /* its byte order is not this host's */
    bool one_way;
} VmfStreamFormat;

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/*
 * Records are written whole, one at a time, by any number of threads. Small ones may wait in a buffer (vmf_record_queue) until a
 * flush or a payload takes them along in the same system call.
 */
typedef struct {
    VmfChannel *channel; /* borrowed */
    VmfStreamFormat format;
    pthread_mutex_t lock;
    GByteArray *pending;
    XXH3_state_t *sum; /* while not NULL, all octets written are added: the static sum */
} VmfRecordWriter;

VmfRecordWriter *vmf_record_writer_new(VmfChannel *channel, VmfStreamFormat format);
void vmf_record_writer_free(VmfRecordWriter *writer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRecordWriter, vmf_record_writer_free)

/* Raw octets ahead of the records: headers. */
bool vmf_record_write_raw(VmfRecordWriter *writer, const void *data, size_t length, GError **error);

/* Queues a record; it leaves with the next write or flush, or at once when 64 KiB wait. */
bool vmf_record_queue(VmfRecordWriter *writer, uint32_t type, const void *body, size_t length, GError **error);
/* Writes a record and all that waits before it. */
bool vmf_record_write(VmfRecordWriter *writer, uint32_t type, const void *body, size_t length, GError **error);
bool vmf_record_flush(VmfRecordWriter *writer, GError **error);

/*
 * Writes PAGES: @meta in host order, then the payload gathered from @iov, @payload octets in all (a multiple of 8). One system call
 * where the channel takes it whole. A small payload (16 KiB) is copied and queued instead, as vmf_record_queue() does.
 */
bool vmf_record_write_pages(VmfRecordWriter *writer, const VmfWirePages *meta, const struct iovec *iov, int n_iov, size_t payload,
                            GError **error);

/* Writes EXTENT: @meta in host order, then @payload octets at @data (none: NULL, 0). One system call where the channel takes it whole. */
bool vmf_record_write_extent(VmfRecordWriter *writer, const VmfWireExtent *meta, const void *data, size_t payload, GError **error);

/* Begins and ends the sum over octets written (read); end gives it. */
void vmf_record_writer_sum_begin(VmfRecordWriter *writer);
uint64_t vmf_record_writer_sum_end(VmfRecordWriter *writer);

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t type;
    uint32_t length;      /* of the body */
    const uint8_t *body;  /* the checked octets; valid until the next read. NULL: unknown, optional and beyond memory_max */
    uint32_t checked;
} VmfRecord;

/* One reader, one thread. */
typedef struct {
    VmfChannel *channel; /* borrowed */
    VmfStreamFormat format;
    uint8_t *buffer;
    size_t buffer_size;
    uint32_t payload_left; /* of the record that was read last: not covered by the CRC, not read yet */
    XXH3_state_t *sum;
    uint64_t sum_before;   /* the sum as it was ahead of the last record */
    uint32_t memory_max;   /* octets of a body that are held; 0: VMF_RECORD_BODY_MAX. Who waits for strangers has many readers */
    _Atomic uint64_t n_records; /* read so far: a sign of life for others */
    int64_t deadline_ns;   /* CLOCK_MONOTONIC, of every read: then VMF_ERROR_TIMEOUT. 0: none. For handshakes */
} VmfRecordReader;

VmfRecordReader *vmf_record_reader_new(VmfChannel *channel, VmfStreamFormat format);
void vmf_record_reader_free(VmfRecordReader *reader);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRecordReader, vmf_record_reader_free)

/*
 * Reads the next record: header, checked octets (CRC verified) and, when there is no payload, the padding. Any end of the channel is
 * VMF_ERROR_CUT. With a payload, the caller reads exactly payload_left octets next.
 */
bool vmf_record_read(VmfRecordReader *reader, VmfRecord *record, GError **error);

/* Scatters the next octets of the payload into @iov (which is used up). */
bool vmf_record_read_payload(VmfRecordReader *reader, struct iovec *iov, int n_iov, size_t length, GError **error);

/* Reads past what is left of the payload of a record of @length octets, and its padding: an unknown optional record. */
bool vmf_record_skip_payload(VmfRecordReader *reader, uint32_t length, GError **error);

/* The next record that is known or mandatory, without its payload: for channels that carry no pages. */
bool vmf_record_read_known(VmfRecordReader *reader, VmfRecord *record, GError **error);

void vmf_record_reader_sum_begin(VmfRecordReader *reader);
/* @before_last: without the record that was read last. */
uint64_t vmf_record_reader_sum_end(VmfRecordReader *reader, bool before_last);

/* Error for a type that cannot stand here. */
void vmf_record_set_order_error(GError **error, uint32_t type, const char *where);

void vmf_wire_pages_swap(VmfWirePages *pages);
void vmf_wire_extent_swap(VmfWireExtent *extent);

#endif
