/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a disk is to images of the guest: which one, and in which state (vmferry/guest.h, VmfDiskOps). */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <vmferry/error.h>

#include "block/disk-private.h"

#define IDENTITY_MAX 255u
#define NS_PER_SECOND 1000000000ll
/* A filesystem's clock goes in steps: of two changes within one step the second leaves no trace. Kernels have steps of
 * up to 10 ms. */
#define CLOCK_STEP_NS 20000000ll

static uint64_t size_bytes(void *opaque)
{
    return vmf_disk_size(opaque);
}

/* A path as it is without links; one that is too long by its digest. */
static char *identity(void *opaque, GError **error)
{
    const VmfDisk *disk = opaque;
    char *path, *text;

    if (!disk->path)
        return g_strdup(disk->uri);
    path = realpath(disk->path, NULL);
    if (!path) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: %s", disk->uri, g_strerror(errno));
        return NULL;
    }
    text = g_strconcat("file:", path, NULL);
    free(path);
    if (strlen(text) > IDENTITY_MAX || !g_utf8_validate(text, -1, NULL)) {
        g_autofree char *longer = text;
        g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, longer, -1);

        text = g_strconcat("file:sha256:", digest, NULL);
    }
    return text;
}

static int64_t ns_of(const struct timespec *time)
{
    return (int64_t)time->tv_sec * NS_PER_SECOND + time->tv_nsec;
}

/* Returns once a change that comes now would have another time than @latest_ns. */
static void wait_for_clock(int64_t latest_ns)
{
    struct timespec now, rest = {.tv_nsec = CLOCK_STEP_NS};

    clock_gettime(CLOCK_REALTIME, &now);
    if (ns_of(&now) - latest_ns < CLOCK_STEP_NS)
        nanosleep(&rest, NULL);
}

/*
 * The times of a file. Whoever copies it elsewhere and back has changed it too, as far as this can tell. A device and
 * an export have no such times.
 */
static char *mark(void *opaque, GError **error)
{
    const VmfDisk *disk = opaque;
    struct stat status;

    if (disk->path && stat(disk->path, &status) == 0 && S_ISREG(status.st_mode)) {
        int64_t changed_ns = ns_of(&status.st_ctim);

        wait_for_clock(changed_ns);
        return g_strdup_printf("%" PRIu64 " bytes, written %" PRId64 ", changed %" PRId64, (uint64_t)status.st_size,
                               ns_of(&status.st_mtim), changed_ns);
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: only a file says when it was changed", disk->uri);
    return NULL;
}

static VmfDisk *itself(void *opaque)
{
    return opaque;
}

const VmfDiskOps vmf_disk_guest_ops = {
    .size = sizeof(VmfDiskOps),
    .size_bytes = size_bytes,
    .identity = identity,
    .mark = mark,
    .disk = itself,
};
