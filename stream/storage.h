/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Seekable storage: a file, a block device or an NBD export, read and written at any offset, many requests at a time.
 *
 * A VmfStorage is the thing; a VmfStorageQueue is one thread's way to it. Requests are submitted to a queue and end in
 * any order, while that thread is inside a call of the queue; so a queue needs no lock, and work spreads over threads
 * by giving each a queue of its own. What executes them is a backend: io_uring, libaio, threads, or an NBD client. All
 * behave alike:
 *
 * - A request is whole or failed: short transfers are continued. What reaches past the end of the storage fails with
 *   VMF_ERROR_IO, writes too: set the size first.
 * - Two requests that overlap and are under way together end in no defined order. Who writes a place twice waits in
 *   between.
 * - Nothing is durable before vmf_storage_flush().
 * - VMF_ERROR_NO_SPACE where the storage is full, VMF_ERROR_IO for all else that goes wrong with it.
 *
 * A new file is written under another name and takes its own with vmf_storage_commit(), so that a name always stands
 * for a whole file.
 */
#ifndef STREAM_STORAGE_H
#define STREAM_STORAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include <vmferry/channel.h>

typedef struct VmfStorage VmfStorage;
typedef struct VmfStorageQueue VmfStorageQueue;

typedef enum {
    VMF_STORAGE_READ,   /* open for reading only */
    VMF_STORAGE_CREATE, /* a new file under PATH.partial, which replaces PATH when it is committed; a device or an
                           export is written in place */
    VMF_STORAGE_MODIFY, /* read and write what is there, in place */
} VmfStorageMode;

typedef struct {
    VmfStorageMode mode;
    VmfConnectFlags connect; /* nbd: VMF_CONNECT_INSECURE allows plaintext off the loopback */
    bool exclusive; /* MODIFY of a device: not one that is mounted, or somebody's who says so in the same way; as CREATE in any case */
    bool buffered; /* through the page cache; otherwise direct, where the storage can do it at 4096 bytes or finer */
    /*
     * Of exports: once it is true, whoever connects, and after two seconds also whoever waits for a server that says
     * nothing, gets VMF_ERROR_CANCELLED, as after vmf_storage_shutdown(). Outlives the storage. NULL: never.
     */
    const _Atomic bool *cancelled;
    bool connects; /* even then: a server that answers is reached */
    /* Of exports: a server that says nothing for so long while somebody waits for it is given up (VMF_ERROR_IO, timed out), as is
     * whatever is asked of it later. 0: who waits waits. */
    int64_t silence_ns;
    const char *backend; /* "io_uring", "libaio", "threads"; NULL or "auto": the first of these that works here. Of
                            files only */
} VmfStorageOptions;

/*
 * @uri: "file:PATH" (also a block device), or of an NBD export "nbd://HOST[:PORT]/EXPORT",
 * "nbd+unix:///EXPORT?socket=PATH", "nbd:unix:PATH[:exportname=EXPORT]" or "nbd:HOST:PORT[:exportname=EXPORT]".
 * VMF_ERROR_URI, VMF_ERROR_UNSUPPORTED where it was built without libnbd.
 */
VmfStorage *vmf_storage_open(const char *uri, const VmfStorageOptions *options, GError **error);
/* Queues have been freed. A new file that was not committed is removed. */
void vmf_storage_free(VmfStorage *storage);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfStorage, vmf_storage_free)

/*
 * Requests and calls that wait for a peer fail with VMF_ERROR_CANCELLED, now and for ever. Any thread. Files have no
 * peer: what is under way there ends by itself.
 */
void vmf_storage_shutdown(VmfStorage *storage);

const char *vmf_storage_name(const VmfStorage *storage);    /* for messages: the URI */
const char *vmf_storage_backend(const VmfStorage *storage); /* "io_uring", "libaio", "threads", "nbd" */
/* Bytes. Of a file: its size when it was opened, or as set since. Any thread. */
uint64_t vmf_storage_size(const VmfStorage *storage);
/*
 * What offsets, lengths and addresses of data must be multiples of: 1 if buffered, otherwise a power of two from 512 to
 * 4096; of an export what its server asks for. A filesystem that cannot do direct I/O, or only in larger units, is
 * buffered whatever was asked for.
 */
uint32_t vmf_storage_alignment(const VmfStorage *storage);
/* Whether the storage is written in place and so has no whole old version to fall back on: devices, exports,
 * VMF_STORAGE_MODIFY. */
bool vmf_storage_is_in_place(const VmfStorage *storage);
/*
 * Whether what is written must not change while it is under way (the storage computes checksums of it:
 * queue/stable_writes, NBD). Guest memory of a running guest is then to be copied first.
 */
bool vmf_storage_wants_stable_writes(const VmfStorage *storage);

/* ---- whole-storage calls: any thread; they block. Any request of which they are to speak has ended. -------------- */

