/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the target says: a thread that reads the main channel's other direction, and acknowledgements' threads for the page channels.
 * The first thing that goes wrong on any of them is kept as the peer's failure: it says more than the broken write that follows it.
 */
#ifndef MIGRATION_RETURN_PATH_H
#define MIGRATION_RETURN_PATH_H

#include "migration/owners.h"
#include "migration/ram-source.h"
#include "stream/message.h"

typedef struct VmfReturnPath VmfReturnPath;

/* @main, @ram, @owners and the session outlive it. Starts nothing yet. */
VmfReturnPath *vmf_return_path_new(VmfSession *session, VmfChannel *main, VmfStreamFormat format, VmfRamSource *ram, GArray *owners);
/* Joins all threads: the channels have been shut down. */
void vmf_return_path_free(VmfReturnPath *path);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfReturnPath, vmf_return_path_free)

/* Reads VERDICT, on the caller's thread, before start. */
bool vmf_return_path_read_verdict(VmfReturnPath *path, int64_t deadline_ns, VmfVerdict *verdict, GError **error);
bool vmf_return_path_start(VmfReturnPath *path, GError **error);
/* The lanes are there. @inline_acks: they are acknowledged here, for pages travel on the main channel. */
void vmf_return_path_attached(VmfReturnPath *path, bool inline_acks);
/* SWITCHOVER is about to be sent: what answers it may come from now on, and not before. */
void vmf_return_path_offer(VmfReturnPath *path);
/* Reads the acknowledgements of page channel @lane from @channel, beginning with the one that joins it (on the caller's thread). */
bool vmf_return_path_join(VmfReturnPath *path, VmfChannel *channel, unsigned lane, int64_t deadline_ns, GError **error);

typedef struct {
    uint32_t type; /* READY, REFUSED, RUNNING, NEVER or REPORT */
    GBytes *body;
} VmfReturnMessage;
void vmf_return_message_clear(VmfReturnMessage *message);
/* As a record, for the decoders; valid as long as the message. */
VmfRecord vmf_return_message_record(const VmfReturnMessage *message);

/*
 * The next message. Otherwise VMF_ERROR_TIMEOUT, the peer's failure, or (if @cancellable) VMF_ERROR_CANCELLED.
 */
bool vmf_return_path_next(VmfReturnPath *path, int64_t deadline_ns, bool cancellable, VmfReturnMessage *message, GError **error);

/* What the session's thread can wait for, all at once. */
typedef enum {
    VMF_WAKE_DUE,     /* the time has come */
    VMF_WAKE_MESSAGE, /* in *@message */
    VMF_WAKE_CUT,     /* in *@failure */
    VMF_WAKE_CANCEL,
    VMF_WAKE_LEAVE,   /* cancelled while the guest is held */
    VMF_WAKE_RESOLVE, /* session->resolution */
} VmfWakeReason;
/* @ignore: bits (1 << VmfWakeReason) of what is known already. */
VmfWakeReason vmf_return_path_wait(VmfReturnPath *path, int64_t deadline_ns, unsigned ignore, VmfReturnMessage *message,
                                   GError **failure);

/* Replaces *@error, which a call on a channel set, by the peer's failure if there is one (waiting a moment for it to arrive). */
void vmf_return_path_explain(VmfReturnPath *path, GError **error);

/* Waits until @n_pongs have come, at most until @deadline_ns. */
void vmf_return_path_await_pong(VmfReturnPath *path, unsigned n_pongs, int64_t deadline_ns);
/* Smallest round trip seen, 0: none yet. */
uint64_t vmf_return_path_rtt_ns(VmfReturnPath *path);

#endif
