/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine's disks as storage: they are opened with it, and change hands with the guest. */
#include "machine/disks.h"

#include <stdlib.h>
#include <string.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "machine/machine-private.h"

#define DISK_NAME_MAX 31u
#define SET_DEFAULT_BYTES (16ull << 20)

/* ---- configuration ----------------------------------------------------------------------------------------------- */

static bool refuse(const VmfMachine *m, const char *name, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: disk %s: %s", m->name, name, why);
    return false;
}

static bool is_name(const char *name)
{
    size_t length = strlen(name);

    return length >= 1 && length <= DISK_NAME_MAX && strcmp(name, "all") != 0 && strcmp(name, "none") != 0 &&
           strspn(name, G_CSET_a_2_z G_CSET_A_2_Z G_CSET_DIGITS "-_.") == length;
}

static uint64_t set_bytes_of(const VmfMachineConfig *config, const VmfDisk *disk)
{
    uint64_t bytes = config->disk_set_bytes;

    if (!bytes)
        bytes = config->disk_bytes_per_second ? SET_DEFAULT_BYTES : 0;
    return MIN(bytes, vmf_disk_size(disk));
}

void vmf_disks_set_parameters(const VmfMachine *m, const VmfMachineConfig *config, struct guest_parameters *p)
{
    uint64_t blocks = (config->disk_bytes_per_second + GUEST_DISK_BLOCK - 1) / GUEST_DISK_BLOCK;

    p->n_disks = GUINT32_TO_LE(m->n_disks);
    p->disk_blocks_per_second = GUINT32_TO_LE((uint32_t)blocks);
    for (unsigned i = 0; i < m->n_disks; i++)
        p->disk_set_blocks[i] = GUINT32_TO_LE((uint32_t)(set_bytes_of(config, m->disks[i].disk) / GUEST_DISK_BLOCK));
}

