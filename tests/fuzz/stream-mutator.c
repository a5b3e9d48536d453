/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/stream-mutator.h"

#include <glib.h>
#include <string.h>
#include <xxhash.h>

#include "stream/wire.h"
#include "tests/fuzz/fuzz.h"

#define RECORDS_MAX 256
#define HEADERS (VMF_IMAGE_HEADER_SIZE + VMF_MACHINE_HEADER_SIZE)

typedef struct {
    uint8_t *data;
    size_t size, max_size;
    bool swap;
    uint64_t random;
    size_t at[RECORDS_MAX + 1]; /* where records begin; the last entry is where they end */
    unsigned n;
} Stream;

static uint32_t rnd(Stream *stream, uint32_t below)
{
    stream->random = stream->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(stream->random >> 33) % MAX(below, 1);
}

static uint32_t get_u32(const Stream *stream, size_t at)
{
    uint32_t value;

    memcpy(&value, stream->data + at, sizeof(value));
    return stream->swap ? __builtin_bswap32(value) : value;
}

static void put_u32(Stream *stream, size_t at, uint32_t value)
{
    value = stream->swap ? __builtin_bswap32(value) : value;
    memcpy(stream->data + at, &value, sizeof(value));
}

static void put_u64(Stream *stream, size_t at, uint64_t value)
{
    value = stream->swap ? __builtin_bswap64(value) : value;
    memcpy(stream->data + at, &value, sizeof(value));
}

static uint32_t type_of(const Stream *stream, unsigned index)
{
    return get_u32(stream, stream->at[index]);
}

/* Finds the records from @start on; what cannot be one ends them. */
static void walk(Stream *stream, size_t start)
{
    size_t at = start;

    stream->n = 0;
    while (stream->n < RECORDS_MAX && stream->size - at >= VMF_RECORD_HEADER_SIZE) {
        size_t length = VMF_RECORD_HEADER_SIZE + ((size_t)get_u32(stream, at + 4) + 7) / 8 * 8;
        stream->at[stream->n++] = at;
        if (length > stream->size - at || memcmp(stream->data + at, VMF_PREAMBLE_MAGIC, 8) == 0) {
            stream->n--;
            break;
        }
        at += length;
    }
    stream->at[stream->n] = at;
}

/* ---- changes --------------------------------------------------------------------------------------------------------------- */

/* Replaces @n octets at @at. False: there is no room. */
static bool splice(Stream *stream, size_t at, size_t n, const uint8_t *octets, size_t n_octets)
{
    if (stream->size - n + n_octets > stream->max_size)
        return false;
    memmove(stream->data + at + n_octets, stream->data + at + n, stream->size - at - n);
    if (n_octets > 0)
        memcpy(stream->data + at, octets, n_octets);
    stream->size += n_octets - n;
    return true;
}

static void remove_record(Stream *stream, unsigned index)
{
    splice(stream, stream->at[index], stream->at[index + 1] - stream->at[index], NULL, 0);
}

/* Says record @index once more, in front of record @where (or at the end). */
static void copy_record(Stream *stream, unsigned index, unsigned where)
{
    size_t length = stream->at[index + 1] - stream->at[index];
    g_autofree uint8_t *copy = g_memdup2(stream->data + stream->at[index], length);

    splice(stream, stream->at[where], 0, copy, length);
}

static void move_record(Stream *stream, unsigned index, unsigned where)
{
    size_t length = stream->at[index + 1] - stream->at[index];
    g_autofree uint8_t *copy = g_memdup2(stream->data + stream->at[index], length);

    splice(stream, stream->at[index], length, NULL, 0);
    splice(stream, stream->at[where] - (where > index ? length : 0), 0, copy, length);
}

/* The fuzzer's own ideas, inside of one body; the lengths follow. */
static void change_body(Stream *stream, unsigned index)
{
    size_t begin = stream->at[index] + VMF_RECORD_HEADER_SIZE, old = stream->at[index + 1] - begin;
    uint32_t length = get_u32(stream, stream->at[index] + 4);
    bool pages = type_of(stream, index) == VMF_RECORD_PAGES && length >= sizeof(VmfWirePages);
    size_t room = pages ? sizeof(VmfWirePages) : MIN((size_t)length + 64, 4096) + 8;
    g_autofree uint8_t *body = g_malloc0(old + room + 8);

    if (pages) { /* the meta alone: what is in the pages makes no difference */
        if (rnd(stream, 4) > 0)
            put_u32(stream, begin + 4 * rnd(stream, 8), rnd(stream, 3));
        else
            LLVMFuzzerMutate(stream->data + begin, sizeof(VmfWirePages), sizeof(VmfWirePages));
        return;
    }
    memcpy(body, stream->data + begin, old);
    size_t changed = LLVMFuzzerMutate(body, length, room);
    memset(body + changed, 0, -changed & 7);
    if (!splice(stream, begin, old, body, changed + (-changed & 7)))
        return;
    put_u32(stream, stream->at[index] + 4, (uint32_t)changed);
    put_u32(stream, stream->at[index] + 8, (uint32_t)changed);
}

