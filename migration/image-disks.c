/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/image-disks.h"

#include <inttypes.h>
#include <vmferry/error.h>

#define IDENTITY_MAX 255u /* octets, as the format has it */
#define MARK_MAX 255u

static bool check_text(const VmfGuestDisk *disk, const char *what, const char *text, size_t least, size_t most, GError **error)
{
    size_t length = strlen(text);

    if (length >= least && length <= most && g_utf8_validate(text, (gssize)length, NULL))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "disk %s: %s: not %zu to %zu octets of UTF-8", disk->name, what, least, most);
    return false;
}

static char *ask(const VmfGuestDisk *disk, const char *what, char *(*callback)(void *, GError **), GError **error)
{
    char *text = callback(disk->opaque, error);

    if (!text)
        g_prefix_error(error, "disk %s: %s: ", disk->name, what);
    return text;
}

bool vmf_image_disk_describe(const VmfGuestDisk *disk, VmfImageDisk *out, GError **error)
{
    *out = (VmfImageDisk){.name = g_strdup(disk->name), .size_bytes = disk->ops.size_bytes(disk->opaque)};
    out->identity = ask(disk, "identity", disk->ops.identity, error);
    if (!out->identity || !check_text(disk, "identity", out->identity, 1, IDENTITY_MAX, error))
        return false;
    out->mark = ask(disk, "mark", disk->ops.mark, error);
    return out->mark && check_text(disk, "mark", out->mark, 0, MARK_MAX, error);
}

static void compare_disk(const VmfImageDisk *here, const VmfImageDisk *there, GPtrArray *texts)
{
    if (strcmp(here->identity, there->identity) != 0)
        g_ptr_array_add(texts, g_strdup_printf("disk %s: identity: here %s, in the image %s", here->name, here->identity, there->identity));
    else if (here->size_bytes != there->size_bytes)
        g_ptr_array_add(texts, g_strdup_printf("disk %s: size: here %" PRIu64 ", in the image %" PRIu64, here->name, here->size_bytes,
                                               there->size_bytes));
    else if (strcmp(here->mark, there->mark) != 0)
        g_ptr_array_add(texts, g_strdup_printf("disk %s: it has changed since: mark: here %s, in the image %s", here->name, here->mark,
                                               there->mark));
}

static bool compare_with(VmfGuest *guest, const VmfImageDisk *there, GPtrArray *texts, GError **error)
{
    const VmfGuestDisk *disk = vmf_guest_find_disk(guest, there->name);
    VmfImageDisk here = {0};

    if (!disk) {
        g_ptr_array_add(texts, g_strdup_printf("disk %s: here is none, in the image there is", there->name));
        return true;
    }
    bool described = vmf_image_disk_describe(disk, &here, error);
    if (described)
        compare_disk(&here, there, texts);
    vmf_image_disk_clear(&here);
    return described;
}

static bool names(const GArray *disks, const char *name)
{
    for (guint i = 0; i < disks->len; i++)
        if (strcmp(g_array_index(disks, VmfImageDisk, i).name, name) == 0)
            return true;
    return false;
}

char **vmf_image_disks_compare(VmfGuest *guest, const GArray *disks, GError **error)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new_with_free_func(g_free);

    for (guint i = 0; i < disks->len; i++)
        if (!g_array_index(disks, VmfImageDisk, i).contained && !compare_with(guest, &g_array_index(disks, VmfImageDisk, i), texts, error))
            return NULL;
    for (unsigned i = 0; i < vmf_guest_n_disks(guest); i++) {
        const char *name = vmf_guest_disk(guest, i)->name;
        if (!names(disks, name))
            g_ptr_array_add(texts, g_strdup_printf("disk %s: the image says nothing of it", name));
    }
    g_ptr_array_add(texts, NULL);
    return (char **)g_ptr_array_steal(texts, NULL);
}
