/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/kvm-log.h"
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

/* In the order of preference. */
static const struct {
    const VmfDirtyLogOps *ops;
    bool (*open)(VmfKvmLog *log, GError **error);
} kinds[] = {
    {&vmf_kvm_bitmap_ops, vmf_kvm_bitmap_open},
    {&vmf_kvm_uffd_ops, vmf_kvm_uffd_open},
    {&vmf_kvm_ring_ops, vmf_kvm_ring_open},
};

bool vmf_kvm_log_fail(GError **error, const char *what, int cause)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "%s: %s", what, g_strerror(cause));
    return false;
}

bool vmf_kvm_log_check(VmfKvmLog *log, GError **error)
{
    int failure = atomic_load(&log->failure);

    return failure == 0 || vmf_kvm_log_fail(error, "clear", failure);
}

bool vmf_kvm_log_attach(VmfKvmLog *log, GError **error)
{
    for (unsigned block = 0; block < N_BLOCKS; block++) {
        if (!vmf_log_bitmap_init(&log->bitmaps[block], vmf_kvm_log_pages(log, block), error)) {
            vmf_kvm_log_detach(log);
            return false;
        }
    }
    vmf_machine_set_marks(log->machine, log->bitmaps);
    return true;
}

void vmf_kvm_log_detach(VmfKvmLog *log)
{
    vmf_machine_set_marks(log->machine, NULL);
    for (unsigned block = 0; block < N_BLOCKS; block++)
        vmf_log_bitmap_destroy(&log->bitmaps[block]);
}

uint64_t vmf_kvm_log_pages(const VmfKvmLog *log, unsigned block)
{
    return vmf_ram_block_size(vmf_guest_ram(log->machine->guest, block)) / 4096;
}

static bool open_one(VmfKvmLog *log, const char *name, GError **error)
{
    bool any = !name || strcmp(name, "auto") == 0;
    g_autoptr(GError) why = NULL;

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        if (!any && strcmp(name, kinds[i].ops->name) != 0)
            continue;
        g_clear_error(&why);
        log->ops = kinds[i].ops;
        if (kinds[i].open(log, &why))
            return true;
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: dirty log %s: %s", log->machine->name, log->ops->name,
                why->message);
    log->ops = NULL;
    return false;
}

bool vmf_kvm_log_create(VmfMachine *m, const char *name, GError **error)
{
    VmfKvmLog *log = g_new0(VmfKvmLog, 1);

    m->kvm->log = log;
    log->machine = m;
    log->uffd = log->pagemap_fd = -1;
    pthread_mutex_init(&log->ring_lock, NULL);
    return open_one(log, name, error);
}

bool vmf_kvm_log_add_vcpus(VmfMachine *m, GError **error)
{
    VmfKvmLog *log = m->kvm->log;

    if (log->ring_entries && !vmf_kvm_ring_map(log, error))
        return false;
    vmf_machine_set_dirty_log(m, log->ops, log);
    return true;
}

void vmf_kvm_log_destroy(VmfMachine *m)
{
    VmfKvmLog *log = m->kvm->log;

    if (!log)
        return;
    vmf_kvm_ring_unmap(log);
    vmf_kvm_uffd_close(log);
    pthread_mutex_destroy(&log->ring_lock);
    g_clear_pointer(&m->kvm->log, g_free);
}
