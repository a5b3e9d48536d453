/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Backups of a disk while its guest runs: all of it, or what a dirty bitmap has, as it was at one moment. A part that
 * the guest is about to write and that was not copied yet is read first, and the write waits for that read (for the
 * target too, once 16 MiB that were read wait to be written there). A backup that fails costs the guest nothing but
 * that time.
 *
 * Whoever has a full backup and every incremental one since, written over it in their order, has the disk as it was at
 * the moment of the last.
 */
#ifndef VMFERRY_BACKUP_H
#define VMFERRY_BACKUP_H

#include <vmferry/bitmap.h>

#ifdef __cplusplus
#include <atomic>
typedef std::atomic<bool> VmfFlag;
#else
typedef _Atomic bool VmfFlag; /* any thread sets it */
#endif

G_BEGIN_DECLS

typedef struct VmfBackup VmfBackup;

typedef struct {
    size_t size;             /* sizeof(VmfBackupOptions) */
    const char *target;      /* as VmfDiskOptions.uri; at least as large as the disk where it is there already */
    VmfConnectFlags connect; /* nbd: VMF_CONNECT_INSECURE allows plaintext off the loopback */
    /*
     * What it has dirty is copied onto the base that @target holds, and it begins anew, with the moment that the backup
     * shows, once that is durable there. If it is not, the bitmap has all that it had, and the target is neither base
     * nor backup until a later backup with the same bitmap has succeeded. NULL: all of the disk is copied, to a file
     * that takes its name once it is whole, or onto a device or an export.
     */
    const char *bitmap;
    bool full; /* with a bitmap: all of the disk is copied all the same, as the base of what comes; the bitmap begins
                  anew */
    bool buffered; /* through the page cache; otherwise direct, where the target can do it */
    uint64_t
        bytes_per_second; /* of reading and writing; what a guest's write waits for is not held back. 0: no limit */
    void (*ended)(VmfBackup *backup,
                  void *opaque); /* on the backup's thread, its last deed; not if it did not begin. May be NULL */
    void *opaque;
    bool force; /* a device is overwritten whatever it holds; otherwise not one with a filesystem or a partition table, where all
                   of the disk is copied. A device that is in use is not overwritten in any case */
    int64_t silence_ns; /* an NBD server that says nothing for so long while it is waited for is given up: VMF_ERROR_IO; 0: 30 s */
    /*
     * Once it is true vmf_backup_begin() gives up where it waits, for an NBD server or for changes of the disk that do not
     * end: VMF_ERROR_CANCELLED, and what it held goes on. What has begun is ended by vmf_backup_cancel(). It outlives the
     * backup. NULL: never.
     */
    const VmfFlag *cancelled;
} VmfBackupOptions;

/*
 * Begins; the moment is when it returns. Changes that are under way then are waited for, those that come meanwhile
 * wait: it takes as long as the disk's storage and the target's server do, or until it is cancelled. One at a time for a
 * disk. VMF_ERROR_STATE: there is one, or the disk is released; VMF_ERROR_USAGE, VMF_ERROR_BITMAP: of the bitmap
 * (vmferry/bitmap.h); VMF_ERROR_LOCKED: another uses the file or device at @target, which is locked as a disk's until
 * the end; VMF_ERROR_DISK_PLACE: @force; VMF_ERROR_DISK_BASE: there is no base at @target, or a file of another size, or
 * it differs in a sample of what is clean in a bitmap that records, which is compared ahead of the moment;
 * VMF_ERROR_URI, VMF_ERROR_CONNECT, VMF_ERROR_IO, VMF_ERROR_NO_SPACE: of the target; VMF_ERROR_CANCELLED: @cancelled.
 *
 * A disk that is released ends its backup, which fails with VMF_ERROR_CANCELLED. The disk outlives the backup.
 */
VmfBackup *vmf_backup_begin(VmfDisk *disk, const VmfBackupOptions *options, GError **error);
/* Any thread: it ends soon, with VMF_ERROR_CANCELLED, unless it is through. */
void vmf_backup_cancel(VmfBackup *backup);
/* Waits for its end. True: it is durable at the target. Otherwise VMF_ERROR_CANCELLED, VMF_ERROR_IO,
 * VMF_ERROR_NO_SPACE. Any number of times. */
bool vmf_backup_wait(VmfBackup *backup, GError **error);
/* Cancels it if it still runs, and waits. Not from ended(). NULL is allowed. */
void vmf_backup_free(VmfBackup *backup);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfBackup, vmf_backup_free)

typedef struct {
    size_t size; /* sizeof(VmfBackupProgress), set by the caller */
    bool ended;
    uint64_t total_bytes;   /* that are to be copied, in units of 64 KiB; holes included */
    uint64_t done_bytes;    /* of those */
    uint64_t written_bytes; /* data that the target was given; the rest were zeros */
    uint64_t early_bytes;   /* that were read ahead of their turn: the guest was about to write there */
} VmfBackupProgress;

/* Any thread. */
void vmf_backup_get_progress(VmfBackup *backup, VmfBackupProgress *progress);

G_END_DECLS
#endif
