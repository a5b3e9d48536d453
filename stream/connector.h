/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connectors from the inside. An implementation embeds VmfConnector first and is allocated with g_new0(). */
#ifndef VMF_STREAM_CONNECTOR_H
#define VMF_STREAM_CONNECTOR_H

#include "stream/channel.h"
#include "stream/channel-wait.h"
#include "stream/uri.h"

typedef struct {
    /* Opens one channel until @deadline_ns at the latest (VMF_ERROR_TIMEOUT); returns early when connector->wake is
     * thrown. */
    VmfChannel *(*open)(VmfConnector *connector, int64_t deadline_ns, GError **error);
    /* Releases what the implementation holds; the caller frees the rest. NULL: nothing. */
    void (*free)(VmfConnector *connector);
} VmfConnectorOps;

struct VmfConnector {
    const VmfConnectorOps *ops;
    VmfUri *uri; /* owned; NULL for a memory link */
    VmfConnectFlags flags;
    bool one_way;
    unsigned max_channels;
    unsigned opened; /* so far */
    VmfWake wake;
    VmfChannelWrap wrap;
    void *wrap_opaque;
};

/* Each fills in what its kind needs; on failure the caller frees. One a kind of URI. */
VmfConnector *vmf_connector_tcp_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfConnector *vmf_connector_unix_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfConnector *vmf_connector_fd_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfConnector *vmf_connector_exec_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfConnector *vmf_connector_file_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);

/* Sets VMF_ERROR_CANCELLED and returns true after vmf_connector_shutdown(). */
bool vmf_connector_is_shut_down(VmfConnector *connector, GError **error);

/* A descriptor that was handed over, as a channel of either end; the checks that fd: URIs need. */
typedef enum { VMF_FD_TO_WRITE, VMF_FD_TO_READ } VmfFdUse;
/* Sets *@is_socket. VMF_ERROR_URI: not open; VMF_ERROR_UNSUPPORTED: wrong kind or direction; VMF_ERROR_INSECURE. */
bool vmf_fd_check(const VmfUri *uri, VmfFdUse use, VmfConnectFlags flags, bool *is_socket, GError **error);

#endif
