/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/record.h"

#include <vmferry/error.h>

#include "stream/crc32c.h"
#include "stream/trace.h"

#define QUEUE_MAX (64u << 10)
#define SMALL_PAYLOAD (16u << 10) /* up to this a copy costs less than a system call, and wakes the reader less often */
#define PADDING(length) (-(length) & 7u)
#define IOV_LOCAL (VMF_PAGES_DATA_MAX + 2)

const char *vmf_record_name(uint32_t type)
{
    switch (type) {
#define X(code, number, name)                                                                                                   \
    case number:                                                                                                                \
        return name;
        VMF_RECORDS(X)
#undef X
    }
    return NULL;
}

void vmf_record_set_order_error(GError **error, uint32_t type, const char *where)
{
    const char *name = vmf_record_name(type);

    if (name)
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER, "record %s: may not stand %s", name, where);
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_UNKNOWN, "record 0x%x: mandatory and unknown", type);
}

void vmf_wire_pages_swap(VmfWirePages *pages)
{
    pages->block = __builtin_bswap32(pages->block);
    pages->flags = __builtin_bswap32(pages->flags);
    pages->sequence = __builtin_bswap64(pages->sequence);
    pages->chunk = __builtin_bswap64(pages->chunk);
    pages->epoch = __builtin_bswap32(pages->epoch);
    pages->n_data = __builtin_bswap32(pages->n_data);
    for (unsigned i = 0; i < VMF_WIRE_CHUNK_WORDS; i++) {
        pages->data[i] = __builtin_bswap64(pages->data[i]);
        pages->zero[i] = __builtin_bswap64(pages->zero[i]);
    }
}

