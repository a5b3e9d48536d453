/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A memfd's pages live in its file, mapped here or not: SEEK_DATA and SEEK_HOLE walk the file's
 * own tree. Anonymous memory lives in the page tables: PAGEMAP_SCAN walks them, skips what has none in one step, and
 * returns ranges. Pages that were only ever read are mapped to the kernel's page of zeros and count as untouched.
 * Swapped pages count as touched.
 *
 * Hugetlb memory is a file too, but its file system does not tell holes from data, so the page tables are walked. What
 * another process put into the file would not be in them: the file says how much there is, and where the walk finds
 * less every page counts. The file is asked first, as a guest that touches more meanwhile is no reason.
 *
 * All are asked each time, and a host that lacks them answers with an error at the first call: then every page counts.
 */
#include "ram/occupancy.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/pagemap-scan.h"

#define SCAN_REGIONS 512 /* ranges a call returns at most: 12 KiB of stack */

static bool is_unsupported(int code)
{
    return code == ENOTTY || code == EINVAL || code == ENOSYS || code == EOPNOTSUPP || code == EPERM;
}

static bool fail(const VmfRamBlock *block, const char *operation, int code, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "RAM block '%s': occupancy: %s: %s", vmf_ram_block_name(block),
                operation, g_strerror(code));
    return false;
}

static bool add_all(const VmfRamBlock *block, VmfDirtyBitmap *out)
{
    vmf_dirty_bitmap_set_range(out, 0, vmf_ram_block_n_pages(block));
    return true;
}

static bool scan_memfd(const VmfRamBlock *block, VmfDirtyBitmap *out, GError **error)
{
    int fd = vmf_ram_block_fd(block);
    uint64_t size = vmf_ram_block_size(block);
    off_t hole = 0;

    while ((uint64_t)hole < size) {
        off_t data = lseek(fd, hole, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return true;
        if (data >= 0)
            hole = lseek(fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0)
            return is_unsupported(errno) ? add_all(block, out) : fail(block, "lseek", errno, error);
        uint64_t first = data / VMF_PAGE_SIZE;
        vmf_dirty_bitmap_set_range(out, first, (hole + VMF_PAGE_SIZE - 1) / VMF_PAGE_SIZE - first);
    }
    return true;
}

/* Returns how many bytes they are. */
static uint64_t add_regions(const VmfRamBlock *block, const struct pm_region *regions, int n_regions, VmfDirtyBitmap *out)
{
    uint64_t base = (uintptr_t)vmf_ram_block_host(block), bytes = 0;

    for (int i = 0; i < n_regions; i++) {
        uint64_t length = regions[i].end - regions[i].start;

        vmf_dirty_bitmap_set_range(out, (regions[i].start - base) / VMF_PAGE_SIZE, length / VMF_PAGE_SIZE);
        bytes += length;
    }
    return bytes;
}

/* Where it finds fewer than @least bytes every page counts. */
static bool scan_page_tables(const VmfRamBlock *block, int pagemap, uint64_t least, VmfDirtyBitmap *out, GError **error)
{
    uint64_t start = (uintptr_t)vmf_ram_block_host(block), end = start + vmf_ram_block_size(block);
    struct pm_region regions[SCAN_REGIONS];
    uint64_t found = 0;

    while (start < end) {
        struct pm_arg arg = {.size = sizeof(arg),
                             .start = start,
                             .end = end,
                             .vec = (uintptr_t)regions,
                             .vec_len = SCAN_REGIONS,
                             .category_inverted = PM_CATEGORY_ZERO_PAGE,
                             .category_mask = PM_CATEGORY_ZERO_PAGE,
                             .category_anyof_mask = PM_CATEGORY_PRESENT | PM_CATEGORY_SWAPPED,
                             .return_mask = PM_CATEGORY_PRESENT};
        int n_regions = ioctl(pagemap, PM_IOC_SCAN, &arg);
        if (n_regions < 0 && errno == EINTR)
            continue;
        if (n_regions < 0)
            return is_unsupported(errno) ? add_all(block, out) : fail(block, "PAGEMAP_SCAN", errno, error);
        found += add_regions(block, regions, n_regions, out);
        if (arg.walk_end <= start)
            return fail(block, "PAGEMAP_SCAN", EPROTO, error);
        start = arg.walk_end;
    }
    return found >= least || add_all(block, out);
}

static uint64_t bytes_in_file(const VmfRamBlock *block)
{
    struct stat status;

    if (vmf_ram_block_fd(block) < 0)
        return 0;
    return fstat(vmf_ram_block_fd(block), &status) < 0 ? UINT64_MAX : (uint64_t)status.st_blocks * 512;
}

static bool scan_mapped(const VmfRamBlock *block, VmfDirtyBitmap *out, GError **error)
{
    uint64_t least = bytes_in_file(block);
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (pagemap < 0)
        return add_all(block, out); /* no /proc here: not an error, only slower */
    bool ok = scan_page_tables(block, pagemap, least, out, error);
    close(pagemap);
    return ok;
}

bool vmf_occupancy_scan(const VmfRamBlock *block, VmfDirtyBitmap *out, GError **error)
{
    return vmf_ram_block_backend(block) == VMF_RAM_MEMFD ? scan_memfd(block, out, error) : scan_mapped(block, out, error);
}
