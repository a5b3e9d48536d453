/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Userfaultfd, as far as the engine uses it: opening a descriptor, and the calls on it with their retries done. What
 * older headers lack is defined here.
 */
#ifndef RAM_UFFD_H
#define RAM_UFFD_H

#include <glib.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12) /* Linux 5.19 */
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* Linux 6.4 */
#endif

typedef enum {
    VMF_UFFD_ALL,       /* faults of the kernel's own accesses too (system calls, KVM) */
    VMF_UFFD_USER_MODE, /* the host permits no more than faults of user mode: the kernel's accesses fail (EFAULT) */
} VmfUffdScope;

/*
 * A descriptor that does not block, with @features (UFFD_FEATURE_…) in force, and the widest scope that the host
 * permits: *@scope (may be NULL). The caller closes it. -1 with VMF_ERROR_UNSUPPORTED.
 */
int vmf_uffd_open(uint64_t features, VmfUffdScope *scope, GError **error);

/* @mode: UFFDIO_REGISTER_MODE_…. False with errno. */
bool vmf_uffd_register(int fd, void *at, size_t length, uint64_t mode);
/* Whoever waits for a page there looks again. */
void vmf_uffd_unregister(int fd, void *at, size_t length);

/*
 * Puts pages in place with their content, and wakes who waits for them. Returns how many bytes went; 0: the first page
 * is there already; -1 with errno (ENOENT: not registered; ENOMEM).
 */
ssize_t vmf_uffd_copy(int fd, void *at, const void *content, size_t length);
/* The same with the kernel's page of zeros (private memory) or fresh ones. Not of hugetlb memory. */
ssize_t vmf_uffd_zero(int fd, void *at, size_t length);
/* Takes write access away, or gives it and wakes who waits for it. False with errno. */
bool vmf_uffd_write_protect(int fd, void *at, size_t length, bool protect);
void vmf_uffd_wake(int fd, void *at, size_t length);

#endif
