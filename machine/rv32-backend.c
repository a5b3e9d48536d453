/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rv32 backend: an interpreter on the machine's memory, its dirty log, its devices. */
#include "machine/machine-private.h"
#include "machine/guest-image.h"

#define PAGE_SIZE 4096u

/* The vCPU's fast region is main memory. */
static const unsigned region_of_block[N_BLOCKS] = {[BLOCK_ROM] = 1, [BLOCK_RAM] = 0, [BLOCK_VRAM] = 2};

static void add_regions(VmfMachine *m)
{
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        VmfRamBlock *block = vmf_guest_ram(m->guest, i);

        m->cpu.regions[region_of_block[i]] = (VmfRv32Region){
            .host = vmf_ram_block_host(block),
            .base = (uint32_t)vmf_ram_block_guest_address(block),
            .size = (uint32_t)vmf_ram_block_size(block),
            .read_only = i == BLOCK_ROM,
        };
    }
}

static void attach_dirty_log(void *opaque, VmfLogBitmap *bitmaps)
{
    VmfMachine *m = opaque;

    vmf_vcpu_hold(m);
    for (unsigned block = 0; block < N_BLOCKS; block++)
        m->cpu.regions[region_of_block[block]].dirty = bitmaps ? &bitmaps[block] : NULL;
    vmf_vcpu_unhold(m);
    vmf_machine_set_marks(m, bitmaps);
}

static void add_dirty_log(VmfMachine *m)
{
    uint64_t n_pages[N_BLOCKS];

    for (unsigned block = 0; block < N_BLOCKS; block++)
        n_pages[block] = vmf_ram_block_size(vmf_guest_ram(m->guest, block)) / PAGE_SIZE;
    m->dirty_log = vmf_rv32_log_new(n_pages, N_BLOCKS, attach_dirty_log, vmf_vcpu_pass, m);
    vmf_machine_set_dirty_log(m, &vmf_rv32_log_ops, m->dirty_log);
}

static bool rv32_create(VmfMachine *m, const VmfMachineConfig *config, GError **error)
{
    vmf_guest_set_property(m->guest, "cpu.model", "rv32ima");
    add_regions(m);
    if (!vmf_rv32_add_devices(m, error))
        return false;
    add_dirty_log(m);
    m->cpu.mmio_read = vmf_machine_mmio_read;
    m->cpu.mmio_write = vmf_machine_mmio_write;
    m->cpu.opaque = m;
    vmf_rv32_reset(&m->cpu.state, GUEST_ROM_BASE);
    return vmf_vcpu_create(m, vmf_rv32_vcpu_main, m, error);
}

static void rv32_destroy(VmfMachine *m)
{
    vmf_rv32_log_free(m->dirty_log);
}

static const char *const dirty_logs[] = {"rv32", NULL};

const VmfBackend vmf_rv32_backend = {
    .name = "rv32",
    .architecture = "rv32",
    .machine_type = "vmferry-rv32-1",
    .memory_max = GUEST_RAM_SIZE_MAX,
    .vcpus_max = 1,
    .disk_delay = GUEST_DISK_DELAY,
    .dirty_logs = dirty_logs,
    .image = vmf_guest_image_rv32,
    .image_size = &vmf_guest_image_rv32_size,
    .create = rv32_create,
    .destroy = rv32_destroy,
    .append_state = vmf_rv32_append_state,
};
