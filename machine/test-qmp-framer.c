/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "machine/qmp-framer.h"

/* Pushes @input in pieces of @piece bytes; the result lists what came out: "{…}" for objects, "!" for garbage, "#" for
 * too long. */
static char *frames(const char *input, size_t piece)
{
    VmfQmpFramer framer;
    GString *out = g_string_new(NULL);
    size_t total = strlen(input);

    vmf_qmp_framer_init(&framer);
    for (size_t at = 0; at < total; at += piece) {
        const char *text;
        size_t length;
        VmfQmpFrame frame;

        vmf_qmp_framer_push(&framer, input + at, MIN(piece, total - at));
        while ((frame = vmf_qmp_framer_next(&framer, &text, &length)) != VMF_QMP_FRAME_MORE) {
            if (frame == VMF_QMP_FRAME_OBJECT)
                g_string_append_len(out, text, length);
            else
                g_string_append_c(out, frame == VMF_QMP_FRAME_GARBAGE ? '!' : '#');
            if (frame == VMF_QMP_FRAME_TOO_LONG)
                break;
        }
        if (frame == VMF_QMP_FRAME_TOO_LONG)
            break;
    }
    vmf_qmp_framer_clear(&framer);
    return g_string_free(out, FALSE);
}

static void check(const char *input, const char *expected)
{
    for (size_t piece = 1; piece <= strlen(input); piece++) {
        g_autofree char *got = frames(input, piece);

        assert_string_equal(got, expected);
    }
}

static void objects_are_found_however_they_are_cut(void **state)
{
    check("{}", "{}");
    check("{\"a\":1} \r\n{\"b\":[{\"c\":2},3]}", "{\"a\":1}{\"b\":[{\"c\":2},3]}");
    check("{}{}{}", "{}{}{}");
    check("{\"a\":\n 1\n}", "{\"a\":\n 1\n}");
}

static void brackets_in_strings_do_not_count(void **state)
{
    check("{\"}\":\"]{\"}{}", "{\"}\":\"]{\"}{}");
    check("{\"\\\"}\":1}", "{\"\\\"}\":1}");
    check("{\"\\\\\":1}", "{\"\\\\\":1}");
}

static void garbage_is_reported_once_and_skipped(void **state)
{
    check("hello world\n{}", "!{}");
    check("hello {}", "!{}");
    check("a\nb\n", "!!");
    check("[1,2]\n{}", "!{}");
    check("}\n{}", "!{}");
    check("{\"a\":]\n{}", "!{}");
    check("{\"a\n{}", "!{}");
}

static void depth_is_bounded(void **state)
{
    GString *deep = g_string_new("{\"a\":");

    for (unsigned i = 1; i < VMF_QMP_DEPTH_MAX; i++)
        g_string_append_c(deep, '[');
    for (unsigned i = 1; i < VMF_QMP_DEPTH_MAX; i++)
        g_string_append_c(deep, ']');
    g_string_append_c(deep, '}');
    check(deep->str, deep->str);
    g_string_insert_c(deep, 5, '[');
    g_string_append(deep, "\n{}");
    check(deep->str, "!{}");
    g_string_assign(deep, "");
    for (unsigned i = 0; i < 3 * VMF_QMP_DEPTH_MAX; i++)
        g_string_append(deep, "{\"a\":");
    g_string_append(deep, "\n{}");
    check(deep->str, "!{}");
    g_string_free(deep, TRUE);
}

static void length_is_bounded(void **state)
{
    g_autofree char *fits = g_strnfill(VMF_QMP_REQUEST_MAX, ' ');
    g_autofree char *exceeds = g_strnfill(VMF_QMP_REQUEST_MAX + 2, ' ');
    g_autofree char *got_fits = NULL, *got_exceeds = NULL;

    fits[0] = exceeds[0] = '{';
    fits[VMF_QMP_REQUEST_MAX - 1] = '}';
    got_fits = frames(fits, 65536);
    got_exceeds = frames(exceeds, 65536);
    assert_string_equal(got_fits, fits);
    assert_string_equal(got_exceeds, "#");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_are_found_however_they_are_cut),
        cmocka_unit_test(brackets_in_strings_do_not_count),
        cmocka_unit_test(garbage_is_reported_once_and_skipped),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(length_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
