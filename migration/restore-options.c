/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a restore is told, and what it can tell of an image before there is a guest. */
#include "migration/image-restore.h"

#include <fcntl.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "migration/image-offline.h"
#include "migration/ops.h"

bool vmf_restore_options_copy(VmfRestoreOptions *own, const VmfRestoreOptions *theirs, GError **error)
{
    if (!vmf_ops_copy(own, sizeof(*own), theirs, VMF_SIZE_UP_TO(VmfRestoreOptions, uri)) || !own->uri) {
        *own = (VmfRestoreOptions){0};
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "restore: options: size and uri are required");
        return false;
    }
    own->uri = g_strdup(own->uri);
    own->backend = g_strdup(own->backend);
    own->order_path = g_strdup(own->order_path);
    own->parents = own->parents ? (const char *const *)g_strdupv((char **)own->parents) : NULL;
    return true;
}

void vmf_restore_options_clear(VmfRestoreOptions *own)
{
    g_free((char *)own->uri);
    g_free((char *)own->backend);
    g_free((char *)own->order_path);
    g_strfreev((char **)own->parents);
    *own = (VmfRestoreOptions){0};
}

VmfStorageOptions vmf_restore_storage_options(const VmfRestoreOptions *options)
{
    return (VmfStorageOptions){
        .mode = VMF_STORAGE_READ,
        .connect = options->flags,
        .buffered = options->buffered,
        .backend = options->backend,
    };
}

/* ---- an image's machine ---------------------------------------------------------------------------------------------------- */

struct VmfImageMachine {
    VmfImageFile *file;
};

VmfImageMachine *vmf_image_machine_read(const VmfRestoreOptions *options, GError **error)
{
    VmfRestoreOptions own;
    VmfImageFile *file = NULL;

    if (vmf_restore_options_copy(&own, options, error)) {
        VmfStorageOptions storage = vmf_restore_storage_options(&own);
        storage.silence_ns = own.silence_ns ? own.silence_ns : VMF_IMAGE_SILENCE_NS;
        file = vmf_image_file_open(own.uri, &storage, error);
    }
    vmf_restore_options_clear(&own);
    if (!file)
        return NULL;
    VmfImageMachine *machine = g_new0(VmfImageMachine, 1);
    machine->file = file;
    return machine;
}

void vmf_image_machine_free(VmfImageMachine *machine)
{
    if (!machine)
        return;
    vmf_image_file_free(machine->file);
    g_free(machine);
}

const char *vmf_image_machine_architecture(const VmfImageMachine *machine)
{
    return machine->file->static_data->machine.architecture;
}

void vmf_image_machine_uuid(const VmfImageMachine *machine, uint8_t uuid[16])
{
    memcpy(uuid, machine->file->static_data->machine.uuid, 16);
}

const char *vmf_image_machine_property(const VmfImageMachine *machine, const char *key)
{
    const GArray *properties = machine->file->static_data->properties;

    for (guint i = 0; i < properties->len; i++) {
        const VmfStaticProperty *property = &g_array_index(properties, VmfStaticProperty, i);
        if (strcmp(property->key, key) == 0)
            return property->value;
    }
    return NULL;
}

bool vmf_image_machine_holds_disk(const VmfImageMachine *machine, const char *name)
{
    return vmf_image_file_find_disk(machine->file, name) >= 0;
}

bool vmf_image_is_at(const char *path)
{
    static const char magic[] = "VMFIMAGE";
    char begin[sizeof(magic) - 1] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0)
        return false;
    bool is_image = pread(fd, begin, sizeof(begin), 0) == (ssize_t)sizeof(begin) && memcmp(begin, magic, sizeof(begin)) == 0;
    close(fd);
    return is_image;
}