/* One field of a body as what is often treated in another way. */
static void change_field(Stream *stream, unsigned index)
{
    static const uint64_t values[] = {0, 1, 2, 3, 64, 255, 4095, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
                                      UINT64_C(1) << 48, UINT64_MAX >> 1, UINT64_MAX};
    uint32_t length = get_u32(stream, stream->at[index] + 4);
    uint64_t value = values[rnd(stream, G_N_ELEMENTS(values))];

    if (length < 8)
        return;
    size_t at = stream->at[index] + VMF_RECORD_HEADER_SIZE + rnd(stream, MIN(length, 256) / 4) * 4;
    if (at % 8 == stream->at[index] % 8 && rnd(stream, 2) && at + 8 <= stream->at[index + 1])
        put_u64(stream, at, value);
    else
        put_u32(stream, at, (uint32_t)value);
}

static void change_type(Stream *stream, unsigned index)
{
    static const uint32_t types[] = {
#define X(code, number, name) number,
        VMF_RECORDS(X)
#undef X
            0x33,
        0x80000033,
    };
    put_u32(stream, stream->at[index], types[rnd(stream, G_N_ELEMENTS(types))]);
}

static void change(Stream *stream)
{
    unsigned index = rnd(stream, stream->n);

    switch (rnd(stream, 8)) {
    case 0:
        remove_record(stream, index);
        break;
    case 1:
        copy_record(stream, index, rnd(stream, stream->n + 1));
        break;
    case 2:
        move_record(stream, index, rnd(stream, stream->n));
        break;
    case 3:
        change_type(stream, index);
        break;
    case 4:
    case 5:
        change_field(stream, index);
        break;
    default:
        change_body(stream, index);
        break;
    }
}

/* ---- what a fuzzer cannot guess -------------------------------------------------------------------------------------------- */

static bool ends_static_data(uint32_t type)
{
    return type == VMF_RECORD_PREFLIGHT || type == VMF_RECORD_PAGE_CHANNELS || type == VMF_RECORD_PAGES ||
           type == VMF_RECORD_SECTION || type == VMF_RECORD_SWITCHOVER || type == VMF_RECORD_END;
}

static size_t end_of_static(const Stream *stream)
{
    for (unsigned i = 0; i < stream->n; i++) {
        if (type_of(stream, i) == VMF_RECORD_STATIC_DATA_END)
            return stream->at[i + 1];
        if (ends_static_data(type_of(stream, i)))
            return stream->at[i];
    }
    return stream->at[stream->n];
}

/* Makes the sums in SWITCHOVER, and sequences and END_MARK's count, true again. */
static void mend(Stream *stream)
{
    XXH3_state_t *device_sum = XXH3_createState();
    uint64_t sequence = 0;

    XXH3_64bits_reset(device_sum);
    for (unsigned i = 0; i < stream->n; i++) {
        size_t body = stream->at[i] + VMF_RECORD_HEADER_SIZE;
        uint32_t type = type_of(stream, i), length = get_u32(stream, stream->at[i] + 4);
        if (type == VMF_RECORD_SECTION)
            XXH3_64bits_update(device_sum, stream->data + body, length);
        if (type == VMF_RECORD_PAGES && length >= sizeof(VmfWirePages))
            put_u64(stream, body + offsetof(VmfWirePages, sequence), sequence++);
        if (type == VMF_RECORD_END_MARK && length == 8)
            put_u64(stream, body, sequence);
        if (type == VMF_RECORD_SWITCHOVER && length >= 40) {
            put_u64(stream, body + 24, XXH3_64bits(stream->data, end_of_static(stream)));
            put_u64(stream, body + 32, XXH3_64bits_digest(device_sum));
        }
    }
    XXH3_freeState(device_sum);
}

static size_t mutate(Stream *stream, size_t start, bool whole)
{
    if (stream->size <= start || rnd(stream, 5) == 0)
        return LLVMFuzzerMutate(stream->data, stream->size, stream->max_size);
    for (unsigned turns = 1 + rnd(stream, 3); turns > 0; turns--) {
        walk(stream, start);
        if (stream->n == 0)
            return LLVMFuzzerMutate(stream->data, stream->size, stream->max_size);
        change(stream);
    }
    walk(stream, start);
    if (whole && rnd(stream, 4) > 0)
        mend(stream);
    return stream->size;
}

size_t vmf_fuzz_mutate_stream(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    bool big = size > 17 && data[17] & VMF_OPTION_BIG_ENDIAN;
    Stream stream = {.data = data, .size = size, .max_size = max_size, .random = seed};

    stream.swap = big != (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
    return mutate(&stream, HEADERS, true);
}

size_t vmf_fuzz_mutate_records(uint8_t *data, size_t size, size_t max_size, unsigned seed, size_t start, bool swap)
{
    Stream stream = {.data = data, .size = size, .max_size = max_size, .swap = swap, .random = seed};

    return mutate(&stream, start, false);
}
