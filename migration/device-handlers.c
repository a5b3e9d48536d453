/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Declared devices as owners of state: read into memory when the guest has stopped, sent whole, loaded when the last part is here. */
#include <vmferry/error.h>

#include "migration/device-state.h"
#include "migration/owners.h"

typedef struct {
    const VmfDeviceState *state;
    void *device;
    GByteArray *content; /* source: read and not sent; target: what came so far */
    bool swap;
} DeviceOwner;

void *vmf_device_owner_new(const VmfDeviceState *state, void *device)
{
    DeviceOwner *owner = g_new0(DeviceOwner, 1);

    owner->state = state;
    owner->device = device;
    return owner;
}

void vmf_device_owner_free(void *opaque)
{
    DeviceOwner *owner = opaque;

    g_clear_pointer(&owner->content, g_byte_array_unref);
    g_free(owner);
}

void vmf_device_owner_set_swap(VmfOwner *owner, bool swap)
{
    if (owner->handlers == vmf_device_handlers())
        ((DeviceOwner *)owner->opaque)->swap = swap;
}

static bool device_quiesce(void *opaque, GError **error)
{
    DeviceOwner *owner = opaque;

    g_clear_pointer(&owner->content, g_byte_array_unref);
    owner->content = vmf_device_state_save(owner->state, owner->device, error);
    return owner->content != NULL;
}

static bool device_save_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    DeviceOwner *owner = opaque;

    return vmf_save_bytes(stream, owner->content->data, owner->content->len, error);
}

static bool device_load_state(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    DeviceOwner *owner = opaque;

    if (!owner->content)
        owner->content = g_byte_array_new();
    if (length > VMF_DEVICE_STATE_MAX - owner->content->len) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "device %s: state is larger than %u octets", owner->state->name,
                    VMF_DEVICE_STATE_MAX);
        return false;
    }
    if (length > 0)
        g_byte_array_append(owner->content, data, (guint)length);
    return !last || vmf_device_state_load(owner->state, owner->device, version, owner->content->data, owner->content->len,
                                          owner->swap, error);
}

static void device_cleanup(void *opaque)
{
    DeviceOwner *owner = opaque;

    g_clear_pointer(&owner->content, g_byte_array_unref);
}

static const VmfSaveHandlers handlers = {
    .size = sizeof(VmfSaveHandlers),
    .quiesce = device_quiesce,
    .save_complete = device_save_complete,
    .save_cleanup = device_cleanup,
    .load_state = device_load_state,
    .load_cleanup = device_cleanup,
};

const VmfSaveHandlers *vmf_device_handlers(void)
{
    return &handlers;
}
