/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What stands ahead of the records. Headers are read from memory of exactly their size. */
#include "stream/header.h"

#include "stream/crc32c.h"
#include "stream/test-link.h"

static void seal(uint8_t *header, size_t size, bool big)
{
    uint32_t crc = vmf_crc32c(0, header, size - 4);

    crc = big ? GUINT32_TO_BE(crc) : crc;
    memcpy(header + size - 4, &crc, 4);
}

static bool decode_image(const uint8_t *in, VmfStreamFormat *format, GError **error)
{
    g_autofree uint8_t *copy = g_memdup2(in, VMF_IMAGE_HEADER_SIZE);

    return vmf_image_header_decode(copy, format, error);
}

static bool decode_machine(const uint8_t *in, bool swap, VmfMachineHeader *header, GError **error)
{
    g_autofree uint8_t *copy = g_memdup2(in, VMF_MACHINE_HEADER_SIZE);

    return vmf_machine_header_decode(copy, swap, header, error);
}

static bool decode_preamble(const uint8_t *in, VmfPreamble *preamble, VmfStreamFormat *format, GError **error)
{
    g_autofree uint8_t *copy = g_memdup2(in, VMF_PREAMBLE_SIZE);

    return vmf_preamble_decode(copy, preamble, format, error);
}

static bool decode_token_preamble(const uint8_t *in, VmfTokenPreamble *preamble, VmfStreamFormat *format, GError **error)
{
    g_autofree uint8_t *copy = g_memdup2(in, VMF_PREAMBLE_SIZE);

    return vmf_token_preamble_decode(copy, preamble, format, error);
}

/* ---- image header ----------------------------------------------------------------------------------------------------------
 */

static void test_image_round_trip(void **state)
{
    for (uint32_t version = 2; version <= 3; version++)
        for (unsigned bits = 0; bits < 4; bits++) {
            VmfStreamFormat format = {.version = version, .swap = bits & 1, .one_way = bits & 2}, got;
            uint8_t wire[VMF_IMAGE_HEADER_SIZE];
            vmf_image_header_encode(&format, wire);
            assert_memory_equal(wire, "\xff\xff\xff\xff\xff\xff\xff\xffVMFY\0\0\0", 15);
            assert_int_equal(wire[15], version);
            assert_int_equal(wire[17] & 1, format.swap != (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__));
            assert_true(decode_image(wire, &got, NULL));
            assert_int_equal(got.version, version);
            assert_true(got.swap == format.swap && got.one_way == format.one_way);
        }
}

static void test_image_versions(void **state)
{
    static const uint32_t bad[] = {0, 1, 4, 5, 0x02000000, 0x03000000, UINT32_MAX};
    VmfStreamFormat format = {.version = 3};
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        uint8_t wire[VMF_IMAGE_HEADER_SIZE];
        format.version = bad[i];
        vmf_image_header_encode(&format, wire);
        assert_false(decode_image(wire, &format, &error));
        assert_error(error, VMF_ERROR_VERSION);
        wire[20] ^= 1; /* another version may keep its CRC elsewhere */
        assert_false(decode_image(wire, &format, &error));
        assert_error(error, VMF_ERROR_VERSION);
    }
}

static VmfErrorCode image_code(size_t at)
{
    return at < 12 ? VMF_ERROR_MAGIC : at < 16 ? VMF_ERROR_VERSION : VMF_ERROR_CRC;
}

static void test_image_every_bit(void **state)
{
    VmfStreamFormat format = {.version = 3}, got;
    uint8_t wire[VMF_IMAGE_HEADER_SIZE];

    vmf_image_header_encode(&format, wire);
    for (size_t at = 0; at < sizeof(wire); at++)
        for (unsigned bit = 0; bit < 8; bit++) {
            g_autoptr(GError) error = NULL;
            wire[at] ^= 1u << bit;
            assert_false(decode_image(wire, &got, &error));
            if (at != 15) /* 3 with a bit less is 2, which then has a wrong CRC */
                assert_error(error, image_code(at));
            wire[at] ^= 1u << bit;
        }
}

