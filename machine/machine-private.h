/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine's parts: machine.c assembles them, vcpu.c is their run control, devices.c answers the guest, device-memory.c
 * is how devices reach its memory, device-state.c saves and loads. What executes the guest is a backend: rv32 (rv32*.c) or kvm (kvm*.c).
 *
 * One lock guards all but memory and what a vCPU consists of, which belongs to the vCPU's thread while it runs a slice, and to
 * whoever holds the lock while all vCPUs stand.
 */
#ifndef MACHINE_MACHINE_PRIVATE_H
#define MACHINE_MACHINE_PRIVATE_H

#include <pthread.h>
#include "machine/disks.h"
#include "machine/guest/boot.h"
#include "machine/lossy-log.h"
#include "machine/machine.h"
#include "machine/rv32.h"
#include "machine/storage-lock.h"

/* Indexes in the guest's list of RAM blocks. */
enum { BLOCK_ROM, BLOCK_RAM, BLOCK_VRAM, N_BLOCKS };

typedef struct {
    uint64_t compare;
} VmfTimer;

typedef struct {
    uint64_t lines;  /* complete ones */
    uint32_t length; /* of the line that is not complete yet: it travels, so no line is cut in two files */
    uint8_t text[124];
} VmfConsole;

typedef struct {
    uint64_t beats;
    uint64_t pages_written;
    uint64_t errors;
    uint64_t error_address;
    uint64_t last_monotonic_ns; /* of the latest beat; 0: none that counts */
    uint64_t last_realtime_ns;
    uint64_t gap_max_ns;
    uint8_t boot_id[16]; /* of the host that saw the latest beat */
} VmfBeat;

#define VMF_VCPUS_MAX GUEST_CPUS_MAX

/* A vCPU's thread, as run control sees it. */
typedef struct {
    pthread_t thread;
    bool executing;  /* inside a slice */
    uint64_t slices; /* ended */
} VmfVcpuTurn;

/* What executes a guest. One for each kind, constant. */
typedef struct {
    const char *name;         /* "rv32" */
    const char *architecture; /* in the stream */
    const char *machine_type; /* bumped with whatever the guest could tell apart: memory map, registers */
    uint64_t memory_max;      /* bytes */
    unsigned vcpus_max;
    uint32_t disk_delay;           /* instructions from a disk's command to its end; 0: they are not counted */
    const char *const *dirty_logs; /* names, ends with NULL */
    const uint8_t *image;          /* the guest program, for the start of the ROM */
    const size_t *image_size;

    /*
     * The machine has its memory, boot parameters included: adds all else, namely properties, vCPUs with their threads
     * (vmf_vcpu_create()), devices, dirty log. False with @error; destroy() is called all the same.
     */
    bool (*create)(VmfMachine *machine, const VmfMachineConfig *config, GError **error);
    /* Frees what create() made. The threads have ended; the guest and its memory are still there. */
    void (*destroy)(VmfMachine *machine);
    /* Ends the slices that vCPUs are in, soon. Lock held. NULL: they end by themselves. */
    void (*kick)(VmfMachine *machine);
    /* The engine has stopped the guest: reads what device state is made of. NULL: nothing to do before it is saved. */
    bool (*stopped)(VmfMachine *machine, GError **error);
    /* throttle_percent has changed. Lock held. NULL: it is looked at when it matters. */
    void (*throttle)(VmfMachine *machine);
    /* The guest's part of the device state, for a digest: appended to @bytes. The vCPUs stand. */
    bool (*append_state)(VmfMachine *machine, GByteArray *bytes, GError **error);
} VmfBackend;

extern const VmfBackend vmf_rv32_backend;
extern const VmfBackend vmf_kvm_backend;
/* kvm-probe.c: whether a guest runs here. False with @error, which says why not. */
bool vmf_kvm_works(GError **error);

struct VmfMachine {
    const VmfBackend *backend;
    char *backend_why; /* of "auto": why it is not kvm; NULL: it is, or was not asked */
    char *name;
    VmfGuest *guest;
    const char *dirty_log_name;
    uint64_t lose_write_seed;
    VmfLossyLog *lossy_log; /* around the backend's; NULL: that one serves itself */
    VmfRv32Log *dirty_log; /* rv32 */
    VmfRv32 cpu;           /* rv32 */
    struct VmfKvm *kvm;    /* kvm */
    int console_fd;
    VmfStorageLock *storage; /* NULL: none */
    VmfMachineDisk *disks;
    unsigned n_disks;
    VmfBitmapMover *bitmap_mover; /* NULL: there are no disks */
    uint8_t boot_id[16]; /* of this host */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* any of what follows; CLOCK_MONOTONIC */
    VmfVcpuTurn turns[VMF_VCPUS_MAX];
    unsigned n_vcpus;    /* that have a thread */
    unsigned n_standing; /* between two slices, and staying there */

    /* vcpu.c */
    bool unpaced;
    bool want_run;  /* running, as people see it */
    bool finishing; /* no longer to run, but on the way to stop_at */
    bool lent;      /* vmf_machine_lend() is in force */
    bool taken;     /* while lent: stopped by the session, not to be started by the owner */
    bool kept;      /* while lent: stopped by the owner, not to be started by the session */
    bool quit;
    char *failure;  /* the guest cannot go on: why. NULL: it can */
    unsigned passing; /* how many callers wait for the end of a slice */
    unsigned holds; /* how many callers need it to stand for a moment */
    bool released;  /* memory given back */
    _Atomic bool memory_lost; /* a page of its memory, or a part of a disk, cannot be had: nothing runs it any more. Set without the lock */
    unsigned throttle_percent;
    uint64_t stop_at;      /* instruction count; 0: off */
    uint64_t instructions; /* cpu's, as of the latest slice */
    uint64_t due_ns; /* when the guest millisecond that ran last ends in real time; 0: not paced yet since the start */
    uint64_t tick_began_ns;

