/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RAM as a store, walked along its occupancy into sinks, of which RAM is one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <vmferry/error.h>

#include "ram/occupancy.h"
#include "ram/ram-sink.h"
#include "ram/ram-store.h"
#include "ram/store-source.h"
#include "ram/verify-sink.h"

typedef struct {
    VmfRamBlock *blocks[2];
    VmfDirtyBitmap *bitmaps[2];
    VmfDigestTable *tables[2];
    VmfPageStore store;
} World;

static int set_up(void **state)
{
    World *world = g_new0(World, 1);

    world->blocks[0] = vmf_ram_block_new("ram", 64 << 20, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    world->blocks[1] =
        vmf_ram_block_new("rom", (2 << 20) + 3 * VMF_PAGE_SIZE, VMF_RAM_MEMFD, VMF_RAM_ROM, 1 << 30, NULL);
    for (unsigned i = 0; i < 2; i++) {
        world->bitmaps[i] = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(world->blocks[i]), NULL);
        world->tables[i] = vmf_digest_table_new(vmf_ram_block_n_pages(world->blocks[i]), NULL);
    }
    world->store = vmf_ram_store_new(world->blocks, 2, vmf_page_scan_select(), false);
    *state = world;
    return 0;
}

static int tear_down(void **state)
{
    World *world = *state;

    vmf_page_store_free(&world->store);
    for (unsigned i = 0; i < 2; i++) {
        vmf_ram_block_free(world->blocks[i]);
        vmf_dirty_bitmap_free(world->bitmaps[i]);
        vmf_digest_table_free(world->tables[i]);
    }
    g_free(world);
    return 0;
}

static void write_page(World *world, unsigned block, uint64_t page, uint8_t value)
{
    ((uint8_t *)vmf_ram_block_page(world->blocks[block], page))[page % VMF_PAGE_SIZE] = value;
}

static void find_present(World *world)
{
    for (unsigned i = 0; i < 2; i++)
        assert_true(world->store.ops->presence(world->store.opaque, i, world->bitmaps[i], NULL));
}

/* Copies what the bitmaps hold into @sink, which is freed. */
static bool copy_into(World *world, VmfPageSink sink, unsigned batch_pages, const _Atomic bool *cancel, GError **error)
{
    g_auto(VmfPageSource) source = vmf_store_source_new(&world->store, world->bitmaps, 2, batch_pages);
    bool ok = vmf_page_copy(&source, &sink, cancel, error);
    vmf_page_sink_free(&sink);
    return ok;
}

static void only_what_was_touched_is_pushed(void **state)
{
    World *world = *state;
    VmfPageCounts counts;

    for (unsigned page = 5; page < 5 + 300; page++)
        write_page(world, 0, page, 1);
    write_page(world, 0, 9000, 0); /* touched, but zero */
    write_page(world, 1, 514, 7);  /* the last of a short chunk */
    find_present(world);
    assert_true(copy_into(world, vmf_null_sink_new(&counts), 128, NULL, NULL));
    assert_int_equal(counts.data_pages, 301);
    assert_int_equal(counts.zero_pages, 1);
    assert_int_equal(counts.batches, 3 + 1 + 1);
    assert_int_equal(vmf_dirty_bitmap_count(world->bitmaps[0]) + vmf_dirty_bitmap_count(world->bitmaps[1]), 0);
}

/* What a stream writer does with its own table, in short. */
static bool record_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    VmfDigestTable **tables = opaque;
    VmfPageSet all = vmf_page_set_or(&batch->data, &batch->zero);

    vmf_digest_table_update(tables[batch->block_index], batch->chunk, &all, batch->digests);
    vmf_page_batch_release(batch);
    return true;
}

static const VmfPageSinkOps record_ops = {.size = sizeof(VmfPageSinkOps), .push = record_push};

static void the_verifier_lists_pages_that_differ(void **state)
{
    World *world = *state;
    VmfVerifyResult result;

    for (unsigned page = 0; page < 1000; page++)
        write_page(world, 0, page, page % 7);
    find_present(world);
    assert_true(copy_into(world, (VmfPageSink){&record_ops, world->tables}, 512, NULL, NULL));

    find_present(world);
    assert_true(copy_into(world, vmf_verify_sink_new(world->tables, 2, &result), 100, NULL, NULL));
    assert_int_equal(result.pages_checked, 1000);
    assert_int_equal(result.pages_different, 0);

    write_page(world, 0, 77, 99); /* was zero: 77 % 7 == 0 */
    write_page(world, 0, 800, 0); /* becomes zero */
    write_page(world, 1, 2, 5);   /* unknown to the table */
    find_present(world);
    assert_true(copy_into(world, vmf_verify_sink_new(world->tables, 2, &result), 100, NULL, NULL));
    assert_int_equal(result.pages_different, 3);
    assert_int_equal(result.n_listed, 3);
    assert_int_equal(result.listed[0].page, 77);
    assert_int_equal(result.listed[0].expected, 0);
    assert_int_equal(result.listed[1].page, 800);
    assert_int_equal(result.listed[1].found, 0);
    assert_int_equal(result.listed[2].block_index, 1);
}

