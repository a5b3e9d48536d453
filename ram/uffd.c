/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmferry/error.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1 /* Linux 5.11 */
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* Linux 6.1 */
#endif

#define OPEN_FLAGS (O_CLOEXEC | O_NONBLOCK)

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int open_device(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, OPEN_FLAGS) : -1;

    if (device >= 0)
        close(device);
    return fd;
}

static int open_widest(VmfUffdScope *scope)
{
    int fd = (int)syscall(SYS_userfaultfd, OPEN_FLAGS);

    *scope = VMF_UFFD_ALL;
    if (fd < 0)
        fd = open_device();
    if (fd >= 0)
        return fd;
    *scope = VMF_UFFD_USER_MODE;
    return (int)syscall(SYS_userfaultfd, OPEN_FLAGS | UFFD_USER_MODE_ONLY);
}

int vmf_uffd_open(uint64_t features, VmfUffdScope *scope, GError **error)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    VmfUffdScope widest;
    int fd = open_widest(&widest);

    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0) {
        if (scope)
            *scope = widest;
        return fd;
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "userfaultfd: %s: %s", fd < 0 ? "open" : "features",
                g_strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

static struct uffdio_range range_of(const void *at, size_t length)
{
    return (struct uffdio_range){.start = (uintptr_t)at, .len = length};
}

bool vmf_uffd_register(int fd, void *at, size_t length, uint64_t mode)
{
    struct uffdio_register reg = {.range = range_of(at, length), .mode = mode};

    return ioctl(fd, UFFDIO_REGISTER, &reg) == 0;
}

void vmf_uffd_unregister(int fd, void *at, size_t length)
{
    struct uffdio_range range = range_of(at, length);

    ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/* What a call that placed @placed bytes, or failed with a negative errno there, comes to; EAGAIN is not among them. */
static ssize_t placed_or_error(int64_t placed)
{
    if (placed > 0)
        return (ssize_t)placed;
    return errno == EEXIST ? 0 : -1;
}

ssize_t vmf_uffd_copy(int fd, void *at, const void *content, size_t length)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)at, .src = (uintptr_t)content, .len = length};

    while (ioctl(fd, UFFDIO_COPY, &copy) < 0) {
        if (copy.copy > 0 || errno != EAGAIN)
            return placed_or_error(copy.copy);
        copy.copy = 0;
    }
    return (ssize_t)length;
}

ssize_t vmf_uffd_zero(int fd, void *at, size_t length)
{
    struct uffdio_zeropage zero = {.range = range_of(at, length)};

    while (ioctl(fd, UFFDIO_ZEROPAGE, &zero) < 0) {
        if (zero.zeropage > 0 || errno != EAGAIN)
            return placed_or_error(zero.zeropage);
        zero.zeropage = 0;
    }
    return (ssize_t)length;
}

bool vmf_uffd_write_protect(int fd, void *at, size_t length, bool protect)
{
    struct uffdio_writeprotect wp = {.range = range_of(at, length), .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

    while (ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0) {
        if (errno != EAGAIN)
            return false;
    }
    return true;
}

void vmf_uffd_wake(int fd, void *at, size_t length)
{
    struct uffdio_range range = range_of(at, length);

    ioctl(fd, UFFDIO_WAKE, &range);
}
