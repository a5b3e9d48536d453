/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ram/occupancy.h"
#include "ram/pagemap-scan.h"
#include "tests/huge-pages.h"

/* Whether this host can tell touched pages from others: then the sets below are exact. */
static bool host_can_tell(VmfRamBackend backend)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("probe", 4096 * 4, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(4, NULL);

    return vmf_occupancy_scan(block, touched, NULL) && vmf_dirty_bitmap_count(touched) == 0;
}

static VmfRamBackend require(void **state)
{
    VmfRamBackend backend = (VmfRamBackend)(uintptr_t)*state;

    if (!host_can_tell(backend)) {
        print_message("this kernel does not tell which pages of %s memory are there\n", vmf_ram_backend_name(backend));
        skip();
    }
    return backend;
}

static void exactly_the_touched_pages_are_found(void **state)
{
    VmfRamBackend backend = require(state);
    const uint64_t n_pages = 3 * 512 + 9;
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", n_pages * 4096, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(n_pages, NULL);
    volatile uint8_t *host = vmf_ram_block_host(block);

    for (uint64_t page = 0; page < n_pages; page += 1 + page % 13)
        host[page * 4096 + 5] = 1;
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    for (uint64_t page = 0, next = 0; page < n_pages; page++) {
        assert_int_equal(vmf_dirty_bitmap_test(touched, page), page == next);
        if (page == next)
            next += 1 + page % 13;
    }
}

/* More ranges than one call returns. */
static void many_ranges_are_found(void **state)
{
    VmfRamBackend backend = require(state);
    const uint64_t n_pages = 4096;
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", n_pages * 4096, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(n_pages, NULL);
    volatile uint8_t *host = vmf_ram_block_host(block);

    for (uint64_t page = 1; page < n_pages; page += 2)
        host[page * 4096] = 1;
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(touched), n_pages / 2);
    assert_true(vmf_dirty_bitmap_test(touched, n_pages - 1));
}

static void discarded_pages_are_untouched_again(void **state)
{
    VmfRamBackend backend = require(state);
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 64 * 4096, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(64, NULL);

    memset(vmf_ram_block_host(block), 1, 64 * 4096);
    assert_true(vmf_ram_block_discard(block, 10 * 4096, 30 * 4096, NULL));
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(touched), 34);
    assert_false(vmf_dirty_bitmap_test(touched, 10));
    assert_false(vmf_dirty_bitmap_test(touched, 39));
}

/* There are kernels that give a page of its own to whoever only reads. */
static bool reading_maps_the_page_of_zeros(void)
{
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct pm_region region = {0};
    struct pm_arg arg = {.size = sizeof(arg),
                         .start = (uintptr_t)page,
                         .end = (uintptr_t)page + 4096,
                         .vec = (uintptr_t)&region,
                         .vec_len = 1,
                         .category_anyof_mask = PM_CATEGORY_PRESENT,
                         .return_mask = PM_CATEGORY_PRESENT | PM_CATEGORY_ZERO_PAGE};
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    assert_ptr_not_equal(page, MAP_FAILED);
    assert_int_equal(*(volatile uint8_t *)page, 0);
    bool shared = ioctl(pagemap, PM_IOC_SCAN, &arg) == 1 && region.categories & PM_CATEGORY_ZERO_PAGE;
    close(pagemap);
    munmap(page, 4096);
    return shared;
}

/* Reading maps anonymous memory to the kernel's page of zeros, which is no content. */
static void pages_that_were_only_read_are_untouched(void **state)
{
    VmfRamBackend backend = require(state);

    if (!reading_maps_the_page_of_zeros()) {
        print_message("this kernel gives a page of its own to whoever only reads\n");
        skip();
    }
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 16 * 4096, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(16, NULL);
    volatile const uint8_t *host = vmf_ram_block_host(block);

    assert_int_equal(host[3 * 4096], 0);
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(touched), 0);
}

static size_t count_resident(const VmfRamBlock *block, uint64_t offset, size_t n_pages)
{
    g_autofree unsigned char *resident = g_malloc(n_pages);
    size_t count = 0;

    assert_int_equal(mincore((uint8_t *)vmf_ram_block_host(block) + offset, n_pages * 4096, resident), 0);
    for (size_t i = 0; i < n_pages; i++)
        count += resident[i] & 1;
    return count;
}

