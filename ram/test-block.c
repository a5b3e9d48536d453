/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "tests/huge-pages.h"

static void blocks_are_aligned_and_zero(void **state)
{
    for (VmfRamBackend backend = 0; backend <= VMF_RAM_MEMFD; backend++) {
        for (int flags = 0; flags <= VMF_RAM_NO_HUGE_PAGES; flags += VMF_RAM_NO_HUGE_PAGES) {
            g_autoptr(VmfRamBlock) block = vmf_ram_block_new("pc.ram", 3 << 20, backend, flags, 1 << 20, NULL);
            assert_non_null(block);
            uint8_t *host = vmf_ram_block_host(block);
            assert_int_equal((uintptr_t)host % VMF_CHUNK_SIZE, 0);
            assert_int_equal(host[0] | host[(3 << 20) - 1], 0);
            host[0] = host[(3 << 20) - 1] = 1;
            assert_string_equal(vmf_ram_block_name(block), "pc.ram");
            assert_int_equal(vmf_ram_block_size(block), 3 << 20);
            assert_int_equal(vmf_ram_block_guest_address(block), 1 << 20);
            assert_int_equal(vmf_ram_block_page_size(block), 4096);
            assert_int_equal(vmf_ram_block_flags(block), flags);
            assert_int_equal(vmf_ram_block_backend(block), backend);
            assert_true((vmf_ram_block_fd(block) >= 0) == (backend == VMF_RAM_MEMFD));
        }
    }
}

static void names_and_sizes_are_checked(void **state)
{
    char long_name[VMF_RAM_NAME_MAX + 2];
    const char *const bad_names[] = {"", "a\nb", "caf\xc3\xa9", "\x7f", long_name};
    const uint64_t bad_sizes[] = {0, 1, 4095, 4097, UINT64_MAX, UINT64_MAX - 4095, (uint64_t)1 << 63};

    memset(long_name, 'x', sizeof(long_name));
    long_name[VMF_RAM_NAME_MAX + 1] = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(bad_names); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(vmf_ram_block_new(bad_names[i], 4096, VMF_RAM_ANON, 0, 0, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK));
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(bad_sizes); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(vmf_ram_block_new("ram", bad_sizes[i], VMF_RAM_MEMFD, 0, 0, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK));
    }
    long_name[VMF_RAM_NAME_MAX] = 0;
    g_autoptr(VmfRamBlock) longest = vmf_ram_block_new(long_name, 4096, VMF_RAM_MEMFD, 0, 0, NULL);
    assert_non_null(longest);
    g_autoptr(GError) error = NULL;
    assert_null(vmf_ram_block_new("ram", 8192, VMF_RAM_ANON, 0, UINT64_MAX - 4095, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK));
}

static void what_does_not_fit_is_an_error(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_ram_block_new("ram", (uint64_t)1 << 60, VMF_RAM_ANON, 0, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_MEMORY));
}

static void chunks_divide_the_block(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 2 * VMF_CHUNK_SIZE + 3 * 4096, VMF_RAM_ANON, 0, 0, NULL);
    uint64_t first;

    assert_int_equal(vmf_ram_block_n_pages(block), 2 * 512 + 3);
    assert_int_equal(vmf_ram_block_n_chunks(block), 3);
    assert_int_equal(vmf_ram_block_chunk_pages(block, 1, &first), 512);
    assert_int_equal(first, 512);
    assert_int_equal(vmf_ram_block_chunk_pages(block, 2, &first), 3);
    assert_int_equal(first, 1024);
    assert_ptr_equal(vmf_ram_block_page(block, 1), (uint8_t *)vmf_ram_block_host(block) + 4096);
}

static void discarded_pages_read_as_zero_and_cost_nothing(void **state)
{
    for (VmfRamBackend backend = 0; backend <= VMF_RAM_MEMFD; backend++) {
        g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 8 * 4096, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
        uint8_t *host = vmf_ram_block_host(block);
        unsigned char resident[8];

        memset(host, 0xaa, 8 * 4096);
        assert_true(vmf_ram_block_discard(block, 2 * 4096, 3 * 4096, NULL));
        assert_int_equal(mincore(host, 8 * 4096, resident), 0);
        for (unsigned page = 0; page < 8; page++)
            assert_int_equal(resident[page] & 1, page < 2 || page >= 5);
        for (unsigned page = 0; page < 8; page++)
            assert_int_equal(host[page * 4096 + 7], page < 2 || page >= 5 ? 0xaa : 0);
    }
}

