/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kernel interfaces that the headers of older distributions lack: userfaultfd's asynchronous write-protection and
 * PAGEMAP_SCAN (Linux 6.7). Names differ from the kernel's so that newer headers do not clash.
 */
#ifndef MACHINE_KVM_UAPI_H
#define MACHINE_KVM_UAPI_H

#include <linux/types.h>
#include <sys/ioctl.h>

#define VMF_UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1u << 12)
#define VMF_UFFD_FEATURE_WP_UNPOPULATED (1u << 13)
#define VMF_UFFD_FEATURE_WP_ASYNC (1u << 15)

#define VMF_PAGE_IS_WRITTEN (1u << 1)
#define VMF_PAGE_IS_THERE (1u << 3 | 1u << 4) /* present, swapped */
#define VMF_PM_SCAN_WP_MATCHING (1u << 0)
#define VMF_PM_SCAN_CHECK_WPASYNC (1u << 1) /* EPERM where a part is not registered so */

struct vmf_page_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};

struct vmf_pm_scan_arg {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end;
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};

_Static_assert(sizeof(struct vmf_page_region) == 24, "the kernel's struct page_region");
_Static_assert(sizeof(struct vmf_pm_scan_arg) == 96, "the kernel's struct pm_scan_arg");

#define VMF_PAGEMAP_SCAN _IOWR('f', 16, struct vmf_pm_scan_arg)

#endif
