/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Framing: what is written is read, in both byte orders; nothing else is, and nothing that a peer writes is read beyond its
 * end. */
#include "stream/test-link.h"

#include "stream/clock.h"
#include "stream/crc32c.h"

#define UNKNOWN 0x77u
#define UNKNOWN_OPTIONAL (UNKNOWN | VMF_RECORD_OPTIONAL)

static const bool orders[] = {false, true};

static uint8_t *pattern(size_t length)
{
    uint8_t *bytes = g_malloc(length + 1);

    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(i * 31 + 7);
    return bytes;
}

/* A record as the format has it, written here by hand: whatever the writer would refuse. */
typedef struct {
    uint32_t type, length, checked;
} Head;

static GByteArray *forge(Head head, const void *body, size_t n_body, bool swap)
{
    uint32_t words[4] = {head.type, head.length, head.checked, 0};
    GByteArray *bytes = g_byte_array_new();

    for (unsigned i = 0; i < 3; i++)
        words[i] = swap ? __builtin_bswap32(words[i]) : words[i];
    uint32_t crc = vmf_crc32c(vmf_crc32c(0, words, 12), body, MIN(head.checked, n_body));
    words[3] = swap ? __builtin_bswap32(crc) : crc;
    g_byte_array_append(bytes, (const uint8_t *)words, sizeof(words));
    g_byte_array_append(bytes, body, (guint)n_body);
    return bytes;
}

static void expect_failure(const uint8_t *octets, size_t length, bool swap, VmfErrorCode code)
{
    Link link = link_with(octets, length, swap);
    g_autoptr(GError) error = NULL;
    VmfRecord record;

    assert_false(vmf_record_read(link.reader, &record, &error));
    assert_error(error, code);
    link_free(&link);
}

static void expect_forged_failure(Head head, size_t n_body, VmfErrorCode code)
{
    g_autofree uint8_t *body = pattern(n_body);

    for (unsigned o = 0; o < 2; o++) {
        g_autoptr(GByteArray) octets = forge(head, body, n_body, orders[o]);
        expect_failure(octets->data, octets->len, orders[o], code);
    }
}

/* ---- tests -----------------------------------------------------------------------------------------------------------------
 */

static void test_octets(void **state)
{
    static const uint8_t little[] = {0x2d, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0}, big[] = {0, 0, 0, 0x2d, 0, 0, 0, 3, 0, 0, 0, 3};

    for (unsigned o = 0; o < 2; o++) {
        Link link = link_new(orders[o]);
        bool is_big = orders[o] != (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
        assert_true(vmf_record_write(link.writer, VMF_RECORD_PING, "abc", 3, NULL));
        g_autoptr(GByteArray) octets = link_take(&link);
        assert_int_equal(octets->len, 24);
        assert_memory_equal(octets->data, is_big ? big : little, 12);
        assert_memory_equal(octets->data + 16, "abc\0\0\0\0\0", 8);
        link_free(&link);
    }
}

static void round_trip(size_t length, bool swap)
{
    Link link = link_new(swap);
    g_autofree uint8_t *body = pattern(length);
    VmfRecord record;

    assert_true(vmf_record_write(link.writer, VMF_RECORD_SECTION, body, length, NULL));
    assert_true(vmf_record_write(link.writer, VMF_RECORD_END, NULL, 0, NULL));
    assert_true(vmf_record_read(link.reader, &record, NULL));
    assert_int_equal(record.type, VMF_RECORD_SECTION);
    assert_int_equal(record.length, length);
    assert_int_equal(record.checked, length);
    if (length > 0)
        assert_memory_equal(record.body, body, length);
    assert_true(vmf_record_read(link.reader, &record, NULL));
    assert_int_equal(record.type, VMF_RECORD_END);
    assert_int_equal(record.length, 0);
    link_free(&link);
}

static void test_round_trip(void **state)
{
    for (unsigned o = 0; o < 2; o++) {
        for (size_t length = 0; length < 40; length++)
            round_trip(length, orders[o]);
        round_trip(VMF_RECORD_BODY_MAX - 1, orders[o]);
        round_trip(VMF_RECORD_BODY_MAX, orders[o]);
    }
}

static void test_bounds(void **state)
{
    expect_forged_failure((Head){UNKNOWN, VMF_RECORD_BODY_MAX + 1, 0}, 64, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){UNKNOWN, UINT32_MAX, UINT32_MAX}, 64, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){UNKNOWN, UINT32_MAX - 7, 0}, 64, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){UNKNOWN_OPTIONAL, 8, 9}, 8, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){UNKNOWN_OPTIONAL, 8, UINT32_MAX}, 8, VMF_ERROR_RECORD_LENGTH);
    /* A known type is covered whole, PAGES up to its payload. */
    expect_forged_failure((Head){VMF_RECORD_SECTION, 24, 16}, 24, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){VMF_RECORD_HINT, 24, 0}, 24, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){VMF_RECORD_PAGES, 4256, 4256}, 4256, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){VMF_RECORD_PAGES, 152, 152}, 152, VMF_ERROR_RECORD_LENGTH);
    expect_forged_failure((Head){VMF_RECORD_PAGES, 0, 0}, 0, VMF_ERROR_RECORD_LENGTH);
}