static void test_image_options(void **state)
{
    VmfStreamFormat format = {.version = 3}, got;
    g_autoptr(GError) error = NULL;

    for (size_t at = 16; at < 20; at++)
        for (unsigned bit = at == 17 ? 2 : 0; bit < 8; bit++) {
            uint8_t wire[VMF_IMAGE_HEADER_SIZE];
            vmf_image_header_encode(&format, wire);
            wire[at] ^= 1u << bit;
            seal(wire, sizeof(wire), true);
            assert_false(decode_image(wire, &got, &error));
            assert_error(error, VMF_ERROR_RECORD_BODY);
        }
}

/* ---- machine header --------------------------------------------------------------------------------------------------------
 */

static const VmfMachineHeader machine = {
    .architecture = "rv32",
    .page_size = 4096,
    .engine_version = 0x010203,
    .uuid = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
};

static void test_machine_round_trip(void **state)
{
    for (unsigned swap = 0; swap < 2; swap++) {
        uint8_t wire[VMF_MACHINE_HEADER_SIZE];
        VmfMachineHeader got;
        vmf_machine_header_encode(&machine, swap, wire);
        assert_true(decode_machine(wire, swap, &got, NULL));
        assert_memory_equal(&got, &machine, sizeof(got));
        g_autoptr(GError) error = NULL;
        assert_false(decode_machine(wire, !swap, &got, &error));
        assert_error(error, VMF_ERROR_CRC);
    }
}

static void test_machine_every_bit(void **state)
{
    uint8_t wire[VMF_MACHINE_HEADER_SIZE];
    VmfMachineHeader got;

    vmf_machine_header_encode(&machine, false, wire);
    for (size_t at = 0; at < sizeof(wire); at++)
        for (unsigned bit = 0; bit < 8; bit++) {
            g_autoptr(GError) error = NULL;
            wire[at] ^= 1u << bit;
            assert_false(decode_machine(wire, false, &got, &error));
            assert_error(error, VMF_ERROR_CRC);
            wire[at] ^= 1u << bit;
        }
}

/* The CRC is right and a field is not. */
static void test_machine_fields(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
    } rows[] = {{0, 0}, {0, '\n'}, {2, 0}, {5, 'x'}, {31, 'x'}, {33, 0}, {35, 1}, {56, 1}, {59, 0x80}};

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        uint8_t wire[VMF_MACHINE_HEADER_SIZE];
        VmfMachineHeader got;
        g_autoptr(GError) error = NULL;
        vmf_machine_header_encode(&machine, false, wire);
        wire[rows[i].at] = rows[i].value;
        seal(wire, sizeof(wire), false);
        assert_false(decode_machine(wire, false, &got, &error));
        assert_error(error, VMF_ERROR_RECORD_BODY);
    }
    uint8_t wire[VMF_MACHINE_HEADER_SIZE];
    VmfMachineHeader got;
    g_autoptr(GError) error = NULL;
    vmf_machine_header_encode(&machine, false, wire);
    memset(wire, 'x', 32); /* no zero at the end */
    seal(wire, sizeof(wire), false);
    assert_false(decode_machine(wire, false, &got, &error));
    assert_error(error, VMF_ERROR_RECORD_BODY);
}

/* ---- preamble --------------------------------------------------------------------------------------------------------------
 */

static void test_preamble(void **state)
{
    VmfPreamble preamble = {.channel = 63, .session = "fifteen letters", .epoch = 7}, got;
    VmfStreamFormat format = {.version = 2, .swap = true}, got_format;
    uint8_t wire[VMF_PREAMBLE_SIZE];

    vmf_preamble_encode(&preamble, &format, wire);
    assert_int_equal(vmf_opening_classify(wire), VMF_OPENING_PAGES);
    assert_true(decode_preamble(wire, &got, &got_format, NULL));
    assert_int_equal(got.channel, 63);
    assert_int_equal(got.epoch, 7);
    assert_memory_equal(got.session, preamble.session, 16);
    assert_int_equal(got_format.version, 2);
    assert_true(got_format.swap && !got_format.one_way);
    for (size_t at = 0; at < sizeof(wire); at++)
        for (unsigned bit = 0; bit < 8; bit++) {
            g_autoptr(GError) error = NULL;
            wire[at] ^= 1u << bit;
            assert_false(decode_preamble(wire, &got, &got_format, &error));
            assert_error(error, at < 8                               ? VMF_ERROR_MAGIC
                                : at < 12 && !(at == 11 && bit == 0) ? VMF_ERROR_VERSION
                                                                     : VMF_ERROR_CRC);
            wire[at] ^= 1u << bit;
        }
    for (size_t at = 36; at < 44; at++) {
        g_autoptr(GError) error = NULL;
        vmf_preamble_encode(&preamble, &format, wire);
        wire[at] = 1;
        seal(wire, sizeof(wire), true);
        assert_false(decode_preamble(wire, &got, &got_format, &error));
        assert_error(error, VMF_ERROR_RECORD_BODY);
    }
}

