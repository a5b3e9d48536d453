/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The embedder's side: what a VMM tells the engine about its guest.
 *
 * Build a VmfGuest once, before any session: identity, properties, RAM blocks, devices, handlers, dirty log. It is read-only while a
 * session uses it. One guest can be the subject of any number of sessions, one at a time.
 */
#ifndef VMFERRY_GUEST_H
#define VMFERRY_GUEST_H

#include <vmferry/ram.h>

G_BEGIN_DECLS

/*
 * Run control. All callbacks come from the session's thread, one at a time, never while the engine holds a lock.
 * A callback that is NULL is a capability the guest does not have; stop, start and is_running are required.
 */
typedef struct VmfGuestOps {
    size_t size; /* sizeof(VmfGuestOps) as the embedder was compiled */

    /*
     * Stops every vCPU and drains every device: when it returns true, nothing writes guest memory or device state until start().
     * Called once a migration on the source (again after start() if the session took the guest back). Stopping a stopped guest is
     * fine. False with @error: the migration fails, the guest goes on.
     */
    bool (*stop)(void *opaque, GError **error);

    /* Runs the guest. Source: after a failure past the stop. Target: after the handover, unless the guest arrives paused. */
    bool (*start)(void *opaque, GError **error);

    /* Whether the guest executes (false: paused by its owner; it then arrives paused). Also called before stop(). */
    bool (*is_running)(void *opaque);

    /*
     * Slows the vCPUs: they are to execute (100 - @percent) % of the time; 0 ends it. 0 to 99. NULL: the guest cannot be slowed. One
     * call at a time, but from any thread of the session's and beside another callback: while nothing gets through to the target the
     * guest is let go. Calls nothing of the engine.
     */
    void (*throttle)(void *opaque, unsigned percent);

    /*
     * Target, after start(): waits at most @timeout_ns for the guest's first sign of life and returns in @gap_ns how long the guest
     * had shown none, measured across the hosts. False: not known. It becomes guest_gap_ns at the source. May be NULL.
     */
    bool (*guest_gap)(void *opaque, int64_t timeout_ns, uint64_t *gap_ns);

    /*
     * Storage that both hosts can reach changes hands inside the handover. storage_release: source, after stop():
     * flush, close or unlock, so that another host may write. storage_acquire: target, ahead of start(): reopen without
     * stale cache, lock; source, when it takes the guest back, ahead of start(). Acquire fails while another holds it:
     * the target then refuses the guest, the source tries again, ten times a second, and does not run the guest until
     * it succeeds. A target that gives a guest up releases what it acquired. Both NULL: no such storage.
     */
    bool (*storage_release)(void *opaque, GError **error);
    bool (*storage_acquire)(void *opaque, GError **error);

    /*
     * A guest that runs while its memory is still being restored (vmferry/restore.h) needs a page that cannot be had; stop() comes
     * next, and the guest is not started again. True: the embedder is prepared for what a vCPU gets that touches such a page, SIGSEGV
     * in its thread (EFAULT from KVM_RUN), and brings it to stand there, for good. False, or NULL: the vCPU waits in its access, and
     * stop() takes it out of there by a signal, as KVM_RUN can be. Any thread; does not wait for the guest.
     */
    bool (*memory_lost)(void *opaque);

    /*
     * Such a guest needs a part of a disk that cannot be had, or not be written (disk_lost comes once, if ever); stop() comes next, and
     * the guest is not started again. Once this has returned, requests for what is missing end with an error: the embedder keeps that from
     * the guest, which does not get past waiting for them. Any thread, the disk's own among them; does not wait for the guest or the disk.
     * NULL: the guest may get to see its requests fail before it is stopped, as it would on a disk that has a defect.
     */
    void (*disk_lost)(void *opaque);
} VmfGuestOps;

/*
 * Where writes to the guest's memory are recorded, by vCPUs and devices alike (what a log of the kernel does not see of the latter, the
 * embedder marks). A write that could be seen in memory when harvest() began must be reported by it, unless
 * it was cleared since; reporting a page that did not change is allowed. (The engine takes a difference that the harvest does not
 * explain for damage: a log in which a write shows ahead of its record lets the vCPUs get past that point first.) Sequence: start,
 * then any number of harvest and clear, then stop.
 */
typedef struct VmfDirtyLogOps {
    size_t size; /* sizeof(VmfDirtyLogOps) */

    const char *name; /* "rv32", "kvm-bitmap", … for messages and statistics */

    /* Starts recording; from its return on every write is recorded. Session thread, guest running or not. */
    bool (*start)(void *opaque, GError **error);

    /* Stops recording. After a successful start only. */
    void (*stop)(void *opaque);

    /*
     * Reports, without clearing, the pages of block @block (index in the guest's list) written since they were last cleared:
     * @report is called any number of times with words of the block's bitmap, bit n of word w standing for page w * 64 + n. Words
     * that are zero may be left out, so a sparse block costs what is dirty. Session thread.
     */
    bool (*harvest)(void *opaque, unsigned block,
                    void (*report)(void *report_opaque, uint64_t first_word, const uint64_t *words, size_t n_words),
                    void *report_opaque, GError **error);

    /*
     * Clears the record of pages [first_page, first_page + n_pages), just before the engine reads them: a write that comes after is
     * to be reported by a later harvest. The range lies in one chunk and starts at a multiple of 64. @words (n_pages / 64 rounded
     * up, first_page at bit 0) holds the pages the engine is about to send; the log adds to it what it cleared beyond them.
     * Several threads at once, never two on one chunk.
     */
    void (*clear)(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words);
} VmfDirtyLogOps;

