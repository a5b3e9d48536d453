/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel's PAGEMAP_SCAN (Linux 6.7): lists ranges of pages of a process by category. Defined here because the
 * headers of older distributions lack it; names differ from the kernel's so that newer headers do not clash.
 */
#ifndef RAM_PAGEMAP_SCAN_H
#define RAM_PAGEMAP_SCAN_H

#include <linux/types.h>
#include <sys/ioctl.h>

#define PM_CATEGORY_PRESENT (1u << 3)
#define PM_CATEGORY_SWAPPED (1u << 4)
#define PM_CATEGORY_ZERO_PAGE (1u << 5) /* mapped, but to the kernel's page of zeros */

struct pm_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};

struct pm_arg {
    __u64 size; /* sizeof(struct pm_arg) */
    __u64 flags;
    __u64 start; /* in: range of addresses */
    __u64 end;
    __u64 walk_end; /* out: how far it came */
    __u64 vec;      /* struct pm_region[vec_len] */
    __u64 vec_len;
    __u64 max_pages; /* 0: no limit */
    __u64 category_inverted;
    __u64 category_mask;       /* all of these, after inversion */
    __u64 category_anyof_mask; /* at least one of these */
    __u64 return_mask;
};

_Static_assert(sizeof(struct pm_region) == 24, "the kernel's struct page_region");
_Static_assert(sizeof(struct pm_arg) == 96, "the kernel's struct pm_scan_arg");

#define PM_IOC_SCAN _IOWR('f', 16, struct pm_arg)

#endif
