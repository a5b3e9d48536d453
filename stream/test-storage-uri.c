/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/storage-uri.h"

#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static const struct {
    const char *text;
    const char *path; /* of a file */
    const char *host; /* of an export: or */
    const char *socket;
    unsigned port;
    const char *export;
} good[] = {
    {.text = "file:/var/lib/a b,c:d?e#f%20", .path = "/var/lib/a b,c:d?e#f%20"},
    {.text = "file:relative", .path = "relative"},
    {.text = "nbd://host-b", .host = "host-b", .port = 10809, .export = ""},
    {.text = "nbd://host-b/", .host = "host-b", .port = 10809, .export = ""},
    {.text = "nbd://10.0.0.2:1/disk", .host = "10.0.0.2", .port = 1, .export = "disk"},
    {.text = "nbd://[::1]/a/b", .host = "::1", .port = 10809, .export = "a/b"},
    {.text = "nbd://[::1]:65535/a%20b%2f%3f", .host = "::1", .port = 65535, .export = "a b/?"},
    {.text = "nbd://h//a", .host = "h", .port = 10809, .export = "/a"},
    {.text = "nbd://h/a:b", .host = "h", .port = 10809, .export = "a:b"},
    {.text = "nbd+unix:///?socket=/run/a.sock", .socket = "/run/a.sock", .export = ""},
    {.text = "nbd+unix:///disk?socket=/run/a%20b", .socket = "/run/a b", .export = "disk"},
    {.text = "nbd+unix:///d%3fsk?socket=relative", .socket = "relative", .export = "d?sk"},
    {.text = "nbd:unix:/run/a.sock", .socket = "/run/a.sock", .export = ""},
    {.text = "nbd:unix:/run/a:b:exportname=c:d%20", .socket = "/run/a:b", .export = "c:d%20"},
    {.text = "nbd:localhost:10809", .host = "localhost", .port = 10809, .export = ""},
    {.text = "nbd:[fe80::1]:2:exportname=x", .host = "fe80::1", .port = 2, .export = "x"},
    {.text = "nbd:h:2:exportname=", .host = "h", .port = 2, .export = ""},
};

static const struct {
    const char *text;
    const char *fault;
} bad[] = {
    {"", "begins with none"},
    {"/dev/vda", "begins with none"},
    {"tcp:h:1", "begins with none"},
    {"NBD://h", "begins with none"},
    {" nbd://h", "begins with none"},
    {"file:", "path is missing"},
    {"nbd:", "port is missing"},
    {"nbd://", "host is missing"},
    {"nbd:///disk", "host is missing"},
    {"nbd://:10809/disk", "host is missing"},
    {"nbd://h:0/disk", "nobody's"},
    {"nbd://h:65536/disk", "not a number"},
    {"nbd://h:/disk", "not a number"},
    {"nbd://h:1x/disk", "not a number"},
    {"nbd://::1/disk", "brackets"},
    {"nbd://[::1/disk", "closing bracket"},
    {"nbd://[h]/disk", "IPv6"},
    {"nbd://u@h/disk", "character that no host has"},
    {"nbd://h/disk?socket=/a", "nothing can follow"},
    {"nbd://h/disk#a", "nothing can follow"},
    {"nbd://h/%zz", "no text"},
    {"nbd://h/a%00b", "no text"},
    {"nbd://h/%ff", "no text"},
    {"nbds://h/disk", "without TLS"},
    {"nbds+unix:///disk?socket=/a", "without TLS"},
    {"nbd+unix://h/disk?socket=/a", "no host"},
    {"nbd+unix://", "no host"},
    {"nbd+unix:///disk", "?socket=PATH"},
    {"nbd+unix:///disk?sock=/a", "?socket=PATH"},
    {"nbd+unix:///disk?a=b&socket=/a", "?socket=PATH"},
    {"nbd+unix:///disk?socket=/a&tls=1", "?socket=PATH"},
    {"nbd+unix:///disk?socket=", "path is missing"},
    {"nbd+unix:///disk?socket=%", "decoded"},
    {"nbd:unix:", "path is missing"},
    {"nbd:unix::exportname=a", "path is missing"},
    {"nbd:h", "port is missing"},
    {"nbd:h:10809:disk", "brackets"},
    {"nbd:h:10809:exportname=\377", "no text"},
};

static void test_good(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmfStorageUri) uri = vmf_storage_uri_parse(good[i].text, &error);

        if (!uri)
            fail_msg("%s", error->message);
        assert_int_equal(uri->kind, good[i].path ? VMF_STORAGE_URI_FILE : VMF_STORAGE_URI_NBD);
        if (good[i].path) {
            assert_string_equal(uri->path, good[i].path);
            continue;
        }
        assert_string_equal(uri->export, good[i].export);
        assert_string_equal(uri->address->text, good[i].text);
        if (good[i].socket) {
            assert_int_equal(uri->address->kind, VMF_URI_UNIX);
            assert_string_equal(uri->address->argument, good[i].socket);
        } else {
            assert_int_equal(uri->address->kind, VMF_URI_TCP);
            assert_string_equal(uri->address->host, good[i].host);
            assert_int_equal(uri->address->port, good[i].port);
        }
    }
}

static void assert_bad(const char *text, const char *what)
{
    g_autofree char *prefix = g_strconcat(text, ": parse: ", NULL);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_storage_uri_parse(text, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_URI));
    if (!g_str_has_prefix(error->message, prefix) || !strstr(error->message, what))
        fail_msg("%s", error->message);
}

static void test_bad(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        assert_bad(bad[i].text, bad[i].fault);
}

static void test_too_long(void **state)
{
    g_autofree char *fits = g_strnfill(VMF_NBD_EXPORT_MAX, 'a'), *more = g_strconcat(fits, "a", NULL);
    g_autofree char *good_uri = g_strconcat("nbd://h/", fits, NULL), *bad_uri = g_strconcat("nbd://h/", more, NULL);
    g_autofree char *path = g_strnfill(108, 'a'), *bad_socket = g_strconcat("nbd:unix:", path, NULL);
    g_autoptr(VmfStorageUri) uri = vmf_storage_uri_parse(good_uri, NULL);

    assert_non_null(uri);
    assert_bad(bad_uri, "too long");
    assert_bad(bad_socket, "too long");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_too_long),
    };

    return cmocka_run_group_tests_name("storage-uri", tests, NULL, NULL);
}
