/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/test-pass.h"

typedef struct {
    VmfStorage base;
    VmfStorage *below;
    PassHooks hooks;
    void *opaque;
} Pass;

static void pass_free(VmfStorage *storage)
{
    Pass *pass = (Pass *)storage;

    if (pass->hooks.free)
        pass->hooks.free(pass->opaque, pass->below);
    else
        vmf_storage_free(pass->below);
}

static bool pass_set_size(VmfStorage *storage, uint64_t size, GError **error)
{
    atomic_store(&storage->size, size);
    return vmf_storage_set_size(((Pass *)storage)->below, size, error);
}

static bool pass_flush(VmfStorage *storage, GError **error)
{
    Pass *pass = (Pass *)storage;

    if (pass->hooks.flush)
        pass->hooks.flush(pass->opaque);
    return vmf_storage_flush(pass->below, error);
}

static bool pass_commit(VmfStorage *storage, GError **error)
{
    return vmf_storage_commit(((Pass *)storage)->below, error);
}

static bool pass_execute(VmfStorage *storage, VmfStorageRequest *request, GError **error)
{
    VmfStorage *below = ((Pass *)storage)->below;
    void *data = request->iov->iov_base;

    if (request->kind == VMF_REQUEST_READ)
        return vmf_storage_read(below, request->offset, data, request->length, error);
    return vmf_storage_write(below, request->offset, data, request->length, error);
}

VmfStorage *pass_new(VmfStorage *below, const PassHooks *hooks, void *opaque)
{
    static const VmfStorageOps ops = {.free = pass_free,
                                      .set_size = pass_set_size,
                                      .flush = pass_flush,
                                      .commit = pass_commit,
                                      .execute = pass_execute};
    Pass *pass = g_new0(Pass, 1);

    pass->base = (VmfStorage){.ops = &ops,
                              .name = g_strdup(vmf_storage_name(below)),
                              .backend = "pass",
                              .mode = VMF_STORAGE_MODIFY,
                              .alignment = vmf_storage_alignment(below)};
    atomic_store(&pass->base.size, vmf_storage_size(below));
    pass->below = below;
    pass->hooks = *hooks;
    pass->opaque = opaque;
    return &pass->base;
}
