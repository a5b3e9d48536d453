/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Channels from the inside: the table that an implementation fills in, and the calls that the engine makes.
 *
 * An implementation embeds VmfChannel as its first member, allocates itself with g_new0() and calls vmf_channel_init().
 * The engine calls the helpers below, never the table: they take care of partial transfers, of empty entries and of
 * IOV_MAX.
 */
#ifndef VMF_STREAM_CHANNEL_H
#define VMF_STREAM_CHANNEL_H

#include <vmferry/channel.h>
#include <vmferry/error.h>
#include <sys/types.h>
#include <sys/uio.h>

/*
 * Unless an entry says otherwise: one reader and one writer thread at a time; the vector is not changed; a failure sets
 * the error. Vectors have 1 to IOV_MAX entries, of which the first is not empty.
 */
typedef struct VmfChannelOps {
    const char *kind; /* "socket", "memory", …: for messages and tests */

    /*
     * Fills the vector from its start with what is there, at least one byte; waits for that byte. Returns the bytes
     * read, 0 at the end of the stream (also after shutdown), or -1. Never waits when wait_readable() has just
     * returned 1. Reader thread.
     */
    ssize_t (*readv)(VmfChannel *channel, const struct iovec *iov, int n, GError **error);

    /*
     * The reader can do nothing with less than @bytes more, 0: with anything. Where readv() has to wait, it may wait for all of them, or
     * for a part. Reader thread. NULL: it makes no difference.
     */
    void (*expect)(VmfChannel *channel, size_t bytes);

    /*
     * Sends at least one byte from the start of the vector, waiting for room. Returns the bytes taken, or -1:
     * VMF_ERROR_CUT when the peer is gone, VMF_ERROR_CANCELLED after shutdown. The bytes may still change in the
     * caller's memory while they are sent, never after the return. Writer thread.
     */
    ssize_t (*writev)(VmfChannel *channel, const struct iovec *iov, int n, GError **error);

    /* 1: a byte or the end of the stream is there. 0: @timeout_ns passed first (negative: for ever). -1: error. Reader
     * thread. */
    int (*wait_readable)(VmfChannel *channel, int64_t timeout_ns, GError **error);

    /*
     * Whether writev() would not wait for room, as far as can be seen: for who has other channels to write to. Writer thread. NULL:
     * always.
     */
    bool (*has_room)(VmfChannel *channel);

    /* Bytes that writev() took and that the peer's host has not acknowledged. Any thread. NULL: the channel cannot
     * tell. */
    uint64_t (*unsent_bytes)(VmfChannel *channel);

    /*
     * The writer is done and everything went well: makes what was written durable and visible, waits for who consumes
     * it. Nothing is written afterwards. At most once, writer thread. NULL: nothing to do.
     */
    bool (*finish)(VmfChannel *channel, GError **error);

    /* Wakes the reader and the writer, now and for ever. Any thread, any number of times, at the same time as
     * everything but free. */
    void (*shutdown)(VmfChannel *channel);

    /* Releases what the implementation holds; the caller frees the name and the struct itself. Once, nobody else uses
     * the channel. */
    void (*free)(VmfChannel *channel);
} VmfChannelOps;

struct VmfChannel {
    const VmfChannelOps *ops;
    char *name;   /* owned */
    bool one_way; /* bytes go in one direction only: there is no answer to wait for */
};

void vmf_channel_init(VmfChannel *channel, const VmfChannelOps *ops, const char *name, bool one_way);

bool vmf_channel_is_one_way(const VmfChannel *channel);

/* Reads exactly @len bytes. An end of the stream before that is VMF_ERROR_CUT. */
bool vmf_channel_read_all(VmfChannel *channel, void *buf, size_t len, GError **error);

/* The same, but an end before the first byte is no error: returns true and sets *@ended (always set on return). */
bool vmf_channel_read_all_or_end(VmfChannel *channel, void *buf, size_t len, bool *ended, GError **error);

/* The same, until @deadline_monotonic_ns (CLOCK_MONOTONIC) at the latest: then VMF_ERROR_TIMEOUT. For handshakes. */
bool vmf_channel_read_all_deadline(VmfChannel *channel, void *buf, size_t len, int64_t deadline_monotonic_ns,
                                   GError **error);

/* Scatter and gather all of @n entries, any number of them. @iov is scratch: its contents are undefined afterwards. */
bool vmf_channel_readv_all(VmfChannel *channel, struct iovec *iov, int n, GError **error);
bool vmf_channel_writev_all(VmfChannel *channel, struct iovec *iov, int n, GError **error);

bool vmf_channel_write_all(VmfChannel *channel, const void *buf, size_t len, GError **error);

/* 1 readable or ended, 0 timeout, -1 error; a negative timeout waits for ever. */
int vmf_channel_wait_readable(VmfChannel *channel, int64_t timeout_ns, GError **error);

bool vmf_channel_has_room(VmfChannel *channel);

uint64_t vmf_channel_unsent_bytes(VmfChannel *channel);

/*
 * Commits what was written: a file gets its name, a command is waited for and its exit status checked. A channel that
 * is freed without it leaves no file that claims to be whole. For sockets and memory: nothing. Once, by the writer,
 * after its last write.
 */
bool vmf_channel_finish(VmfChannel *channel, GError **error);

/* ---- for implementations ---------------------------------------------------------------------------------------- */

/* "NAME: @operation: cause", as VMF_ERROR_CUT when @err says that the peer is gone, VMF_ERROR_IO otherwise. Returns -1.
 */
int vmf_channel_error_errno(const VmfChannel *channel, const char *operation, int err, GError **error);

/* A write after shutdown. Returns -1. */
int vmf_channel_error_shut_down(const VmfChannel *channel, GError **error);

/* A read of a write-only channel, or the reverse. Returns -1. */
int vmf_channel_error_direction(const VmfChannel *channel, const char *operation, GError **error);

size_t vmf_iov_length(const struct iovec *iov, int n);

/* Copies the first @limit bytes' worth of entries of @iov to @out (room for @n). Returns how many entries that is. */
int vmf_iov_head(struct iovec *out, const struct iovec *iov, int n, size_t limit);

#endif
