/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The place of a copy, and who else comes there meanwhile. */
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "block/disk.h"
#include "block/receive.h"

static int set_up(void **state)
{
    *state = directory_new(".");
    return 0;
}

static int tear_down(void **state)
{
    directory_remove(*state);
    return 0;
}

static char *path_at(const char *directory, const char *name)
{
    return g_build_filename(directory, name, NULL);
}

static bool exists(const char *directory, const char *name)
{
    g_autofree char *path = path_at(directory, name);

    return access(path, F_OK) == 0;
}

/* A file of 1 MiB that begins with @text. */
static void put(const char *directory, const char *name, const char *text)
{
    g_autofree char *path = path_at(directory, name);

    assert_true(g_file_set_contents(path, text, -1, NULL));
    assert_int_equal(truncate(path, MIB), 0);
}

static void assert_begins(const char *directory, const char *name, const char *text)
{
    g_autofree char *path = path_at(directory, name), *content = NULL;
    size_t length;

    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_int_equal(length, MIB);
    assert_string_equal(content, text);
}

static void rename_at(const char *directory, const char *from, const char *to)
{
    g_autofree char *old = path_at(directory, from), *new = path_at(directory, to);

    assert_int_equal(rename(old, new), 0);
}

/* In place of libc's. What happens just before the step that changes names, once; or there is no such step. */
static struct {
    const char *directory, *from, *to;
    bool is_missing;
    int sync_errno; /* of directories; 0: it works */
} names;

int fsync(int fd)
{
    struct stat status;

    if (!names.sync_errno || fstat(fd, &status) < 0 || !S_ISDIR(status.st_mode))
        return (int)syscall(SYS_fsync, fd);
    errno = names.sync_errno;
    return -1;
}

int renameat2(int old_directory, const char *old, int new_directory, const char *new, unsigned flags)
{
    if (names.from)
        rename_at(names.directory, names.from, names.to);
    names.from = NULL;
    if (names.is_missing)
        errno = EINVAL;
    return names.is_missing ? -1 : (int)syscall(SYS_renameat2, old_directory, old, new_directory, new, flags);
}

static VmfDisk *disk_at(const char *directory, const char *name, bool no_lock)
{
    g_autofree char *uri = uri_at(directory, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .incoming = true, .no_lock = no_lock};
    VmfDisk *disk = vmf_disk_open("root", &options, NULL);

    assert_non_null(disk);
    return disk;
}

static void begin(VmfDisk *disk, VmfReceiveOnto onto)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_receive_begin(disk, MIB, onto, &error), error);
}

static void assert_refused(VmfDisk *disk, VmfReceiveOnto onto, VmfErrorCode code, const char *what)
{
    g_autofree char *problem = vmf_disk_receive_problem(disk, MIB, onto);
    g_autoptr(GError) error = NULL;

    assert_non_null(problem);
    assert_non_null(strstr(problem, what));
    assert_false(vmf_disk_receive_begin(disk, MIB, onto, &error));
    if (!strstr(error->message, what))
        fail_msg("expected '%s': %s", what, error->message);
    assert_error(error, code);
}

static void assert_no_new_file(const char *directory, const char *name)
{
    VmfStorageOptions options = {.mode = VMF_STORAGE_CREATE};
    g_autofree char *uri = uri_at(directory, name);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_storage_open(uri, &options, &error));
    assert_non_null(strstr(error->message, "somebody else is writing it"));
}

static void commit_is_refused(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;

    assert_false(vmf_disk_receive_commit(disk, &error));
    assert_error(error, VMF_ERROR_DISK_PLACE);
    vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
}

/* ---- whoever writes there already --------------------------------------------------------------------------------- */

