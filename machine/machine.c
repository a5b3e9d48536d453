/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Assembles the reference machine: memory, boot parameters, vCPU, devices, dirty log; and what its owner may ask of it.
 */
#include "machine/machine-private.h"
#include "machine/memory-guard.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>
#include <xxhash.h>

#define PAGE_SIZE 4096u
#define SET_DEFAULT (16ull << 20)

/* ---- configuration ----------------------------------------------------------------------------------------------- */

static bool config_problem(const VmfMachineConfig *c, const char *problem, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: machine: %s", c->name, problem);
    return false;
}

static bool list_has(const char *const *names, const char *name)
{
    while (*names && strcmp(*names, name) != 0)
        names++;
    return *names != NULL;
}

static bool dirty_log_fits(const VmfMachineConfig *c, const VmfBackend *backend)
{
    return !c->dirty_log || strcmp(c->dirty_log, "auto") == 0 || list_has(backend->dirty_logs, c->dirty_log);
}

static bool check_backend(const VmfMachineConfig *c, const VmfBackend *backend, GError **error)
{
    if (c->vcpus > backend->vcpus_max) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: machine: backend %s has at most %u vCPUs", c->name,
                    backend->name, backend->vcpus_max);
        return false;
    }
    if (!dirty_log_fits(c, backend)) {
        g_autofree char *names = g_strjoinv(", ", (char **)backend->dirty_logs);

        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: machine: dirty log '%s': backend %s has auto, %s", c->name,
                    c->dirty_log, backend->name, names);
        return false;
    }
    return true;
}

static bool check_config(const VmfMachineConfig *c, const VmfBackend *backend, GError **error)
{
    if (c->memory_bytes < GUEST_RAM_SIZE_MIN || c->memory_bytes > backend->memory_max) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: machine: memory is 256K to %uM on backend %s", c->name,
                    (unsigned)(backend->memory_max >> 20), backend->name);
        return false;
    }
    if (c->memory_bytes % PAGE_SIZE)
        return config_problem(c, "memory is a multiple of 4K", error);
    if (c->set_bytes > c->memory_bytes)
        return config_problem(c, "the working set is larger than memory", error);
    if (c->dirty_bytes_per_second / PAGE_SIZE > GUEST_PAGES_PER_SECOND_MAX)
        return config_problem(c, "the dirty rate is out of range", error);
    return check_backend(c, backend, error);
}

/*
 * KVM where it works. Settings that only one of the two has choose it, so that what is missing is then said. @why: why it is not kvm,
 * NULL where it is.
 */
static const VmfBackend *choose_backend(const VmfMachineConfig *c, char **why)
{
    g_autoptr(GError) error = NULL;

    if (c->vcpus > vmf_rv32_backend.vcpus_max || !dirty_log_fits(c, &vmf_rv32_backend))
        return &vmf_kvm_backend;
    if (c->unpaced || c->memory_bytes > vmf_kvm_backend.memory_max || !dirty_log_fits(c, &vmf_kvm_backend)) {
        *why = g_strdup("kvm: it cannot be set as this machine is");
        return &vmf_rv32_backend;
    }
    if (vmf_kvm_works(&error))
        return &vmf_kvm_backend;
    *why = g_strdup(error->message);
    return &vmf_rv32_backend;
}

static const VmfBackend *find_backend(const VmfMachineConfig *c, char **why, GError **error)
{
    if (!c->backend || strcmp(c->backend, "rv32") == 0)
        return &vmf_rv32_backend;
    if (strcmp(c->backend, "kvm") == 0)
        return &vmf_kvm_backend;
    if (strcmp(c->backend, "auto") == 0)
        return choose_backend(c, why);
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: machine: backend '%s': expected auto, rv32 or kvm", c->name,
                c->backend);
    return NULL;
}

/* Both are rounded up: a rate or a set that is not zero stays so. */
static struct guest_parameters boot_parameters(const VmfMachineConfig *c)
{
    uint64_t set_bytes = c->set_bytes;