static GByteArray *one_record(size_t length, bool swap)
{
    Link link = link_new(swap);
    g_autofree uint8_t *body = pattern(length);

    assert_true(vmf_record_write(link.writer, VMF_RECORD_SECTION, body, length, NULL));
    GByteArray *octets = link_take(&link);
    link_free(&link);
    return octets;
}

static void test_every_truncation(void **state)
{
    for (unsigned o = 0; o < 2; o++) {
        g_autoptr(GByteArray) octets = one_record(61, orders[o]);
        for (guint length = 0; length < octets->len; length++)
            expect_failure(octets->data, length, orders[o], VMF_ERROR_CUT);
    }
}

/* A changed length makes the reader take other octets for the body, or run into the end: any clear error will do there. */
static void test_every_bit(void **state)
{
    g_autoptr(GByteArray) octets = one_record(61, false);

    for (guint at = 0; at < octets->len; at++)
        for (unsigned bit = 0; bit < 8; bit++) {
            VmfRecord record;
            g_autoptr(GError) error = NULL;
            octets->data[at] ^= 1u << bit;
            Link link = link_with(octets->data, octets->len, false);
            assert_false(vmf_record_read(link.reader, &record, &error));
            assert_non_null(error);
            if (at < 4 || (at >= 12 && at < 16 + 61))
                assert_error(error, VMF_ERROR_CRC);
            else if (at >= 16 + 61)
                assert_error(error, VMF_ERROR_RECORD_BODY);
            link_free(&link);
            octets->data[at] ^= 1u << bit;
        }
}

static void test_unknown_is_passed_over(void **state)
{
    for (unsigned o = 0; o < 2; o++)
        for (uint32_t checked = 0; checked <= 10000; checked += 2500) {
            g_autofree uint8_t *body = pattern(10000);
            g_autoptr(GByteArray) octets = forge((Head){UNKNOWN_OPTIONAL, 10000, checked}, body, 10000, orders[o]);
            g_autoptr(GByteArray) next = one_record(5, orders[o]);
            VmfRecord record;
            g_byte_array_append(octets, next->data, next->len);
            Link link = link_with(octets->data, octets->len, orders[o]);
            assert_true(vmf_record_read(link.reader, &record, NULL));
            assert_int_equal(record.type, UNKNOWN_OPTIONAL);
            assert_int_equal(record.checked, checked);
            assert_int_equal(link.reader->payload_left, 10000 - checked);
            if (link.reader->payload_left > 0)
                assert_true(vmf_record_skip_payload(link.reader, record.length, NULL));
            assert_true(vmf_record_read(link.reader, &record, NULL));
            assert_int_equal(record.type, VMF_RECORD_SECTION);
            link_free(&link);
        }
}

/* Beyond the memory that a reader may use nothing is kept: optional records are checked all the same, known ones refused. */
static void test_memory_is_bounded(void **state)
{
    g_autofree uint8_t *body = pattern(100000);
    g_autoptr(GByteArray) octets = forge((Head){UNKNOWN_OPTIONAL, 100000, 99999}, body, 100000, false);
    g_autoptr(GByteArray) known = forge((Head){VMF_RECORD_SECTION, 5000, 5000}, body, 5000, false);
    g_autoptr(GError) error = NULL;
    VmfRecord record;

    for (unsigned damaged = 0; damaged < 2; damaged++) {
        octets->data[90000] ^= damaged;
        Link link = link_with(octets->data, octets->len, false);
        link.reader->memory_max = 4999;
        assert_int_equal(vmf_record_read(link.reader, &record, &error), !damaged);
        assert_int_equal(link.reader->buffer_size, 0);
        if (!damaged) {
            assert_null(record.body);
            assert_int_equal(record.checked, 99999);
            assert_true(vmf_record_skip_payload(link.reader, record.length, NULL));
            assert_int_equal(link.reader->n_records, 1);
        }
        link_free(&link);
    }
    assert_error(error, VMF_ERROR_CRC);
    for (uint32_t memory = 4999; memory <= 5000; memory++) {
        Link link = link_with(known->data, known->len, false);
        link.reader->memory_max = memory;
        g_clear_error(&error);
        assert_int_equal(vmf_record_read(link.reader, &record, &error), memory == 5000);
        if (memory < 5000)
            assert_error(error, VMF_ERROR_RECORD_BODY);
        link_free(&link);
    }
}