/* A backup, or an image, is under way to the place. */
static void test_new_file_keeps_a_copy_out(void **state)
{
    for (unsigned no_lock = 0; no_lock < 2; no_lock++) {
        g_autoptr(VmfStorage) file = storage_at(*state, "place", VMF_STORAGE_CREATE, NULL, true);
        g_autoptr(VmfDisk) disk = disk_at(*state, "place", no_lock);
        g_autoptr(GError) error = NULL;

        assert_good(vmf_storage_set_size(file, MIB, &error) && vmf_storage_write(file, 0, "backup", 6, &error), error);
        assert_refused(disk, VMF_RECEIVE_ANEW, VMF_ERROR_LOCKED, "somebody else is writing it");
        assert_refused(disk, VMF_RECEIVE_ONTO_BASE, VMF_ERROR_LOCKED, "somebody else is writing it");
        assert_begins(*state, "place.partial", "backup");
        assert_good(vmf_storage_commit(file, &error), error);
        assert_begins(*state, "place", "backup");
        g_clear_pointer(&file, vmf_storage_free);
        begin(disk, VMF_RECEIVE_ANEW);
        vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
    }
}

/* A base does not take the other name from whoever writes under it. */
static void test_new_file_keeps_a_base_out(void **state)
{
    g_autoptr(VmfStorage) file = NULL;
    g_autoptr(VmfDisk) disk = NULL;
    g_autoptr(GError) error = NULL;

    put(*state, "place", "base");
    disk = disk_at(*state, "place", false);
    begin(disk, VMF_RECEIVE_ONTO_BASE);
    file = storage_at(*state, "place", VMF_STORAGE_CREATE, NULL, true);
    assert_false(vmf_disk_receive_change(disk, true, &error));
    assert_non_null(strstr(error->message, "somebody else is writing it"));
    vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
    assert_begins(*state, "place", "base");
}

/* What arrives, and what waits under the other name until it is known that nobody wants it back. */
static void test_copy_keeps_a_new_file_out(void **state)
{
    for (unsigned no_lock = 0; no_lock < 2; no_lock++) {
        g_autoptr(VmfDisk) disk = NULL;

        put(*state, "place", "kept");
        disk = disk_at(*state, "place", no_lock);
        begin(disk, VMF_RECEIVE_ANEW);
        assert_no_new_file(*state, "place");
        assert_begins(*state, "place.partial", "");
        assert_true(vmf_disk_receive_commit(disk, NULL));
        assert_no_new_file(*state, "place");
        assert_begins(*state, "place.partial", "kept");
        vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
        assert_begins(*state, "place", "kept");
        g_autoptr(VmfStorage) file = storage_at(*state, "place", VMF_STORAGE_CREATE, NULL, true);
    }
}

static void test_base_keeps_a_new_file_out(void **state)
{
    g_autoptr(VmfDisk) disk = NULL;
    g_autoptr(GError) error = NULL;

    put(*state, "place", "base");
    disk = disk_at(*state, "place", false);
    begin(disk, VMF_RECEIVE_ONTO_BASE);
    assert_good(vmf_disk_receive_change(disk, true, &error), error);
    assert_no_new_file(*state, "place");
    assert_begins(*state, "place.partial", "base");
    vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
}

static void test_partial_of_two_names(void **state)
{
    g_autofree char *partial = path_at(*state, "place.partial"), *other = path_at(*state, "other");
    g_autoptr(VmfDisk) disk = disk_at(*state, "place", false);

    put(*state, "other", "precious");
    assert_int_equal(link(other, partial), 0);
    assert_refused(disk, VMF_RECEIVE_ANEW, VMF_ERROR_DISK_PLACE, "another name");
    assert_begins(*state, "other", "precious");
}

/* Nobody should use such a file as a disk; who does is not robbed of it. */
static void test_disk_under_such_a_name(void **state)
{
    g_autofree char *uri = uri_at(*state, "place.partial");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri};
    g_autoptr(VmfDisk) owner = NULL, disk = disk_at(*state, "place", true);
    g_autoptr(GError) error = NULL;

    put(*state, "place.partial", "in use");
    owner = vmf_disk_open("root", &options, NULL);
    assert_true(owner && vmf_disk_acquire(owner, NULL));
    assert_no_new_file(*state, "place");
    assert_refused(disk, VMF_RECEIVE_ANEW, VMF_ERROR_LOCKED, "somebody else is writing it");
    assert_begins(*state, "place.partial", "in use");
    assert_good(vmf_disk_release(owner, &error), error);
    g_autoptr(VmfStorage) file = storage_at(*state, "place", VMF_STORAGE_CREATE, NULL, true);
}

