/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/storage-uri.h"

#include <string.h>

#define DETAIL ": parse: "

static bool fault(const char *text, GError **error, const char *what)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s" DETAIL "%s", text, what);
    return false;
}

/* Hosts, ports and paths of sockets are what they are elsewhere; faults are told of the URI that was given. */
static bool set_address(VmfStorageUri *uri, const char *text, const char *address, GError **error)
{
    g_autoptr(GError) inner = NULL;

    uri->address = vmf_uri_parse(address, &inner);
    if (!uri->address)
        return fault(text, error, strstr(inner->message, DETAIL) + strlen(DETAIL));
    g_free(uri->address->text);
    uri->address->text = g_strdup(text);
    if (uri->address->kind == VMF_URI_TCP && !*uri->address->host)
        return fault(text, error, "the host is missing");
    return uri->address->kind != VMF_URI_TCP || uri->address->port != 0 || fault(text, error, "port 0 is nobody's");
}

/* Takes over @export, which NULL says could not be decoded. */
static bool set_export(VmfStorageUri *uri, const char *text, char *export, GError **error)
{
    uri->export = export;
    if (!export || !g_utf8_validate(export, -1, NULL))
        return fault(text, error, "the name of the export is no text");
    return strlen(export) <= VMF_NBD_EXPORT_MAX ||
           fault(text, error, "the name of the export is too long (4096 bytes)");
}

static bool parse_file(VmfStorageUri *uri, const char *text, const char *rest, GError **error)
{
    uri->path = g_strdup(rest);
    return *rest || fault(text, error, "the path is missing");
}

static bool parse_authority(VmfStorageUri *uri, const char *text, const char *rest, GError **error)
{
    const char *slash = strchr(rest, '/'), *end = slash ? slash : rest + strlen(rest);
    g_autofree char *authority = g_strndup(rest, end - rest), *address = NULL;
    const char *after_brackets = strrchr(authority, ']');
    bool has_port = strchr(after_brackets ? after_brackets : authority, ':') != NULL;

    if (strpbrk(rest, "?#"))
        return fault(text, error, "nothing can follow the name of the export");
    address = has_port ? g_strdup_printf("tcp:%s", authority) : g_strdup_printf("tcp:%s:%u", authority, VMF_NBD_PORT);
    return set_address(uri, text, address, error) &&
           set_export(uri, text, g_uri_unescape_string(slash ? slash + 1 : "", NULL), error);
}

static bool parse_unix(VmfStorageUri *uri, const char *text, const char *rest, GError **error)
{
    const char *query = strstr(rest, "?socket=");
    g_autofree char *path = NULL, *address = NULL;

    if (*rest != '/')
        return fault(text, error, "there is no host: nbd+unix:///EXPORT?socket=PATH");
    if (!query || strchr(rest, '?') != query || strpbrk(query + 1, "?&;#"))
        return fault(text, error, "?socket=PATH must follow the name of the export, and nothing else");
    path = g_uri_unescape_string(query + strlen("?socket="), NULL);
    if (!path)
        return fault(text, error, "the path cannot be decoded");
    address = g_strconcat("unix:", path, NULL);
    return set_address(uri, text, address, error) &&
           set_export(uri, text, g_uri_unescape_segment(rest + 1, query, NULL), error);
}

/* QEMU's older form. A path may hold colons; what follows the last ":exportname=" is a name. */
static bool parse_colons(VmfStorageUri *uri, const char *text, const char *rest, GError **error)
{
    const char *export = strstr(rest, ":exportname=");
    g_autofree char *where = export ? g_strndup(rest, export - rest) : g_strdup(rest);
    g_autofree char *address = g_str_has_prefix(where, "unix:") ? g_strdup(where) : g_strconcat("tcp:", where, NULL);

    return set_address(uri, text, address, error) &&
           set_export(uri, text, g_strdup(export ? export + strlen(":exportname=") : ""), error);
}

static bool refuse_tls(VmfStorageUri *uri, const char *text, const char *rest, GError **error)
{
    return fault(text, error, "exports are reached without TLS: nbd:// or nbd+unix://");
}

static const struct {
    const char *prefix;
    VmfStorageUriKind kind;
    bool (*parse)(VmfStorageUri *uri, const char *text, const char *rest, GError **error);
} forms[] = {
    {"file:", VMF_STORAGE_URI_FILE, parse_file},       {"nbd://", VMF_STORAGE_URI_NBD, parse_authority},
    {"nbd+unix://", VMF_STORAGE_URI_NBD, parse_unix},  {"nbds://", VMF_STORAGE_URI_NBD, refuse_tls},
    {"nbds+unix://", VMF_STORAGE_URI_NBD, refuse_tls}, {"nbd:", VMF_STORAGE_URI_NBD, parse_colons},
};

VmfStorageUri *vmf_storage_uri_parse(const char *text, GError **error)
{
    g_autoptr(VmfStorageUri) uri = g_new0(VmfStorageUri, 1);

    for (size_t i = 0; i < G_N_ELEMENTS(forms); i++) {
        const char *rest = text + strlen(forms[i].prefix);

        if (!g_str_has_prefix(text, forms[i].prefix))
            continue;
        uri->kind = forms[i].kind;
        return forms[i].parse(uri, text, rest, error) ? g_steal_pointer(&uri) : NULL;
    }
    fault(text, error, "it begins with none of file: nbd: nbd:// nbd+unix://");
    return NULL;
}

void vmf_storage_uri_free(VmfStorageUri *uri)
{
    if (!uri)
        return;
    g_free(uri->path);
    g_clear_pointer(&uri->address, vmf_uri_free);
    g_free(uri->export);
    g_free(uri->context);
    g_free(uri);
}
