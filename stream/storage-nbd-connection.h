/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One connection to an NBD server, which any number of threads use at once.
 *
 * Commands are issued, and their callbacks run, with @lock held. Whoever waits for one moves the connection on for all,
 * one of them at a time; the others sleep until something has moved.
 */
#ifndef STREAM_STORAGE_NBD_CONNECTION_H
#define STREAM_STORAGE_NBD_CONNECTION_H

#include "stream/storage-uri.h"

#include <vmferry/channel.h>

#include <libnbd.h>
#include <pthread.h>
#include <stdatomic.h>

typedef struct {
    struct nbd_handle *nbd;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    bool driven; /* some thread is moving it on, and sleeps in poll() perhaps */
    int kick;    /* an eventfd: ends that sleep */
    const _Atomic bool *cancelled;
    int64_t silent_since_ns; /* cancelled, and nothing has moved since; 0: neither */
    int64_t silence_ns;      /* who waits gives up a server that says nothing for so long; 0: never */
    int64_t waiting_since_ns; /* nothing has moved since; 0: nobody waits */
    bool gave_up;             /* because of that */
} VmfNbdConnection;

/* Connects and shakes hands; VMF_ERROR_CONNECT, VMF_ERROR_INSECURE. @cancelled: as in VmfStorageOptions. */
VmfNbdConnection *vmf_nbd_connect(const VmfStorageUri *uri, VmfConnectFlags flags, const _Atomic bool *cancelled,
                                  GError **error);
/* Nothing is under way. */
void vmf_nbd_connection_free(VmfNbdConnection *connection);

/* Under the lock: after commands were issued, so that whoever sleeps sees to it that they go out. */
void vmf_nbd_connection_kick(VmfNbdConnection *connection);
/* Under the lock, which it gives up meanwhile: sleeps until something has moved, perhaps what the caller waits for. */
void vmf_nbd_connection_wait(VmfNbdConnection *connection);
/* Ends the sleep of everybody who waits, though nothing has moved. Any thread, without the lock. */
void vmf_nbd_connection_wake(VmfNbdConnection *connection);
/* Under the lock: moves on what can be moved on without waiting. */
void vmf_nbd_connection_poll(VmfNbdConnection *connection);
/* What @err of a command is to be told as: ETIMEDOUT where the server was given up for its silence. Under the lock. */
int vmf_nbd_connection_reason(const VmfNbdConnection *connection, int err);
/* Why a command could not be issued: an errno. Under the lock, just after. */
int vmf_nbd_connection_errno(VmfNbdConnection *connection);
bool vmf_nbd_connection_is_cancelled(const VmfNbdConnection *connection);
/* Every command under way fails, and every later one. Any thread. */
void vmf_nbd_connection_shutdown(VmfNbdConnection *connection);

#endif
