/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Restoring a guest from a seekable image (docs/fixed-ram-format.rst): a session that runs, is cancelled and tells of itself as migrations
 * do (session.h).
 */
#ifndef VMFERRY_RESTORE_H
#define VMFERRY_RESTORE_H

#include <vmferry/session.h>

G_BEGIN_DECLS

typedef enum {
    VMF_RESTORE_EAGER, /* all memory is there before the guest runs */
    VMF_RESTORE_LAZY,  /* the guest runs first; what it touches is brought at once, the rest behind its back */
} VmfRestoreMode;

typedef struct VmfRestoreOptions {
    size_t size; /* sizeof(VmfRestoreOptions) */
    /* "file:PATH" or an NBD export ("nbd://HOST/EXPORT", "nbd+unix:///EXPORT?socket=PATH"); copied, as all strings here. */
    const char *uri;
    /* URIs of images that may be parents of layers, tried ahead of the names in the layers. Ends with NULL; NULL: none. */
    const char *const *parents;
    VmfConnectFlags flags;  /* VMF_CONNECT_INSECURE: NBD in plaintext off the loopback */
    bool buffered;          /* through the page cache, also where direct reads are possible */
    const char *backend;    /* "io_uring", "libaio", "threads"; NULL: what works best here */
    bool force_stale_disks; /* restore although a disk has changed since, or is another; each is reported as event "disk.stale" */
    bool paused;            /* the guest stays stopped, whatever it was when it was saved */
    VmfRestoreMode mode;
    /* Lazy: the file with the order in which a guest touched its pages, to read ahead in. NULL: none; it may be missing. */
    const char *order_path;
    bool record_order;      /* lazy: order_path is written anew, with what this guest touches */
    bool kernel_touches;    /* lazy: the kernel touches guest memory, as KVM does: refuse where a host cannot let that wait */
    int64_t silence_ns;     /* vmf_image_machine_read(): an NBD server that says nothing for so long is given up; 0: 30 s */
} VmfRestoreOptions;

/*
 * Restores into @guest, which stands at its first instruction, like the target of a migration. Disks whose content is in the image are
 * written first, by the rules for copied disks that arrive (vmferry/block.h, VmfDiskOptions.incoming,
 * .overwrite): the guest's disk of that name is their place. Where the session fails they are given up again. Other disks are compared.
 * @guest and @ops outlive the session, all
 * else is copied. Of @parameters those count that mean something without a peer: channels (how many threads read), fault.
 *
 * vmf_session_run() returns true once all memory, and each such disk, is there and the guest was started (or stays stopped). False:
 * nothing of it is left here. The image is never written to, so it can be restored again.
 *
 * Lazily, the guest runs (or stays stopped) from status "postcopy-active" on, is its owner's to pause and resume, and can be the subject of
 * another session: a migration away brings what is missing as it goes. A cancel still takes the guest back: it is stopped, nothing of it is
 * left. A page that cannot be had, or a part of a disk, stops it, and the session holds it (vmf_session_hold()) with that reason: it is
 * never given wrong bytes. Nobody can run it any more; vmf_session_resolve() without @run gives it up, with the page's error.
 *
 * Lazily, a disk that is a file can be used from the start on as well, under its other name ("PATH.partial"); it takes its own when all
 * of it has come. Until then vmf_disk_release() of it fails (VMF_ERROR_STATE), as do backups; a migration or a save of the guest does not
 * stop it before.
 * Devices and exports, which have no other name, are written before the guest is started.
 */
VmfSession *vmf_session_new_restore(VmfGuest *guest, const VmfRestoreOptions *options, const VmfParameters *parameters,
                                    const VmfSessionOps *ops, void *opaque);

/* ---- what an image asks for ----------------------------------------------------------------------------------------------------- */

/* The machine that an image was saved from, for making one that it can be restored into. */
typedef struct VmfImageMachine VmfImageMachine;

/* Reads and checks the image's head; parents are not looked for. Nobody can cancel it, so a silent server is given up. */
VmfImageMachine *vmf_image_machine_read(const VmfRestoreOptions *options, GError **error);
void vmf_image_machine_free(VmfImageMachine *machine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageMachine, vmf_image_machine_free)

const char *vmf_image_machine_architecture(const VmfImageMachine *machine);
void vmf_image_machine_uuid(const VmfImageMachine *machine, uint8_t uuid[16]);
/* As the guest had it (vmf_guest_set_property()); NULL: it had none of that name. The machine's. */
const char *vmf_image_machine_property(const VmfImageMachine *machine, const char *key);
/* Whether the image holds the content of the disk of this name: then it arrives in the machine's (VmfDiskOptions.incoming). */
bool vmf_image_machine_holds_disk(const VmfImageMachine *machine, const char *name);

/* Whether the file or device at @path begins as an image does, whole or not. False where it cannot be read. */
bool vmf_image_is_at(const char *path);

G_END_DECLS
#endif
