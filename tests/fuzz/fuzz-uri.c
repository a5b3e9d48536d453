/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* URIs as the engine parses them, and the sizes, times and numbers of the command line. One line of text. */
#include <string.h>

#include "stream/uri.h"
#include "tests/fuzz/fuzz.h"
#include "tools/numbers.h"

static void try_uri(const char *text)
{
    g_autoptr(GError) error = NULL;
    VmfUri *uri = vmf_uri_parse(text, &error), *again;

    FUZZ_CHECK(!uri == !!error);
    if (!uri)
        return;
    again = vmf_uri_parse(uri->text, NULL);
    FUZZ_CHECK(again && again->kind == uri->kind && again->port == uri->port && again->fd == uri->fd);
    FUZZ_CHECK(g_strcmp0(again->host, uri->host) == 0 && g_strcmp0(again->argument, uri->argument) == 0);
    vmf_uri_free(again);
    vmf_uri_free(uri);
}

static void try_number(const char *text)
{
    g_autoptr(GError) size_error = NULL, duration_error = NULL, number_error = NULL;
    uint64_t value;

    bool is_size = vmf_parse_size(text, &value, &size_error);
    FUZZ_CHECK(is_size == !size_error);
    if (is_size)
        g_free(vmf_format_bytes(value));
    bool is_duration = vmf_parse_duration(text, &value, &duration_error);
    FUZZ_CHECK(is_duration == !duration_error);
    if (is_duration)
        g_free(vmf_format_ns(value));
    bool is_number = vmf_parse_number(text, 7, 70000, &value, &number_error);
    FUZZ_CHECK(is_number == !number_error && (!is_number || (value >= 7 && value <= 70000)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);

    try_uri(text);
    try_number(text);
    return 0;
}