static void discards_outside_the_block_are_refused(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 8 * 4096, VMF_RAM_ANON, 0, 0, NULL);
    const uint64_t bad[][2] = {{1, 4096}, {0, 1}, {4096, 8 * 4096}, {9 * 4096, 4096}, {4096, UINT64_MAX - 4095}};

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        assert_false(vmf_ram_block_discard(block, bad[i][0], bad[i][1], &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_RANGE));
    }
    assert_true(vmf_ram_block_discard(block, 8 * 4096, 0, NULL));
}

static void a_peer_cannot_cut_a_memfd(void **state)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("ram", 8 * 4096, VMF_RAM_MEMFD, 0, 0, NULL);
    struct stat status;

    assert_int_equal(ftruncate(vmf_ram_block_fd(block), 4096), -1);
    assert_int_equal(ftruncate(vmf_ram_block_fd(block), 9 * 4096), -1);
    assert_int_equal(fstat(vmf_ram_block_fd(block), &status), 0);
    assert_int_equal(status.st_size, 8 * 4096);
}

static void backends_have_names(void **state)
{
    g_autoptr(GError) error = NULL;
    VmfRamBackend backend;

    for (VmfRamBackend i = 0; i < VMF_RAM_N_BACKENDS; i++) {
        assert_true(vmf_ram_backend_parse(vmf_ram_backend_name(i), &backend, NULL));
        assert_int_equal(backend, i);
    }
    assert_false(vmf_ram_backend_parse("hugetlbfs", &backend, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
}

/* ---- huge pages -------------------------------------------------------------------------------------------------- */

#define HUGE (2u << 20)
#define HUGE_PAGES 4u /* for all tests together, which have their blocks one after the other */

static bool has_huge_pages;

static VmfRamBlock *huge_block(unsigned n_pages)
{
    g_autoptr(GError) error = NULL;
    VmfRamBlock *block;

    if (!has_huge_pages)
        skip();
    block = vmf_ram_block_new("ram", (uint64_t)n_pages * HUGE, VMF_RAM_HUGETLB, 0, 0, &error);
    if (!block)
        fail_msg("%s", error->message);
    return block;
}

static unsigned resident(const VmfRamBlock *block, uint64_t page)
{
    unsigned char there = 0;

    assert_int_equal(mincore((uint8_t *)vmf_ram_block_host(block) + page * HUGE, 4096, &there), 0);
    return there & 1;
}

static void huge_blocks_are_aligned_and_zero(void **state)
{
    g_autoptr(VmfRamBlock) block = huge_block(2);
    uint8_t *host = vmf_ram_block_host(block);

    assert_int_equal((uintptr_t)host % HUGE, 0);
    assert_int_equal(vmf_ram_block_page_size(block), 4096);
    assert_int_equal(vmf_ram_block_host_page_size(block), HUGE);
    assert_true(vmf_ram_block_host_page_size(block) <= VMF_CHUNK_SIZE);
    assert_true(vmf_ram_block_fd(block) >= 0);
    assert_int_equal(ftruncate(vmf_ram_block_fd(block), HUGE), -1);
    assert_int_equal(host[0] | host[2 * HUGE - 1], 0);
    host[0] = host[2 * HUGE - 1] = 1;
}

static void huge_blocks_are_whole_pages(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_ram_block_new("ram", 3 * HUGE + 4096, VMF_RAM_HUGETLB, 0, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK));
}

/* A host that has too few says so when the block is made, not by a SIGBUS. With or without any. */
static void huge_pages_that_are_not_there(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_ram_block_new("ram", UINT64_C(1) << 40, VMF_RAM_HUGETLB, 0, 0, &error));
    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED)) {
        print_message("skip: %s\n", error->message);
        g_clear_error(&error); /* skip() does not return */
        skip();
    }
    assert_string_equal(vmf_error_id(error), "ram.huge-pages");
    assert_non_null(strstr(error->message, "524288 pages of 2 MiB are needed"));
    assert_non_null(strstr(vmf_error_hint(error), "/proc/sys/vm/nr_hugepages"));
}

