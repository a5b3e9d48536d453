/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty log that loses a write is found out while the guest still runs, and one that does not is not accused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/test-rig.h"
#include "stream/clock.h"

#define WRITTEN 800 /* pages of content */

static VmfRig *sent_rig(void)
{
    VmfRig *rig = vmf_rig_new();

    vmf_rig_write_range(rig, 0, 0, WRITTEN, 7);
    vmf_rig_connect(rig, 2);
    rig->save->config.log_audit_percent = 100;
    assert_true(vmf_rig_round(rig, NULL));
    return rig;
}

/* Gives the audit two milliseconds' budget. */
static bool harvest(VmfRig *rig, GError **error)
{
    rig->save->harvested_at_ns = (uint64_t)(vmf_now_ns() - 2 * VMF_NS_PER_MS);
    return vmf_ram_save_harvest_audited(rig->save, error);
}

static void test_lost_write_is_named(void **state)
{
    g_autoptr(VmfRig) rig = sent_rig();
    g_autoptr(GError) error = NULL;
    unsigned harvests = 0;

    vmf_rig_write_unseen(rig, 0, 123, 8);
    while (harvest(rig, &error))
        assert_true(++harvests < 10000);
    assert_string_equal(vmf_error_id(error), "ram.audit");
    assert_non_null(strstr(error->message, "RAM block ram: page 123: "));
}

static void test_write_in_the_log_is_no_loss(void **state)
{
    g_autoptr(VmfRig) rig = sent_rig();
    GError *error = NULL;

    for (unsigned i = 0; i < 300; i++) {
        vmf_rig_write(rig, 0, i % WRITTEN, 1000 + i);
        if (!harvest(rig, &error))
            fail_msg("%s", error->message);
    }
    assert_true(rig->save->log_audit.pages_looked_at > 0);
}

/* With time for one window at each look it comes by everywhere: half of the looks go where was written, here nowhere. */
static void test_every_window_has_its_turn(void **state)
{
    unsigned windows = (RIG_CHUNKS + 2) * (VMF_CHUNK_PAGES / 64);

    for (unsigned i = 0; i < 20; i++) {
        g_autoptr(VmfRig) rig = sent_rig();
        unsigned harvests = 0;

        vmf_rig_write_unseen(rig, 0, i * 37, 8);
        do {
            rig->save->harvested_at_ns = (uint64_t)vmf_now_ns();
            rig->save->log_audit.credit_ns = 1; /* what the last window cost is forgotten */
        } while (vmf_ram_save_harvest_audited(rig->save, NULL) && ++harvests <= windows);
        assert_true(harvests <= windows);
    }
}

/* The first write of a page in a chunk that has content elsewhere. */
static void test_lost_first_write_is_found(void **state)
{
    g_autoptr(VmfRig) rig = sent_rig();
    g_autoptr(GError) error = NULL;
    unsigned harvests = 0;

    vmf_rig_write_unseen(rig, 0, WRITTEN + 3, 8);
    while (harvest(rig, &error))
        assert_true(++harvests < 10000);
    assert_non_null(strstr(error->message, "RAM block ram: page 803: "));
}

/* Half of the budget is saved for it. It comes once. */
static void test_last_look(void **state)
{
    g_autoptr(VmfRig) rig = sent_rig();
    g_autoptr(GError) error = NULL;
    bool looked;

    assert_true(vmf_ram_save_last_look(rig->save, &looked, NULL));
    assert_false(looked);
    assert_true(harvest(rig, NULL));
    assert_in_range(rig->save->log_audit.saved_ns, VMF_NS_PER_MS, 100 * VMF_NS_PER_MS);
    rig->save->log_audit.saved_ns = 100 * VMF_NS_PER_MS;
    vmf_rig_write_unseen(rig, 0, 700, 9);
    assert_false(vmf_ram_save_last_look(rig->save, &looked, &error));
    assert_true(looked);
    assert_string_equal(vmf_error_id(error), "ram.audit");
    assert_true(vmf_ram_save_last_look(rig->save, &looked, NULL));
    assert_false(looked);
}

/* What was never sent with content is not looked at: a page of it would be touched by that. */
static void test_untouched_memory_stays_untouched(void **state)
{
    g_autoptr(VmfRig) rig = vmf_rig_new();

    vmf_rig_connect(rig, 1);
    rig->save->config.log_audit_percent = 100;
    assert_true(vmf_rig_round(rig, NULL));
    assert_true(harvest(rig, NULL));
    assert_int_equal(rig->save->log_audit.pages_looked_at, 0);
}

static void test_no_budget_no_look(void **state)
{
    g_autoptr(VmfRig) rig = sent_rig();

    rig->save->config.log_audit_percent = 0;
    vmf_rig_write_unseen(rig, 0, 5, 9);
    assert_true(harvest(rig, NULL));
    assert_int_equal(rig->save->log_audit.pages_looked_at, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lost_write_is_named),
        cmocka_unit_test(test_write_in_the_log_is_no_loss),
        cmocka_unit_test(test_every_window_has_its_turn),
        cmocka_unit_test(test_lost_first_write_is_found),
        cmocka_unit_test(test_last_look),
        cmocka_unit_test(test_untouched_memory_stays_untouched),
        cmocka_unit_test(test_no_budget_no_look),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
