/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest of tests/golden/README.rst, so that golden streams are inputs. It outlives all executions: a session begins with it empty. */
#ifndef TESTS_FUZZ_GUEST_H
#define TESTS_FUZZ_GUEST_H

#include <vmferry/vmferry.h>

typedef struct {
    uint32_t value;
    uint64_t stamp;
    bool flag;
    uint8_t bytes[4];
    uint16_t level;
} VmfFuzzCounter;

typedef struct {
    VmfGuest *guest;
    bool running;
    unsigned starts, stops;
    VmfFuzzCounter counter;
    uint8_t blob_sum; /* of what was loaded */
    unsigned setups, cleanups;
    unsigned harvests;
    char *folder; /* of its disks; NULL: it has none */
    VmfDisk *disks[2];
    VmfBitmapMover *mover; /* theirs: what bitmaps a stream says they have */
} VmfFuzzGuest;

/* @filled: as a source's, with memory that is not empty and a guest that runs. */
VmfFuzzGuest *vmf_fuzz_guest_new(bool filled);
void vmf_fuzz_guest_free(VmfFuzzGuest *guest);
/*
 * The disks of the golden streams that have some: "disk0" is to arrive, "disk1" is there. Files in memory where there is such a folder,
 * removed when the process ends. From then on no file of this process grows beyond some MiB, whatever a peer says.
 */
void vmf_fuzz_guest_add_disks(VmfFuzzGuest *guest);
/* After a session: whether the disk has arrived, which is forgotten, as are all bitmaps. */
bool vmf_fuzz_guest_take_disk(VmfFuzzGuest *guest);
/* What a session over it may have changed, but memory. */
void vmf_fuzz_guest_reset(VmfFuzzGuest *guest, bool running);
/* No page holds anything; looks at some octets of each. */
bool vmf_fuzz_guest_is_empty(const VmfFuzzGuest *guest);

/*
 * For sessions over what a peer says, with the address of the variable that will hold the session as their opaque: one
 * that holds the guest is left, for nobody comes to settle it.
 */
extern const VmfSessionOps vmf_fuzz_session_ops;

#endif