static void a_sparse_terabyte_is_scanned_and_not_populated(void **state)
{
    VmfRamBackend backend = require(state);
    const uint64_t size = UINT64_C(1) << 40;
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", size, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(size / 4096, NULL);

    if (!block) {
        print_message("this host does not lend out so much address space\n");
        skip();
    }
    volatile uint8_t *host = vmf_ram_block_host(block);
    for (uint64_t i = 0; i < 100; i++)
        host[i * (size / 100)] = 1;
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(touched), 100);
    assert_int_equal(count_resident(block, 0, 100000), 1);
}

/* ---- huge pages -------------------------------------------------------------------------------------------------- */

#define HUGE (2u << 20)
#define HUGE_PAGES 8u

static bool has_huge_pages;

static VmfRamBlock *huge_block(unsigned n_pages)
{
    if (!has_huge_pages || !host_can_tell(VMF_RAM_ANON))
        skip();
    VmfRamBlock *block = vmf_ram_block_new("ram", (uint64_t)n_pages * HUGE, VMF_RAM_HUGETLB, 0, 0, NULL);
    assert_non_null(block);
    return block;
}

static void touched_huge_pages_are_found(void **state)
{
    g_autoptr(VmfRamBlock) block = huge_block(HUGE_PAGES);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(HUGE_PAGES * 512, NULL);
    g_autoptr(VmfDirtyBitmap) later = vmf_dirty_bitmap_new(HUGE_PAGES * 512, NULL);
    uint8_t *host = vmf_ram_block_host(block);

    assert_true(vmf_occupancy_scan(block, touched, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(touched), 0);
    for (unsigned page = 1; page < HUGE_PAGES; page += 3)
        host[page * HUGE + 5 * 4096] = 1;
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    for (uint64_t page = 0; page < HUGE_PAGES * 512; page++)
        assert_int_equal(vmf_dirty_bitmap_test(touched, page), page / 512 % 3 == 1);
    assert_true(vmf_ram_block_discard(block, HUGE, HUGE, NULL));
    assert_true(vmf_occupancy_scan(block, later, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(later), vmf_dirty_bitmap_count(touched) - 512);
    assert_false(vmf_dirty_bitmap_test(later, 512));
}

/* Content that another process put into the file is in no page table of ours. */
static void content_of_others_is_not_missed(void **state)
{
    g_autoptr(VmfRamBlock) block = huge_block(HUGE_PAGES);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(HUGE_PAGES * 512, NULL);
    uint8_t *theirs = mmap(NULL, HUGE_PAGES * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, vmf_ram_block_fd(block), 0);

    assert_ptr_not_equal(theirs, MAP_FAILED);
    theirs[3 * HUGE + 9] = 1;
    munmap(theirs, HUGE_PAGES * HUGE);
    assert_true(vmf_occupancy_scan(block, touched, NULL));
    assert_true(vmf_dirty_bitmap_test(touched, 3 * 512));
}

#define FOR_BACKEND(test, backend)                                                                                     \
    {                                                                                                                  \
#test "/" #backend, test, NULL, NULL, (void *)(uintptr_t)(backend)                                             \
    }
#define FOR_BOTH(test) FOR_BACKEND(test, VMF_RAM_ANON), FOR_BACKEND(test, VMF_RAM_MEMFD)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOR_BOTH(exactly_the_touched_pages_are_found),
        FOR_BOTH(many_ranges_are_found),
        FOR_BOTH(discarded_pages_are_untouched_again),
        FOR_BACKEND(pages_that_were_only_read_are_untouched, VMF_RAM_ANON),
        FOR_BOTH(a_sparse_terabyte_is_scanned_and_not_populated),
        cmocka_unit_test(touched_huge_pages_are_found),
        cmocka_unit_test(content_of_others_is_not_missed),
    };

    has_huge_pages = vmf_test_huge_pages(HUGE_PAGES);
    if (!host_can_tell(VMF_RAM_ANON) && !host_can_tell(VMF_RAM_MEMFD))
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
