/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * KVM's dirty bitmap, with manual clear: reading it changes nothing, and pages are write-protected again chunk by
 * chunk, just before the engine reads them.
 *
 * KVM sets a page's bit before a vCPU may write it, with one exception: when it carries out an instruction itself, it
 * writes first. So a harvest lets the vCPUs get past that.
 */
#include "machine/kvm-log.h"
#include <errno.h>
#include <sys/ioctl.h>
#include <vmferry/error.h>

#define MANUAL_PROTECT_ENABLE 1u

bool vmf_kvm_bitmap_open(VmfKvmLog *log, GError **error)
{
    struct kvm_enable_cap enable = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {MANUAL_PROTECT_ENABLE}};

    if (vmf_kvm_ioctl(log->machine->kvm->vm_fd, KVM_ENABLE_CAP, &enable) == 0)
        return true;
    return vmf_kvm_log_fail(error, "manual clear", errno);
}

static bool bitmap_start(void *opaque, GError **error)
{
    VmfKvmLog *log = opaque;

    atomic_store(&log->failure, 0);
    if (!vmf_kvm_log_attach(log, error))
        return false;
    if (vmf_kvm_set_memory(log->machine, true, error))
        return true;
    vmf_kvm_log_detach(log);
    return false;
}

static void bitmap_stop(void *opaque)
{
    VmfKvmLog *log = opaque;

    vmf_kvm_set_memory(log->machine, false, NULL);
    vmf_kvm_log_detach(log);
}

static void report_words(const uint64_t *words, uint64_t n_words, VmfLogBitmapReport report, void *report_opaque)
{
    for (uint64_t first = 0; first < n_words;) {
        uint64_t end = first;

        while (end < n_words && words[end])
            end++;
        if (end > first)
            report(report_opaque, first, words + first, end - first);
        first = end + 1;
    }
}

static bool bitmap_harvest(void *opaque, unsigned block, VmfLogBitmapReport report, void *report_opaque, GError **error)
{
    VmfKvmLog *log = opaque;
    uint64_t n_words = (vmf_kvm_log_pages(log, block) + 63) / 64;
    g_autofree uint64_t *words = g_try_new0(uint64_t, n_words);
    struct kvm_dirty_log request = {.slot = block, .dirty_bitmap = words};

    if (block == BLOCK_ROM)
        return true;
    if (!words)
        return vmf_kvm_log_fail(error, "harvest", ENOMEM);
    if (!vmf_kvm_log_check(log, error))
        return false;
    vmf_vcpu_pass(log->machine);
    if (vmf_kvm_ioctl(log->machine->kvm->vm_fd, KVM_GET_DIRTY_LOG, &request) < 0)
        return vmf_kvm_log_fail(error, "harvest", errno);
    report_words(words, n_words, report, report_opaque);
    vmf_log_bitmap_report(&log->bitmaps[block], report, report_opaque);
    return true;
}

/* Of the pages that are about to be sent, those that are dirty are write-protected again; the others are left as they
 * are. */
static void bitmap_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfKvmLog *log = opaque;
    struct kvm_clear_dirty_log request = {
        .slot = block,
        .num_pages = (uint32_t)n_pages,
        .first_page = first_page,
        .dirty_bitmap = words,
    };

    if (block == BLOCK_ROM)
        return;
    vmf_log_bitmap_clear(&log->bitmaps[block], first_page, n_pages, words);
    if (vmf_kvm_ioctl(log->machine->kvm->vm_fd, KVM_CLEAR_DIRTY_LOG, &request) < 0)
        atomic_store(&log->failure, errno);
}

const VmfDirtyLogOps vmf_kvm_bitmap_ops = {
    .size = sizeof(VmfDirtyLogOps),
    .name = "kvm-bitmap",
    .start = bitmap_start,
    .stop = bitmap_stop,
    .harvest = bitmap_harvest,
    .clear = bitmap_clear,
};