/* The guest goes back, and by then another writes under the other name. */
static void test_dropped_beside_a_new_file(void **state)
{
    g_autoptr(VmfDisk) disk = disk_at(*state, "place", false);
    g_autoptr(VmfStorage) file = NULL;
    g_autoptr(GError) error = NULL;

    begin(disk, VMF_RECEIVE_ANEW);
    assert_true(vmf_disk_receive_commit(disk, NULL));
    file = storage_at(*state, "place", VMF_STORAGE_CREATE, NULL, true);
    assert_good(vmf_storage_set_size(file, MIB, &error) && vmf_storage_write(file, 0, "backup", 6, &error), error);
    vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
    assert_false(exists(*state, "place"));
    assert_begins(*state, "place.partial", "backup");
    assert_good(vmf_storage_commit(file, &error), error);
    assert_begins(*state, "place", "backup");
}

/* ---- the place is another's by the end --------------------------------------------------------------------------- */

static void test_free_place_that_is_taken(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(VmfDisk) disk = disk_at(*state, "place", false);

        names.is_missing = i == 1;
        begin(disk, VMF_RECEIVE_ANEW);
        put(*state, "place", "another's");
        commit_is_refused(disk);
        names.is_missing = false;
        assert_begins(*state, "place", "another's");
        assert_begins(*state, "place.partial", "");
        rename_at(*state, "place", "other");
    }
}

/* It was moved away, or another file was moved there: before the end, or in the middle of it. */
static void test_file_that_is_replaced(void **state)
{
    enum { BEFORE, BETWEEN, WITHOUT_EXCHANGE, AWAY, N };

    for (unsigned how = 0; how < N; how++) {
        g_autoptr(VmfDisk) disk = NULL;

        put(*state, "place", "old");
        put(*state, "other", "another's");
        disk = disk_at(*state, "place", false);
        begin(disk, VMF_RECEIVE_ANEW);
        if (how == AWAY)
            rename_at(*state, "place", "away");
        else if (how != BETWEEN)
            rename_at(*state, "other", "place");
        names.is_missing = how == WITHOUT_EXCHANGE;
        if (how == BETWEEN) {
            names.directory = *state;
            names.from = "other";
            names.to = "place";
        }
        commit_is_refused(disk);
        names.is_missing = false;
        assert_null(names.from);
        if (how == AWAY)
            assert_false(exists(*state, "place"));
        else
            assert_begins(*state, "place", "another's");
        assert_begins(*state, "place.partial", "");
    }
}

/* What waits to come back was replaced: nobody removes what has its name now. */
static void test_what_waits_is_replaced(void **state)
{
    g_autoptr(VmfDisk) disk = NULL;

    put(*state, "place", "old");
    put(*state, "other", "another's");
    disk = disk_at(*state, "place", false);
    begin(disk, VMF_RECEIVE_ANEW);
    assert_true(vmf_disk_receive_commit(disk, NULL));
    rename_at(*state, "other", "place.partial");
    vmf_disk_receive_end(disk, VMF_RECEIVE_KEPT);
    assert_begins(*state, "place", "");
    assert_begins(*state, "place.partial", "another's");
}

/* Nor is a copy the guest's disk whose own name has gone to another. */
static void test_copy_that_is_replaced(void **state)
{
    g_autoptr(VmfDisk) disk = disk_at(*state, "place", false);

    put(*state, "other", "another's");
    begin(disk, VMF_RECEIVE_ANEW);
    rename_at(*state, "other", "place.partial");
    commit_is_refused(disk);
    assert_false(exists(*state, "place"));
    assert_begins(*state, "place.partial", "another's");
}

/* Ahead of the first change, or where there was none. */
static void test_base_that_is_replaced(void **state)
{
    for (unsigned changed = 0; changed < 2; changed++) {
        g_autoptr(VmfDisk) disk = NULL;
        g_autoptr(GError) error = NULL;

        put(*state, "place", "base");
        put(*state, "other", "another's");
        disk = disk_at(*state, "place", false);
        begin(disk, VMF_RECEIVE_ONTO_BASE);
        rename_at(*state, "other", "place");
        if (changed) {
            assert_false(vmf_disk_receive_change(disk, true, &error));
            assert_error(error, VMF_ERROR_DISK_PLACE);
            vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
        } else {
            commit_is_refused(disk);
        }
        assert_begins(*state, "place", "another's");
        assert_false(exists(*state, "place.partial"));
    }
}

