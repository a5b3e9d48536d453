/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine that an image asks for: the reverse of the properties that machine.c and the backends set. */
#include "machine/machine-private.h"

#include <string.h>
#include <vmferry/error.h>

static const VmfBackend *backend_of(const char *machine_type)
{
    static const VmfBackend *const backends[] = {&vmf_rv32_backend, &vmf_kvm_backend};

    for (size_t i = 0; machine_type && i < G_N_ELEMENTS(backends); i++)
        if (strcmp(backends[i]->machine_type, machine_type) == 0)
            return backends[i];
    return NULL;
}

static bool number_of(const VmfImageMachine *image, const char *key, uint64_t least, uint64_t most, uint64_t *out, GError **error)
{
    const char *text = vmf_image_machine_property(image, key);

    if (text && g_ascii_string_to_unsigned(text, 10, least, most, out, NULL))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE, "image: %s: '%s': no machine here can be so", key, text ? text : "");
    return false;
}

static bool set_vcpus(VmfMachineConfig *config, const VmfImageMachine *image, GError **error)
{
    uint64_t n = 1;

    if (vmf_image_machine_property(image, "cpu.count") && !number_of(image, "cpu.count", 1, VMF_VCPUS_MAX, &n, error))
        return false;
    config->vcpus = (unsigned)n;
    return true;
}

bool vmf_machine_config_for_image(VmfMachineConfig *config, const VmfImageMachine *image, GError **error)
{
    const char *type = vmf_image_machine_property(image, "machine.type");
    const VmfBackend *backend = backend_of(type);

    if (!backend) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE, "image: machine.type: '%s': there is no such machine here",
                    type ? type : "");
        return false;
    }
    if (!config->backend || strcmp(config->backend, "auto") == 0)
        config->backend = backend->name;
    return number_of(image, "memory.size", GUEST_RAM_SIZE_MIN, backend->memory_max, &config->memory_bytes, error) &&
           set_vcpus(config, image, error);
}