void vmf_wire_extent_swap(VmfWireExtent *extent)
{
    extent->disk = __builtin_bswap32(extent->disk);
    extent->flags = __builtin_bswap32(extent->flags);
    extent->offset = __builtin_bswap64(extent->offset);
    extent->length = __builtin_bswap64(extent->length);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

VmfRecordWriter *vmf_record_writer_new(VmfChannel *channel, VmfStreamFormat format)
{
    VmfRecordWriter *writer = g_new0(VmfRecordWriter, 1);

    writer->channel = channel;
    writer->format = format;
    writer->pending = g_byte_array_sized_new(QUEUE_MAX);
    pthread_mutex_init(&writer->lock, NULL);
    return writer;
}

void vmf_record_writer_free(VmfRecordWriter *writer)
{
    if (!writer)
        return;
    g_byte_array_unref(writer->pending);
    XXH3_freeState(writer->sum);
    pthread_mutex_destroy(&writer->lock);
    g_free(writer);
}

static VmfWireRecordHeader make_header(const VmfStreamFormat *format, uint32_t type, const void *checked, uint32_t n_checked,
                                       uint32_t length)
{
    VmfWireRecordHeader header = {.type = type, .length = length, .checked = n_checked};

    if (format->swap) {
        header.type = __builtin_bswap32(type);
        header.length = __builtin_bswap32(length);
        header.checked = __builtin_bswap32(n_checked);
    }
    uint32_t crc = vmf_crc32c(0, &header, offsetof(VmfWireRecordHeader, crc32c));
    crc = vmf_crc32c(crc, checked, n_checked);
    header.crc32c = format->swap ? __builtin_bswap32(crc) : crc;
    return header;
}

static bool flush_locked(VmfRecordWriter *writer, GError **error)
{
    if (writer->pending->len == 0)
        return true;
    struct iovec iov = {writer->pending->data, writer->pending->len};
    bool done = vmf_channel_writev_all(writer->channel, &iov, 1, error);
    g_byte_array_set_size(writer->pending, 0);
    return done;
}

static void append_locked(VmfRecordWriter *writer, const void *data, size_t length)
{
    if (length == 0)
        return;
    if (writer->sum)
        XXH3_64bits_update(writer->sum, data, length);
    g_byte_array_append(writer->pending, data, (guint)length);
}

static void append_record_locked(VmfRecordWriter *writer, uint32_t type, const void *body, size_t length)
{
    static const uint8_t zeros[8];
    VmfWireRecordHeader header = make_header(&writer->format, type, body, (uint32_t)length, (uint32_t)length);

    g_assert(length <= VMF_RECORD_BODY_MAX);
    append_locked(writer, &header, sizeof(header));
    append_locked(writer, body, length);
    append_locked(writer, zeros, PADDING(length));
    VMF_TRACE(record_written, writer, type, length);
}

bool vmf_record_write_raw(VmfRecordWriter *writer, const void *data, size_t length, GError **error)
{
    pthread_mutex_lock(&writer->lock);
    append_locked(writer, data, length);
    bool done = flush_locked(writer, error);
    pthread_mutex_unlock(&writer->lock);
    return done;
}

bool vmf_record_queue(VmfRecordWriter *writer, uint32_t type, const void *body, size_t length, GError **error)
{
    pthread_mutex_lock(&writer->lock);
    append_record_locked(writer, type, body, length);
    bool done = writer->pending->len < QUEUE_MAX || flush_locked(writer, error);
    pthread_mutex_unlock(&writer->lock);
    return done;
}

bool vmf_record_write(VmfRecordWriter *writer, uint32_t type, const void *body, size_t length, GError **error)
{
    pthread_mutex_lock(&writer->lock);
    append_record_locked(writer, type, body, length);
    bool done = flush_locked(writer, error);
    pthread_mutex_unlock(&writer->lock);
    return done;
}

bool vmf_record_flush(VmfRecordWriter *writer, GError **error)
{
    pthread_mutex_lock(&writer->lock);
    bool done = flush_locked(writer, error);
    pthread_mutex_unlock(&writer->lock);
    return done;
}

static bool queue_payload_locked(VmfRecordWriter *writer, const struct iovec *iov, int n_iov, GError **error)
{
    for (int i = 0; i < n_iov; i++)
        g_byte_array_append(writer->pending, iov[i].iov_base, (guint)iov[i].iov_len);
    return writer->pending->len < QUEUE_MAX || flush_locked(writer, error);
}

/* One gather write, with all that is queued in front. */
static bool write_payload_locked(VmfRecordWriter *writer, const struct iovec *iov, int n_iov, GError **error)
{
    struct iovec all[IOV_LOCAL];

    all[0] = (struct iovec){writer->pending->data, writer->pending->len};
    memcpy(all + 1, iov, (size_t)n_iov * sizeof(*iov));
    bool done = vmf_channel_writev_all(writer->channel, all, n_iov + 1, error);
    g_byte_array_set_size(writer->pending, 0);
    return done;
}

/* @wire: the checked part of the body, in the stream's order. */
static bool write_with_payload(VmfRecordWriter *writer, uint32_t type, const void *wire, size_t length, const struct iovec *iov, int n_iov,
                               size_t payload, GError **error)
{
    VmfWireRecordHeader header = make_header(&writer->format, type, wire, (uint32_t)length, (uint32_t)(length + payload));

    g_assert(n_iov < IOV_LOCAL && payload % 8 == 0);
    pthread_mutex_lock(&writer->lock);
    append_locked(writer, &header, sizeof(header));
    append_locked(writer, wire, length);
    bool done = payload <= SMALL_PAYLOAD ? queue_payload_locked(writer, iov, n_iov, error)
                                         : write_payload_locked(writer, iov, n_iov, error);
    VMF_TRACE(record_written, writer, type, length + payload);
    pthread_mutex_unlock(&writer->lock);
    return done;
}

bool vmf_record_write_pages(VmfRecordWriter *writer, const VmfWirePages *meta, const struct iovec *iov, int n_iov, size_t payload,
                            GError **error)
{
    VmfWirePages wire = *meta;

    if (writer->format.swap)
        vmf_wire_pages_swap(&wire);
    return write_with_payload(writer, VMF_RECORD_PAGES, &wire, sizeof(wire), iov, n_iov, payload, error);
}

bool vmf_record_write_extent(VmfRecordWriter *writer, const VmfWireExtent *meta, const void *data, size_t payload, GError **error)
{
    struct iovec iov = {(void *)data, payload};
    VmfWireExtent wire = *meta;

    if (writer->format.swap)
        vmf_wire_extent_swap(&wire);
    return write_with_payload(writer, VMF_RECORD_EXTENT, &wire, sizeof(wire), &iov, payload > 0, payload, error);
}

void vmf_record_writer_sum_begin(VmfRecordWriter *writer)
{
    writer->sum = XXH3_createState();
    XXH3_64bits_reset(writer->sum);
}

uint64_t vmf_record_writer_sum_end(VmfRecordWriter *writer)
{
    uint64_t sum = XXH3_64bits_digest(writer->sum);

    XXH3_freeState(writer->sum);
    writer->sum = NULL;
    return sum;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

VmfRecordReader *vmf_record_reader_new(VmfChannel *channel, VmfStreamFormat format)
{
    VmfRecordReader *reader = g_new0(VmfRecordReader, 1);

    reader->channel = channel;
    reader->format = format;
    return reader;
}

void vmf_record_reader_free(VmfRecordReader *reader)
{
    if (!reader)
        return;
    g_free(reader->buffer);
    XXH3_freeState(reader->sum);
    g_free(reader);
}

static bool read_bytes(VmfRecordReader *reader, void *data, size_t length, GError **error)
{
    if (length == 0)
        return true;
    if (reader->deadline_ns ? !vmf_channel_read_all_deadline(reader->channel, data, length, reader->deadline_ns, error)
                            : !vmf_channel_read_all(reader->channel, data, length, error))
        return false;
    if (reader->sum)
        XXH3_64bits_update(reader->sum, data, length);
    return true;
}

static bool reserve(VmfRecordReader *reader, size_t length, GError **error)
{
    if (reader->buffer_size >= length)
        return true;
    /* Grown as records ask for it, up to the bound that read_header checked. */
    size_t size = MAX(length, 4096);
    uint8_t *buffer = g_try_realloc(reader->buffer, size);
    if (!buffer) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "record: no memory for %zu octets", length);
        return false;
    }
    reader->buffer = buffer;
    reader->buffer_size = size;
    return true;
}

