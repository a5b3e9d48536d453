/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/signature.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEAD_BYTES (2u << 20) /* where nearly all filesystems and all partition tables have what tells them */

#ifdef HAVE_BLKID
#include <blkid/blkid.h>

static char *describe(blkid_probe probe)
{
    const char *value = NULL;

    if (blkid_probe_lookup_value(probe, "TYPE", &value, NULL) == 0)
        return g_strdup_printf("it holds something of type %s", value);
    if (blkid_probe_lookup_value(probe, "PTTYPE", &value, NULL) == 0)
        return g_strdup_printf("it holds a partition table (%s)", value);
    return NULL;
}

static char *look(blkid_probe probe)
{
    blkid_probe_enable_superblocks(probe, 1);
    blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE);
    blkid_probe_enable_partitions(probe, 1);
    /* Two of them are as good as one here: 1 is none, -2 is that it could not decide between several. */
    int found = blkid_do_safeprobe(probe);
    if (found == -2)
        return g_strdup("it holds signatures of several kinds");
    return found == 0 ? describe(probe) : NULL;
}

char *vmf_signature_of_fd(int fd)
{
    blkid_probe probe = blkid_new_probe();
    char *text = NULL;

    if (probe && blkid_probe_set_device(probe, fd, 0, 0) == 0)
        text = look(probe);
    if (probe)
        blkid_free_probe(probe);
    return text;
}
#else
char *vmf_signature_of_fd(int fd)
{
    return NULL;
}
#endif

/* The caller says whose word it is. */
static char *unreadable(const VmfStorage *storage, const GError *error)
{
    g_autofree char *prefix = g_strconcat(vmf_storage_name(storage), ": ", NULL);
    const char *why = error->message + (g_str_has_prefix(error->message, prefix) ? strlen(prefix) : 0);

    return g_strdup_printf("what it holds cannot be read: %s", why);
}

char *vmf_signature_of_storage(VmfStorage *storage)
{
    uint64_t length = MIN(HEAD_BYTES, vmf_storage_size(storage) & ~UINT64_C(4095));
    g_autofree uint8_t *head = g_malloc0(HEAD_BYTES);
    g_autoptr(GError) error = NULL;
    char *text = NULL;

    if (length > 0 && !vmf_storage_read(storage, 0, head, length, &error))
        return unreadable(storage, error);
    int fd = memfd_create("signature", MFD_CLOEXEC);
    if (fd < 0)
        return NULL;
    if (length > 0 && ftruncate(fd, (off_t)MAX(vmf_storage_size(storage), length)) == 0 &&
        pwrite(fd, head, length, 0) == (ssize_t)length)
        text = vmf_signature_of_fd(fd);
    close(fd);
    return text;
}