static void test_without_such_a_step(void **state)
{
    g_autoptr(VmfDisk) disk = disk_at(*state, "place", false);
    g_autoptr(GError) error = NULL;

    names.is_missing = true;
    for (unsigned i = 0; i < 2; i++) { /* onto nothing, and onto a file */
        begin(disk, VMF_RECEIVE_ANEW);
        assert_good(vmf_disk_receive_commit(disk, &error), error);
        vmf_disk_receive_end(disk, VMF_RECEIVE_KEPT);
        assert_begins(*state, "place", "");
        assert_false(exists(*state, "place.partial"));
        assert_true(vmf_disk_release(disk, NULL));
    }
    begin(disk, VMF_RECEIVE_ONTO_BASE);
    assert_good(vmf_disk_receive_change(disk, true, &error), error);
    assert_good(vmf_disk_receive_commit(disk, &error), error);
    vmf_disk_receive_end(disk, VMF_RECEIVE_DROPPED);
    assert_begins(*state, "place.partial", "");
    assert_false(exists(*state, "place"));
    names.is_missing = false;
}

static void test_link_to_nothing(void **state)
{
    g_autofree char *link = path_at(*state, "place");
    g_autoptr(VmfDisk) disk = NULL;

    assert_int_equal(symlink("nothing", link), 0);
    disk = disk_at(*state, "place", false);
    assert_refused(disk, VMF_RECEIVE_ANEW, VMF_ERROR_DISK_PLACE, "a link");
}

static void set_immutable(const char *directory, bool immutable)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY), flags = 0;

    assert_true(fd >= 0);
    bool done = ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0;
    flags = immutable ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    done = done && ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
    close(fd);
    if (done)
        return;
    print_message("skip: a directory cannot be made immutable: %s\n", g_strerror(errno));
    skip();
}

/* That is known ahead of the first octet. */
static void test_directory_that_takes_nothing(void **state)
{
    g_autoptr(VmfDisk) nowhere = disk_at(*state, "no-such/place", false), disk = disk_at(*state, "place", false);
    g_autofree char *problem = NULL;

    assert_refused(nowhere, VMF_RECEIVE_ANEW, VMF_ERROR_DISK_PLACE, "nothing can be made in ");
    problem = vmf_disk_receive_problem(disk, MIB, VMF_RECEIVE_ANEW);
    assert_null(problem);
    set_immutable(*state, true);
    problem = vmf_disk_receive_problem(disk, MIB, VMF_RECEIVE_ANEW);
    set_immutable(*state, false);
    assert_non_null(problem);
    assert_non_null(strstr(problem, "nothing can be made in "));
}

static void test_places_that_are_one(void **state)
{
    g_autoptr(VmfDisk) one = disk_at(*state, "place", false), same = disk_at(*state, "./place", false);
    g_autoptr(VmfDisk) other = disk_at(*state, "other", false);
    g_autofree char *path = path_at(*state, "place"), *link_path = path_at(*state, "other");

    assert_true(vmf_disk_receive_is_same(one, same));
    assert_false(vmf_disk_receive_is_same(one, other));
    put(*state, "place", "base");
    assert_true(vmf_disk_receive_is_same(one, same));
    assert_false(vmf_disk_receive_is_same(one, other));
    assert_int_equal(link(path, link_path), 0);
    assert_true(vmf_disk_receive_is_same(one, other));
}

/* Its bitmaps are another's too, and stay with it. */
static void test_bitmaps_of_what_was_put_there(void **state)
{
    for (unsigned onto = VMF_RECEIVE_ANEW; onto <= VMF_RECEIVE_ONTO_BASE; onto++) {
        g_autoptr(VmfDisk) disk = NULL;

        put(*state, "place", "old");
        put(*state, "other", "another's");
        disk = disk_at(*state, "place", false);
        begin(disk, onto);
        rename_at(*state, "other", "place");
        put(*state, "place.bitmaps", "vmf-bits of another");
        commit_is_refused(disk);
        assert_begins(*state, "place.bitmaps", "vmf-bits of another");
    }
}

