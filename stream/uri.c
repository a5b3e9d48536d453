/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/uri.h"

#include <limits.h>
#include <string.h>
#include <sys/un.h>

#define HOST_BYTES_MAX 255

static bool fault(const VmfUri *uri, GError **error, const char *what)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: parse: %s", uri->text, what);
    return false;
}

/* Decimal digits only: no sign, no space, no base. */
static bool parse_number(const char *text, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;

    if (!*text)
        return false;
    for (; *text; text++) {
        if (!g_ascii_isdigit(*text))
            return false;
        value = value * 10 + (*text - '0');
        if (value > max)
            return false;
    }
    *out = value;
    return true;
}

static bool host_is_sane(const VmfUri *uri, bool bracketed, GError **error)
{
    if (strlen(uri->host) > HOST_BYTES_MAX)
        return fault(uri, error, "the host is too long");
    for (const char *c = uri->host; *c; c++)
        if (!g_ascii_isgraph(*c) || strchr("/[]@,", *c))
            return fault(uri, error, "the host has a character that no host has");
    if (bracketed && !strchr(uri->host, ':'))
        return fault(uri, error, "brackets are for IPv6 addresses");
    if (!bracketed && strchr(uri->host, ':'))
        return fault(uri, error, "an IPv6 address needs brackets, as in tcp:[::1]:4444");
    return true;
}

static bool parse_tcp(VmfUri *uri, const char *rest, GError **error)
{
    bool bracketed = rest[0] == '[';
    const char *host_end = bracketed ? strchr(rest, ']') : strrchr(rest, ':');
    uint64_t port;

    if (bracketed && !host_end)
        return fault(uri, error, "the closing bracket is missing");
    if (!host_end || (bracketed && host_end[1] != ':'))
        return fault(uri, error, "the port is missing");
    uri->host = bracketed ? g_strndup(rest + 1, host_end - rest - 1) : g_strndup(rest, host_end - rest);
    if (!host_is_sane(uri, bracketed, error))
        return false;
    if (!parse_number(host_end + (bracketed ? 2 : 1), UINT16_MAX, &port))
        return fault(uri, error, "the port is not a number from 0 to 65535");
    uri->port = port;
    return true;
}

static bool parse_fd(VmfUri *uri, const char *rest, GError **error)
{
    uint64_t fd;

    if (!parse_number(rest, INT_MAX, &fd))
        return fault(uri, error, "the descriptor is not a number");
    uri->fd = fd;
    return true;
}

static bool parse_unix(VmfUri *uri, const char *rest, GError **error)
{
    if (!*rest)
        return fault(uri, error, "the path is missing");
    if (strlen(rest) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
        return fault(uri, error, "the path is too long for a socket (107 bytes)");
    uri->argument = g_strdup(rest);
    return true;
}

static bool parse_file(VmfUri *uri, const char *rest, GError **error)
{
    uri->argument = g_strdup(rest);
    return *rest || fault(uri, error, "the path is missing");
}

static bool parse_exec(VmfUri *uri, const char *rest, GError **error)
{
    uri->argument = g_strdup(rest);
    return *g_strchug(uri->argument) || fault(uri, error, "the command is missing");
}

static const struct {
    const char *prefix;
    VmfUriKind kind;
    bool (*parse)(VmfUri *uri, const char *rest, GError **error);
} schemes[] = {
    {"tcp:", VMF_URI_TCP, parse_tcp},    {"unix:", VMF_URI_UNIX, parse_unix}, {"fd:", VMF_URI_FD, parse_fd},
    {"exec:", VMF_URI_EXEC, parse_exec}, {"file:", VMF_URI_FILE, parse_file},
};

VmfUri *vmf_uri_parse(const char *text, GError **error)
{
    g_autoptr(VmfUri) uri = g_new0(VmfUri, 1);

    uri->text = g_strdup(text);
    uri->fd = -1;
    for (size_t i = 0; i < G_N_ELEMENTS(schemes); i++) {
        if (!g_str_has_prefix(text, schemes[i].prefix))
            continue;
        uri->kind = schemes[i].kind;
        return schemes[i].parse(uri, text + strlen(schemes[i].prefix), error) ? g_steal_pointer(&uri) : NULL;
    }
    fault(uri, error, "it begins with none of tcp: unix: fd: exec: file:");
    return NULL;
}

void vmf_uri_free(VmfUri *uri)
{
    if (!uri)
        return;
    g_free(uri->text);
    g_free(uri->host);
    g_free(uri->argument);
    g_free(uri);
}