    /* device-memory.c: where devices mark what they write, for each block. NULL: no log is recording */
    VmfLogBitmap *marks[N_BLOCKS];

    /* devices.c */
    VmfConsole console;
    uint64_t console_lines_lost;
    VmfBeat beat;
    uint64_t beats_since_start;
    bool gap_known; /* of the first beat since the start */
    uint64_t gap_ns;

    /* device-state.c: what goes out and comes in; the live state changes only after a check */
    VmfRv32State wire_cpu;
    VmfTimer wire_timer;
    VmfConsole wire_console;
    VmfBeat wire_beat;
};

uint64_t vmf_machine_clock_ns(clockid_t clock);

/* machine.c */
/* From the backend's create(): this is the guest's dirty log. */
void vmf_machine_set_dirty_log(VmfMachine *machine, const VmfDirtyLogOps *ops, void *opaque);
bool vmf_machine_check_stopped(VmfMachine *machine, const char *operation, GError **error);

/* vcpu.c */
void vmf_vcpu_init(VmfMachine *machine);
/* Starts the thread of the next vCPU. Its main function runs slices between vmf_vcpu_enter() and vmf_vcpu_leave(), stands with
 * vmf_vcpu_stand(), and returns when `quit` is set. */
bool vmf_vcpu_create(VmfMachine *machine, void *(*vcpu_main)(void *), void *opaque, GError **error);
/* Ends the threads. */
void vmf_vcpu_destroy(VmfMachine *machine);
/* A vCPU has been left at a page that cannot be had (lock held): it stands from here on. */
void vmf_vcpu_lose_memory(VmfMachine *machine);
/* The last thing that is freed. */
void vmf_vcpu_clear(VmfMachine *machine);
/* Lock held: lets it go for a slice of vCPU number @vcpu, and takes it again. */
void vmf_vcpu_enter(VmfMachine *machine, unsigned vcpu);
void vmf_vcpu_leave(VmfMachine *machine, unsigned vcpu);
/* Lock held: stands until @may_run says otherwise. */
void vmf_vcpu_stand(VmfMachine *machine, bool (*may_run)(VmfMachine *machine));
/* Lock held: waits for a change until @due_ns (CLOCK_MONOTONIC); false once that is past. */
bool vmf_machine_wait(VmfMachine *machine, uint64_t due_ns);
bool vmf_vcpu_start(VmfMachine *machine, bool by_owner, GError **error);
void vmf_vcpu_stop(VmfMachine *machine, bool by_owner);
/* Takes the lock with all vCPUs standing, and lets both go again. */
void vmf_vcpu_hold(VmfMachine *machine);
void vmf_vcpu_unhold(VmfMachine *machine);
/* Returns once each vCPU has got past the instruction it is at (opaque: the machine). The guest does not stop for it. */
void vmf_vcpu_pass(void *opaque);
extern const VmfGuestOps vmf_machine_guest_ops; /* with storage: for a machine that has none those calls go */

/* devices.c: the callbacks of VmfRv32, opaque is the machine */
bool vmf_machine_mmio_read(void *opaque, uint32_t address, unsigned size, uint32_t *value);
bool vmf_machine_mmio_write(void *opaque, uint32_t address, unsigned size, uint32_t value);
/* A write to a device that all backends have: GUEST_REG_BEAT, _ERROR, _CONSOLE. Takes the lock. False: there is none. */
bool vmf_machine_device_write(VmfMachine *machine, uint32_t offset, uint32_t value);
/* The disks' registers, by the offsets of guest/boot.h. Take the lock; the vCPU's thread. */
bool vmf_machine_disk_register_read(VmfMachine *machine, uint32_t offset, uint32_t *value);
bool vmf_machine_disk_register_write(VmfMachine *machine, uint32_t offset, uint32_t value);

/* device-memory.c, lock held: all of [address, address + length) lies in one RAM block; to be written, in one that is not the ROM. */
bool vmf_machine_has_memory(const VmfMachine *machine, uint64_t address, size_t length, bool writable);
/* There is such memory. The vCPU's thread, on its guest's behalf. False: a page of it cannot be had. */
bool vmf_machine_load(VmfMachine *machine, uint64_t address, void *data, size_t length);
bool vmf_machine_store(VmfMachine *machine, uint64_t address, const void *data, size_t length);

/* device-memory.c: the recording log's bitmaps, one for each block; NULL: it records no longer, and no device is using them. */
void vmf_machine_set_marks(VmfMachine *machine, VmfLogBitmap *bitmaps);

/* rv32-vcpu.c */
void *vmf_rv32_vcpu_main(void *machine);

/* device-state.c: devices that all backends have, of wire_console and wire_beat */
extern const VmfDeviceState vmf_console_state;
extern const VmfDeviceState vmf_beat_state;
/* Counters of the beat without its clocks of hosts, for a digest. */
void vmf_machine_append_beat(VmfMachine *machine, GByteArray *bytes);
bool vmf_machine_append_device(const VmfDeviceState *state, void *device, GByteArray *bytes, GError **error);

/* device-state.c, rv32: cpu, timer, console, beat, in the order in which they travel */
#define VMF_MACHINE_DEVICES 4
extern const VmfDeviceState *const vmf_machine_device_states[VMF_MACHINE_DEVICES];
void *vmf_machine_device(VmfMachine *machine, unsigned index);
bool vmf_rv32_add_devices(VmfMachine *machine, GError **error);
bool vmf_rv32_append_state(VmfMachine *machine, GByteArray *bytes, GError **error);

#endif
