/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Userfaultfd write-protection, asynchronous: the kernel itself resolves the fault of a protected page and leaves it
 * unprotected, which PAGEMAP_SCAN lists as written, and protects again in the same step where it is asked to. Nobody
 * reads the descriptor.
 *
 * It sees every write to the memory, of vCPUs and of this process alike, before it happens.
 *
 * Holes. Protecting a hole puts a marker in the page table, which the engine would take for a page that was touched and
 * swapped out, and read; and it costs page tables. So of private memory and of hugetlb the start protects what is there,
 * and a page that is not counts as not written; its first touch makes it written. A memfd's pages can leave the page
 * tables without leaving the file (they are swapped out that way), so there nothing but a marker tells a hole from a
 * page that was written: it is protected throughout. The engine finds its holes in the file.
 *
 * A transparent huge page is protected and released as one. Clearing a chunk in two halves splits it, so that from then
 * on its pages count for themselves. A hugetlb page cannot be split, and PAGEMAP_SCAN does not get past half of one: it
 * is always cleared whole, and what was not asked for is marked in the bitmap of device writes.
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
#define HUGE_PAGES 512u /* 4 KiB pages of a hugetlb page, as large as a chunk */

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

static bool open_descriptors(VmfKvmLog *log)
{
    log->uffd = open_uffd();
    log->pagemap_fd = log->uffd >= 0 ? open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC) : -1;
    return log->pagemap_fd >= 0 && check_api(log->uffd);
}

/* ---- scanning and protecting ------------------------------------------------------------------------------------- */

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

static struct uffdio_range range_of(const VmfKvmLog *log, unsigned block)
{
    VmfRamBlock *ram = vmf_guest_ram(log->machine->guest, block);

    return (struct uffdio_range){.start = (uintptr_t)vmf_ram_block_host(ram), .len = vmf_ram_block_size(ram)};
}

static bool has_markers(const VmfKvmLog *log, unsigned block)
{
    return vmf_ram_block_backend(vmf_guest_ram(log->machine->guest, block)) == VMF_RAM_MEMFD;
}

/* Reports the pages of [first, end) that are in one of @anyof (0: whatever they are) and written; protects them again if @protect. */
static bool scan_those(VmfKvmLog *log, unsigned block, uint64_t first, uint64_t end, uint64_t anyof, bool protect, Reporter *r)
{
    uintptr_t base = range_of(log, block).start;
    struct vmf_page_region regions[REGIONS_MAX];
    struct vmf_pm_scan_arg arg = {
        .size = sizeof(arg),
        /* A mapping that has lost its registration would be passed over as clean. */
        .flags = VMF_PM_SCAN_CHECK_WPASYNC | (protect ? VMF_PM_SCAN_WP_MATCHING : 0),
        .start = base + first * PAGE_SIZE,
        .end = base + end * PAGE_SIZE,
        .vec = (uintptr_t)regions,
        .vec_len = REGIONS_MAX,
        .category_mask = VMF_PAGE_IS_WRITTEN,
        .category_anyof_mask = anyof,
        .return_mask = VMF_PAGE_IS_WRITTEN,
    };

    while (arg.start < arg.end) {
        int n = vmf_kvm_ioctl(log->pagemap_fd, VMF_PAGEMAP_SCAN, &arg);

        if (n < 0)
            return false;
        for (int i = 0; i < n; i++)
            report_pages(r, (regions[i].start - base) / PAGE_SIZE, (regions[i].end - base) / PAGE_SIZE);
        if (arg.walk_end <= arg.start) {
            errno = EPROTO;
            return false;
        }
        arg.start = arg.walk_end;
    }
    flush_word(r);
    return true;
}

/* Reports what was written in pages [first, end), and protects it again if @protect. */
static bool scan(VmfKvmLog *log, unsigned block, uint64_t first, uint64_t end, bool protect, Reporter *r)
{
    return scan_those(log, block, first, end, has_markers(log, block) ? 0 : VMF_PAGE_IS_THERE, protect, r);
}

static void drop(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
}

/* Registers a block and goes through the motions of protecting its first host page, which is not touched. */
static bool probe_block(VmfKvmLog *log, unsigned block)
{
    uint64_t unit = vmf_ram_block_host_page_size(vmf_guest_ram(log->machine->guest, block)) / PAGE_SIZE;
    struct uffdio_register reg = {.range = range_of(log, block), .mode = UFFDIO_REGISTER_MODE_WP};
    Reporter nobody = {.report = drop};

    return vmf_kvm_ioctl(log->uffd, UFFDIO_REGISTER, &reg) == 0 &&
           scan_those(log, block, 0, unit, VMF_PAGE_IS_THERE, true, &nobody);
}

