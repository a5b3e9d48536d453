/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Channels: byte streams between two ends of a migration, and what stacks on them.
 *
 * A channel is full duplex unless it was made one-way. One thread may read while another writes; two writers (or two readers) need
 * their own lock. vmf_channel_shutdown() may come from any thread and makes every call that waits return at once.
 *
 * A filter owns the channel below it and is itself a channel, so filters stack in any order.
 */
#ifndef VMFERRY_CHANNEL_H
#define VMFERRY_CHANNEL_H

#include <glib.h>
#include <stdint.h>
#include <stdbool.h>

G_BEGIN_DECLS

typedef struct VmfChannel VmfChannel;

/* Releases the channel and all below it; closes what is under it. NULL is allowed. No other thread may be using it. */
void vmf_channel_free(VmfChannel *channel);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfChannel, vmf_channel_free)

/* Wakes every reader and writer, now and for ever: reads return end of stream, writes fail. Any thread, any number of times. */
void vmf_channel_shutdown(VmfChannel *channel);

/* For messages: "tcp:10.0.0.2:4444", "memory", … Owned by the channel. */
const char *vmf_channel_name(VmfChannel *channel);

/* A channel over a descriptor that is a connected socket or a pipe (@one_way for pipes and files). Takes ownership of @fd. */
VmfChannel *vmf_channel_from_fd(int fd, const char *name, bool one_way, GError **error);

/* Two ends of one in-memory channel; each direction holds at most @capacity bytes before a writer waits (0: 1 MiB). */
void vmf_channel_memory_pair(size_t capacity, VmfChannel **a, VmfChannel **b);

/* ---- filters ------------------------------------------------------------------------------------------------------------- */

/* Counts bytes. The counters are readable from any thread at any time. */
VmfChannel *vmf_filter_count(VmfChannel *below);
uint64_t vmf_filter_count_sent(VmfChannel *filter);
uint64_t vmf_filter_count_received(VmfChannel *filter);

/* A budget of bytes a second that any number of channels share. 0: unlimited. Limits may change at any time from any thread. */
typedef struct VmfRateLimit VmfRateLimit;
VmfRateLimit *vmf_rate_limit_new(uint64_t bytes_per_second);
VmfRateLimit *vmf_rate_limit_ref(VmfRateLimit *limit);
void vmf_rate_limit_unref(VmfRateLimit *limit);
void vmf_rate_limit_set(VmfRateLimit *limit, uint64_t bytes_per_second);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRateLimit, vmf_rate_limit_unref)
/* Delays writes so that all channels of @limit together stay within it; reads pass. Takes a reference. */
VmfChannel *vmf_filter_rate(VmfChannel *below, VmfRateLimit *limit);

/* Faults, as values: what happens to the bytes written through (or read through) the filter, once each. */
typedef enum {
    VMF_FAULT_FLIP,    /* the byte at @offset is inverted */
    VMF_FAULT_CUT,     /* the channel is shut down just before the byte at @offset */
    VMF_FAULT_SILENCE, /* from @offset on nothing goes through and nothing fails: a link that is down */
    VMF_FAULT_DELAY,   /* the byte at @offset waits @delay_ns */
} VmfFaultKind;
typedef struct {
    VmfFaultKind kind;
    bool on_read;      /* false: counts and applies to bytes written */
    uint64_t offset;   /* bytes from the start of this direction */
    uint64_t delay_ns;
} VmfFault;
/* @faults is copied. Never changes the caller's buffers: a write is copied around the flipped byte. */
VmfChannel *vmf_filter_fault(VmfChannel *below, const VmfFault *faults, size_t n_faults);

/*
 * A link between two hosts that can fail, for tests: every channel over it is cut (reads end, writes fail), or nothing goes through it any
 * more and nothing fails. Channels that are there when it fails stay so; those that are added within @for_ns fail as well (0: none of them,
 * negative: all). Any thread.
 */
