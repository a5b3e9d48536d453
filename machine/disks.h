/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine's disks: disks.c has them as storage, disk-device.c is the device that the guest meets (guest/boot.h),
 * disk-state.c saves and loads that.
 */
#ifndef MACHINE_DISKS_H
#define MACHINE_DISKS_H

#include <vmferry/block.h>
#include <vmferry/device-state.h>

#include "machine/guest/boot.h"
#include "machine/machine.h"

/* What of a slot is the guest's. */
typedef struct {
    uint32_t address, length, sector_low, sector_high;
    uint32_t command; /* the latest one; 0: none yet */
    uint32_t status;
    uint64_t due; /* busy: the instruction count at which the guest is told; 0 on a machine that does not count */
    bool failed;  /* busy: what the guest will be told */
} VmfDiskSlotState;

/* What of a disk travels: of each slot the above, and, where a read is busy and did not fail, what the guest will find. */
typedef struct {
    uint32_t address[GUEST_DISK_SLOTS], length[GUEST_DISK_SLOTS], sector_low[GUEST_DISK_SLOTS], sector_high[GUEST_DISK_SLOTS];
    uint32_t command[GUEST_DISK_SLOTS], status[GUEST_DISK_SLOTS];
    uint64_t due[GUEST_DISK_SLOTS];
    bool failed[GUEST_DISK_SLOTS];
    uint8_t data[GUEST_DISK_SLOTS][GUEST_DISK_LENGTH_MAX];
} VmfDiskWire;

typedef struct VmfMachineDisk VmfMachineDisk;

/* Guarded by the machine's lock, but for data while the host is busy. */
typedef struct {
    VmfMachineDisk *disk;
    VmfDiskSlotState live;
    uint8_t *data; /* what is written or was read; aligned to a page */
    bool host_busy;
    VmfDiskRequest request;
    struct iovec iov;
} VmfDiskSlot;

struct VmfMachineDisk {
    VmfMachine *machine;
    VmfDisk *disk;
    VmfDiskSlot slots[GUEST_DISK_SLOTS];
    VmfDiskWire wire; /* goes out or comes in */
};

/* ---- disks.c ----------------------------------------------------------------------------------------------------- */

/* Opens them, and tells the guest of the engine (properties, disks, device state) of them. */
bool vmf_disks_open(VmfMachine *machine, const VmfMachineConfig *config, GError **error);
/* The vCPUs have ended; the lock is still there. */
void vmf_disks_close(VmfMachine *machine);
/* All of them or none: those that were not acquired before are released again on failure. */
bool vmf_disks_acquire(VmfMachine *machine, GError **error);
bool vmf_disks_release(VmfMachine *machine, GError **error);
void vmf_disks_get_info(VmfMachine *machine, VmfMachineInfo *info);
/* Of boot parameters. */
void vmf_disks_set_parameters(const VmfMachine *machine, const VmfMachineConfig *config,
                              struct guest_parameters *parameters);

/* ---- disk-device.c: lock held ------------------------------------------------------------------------------------ */

/* @offset: from GUEST_DISK_BASE. The vCPU's thread. False: there is no such register. */
bool vmf_disks_register_read(VmfMachine *machine, uint32_t offset, uint32_t *value);
bool vmf_disks_register_write(VmfMachine *machine, uint32_t offset, uint32_t value);

/* For a vCPU that counts. Whether it has come to a point at which the guest is told of something that the host has not
 * done yet. */
bool vmf_disks_hold_up(const VmfMachine *machine);
/* Tells the guest of what is due, in between two instructions. False: the memory that was to be written, or what was to be
 * read, cannot be had. */
bool vmf_disks_settle(VmfMachine *machine);
/* The count at which something is due next; 0: nothing is under way. */
uint64_t vmf_disks_due(const VmfMachine *machine);

/* Whether the host is busy with anything. */
bool vmf_disks_busy(const VmfMachine *machine);

/* ---- disk-state.c ------------------------------------------------------------------------------------------------ */

extern const VmfDeviceState vmf_disk_state; /* of VmfMachineDisk.wire */
bool vmf_disks_add_devices(VmfMachine *machine, GError **error);
/* For a digest; the vCPUs stand. */
bool vmf_disks_append_state(VmfMachine *machine, GByteArray *bytes, GError **error);

#endif
