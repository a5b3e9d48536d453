/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/crc32c.h"

#include <glib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* RFC 3720, B.4, and the check value that catalogues of CRCs give. */
static void test_known_values(void **state)
{
    uint8_t zeros[32] = {0}, ones[32], rising[32], falling[32];

    memset(ones, 0xff, sizeof(ones));
    for (unsigned i = 0; i < 32; i++) {
        rising[i] = (uint8_t)i;
        falling[i] = (uint8_t)(31 - i);
    }
    const struct {
        const void *data;
        size_t length;
        uint32_t crc;
    } rows[] = {
        {"", 0, 0},
        {"123456789", 9, 0xe3069283},
        {zeros, 32, 0x8a9136aa},
        {ones, 32, 0x62a8ab43},
        {rising, 32, 0x46dd794e},
        {falling, 32, 0x113fdb5c},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        assert_int_equal(vmf_crc32c(0, rows[i].data, rows[i].length), rows[i].crc);
        assert_int_equal(vmf_crc32c_portable(0, rows[i].data, rows[i].length), rows[i].crc);
    }
}

static void test_both_ways_agree(void **state)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    uint8_t data[600];

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)g_rand_int(rand);
    for (size_t start = 0; start < 9; start++)
        for (size_t length = 0; start + length <= sizeof(data); length++) {
            uint32_t before = g_rand_int(rand);
            assert_int_equal(vmf_crc32c(before, data + start, length), vmf_crc32c_portable(before, data + start, length));
        }
}

static void test_goes_on(void **state)
{
    static const char text[] = "the quick brown fox jumps over the lazy dog, and over the fence";
    size_t length = strlen(text);
    uint32_t whole = vmf_crc32c(0, text, length);

    for (size_t cut = 0; cut <= length; cut++) {
        assert_int_equal(vmf_crc32c(vmf_crc32c(0, text, cut), text + cut, length - cut), whole);
        assert_int_equal(vmf_crc32c_portable(vmf_crc32c_portable(0, text, cut), text + cut, length - cut), whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_both_ways_agree),
        cmocka_unit_test(test_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