static bool read_header(VmfRecordReader *reader, VmfWireRecordHeader *raw, VmfWireRecordHeader *header, GError **error)
{
    if (!read_bytes(reader, raw, sizeof(*raw), error))
        return false;
    *header = *raw;
    if (reader->format.swap) {
        header->type = __builtin_bswap32(raw->type);
        header->length = __builtin_bswap32(raw->length);
        header->checked = __builtin_bswap32(raw->checked);
        header->crc32c = __builtin_bswap32(raw->crc32c);
    }
    if (header->length > VMF_RECORD_BODY_MAX || header->checked > header->length) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_LENGTH, "record 0x%x: length %u, checked %u: the bound is %u",
                    header->type, header->length, header->checked, VMF_RECORD_BODY_MAX);
        return false;
    }
    return true;
}

static bool check_shape(const VmfWireRecordHeader *header, GError **error)
{
    bool has_payload = header->type == VMF_RECORD_PAGES || header->type == VMF_RECORD_EXTENT;
    size_t checked = header->type == VMF_RECORD_PAGES ? sizeof(VmfWirePages) : sizeof(VmfWireExtent);

    if (has_payload ? header->checked == checked : header->checked == header->length || !vmf_record_name(header->type))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_LENGTH, "record 0x%x: %u of %u octets are checked", header->type,
                header->checked, header->length);
    return false;
}

static bool is_beyond_memory(const VmfRecordReader *reader, const VmfWireRecordHeader *header)
{
    return reader->memory_max > 0 && header->checked > reader->memory_max;
}

/* Reads the checked octets and goes on with their CRC. */
static bool read_checked(VmfRecordReader *reader, const VmfWireRecordHeader *header, uint32_t *crc, GError **error)
{
    if (!reserve(reader, header->checked, error) || !read_bytes(reader, reader->buffer, header->checked, error))
        return false;
    *crc = vmf_crc32c(*crc, reader->buffer, header->checked);
    return true;
}

