/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the machine is and does, and the owner's hand on it. */
#include "machine/qmp.h"

#include <unistd.h>

json_t *vmf_qmp_query_status(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return json_pack("{s:s,s:b}", "status", vmf_control_run_state(control), "running",
                     vmf_machine_is_running(control->config.machine));
}

json_t *vmf_qmp_query_name(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return json_pack("{s:s}", "name", control->config.name);
}

static json_t *uuid_text(const VmfControl *control)
{
    uint8_t uuid[16];

    vmf_guest_uuid(vmf_machine_guest(control->config.machine), uuid);
    return json_sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", uuid[0], uuid[1],
                        uuid[2], uuid[3], uuid[4], uuid[5], uuid[6], uuid[7], uuid[8], uuid[9], uuid[10], uuid[11],
                        uuid[12], uuid[13], uuid[14], uuid[15]);
}

json_t *vmf_qmp_query_uuid(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return json_pack("{s:o}", "UUID", uuid_text(control));
}

/* Where somebody listens; once the guest has come, or is held, nobody does. */
static const char *open_uri(VmfControl *control)
{
    bool listens = vmf_control_awaits_guest(control) && !vmf_control_is_held(control);

    return listens ? vmf_control_incoming_uri(control) : NULL;
}

static json_t *disks_of(const VmfMachineInfo *info)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < info->n_disks; i++) {
        const VmfDiskInfo *d = &info->disks[i];
        json_t *disk = json_pack("{s:s,s:s,s:s?,s:I,s:i,s:b,s:b,s:b,s:b}", "name", d->name, "uri", d->uri, "backend", d->backend,
                                 "size_bytes", (json_int_t)d->size_bytes, "sector_bytes", (int)d->sector_bytes, "read_only",
                                 (int)d->read_only, "acquired", (int)d->acquired, "locked", (int)d->locked, "direct", (int)d->direct);
        json_t *counters = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "reads", (json_int_t)d->reads, "writes", (json_int_t)d->writes,
                                     "zeroes", (json_int_t)d->zeroes, "flushes", (json_int_t)d->flushes, "read_bytes",
                                     (json_int_t)d->read_bytes, "written_bytes", (json_int_t)d->written_bytes, "failures",
                                     (json_int_t)d->failures);
        json_object_update(disk, counters);
        json_decref(counters);
        json_array_append_new(disks, disk);
    }
    return disks;
}

json_t *vmf_qmp_query_machine(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfMachineInfo info;

    vmf_machine_get_info(control->config.machine, &info);
    return json_pack("{s:s,s:s,s:o,s:i,s:s?,s:s,s:i,s:s,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:i,s:s?,s:I,s:s?,s:s?,s:b,s:s*,s:o}", "name",
                     control->config.name, "host_name", control->config.host_name, "uuid", uuid_text(control), "pid",
                     (int)getpid(), "incoming_uri", open_uri(control), "backend", info.backend, "vcpus",
                     (int)info.vcpus, "dirty_log", info.dirty_log, "running", (int)info.running, "memory_bytes",
                     (json_int_t)info.memory_bytes, "instructions", (json_int_t)info.instructions, "beats",
                     (json_int_t)info.beats, "guest_errors", (json_int_t)info.guest_errors, "guest_error_address",
                     (json_int_t)info.guest_error_address, "guest_gap_max_ns", (json_int_t)info.guest_gap_max_ns,
                     "pages_written", (json_int_t)info.pages_written, "console_lines", (json_int_t)info.console_lines,
                     "throttle_percent", (int)info.throttle_percent, "lost_write_block", info.lost_write_block,
                     "lost_write_page", (json_int_t)info.lost_write_page, "state_dir", control->config.state_dir, "lock",
                     info.lock_path, "lock_held", (int)info.lock_held, "failure",
                     *info.failure ? info.failure : NULL, "disks", disks_of(&info));
}

json_t *vmf_qmp_stop(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return vmf_control_stop_guest(control, error) ? json_object() : NULL;
}

json_t *vmf_qmp_cont(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return vmf_control_cont_guest(control, error) ? json_object() : NULL;
}

json_t *vmf_qmp_quit(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    bool force = json_is_true(json_object_get(arguments, "x-vmferry-force"));

    if (!force && !vmf_control_holds_nothing(control, "quit", error))
        return NULL;
    if (force)
        vmf_machine_give_up_disks(control->config.machine);
    vmf_control_quit(control, "host-qmp-quit");
    return json_object();
}
