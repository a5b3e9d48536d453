/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that is saved and restored again and again, whole and in layers, eagerly and lazily, ends as one that was not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>
#include <vmferry/image.h>
#include <vmferry/save.h>

#include "tests/image-rig.h"
#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)
#define CUTS 24

static VmfMachine *make(unsigned cut)
{
    return vmf_test_machine("cut", 16, cut % 2 ? VMF_RAM_MEMFD : VMF_RAM_ANON, 200 * MIB, 4 * MIB);
}

static void run_session(VmfSession *session, VmfStatistics *statistics)
{
    GError *error = NULL;

    bool done = vmf_session_run(session, &error);
    image_no_error(error);
    assert_true(done);
    statistics->size = sizeof(*statistics);
    vmf_session_get_statistics(session, statistics);
    vmf_session_free(session);
}

/* The guest runs while it is saved, and is stopped for the last of it at exactly @instruction. */
static void save(VmfMachine *machine, uint64_t instruction, const char *uri)
{
    VmfSaveOptions options = {.size = sizeof(options), .uri = uri, .buffered = true};
    VmfParameters parameters;
    VmfStatistics statistics;

    vmf_parameters_init(&parameters);
    assert_true(vmf_machine_stop_at(machine, instruction, NULL));
    assert_true(vmf_machine_start(machine, NULL));
    run_session(vmf_session_new_save(vmf_machine_guest(machine), &options, &parameters, NULL, NULL), &statistics);
    assert_false(vmf_machine_is_running(machine));
}

static void restore(VmfMachine *machine, const char *uri, bool lazy, VmfStatistics *statistics)
{
    VmfRestoreOptions options = {
        .size = sizeof(options), .uri = uri, .buffered = true, .mode = lazy ? VMF_RESTORE_LAZY : VMF_RESTORE_EAGER};
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    run_session(vmf_session_new_restore(vmf_machine_guest(machine), &options, &parameters, NULL, NULL), statistics);
    assert_true(vmf_machine_is_running(machine));
    assert_int_equal(statistics->verified, VMF_VERIFIED_TRANSPORT);
}

/* Every other image is a layer over the one before it, so that there are chains of two. */
static char *make_image(const ImageRoom *room, VmfMachine *machine, uint64_t instruction, unsigned cut)
{
    g_autofree char *name = g_strdup_printf("whole%u.img", cut), *layer_name = g_strdup_printf("layer%u.img", cut);
    g_autofree char *parent_name = g_strdup_printf("whole%u.img", cut - 1);
    g_autofree char *uri = image_uri(room, name), *layer_uri = image_uri(room, layer_name), *parent_uri = image_uri(room, parent_name);
    GError *error = NULL;

    save(machine, instruction, uri);
    if (cut % 2 == 0)
        return g_steal_pointer(&uri);
    g_autoptr(VmfImage) image = vmf_image_open(uri, NULL, NULL), parent = vmf_image_open(parent_uri, NULL, NULL);
    assert_true(image && parent);
    vmf_image_rebase(image, parent, layer_uri, NULL, &error);
    image_no_error(error);
    return g_steal_pointer(&layer_uri);
}

static uint64_t instructions_of(VmfMachine *machine)
{
    VmfMachineInfo info;

    vmf_machine_get_info(machine, &info);
    assert_int_equal(info.guest_errors, 0);
    return info.instructions;
}

static void assert_same(VmfMachine *cut, VmfMachine *uncut)
{
    uint64_t instruction = instructions_of(cut) + 1000000;
    uint8_t found[16], expected[16];

    assert_true(vmf_machine_run_to(cut, instruction, NULL));
    assert_true(vmf_machine_run_to(uncut, instruction, NULL));
    assert_true(vmf_machine_hash(cut, found, NULL));
    assert_true(vmf_machine_hash(uncut, expected, NULL));
    assert_memory_equal(found, expected, sizeof(found));
}

static void test_cuts(void **state)
{
    g_autoptr(VmfMachine) uncut = make(0);
    g_autoptr(GRand) random = g_rand_new_with_seed(1996);
    VmfMachine *at = make(0);
    uint64_t faults = 0;

    assert_true(vmf_machine_run_to(at, 3000000, NULL));
    for (unsigned cut = 0; cut < CUTS; cut++) {
        VmfMachine *next = make(cut + 1);
        VmfStatistics statistics;
        uint64_t instruction = instructions_of(at) + (uint64_t)g_rand_int_range(random, 100000, 3000000);
        g_autofree char *uri = make_image(*state, at, instruction, cut);
        restore(next, uri, cut % 4 > 1, &statistics);
        faults += statistics.faults;
        assert_true(vmf_machine_stop(next, NULL));
        vmf_machine_free(at);
        at = next;
    }
    assert_true(faults > CUTS);
    assert_same(at, uncut);
    vmf_machine_free(at);
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test_setup_teardown(test_cuts, image_enter, image_leave),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