static void test_unknown_that_is_cut(void **state)
{
    g_autofree uint8_t *body = pattern(5001);
    g_autoptr(GByteArray) octets = forge((Head){UNKNOWN_OPTIONAL, 5001, 1}, body, 5001, false);
    g_autoptr(GError) error = NULL;
    VmfRecord record;

    for (guint length = 17; length < octets->len; length += 499) {
        Link link = link_with(octets->data, length, false);
        assert_true(vmf_record_read(link.reader, &record, NULL));
        assert_false(vmf_record_skip_payload(link.reader, record.length, &error));
        assert_error(error, VMF_ERROR_CUT);
        /* Who asks for one more all the same, to find out why, is told so. */
        assert_false(vmf_record_read(link.reader, &record, NULL));
        link_free(&link);
    }
    /* Whole, but with padding that is not zero. */
    g_byte_array_append(octets, (const uint8_t *)"\0\0\0\0\0\0\1", 7);
    Link link = link_with(octets->data, octets->len, false);
    assert_true(vmf_record_read(link.reader, &record, NULL));
    assert_false(vmf_record_skip_payload(link.reader, record.length, &error));
    assert_error(error, VMF_ERROR_RECORD_BODY);
    link_free(&link);
}

#define PAGE 4096u

static void pages_round_trip(bool swap, size_t unit)
{
    Link link = link_new(swap);
    VmfWirePages meta = {.block = 3, .flags = 1, .sequence = UINT64_C(0x0102030405060708), .chunk = 9, .epoch = 1};
    g_autofree uint8_t *from = pattern(3 * unit), *to = g_malloc0(5 * unit);
    struct iovec out[2] = {{from, 2 * unit}, {from + 2 * unit, unit}}, in[2] = {{to, 2 * unit}, {to + 4 * unit, unit}};
    VmfRecord record;
    VmfWirePages got;

    meta.n_data = (uint32_t)(3 * unit / PAGE);
    meta.data[0] = 0x13;
    meta.zero[7] = UINT64_C(1) << 63;
    assert_true(vmf_record_queue(link.writer, VMF_RECORD_HINT, "before", 6, NULL));
    assert_true(vmf_record_write_pages(link.writer, &meta, out, 2, 3 * unit, NULL));
    assert_true(vmf_record_write(link.writer, VMF_RECORD_END_MARK, "after", 5, NULL));

    assert_true(vmf_record_read(link.reader, &record, NULL) && record.type == (uint32_t)VMF_RECORD_HINT);
    assert_true(vmf_record_read(link.reader, &record, NULL) && record.type == VMF_RECORD_PAGES);
    assert_int_equal(record.checked, sizeof(meta));
    assert_int_equal(record.length, sizeof(meta) + 3 * unit);
    memcpy(&got, record.body, sizeof(got));
    if (swap)
        vmf_wire_pages_swap(&got);
    assert_memory_equal(&got, &meta, sizeof(meta));
    assert_true(vmf_record_read_payload(link.reader, in, 2, 3 * unit, NULL));
    assert_memory_equal(to, from, 2 * unit);
    assert_memory_equal(to + 4 * unit, from + 2 * unit, unit);
    assert_true(vmf_record_read(link.reader, &record, NULL) && record.type == VMF_RECORD_END_MARK);
    link_free(&link);
}

static void test_pages(void **state)
{
    for (size_t pages = 1; pages <= 4; pages += 3) { /* a payload that is copied, one that is not */
        pages_round_trip(false, pages * PAGE);
        pages_round_trip(true, pages * PAGE);
    }
}

/* A record of zero pages has no payload: it may wait in the queue, and is read whole. */
static void test_pages_without_payload(void **state)
{
    VmfWirePages meta = {.zero = {1}};
    Link link = link_new(false);
    VmfRecord record;

    assert_true(vmf_record_write_pages(link.writer, &meta, NULL, 0, 0, NULL));
    assert_int_equal(vmf_channel_wait_readable(link.far, 0, NULL), 0);
    assert_true(vmf_record_flush(link.writer, NULL));
    assert_true(vmf_record_read(link.reader, &record, NULL));
    assert_int_equal(link.reader->payload_left, 0);
    assert_memory_equal(record.body, &meta, sizeof(meta));
    link_free(&link);
}

static void test_the_queue_is_bounded(void **state)
{
    g_autofree uint8_t *body = pattern(1000);
    Link link = link_new(false);
    VmfRecord record;
    unsigned n = 0;

    while (vmf_channel_wait_readable(link.far, 0, NULL) == 0) {
        assert_true(vmf_record_queue(link.writer, VMF_RECORD_ROUND, body, 1000, NULL));
        n++;
    }
    assert_in_range(n, 62, 66);
    for (unsigned i = 0; i < n; i++)
        assert_true(vmf_record_read(link.reader, &record, NULL));
    assert_int_equal(vmf_channel_wait_readable(link.far, 0, NULL), 0);
    link_free(&link);
}