/* The same without keeping them: of a record that will be passed over. */
static bool read_checked_in_pieces(VmfRecordReader *reader, const VmfWireRecordHeader *header, uint32_t *crc, GError **error)
{
    uint8_t piece[4096];

    if (vmf_record_name(header->type) || !(header->type & VMF_RECORD_OPTIONAL)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record 0x%x: %u octets: too long here", header->type, header->checked);
        return false;
    }
    for (uint32_t left = header->checked; left > 0; left -= MIN(left, sizeof(piece))) {
        if (!read_bytes(reader, piece, MIN(left, sizeof(piece)), error))
            return false;
        *crc = vmf_crc32c(*crc, piece, MIN(left, sizeof(piece)));
    }
    return true;
}

static bool read_padding(VmfRecordReader *reader, uint32_t length, GError **error)
{
    uint64_t padding = 0;

    if (!read_bytes(reader, &padding, PADDING(length), error))
        return false;
    if (padding != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record: padding is not zero");
        return false;
    }
    return true;
}

bool vmf_record_read(VmfRecordReader *reader, VmfRecord *record, GError **error)
{
    VmfWireRecordHeader raw, header;

    if (reader->payload_left > 0) { /* it could not be read or skipped: where the next record would begin is not known */
        g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "record: the last one was not read to its end");
        return false;
    }
    if (reader->sum)
        reader->sum_before = XXH3_64bits_digest(reader->sum);
    if (!read_header(reader, &raw, &header, error))
        return false;
    uint32_t crc = vmf_crc32c(0, &raw, offsetof(VmfWireRecordHeader, crc32c));
    bool pieces = is_beyond_memory(reader, &header);
    if (pieces ? !read_checked_in_pieces(reader, &header, &crc, error) : !read_checked(reader, &header, &crc, error))
        return false;
    if (!vmf_crc32c_matches(crc, header.crc32c)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_CRC, "record 0x%x: CRC is wrong", header.type);
        return false;
    }
    if (!check_shape(&header, error))
        return false;
    VMF_TRACE(record_read, reader, header.type, header.length);
    *record = (VmfRecord){
        .type = header.type, .length = header.length, .body = pieces ? NULL : reader->buffer, .checked = header.checked};
    atomic_fetch_add_explicit(&reader->n_records, 1, memory_order_relaxed);
    reader->payload_left = header.length - header.checked;
    return reader->payload_left > 0 || read_padding(reader, header.length, error);
}

bool vmf_record_read_payload(VmfRecordReader *reader, struct iovec *iov, int n_iov, size_t length, GError **error)
{
    g_assert(length <= reader->payload_left);
    if (!vmf_channel_readv_all(reader->channel, iov, n_iov, error))
        return false;
    reader->payload_left -= (uint32_t)length;
    return true;
}

bool vmf_record_skip_payload(VmfRecordReader *reader, uint32_t length, GError **error)
{
    uint8_t scratch[4096];

    while (reader->payload_left > 0) {
        uint32_t n = MIN(reader->payload_left, sizeof(scratch));
        if (!read_bytes(reader, scratch, n, error))
            return false;
        reader->payload_left -= n;
    }
    return read_padding(reader, length, error);
}

bool vmf_record_read_known(VmfRecordReader *reader, VmfRecord *record, GError **error)
{
    do {
        if (!vmf_record_read(reader, record, error))
            return false;
        if (reader->payload_left > 0 && !vmf_record_skip_payload(reader, record->length, error))
            return false;
    } while (!vmf_record_name(record->type) && record->type & VMF_RECORD_OPTIONAL);
    return true;
}

void vmf_record_reader_sum_begin(VmfRecordReader *reader)
{
    reader->sum = XXH3_createState();
    XXH3_64bits_reset(reader->sum);
}

uint64_t vmf_record_reader_sum_end(VmfRecordReader *reader, bool before_last)
{
    uint64_t sum = before_last ? reader->sum_before : XXH3_64bits_digest(reader->sum);

    XXH3_freeState(reader->sum);
    reader->sum = NULL;
    return sum;
}
