/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks, their dirty bitmaps, and backups of them. */
#include "machine/qmp.h"

#include <string.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "machine/block-jobs.h"

static const char *string(const json_t *arguments, const char *name)
{
    return json_string_value(json_object_get(arguments, name));
}

static VmfDisk *disk_of(VmfControl *control, const json_t *arguments, const char *member, GError **error)
{
    const char *name = string(arguments, member);
    VmfDisk *disk = vmf_machine_disk(control->config.machine, name);

    if (!disk)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "machine %s: disk %s: there is none of this name",
                    control->config.name, name);
    return disk;
}

static json_t *done_or_error(bool done)
{
    return done ? json_object() : NULL;
}

/* ---- bitmaps ----------------------------------------------------------------------------------------------------- */

json_t *vmf_qmp_bitmap_add(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);
    const json_t *granularity = json_object_get(arguments, "granularity");
    json_int_t bytes = json_integer_value(granularity);
    VmfBitmapOptions options = {
        .size = sizeof(options),
        .name = string(arguments, "name"),
        .granularity_bytes = bytes < 0 || bytes > VMF_BITMAP_GRANULARITY_MAX ? 1 : (uint32_t)bytes,
        .persistent = json_is_true(json_object_get(arguments, "persistent")),
        .disabled = json_is_true(json_object_get(arguments, "disabled")),
    };

    if (granularity && bytes == 0)
        options.granularity_bytes = 1; /* as any that cannot be */
    return done_or_error(disk && vmf_disk_add_bitmap(disk, &options, error));
}

json_t *vmf_qmp_bitmap_remove(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);

    return done_or_error(disk && vmf_disk_remove_bitmap(disk, string(arguments, "name"), error));
}

json_t *vmf_qmp_bitmap_clear(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);

    return done_or_error(disk && vmf_disk_clear_bitmap(disk, string(arguments, "name"), error));
}

json_t *vmf_qmp_bitmap_enable(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);

    return done_or_error(disk && vmf_disk_enable_bitmap(disk, string(arguments, "name"), true, error));
}

json_t *vmf_qmp_bitmap_disable(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);

    return done_or_error(disk && vmf_disk_enable_bitmap(disk, string(arguments, "name"), false, error));
}

/* A source is a name, or a name with the node that it is on, which has to be this one. */
static const char *source_name(const json_t *source, const char *node, GError **error)
{
    const char *name = json_is_object(source) ? string(source, "name") : json_string_value(source);
    const char *where = json_is_object(source) ? string(source, "node") : node;

    if (name && where && strcmp(where, node) == 0)
        return name;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'bitmaps' expects names of bitmaps on node '%s'", node);
    return NULL;
}

json_t *vmf_qmp_bitmap_merge(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);
    const json_t *bitmaps = json_object_get(arguments, "bitmaps"), *source;
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    size_t i;

    if (!disk)
        return NULL;
    json_array_foreach(bitmaps, i, source)
    {
        const char *name = source_name(source, string(arguments, "node"), error);

        if (!name)
            return NULL;
        g_ptr_array_add(names, (char *)name);
    }
    return done_or_error(vmf_disk_merge_bitmaps(disk, string(arguments, "target"), (const char *const *)names->pdata,
                                                names->len, error));
}

static bool read_extent(const json_t *json, VmfBitmapExtent *extent, GError **error)
{
    json_int_t offset = json_integer_value(json_array_get(json, 0)), length = json_integer_value(json_array_get(json, 1));

    *extent = (VmfBitmapExtent){(uint64_t)offset, (uint64_t)length};
    if (json_array_size(json) == 2 && offset >= 0 && length > 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'extents' expects pairs of an offset and a length");
    return false;
}

json_t *vmf_qmp_bitmap_set(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "node", error);
    const json_t *list = json_object_get(arguments, "extents");
    size_t n = json_array_size(list);
    g_autofree VmfBitmapExtent *extents = g_new0(VmfBitmapExtent, n + 1);

    for (size_t i = 0; i < n && disk; i++)
        if (!read_extent(json_array_get(list, i), &extents[i], error))
            return NULL;
    return done_or_error(disk && vmf_disk_set_bitmap(disk, string(arguments, "name"), extents, n, error));
}

