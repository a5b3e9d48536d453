/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks. All of a guest's I/O goes through a VmfDisk, so that the engine sees every write: it finds out which parts a migration has to
 * send again, keeps every other writer away, and gives the storage from one host to the other inside the handover.
 *
 * A disk is opened released: its size is known, nobody is kept away, no request is taken. vmf_disk_acquire() makes it this process's.
 * Requests may be submitted by any thread and end on the disk's own thread. A request that fails (the storage is full, it has an error)
 * is the guest's to hear of, and nothing else: the disk goes on.
 */
#ifndef VMFERRY_BLOCK_H
#define VMFERRY_BLOCK_H

#include <sys/uio.h>

#include <vmferry/channel.h>
#include <vmferry/guest.h>

G_BEGIN_DECLS

typedef struct VmfDisk VmfDisk;

typedef struct {
    size_t size; /* sizeof(VmfDiskOptions) */
    /* "file:PATH" (also a block device), or an NBD export: "nbd://HOST[:PORT]/EXPORT", "nbd+unix:///EXPORT?socket=PATH" */
    const char *uri;
    VmfConnectFlags connect; /* nbd: VMF_CONNECT_INSECURE allows plaintext off the loopback */
    uint32_t sector_bytes;   /* 512 or 4096, the least that is read or written; 0: 512 */
    /* A file that is not there is made, this large, all zeros, when it is acquired;
     * one that is there has to be so large. 0: it is there. */
    uint64_t create_bytes;
    bool read_only; /* other readers are allowed, a writer is not */
    bool buffered;  /* through the page cache; otherwise direct, where the storage can do it in units of a sector */
    /*
     * Nobody is kept away. What cannot be locked (an export, a filesystem without such locks) is acquired for writing in no other way:
     * then it is the embedder who says that there is one writer.
     */
    bool no_lock;
    /*
     * The disk may arrive with a guest that is migrated into this one: a file need not be there, and its size is that of the disk which
     * comes. What is there already is replaced by a copy only if it is not smaller, nobody uses it, and it holds no filesystem and no
     * partition table; @overwrite: those two may go too. Where the source says that a base of the disk is here
     * (VmfParameters.incremental_bitmap) it is written over, once it was found to be that.
     */
    bool incoming, overwrite;
    const char *backend; /* "io_uring", "libaio", "threads"; NULL or "auto": the first of these that works here */
    const char *bitmaps; /* the file of its persistent bitmaps (vmferry/bitmap.h); NULL: the disk's own with ".bitmaps" behind; a device
                            and an export have none then */
} VmfDiskOptions;

/*
 * @name: for messages; 1 to 63 bytes. Nothing is kept open. VMF_ERROR_URI; VMF_ERROR_IO: it cannot be read, or its size is no multiple of
 * a sector; VMF_ERROR_USAGE.
 */
VmfDisk *vmf_disk_open(const char *name, const VmfDiskOptions *options, GError **error);
/* Waits for what is under way, and releases it. NULL is allowed. */
void vmf_disk_free(VmfDisk *disk);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfDisk, vmf_disk_free)

/* ---- requests ---------------------------------------------------------------------------------------------------- */

typedef enum {
    VMF_DISK_READ,
    VMF_DISK_WRITE,
    VMF_DISK_ZERO,    /* reads as zeros from now on */
    VMF_DISK_DISCARD, /* its content is of no use any more: reads as zeros, and takes no space where the storage can do so */
    VMF_DISK_FLUSH,   /* what had ended when it was submitted is durable when it ends */
} VmfDiskOperation;

#define VMF_DISK_IOV_MAX 512
#define VMF_DISK_REQUEST_MAX (32u << 20) /* bytes of a READ or WRITE */

