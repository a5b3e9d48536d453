/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine of the golden streams and images (tests/golden/README.rst), as somewhere for them to arrive. */
#ifndef TESTS_GOLDEN_GUEST_H
#define TESTS_GOLDEN_GUEST_H

#include <vmferry/block.h>
#include <vmferry/vmferry.h>

#define GOLDEN_PAGE 4096u

typedef struct {
    uint32_t value;
    uint64_t stamp;
    bool flag;
    uint8_t bytes[4];
    uint16_t level;
} Counter;

typedef struct {
    VmfGuest *guest;
    bool running;
    Counter counter;
    GByteArray *blob;
    unsigned blob_ends, setups, cleanups;
    VmfMissing missing;
    VmfDisk *disks[2]; /* the test's, acquired ahead of the guest's start; NULL: none */
} Golden;

extern const VmfDeviceState golden_counter_state;
extern const VmfDeviceState golden_plain_counter_state; /* as a machine that never had the subsection */

Golden *golden_new(const VmfDeviceState *state);
void golden_free(Golden *golden);

void golden_make_page(uint8_t out[GOLDEN_PAGE], unsigned seed);
/* @layer: as the golden layers leave it, otherwise as streams and whole images do. */
void golden_check_memory(const Golden *golden, bool layer);
void golden_check_state(const Golden *golden, bool extra, bool layer);

#endif
