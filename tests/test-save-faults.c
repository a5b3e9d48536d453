/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Storage that goes wrong under a save: one clear error, the guest runs on, and what was there before is still there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "tests/image-check.h"
#include "tests/save-rig.h"

#define MIB (UINT64_C(1) << 20)

/* Through the page cache: before storage with faults stand requests that wait, one at a time. */
static void rig_init(VmfSaveRig *rig)
{
    vmf_save_rig_init(rig);
    rig->options.buffered = true;
}

static void assert_lives(VmfMachine *machine)
{
    VmfMachineInfo info;

    assert_true(vmf_machine_is_running(machine));
    vmf_machine_get_info(machine, &info);
    assert_int_equal(info.guest_errors, 0);
}

/* Fails with @fault, and leaves all as it was; then the same without one. */
static void fail_and_save(VmfSaveRig *rig, VmfMachine *machine, const VmfStorageFault *fault, VmfErrorCode code)
{
    vmf_save_rig_put_old(rig);
    rig->faults = fault;
    rig->n_faults = 1;
    assert_false(vmf_save_rig_run(rig, vmf_machine_guest(machine)));
    if (!g_error_matches(rig->error, VMF_ERROR, code))
        fail_msg("%s", rig->error->message);
    assert_int_equal(rig->statistics.outcome, VMF_OUTCOME_FAILED);
    vmf_save_rig_assert_old(rig);
    assert_lives(machine);
    rig->faults = NULL;
    if (!vmf_save_rig_run(rig, vmf_machine_guest(machine)))
        fail_msg("%s", rig->error->message);
    vmf_seen_image_free(vmf_see_image(rig->path, NULL));
    assert_lives(machine);
}

static void a_full_disk(void **state)
{
    static const uint64_t room[] = {0, 4096, 1 * MIB, 2 * MIB + 65536};

    for (unsigned i = 0; i < G_N_ELEMENTS(room); i++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(8);
        VmfStorageFault full = {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = room[i]};
        g_auto(VmfSaveRig) rig;

        rig_init(&rig);
        rig.options.resume = true;
        rig.parameters.minimum_rounds = 20;
        rig.parameters.channels = 1 + i % 2;
        fail_and_save(&rig, machine, &full, VMF_ERROR_NO_SPACE);
    }
}

/* Wherever a write can fail: pages, tables, header, commit block; and what is no write. */
static void errors_wherever_there_can_be_one(void **state)
{
    const VmfStorageFault faults[] = {
        {.on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE), .offset = 2 * MIB, .length = 1 << 30},
        {.on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE), .offset = 4096, .length = 4096},
        {.on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE), .offset = 0, .length = 4096},
        {.on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH), .length = UINT64_MAX, .times = 1},
        {.on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH), .length = UINT64_MAX},
        {.on = VMF_STORAGE_FAULT_ON_COMMIT, .length = UINT64_MAX},
    };

    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(faults); i++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(8);
        VmfStorageFault fault = faults[i / 2];
        g_auto(VmfSaveRig) rig;

        rig_init(&rig);
        rig.options.resume = i % 2;
        fault.kind = VMF_STORAGE_FAULT_ERROR;
        vmf_save_rig_put_old(&rig);
        rig.faults = &fault;
        rig.n_faults = 1;
        if (vmf_save_rig_run(&rig, vmf_machine_guest(machine)))
            fail_msg("fault %u went unseen", i / 2);
        assert_true(g_error_matches(rig.error, VMF_ERROR, VMF_ERROR_IO));
        vmf_save_rig_assert_old(&rig);
        assert_lives(machine);
    }
}

/* Storage that ends its writes in any order: nothing of a page's older version may remain. */
static void writes_that_end_in_another_order(void **state)
{
    for (unsigned seed = 1; seed <= 5; seed++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(8);
        VmfStorageFault reorder = {.kind = VMF_STORAGE_FAULT_REORDER, .seed = seed};
        g_auto(VmfSaveRig) rig;

        rig_init(&rig);
        rig.faults = &reorder;
        rig.n_faults = 1;
        rig.parameters.minimum_rounds = 10;
        if (!vmf_save_rig_run(&rig, vmf_machine_guest(machine)))
            fail_msg("%s", rig.error->message);
        vmf_seen_image_free(vmf_see_image(rig.path, vmf_machine_guest(machine)));
    }
}

static bool is_whole(const VmfSaveRig *rig)
{
    uint8_t block[VMF_IMAGE_COMMIT_SIZE];
    g_autofree char *content = NULL;
    VmfImageCommit commit;
    gsize length;

    assert_true(g_file_get_contents(rig->path, &content, &length, NULL));
    if (length < sizeof(block))
        return false;
    memcpy(block, content, sizeof(block));
    return vmf_image_commit_decode(block, length, &commit, NULL);
}

/* The host is gone at each of the operations: of that name there is the old file or the whole image, and never anything else. */
static void the_host_goes_at_every_operation(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine_running(8);
    bool whole = false;

    for (uint64_t operations = 0; !whole; operations++) {
        VmfStorageFault crash = {.kind = VMF_STORAGE_FAULT_CRASH,
                                 .after_operations = operations,
                                 .after_bytes = operations % 3 * 512,
                                 .lose_unflushed = true,
                                 .seed = (uint32_t)operations + 1};
        g_auto(VmfSaveRig) rig;

        assert_true(operations < 1000);
        rig_init(&rig);
        vmf_save_rig_put_old(&rig);
        rig.options.stop_first = true;
        rig.options.resume = operations % 2;
        rig.parameters.channels = 1;
        rig.faults = &crash;
        rig.n_faults = 1;
        bool done = vmf_save_rig_run(&rig, vmf_machine_guest(machine));
        whole = is_whole(&rig);
        assert_true(whole || !done);
        if (!done || rig.options.resume)
            assert_lives(machine);
        if (whole)
            vmf_seen_image_free(vmf_see_image(rig.path, NULL));
        else
            vmf_save_rig_assert_old(&rig);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(errors_wherever_there_can_be_one),
        cmocka_unit_test(writes_that_end_in_another_order),
        cmocka_unit_test(the_host_goes_at_every_operation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
