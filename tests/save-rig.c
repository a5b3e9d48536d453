/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/save-rig.h"

#include "migration/image-save.h"

#define OLD "what was there before"

VmfMachine *vmf_save_machine(unsigned memory_mib)
{
    VmfMachineConfig config = {
        .name = "guest",
        .memory_bytes = (uint64_t)memory_mib << 20,
        .dirty_bytes_per_second = 8 << 20,
        .set_bytes = (uint64_t)memory_mib << 18,
        .seed = 7,
    };
    VmfMachine *machine = vmf_machine_new(&config, NULL);

    assert_non_null(machine);
    assert_true(vmf_machine_run_to(machine, 20000000, NULL));
    return machine;
}

VmfMachine *vmf_save_machine_running(unsigned memory_mib)
{
    VmfMachine *machine = vmf_save_machine(memory_mib);

    assert_true(vmf_machine_start(machine, NULL));
    return machine;
}

void vmf_save_rig_init(VmfSaveRig *rig)
{
    *rig = (VmfSaveRig){.options = {.size = sizeof(VmfSaveOptions)}};
    rig->folder = g_dir_make_tmp("vmferry-save-XXXXXX", NULL);
    assert_non_null(rig->folder);
    rig->path = g_build_filename(rig->folder, "guest.image", NULL);
    rig->events = g_string_new(NULL);
    vmf_parameters_init(&rig->parameters);
}

static void reset(VmfSaveRig *rig)
{
    g_clear_error(&rig->error);
    g_string_truncate(rig->events, 0);
}

/* Calls @call with each name in the folder. */
static unsigned each_file(const VmfSaveRig *rig, void (*call)(const char *path))
{
    GDir *dir = g_dir_open(rig->folder, 0, NULL);
    const char *name;
    unsigned n = 0;

    for (; (name = g_dir_read_name(dir)); n++) {
        g_autofree char *path = g_build_filename(rig->folder, name, NULL);
        if (call)
            call(path);
    }
    g_dir_close(dir);
    return n;
}

static void remove_file(const char *path)
{
    unlink(path);
}

void vmf_save_rig_clear(VmfSaveRig *rig)
{
    reset(rig);
    each_file(rig, remove_file);
    rmdir(rig->folder);
    g_string_free(rig->events, true);
    g_free(rig->folder);
    g_free(rig->path);
}

static void note(void *opaque, const char *id, const char *text)
{
    g_string_append_printf(((VmfSaveRig *)opaque)->events, "%s: %s\n", id, text);
}

static const VmfSessionOps ops = {.size = sizeof(VmfSessionOps), .event = note};

static VmfStorage *plant(VmfStorage *storage, void *opaque, GError **error)
{
    VmfSaveRig *rig = opaque;

    return rig->storage = vmf_storage_fault_new(storage, rig->faults, rig->n_faults, error);
}

static void *run(void *opaque)
{
    VmfSaveRig *rig = opaque;

    rig->done = vmf_session_run(rig->session, &rig->error);
    return NULL;
}

void vmf_save_rig_start(VmfSaveRig *rig, VmfGuest *guest)
{
    g_autofree char *uri = g_strconcat("file:", rig->path, NULL);

    reset(rig);
    rig->options.uri = rig->options.uri ? rig->options.uri : uri;
    rig->session = vmf_session_new_save(guest, &rig->options, &rig->parameters, &ops, rig);
    rig->options.uri = rig->options.uri == uri ? NULL : rig->options.uri;
    if (rig->faults)
        vmf_save_session_wrap_storage(rig->session, plant, rig);
    assert_int_equal(pthread_create(&rig->thread, NULL, run, rig), 0);
}

bool vmf_save_rig_finish(VmfSaveRig *rig)
{
    pthread_join(rig->thread, NULL);
    rig->storage = NULL;
    rig->statistics.size = sizeof(rig->statistics);
    vmf_session_get_statistics(rig->session, &rig->statistics);
    g_clear_pointer(&rig->session, vmf_session_free);
    assert_int_equal(rig->done, rig->error == NULL);
    return rig->done;
}

bool vmf_save_rig_run(VmfSaveRig *rig, VmfGuest *guest)
{
    vmf_save_rig_start(rig, guest);
    return vmf_save_rig_finish(rig);
}

void vmf_save_rig_put_old(VmfSaveRig *rig)
{
    assert_true(g_file_set_contents(rig->path, OLD, -1, NULL));
}

void vmf_save_rig_assert_old(VmfSaveRig *rig)
{
    g_autofree char *content = NULL;

    assert_true(g_file_get_contents(rig->path, &content, NULL, NULL));
    assert_string_equal(content, OLD);
    assert_int_equal(each_file(rig, NULL), 1);
}
