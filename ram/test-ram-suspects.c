/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When a chunk whose sum differs is damaged, and when it is only on its way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/ram-save.h"

static const VmfChunkId chunk = {0, 1};

typedef struct {
    VmfRamBlock *block;
    VmfRamSave *save;
    uint64_t sequence;
} Fixture;

static int set_up(void **state)
{
    Fixture *f = g_new0(Fixture, 1);
    VmfRamSaveConfig config = {.n_lanes = 1, .acknowledged = true};

    f->block = vmf_ram_block_new("ram", 4 * VMF_CHUNK_SIZE, VMF_RAM_ANON, 0, 0, NULL);
    f->save = vmf_ram_save_new(&f->block, 1, &config, NULL);
    assert_non_null(f->save);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    Fixture *f = *state;

    vmf_ram_save_free(f->save);
    vmf_ram_block_free(f->block);
    g_free(f);
    return 0;
}

static void launch(Fixture *f)
{
    assert_true(vmf_flight_try_launch(f->save->flight, 0, chunk, 4096));
}

/* One record more has landed, and the target's sum is what we have, or differs from it. */
static void land(Fixture *f, bool differs)
{
    uint64_t sum = vmf_digest_table_chunk_sum(f->save->blocks[0].digests, chunk.chunk) + differs;

    assert_true(vmf_flight_land(f->save->flight, 0, ++f->sequence, 1, &chunk, &sum, vmf_ram_save_compare, f->save));
}

static void test_a_clean_chunk_that_differs_is_sent_again_once(void **state)
{
    Fixture *f = *state;
    g_autoptr(GError) error = NULL;

    launch(f);
    land(f, true);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->save->chunks_mended, 1);
    assert_int_equal(vmf_ram_save_pending_bytes(f->save), VMF_CHUNK_SIZE);
    VmfPageSet taken;
    vmf_dirty_bitmap_take_chunk(f->save->blocks[0].dirty, chunk.chunk, &taken);
    launch(f);
    land(f, true);
    assert_false(vmf_ram_save_harvest(f->save, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_SUM));
}

static void test_a_dirty_chunk_is_explained(void **state)
{
    Fixture *f = *state;

    launch(f);
    land(f, true);
    vmf_dirty_bitmap_set_range(f->save->blocks[0].dirty, chunk.chunk * 512 + 7, 1);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->save->chunks_mended, 0);
}

/* Its page was written while it was sent, claimed again, and only then acknowledged: the second record brings it right. */
static void test_a_chunk_under_way_is_judged_later(void **state)
{
    Fixture *f = *state;

    launch(f);
    land(f, true);
    launch(f);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->save->chunks_mended, 0);
    land(f, false);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->save->chunks_mended, 0);

    launch(f);
    land(f, true);
    launch(f);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    land(f, true);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->save->chunks_mended, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_clean_chunk_that_differs_is_sent_again_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_dirty_chunk_is_explained, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_chunk_under_way_is_judged_later, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