typedef struct VmfLink VmfLink;
typedef enum { VMF_LINK_CUT, VMF_LINK_SILENT } VmfLinkFailure;
VmfLink *vmf_link_new(void);
void vmf_link_unref(VmfLink *link);
void vmf_link_fail(VmfLink *link, VmfLinkFailure how, int64_t for_ns);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfLink, vmf_link_unref)
/* Adds a channel to @link; takes a reference. */
VmfChannel *vmf_filter_link(VmfChannel *below, VmfLink *link);

/* ---- where channels come from --------------------------------------------------------------------------------------------- */

/*
 * A connector opens channels to one peer (source side, or a file to write). URIs:
 *   tcp:HOST:PORT  unix:PATH  fd:N  exec:COMMAND  file:PATH
 * fd, exec and file give exactly one channel; a second open fails with VMF_ERROR_UNSUPPORTED.
 *
 * tcp:  an IPv6 address stands in brackets. To listen, port 0 takes a free one, and an empty HOST is every address of this host.
 * unix: the socket file is for its owner alone (0600); one that nobody listens on any more is replaced.
 * fd:   a connected socket or a pipe, which the connector (listener) takes over: it is closed with the channel, or with the connector
 *       when none was opened. A pipe goes one way, whatever the flags say.
 * exec: /bin/sh -c COMMAND in a process group of its own, started by open (accept). One way, its output goes to standard error.
 * file: written as PATH.partial (0600), which gets its name, synced, when the session has written all of it. A device is written in
 *       place.
 */
typedef struct VmfConnector VmfConnector;
typedef enum {
    VMF_CONNECT_ONE_WAY = 1 << 0,  /* nothing is ever read (exec: only; file: always is) */
    VMF_CONNECT_INSECURE = 1 << 1, /* allow plaintext tcp to an address off the loopback */
} VmfConnectFlags;
VmfConnector *vmf_connector_new(const char *uri, VmfConnectFlags flags, GError **error);
void vmf_connector_free(VmfConnector *connector);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfConnector, vmf_connector_free)
/* Opens a channel; waits at most @timeout_ns (TCP connect). Any thread, one at a time. */
VmfChannel *vmf_connector_open(VmfConnector *connector, int64_t timeout_ns, GError **error);
/* Makes open fail with VMF_ERROR_CANCELLED, now and for ever, also one that waits. Any thread. */
void vmf_connector_shutdown(VmfConnector *connector);
bool vmf_connector_is_one_way(const VmfConnector *connector);
/* How many channels can be open at once: 1 or G_MAXUINT. */
unsigned vmf_connector_max_channels(const VmfConnector *connector);

/*
 * Filters on everything a connector opens or a listener accepts: @wrap is called with each new channel (index counts from 0) and
 * returns what to use instead; it owns its argument. NULL removes it. Tests hang their fault filters here.
 */
typedef VmfChannel *(*VmfChannelWrap)(VmfChannel *channel, unsigned index, void *opaque);
void vmf_connector_set_wrap(VmfConnector *connector, VmfChannelWrap wrap, void *opaque);

/* A listener accepts channels (target side, or a file to read, which yields one channel). */
typedef struct VmfListener VmfListener;
VmfListener *vmf_listener_new(const char *uri, VmfConnectFlags flags, GError **error);
void vmf_listener_free(VmfListener *listener);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfListener, vmf_listener_free)
/* The address as bound (tcp port 0 is replaced by the real one). Owned by the listener. */
const char *vmf_listener_uri(const VmfListener *listener);
/* Waits at most @timeout_ns (negative: for ever) for a channel. VMF_ERROR_TIMEOUT, or VMF_ERROR_CANCELLED after shutdown. */
VmfChannel *vmf_listener_accept(VmfListener *listener, int64_t timeout_ns, GError **error);
bool vmf_listener_is_one_way(const VmfListener *listener);
unsigned vmf_listener_max_channels(const VmfListener *listener);
void vmf_listener_set_wrap(VmfListener *listener, VmfChannelWrap wrap, void *opaque);
/* Makes accept fail now and for ever. Any thread. */
void vmf_listener_shutdown(VmfListener *listener);

/* Both ends in one process: a connector whose channels appear at the listener, over memory channels. */
void vmf_memory_link_new(size_t capacity, VmfConnector **connector, VmfListener **listener);

G_END_DECLS
#endif
