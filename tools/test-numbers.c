/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "tools/numbers.h"

static uint64_t size(const char *text)
{
    uint64_t bytes;

    assert_true(vmf_parse_size(text, &bytes, NULL));
    return bytes;
}

static uint64_t duration(const char *text)
{
    uint64_t ns;

    assert_true(vmf_parse_duration(text, &ns, NULL));
    return ns;
}

static void refuses(bool (*parse)(const char *, uint64_t *, GError **), const char *text)
{
    g_autoptr(GError) error = NULL;
    uint64_t value;

    assert_false(parse(text, &value, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
}

static void sizes(void **state)
{
    assert_int_equal(size("0"), 0);
    assert_int_equal(size("4096"), 4096);
    assert_int_equal(size("1K"), 1024);
    assert_int_equal(size("256M"), 256u << 20);
    assert_int_equal(size("3G"), UINT64_C(3) << 30);
    assert_int_equal(size("2T"), UINT64_C(2) << 40);
    assert_int_equal(size("1KB"), 1000);
    assert_int_equal(size("100MB"), 100000000);
    assert_int_equal(size("100MB/s"), 100000000);
    assert_int_equal(size("7GB"), UINT64_C(7000000000));
    assert_int_equal(size("1.5G"), UINT64_C(3) << 29);
    assert_int_equal(size("0.125K"), 128);
    assert_int_equal(size("18446744073709551615"), UINT64_MAX);
}

static void what_is_no_size(void **state)
{
    static const char *const texts[] = {"",
                                        " 1",
                                        "1 ",
                                        "-1",
                                        "+1",
                                        "M",
                                        "1m",
                                        "1KiB",
                                        "1.",
                                        ".5M",
                                        "1..5M",
                                        "1.5",
                                        "1.0001K",
                                        "0x10",
                                        "1e3",
                                        "1M/s ",
                                        "/s",
                                        "1/s/s",
                                        "18446744073709551616",
                                        "16777216T",
                                        "1,5G",
                                        "0.00000000000000000000001T"};

    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++)
        refuses(vmf_parse_size, texts[i]);
}

static void durations(void **state)
{
    assert_int_equal(duration("0"), 0);
    assert_int_equal(duration("20ms"), 20000000);
    assert_int_equal(duration("2s"), UINT64_C(2000000000));
    assert_int_equal(duration("0.5s"), 500000000);
    assert_int_equal(duration("1.25ms"), 1250000);
    assert_int_equal(duration("300us"), 300000);
    refuses(vmf_parse_duration, "20");
    refuses(vmf_parse_duration, "ms");
    refuses(vmf_parse_duration, "2m");
    refuses(vmf_parse_duration, "-1s");
    refuses(vmf_parse_duration, "99999999999999s");
}

static void numbers(void **state)
{
    uint64_t value;

    assert_true(vmf_parse_number("64", 1, 64, &value, NULL));
    assert_int_equal(value, 64);
    assert_false(vmf_parse_number("0", 1, 64, &value, NULL));
    assert_false(vmf_parse_number("65", 1, 64, &value, NULL));
    assert_false(vmf_parse_number("1.0", 1, 64, &value, NULL));
    assert_false(vmf_parse_number("", 0, 64, &value, NULL));
}

static void formats(char *(*format)(uint64_t), uint64_t value, const char *expected)
{
    g_autofree char *text = format(value);

    assert_string_equal(text, expected);
}

static void for_people(void **state)
{
    formats(vmf_format_bytes, 0, "0 bytes");
    formats(vmf_format_bytes, 999, "999 bytes");
    formats(vmf_format_bytes, 312400000, "312.4 MB");
    formats(vmf_format_bytes, 999960, "1.0 MB");
    formats(vmf_format_ns, 850, "850 ns");
    formats(vmf_format_ns, 3100000, "3.1 ms");
    formats(vmf_format_ns, UINT64_C(123400000000), "123.4 s");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),   cmocka_unit_test(what_is_no_size), cmocka_unit_test(durations),
        cmocka_unit_test(numbers), cmocka_unit_test(for_people),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
