/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Machines with disks in a folder of the test's own. Whatever cannot be fails the test. */
#ifndef TESTS_DISK_WORLD_H
#define TESTS_DISK_WORLD_H

#include "machine/machine-private.h"
#include "tests/world.h"

#define LONG_NS (60 * UINT64_C(1000000000)) /* whatever else this host does */

typedef struct {
    char *directory;
    const char *backend; /* the test's initial state, or rv32 */
} Rig;

int set_up(void **state);
int tear_down(void **state);

char *path_of(const Rig *rig, const char *file);
char *uri_of(const Rig *rig, const char *file);
bool exists(const Rig *rig, const char *file);
/* @size octets, and no more. */
char *content_of(const Rig *rig, const char *file, uint64_t size);
void assert_same_content(const Rig *rig, const char *one, const char *other, uint64_t size);

typedef struct {
    const char *files[2]; /* "root" and "data"; NULL: no second disk */
    uint64_t size;        /* 0: as it is there, or comes */
    bool incoming, overwrite;
    uint32_t sector_bytes;
    uint64_t bytes_per_second; /* 0: 64 MiB; on 4 MiB of each disk */
} Disks;

/* Not running. */
VmfMachine *try_machine(const Rig *rig, Disks disks, GError **error);
VmfMachine *machine(const Rig *rig, Disks disks);
VmfMachine *target_of(const Rig *rig, const char *file);
VmfMachineInfo info_of(VmfMachine *m);
/* Of the first disk: so many more. */
void wait_for_writes(VmfMachine *m, uint64_t n);

/* The disks' files at both ends in the instant in which a guest that was not stopped for it changes hands: here it runs no
 * more, and there not yet. */
typedef struct {
    const Rig *rig;
    const char *here[2], *there[2]; /* as in Disks */
    uint64_t size;
    unsigned compared, different; /* filled in; of the disks */
} Handed;

/* Before the trip, whose target then has no other fault. @handed lives as long. */
void watch_handover(VmfTrip *trip, Handed *handed);
/* After it. */
void assert_handed_whole(const Handed *handed);

#endif
