/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The reference VMM: one guest with memory, vCPUs and a few devices, behind the embedder's interface
 * (vmferry/guest.h).
 *
 * Every function here may be called from any thread, one at a time for each machine; vmf_machine_get_info() and
 * vmf_machine_is_running() at any time. The engine calls in through vmf_machine_guest() from its session's thread.
 */
#ifndef MACHINE_MACHINE_H
#define MACHINE_MACHINE_H

#include <vmferry/bitmap-mover.h>
#include <vmferry/block.h>
#include <vmferry/guest.h>
#include <vmferry/restore.h>

G_BEGIN_DECLS

typedef struct VmfMachine VmfMachine;

#define VMF_MACHINE_DISKS_MAX 4

/* As VmfDiskOptions (vmferry/block.h). The same name and sector at both ends of a migration, in the same order; the size too, but of what
 * is copied. */
typedef struct {
    const char *name; /* up to 31 letters, digits, '-', '_' and '.' */
    const char *uri;
    VmfConnectFlags connect;
    uint32_t sector_bytes;
    uint64_t create_bytes;
    bool read_only, buffered, no_lock;
    const char *bitmaps;
    bool incoming, overwrite; /* the machine waits for a guest, whose disk may be copied into this one */
} VmfMachineDiskConfig;

typedef struct {
    const char *name;      /* for messages; copied */
    const char *backend;   /* "rv32" (also NULL), "kvm", or "auto": kvm where it works and has what is set here */
    unsigned vcpus;        /* 0: one. rv32 has one, kvm up to 8 */
    const char *dirty_log; /* "auto" (also NULL), or by name: "rv32"; on kvm "kvm-bitmap", "kvm-ring" or "uffd-wp" */
    uint64_t memory_bytes; /* main memory: 256 KiB to 2 GiB (1792 MiB on kvm), a multiple of 4096 */
    VmfRamBackend ram_backend;
    bool huge_pages;                 /* advise transparent huge pages (anon) */
    uint64_t dirty_bytes_per_second; /* the guest writes a page for every 4096 of these */
    uint64_t
        set_bytes; /* over that much memory, which it fills first; 0 with a dirty rate: 16 MiB, or half of memory */
    const VmfMachineDiskConfig *disks; /* copied */
    unsigned n_disks;
    uint64_t disk_bytes_per_second; /* the guest writes a block of 4096 to each disk for every so many of these, reads others, and checks */
    uint64_t disk_set_bytes;        /* on that much of each disk; 0 with a rate: 16 MiB, or all of it */
    uint32_t seed; /* of the order in which pages are written, and of what is written */
    uint32_t line_ms; /* a line on the console each so many guest milliseconds; 0: a second */
    bool unpaced;  /* rv32: as fast as the host can, instead of 100 million instructions a second */
    const char *console_path; /* appended to; NULL: the console goes nowhere */
    /* A file whose lock stands for storage that both hosts can reach: held while the guest may run here, handed over
     * with it. NULL: none. */
    const char *lock_path;
    uint64_t lose_write_seed; /* a fault: the dirty log loses one write, chosen by this (lossy-log.h); 0: it is sound */
    uint8_t uuid[16];
} VmfMachineConfig;

typedef struct {
    const char *backend;     /* "rv32" or "kvm" */
    const char *backend_why; /* where "auto" has not taken kvm: why. NULL otherwise; the machine's */
    bool running;
    char failure[160]; /* the guest cannot go on: why. "" otherwise */
    uint64_t memory_bytes; /* all RAM blocks */
    const char *dirty_log; /* "rv32", "kvm-bitmap", … */
    unsigned vcpus;
    uint64_t instructions; /* rv32: executed, or skipped in sleep: the guest's clock; may lag by a quarter of a guest
                              millisecond. kvm: 0 */
    uint64_t beats;
    uint64_t guest_errors;        /* found by the guest's check of itself */
    uint64_t guest_error_address; /* of the latest one */
    uint64_t guest_gap_max_ns;    /* longest time between two beats, pauses by the owner left out */
    uint64_t pages_written;
    uint64_t console_lines;
    uint64_t console_lines_lost; /* could not be written to the console's file */
    const char *lost_write_block; /* lose_write_seed: where the log has lost its write; NULL: it has not */
    uint64_t lost_write_page;
    unsigned throttle_percent;
    const char *lock_path; /* as configured; owned by the machine */
    bool lock_held;
    unsigned n_disks;
    VmfDiskInfo disks[VMF_MACHINE_DISKS_MAX];
} VmfMachineInfo;

