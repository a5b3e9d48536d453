/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/mman.h>
#include <unistd.h>

#include "ram/block.h"
#include "ram/populate.h"
#include "tests/huge-pages.h"

static size_t count_resident(const VmfRamBlock *block, uint64_t first_page, size_t n_pages)
{
    g_autofree unsigned char *resident = g_malloc(n_pages);
    size_t count = 0;

    assert_int_equal(mincore(vmf_ram_block_page(block, first_page), n_pages * VMF_PAGE_SIZE, resident), 0);
    for (size_t i = 0; i < n_pages; i++)
        count += resident[i] & 1;
    return count;
}

/* Waits for the thread without a deadline of its own: the runner's applies. */
static void wait_until_resident(const VmfRamBlock *block, uint64_t first_page, size_t n_pages)
{
    while (count_resident(block, first_page, n_pages) < n_pages)
        usleep(1000);
}

static bool host_can_populate(void)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("probe", VMF_PAGE_SIZE, VMF_RAM_ANON, 0, 0, NULL);
    return madvise(vmf_ram_block_host(block), VMF_PAGE_SIZE, 23 /* MADV_POPULATE_WRITE */) == 0;
}

static void ranges_are_populated_and_no_others(void **state)
{
    for (VmfRamBackend backend = 0; backend <= VMF_RAM_MEMFD; backend++) {
        g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 16 << 20, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
        g_autoptr(VmfPopulate) populate = vmf_populate_new(NULL);
        uint8_t *host = vmf_ram_block_host(block);

        host[100 * VMF_PAGE_SIZE] = 5; /* what is there stays */
        assert_true(vmf_populate_push(populate, block, 100, 1000));
        assert_true(vmf_populate_push(populate, block, 4090, 1000)); /* cut at the block's end */
        wait_until_resident(block, 100, 1000);
        wait_until_resident(block, 4090, 6);
        assert_int_equal(count_resident(block, 0, 4096), 1006);
        assert_int_equal(host[100 * VMF_PAGE_SIZE], 5);
        assert_int_equal(host[101 * VMF_PAGE_SIZE], 0);
    }
}

static void what_is_in_place_is_skipped(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 4 << 20, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfPopulate) populate = vmf_populate_new(NULL);

    memset(vmf_ram_block_host(block), 1, 2 << 20);
    assert_true(vmf_populate_push(populate, block, 0, 512));
    assert_true(vmf_populate_push(populate, block, 512, 512));
    while (vmf_populate_n_pages(populate) < 512)
        usleep(1000);
    assert_int_equal(vmf_populate_n_pages(populate), 512);
}

/* The thread has a gigabyte to do first. */
static void what_is_wanted_now_is_not_waited_for(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 1 << 30, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfPopulate) populate = vmf_populate_new(NULL);
    uint64_t last = 262144 - 512;

    assert_true(vmf_populate_push(populate, block, 0, last));
    assert_true(vmf_populate_push(populate, block, last, 512));
    assert_int_equal(vmf_populate_now(populate, block, last + 128, 128), 128); /* what is above it is forgotten */
    assert_int_equal(count_resident(block, last, 512), 128);
    assert_int_equal(count_resident(block, last + 128, 128), 128);
    assert_int_equal(vmf_populate_now(populate, block, last + 64, 192), 64);
    assert_int_equal(vmf_populate_now(populate, block, last + 64, 192), 0);
    assert_int_equal(vmf_populate_now(populate, block, last, 512), 64);
    assert_int_equal(count_resident(block, last, 512), 256);
    assert_int_equal(vmf_populate_now(populate, block, last, 512), 0);
}

static void pushing_never_waits(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 1 << 30, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfPopulate) populate = vmf_populate_new(NULL);
    unsigned dropped = 0;

    for (unsigned i = 0; i < 20000; i++)
        dropped += !vmf_populate_push(populate, block, i * 13 % 262144, 64);
    assert_true(dropped > 0);
    /* and so does the end, with much still queued */
}

/* Four pieces lie in one huge page: the first populates it, and nothing beside it. */
static void huge_pages_are_populated(void **state)
{
    if (!vmf_test_huge_pages(4))
        skip();
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 4 << 21, VMF_RAM_HUGETLB, 0, 0, NULL);
    g_autoptr(VmfPopulate) populate = vmf_populate_new(NULL);
    unsigned char there[4];

    assert_non_null(block);
    assert_true(vmf_populate_push(populate, block, 512 + 200, 400));
    while (vmf_populate_n_pages(populate) < 2)
        g_usleep(1000);
    assert_int_equal(vmf_populate_now(populate, block, 3 * 512, 100), 0); /* was not asked for */
    g_clear_pointer(&populate, vmf_populate_free);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(mincore((uint8_t *)vmf_ram_block_host(block) + (i << 21), 4096, &there[i]), 0);
    assert_true(!(there[0] & 1) && there[1] & 1 && !(there[3] & 1));
}

static void nothing_to_do_is_refused(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 4096, VMF_RAM_ANON, 0, 0, NULL);
    g_autoptr(VmfPopulate) populate = vmf_populate_new(NULL);

    assert_false(vmf_populate_push(populate, block, 0, 0));
    assert_false(vmf_populate_push(populate, block, 1, 1));
    assert_false(vmf_populate_push(populate, block, UINT64_MAX, UINT64_MAX));
    assert_false(vmf_populate_push(NULL, block, 0, 1));
    assert_int_equal(vmf_populate_n_pages(NULL), 0);
    vmf_populate_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_populated_and_no_others),
        cmocka_unit_test(what_is_in_place_is_skipped),
        cmocka_unit_test(what_is_wanted_now_is_not_waited_for),
        cmocka_unit_test(pushing_never_waits),
        cmocka_unit_test(huge_pages_are_populated),
        cmocka_unit_test(nothing_to_do_is_refused),
    };
    if (!host_can_populate())
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
