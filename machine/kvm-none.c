/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kvm backend where the processor is another one. */
#include "machine/machine-private.h"
#include <vmferry/error.h>

bool vmf_kvm_works(GError **error)
{
    g_set_error_literal(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "kvm: this backend is for x86-64 on Linux");
    return false;
}

static bool create(VmfMachine *m, const VmfMachineConfig *config, GError **error)
{
    return vmf_kvm_works(error);
}

static void destroy(VmfMachine *m)
{
}

static const char *const dirty_logs[] = {NULL};

const VmfBackend vmf_kvm_backend = {
    .name = "kvm",
    .architecture = "x86_64",
    .machine_type = "none",
    .memory_max = GUEST_RAM_SIZE_MAX,
    .vcpus_max = VMF_VCPUS_MAX,
    .dirty_logs = dirty_logs,
    .image = (const uint8_t *)"",
    .image_size = &(const size_t){0},
    .create = create,
    .destroy = destroy,
};