/* What is no whole huge page is cleared in place; an absent page stays absent. */
static void parts_of_huge_pages_are_discarded(void **state)
{
    const uint64_t ranges[][2] = {{0, HUGE}, {4096, 8192}, {HUGE - 4096, 8192}, {4096, 3 * HUGE - 8192}, {0, 3 * HUGE}, {HUGE, 4096}};

    for (unsigned i = 0; i < G_N_ELEMENTS(ranges); i++) {
        g_autoptr(VmfRamBlock) block = huge_block(3);
        uint8_t *host = vmf_ram_block_host(block);
        uint64_t from = ranges[i][0], to = from + ranges[i][1];

        memset(host, 0xaa, 3 * HUGE);
        assert_true(vmf_ram_block_discard(block, from, to - from, NULL));
        for (unsigned page = 0; page < 3; page++)
            assert_int_equal(resident(block, page), !(from <= page * HUGE && to >= (page + 1) * HUGE));
        for (uint64_t at = 0; at < 3 * HUGE; at += 4096) {
            if (resident(block, at / HUGE))
                assert_int_equal(host[at + 7], at >= from && at < to ? 0 : 0xaa);
        }
        assert_true(vmf_ram_block_discard(block, 0, 3 * HUGE, NULL));
        assert_true(vmf_ram_block_discard(block, 4096, HUGE, NULL));
        assert_int_equal(resident(block, 0) + resident(block, 1) + resident(block, 2), 0);
    }
}

/* Released memory can be had by others; a load that comes later asks for it again, and is told. */
static void an_emptied_block_can_be_filled(void **state)
{
    g_autoptr(VmfRamBlock) block = huge_block(HUGE_PAGES);
    g_autoptr(GError) error = NULL;

    const unsigned spare = vmf_test_spare_huge_pages();

    memset(vmf_ram_block_host(block), 1, HUGE_PAGES * HUGE);
    assert_true(vmf_ram_block_empty(block, NULL));
    assert_true(vmf_ram_block_empty(block, NULL));
    assert_int_equal(vmf_test_spare_huge_pages(), spare); /* it has given them back, and has them reserved */
    memset(vmf_ram_block_host(block), 1, HUGE_PAGES * HUGE);
    assert_true(vmf_ram_block_discard(block, 0, HUGE_PAGES * HUGE, NULL));
    assert_int_equal(vmf_test_spare_huge_pages(), spare + HUGE_PAGES);
    g_autoptr(VmfRamBlock) other =
        vmf_ram_block_new("other", (uint64_t)(spare + 1) * HUGE, VMF_RAM_HUGETLB, 0, 0, NULL);
    assert_non_null(other);
    assert_false(vmf_ram_block_empty(block, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_HUGE_PAGES));
    g_clear_pointer(&other, vmf_ram_block_free);
    assert_true(vmf_ram_block_empty(block, NULL));
    memset(vmf_ram_block_host(block), 1, HUGE_PAGES * HUGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_aligned_and_zero),
        cmocka_unit_test(names_and_sizes_are_checked),
        cmocka_unit_test(what_does_not_fit_is_an_error),
        cmocka_unit_test(chunks_divide_the_block),
        cmocka_unit_test(discarded_pages_read_as_zero_and_cost_nothing),
        cmocka_unit_test(discards_outside_the_block_are_refused),
        cmocka_unit_test(a_peer_cannot_cut_a_memfd),
        cmocka_unit_test(backends_have_names),
        cmocka_unit_test(huge_blocks_are_aligned_and_zero),
        cmocka_unit_test(huge_blocks_are_whole_pages),
        cmocka_unit_test(huge_pages_that_are_not_there),
        cmocka_unit_test(parts_of_huge_pages_are_discarded),
        cmocka_unit_test(an_emptied_block_can_be_filled),
    };

    has_huge_pages = vmf_test_huge_pages(HUGE_PAGES);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
