/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Listeners from the inside. An implementation embeds VmfListener first and is allocated with g_new0(). */
#ifndef VMF_STREAM_LISTENER_H
#define VMF_STREAM_LISTENER_H

#include "stream/connector.h"

typedef struct {
    /* Accepts one channel until @deadline_ns at the latest (VMF_ERROR_TIMEOUT); returns early when listener->wake is
     * thrown. */
    VmfChannel *(*accept)(VmfListener *listener, int64_t deadline_ns, GError **error);
    /* After the wake was thrown, for who does not poll it. NULL: nothing more to wake. */
    void (*shutdown)(VmfListener *listener);
    /* Releases what the implementation holds; the caller frees the rest. NULL: nothing. */
    void (*free)(VmfListener *listener);
} VmfListenerOps;

struct VmfListener {
    const VmfListenerOps *ops;
    VmfUri *uri;     /* owned; NULL for a memory link */
    char *bound_uri; /* owned; as vmf_listener_uri() tells it. NULL: as @uri */
    VmfConnectFlags flags;
    bool one_way;
    unsigned max_channels;
    unsigned accepted; /* so far */
    VmfWake wake;
    VmfChannelWrap wrap;
    void *wrap_opaque;
};

VmfListener *vmf_listener_tcp_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfListener *vmf_listener_unix_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfListener *vmf_listener_fd_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfListener *vmf_listener_exec_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);
VmfListener *vmf_listener_file_new(const VmfUri *uri, VmfConnectFlags flags, GError **error);

bool vmf_listener_is_shut_down(VmfListener *listener, GError **error);

/* Sets VMF_ERROR_TIMEOUT. */
void vmf_listener_error_timeout(VmfListener *listener, GError **error);

#endif
