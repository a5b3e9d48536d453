/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/connector-address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

VmfAddresses *vmf_resolve(const VmfUri *uri, VmfResolveFlags flags, GError **error)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    VmfAddresses *list = NULL;
    char port[8];
    int result;

    if (flags & VMF_RESOLVE_PASSIVE)
        hints.ai_flags |= AI_PASSIVE;
    if (flags & VMF_RESOLVE_NUMERIC_ONLY)
        hints.ai_flags |= AI_NUMERICHOST;
    g_snprintf(port, sizeof(port), "%u", uri->port);
    result = getaddrinfo(*uri->host ? uri->host : NULL, port, &hints, &list);
    if (result == 0)
        return list;
    g_set_error(error, VMF_ERROR, VMF_ERROR_CONNECT, "%s: resolve: %s", uri->text,
                result == EAI_SYSTEM ? g_strerror(errno) : gai_strerror(result));
    return NULL;
}

bool vmf_address_is_loopback(const struct sockaddr *address)
{
    const struct in6_addr *ip6;

    switch (address->sa_family) {
    case AF_UNIX:
        return true;
    case AF_INET:
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    case AF_INET6:
        ip6 = &((const struct sockaddr_in6 *)address)->sin6_addr;
        return IN6_IS_ADDR_LOOPBACK(ip6) || (IN6_IS_ADDR_V4MAPPED(ip6) && ip6->s6_addr[12] == 127);
    default:
        return false;
    }
}

bool vmf_addresses_are_private(const VmfUri *uri, const VmfAddresses *list, GError **error)
{
    for (; list; list = list->ai_next) {
        g_autofree char *where = NULL;

        if (vmf_address_is_loopback(list->ai_addr))
            continue;
        where = vmf_address_uri(list->ai_addr, list->ai_addrlen);
        g_set_error(error, VMF_ERROR, VMF_ERROR_INSECURE,
                    "%s: open: %s is off the loopback and the stream is not encrypted", uri->text, where);
        return false;
    }
    return true;
}

char *vmf_address_uri(const struct sockaddr *address, socklen_t length)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return g_strdup("tcp");
    return g_strdup_printf(strchr(host, ':') ? "tcp:[%s]:%s" : "tcp:%s:%s", host, port);
}

struct sockaddr_un vmf_address_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    return address;
}
