/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/uri.h"

#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define A107                                                                                                           \
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static const struct {
    const char *text;
    VmfUri is;
} good[] = {
    {"tcp:10.0.0.2:4444", {.kind = VMF_URI_TCP, .host = "10.0.0.2", .port = 4444}},
    {"tcp:host-b.example:1", {.kind = VMF_URI_TCP, .host = "host-b.example", .port = 1}},
    {"tcp:localhost:0", {.kind = VMF_URI_TCP, .host = "localhost", .port = 0}},
    {"tcp:localhost:65535", {.kind = VMF_URI_TCP, .host = "localhost", .port = 65535}},
    {"tcp::4444", {.kind = VMF_URI_TCP, .host = "", .port = 4444}},
    {"tcp:[::1]:4444", {.kind = VMF_URI_TCP, .host = "::1", .port = 4444}},
    {"tcp:[fe80::1%eth0]:4444", {.kind = VMF_URI_TCP, .host = "fe80::1%eth0", .port = 4444}},
    {"unix:/run/vmferry/a.sock", {.kind = VMF_URI_UNIX, .argument = "/run/vmferry/a.sock"}},
    {"unix:relative:with:colons", {.kind = VMF_URI_UNIX, .argument = "relative:with:colons"}},
    {"unix:" A107, {.kind = VMF_URI_UNIX, .argument = A107}},
    {"fd:0", {.kind = VMF_URI_FD, .fd = 0}},
    {"fd:2147483647", {.kind = VMF_URI_FD, .fd = 2147483647}},
    {"exec:ssh host-b nc -U /run/a", {.kind = VMF_URI_EXEC, .argument = "ssh host-b nc -U /run/a"}},
    {"exec: cat", {.kind = VMF_URI_EXEC, .argument = "cat"}},
    {"file:/var/lib/a b,c:d", {.kind = VMF_URI_FILE, .argument = "/var/lib/a b,c:d"}},
};

static const struct {
    const char *text;
    const char *fault;
} bad[] = {
    {"", "begins with none"},
    {"10.0.0.2:4444", "begins with none"},
    {"udp:10.0.0.2:4444", "begins with none"},
    {"TCP:10.0.0.2:4444", "begins with none"},
    {" tcp:10.0.0.2:4444", "begins with none"},
    {"tcp", "begins with none"},
    {"tcp:", "port is missing"},
    {"tcp:4444", "port is missing"},
    {"tcp:host:", "port is not a number"},
    {"tcp:host:port", "port is not a number"},
    {"tcp:host:65536", "port is not a number"},
    {"tcp:host:99999999999999999999999", "port is not a number"},
    {"tcp:host:-1", "port is not a number"},
    {"tcp:host:+1", "port is not a number"},
    {"tcp:host: 1", "port is not a number"},
    {"tcp:host:0x10", "port is not a number"},
    {"tcp:host:4444,ipv4=on", "port is not a number"},
    {"tcp:host:4444/", "port is not a number"},
    {"tcp://host:4444", "character that no host has"},
    {"tcp:a b:4444", "character that no host has"},
    {"tcp:user@host:4444", "character that no host has"},
    {"tcp:h\303\266st:4444", "character that no host has"},
    {"tcp:::1:4444", "brackets"},
    {"tcp:[::1:4444", "closing bracket"},
    {"tcp:[::1]", "port is missing"},
    {"tcp:[::1]4444", "port is missing"},
    {"tcp:[::1]:", "port is not a number"},
    {"tcp:[]:4444", "brackets are for"},
    {"tcp:[host]:4444", "brackets are for"},
    {"tcp:" A107 A107 A107 ":4444", "too long"},
    {"unix:", "path is missing"},
    {"unix:" A107 "a", "too long"},
    {"fd:", "not a number"},
    {"fd:-1", "not a number"},
    {"fd:2147483648", "not a number"},
    {"fd:stdin", "not a number"},
    {"exec:", "command is missing"},
    {"exec:  ", "command is missing"},
    {"file:", "path is missing"},
};

static void good_ones(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmfUri) uri = vmf_uri_parse(good[i].text, &error);

        if (!uri)
            fail_msg("%s", error->message);
        assert_string_equal(uri->text, good[i].text);
        assert_int_equal(uri->kind, good[i].is.kind);
        assert_int_equal(g_strcmp0(uri->host, good[i].is.host), 0);
        assert_int_equal(g_strcmp0(uri->argument, good[i].is.argument), 0);
        assert_int_equal(uri->port, good[i].is.port);
        if (uri->kind == VMF_URI_FD)
            assert_int_equal(uri->fd, good[i].is.fd);
    }
}

static void bad_ones(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmfUri) uri = vmf_uri_parse(bad[i].text, &error);

        if (uri)
            fail_msg("'%s' was taken", bad[i].text);
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_URI));
        if (!strstr(error->message, bad[i].fault))
            fail_msg("'%s' gave '%s', not '%s'", bad[i].text, error->message, bad[i].fault);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(good_ones), cmocka_unit_test(bad_ones)};

    return cmocka_run_group_tests_name("uri", tests, NULL, NULL);
}