static void test_token_preamble(void **state)
{
    VmfTokenPreamble preamble = {.token = "fifteen letters"}, got;
    VmfStreamFormat format = {.version = 3, .swap = true}, got_format;
    VmfPreamble pages;
    uint8_t wire[VMF_PREAMBLE_SIZE];

    vmf_token_preamble_encode(&preamble, &format, wire);
    assert_int_equal(vmf_opening_classify(wire), VMF_OPENING_TOKEN);
    assert_memory_equal(wire, "VMFTOKEN\0\0\0\3", 12);
    assert_memory_equal(wire + 16, "fifteen letters", 16);
    assert_true(decode_token_preamble(wire, &got, &got_format, NULL));
    assert_memory_equal(got.token, preamble.token, 16);
    assert_true(got_format.version == 3 && got_format.swap && !got_format.one_way);
    for (size_t at = 0; at < sizeof(wire); at++)
        for (unsigned bit = 0; bit < 8; bit++) {
            g_autoptr(GError) error = NULL;
            wire[at] ^= 1u << bit;
            assert_false(decode_token_preamble(wire, &got, &got_format, &error));
            assert_error(error, at < 8                               ? VMF_ERROR_MAGIC
                                : at < 12 && !(at == 11 && bit == 0) ? VMF_ERROR_VERSION
                                                                     : VMF_ERROR_CRC);
            wire[at] ^= 1u << bit;
        }
    for (size_t at = 13; at < 44; at == 15 ? at = 32 : at++) { /* one-way; reserved octets on both sides of the token */
        g_autoptr(GError) error = NULL;
        vmf_token_preamble_encode(&preamble, &format, wire);
        wire[at] ^= 2;
        seal(wire, sizeof(wire), true);
        assert_false(decode_token_preamble(wire, &got, &got_format, &error));
        assert_error(error, VMF_ERROR_RECORD_BODY);
    }
    /* Neither kind of opening is taken for the other. */
    g_autoptr(GError) error = NULL;
    vmf_token_preamble_encode(&preamble, &format, wire);
    assert_false(decode_preamble(wire, &pages, &got_format, &error));
    assert_error(error, VMF_ERROR_MAGIC);
    vmf_preamble_encode(&(VmfPreamble){.epoch = 1}, &format, wire);
    assert_false(decode_token_preamble(wire, &got, &got_format, &error));
    assert_error(error, VMF_ERROR_MAGIC);
}

static void test_openings(void **state)
{
    assert_int_equal(vmf_opening_classify((const uint8_t *)"\xff\xff\xff\xff\xff\xff\xff\xff"), VMF_OPENING_MAIN);
    assert_int_equal(vmf_opening_classify((const uint8_t *)"GET / HT"), VMF_OPENING_STRANGER);
    assert_int_equal(vmf_opening_classify((const uint8_t *)"VMFPAGEs"), VMF_OPENING_STRANGER);
    assert_int_equal(vmf_opening_classify((const uint8_t *)"VMFTOKEN"), VMF_OPENING_TOKEN);
    assert_int_equal(vmf_opening_classify((const uint8_t *)"VMFTOKEn"), VMF_OPENING_STRANGER);
    assert_int_equal(vmf_opening_classify((const uint8_t *)"\0\0\0\0\0\0\0"), VMF_OPENING_STRANGER);
    assert_int_equal(vmf_opening_classify((const uint8_t *)"\xff\xff\xff\xff\xff\xff\xff\xfe"), VMF_OPENING_STRANGER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_round_trip),   cmocka_unit_test(test_image_versions),
        cmocka_unit_test(test_image_every_bit),    cmocka_unit_test(test_image_options),
        cmocka_unit_test(test_machine_round_trip), cmocka_unit_test(test_machine_every_bit),
        cmocka_unit_test(test_machine_fields),     cmocka_unit_test(test_preamble),
        cmocka_unit_test(test_token_preamble),     cmocka_unit_test(test_openings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