static json_t *bitmaps_of(VmfDisk *disk)
{
    g_autofree VmfBitmapInfo *infos = g_new0(VmfBitmapInfo, VMF_DISK_BITMAPS_MAX);
    json_t *list = json_array();

    for (unsigned i = 0; i < VMF_DISK_BITMAPS_MAX; i++)
        infos[i].size = sizeof(infos[i]);
    for (unsigned i = 0, n = vmf_disk_list_bitmaps(disk, infos, VMF_DISK_BITMAPS_MAX); i < n; i++) {
        const VmfBitmapInfo *b = &infos[i];
        json_t *bitmap = json_pack("{s:s,s:I,s:I,s:b,s:b,s:b}", "name", b->name, "count", (json_int_t)b->dirty_bytes,
                                   "granularity", (json_int_t)b->granularity_bytes, "recording", (int)b->recording,
                                   "persistent", (int)b->persistent, "busy", (int)b->busy);
        if (b->inconsistent) {
            g_autofree char *problem = g_utf8_make_valid(b->problem, -1);
            json_object_set_new(bitmap, "inconsistent", json_true());
            json_object_set_new(bitmap, "x-vmferry-problem", json_string(problem));
        }
        json_array_append_new(list, bitmap);
    }
    return list;
}

json_t *vmf_qmp_query_block(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfMachineInfo info;
    json_t *list = json_array();

    vmf_machine_get_info(control->config.machine, &info);
    for (unsigned i = 0; i < info.n_disks; i++) {
        const VmfDiskInfo *d = &info.disks[i];
        VmfDisk *disk = vmf_machine_disk(control->config.machine, d->name);
        g_autofree char *problem = vmf_disk_bitmaps_problem(disk),
                        *text = problem ? g_utf8_make_valid(problem, -1) : NULL;
        json_t *inserted =
            json_pack("{s:s,s:s,s:s,s:b,s:{s:s,s:s,s:I},s:o,s:s*}", "node-name", d->name, "file", d->uri, "drv", "raw",
                      "ro", (int)d->read_only, "image", "filename", d->uri, "format", "raw", "virtual-size",
                      (json_int_t)d->size_bytes, "dirty-bitmaps", bitmaps_of(disk), "x-vmferry-bitmaps-problem", text);

        json_array_append_new(list, json_pack("{s:s,s:s,s:b,s:b,s:o}", "device", d->name, "type", "hd", "removable", 0,
                                              "locked", (int)d->locked, "inserted", inserted));
    }
    return list;
}

/* ---- backups ----------------------------------------------------------------------------------------------------- */

static bool check_sync(const char *sync, const char *bitmap, GError **error)
{
    bool full = strcmp(sync, "full") == 0, incremental = strcmp(sync, "incremental") == 0;

    if (!full && !incremental)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'sync' expects full or incremental");
    else if (incremental && !bitmap)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "Parameter 'bitmap' is missing: an incremental backup needs one");
    else
        return true;
    return false;
}

json_t *vmf_qmp_drive_backup(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    VmfDisk *disk = disk_of(control, arguments, "device", error);
    const char *id = string(arguments, "job-id"), *target = string(arguments, "target"),
               *sync = string(arguments, "sync");
    json_int_t speed = json_integer_value(json_object_get(arguments, "speed"));
    bool insecure = control->config.insecure || json_is_true(json_object_get(arguments, "x-vmferry-insecure"));
    VmfBackupOptions options = {
        .size = sizeof(options),
        .target = target,
        .connect = insecure ? VMF_CONNECT_INSECURE : 0,
        .bitmap = string(arguments, "bitmap"),
        .full = strcmp(sync, "full") == 0,
        .buffered = json_is_true(json_object_get(arguments, "x-vmferry-buffered")),
        .bytes_per_second = (uint64_t)MAX(speed, 0),
        .force = json_is_true(json_object_get(arguments, "x-vmferry-force")),
    };

    if (disk && check_sync(sync, options.bitmap, error))
        vmf_block_job_begin(control, client, id ? id : vmf_disk_name(disk), disk, &options, error);
    return NULL; /* the answer comes once it has begun */
}

json_t *vmf_qmp_query_block_jobs(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return vmf_block_jobs_query(control);
}

json_t *vmf_qmp_block_job_cancel(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    return done_or_error(vmf_block_job_cancel(control, string(arguments, "device"), error));
}
