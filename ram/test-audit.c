/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What finds what went wrong: the audit a write that the dirty log lost, at either end; the sums of acknowledgements a
 * byte that the channel changed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/test-rig.h"

#define LOST_PAGE 777

typedef struct {
    VmfFault faults[2];
    unsigned n_faults;
    VmfChannel *count;
} Link;

/* The count is below the faults, which leave the number of bytes as it is. */
static VmfChannel *wrap(VmfChannel *channel, unsigned index, void *opaque)
{
    Link *link = opaque;

    link->count = vmf_filter_count(channel);
    return vmf_filter_fault(link->count, link->faults, link->n_faults);
}

static VmfRig *new_rig(Link *link)
{
    VmfRig *rig = vmf_rig_new();

    vmf_rig_write_range(rig, 0, 600, 300, 1);
    vmf_rig_write_range(rig, 1, 0, 5, 1);
    rig->wrap = wrap;
    rig->wrap_opaque = link;
    vmf_rig_connect(rig, 1);
    return rig;
}

/* ---- audits ---------------------------------------------------------------------------------------------------- */

static void audit_at_source(VmfRig *rig, uint64_t different, const char *expected)
{
    g_autofree char *text = NULL;
    VmfVerifyResult result = {0};

    assert_true(vmf_ram_save_audit(rig->save, &result, &text, NULL, NULL));
    assert_int_equal(result.pages_different, different);
    if (expected)
        assert_string_equal(text, expected);
    else
        assert_null(text);
}

static void memory_that_arrived_passes_both_audits(void **state)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);

    assert_true(vmf_rig_round(rig, NULL));
    vmf_rig_write(rig, 0, 601, 0);
    vmf_rig_write(rig, 0, 5, 7);
    assert_true(vmf_ram_save_harvest(rig->save, NULL));
    assert_true(vmf_rig_end(rig, NULL));
    audit_at_source(rig, 0, NULL);
    assert_true(vmf_ram_load_audit(rig->load, NULL, NULL));
    g_autofree char *difference = vmf_rig_difference(rig);
    assert_null(difference);
}

/* All sums are equal, since what was sent arrived: only hashing the source's memory afresh can tell. */
static void a_write_that_the_log_lost_is_named_by_the_audit(void **state)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);

    assert_true(vmf_rig_round(rig, NULL));
    vmf_rig_write(rig, 0, LOST_PAGE - 1, 50);
    vmf_rig_write_unseen(rig, 0, LOST_PAGE, 50);
    vmf_rig_write(rig, 0, LOST_PAGE + 1, 50);
    assert_true(vmf_ram_save_harvest(rig->save, NULL));
    assert_true(vmf_rig_end(rig, NULL));
    VmfSwitchover summary = vmf_rig_summary(rig);
    assert_true(vmf_ram_load_check(rig->load, &summary, NULL));
    vmf_switchover_clear(&summary);
    assert_string_equal(rig->mended->str, "");
    audit_at_source(rig, 1, "dirty log rig: 1 page differs: ram page 777");
    assert_true(vmf_ram_load_audit(rig->load, NULL, NULL));
}

static void a_lost_first_write_and_a_lost_last_one_are_named_too(void **state)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);

    assert_true(vmf_rig_round(rig, NULL));
    vmf_rig_write_unseen(rig, 0, 2, 50);
    vmf_rig_write_unseen(rig, 0, 650, 0);
    vmf_rig_write_unseen(rig, 1, 4, 9);
    assert_true(vmf_rig_end(rig, NULL));
    audit_at_source(rig, 3, "dirty log rig: 3 pages differ: ram page 2, ram page 650, rom page 4");
}

static void a_page_that_changed_at_the_target_is_named(void **state)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);
    g_autoptr(GError) error = NULL;

    assert_true(vmf_rig_end(rig, NULL));
    ((uint8_t *)vmf_ram_block_page(rig->to[0], 700))[4095] ^= 1;
    ((uint8_t *)vmf_ram_block_page(rig->to[1], 39))[0] = 1;
    assert_false(vmf_ram_load_audit(rig->load, NULL, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_AUDIT));
    assert_non_null(strstr(error->message, "2 pages differ: ram page 700, rom page 39"));
    audit_at_source(rig, 0, NULL);
}

static void memory_that_was_lost_at_the_target_is_found(void **state)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);
    g_autoptr(GError) error = NULL;

    assert_true(vmf_rig_end(rig, NULL));
    assert_true(vmf_ram_block_discard(rig->to[0], 612 * VMF_PAGE_SIZE, VMF_PAGE_SIZE, NULL));
    assert_false(vmf_ram_load_audit(rig->load, NULL, &error));
    assert_non_null(strstr(error->message, "1 page differs: ram page 612"));
}