/* The program keeps a number for each block, and half of memory is not too little for the rest. */
static bool check_work(const VmfMachine *m, const VmfMachineConfig *config, GError **error)
{
    uint64_t needed = 0;

    if (config->disk_bytes_per_second / GUEST_DISK_BLOCK > GUEST_PAGES_PER_SECOND_MAX)
        return refuse(m, "work", "the rate is out of range", error);
    for (unsigned i = 0; i < m->n_disks; i++)
        needed += GUEST_DISK_BUFFERS + set_bytes_of(config, m->disks[i].disk) / GUEST_DISK_BLOCK * 4;
    return needed <= config->memory_bytes / 2 || refuse(m, "work", "memory is too small for so large a set", error);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static bool add_to_guest(VmfMachine *m, unsigned index, GError **error)
{
    VmfDisk *disk = m->disks[index].disk;
    VmfDiskInfo info = {.size = sizeof(info)};
    g_autofree char *key = g_strdup_printf("disk.%u", index), *value = NULL;

    vmf_disk_get_info(disk, &info);
    /* Of what can be written the engine compares the size, where it is not copied. */
    if (info.read_only)
        value = g_strdup_printf("%s, %" G_GUINT64_FORMAT " bytes, sectors of %u, read-only", info.name, info.size_bytes,
                                info.sector_bytes);
    else
        value = g_strdup_printf("%s, sectors of %u", info.name, info.sector_bytes);
    vmf_guest_set_property(m->guest, key, value);
    return info.read_only || vmf_guest_add_disk(m->guest, info.name, &vmf_disk_guest_ops, disk, error);
}

static bool open_one(VmfMachine *m, const VmfMachineDiskConfig *config, GError **error)
{
    VmfMachineDisk *disk = &m->disks[m->n_disks];
    VmfDiskOptions options = {
        .size = sizeof(options),
        .uri = config->uri,
        .connect = config->connect,
        .sector_bytes = config->sector_bytes,
        .create_bytes = config->create_bytes,
        .read_only = config->read_only,
        .buffered = config->buffered,
        .no_lock = config->no_lock,
        .bitmaps = config->bitmaps,
        .incoming = config->incoming,
        .overwrite = config->overwrite,
    };

    if (!is_name(config->name))
        return refuse(m, config->name, "a name has 1 to 31 letters, digits, '-', '_' and '.', and is neither all nor none", error);
    disk->machine = m;
    disk->disk = vmf_disk_open(config->name, &options, error);
    if (!disk->disk) {
        g_prefix_error(error, "%s: ", m->name);
        return false;
    }
    m->n_disks++;
    vmf_bitmap_mover_add_disk(m->bitmap_mover, disk->disk);
    for (unsigned i = 0; i < GUEST_DISK_SLOTS; i++) {
        void *data = NULL;

        if (posix_memalign(&data, GUEST_DISK_BLOCK, GUEST_DISK_LENGTH_MAX) != 0)
            return refuse(m, config->name, "out of memory", error);
        memset(data, 0, GUEST_DISK_LENGTH_MAX);
        disk->slots[i].disk = disk;
        disk->slots[i].data = data;
    }
    return add_to_guest(m, m->n_disks - 1, error);
}

/* Each would write the other's away. */
static bool check_bitmaps(const VmfMachine *m, GError **error)
{
    for (unsigned i = 1; i < m->n_disks; i++) {
        g_autofree char *file = vmf_disk_bitmaps_file(m->disks[i].disk);

        for (unsigned other = 0; file && other < i; other++) {
            g_autofree char *used = vmf_disk_bitmaps_file(m->disks[other].disk);
            g_autofree char *why = g_strdup_printf("%s is the file of disk %s's bitmaps", file, vmf_disk_name(m->disks[other].disk));
            if (g_strcmp0(file, used) == 0)
                return refuse(m, vmf_disk_name(m->disks[i].disk), why, error);
        }
    }
    return true;
}

bool vmf_disks_open(VmfMachine *m, const VmfMachineConfig *config, GError **error)
{
    if (config->n_disks > GUEST_DISKS_MAX)
        return refuse(m, config->disks[GUEST_DISKS_MAX].name, "a machine has at most four", error);
    if (config->n_disks) {
        m->disks = g_new0(VmfMachineDisk, config->n_disks);
        m->bitmap_mover = vmf_bitmap_mover_new();
    }
    for (unsigned i = 0; i < config->n_disks; i++)
        if (!open_one(m, &config->disks[i], error))
            return false;
    return check_bitmaps(m, error) && check_work(m, config, error);
}

void vmf_disks_close(VmfMachine *m)
{
    g_clear_pointer(&m->bitmap_mover, vmf_bitmap_mover_free);
    for (unsigned i = 0; i < m->n_disks; i++) {
        vmf_disk_free(m->disks[i].disk);
        for (unsigned slot = 0; slot < GUEST_DISK_SLOTS; slot++)
            free(m->disks[i].slots[slot].data);
    }
    g_clear_pointer(&m->disks, g_free);
    m->n_disks = 0;
}

/* ---- whose they are ---------------------------------------------------------------------------------------------- */

static bool is_acquired(VmfDisk *disk)
{
    VmfDiskInfo info = {.size = sizeof(info)};

    vmf_disk_get_info(disk, &info);
    return info.acquired;
}

bool vmf_disks_acquire(VmfMachine *m, GError **error)
{
    bool had[GUEST_DISKS_MAX] = {false}, all = true;
    unsigned n = 0;

    for (; all && n < m->n_disks; n++) {
        had[n] = is_acquired(m->disks[n].disk);
        all = vmf_disk_acquire(m->disks[n].disk, error);
    }
    for (unsigned i = 0; !all && i < n; i++)
        if (!had[i])
            vmf_disk_release(m->disks[i].disk, NULL);
    return all;
}

bool vmf_disks_release(VmfMachine *m, GError **error)
{
    for (unsigned i = 0; i < m->n_disks; i++)
        if (!vmf_disk_release(m->disks[i].disk, error))
            return false;
    return true;
}

bool vmf_machine_set_bitmap_map(VmfMachine *m, const VmfBitmapMap *map, GError **error)
{
    return !m->bitmap_mover || vmf_bitmap_mover_set_map(m->bitmap_mover, map, error);
}

void vmf_machine_give_up_disks(VmfMachine *m)
{
    for (unsigned i = 0; i < m->n_disks; i++)
        vmf_disk_give_up(m->disks[i].disk);
}

VmfDisk *vmf_machine_disk(VmfMachine *m, const char *name)
{
    for (unsigned i = 0; i < m->n_disks; i++)
        if (strcmp(vmf_disk_name(m->disks[i].disk), name) == 0)
            return m->disks[i].disk;
    return NULL;
}

void vmf_disks_get_info(VmfMachine *m, VmfMachineInfo *info)
{
    info->n_disks = m->n_disks;
    for (unsigned i = 0; i < m->n_disks; i++) {
        info->disks[i].size = sizeof(info->disks[i]);
        vmf_disk_get_info(m->disks[i].disk, &info->disks[i]);
    }
}
