/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/event-log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <glib/gstdio.h>
#include <sys/stat.h>
#include <vmferry/error.h>

static void lines_are_appended_and_stay_lines(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmf-log-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(directory, "log", NULL);
    g_autofree char *content = NULL;

    for (int i = 0; i < 2; i++) {
        VmfEventLog *log;
        assert_true(vmf_event_log_open(&log, path, NULL));
        assert_non_null(log);
        vmf_event_log_write(log, "vm1", "source", "peer", "one\ntwo\r\x1b[2J\xc2\x9b\xff gr\xc3\xbcn");
        vmf_event_log_free(log);
    }
    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    g_auto(GStrv) lines = g_strsplit(content, "\n", -1);
    assert_int_equal(g_strv_length(lines), 3); /* two, and nothing behind the last newline */
    for (int i = 0; i < 2; i++) {
        assert_true(g_regex_match_simple("^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{6}Z vm1 source peer ", lines[i], 0, 0));
        assert_true(g_str_has_suffix(lines[i], " one?two??[2J?\xef\xbf\xbd gr\xc3\xbcn"));
    }
    g_unlink(path);
    g_rmdir(directory);
}

static void none_is_asked_for(void **state)
{
    VmfEventLog *log;

    assert_true(vmf_event_log_open(&log, NULL, NULL));
    assert_null(log);
    assert_true(vmf_event_log_open(&log, "", NULL));
    assert_null(log);
    vmf_event_log_write(log, "vm1", "source", "status", "active");
    vmf_event_log_free(log);
}

static void what_cannot_be_written_is_refused(void **state)
{
    g_autofree char *directory = g_dir_make_tmp("vmf-log-XXXXXX", NULL);
    g_autofree char *fifo = g_build_filename(directory, "fifo", NULL);
    g_autoptr(GError) error = NULL;
    VmfEventLog *log;

    assert_false(vmf_event_log_open(&log, directory, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    assert_null(log);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_false(vmf_event_log_open(&log, fifo, NULL)); /* and does not wait for a reader */
    g_unlink(fifo);
    g_rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_appended_and_stay_lines),
        cmocka_unit_test(none_is_asked_for),
        cmocka_unit_test(what_cannot_be_written_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
