/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <vmferry/error.h>

#include "machine/qmp-error.h"

static void assert_cause(VmfErrorCode code, const char *message, const char *peer, const char *expected)
{
    g_autoptr(GError) error = g_error_new_literal(VMF_ERROR, code, message);
    g_autofree char *cause = vmf_qmp_error_cause(error, peer);

    assert_string_equal(cause, expected);
}

static void a_cut_is_said_of_the_connection(void **state)
{
    const char *message = "page channel 1: tcp:127.0.0.1:4444: read: the stream ended: 0 of 16 bytes came";

    assert_cause(VMF_ERROR_CUT, message, "target", "the connection to the target was cut");
    assert_cause(VMF_ERROR_CUT, message, "source", "the connection to the source was cut");
    assert_cause(VMF_ERROR_CUT, message, NULL, "the stream was cut off");
}

static void what_does_not_fit_is_all_named(void **state)
{
    assert_cause(VMF_ERROR_INCOMPATIBLE, "target: refuses: memory.size: here 2, there 1; page.size: here 4, there 3",
                 "target", "the target would not take it: memory.size: here 2, there 1; page.size: here 4, there 3");
    assert_cause(VMF_ERROR_INCOMPATIBLE, "static data: memory.size: here 2, there 1", "source",
                 "the guest does not fit this machine: memory.size: here 2, there 1");
}

static void a_refused_handover_keeps_why(void **state)
{
    assert_cause(VMF_ERROR_REFUSED, "target: REFUSED: ram.sum: the sums differ", "target",
                 "the target refused the handover: REFUSED: ram.sum: the sums differ");
}

static void other_messages_stay_whole(void **state)
{
    assert_cause(VMF_ERROR_CONNECT, "tcp:h:1: connect: Connection refused", "target",
                 "tcp:h:1: connect: Connection refused");
    assert_cause(VMF_ERROR_INCOMPATIBLE, "static data: device: x", "source",
                 "the guest does not fit this machine: device: x");
}

static void bytes_of_a_path_do_no_harm(void **state)
{
    g_autoptr(GError) error = g_error_new_literal(VMF_ERROR, VMF_ERROR_IO, "file:\xff: open: no");
    json_t *object = vmf_qmp_error_object(error, NULL);

    assert_non_null(object);
    assert_string_equal(json_string_value(json_object_get(object, "id")), "io");
    assert_true(g_str_has_suffix(json_string_value(json_object_get(object, "cause")), ": open: no"));
    json_decref(object);
}

/* A machine with other settings would not help. */
static void a_place_is_hinted_at_as_a_place(void **state)
{
    g_autoptr(GError) here = g_error_new_literal(VMF_ERROR, VMF_ERROR_DISK_PLACE, "disk root: receive: x: it has swap");
    g_autoptr(GError) place = g_error_new_literal(VMF_ERROR, VMF_ERROR_INCOMPATIBLE,
                                                  "target: refuses: disk.place: disk root: receive: x: it has swap");
    g_autoptr(GError) other = g_error_new_literal(VMF_ERROR, VMF_ERROR_INCOMPATIBLE,
                                                  "target: refuses: memory.size: here 2, there 1; disk.place: disk root: x");
    json_t *object = vmf_qmp_error_object(place, "target");

    assert_string_equal(json_string_value(json_object_get(object, "hint")), vmf_error_hint(here));
    assert_non_null(strstr(vmf_error_hint(here), "another place"));
    assert_non_null(strstr(vmf_error_hint(here), "--force"));
    json_decref(object);
    object = vmf_qmp_error_object(other, "target");
    assert_string_equal(json_string_value(json_object_get(object, "hint")), vmf_error_hint(other));
    json_decref(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_is_said_of_the_connection), cmocka_unit_test(what_does_not_fit_is_all_named),
        cmocka_unit_test(a_refused_handover_keeps_why),    cmocka_unit_test(other_messages_stay_whole),
        cmocka_unit_test(bytes_of_a_path_do_no_harm),      cmocka_unit_test(a_place_is_hinted_at_as_a_place),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