    if (!set_bytes && c->dirty_bytes_per_second)
        set_bytes = MIN(SET_DEFAULT, c->memory_bytes / 2);
    return (struct guest_parameters){
        .magic = GUINT32_TO_LE(GUEST_PARAMETERS_MAGIC),
        .ram_base = GUINT32_TO_LE(GUEST_RAM_BASE),
        .ram_size = GUINT32_TO_LE((uint32_t)c->memory_bytes),
        .vram_base = GUINT32_TO_LE(GUEST_VRAM_BASE),
        .vram_size = GUINT32_TO_LE(GUEST_VRAM_SIZE),
        .rom_base = GUINT32_TO_LE(GUEST_ROM_BASE),
        .rom_size = GUINT32_TO_LE(GUEST_ROM_SIZE),
        .pages_per_second = GUINT32_TO_LE((uint32_t)((c->dirty_bytes_per_second + PAGE_SIZE - 1) / PAGE_SIZE)),
        .set_pages = GUINT32_TO_LE((uint32_t)((set_bytes + PAGE_SIZE - 1) / PAGE_SIZE)),
        .seed = GUINT32_TO_LE(c->seed),
        .n_cpus = GUINT32_TO_LE(MAX(c->vcpus, 1)),
        .line_ticks = GUINT32_TO_LE(c->line_ms),
    };
}

/* ---- assembly ---------------------------------------------------------------------------------------------------- */

static void set_properties(VmfMachine *m, const VmfMachineConfig *c)
{
    g_autofree char *memory = g_strdup_printf("%" G_GUINT64_FORMAT, c->memory_bytes);

    vmf_guest_set_property(m->guest, "machine.type", m->backend->machine_type);
    vmf_guest_set_property(m->guest, "memory.size", memory);
    /* A machine that has the lock and one that has none would not keep out of each other's way. */
    if (m->storage)
        vmf_guest_set_property(m->guest, "storage.lock", "file");
}

/* Adds the block that has to be number @expected. Only main memory is worth a huge page. */
static bool add_block(VmfMachine *m, const VmfMachineConfig *c, unsigned expected, const char *name, uint32_t base,
                      uint64_t size, GError **error)
{
    bool rom = expected == BLOCK_ROM;
    VmfRamFlags flags = (rom ? VMF_RAM_ROM : 0) | (c->huge_pages ? 0 : VMF_RAM_NO_HUGE_PAGES);
    VmfRamBackend backend =
        c->ram_backend == VMF_RAM_HUGETLB && expected != BLOCK_RAM ? VMF_RAM_MEMFD : c->ram_backend;
    VmfRamBlock *block = vmf_ram_block_new(name, size, backend, flags, base, error);
    unsigned index;

    if (!block)
        return false;
    if (!vmf_guest_add_ram(m->guest, block, &index, error)) {
        vmf_ram_block_free(block);
        return false;
    }
    g_assert(index == expected);
    return true;
}

static bool add_memory(VmfMachine *m, const VmfMachineConfig *c, GError **error)
{
    struct guest_parameters parameters = boot_parameters(c);
    uint8_t *rom;

    vmf_disks_set_parameters(m, c, &parameters);
    if (!add_block(m, c, BLOCK_ROM, "rom", GUEST_ROM_BASE, GUEST_ROM_SIZE, error) ||
        !add_block(m, c, BLOCK_RAM, "ram", GUEST_RAM_BASE, c->memory_bytes, error) ||
        !add_block(m, c, BLOCK_VRAM, "vram", GUEST_VRAM_BASE, GUEST_VRAM_SIZE, error))
        return false;
    rom = vmf_ram_block_host(vmf_guest_ram(m->guest, BLOCK_ROM));
    memcpy(rom, m->backend->image, *m->backend->image_size);
    memcpy(rom + GUEST_PARAMETERS_OFFSET, &parameters, sizeof(parameters));
    return true;
}

