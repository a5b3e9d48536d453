/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Incoming connections: who is calling, and would this guest fit?
 *
 * Theory of operation
 *
 * Each connection gets a thread of its own, which reads as far as the first record that is not static data, under a deadline, and
 * with nothing reserved. So a stranger, a slow peer, a preflight or a guest that does not fit costs a thread for a while and never
 * the session. The first caller whose static data is accepted and who goes on wins: the session's thread takes it over. From then on
 * other callers are told that the target is busy, and connections that begin with the preamble of a page channel of the winner's
 * session are handed to it.
 */
#ifndef MIGRATION_INCOMING_H
#define MIGRATION_INCOMING_H

#include <vmferry/handover.h>

#include "migration/compatibility.h"
#include "migration/session.h"
#include "stream/message.h"

/* A caller that was accepted. */
typedef struct {
    VmfChannel *channel; /* owned */
    VmfRecordReader *reader;
    VmfRecordWriter *writer; /* the return path; NULL: one-way */
    VmfStreamFormat format;
    VmfStaticData *static_data;
    uint64_t static_sum;
    uint64_t features;
    VmfMissing missing;
    VmfRecord first; /* the record after the static data; its body is the reader's until the next read */
} VmfIncoming;
void vmf_incoming_free(VmfIncoming *incoming);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfIncoming, vmf_incoming_free)

/*
 * A one-way stream that is read by itself: as far as the first record that is not static data. Takes @channel, also where it fails.
 * VMF_ERROR_FEATURE where it wants answers.
 */
VmfIncoming *vmf_incoming_read(VmfChannel *channel, GError **error);

typedef struct VmfReception VmfReception;

typedef struct {
    VmfSession *session;
    const VmfStaticData *ours; /* of the guest, for comparing */
    GArray *owners;            /* of the guest; the winner's versions are noted in them before it is handed over */
    /* A page channel of session @preamble->session joins; takes @channel if it returns true. Any thread. */
    bool (*page_channel)(void *opaque, VmfChannel *channel, const VmfPreamble *preamble);
    /*
     * A question about a token, on a channel of its own; NONE with @error: it is not answered. answered() follows in any
     * case. Any thread.
     */
    VmfAnswer (*question)(void *opaque, const uint8_t token[VMF_TOKEN_SIZE], VmfQuestion question, GError **error);
    void (*answered)(void *opaque);
    /* About once in 100 ms: for deadlines. */
    void (*tick)(void *opaque);
    void *opaque;
} VmfReceptionConfig;

/* Starts to accept. */
VmfReception *vmf_reception_new(const VmfReceptionConfig *config, GError **error);
/* Ends all threads. */
void vmf_reception_free(VmfReception *reception);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfReception, vmf_reception_free)

/* Waits for the winner. NULL: cancelled, the listener is gone, or the only channel there can be was no good. */
VmfIncoming *vmf_reception_wait(VmfReception *reception, GError **error);

#endif