typedef struct VmfGuest VmfGuest;
typedef struct VmfSaveHandlers VmfSaveHandlers; /* vmferry/handlers.h */
typedef struct VmfDeviceState VmfDeviceState;   /* vmferry/device-state.h */

/*
 * @architecture: up to 31 bytes, compared at the target ("rv32", "x86_64"); @uuid: the machine's, 16 bytes. @ops is copied, as is
 * every table of callbacks given to a guest. The result is owned by the caller and outlives every session over it.
 *
 * This call, vmf_guest_set_property() and vmf_guest_set_dirty_log() always succeed; arguments that break their rules are kept as the
 * guest's fault, and each session over it then fails at once with VMF_ERROR_USAGE, saying which.
 */
VmfGuest *vmf_guest_new(const char *architecture, const uint8_t uuid[16], const VmfGuestOps *ops, void *opaque);
/* Frees the guest and its RAM blocks. */
void vmf_guest_free(VmfGuest *guest);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfGuest, vmf_guest_free)

/* The machine's UUID; any thread. A guest that was made with zeros takes that of the guest that is migrated into it. */
void vmf_guest_uuid(const VmfGuest *guest, uint8_t uuid[16]);

/*
 * Something both ends must agree on before a page moves ("cpu.model", "memory.size"): static data, compared for equality; a
 * difference is named as an incompatibility. Keys 1 to 63, values up to 255 bytes of UTF-8 without control characters; at most 256 of
 * them. A key that is set again takes the new value. Both are copied.
 */
void vmf_guest_set_property(VmfGuest *guest, const char *key, const char *value);

/*
 * Adds a block; the guest owns it from now on. False when the name is taken or there are too many: the block is the caller's still.
 * @index (may be NULL): its place in the guest's list.
 */
bool vmf_guest_add_ram(VmfGuest *guest, VmfRamBlock *block, unsigned *index, GError **error);
unsigned vmf_guest_n_ram(const VmfGuest *guest);
VmfRamBlock *vmf_guest_ram(const VmfGuest *guest, unsigned index);

void vmf_guest_set_dirty_log(VmfGuest *guest, const VmfDirtyLogOps *ops, void *opaque);

/*
 * Adds a device: @state describes it (its name, fields and subsections outlive the guest), @device points at its struct. Saved and
 * loaded in the order added. Its section has the name of @state.
 */
bool vmf_guest_add_device(VmfGuest *guest, const VmfDeviceState *state, uint32_t instance, void *device, GError **error);

/*
 * Adds an owner of state with handlers of its own. @name as in the stream: 1 to 63 bytes of printable ASCII, not "ram"; (name,
 * instance) is unique among handlers and devices.
 */
bool vmf_guest_add_handlers(VmfGuest *guest, const char *name, uint32_t instance, uint32_t version,
                            const VmfSaveHandlers *handlers, void *opaque, GError **error);

/*
 * A disk that the guest can write and that stays where it is when the guest is saved. The image of a guest names its disks and the state
 * in which each was at that instant; restoring refuses a disk that is another or has changed since, for memory and disk would contradict
 * each other. (A guest that moves takes its disks along: by storage_release and storage_acquire above where both hosts reach them, or as
 * copies.)
 *
 * Strings are UTF-8, newly allocated, freed by the engine with g_free(); NULL with @error fails the save or the restore. Session thread;
 * the guest is stopped. When restoring they are called twice: before a page is read, and after storage_acquire().
 */
typedef struct VmfDiskOps {
    size_t size; /* sizeof(VmfDiskOps) */

    uint64_t (*size_bytes)(void *opaque);
    /* What tells it from every other disk: a UUID, a path. 1 to 255 bytes. */
    char *(*identity)(void *opaque, GError **error);
    /* What tells its content from that before or after any write: a snapshot's id, a generation, a time of change. Up to 255 bytes. */
    char *(*mark)(void *opaque, GError **error);
    /*
     * The disk through which all of the guest's I/O goes (vmferry/block.h): it can be copied with the guest (VmfParameters.copy_disks), or
     * be what a copy arrives in. May be NULL: then it cannot. The disk is the embedder's and outlives every session.
     */
    struct VmfDisk *(*disk)(void *opaque);
} VmfDiskOps;

/* Adds a disk. @name: 1 to 63 bytes of printable ASCII, neither "all" nor "none", unique among the disks, the same when the guest is
 * restored. At most 256. */
bool vmf_guest_add_disk(VmfGuest *guest, const char *name, const VmfDiskOps *ops, void *opaque, GError **error);

G_END_DECLS
#endif