/* Makes a file exactly so large; storage that cannot change its size has to be at least so large (VMF_ERROR_NO_SPACE).
 */
bool vmf_storage_set_size(VmfStorage *storage, uint64_t size, GError **error);
/*
 * Allocates [offset, offset + length) ahead of the writers; what it reads as stays the same. A hint: storage that has
 * no such thing is left as it is, and true. VMF_ERROR_NO_SPACE where there is not so much room.
 */
bool vmf_storage_preallocate(VmfStorage *storage, uint64_t offset, uint64_t length, GError **error);
/* All that has ended before is durable when it returns. */
bool vmf_storage_flush(VmfStorage *storage, GError **error);
/* Flushes, and a new file takes its name, durably; for other storage, and the second time, there is no name to take. */
bool vmf_storage_commit(VmfStorage *storage, GError **error);

/*
 * Blocking, for headers and tables; any thread; any alignment of @data, though offset and length must be aligned. Where
 * the size of the storage is no multiple of the alignment, a read may end there: this is the only way to that tail.
 */
bool vmf_storage_read(VmfStorage *storage, uint64_t offset, void *data, size_t length, GError **error);
bool vmf_storage_write(VmfStorage *storage, uint64_t offset, const void *data, size_t length, GError **error);

/* What of [offset, offset + length) is there: the first extent, never longer than what was asked for. */
typedef enum { VMF_EXTENT_DATA, VMF_EXTENT_ZERO } VmfExtentKind; /* ZERO: a hole, or known to read as zeros */
bool vmf_storage_extent(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind,
                        uint64_t *extent_length, GError **error);

/* ---- queues ------------------------------------------------------------------------------------------------------ */

typedef enum {
    VMF_REQUEST_READ,
    VMF_REQUEST_WRITE,
    VMF_REQUEST_ZERO,  /* reads as zeros from now on; frees the space where the storage can */
    VMF_REQUEST_FLUSH, /* what has ended before it was submitted is durable when it ends */
} VmfRequestKind;

#define VMF_REQUEST_IOV_MAX 512

typedef struct VmfStorageRequest VmfStorageRequest;
struct VmfStorageRequest {
    VmfRequestKind kind;
    bool fua;          /* WRITE, ZERO: durable when it ends */
    uint64_t offset;   /* bytes */
    uint64_t length;   /* READ and WRITE: the sum of the pieces */
    struct iovec *iov; /* READ, WRITE: 1 to VMF_REQUEST_IOV_MAX pieces; the caller's, until it has ended; what it says
                          is lost then */
    unsigned n_iov;
    /*
     * Called once, on the queue's thread, from within a call of the queue, though never from within the
     * vmf_storage_submit() that starts this very request. @error is the callee's to free; NULL if all went well. It may
     * submit again and may free the request.
     */
    void (*done)(VmfStorageRequest *request, GError *error);
    void *opaque; /* the caller's */

    /* The backend's; need not be initialised. */
    VmfStorageRequest *next;
    struct iovec *left; /* of iov, what has not been transferred yet */
    unsigned n_left;
    uint64_t progress; /* bytes */
    GError *error;
    unsigned attempts; /* that transferred nothing, in a row */
    uint8_t step;
    void *slot;
};

#define VMF_STORAGE_DEPTH_MAX 1024

/*
 * @depth: how many requests the storage is given at once, 1 to VMF_STORAGE_DEPTH_MAX. One thread at a time; who hands a
 * queue to another thread, or ends, has drained it. Any number of queues.
 */
VmfStorageQueue *vmf_storage_queue_new(VmfStorage *storage, unsigned depth, GError **error);
/* Waits for what is under way. */
void vmf_storage_queue_free(VmfStorageQueue *queue);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfStorageQueue, vmf_storage_queue_free)

/*
 * Takes @request, whose memory is the queue's until done() is called. Where the queue is full it first waits for one to
 * end. Requests below 64 KiB may be kept back until there are some, or until the next vmf_storage_poll() or
 * vmf_storage_wait(). It always ends by done().
 */
void vmf_storage_submit(VmfStorageQueue *queue, VmfStorageRequest *request);
/* Waits until at most @n requests are under way: 0 drains the queue. Calls done() of those that end. */
void vmf_storage_wait(VmfStorageQueue *queue, unsigned n);
/* Waits until one more has ended, or vmf_storage_wake() is called; there is one. Calls done() of those that have ended. */
void vmf_storage_wait_or_wake(VmfStorageQueue *queue);
/*
 * Ends the vmf_storage_wait_or_wake() that the queue's thread is in, or the next one. Any thread, as long as the queue
 * is there.
 */
void vmf_storage_wake(VmfStorageQueue *queue);
/* Calls done() of what has ended, without waiting. */
void vmf_storage_poll(VmfStorageQueue *queue);
/* Submitted, and done() has not been called yet. */
unsigned vmf_storage_under_way(const VmfStorageQueue *queue);

#endif
