/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine's parts: machine.c assembles them, vcpu.c runs them, devices.c answers the guest, device-state.c saves
 * and loads.
 *
 * One lock guards all but memory and `cpu`, which belong to the vCPU thread while it runs a slice, and to whoever holds
 * the lock while `standing` is true.
 */
#ifndef MACHINE_MACHINE_PRIVATE_H
#define MACHINE_MACHINE_PRIVATE_H

#include <pthread.h>
#include "machine/guest/boot.h"
#include "machine/machine.h"
#include "machine/rv32.h"

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

struct VmfMachine {
    char *name;
    VmfGuest *guest;
    VmfRv32Log *dirty_log;
    VmfRv32 cpu;
    int console_fd;
    uint8_t boot_id[16]; /* of this host */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* any of what follows; CLOCK_MONOTONIC */
    pthread_t thread;
    bool has_thread;

    /* vcpu.c */
    bool unpaced;
    bool want_run;  /* running, as people see it */
    bool finishing; /* no longer to run, but on the way to stop_at */
    bool standing;  /* the vCPU thread is between two instructions and stays there */
    bool lent;      /* vmf_machine_lend() is in force */
    bool taken;     /* while lent: stopped by the session, not to be started by the owner */
    bool kept;      /* while lent: stopped by the owner, not to be started by the session */
    bool quit;
    bool executing;  /* the vCPU thread is inside a slice */
    uint64_t slices; /* ended */
    unsigned passing; /* how many callers wait for the end of a slice */
    unsigned holds; /* how many callers need it to stand for a moment */
    bool released;  /* memory given back */
    unsigned throttle_percent;
    uint64_t stop_at;      /* instruction count; 0: off */
    uint64_t instructions; /* cpu's, as of the latest slice */
    uint64_t due_ns; /* when the guest millisecond that ran last ends in real time; 0: not paced yet since the start */
    uint64_t tick_began_ns;

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

/* vcpu.c */
void vmf_vcpu_init(VmfMachine *machine);
bool vmf_vcpu_create(VmfMachine *machine, GError **error);
void vmf_vcpu_destroy(VmfMachine *machine);
bool vmf_vcpu_start(VmfMachine *machine, bool by_owner, GError **error);
void vmf_vcpu_stop(VmfMachine *machine, bool by_owner);
/* Takes the lock with the vCPU standing, and lets both go again. */
void vmf_vcpu_hold(VmfMachine *machine);
void vmf_vcpu_unhold(VmfMachine *machine);
/* Returns once the vCPU has got past the instruction it is at (opaque: the machine). The guest does not stop for it. */
void vmf_vcpu_pass(void *opaque);
extern const VmfGuestOps vmf_machine_guest_ops;

/* devices.c: the callbacks of VmfRv32, opaque is the machine */
bool vmf_machine_mmio_read(void *opaque, uint32_t address, unsigned size, uint32_t *value);
bool vmf_machine_mmio_write(void *opaque, uint32_t address, unsigned size, uint32_t value);

/* device-state.c: cpu, timer, console, beat, in the order in which they travel */
#define VMF_MACHINE_DEVICES 4
extern const VmfDeviceState *const vmf_machine_device_states[VMF_MACHINE_DEVICES];
void *vmf_machine_device(VmfMachine *machine, unsigned index);
bool vmf_machine_add_devices(VmfMachine *machine, GError **error);
/* The guest's part of the device state, for a digest: appended to @bytes. The vCPU stands. */
bool vmf_machine_append_state(VmfMachine *machine, GByteArray *bytes, GError **error);

#endif
