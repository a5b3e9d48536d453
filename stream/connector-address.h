/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TCP addresses, for who connects and for who listens. */
#ifndef VMF_STREAM_CONNECTOR_ADDRESS_H
#define VMF_STREAM_CONNECTOR_ADDRESS_H

#include "stream/uri.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>

typedef struct addrinfo VmfAddresses;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfAddresses, freeaddrinfo)

typedef enum {
    VMF_RESOLVE_PASSIVE = 1 << 0,      /* to listen: an empty host is every address */
    VMF_RESOLVE_NUMERIC_ONLY = 1 << 1, /* asks no name server: fails at once for a name */
} VmfResolveFlags;

/* Stream addresses in the order to try. Fails with VMF_ERROR_CONNECT. */
VmfAddresses *vmf_resolve(const VmfUri *uri, VmfResolveFlags flags, GError **error);

/* 127.0.0.0/8, ::1 and the first as seen through IPv6. The wildcard addresses are not. Unix sockets are. */
bool vmf_address_is_loopback(const struct sockaddr *address);

/* VMF_ERROR_INSECURE unless every address of @list stays on this host. */
bool vmf_addresses_are_private(const VmfUri *uri, const VmfAddresses *list, GError **error);

/* "tcp:127.0.0.1:4444", "tcp:[::1]:4444". Owned by the caller. */
char *vmf_address_uri(const struct sockaddr *address, socklen_t length);

/* @path was checked by vmf_uri_parse() to fit. */
struct sockaddr_un vmf_address_unix(const char *path);

#endif