static void an_audit_can_be_cancelled(void **state)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;
    VmfVerifyResult result = {0};
    _Atomic bool cancel = true;

    assert_true(vmf_rig_end(rig, NULL));
    assert_false(vmf_ram_save_audit(rig->save, &result, &text, &cancel, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
}

/* ---- damage on the way ----------------------------------------------------------------------------------------- */

#define FIRST_FLIP 200000 /* in the payload of the first chunk's first record, 128 pages behind a hint */

static void a_flipped_byte_is_mended_and_named(void **state)
{
    Link link = {.faults = {{.kind = VMF_FAULT_FLIP, .offset = FIRST_FLIP}}, .n_faults = 1};
    g_autoptr(VmfRig) rig = new_rig(&link);
    g_autoptr(GError) error = NULL;

    assert_true(vmf_rig_round(rig, NULL));
    assert_string_equal(rig->mended->str, "RAM block ram: pages 512 to 1023: sum at the target differs, sent again\n");
    assert_int_equal(rig->save->chunks_mended, 1);
    assert_int_equal(vmf_ram_save_pending_bytes(rig->save), VMF_CHUNK_SIZE);
    g_autofree char *before = vmf_rig_difference(rig);
    assert_non_null(before);
    if (!vmf_rig_end(rig, &error))
        fail_msg("%s", error->message);
    g_autofree char *after = vmf_rig_difference(rig);
    assert_null(after);
    assert_int_equal(rig->save->chunks_mended, 1);
    assert_int_equal(rig->save->blocks[0].data, 300);
    VmfSwitchover summary = vmf_rig_summary(rig);
    assert_true(vmf_ram_load_check(rig->load, &summary, NULL));
    vmf_switchover_clear(&summary);
}

/* A guest that wrote the page explains the difference, and sends it anyway. */
static void a_flipped_byte_in_a_page_that_is_dirty_is_no_damage(void **state)
{
    Link link = {.faults = {{.kind = VMF_FAULT_FLIP, .offset = FIRST_FLIP}}, .n_faults = 1};
    g_autoptr(VmfRig) rig = new_rig(&link);
    g_autoptr(GError) error = NULL;

    assert_true(vmf_fanout_round(rig->fanout, NULL));
    vmf_rig_write_range(rig, 0, 600, 300, 99);
    assert_true(vmf_flight_drain(rig->save->flight, INT64_C(60000000000)));
    assert_true(vmf_ram_save_harvest(rig->save, NULL));
    assert_string_equal(rig->mended->str, "");
    if (!vmf_rig_end(rig, &error))
        fail_msg("%s", error->message);
    g_autofree char *difference = vmf_rig_difference(rig);
    assert_null(difference);
}

/* How much a first pass writes: the same each time, since there is one lane and nobody writes memory meanwhile. */
static uint64_t length_of_first_pass(void)
{
    Link link = {.n_faults = 0};
    g_autoptr(VmfRig) rig = new_rig(&link);

    assert_true(vmf_rig_round(rig, NULL));
    return vmf_filter_count_sent(link.count);
}

static void a_byte_that_is_flipped_again_fails(void **state)
{
    Link link = {.n_faults = 2};
    g_autoptr(GError) error = NULL;

    link.faults[0] = (VmfFault){.kind = VMF_FAULT_FLIP, .offset = FIRST_FLIP};
    link.faults[1] = (VmfFault){.kind = VMF_FAULT_FLIP, .offset = length_of_first_pass() + FIRST_FLIP};
    g_autoptr(VmfRig) rig = new_rig(&link);
    assert_true(vmf_rig_round(rig, NULL));
    assert_int_equal(rig->save->chunks_mended, 1);
    assert_false(vmf_rig_round(rig, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_SUM));
    assert_non_null(strstr(error->message, "RAM block ram: pages 512 to 1023"));
}

/* After the last harvest there is nothing that could mend it: the sums of SWITCHOVER refuse, and the source can say
 * which chunk. */
static void damage_in_the_last_round_is_refused_and_named(void **state)
{
    Link link = {.faults = {{.kind = VMF_FAULT_FLIP, .offset = FIRST_FLIP}}, .n_faults = 1};
    g_autoptr(VmfRig) rig = new_rig(&link);
    g_autoptr(GError) error = NULL;

    assert_true(vmf_fanout_round(rig->fanout, NULL));
    assert_true(vmf_rig_end_marks(rig, NULL));
    assert_true(vmf_flight_drain(rig->save->flight, INT64_C(60000000000)));
    VmfSwitchover summary = vmf_rig_summary(rig);
    assert_false(vmf_ram_load_check(rig->load, &summary, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RAM_SUM));
    vmf_switchover_clear(&summary);
    g_autofree char *name = vmf_ram_save_name_suspect(rig->save);
    assert_string_equal(name, "RAM block ram: pages 512 to 1023");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_that_arrived_passes_both_audits),
        cmocka_unit_test(a_write_that_the_log_lost_is_named_by_the_audit),
        cmocka_unit_test(a_lost_first_write_and_a_lost_last_one_are_named_too),
        cmocka_unit_test(a_page_that_changed_at_the_target_is_named),
        cmocka_unit_test(memory_that_was_lost_at_the_target_is_found),
        cmocka_unit_test(an_audit_can_be_cancelled),
        cmocka_unit_test(a_flipped_byte_is_mended_and_named),
        cmocka_unit_test(a_flipped_byte_in_a_page_that_is_dirty_is_no_damage),
        cmocka_unit_test(a_byte_that_is_flipped_again_fails),
        cmocka_unit_test(damage_in_the_last_round_is_refused_and_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
