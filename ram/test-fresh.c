/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>

#include "ram/block.h"
#include "ram/fresh.h"
#include "ram/occupancy.h"

#define CHUNKS 4

typedef struct {
    VmfRamBlock *block;
    VmfFresh *fresh;
    uint8_t *content; /* of a chunk; page n is full of n + 1 */
} World;

static int set_up(void **state, VmfRamBackend backend)
{
    World *world = g_new0(World, 1);

    world->block = vmf_ram_block_new("ram", CHUNKS * VMF_CHUNK_SIZE, backend, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    world->fresh = vmf_fresh_new(&world->block, 1);
    assert_non_null(world->fresh);
    world->content = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        memset(world->content + page * VMF_PAGE_SIZE, (int)page + 1, VMF_PAGE_SIZE);
    *state = world;
    return 0;
}

static int set_up_anon(void **state)
{
    return set_up(state, VMF_RAM_ANON);
}

static int set_up_memfd(void **state)
{
    return set_up(state, VMF_RAM_MEMFD);
}

static int tear_down(void **state)
{
    World *world = *state;

    vmf_fresh_free(world->fresh);
    vmf_ram_block_free(world->block);
    free(world->content);
    g_free(world);
    return 0;
}

static uint8_t *page(World *world, uint64_t n)
{
    return vmf_ram_block_page(world->block, n);
}

static unsigned count_absent(World *world, uint64_t chunk)
{
    VmfPageSet all, absent;

    memset(&all, 0xff, sizeof(all));
    absent = vmf_fresh_absent(world->fresh, 0, chunk, &all);
    return vmf_page_set_count(&absent);
}

static uint64_t count_touched(World *world)
{
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(world->block), NULL);

    assert_true(vmf_occupancy_scan(world->block, touched, NULL));
    return vmf_dirty_bitmap_count(touched);
}

static void pages_are_placed_and_no_others(void **state)
{
    World *world = *state;

    assert_int_equal(count_absent(world, 1), VMF_CHUNK_PAGES);
    assert_true(vmf_fresh_place(world->fresh, 0, VMF_CHUNK_PAGES + 60, 100, world->content, NULL));
    assert_int_equal(count_absent(world, 1), VMF_CHUNK_PAGES - 100);
    assert_int_equal(count_absent(world, 0) + count_absent(world, 2), 2 * VMF_CHUNK_PAGES);
    assert_memory_equal(page(world, VMF_CHUNK_PAGES + 60), world->content, 100 * VMF_PAGE_SIZE);
    assert_int_equal(count_touched(world), 100);
}

static void what_is_there_is_overwritten(void **state)
{
    World *world = *state;

    assert_true(vmf_fresh_place(world->fresh, 0, 3, 2, world->content, NULL));
    assert_true(vmf_fresh_place(world->fresh, 0, 0, 8, world->content + VMF_PAGE_SIZE, NULL));
    assert_memory_equal(page(world, 0), world->content + VMF_PAGE_SIZE, 8 * VMF_PAGE_SIZE);
}

/* A thread of somebody else's, which would wait for ever if nobody served it. */
static void *read_a_page(void *opaque)
{
    return GINT_TO_POINTER(*(volatile uint8_t *)opaque + 1);
}

static void who_else_touches_a_page_meets_zeros(void **state)
{
    World *world = *state;

    pthread_t other;
    void *read;

    assert_int_equal(pthread_create(&other, NULL, read_a_page, page(world, 7)), 0);
    pthread_join(other, &read);
    assert_int_equal(GPOINTER_TO_INT(read) - 1, 0);
    page(world, 9)[5] = 77;
    assert_int_equal(page(world, 9)[6], 0);
    /* Its content comes all the same. */
    assert_true(vmf_fresh_place(world->fresh, 0, 0, 16, world->content, NULL));
    assert_memory_equal(page(world, 0), world->content, 16 * VMF_PAGE_SIZE);
}

static void zeros_ahead_never_replace_content(void **state)
{
    World *world = *state;

    assert_true(vmf_fresh_place(world->fresh, 0, 10, 3, world->content, NULL));
    page(world, 200)[0] = 9; /* not placed, and there */
    assert_int_equal(vmf_fresh_provide(world->fresh, 0, 0, 300), 300 - 3 - 1);
    assert_int_equal(vmf_fresh_provide(world->fresh, 0, 0, 300), 0);
    assert_int_equal(count_absent(world, 0), VMF_CHUNK_PAGES - 300);
    assert_memory_equal(page(world, 10), world->content, 3 * VMF_PAGE_SIZE);
    assert_int_equal(page(world, 200)[0], 9);
    assert_int_equal(page(world, 299)[0], 0);
    assert_int_equal(count_touched(world), 300);
}

static void after_the_end_it_is_ordinary_memory(void **state)
{
    World *world = *state;

    assert_true(vmf_fresh_place(world->fresh, 0, 0, 5, world->content, NULL));
    g_clear_pointer(&world->fresh, vmf_fresh_free);
    assert_memory_equal(page(world, 0), world->content, 5 * VMF_PAGE_SIZE);
    page(world, 600)[0] = 1;
    assert_int_equal(page(world, 5)[0], 0);
    assert_int_equal(count_absent(world, 0), 0);
    assert_true(vmf_ram_block_discard(world->block, 0, VMF_CHUNK_SIZE, NULL));
    assert_int_equal(page(world, 0)[0], 0);
}

static void only_small_pages_are_watched(void **state)
{
    g_autoptr(VmfRamBlock) large = vmf_ram_block_new("large", VMF_CHUNK_SIZE, VMF_RAM_ANON, 0, 0, NULL);
    g_autoptr(VmfRamBlock) small = vmf_ram_block_new("small", VMF_CHUNK_SIZE, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    VmfRamBlock *blocks[] = {large, small};
    g_autofree char *text = NULL;
    VmfPageSet one = {{1}};

    if (!g_file_get_contents("/sys/kernel/mm/transparent_hugepage/enabled", &text, NULL, NULL) || strstr(text, "[never]"))
        skip();
    g_autoptr(VmfFresh) fresh = vmf_fresh_new(blocks, 2);
    assert_false(vmf_fresh_has(fresh, 0));
    assert_true(vmf_fresh_has(fresh, 1));
    assert_int_equal(vmf_fresh_index(fresh, large), -1);
    assert_int_equal(vmf_fresh_index(fresh, small), 1);
    VmfPageSet absent = vmf_fresh_absent(fresh, 0, 0, &one);
    assert_true(vmf_page_set_is_empty(&absent));
    assert_null(vmf_fresh_new(blocks, 1));
}

#define FOR_BOTH(test)                                                                                                          \
    cmocka_unit_test_setup_teardown(test, set_up_anon, tear_down), cmocka_unit_test_setup_teardown(test, set_up_memfd, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOR_BOTH(pages_are_placed_and_no_others),
        FOR_BOTH(what_is_there_is_overwritten),
        FOR_BOTH(who_else_touches_a_page_meets_zeros),
        FOR_BOTH(zeros_ahead_never_replace_content),
        FOR_BOTH(after_the_end_it_is_ordinary_memory),
        cmocka_unit_test(only_small_pages_are_watched),
    };
    g_autoptr(VmfRamBlock) probe = vmf_ram_block_new("probe", VMF_CHUNK_SIZE, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    g_autoptr(VmfFresh) fresh = vmf_fresh_new(&probe, 1);

    if (!fresh)
        return 77; /* no userfaultfd here */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