/* ---- the directory cannot be synced ------------------------------------------------------------------------------- */

static void test_directories_that_nobody_syncs(void **state)
{
    g_autoptr(VmfDisk) disk = disk_at(*state, "place", false);
    g_autoptr(GError) error = NULL;

    names.sync_errno = EINVAL;
    for (unsigned i = 0; i < 3; i++) { /* onto nothing, a file, and a base */
        VmfReceiveOnto onto = i < 2 ? VMF_RECEIVE_ANEW : VMF_RECEIVE_ONTO_BASE;

        begin(disk, onto);
        if (onto == VMF_RECEIVE_ONTO_BASE)
            assert_good(vmf_disk_receive_change(disk, true, &error), error);
        assert_good(vmf_disk_receive_commit(disk, &error), error);
        vmf_disk_receive_end(disk, VMF_RECEIVE_KEPT);
        assert_begins(*state, "place", "");
        assert_true(vmf_disk_release(disk, NULL));
    }
    names.sync_errno = 0;
}

/* Whatever is said about the copy then: what was there has its name back. */
static void test_name_that_is_not_durable_is_given_back(void **state)
{
    for (unsigned how = VMF_RECEIVE_DROPPED; how <= VMF_RECEIVE_LEFT; how++) {
        for (unsigned there = 0; there < 2; there++) {
            g_autoptr(VmfDisk) disk = NULL;
            g_autoptr(GError) error = NULL;

            if (there)
                put(*state, "place", "old");
            disk = disk_at(*state, "place", false);
            begin(disk, VMF_RECEIVE_ANEW);
            names.sync_errno = EIO;
            assert_false(vmf_disk_receive_commit(disk, &error));
            names.sync_errno = 0;
            assert_non_null(strstr(error->message, "Input/output error"));
            vmf_disk_receive_end(disk, how);
            assert_begins(*state, "place.partial", "");
            if (there) {
                assert_begins(*state, "place", "old");
                rename_at(*state, "place", "other");
            }
            assert_false(exists(*state, "place"));
        }
    }
}

static void test_base_whose_name_is_not_durable(void **state)
{
    g_autoptr(VmfDisk) disk = NULL;
    g_autoptr(GError) error = NULL;

    put(*state, "place", "base");
    disk = disk_at(*state, "place", false);
    begin(disk, VMF_RECEIVE_ONTO_BASE);
    names.sync_errno = EIO;
    assert_false(vmf_disk_receive_change(disk, true, &error));
    assert_error(error, VMF_ERROR_IO);
    assert_begins(*state, "place", "base");
    names.sync_errno = 0;
    assert_good(vmf_disk_receive_change(disk, true, &error), error);
    names.sync_errno = EIO;
    assert_false(vmf_disk_receive_commit(disk, &error));
    assert_error(error, VMF_ERROR_IO);
    names.sync_errno = 0;
    assert_begins(*state, "place.partial", "base");
    assert_false(exists(*state, "place"));
    assert_good(vmf_disk_receive_commit(disk, &error), error);
    vmf_disk_receive_end(disk, VMF_RECEIVE_KEPT);
    assert_begins(*state, "place", "base");
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_new_file_keeps_a_copy_out),
        rig_test(test_new_file_keeps_a_base_out),
        rig_test(test_copy_keeps_a_new_file_out),
        rig_test(test_base_keeps_a_new_file_out),
        rig_test(test_partial_of_two_names),
        rig_test(test_disk_under_such_a_name),
        rig_test(test_dropped_beside_a_new_file),
        rig_test(test_free_place_that_is_taken),
        rig_test(test_file_that_is_replaced),
        rig_test(test_what_waits_is_replaced),
        rig_test(test_copy_that_is_replaced),
        rig_test(test_base_that_is_replaced),
        rig_test(test_without_such_a_step),
        rig_test(test_link_to_nothing),
        rig_test(test_directory_that_takes_nothing),
        rig_test(test_places_that_are_one),
        rig_test(test_bitmaps_of_what_was_put_there),
        rig_test(test_directories_that_nobody_syncs),
        rig_test(test_name_that_is_not_durable_is_given_back),
        rig_test(test_base_whose_name_is_not_durable),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
