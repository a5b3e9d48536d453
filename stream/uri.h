/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Addresses as people write them: tcp:HOST:PORT unix:PATH fd:N exec:COMMAND file:PATH
 *
 * Parsing is strict: what is not understood is refused with VMF_ERROR_URI, never ignored. IPv6 addresses stand in
 * brackets. An empty HOST is every address of this host, and so good for listening only, as QEMU has it.
 */
#ifndef VMF_STREAM_URI_H
#define VMF_STREAM_URI_H

#include <vmferry/error.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum { VMF_URI_TCP, VMF_URI_UNIX, VMF_URI_FD, VMF_URI_EXEC, VMF_URI_FILE } VmfUriKind;

typedef struct {
    VmfUriKind kind;
    char *text;     /* the whole URI, for messages */
    char *host;     /* tcp: without brackets; may be empty. NULL otherwise */
    uint16_t port;  /* tcp: 0 lets the kernel choose when listening */
    int fd;         /* fd: at least 0; need not be open */
    char *argument; /* unix, file: the path; exec: the command. NULL otherwise */
} VmfUri;

VmfUri *vmf_uri_parse(const char *text, GError **error);
void vmf_uri_free(VmfUri *uri);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfUri, vmf_uri_free)

#endif