/*
 * A descriptor stands for one negotiation, so this one is only a question, put to the very memory that is to be recorded; each start
 * opens its own.
 */
bool vmf_kvm_uffd_open(VmfKvmLog *log, GError **error)
{
    bool works = open_descriptors(log) && probe_block(log, BLOCK_RAM) && probe_block(log, BLOCK_VRAM);
    int cause = errno;

    vmf_kvm_uffd_close(log);
    return works || vmf_kvm_log_fail(error, "userfaultfd: asynchronous write-protection", cause);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static bool protect_block(VmfKvmLog *log, unsigned block, GError **error)
{
    struct uffdio_register reg = {.range = range_of(log, block), .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect all = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    Reporter nobody = {.report = drop};

    if (vmf_kvm_ioctl(log->uffd, UFFDIO_REGISTER, &reg) < 0)
        return vmf_kvm_log_fail(error, "register memory", errno);
    bool done = has_markers(log, block) ? vmf_kvm_ioctl(log->uffd, UFFDIO_WRITEPROTECT, &all) == 0
                                        : scan(log, block, 0, vmf_kvm_log_pages(log, block), true, &nobody);
    return done || vmf_kvm_log_fail(error, "protect memory", errno);
}

static bool protect_all(VmfKvmLog *log, GError **error)
{
    atomic_store(&log->failure, 0);
    if (!open_descriptors(log)) {
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

static bool uffd_start(void *opaque, GError **error)
{
    VmfKvmLog *log = opaque;

    if (!vmf_kvm_log_attach(log, error))
        return false;
    if (protect_all(log, error))
        return true;
    vmf_kvm_log_detach(log);
    return false;
}

/* Closing the descriptor takes protection and registration away. */
static void uffd_stop(void *opaque)
{
    vmf_kvm_uffd_close(opaque);
    vmf_kvm_log_detach(opaque);
}

/* ---- the log ----------------------------------------------------------------------------------------------------- */

static bool uffd_harvest(void *opaque, unsigned block, VmfLogBitmapReport report, void *report_opaque, GError **error)
{
    VmfKvmLog *log = opaque;
    Reporter r = {.report = report, .opaque = report_opaque};

    if (block == BLOCK_ROM)
        return true;
    if (!vmf_kvm_log_check(log, error))
        return false;
    if (!scan(log, block, 0, vmf_kvm_log_pages(log, block), false, &r))
        return vmf_kvm_log_fail(error, "harvest", errno);
    vmf_log_bitmap_report(&log->bitmaps[block], report, report_opaque);
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

/* Pages that can be cleared apart from each other, in pieces of half a chunk. */
static void clear_pages(VmfKvmLog *log, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    Cleared cleared = {first_page / 64, words};
    Reporter r = {.report = add_words, .opaque = &cleared, .word = first_page / 64};

    for (uint64_t done = 0; done < n_pages; done += HALF_CHUNK_PAGES) {
        uint64_t first = first_page + done, end = first_page + MIN(done + HALF_CHUNK_PAGES, n_pages);

        if (!scan(log, block, first, end, true, &r))
            atomic_store(&log->failure, errno);
    }
}

/*
 * The huge page around the pages: what was written beside them stays dirty, by a mark. That comes after the page is protected, so
 * that whoever clears the mark reads what was written before it, and a later write is recorded again.
 */
static void clear_huge_page(VmfKvmLog *log, unsigned block, uint64_t first_page)
{
    const uint64_t first = first_page / HUGE_PAGES * HUGE_PAGES;
    uint64_t all[HUGE_PAGES / 64] = {0};
    Cleared cleared = {first / 64, all};
    Reporter r = {.report = add_words, .opaque = &cleared, .word = first / 64};

    if (!scan(log, block, first, first + HUGE_PAGES, true, &r))
        atomic_store(&log->failure, errno);
    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        for (uint64_t left = all[i]; left; left &= left - 1)
            vmf_log_bitmap_mark(&log->bitmaps[block], first + i * 64 + (unsigned)__builtin_ctzll(left));
    }
}

static void uffd_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfKvmLog *log = opaque;
    VmfRamBlock *ram = vmf_guest_ram(log->machine->guest, block);

    if (block == BLOCK_ROM)
        return;
    if (vmf_ram_block_host_page_size(ram) > PAGE_SIZE)
        clear_huge_page(log, block, first_page);
    else
        clear_pages(log, block, first_page, n_pages, words);
    vmf_log_bitmap_clear(&log->bitmaps[block], first_page, n_pages, words);
}

const VmfDirtyLogOps vmf_kvm_uffd_ops = {
    .size = sizeof(VmfDirtyLogOps),
    .name = "uffd-wp",
    .start = uffd_start,
    .stop = uffd_stop,
    .harvest = uffd_harvest,
    .clear = uffd_clear,
};
