/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/disk-world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <string.h>

#define MIB (1ull << 20)

/* ---- the folder -------------------------------------------------------------------------------------------------- */

int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->directory = g_dir_make_tmp("vmferry-XXXXXX", NULL);
    rig->backend = *state ? *state : "rv32";
    *state = rig;
    return rig->directory ? 0 : -1;
}

int tear_down(void **state)
{
    Rig *rig = *state;
    g_autoptr(GDir) dir = g_dir_open(rig->directory, 0, NULL);

    for (const char *name; (name = g_dir_read_name(dir));) {
        g_autofree char *path = path_of(rig, name);
        g_unlink(path);
    }
    g_rmdir(rig->directory);
    g_free(rig->directory);
    g_free(rig);
    return 0;
}

char *path_of(const Rig *rig, const char *file)
{
    return g_build_filename(rig->directory, file, NULL);
}

char *uri_of(const Rig *rig, const char *file)
{
    return g_strdup_printf("file:%s/%s", rig->directory, file);
}

bool exists(const Rig *rig, const char *file)
{
    g_autofree char *path = path_of(rig, file);

    return g_file_test(path, G_FILE_TEST_EXISTS);
}

char *content_of(const Rig *rig, const char *file, uint64_t size)
{
    g_autofree char *path = path_of(rig, file);
    char *content;
    gsize length;

    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_int_equal(length, size);
    return content;
}

void assert_same_content(const Rig *rig, const char *one, const char *other, uint64_t size)
{
    g_autofree char *here = content_of(rig, one, size), *there = content_of(rig, other, size);

    assert_memory_equal(here, there, size);
}

/* ---- machines ---------------------------------------------------------------------------------------------------- */

VmfMachine *try_machine(const Rig *rig, Disks disks, GError **error)
{
    g_autofree char *uri = uri_of(rig, disks.files[0]);
    g_autofree char *other = disks.files[1] ? uri_of(rig, disks.files[1]) : NULL;
    VmfMachineDiskConfig disk = {.uri = uri,
                                 .create_bytes = disks.size,
                                 .incoming = disks.incoming,
                                 .overwrite = disks.overwrite,
                                 .sector_bytes = disks.sector_bytes};
    VmfMachineDiskConfig configs[2] = {disk, disk};
    VmfMachineConfig config = {
        .name = "guest",
        .backend = rig->backend,
        .memory_bytes = 4 * MIB,
        .dirty_bytes_per_second = 20 * MIB,
        .set_bytes = MIB,
        .disks = configs,
        .n_disks = other ? 2 : 1,
        .disk_bytes_per_second = disks.bytes_per_second ? disks.bytes_per_second : 64 * MIB,
        .disk_set_bytes = 4 * MIB,
        .seed = 11,
        .unpaced = strcmp(rig->backend, "rv32") == 0,
    };

    configs[0].name = "root";
    configs[1].name = "data";
    configs[1].uri = other;
    return vmf_machine_new(&config, error);
}

VmfMachine *machine(const Rig *rig, Disks disks)
{
    g_autoptr(GError) error = NULL;
    VmfMachine *made = try_machine(rig, disks, &error);

    if (!made)
        fail_msg("%s", error->message);
    return made;
}

VmfMachine *target_of(const Rig *rig, const char *file)
{
    return machine(rig, (Disks){.files = {file}, .incoming = true});
}

VmfMachineInfo info_of(VmfMachine *m)
{
    VmfMachineInfo info;

    vmf_machine_get_info(m, &info);
    return info;
}

void wait_for_writes(VmfMachine *m, uint64_t n)
{
    uint64_t before = info_of(m).disks[0].writes;

    for (unsigned i = 0; i < 3000 && info_of(m).disks[0].writes < before + n; i++)
        g_usleep(10000);
    assert_true(info_of(m).disks[0].writes >= before + n);
    assert_int_equal(info_of(m).guest_errors, 0);
    assert_int_equal(info_of(m).disks[0].failures, 0);
}

/* ---- a handover -------------------------------------------------------------------------------------------------- */

/* Not in the test's thread: nothing is asserted. */
static bool is_same(const Handed *handed, unsigned disk)
{
    g_autofree char *here = path_of(handed->rig, handed->here[disk]), *there = path_of(handed->rig, handed->there[disk]);
    g_autofree char *one = NULL, *other = NULL;
    gsize length, other_length;

    return g_file_get_contents(here, &one, &length, NULL) && g_file_get_contents(there, &other, &other_length, NULL) &&
           length == handed->size && other_length == handed->size && memcmp(one, other, handed->size) == 0;
}

/* The target's session is about to start the guest, and waits for this. */
static bool compare_at(void *opaque, const char *point)
{
    Handed *handed = opaque;

    if (strcmp(point, "target.guest.start.due") != 0)
        return false;
    for (unsigned i = 0; i < G_N_ELEMENTS(handed->here) && handed->here[i]; i++) {
        handed->compared++;
        handed->different += !is_same(handed, i);
    }
    return false;
}

void watch_handover(VmfTrip *trip, Handed *handed)
{
    trip->target_parameters.fault = compare_at;
    trip->target_parameters.fault_opaque = handed;
}

void assert_handed_whole(const Handed *handed)
{
    assert_int_equal(handed->compared, handed->here[1] ? 2 : 1);
    assert_int_equal(handed->different, 0);
}