typedef struct VmfDiskRequest VmfDiskRequest;
struct VmfDiskRequest {
    VmfDiskOperation operation;
    bool fua;        /* WRITE, ZERO: durable when it ends */
    uint64_t offset; /* bytes, as length a multiple of a sector */
    uint64_t length;
    /*
     * READ, WRITE: 1 to VMF_DISK_IOV_MAX pieces, length bytes in all; the array is read while it is submitted, the memory until it ends.
     * Memory that is aligned to 4096 bytes, in pieces of such a multiple, saves a copy. What is written may change meanwhile: the disk
     * then has some of each.
     */
    const struct iovec *iov;
    unsigned n_iov;
    /*
     * Called once, on the disk's thread; never from within vmf_disk_submit(). @error: VMF_ERROR_NO_SPACE, VMF_ERROR_IO, VMF_ERROR_MEMORY;
     * VMF_ERROR_STATE: the disk is released; NULL: all went well. It is the disk's. It may submit again, free the request, and take locks
     * that are held elsewhere around vmf_disk_submit(); it must not wait for the disk.
     */
    void (*done)(VmfDiskRequest *request, const GError *error);
    void *opaque; /* the submitter's */
};

/* Any thread. Two requests that overlap and are under way together end in no defined order. @request lives until done(). */
void vmf_disk_submit(VmfDisk *disk, VmfDiskRequest *request);
/* Waits until done() of everything that was submitted has returned. Any thread but the disk's. */
void vmf_disk_drain(VmfDisk *disk);

/* ---- whose it is ------------------------------------------------------------------------------------------------- */

/*
 * Locks the storage and opens it, without what a cache may hold of former times. Fine where it is acquired already. VMF_ERROR_LOCKED:
 * another has it, in this process, on this host, or on one that shares the filesystem; VMF_ERROR_IO: it is not so large as it was.
 *
 * The lock is one of open file descriptions (fcntl(2), F_OFD_SETLK), on octets 100 to 203 of the file, as QEMU uses them: each keeps the
 * other away. It ends with the process, however that ends. On a block device it is known to this host alone.
 */
bool vmf_disk_acquire(VmfDisk *disk, GError **error);
/*
 * Drains, flushes, closes, unlocks: another host may write from now on. Requests that come later fail. Fine where it is released already.
 * False: it could not be flushed, or a part of it is still being restored (vmferry/restore.h; VMF_ERROR_STATE), and is acquired still.
 */
bool vmf_disk_release(VmfDisk *disk, GError **error);

/*
 * For who ends, whatever becomes of the disk: from now on its NBD server is not waited for longer than two seconds in
 * which it says nothing (ten, where it is connected to), so that vmf_disk_free() returns: VMF_ERROR_CANCELLED. A copy
 * cannot begin to arrive any more. Any thread.
 */
void vmf_disk_give_up(VmfDisk *disk);

/* For vmf_guest_add_disk(), with the VmfDisk: how images of the guest know the disk again (docs/fixed-ram-format.rst, "DISK"). */
extern const VmfDiskOps vmf_disk_guest_ops;

/* ---- what it is -------------------------------------------------------------------------------------------------- */

typedef struct {
    size_t size;      /* sizeof(VmfDiskInfo), set by the caller */
    const char *name; /* as uri and backend valid as long as the disk */
    const char *uri;
    const char *backend; /* NULL: it is released */
    uint64_t size_bytes; /* 0: not known before it arrives */
    uint32_t sector_bytes;
    bool read_only;
    bool acquired;
    bool locked; /* acquired, and others are kept away */
    bool direct; /* acquired, and not through the page cache */
    uint64_t reads, writes, zeroes, flushes; /* that have ended; zeroes: DISCARD too */
    uint64_t read_bytes, written_bytes;
    uint64_t failures; /* of all kinds */
} VmfDiskInfo;

/* Any thread. */
void vmf_disk_get_info(VmfDisk *disk, VmfDiskInfo *info);
uint64_t vmf_disk_size(const VmfDisk *disk); /* bytes; 0: not known before it arrives */
uint32_t vmf_disk_sector_size(const VmfDisk *disk);
const char *vmf_disk_name(const VmfDisk *disk);

G_END_DECLS
#endif