static bool open_console(VmfMachine *m, const char *path, GError **error)
{
    m->console_fd = -1;
    if (!path)
        return true;
    /* Without O_NONBLOCK a pipe that nobody reads would stop the guest. */
    m->console_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
    if (m->console_fd < 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: console %s: open: %s", m->name, path, g_strerror(errno));
    return m->console_fd >= 0;
}

/* Where it cannot be read it stays zero, as on another such host: clocks are then taken for one host's, if they agree.
 */
static void read_boot_id(uint8_t id[16])
{
    g_autofree char *text = NULL;
    unsigned n = 0;

    memset(id, 0, 16);
    if (!g_file_get_contents("/proc/sys/kernel/random/boot_id", &text, NULL, NULL))
        return;
    for (const char *c = text; *c && n < 32; c++) {
        if (g_ascii_isxdigit(*c)) {
            id[n / 2] = (uint8_t)(id[n / 2] << 4 | g_ascii_xdigit_value(*c));
            n++;
        }
    }
}

static bool open_storage(VmfMachine *m, const char *path, GError **error)
{
    if (path)
        m->storage = vmf_storage_lock_open(path, error);
    if (!path || m->storage)
        return true;
    g_prefix_error(error, "%s: ", m->name);
    return false;
}

void vmf_machine_set_dirty_log(VmfMachine *m, const VmfDirtyLogOps *ops, void *opaque)
{
    m->dirty_log_name = ops->name;
    if (m->lose_write_seed) {
        m->lossy_log = vmf_lossy_log_new(m->guest, ops, opaque, m->lose_write_seed);
        opaque = m->lossy_log;
        ops = vmf_lossy_log_ops(m->lossy_log);
    }
    vmf_guest_set_dirty_log(m->guest, ops, opaque);
}

static bool assemble(VmfMachine *m, const VmfMachineConfig *c, GError **error)
{
    VmfGuestOps ops = vmf_machine_guest_ops;

    if (!open_storage(m, c->lock_path, error))
        return false;
    if (!m->storage && !c->n_disks)
        ops.storage_release = ops.storage_acquire = NULL;
    m->guest = vmf_guest_new(m->backend->architecture, c->uuid, &ops, m);
    set_properties(m, c);
    return open_console(m, c->console_path, error) && vmf_disks_open(m, c, error) && add_memory(m, c, error) &&
           m->backend->create(m, c, error);
}

VmfMachine *vmf_machine_new(const VmfMachineConfig *config, GError **error)
{
    g_autoptr(VmfMachine) m = NULL;
    g_autofree char *why = NULL;
    const VmfBackend *backend = find_backend(config, &why, error);

    if (!backend || !check_config(config, backend, error))
        return NULL;
    m = g_new0(VmfMachine, 1);
    m->backend = backend;
    m->backend_why = g_steal_pointer(&why);
    m->name = g_strdup(config->name);
    m->unpaced = config->unpaced;
    m->lose_write_seed = config->lose_write_seed;
    m->console_fd = -1;
    read_boot_id(m->boot_id);
    vmf_vcpu_init(m);
    vmf_memory_guard_install();
    if (!assemble(m, config, error))
        return NULL;
    return g_steal_pointer(&m);
}

void vmf_machine_free(VmfMachine *m)
{
    if (!m)
        return;
    vmf_vcpu_destroy(m);
    m->backend->destroy(m);
    vmf_disks_close(m);
    vmf_vcpu_clear(m);
    vmf_lossy_log_free(m->lossy_log);
    g_clear_pointer(&m->guest, vmf_guest_free);
    if (m->console_fd >= 0)
        close(m->console_fd);
    vmf_storage_lock_free(m->storage);
    g_free(m->failure);
    g_free(m->backend_why);
    g_free(m->name);
    g_free(m);
}

/* ---- the owner's view -------------------------------------------------------------------------------------------- */

VmfGuest *vmf_machine_guest(VmfMachine *m)
{
    return m->guest;
}

const char *vmf_machine_name(const VmfMachine *m)
{
    return m->name;
}

bool vmf_machine_hold_storage(VmfMachine *m, GError **error)
{
    bool had_lock = m->storage && vmf_storage_lock_is_held(m->storage);

    if (!m->storage || vmf_storage_lock_acquire(m->storage, error)) {
        if (vmf_disks_acquire(m, error))
            return true;
        if (m->storage && !had_lock)
            vmf_storage_lock_release(m->storage, NULL);
    }
    g_prefix_error(error, "%s: ", m->name);
    return false;
}

bool vmf_machine_start(VmfMachine *m, GError **error)
{
    return vmf_vcpu_start(m, true, error);
}

bool vmf_machine_stop(VmfMachine *m, GError **error)
{
    vmf_vcpu_stop(m, true);
    return true;
}

static void tell_lost_write(VmfMachine *m, VmfMachineInfo *info)
{
    unsigned block;

    if (m->lossy_log && vmf_lossy_log_lost(m->lossy_log, &block, &info->lost_write_page))
        info->lost_write_block = vmf_ram_block_name(vmf_guest_ram(m->guest, block));
}

void vmf_machine_get_info(VmfMachine *m, VmfMachineInfo *info)
{
    *info = (VmfMachineInfo){.backend = m->backend->name, .backend_why = m->backend_why};
    for (unsigned block = 0; block < N_BLOCKS; block++)
        info->memory_bytes += vmf_ram_block_size(vmf_guest_ram(m->guest, block));
    pthread_mutex_lock(&m->lock);
    info->dirty_log = m->dirty_log_name;
    info->vcpus = m->n_vcpus;
    info->running = m->want_run;
    g_strlcpy(info->failure, m->failure ? m->failure : "", sizeof(info->failure));
    info->instructions = m->instructions;
    info->beats = m->beat.beats;
    info->guest_errors = m->beat.errors;
    info->guest_error_address = m->beat.error_address;
    info->guest_gap_max_ns = m->beat.gap_max_ns;
    info->pages_written = m->beat.pages_written;
    info->console_lines = m->console.lines;
    info->console_lines_lost = m->console_lines_lost;
    info->throttle_percent = m->throttle_percent;
    info->lock_path = m->storage ? vmf_storage_lock_path(m->storage) : NULL;
    info->lock_held = m->storage && vmf_storage_lock_is_held(m->storage);
    pthread_mutex_unlock(&m->lock);
    tell_lost_write(m, info);
    vmf_disks_get_info(m, info);
}

bool vmf_machine_check_stopped(VmfMachine *m, const char *operation, GError **error)
{
    if (!vmf_machine_is_running(m))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "%s: %s: the guest is running", m->name, operation);
    return false;
}

