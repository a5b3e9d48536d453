/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a file's filesystem and device can do: direct I/O, at which alignment, and whether what is written may change
 * meanwhile. */
#include "stream/storage-file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Linux 6.1; the C library's header may be older. The kernel's structure: u32 each. */
#define MASK_DIOALIGN 0x2000u
#define DIO_MEM_ALIGN_AT 0x98
#define DIO_OFFSET_ALIGN_AT 0x9c
_Static_assert(sizeof(struct statx) == 256, "the fields for direct I/O lie in what older headers call spare");

#define ALIGNMENT_MIN 512u
#define ALIGNMENT_MAX 4096u

static bool is_in_memory(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* ---- alignment -------------------------------------------------------------------------------------------------- */

/* What the kernel says: 0 is "no direct I/O". False: it does not know. */
static bool ask_statx(int fd, uint32_t *alignment)
{
    uint32_t memory, offset;
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, MASK_DIOALIGN, &stx) < 0 || !(stx.stx_mask & MASK_DIOALIGN))
        return false;
    memcpy(&memory, (const char *)&stx + DIO_MEM_ALIGN_AT, sizeof(memory));
    memcpy(&offset, (const char *)&stx + DIO_OFFSET_ALIGN_AT, sizeof(offset));
    *alignment = offset == 0 ? 0 : MAX(memory, offset);
    return true;
}

static bool ask_device(int fd, uint32_t *alignment)
{
    int block;

    if (ioctl(fd, BLKSSZGET, &block) < 0 || block <= 0)
        return false;
    *alignment = (uint32_t)block;
    return true;
}

/* Direct I/O is on: does it work in units of the largest alignment? An empty file is asked by a write that is undone.
 */
static bool try_it(int fd, bool is_new)
{
    void *block;
    ssize_t done;

    if (posix_memalign(&block, ALIGNMENT_MAX, ALIGNMENT_MAX) != 0)
        return false;
    memset(block, 0, ALIGNMENT_MAX);
    do
        done = is_new ? pwrite(fd, block, ALIGNMENT_MAX, 0) : pread(fd, block, ALIGNMENT_MAX, 0);
    while (done < 0 && errno == EINTR);
    free(block);
    return (!is_new || ftruncate(fd, 0) == 0) && done >= 0;
}

/* 0: buffered. */
static uint32_t direct_alignment(const VmfStorageFile *file, bool is_new)
{
    uint32_t alignment = 0;

    if (ask_statx(file->fd, &alignment) || (file->is_device && ask_device(file->fd, &alignment))) {
        if (alignment == 0 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
            return 0;
        return MAX(alignment, ALIGNMENT_MIN);
    }
    return try_it(file->fd, is_new) ? ALIGNMENT_MAX : 0;
}

static bool set_direct(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

/* ---- stable writes ---------------------------------------------------------------------------------------------- */

/* 0 or 1, -1: there is no such file */
static int read_attribute(dev_t device, const char *relative)
{
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/%s/stable_writes", major(device), minor(device), relative);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL))
        return -1;
    return text[0] != '0';
}

/*
 * Of a partition the disk's queue counts. A filesystem without a block device of its own may compute sums (btrfs), or
 * stand on one that does: then a copy is what costs nothing but time.
 */
static bool wants_stable_writes(const VmfStorageFile *file)
{
    struct stat st;
    dev_t device;
    int stable;

    if (!file->direct || fstat(file->fd, &st) < 0)
        return false;
    device = file->is_device ? st.st_rdev : st.st_dev;
    stable = read_attribute(device, "queue");
    if (stable < 0)
        stable = read_attribute(device, "../queue");
    return stable != 0;
}

void vmf_storage_file_learn(VmfStorageFile *file, bool buffered, bool is_new)
{
    file->direct = !buffered && !is_in_memory(file->fd) && set_direct(file->fd, true);
    file->base.alignment = file->direct ? direct_alignment(file, is_new) : 0;
    if (file->base.alignment == 0) {
        if (file->direct)
            set_direct(file->fd, false);
        file->direct = false;
        file->base.alignment = 1;
    }
    file->base.wants_stable_writes = wants_stable_writes(file);
}