static void the_list_of_differences_is_bounded(void **state)
{
    World *world = *state;
    VmfVerifyResult result;

    for (unsigned page = 0; page < 600; page++)
        write_page(world, 0, page, 1);
    find_present(world);
    assert_true(copy_into(world, vmf_verify_sink_new(world->tables, 2, &result), 512, NULL, NULL));
    assert_int_equal(result.pages_different, 600);
    assert_int_equal(result.n_listed, G_N_ELEMENTS(result.listed));
}

static void a_cancelled_copy_says_so(void **state)
{
    World *world = *state;
    VmfPageCounts counts;
    _Atomic bool cancel = true;
    g_autoptr(GError) error = NULL;

    vmf_dirty_bitmap_set_range(world->bitmaps[0], 0, 10);
    assert_false(copy_into(world, vmf_null_sink_new(&counts), 128, &cancel, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    assert_int_equal(counts.batches, 0);
}

/* A second world that pages are copied into. */
static void copy_world(World *from, World *to)
{
    g_auto(VmfPageSource) source = vmf_store_source_new(&from->store, from->bitmaps, 2, 128);
    g_auto(VmfPageSink) sink = vmf_ram_sink_new(to->blocks, to->tables, 2, vmf_page_scan_select());

    assert_true(vmf_page_copy(&source, &sink, NULL, NULL));
}

static void assert_same_memory(World *one, World *other)
{
    for (unsigned i = 0; i < 2; i++)
        assert_memory_equal(vmf_ram_block_host(one->blocks[i]), vmf_ram_block_host(other->blocks[i]),
                            vmf_ram_block_size(one->blocks[i]));
}

/* The sums that a target ends with are those of its memory, whatever came before. */
static void assert_tables_are_true(World *world)
{
    VmfVerifyResult result;

    for (unsigned i = 0; i < 2; i++)
        vmf_dirty_bitmap_set_range(world->bitmaps[i], 0, UINT64_MAX);
    assert_true(copy_into(world, vmf_verify_sink_new(world->tables, 2, &result), 512, NULL, NULL));
    assert_int_equal(result.pages_different, 0);
    assert_int_equal(result.pages_checked, (64 << 20) / VMF_PAGE_SIZE + 515);
}

static void copy_in_rounds(void **state, bool live)
{
    World *from = *state, *to;

    set_up((void **)&to);
    vmf_page_store_free(&from->store);
    from->store = vmf_ram_store_new(from->blocks, 2, vmf_page_scan_select(), live);
    for (unsigned page = 0; page < 3000; page++)
        write_page(from, 0, page, page % 5);
    write_page(from, 1, 514, 1);
    find_present(from);
    copy_world(from, to);
    assert_same_memory(from, to);

    for (unsigned page = 100; page < 200; page++) {
        write_page(from, 0, page, 0);
        write_page(from, 0, page + 500, 9);
    }
    vmf_dirty_bitmap_set_range(from->bitmaps[0], 50, 1000);
    copy_world(from, to);
    assert_same_memory(from, to);
    assert_tables_are_true(to);
    tear_down((void **)&to);
}

static void memory_is_copied_in_rounds(void **state)
{
    copy_in_rounds(state, false);
    tear_down(state);
    set_up(state);
    copy_in_rounds(state, true);
}

/* What was read into reserve()'s memory is not copied, only counted; what lies outside the blocks is refused. */
static void pages_read_in_place(void **state)
{
    World *world = *state;
    g_auto(VmfPageSink) sink = vmf_ram_sink_new(world->blocks, world->tables, 2, vmf_page_scan_select());
    g_autoptr(GError) error = NULL;
    VmfPageBatch batch;
    uint8_t *at = vmf_page_sink_reserve(&sink, 0, 3);

    assert_ptr_equal(at, vmf_ram_block_page(world->blocks[0], 3 * VMF_CHUNK_PAGES));
    assert_null(vmf_page_sink_reserve(&sink, 0, 32));
    assert_null(vmf_page_sink_reserve(&sink, 2, 0));
    at[5 * VMF_PAGE_SIZE] = 1;
    vmf_page_batch_init(&batch, world->blocks[0], 0, 3);
    batch.payload = at;
    vmf_page_set_add_range(&batch.data, 5, 1);
    vmf_page_set_add_range(&batch.zero, 6, 500);
    assert_true(vmf_page_sink_push(&sink, &batch, NULL));
    assert_int_equal(vmf_digest_table_n_data(world->tables[0]), 1);
    assert_tables_are_true(world);

    batch.block_index = 2;
    assert_false(vmf_page_sink_push(&sink, &batch, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_RANGE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(only_what_was_touched_is_pushed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_verifier_lists_pages_that_differ, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_list_of_differences_is_bounded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_cancelled_copy_says_so, set_up, tear_down),
        cmocka_unit_test_setup_teardown(memory_is_copied_in_rounds, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pages_read_in_place, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