bool vmf_machine_release_ram(VmfMachine *m, GError **error)
{
    if (!vmf_machine_check_stopped(m, "release memory", error))
        return false;
    pthread_mutex_lock(&m->lock);
    m->released = true;
    pthread_mutex_unlock(&m->lock);
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        VmfRamBlock *block = vmf_guest_ram(m->guest, i);

        if (!vmf_ram_block_discard(block, 0, vmf_ram_block_size(block), error))
            return false;
    }
    return true;
}

typedef struct {
    VmfMachine *machine;
    XXH3_state_t *state;
} Hash;

static void hash_memory(void *opaque)
{
    const Hash *hash = opaque;

    for (unsigned i = 0; i < N_BLOCKS; i++) {
        VmfRamBlock *block = vmf_guest_ram(hash->machine->guest, i);

        XXH3_128bits_update(hash->state, vmf_ram_block_host(block), vmf_ram_block_size(block));
    }
}

static bool digest(VmfMachine *m, const GByteArray *state, XXH128_hash_t *out, GError **error)
{
    Hash hash = {m, XXH3_createState()};

    XXH3_128bits_reset(hash.state);
    XXH3_128bits_update(hash.state, state->data, state->len);
    bool whole = vmf_memory_guard(m, hash_memory, &hash);
    *out = XXH3_128bits_digest(hash.state);
    XXH3_freeState(hash.state);
    if (!whole)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "%s: hash: a page of its memory cannot be had", m->name);
    return whole;
}

bool vmf_machine_hash(VmfMachine *m, uint8_t out[16], GError **error)
{
    g_autoptr(GByteArray) state = g_byte_array_new();
    XXH128_canonical_t canonical;
    XXH128_hash_t hash;

    memset(out, 0, 16);
    if (!vmf_machine_check_stopped(m, "hash", error) || !m->backend->append_state(m, state, error) ||
        !digest(m, state, &hash, error))
        return false;
    XXH128_canonicalFromHash(&canonical, hash);
    memcpy(out, canonical.digest, 16);
    return true;
}