/*
 * Sets what of @config the image fixes: backend, memory, vCPUs. A backend that is set already stays; restoring then says what does not
 * fit.
 * VMF_ERROR_INCOMPATIBLE: it is the image of another kind of machine.
 */
bool vmf_machine_config_for_image(VmfMachineConfig *config, const VmfImageMachine *image, GError **error);

/* A machine that stands at its first instruction; memory other than the ROM is untouched, so it can also be migrated
 * into. */
VmfMachine *vmf_machine_new(const VmfMachineConfig *config, GError **error);
/* Stops the guest and frees it. No session may be using it. */
void vmf_machine_free(VmfMachine *machine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfMachine, vmf_machine_free)

/* Owned by the machine. */
VmfGuest *vmf_machine_guest(VmfMachine *machine);
const char *vmf_machine_name(const VmfMachine *machine);
/* The disk that is called so, the machine's; NULL: there is none. */
VmfDisk *vmf_machine_disk(VmfMachine *machine, const char *name);
/* For who ends the machine: vmf_disk_give_up() of each of its disks. Any thread. */
void vmf_machine_give_up_disks(VmfMachine *machine);
/* Which bitmaps of its disks travel, and under which names (vmferry/bitmap-mover.h). No session uses the machine. */
bool vmf_machine_set_bitmap_map(VmfMachine *machine, const VmfBitmapMap *map, GError **error);

/* The owner's pause and resume: the time between counts as no gap. Both are fine where it is so already. */
bool vmf_machine_start(VmfMachine *machine, GError **error);
bool vmf_machine_stop(VmfMachine *machine, GError **error);
bool vmf_machine_is_running(VmfMachine *machine);

/*
 * While a session may move the guest its owner goes on to pause and resume it, from another thread. From lend to
 * take_back() neither gets into the other's way: once the session has stopped the guest the owner's start is refused,
 * and the owner's stop outlasts a start by the session, so that a guest that is to stay paused does. take_back() comes
 * after the session, unless the guest has gone.
 */
void vmf_machine_lend(VmfMachine *machine);
void vmf_machine_take_back(VmfMachine *machine);

/* Takes the storage's lock and the disks ahead of the first start, so that two owners of one guest find out at once. Fine where there is
 * none. */
bool vmf_machine_hold_storage(VmfMachine *machine, GError **error);

/*
 * How a device in user space writes guest memory: at once, and recorded in the dirty log. All of it lies in one RAM block
 * that is not the ROM. Any thread, whoever else is using the machine; no longer than it takes. False with @error: there
 * is no such memory, or the guest stands (VMF_ERROR_STATE), and the device comes again when it runs.
 */
bool vmf_machine_write_memory(VmfMachine *machine, uint64_t address, const void *data, size_t length, GError **error);

void vmf_machine_get_info(VmfMachine *machine, VmfMachineInfo *info);

/* Gives a stopped guest's memory back to the host: it has moved away and cannot be started here until it is migrated
 * back. */
bool vmf_machine_release_ram(VmfMachine *machine, GError **error);

/*
 * Digest of all that is the guest's: memory of all blocks, registers, devices; not of host clocks. The guest is
 * stopped. Two rv32 guests with the same configuration have the same digest at the same instruction count, whatever happened
 * to them on the way.
 */
bool vmf_machine_hash(VmfMachine *machine, uint8_t out[16], GError **error);

/*
 * For tests; rv32 only. The next stop, whoever asks for it, happens at exactly this instruction count: the vCPU never goes beyond
 * it (it waits there for the stop), and a stop that comes early returns when it is reached, which is not paced. The
 * stop uses it up. 0: off. False: the count is passed already.
 */
bool vmf_machine_stop_at(VmfMachine *machine, uint64_t instruction, GError **error);

/* rv32 only. Runs a stopped guest to exactly this instruction count, unpaced, and stops it there. */
bool vmf_machine_run_to(VmfMachine *machine, uint64_t instruction, GError **error);

G_END_DECLS
#endif
