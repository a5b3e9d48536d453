/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk of the engine as a block device of this host's kernel, for tests: a file that is served by FUSE, with a loop
 * device on it. The kernel's filesystem on that is then a guest which writes the disk.
 */
#ifndef TESTS_FUSE_DISK_H
#define TESTS_FUSE_DISK_H

#include <vmferry/block.h>

typedef struct VmfFuseDisk VmfFuseDisk;

/* Why this process cannot have such a thing here; NULL: it can. The caller's, to free. */
char *vmf_fuse_disk_problem(void);

/* Serves a file of @size_bytes at @path, which is there already; held. Asserts. */
VmfFuseDisk *vmf_fuse_disk_new(const char *path, uint64_t size_bytes);
/* Nothing is mounted on it any more. */
void vmf_fuse_disk_free(VmfFuseDisk *fuse);
/* Requests wait; none is under way when it returns. */
void vmf_fuse_disk_hold(VmfFuseDisk *fuse);
/* They go to @disk. */
void vmf_fuse_disk_use(VmfFuseDisk *fuse, VmfDisk *disk);
/* Where they go; NULL: it is held. */
VmfDisk *vmf_fuse_disk_used(VmfFuseDisk *fuse);
unsigned vmf_fuse_disk_failures(VmfFuseDisk *fuse); /* requests that have failed */

/* Mounts the ext4 in the file @file, by a loop device, which goes with the mount. Asserts. */
void vmf_mount_ext4(const char *file, const char *where);

#endif
