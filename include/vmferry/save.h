/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Saving a guest into a seekable image (docs/fixed-ram-format.rst). It is a session: it runs, is cancelled and tells of itself as a
 * migration does (session.h).
 */
#ifndef VMFERRY_SAVE_H
#define VMFERRY_SAVE_H

#include <vmferry/session.h>

G_BEGIN_DECLS

typedef struct {
    size_t size;      /* sizeof(VmfSaveOptions) */
    const char *uri;  /* "file:PATH" (or of a device), "nbd:HOST:PORT[:exportname=EXPORT]", "nbd://HOST/EXPORT", "nbd+unix:…" */
    const char *parent;    /* URI of an image: only what differs from it is written, as a layer over it. NULL: a whole image */
    VmfConnectFlags flags; /* VMF_CONNECT_INSECURE: NBD in plaintext off the loopback */
    bool buffered;         /* through the page cache, also where direct writes are possible */
    const char *backend;   /* "io_uring", "libaio", "threads"; NULL: what works best here */
    /*
     * The guest is stopped ahead of the first page, and stands still until the last is written. Otherwise it runs while its memory is
     * written, in rounds, and is stopped for the last of them.
     */
    bool stop_first;
    /*
     * Once its memory and state are in, the guest goes on if it ran; that the image is made durable it does not wait for. Otherwise it
     * stays stopped, for its owner to let go on or to end. A guest that goes on writes its disks, and the image belongs to them as they
     * were: with disks (vmf_guest_add_disk) that are not in the image this is refused, unless @ram_only.
     */
    bool resume;
    bool ram_only; /* the image says nothing of the guest's disks: they are its owner's business. Not with disks in the image */
    /*
     * The image is the guest at one moment soon after the start, which is all it is stopped for; it runs on while its memory as it was
     * then is written, once each page. Its writes wait where they are ahead of that. With @resume, and not with @stop_first or
     * pause_before_switchover: those are VMF_ERROR_USAGE. VMF_ERROR_UNSUPPORTED: this host cannot protect the guest's memory, or it is
     * watched by userfaultfd already, by the guest's dirty log or a restore that is not over.
     */
    bool point_in_time;
    bool kernel_writes; /* for it: the kernel writes guest memory, as KVM does: refuse where a host cannot let that wait */
    bool force;         /* a device is overwritten whatever it holds; otherwise not one with a filesystem or a partition table
                           (VMF_ERROR_DISK_PLACE). What is in use is not overwritten in any case (VMF_ERROR_LOCKED, VMF_ERROR_IO) */
} VmfSaveOptions;

/*
 * @guest and @ops outlive the session, everything else is copied.
 *
 * Of @parameters: copy_disks (whose content is in the image, as of the same instant; a layer holds what differs from the parent, which has
 * to hold the same disks), verify_disks (not at a point in time), channels (how many threads write), downtime_limit_ns, max_bandwidth,
 * timeout_ns, pause_before_switchover, minimum_rounds, throttle_maximum, policy, and audit: memory that stands still is hashed again and
 * compared with what was written, ahead of the commit; BEFORE also inside the downtime of a guest that goes on, AFTER only where it stays
 * stopped. At a point in time BEFORE hashes memory at that moment, inside the downtime, and compares what was written with that.
 * dry_run and stream version 2 are VMF_ERROR_USAGE; the rest speaks of a peer and means nothing.
 *
 * vmf_session_run() is true once the image is whole, durable and has its name: it is written beside it, as PATH.partial (a device or an
 * export: in place). False with @error: no file of that name was touched, and the guest is as it was.
 */
VmfSession *vmf_session_new_save(VmfGuest *guest, const VmfSaveOptions *options, const VmfParameters *parameters,
                                 const VmfSessionOps *ops, void *opaque);

G_END_DECLS
#endif