/* A peer that sends an octet now and then does not keep a handshake waiting. */
static void test_deadline(void **state)
{
    g_autoptr(GByteArray) octets = one_record(5, false);
    g_autoptr(GError) error = NULL;
    Link link = link_new(false);
    VmfRecord record;

    link.reader->deadline_ns = vmf_now_ns() + 20 * VMF_NS_PER_MS;
    assert_true(vmf_channel_write_all(link.near, octets->data, octets->len - 1, NULL));
    assert_false(vmf_record_read(link.reader, &record, &error));
    assert_error(error, VMF_ERROR_TIMEOUT);
    link_free(&link);
}

static void test_sums(void **state)
{
    Link link = link_new(false);
    VmfRecord record;

    vmf_record_writer_sum_begin(link.writer);
    vmf_record_reader_sum_begin(link.reader);
    for (unsigned i = 0; i < 3; i++)
        assert_true(vmf_record_queue(link.writer, VMF_RECORD_ROUND, "some text", i * 3, NULL));
    uint64_t sum = vmf_record_writer_sum_end(link.writer);
    assert_true(vmf_record_write(link.writer, VMF_RECORD_ROUND, "not in it", 9, NULL));
    for (unsigned i = 0; i < 4; i++)
        assert_true(vmf_record_read(link.reader, &record, NULL));
    assert_true(vmf_record_reader_sum_end(link.reader, true) == sum);
    link_free(&link);
}

static void test_unpack_never_reads_beyond(void **state)
{
    g_autofree uint8_t *seven = g_memdup2("\1\2\3\4\5\6\7", 7);
    VmfUnpack unpack = vmf_unpack_begin(seven, 7, false);

    assert_int_equal(vmf_unpack_u64(&unpack), 0);
    assert_true(unpack.failed);
    assert_int_equal(vmf_unpack_u8(&unpack), 0); /* and stays so */
    assert_false(vmf_unpack_done(&unpack));

    unpack = vmf_unpack_begin(seven, 7, true);
    assert_int_equal(vmf_unpack_u16(&unpack), __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 0x0201 : 0x0102);
    assert_int_equal(vmf_unpack_u32(&unpack), __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 0x06050403 : 0x03040506);
    assert_false(vmf_unpack_done(&unpack));
    assert_int_equal(vmf_unpack_u8(&unpack), 7);
    assert_true(vmf_unpack_done(&unpack));
    assert_null(vmf_unpack_string(&unpack, SIZE_MAX));
}

static void test_strings(void **state)
{
    static const struct {
        const char *text;
        bool good;
    } rows[] = {
        {"plain", true}, {"", true},       {"gr\xc3\xbc\xc3\x9f", true}, {"line\n", false}, {"\x7f", false}, {"\xc3", false},
        {"\xff", false}, {"tab\t", false}, {"\xed\xa0\x80", false},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        VmfUnpack unpack = vmf_unpack_begin(rows[i].text, strlen(rows[i].text), false);
        g_autofree char *got = vmf_unpack_string(&unpack, strlen(rows[i].text));
        assert_true((got != NULL) == rows[i].good);
        assert_true(vmf_unpack_done(&unpack) == rows[i].good);
        if (got)
            assert_string_equal(got, rows[i].text);
    }
    VmfUnpack nul = vmf_unpack_begin("a\0b", 3, false);
    assert_null(vmf_unpack_string(&nul, 3));
}

static void test_names(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_string_equal(vmf_record_name(VMF_RECORD_PAGES), "PAGES");
    assert_string_equal(vmf_record_name(0x80000005u), "HOST");
    assert_null(vmf_record_name(5)); /* the bit is part of the number */
    assert_null(vmf_record_name(VMF_RECORD_PAGES | VMF_RECORD_OPTIONAL));
    vmf_record_set_order_error(&error, VMF_RECORD_ACK, "here");
    assert_error(error, VMF_ERROR_RECORD_ORDER);
    vmf_record_set_order_error(&error, UNKNOWN, "here");
    assert_error(error, VMF_ERROR_RECORD_UNKNOWN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_octets),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_every_bit),
        cmocka_unit_test(test_unknown_is_passed_over),
        cmocka_unit_test(test_memory_is_bounded),
        cmocka_unit_test(test_unknown_that_is_cut),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_pages_without_payload),
        cmocka_unit_test(test_the_queue_is_bounded),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_unpack_never_reads_beyond),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
