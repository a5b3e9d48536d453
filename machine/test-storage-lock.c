/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The lock that stands for shared storage: one holder, whoever that is, and only while the guest may run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "machine/machine-private.h"

static int make_directory(void **state)
{
    *state = g_dir_make_tmp("vmf-lock-XXXXXX", NULL);
    return *state ? 0 : -1;
}

static int remove_directory(void **state)
{
    g_autofree char *path = g_build_filename(*state, "lock", NULL);

    g_unlink(path);
    g_rmdir(*state);
    g_free(*state);
    return 0;
}

static char *path_in(void **state)
{
    return g_build_filename(*state, "lock", NULL);
}

static VmfStorageLock *open_lock(const char *path)
{
    VmfStorageLock *lock = vmf_storage_lock_open(path, NULL);

    assert_non_null(lock);
    return lock;
}

static void test_one_holder(void **state)
{
    g_autofree char *path = path_in(state);
    g_autoptr(VmfStorageLock) one = open_lock(path), other = open_lock(path);
    g_autoptr(GError) error = NULL;

    assert_false(vmf_storage_lock_is_held(one));
    assert_true(vmf_storage_lock_acquire(one, NULL));
    assert_true(vmf_storage_lock_acquire(one, NULL));
    assert_true(vmf_storage_lock_is_held(one));
    assert_false(vmf_storage_lock_acquire(other, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_GUEST));
    assert_non_null(strstr(error->message, "another holds it"));
    assert_false(vmf_storage_lock_is_held(other));
    assert_true(vmf_storage_lock_release(other, NULL)); /* not its to release */
    assert_false(vmf_storage_lock_acquire(other, NULL));
    assert_true(vmf_storage_lock_release(one, NULL));
    assert_true(vmf_storage_lock_acquire(other, NULL));
}

static void test_a_child_does_not_keep_it(void **state)
{
    g_autofree char *path = path_in(state);
    VmfStorageLock *one = open_lock(path);
    g_autoptr(VmfStorageLock) other = open_lock(path);
    int go[2];
    char byte;

    assert_true(vmf_storage_lock_acquire(one, NULL));
    assert_int_equal(pipe(go), 0);
    pid_t child = fork();
    if (child == 0)
        _exit(close(go[1]) < 0 || read(go[0], &byte, 1) < 0);
    close(go[0]);
    vmf_storage_lock_free(one);
    assert_true(vmf_storage_lock_acquire(other, NULL));
    close(go[1]);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static void test_no_such_directory(void **state)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_storage_lock_open("/nonexistent/lock", &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_GUEST));
}

static VmfMachine *new_machine(const char *lock_path)
{
    VmfMachineConfig config = {.name = "vm", .memory_bytes = 1 << 20, .unpaced = true, .lock_path = lock_path};
    VmfMachine *machine = vmf_machine_new(&config, NULL);

    assert_non_null(machine);
    return machine;
}

static bool is_held(VmfMachine *machine)
{
    VmfMachineInfo info;

    vmf_machine_get_info(machine, &info);
    return info.lock_held;
}

/* As the engine calls it, between a stop and a start. */
static void test_a_guest_runs_with_the_lock_alone(void **state)
{
    g_autofree char *path = path_in(state);
    VmfMachine *here = new_machine(path);
    g_autoptr(VmfMachine) there = new_machine(path);
    const VmfGuestOps *ops = &vmf_machine_guest_ops;

    assert_false(is_held(here));
    assert_true(vmf_machine_hold_storage(here, NULL));
    assert_true(vmf_machine_start(here, NULL));
    assert_false(vmf_machine_hold_storage(there, NULL));
    assert_false(vmf_machine_start(there, NULL));
    assert_false(vmf_machine_is_running(there));
    assert_false(ops->start(there, NULL));
    assert_true(ops->stop(here, NULL));
    assert_true(ops->storage_release(here, NULL));
    assert_false(is_held(here));
    assert_true(ops->storage_acquire(there, NULL));
    assert_false(ops->storage_acquire(here, NULL));
    assert_true(ops->start(there, NULL));
    assert_true(vmf_machine_stop(there, NULL)); /* the owner's pause keeps it */
    assert_true(is_held(there));
    vmf_machine_free(here);
}

static void test_a_machine_that_ends_lets_go(void **state)
{
    g_autofree char *path = path_in(state);
    VmfMachine *one = new_machine(path);
    g_autoptr(VmfMachine) other = new_machine(path);

    assert_true(vmf_machine_start(one, NULL));
    assert_false(vmf_machine_hold_storage(other, NULL));
    vmf_machine_free(one);
    assert_true(vmf_machine_hold_storage(other, NULL));
}

static void test_a_machine_without_storage(void **state)
{
    g_autoptr(VmfMachine) machine = new_machine(NULL);

    assert_true(vmf_machine_hold_storage(machine, NULL));
    assert_true(vmf_machine_start(machine, NULL));
    assert_false(is_held(machine));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_one_holder, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_a_child_does_not_keep_it, make_directory, remove_directory),
        cmocka_unit_test(test_no_such_directory),
        cmocka_unit_test_setup_teardown(test_a_guest_runs_with_the_lock_alone, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_a_machine_that_ends_lets_go, make_directory, remove_directory),
        cmocka_unit_test(test_a_machine_without_storage),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
