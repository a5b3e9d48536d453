/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Userfaultfd write-protection, asynchronous: the kernel itself resolves the fault of a protected page and leaves it
 * unprotected, which PAGEMAP_SCAN lists as written, and protects again in the same step where it is asked to. Nobody
 * reads the descriptor.
 *
 * It sees every write to the memory, of vCPUs and of this process alike, before it happens. A page that was never
 * touched is not protected and counts as not written; its first touch makes it written.
 *
 * A huge page is protected and released as one. Clearing a chunk in two halves splits it, so that from then on its
 * pages count for themselves.
 */
#include "machine/kvm-log.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmferry/error.h>
#include "machine/kvm-uapi.h"

#define PAGE_SIZE 4096u
#define REGIONS_MAX 512
#define HALF_CHUNK_PAGES 256u

/* ---- descriptors ------------------------------------------------------------------------------------------------- */

/* One that also sees writes that the kernel makes for a vCPU. */
static int open_uffd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK) : -1;

    if (device >= 0)
        close(device);
    return fd >= 0 ? fd : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

static bool check_api(int fd)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | VMF_UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                    VMF_UFFD_FEATURE_WP_UNPOPULATED | VMF_UFFD_FEATURE_WP_ASYNC,
    };

    return ioctl(fd, UFFDIO_API, &api) == 0;
}

static void close_one(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void vmf_kvm_uffd_close(VmfKvmLog *log)
{
    close_one(&log->uffd);
    close_one(&log->pagemap_fd);
}

/* A descriptor stands for one negotiation, so this one is only a question; each start opens its own. */
bool vmf_kvm_uffd_open(VmfKvmLog *log, GError **error)
{
    int fd = open_uffd();
    bool works;

    if (fd < 0)
        return vmf_kvm_log_fail(error, "userfaultfd", errno);
    works = check_api(fd);
    close(fd);
    if (!works)
        return vmf_kvm_log_fail(error, "userfaultfd: asynchronous write-protection", errno);
    return true;
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static struct uffdio_range range_of(const VmfKvmLog *log, unsigned block)
{
    VmfRamBlock *ram = vmf_guest_ram(log->machine->guest, block);

    return (struct uffdio_range){.start = (uintptr_t)vmf_ram_block_host(ram), .len = vmf_ram_block_size(ram)};
}

static bool protect_block(VmfKvmLog *log, unsigned block, GError **error)
{
    struct uffdio_register reg = {.range = range_of(log, block), .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect protect = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};

    if (vmf_kvm_ioctl(log->uffd, UFFDIO_REGISTER, &reg) < 0)
        return vmf_kvm_log_fail(error, "register memory", errno);
    if (vmf_kvm_ioctl(log->uffd, UFFDIO_WRITEPROTECT, &protect) < 0)
        return vmf_kvm_log_fail(error, "protect memory", errno);
    return true;
}

static bool uffd_start(void *opaque, GError **error)
{
    VmfKvmLog *log = opaque;

    atomic_store(&log->failure, 0);
    log->uffd = open_uffd();
    log->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (log->uffd < 0 || log->pagemap_fd < 0 || !check_api(log->uffd)) {
        int cause = errno;

        vmf_kvm_uffd_close(log);
        return vmf_kvm_log_fail(error, "userfaultfd", cause);
    }
    for (unsigned block = BLOCK_RAM; block < N_BLOCKS; block++) {
        if (!protect_block(log, block, error)) {
            vmf_kvm_uffd_close(log);
            return false;
        }
    }
    return true;
}

/* Closing the descriptor takes protection and registration away. */
static void uffd_stop(void *opaque)
{
    vmf_kvm_uffd_close(opaque);
}

/* ---- what was written -------------------------------------------------------------------------------------------- */

typedef struct {
    VmfLogBitmapReport report;
    void *opaque;
    uint64_t word;  /* the one that is being filled */
    uint64_t value; /* its bits so far */
} Reporter;

static void flush_word(Reporter *r)
{
    if (r->value)
        r->report(r->opaque, r->word, &r->value, 1);
    r->value = 0;
}

static void report_pages(Reporter *r, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t in_word = MIN(end - first, 64 - first % 64);

        if (first / 64 != r->word)
            flush_word(r);
        r->word = first / 64;
        r->value |= (in_word == 64 ? UINT64_MAX : (1ull << in_word) - 1) << (first % 64);
        first += in_word;
    }
}

/* Reports what was written in pages [first, end), and protects it again if @protect. Pages count from @base. */
static bool scan(VmfKvmLog *log, uintptr_t base, uint64_t first, uint64_t end, bool protect, Reporter *r)
{
    struct vmf_page_region regions[REGIONS_MAX];
    struct vmf_pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = protect ? VMF_PM_SCAN_WP_MATCHING : 0,
        .start = base + first * PAGE_SIZE,
        .end = base + end * PAGE_SIZE,
        .vec = (uintptr_t)regions,
        .vec_len = REGIONS_MAX,
        .category_mask = VMF_PAGE_IS_WRITTEN,
        .return_mask = VMF_PAGE_IS_WRITTEN,
    };

    while (arg.start < arg.end) {
        int n = vmf_kvm_ioctl(log->pagemap_fd, VMF_PAGEMAP_SCAN, &arg);

        if (n < 0)
            return false;
        for (int i = 0; i < n; i++)
            report_pages(r, (regions[i].start - base) / PAGE_SIZE, (regions[i].end - base) / PAGE_SIZE);
        arg.start = arg.walk_end;
    }
    flush_word(r);
    return true;
}

static bool uffd_harvest(void *opaque, unsigned block, VmfLogBitmapReport report, void *report_opaque, GError **error)
{
    VmfKvmLog *log = opaque;
    Reporter r = {.report = report, .opaque = report_opaque};

    if (block == BLOCK_ROM)
        return true;
    if (!vmf_kvm_log_check(log, error))
        return false;
    if (!scan(log, range_of(log, block).start, 0, vmf_kvm_log_pages(log, block), false, &r))
        return vmf_kvm_log_fail(error, "harvest", errno);
    return true;
}

typedef struct {
    uint64_t first_word;
    uint64_t *words;
} Cleared;

static void add_words(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    const Cleared *cleared = opaque;

    for (size_t i = 0; i < n_words; i++)
        cleared->words[first_word - cleared->first_word + i] |= words[i];
}

static void uffd_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfKvmLog *log = opaque;
    Cleared cleared = {first_page / 64, words};
    Reporter r = {.report = add_words, .opaque = &cleared, .word = first_page / 64};

    if (block == BLOCK_ROM)
        return;
    uintptr_t base = range_of(log, block).start;
    for (uint64_t done = 0; done < n_pages; done += HALF_CHUNK_PAGES) {
        uint64_t first = first_page + done, end = first_page + MIN(done + HALF_CHUNK_PAGES, n_pages);

        if (!scan(log, base, first, end, true, &r))
            atomic_store(&log->failure, errno);
    }
}

const VmfDirtyLogOps vmf_kvm_uffd_ops = {
    .size = sizeof(VmfDirtyLogOps),
    .name = "uffd-wp",
    .start = uffd_start,
    .stop = uffd_stop,
    .harvest = uffd_harvest,
    .clear = uffd_clear,
};
