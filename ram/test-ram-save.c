/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the source makes of a sum that differs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/ram-save.h"

typedef struct {
    VmfRamBlock *block;
    VmfRamSave *save;
    unsigned told;
} Fixture;

static void tell(void *opaque, const char *text)
{
    assert_non_null(strstr(text, "RAM block test: pages 512 to 1023"));
    ((Fixture *)opaque)->told++;
}

static int set_up(void **state)
{
    Fixture *f = g_new0(Fixture, 1);
    VmfRamSaveConfig config = {.n_lanes = 1, .acknowledged = true, .mended = tell, .opaque = f};

    f->block = vmf_ram_block_new("test", 2 * VMF_CHUNK_SIZE, VMF_RAM_ANON, 0, 0, NULL);
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

static const VmfChunkId chunk = {0, 1};
static const uint64_t right = 0, wrong = 1;

static void land(Fixture *f, uint64_t sequence, uint64_t sum)
{
    assert_true(vmf_flight_land(f->save->flight, 0, sequence, 1, &chunk, &sum, vmf_ram_save_compare, f->save));
}

static void test_clean_chunk_is_sent_again_once(void **state)
{
    Fixture *f = *state;
    g_autoptr(GError) error = NULL;

    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    land(f, 1, wrong);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->told, 1);
    assert_int_equal(vmf_dirty_bitmap_count(f->save->blocks[0].dirty), 512);
    VmfPageSet taken;
    vmf_dirty_bitmap_take_chunk(f->save->blocks[0].dirty, 1, &taken);
    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    land(f, 2, wrong);
    assert_false(vmf_ram_save_harvest(f->save, &error));
    assert_string_equal(vmf_error_id(error), "ram.sum");
}

static void test_dirty_page_explains_it(void **state)
{
    Fixture *f = *state;

    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    land(f, 1, wrong);
    vmf_dirty_bitmap_set_range(f->save->blocks[0].dirty, 700, 1);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->told, 0);
}

/* The acknowledgement of one round comes late; the chunk has been sent again and that has not landed: nothing can be said yet. */
static void test_late_acknowledgement_is_no_damage(void **state)
{
    Fixture *f = *state;

    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    land(f, 1, wrong);
    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->told, 0);
    land(f, 2, right);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->told, 0);
}

static void test_damage_is_not_forgotten_while_it_waits(void **state)
{
    Fixture *f = *state;

    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    land(f, 1, wrong);
    assert_true(vmf_flight_launch(f->save->flight, 0, chunk, 4096));
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    land(f, 2, wrong);
    assert_true(vmf_ram_save_harvest(f->save, NULL));
    assert_int_equal(f->told, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_clean_chunk_is_sent_again_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_dirty_page_explains_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_late_acknowledgement_is_no_damage, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_is_not_forgotten_while_it_waits, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
