/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <vmferry/error.h>

#define OCTET_READS 100
#define OCTET_WRITES 101
#define OCTET_NO_WRITER 201

/* Returns an errno. */
static int change(int fd, short type, off_t octet)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = octet, .l_len = 1};
    int result;

    do
        result = fcntl(fd, F_OFD_SETLK, &lock);
    while (result < 0 && errno == EINTR);
    return result < 0 ? errno : 0;
}

/* Whether others hold no lock on that octet. Returns an errno. */
static int probe(int fd, off_t octet)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = octet, .l_len = 1};

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return errno;
    return lock.l_type == F_UNLCK ? 0 : EAGAIN;
}

static int take_as_writer(int fd)
{
    int err = change(fd, F_WRLCK, OCTET_WRITES);

    return err ? err : change(fd, F_WRLCK, OCTET_NO_WRITER);
}

/* A writer that does not mind other writers has only the octet of writers; so it is looked at, after ours are taken:
 * one of two that come together then sees the other. */
static int take_as_reader(int fd)
{
    int err = change(fd, F_RDLCK, OCTET_READS);

    if (!err)
        err = change(fd, F_RDLCK, OCTET_NO_WRITER);
    return err ? err : probe(fd, OCTET_WRITES);
}

void vmf_disk_lock_drop(int fd)
{
    change(fd, F_UNLCK, OCTET_READS);
    change(fd, F_UNLCK, OCTET_WRITES);
    change(fd, F_UNLCK, OCTET_NO_WRITER);
    flock(fd, LOCK_UN);
}

bool vmf_disk_lock_take(int fd, bool writes, const char *name, GError **error)
{
    int err = writes ? take_as_writer(fd) : take_as_reader(fd);

    if (!err)
        return true;
    vmf_disk_lock_drop(fd);
    if (err == EAGAIN || err == EACCES)
        g_set_error(error, VMF_ERROR, VMF_ERROR_LOCKED, "%s: lock: another %s", name, writes ? "uses it" : "writes it");
    else
        g_set_error(error, VMF_ERROR,
                    err == EINVAL || err == ENOLCK || err == ENOSYS ? VMF_ERROR_UNSUPPORTED : VMF_ERROR_IO,
                    "%s: lock: %s", name, g_strerror(err));
    return false;
}
